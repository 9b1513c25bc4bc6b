"""Lives of jobs, each with what it is asked for, how its pods end, and what user and cluster do when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from finetune_api.conditions import ExitCode, FailureReason, Stage
from finetune_api.reports import StageFailure, Summary
from finetune_operator.plan import Manifest
from finetune_operator.settings import Settings
from tests.api_server import ApiServer
from tests.lives import STILL, World
from tests.polled_jobs import Source
from tests.simulator import Answer, good_summary, make_job, succeed

Condition = Callable[[ApiServer], bool]
Act = Callable[[ApiServer], object]
DIGEST = "ab" * 6  # the beginning of what the simulator's trainings make


def holds(server: ApiServer, condition: str) -> bool:
    return any(each.type == condition and each.status == "True" for each in server.job.status.conditions)


def ready(server: ApiServer) -> bool:
    return holds(server, "Ready")


def trains(server: ApiServer) -> bool:
    return any("train" in pod["metadata"]["name"] and pod["status"]["phase"] == "Running" for pod in server.pods)


def says(reason: str) -> Condition:
    """Whether that is the reason of Ready."""
    return lambda server: ("Ready", reason) in [(each.type, each.reason) for each in server.job.status.conditions]


def answers(run: int) -> Condition:
    def check(server: ApiServer) -> bool:
        endpoint = server.job.status.endpoint
        return ready(server) and endpoint is not None and endpoint.run == run

    return check


def queued(stage: str) -> Condition:
    """Whether the stage's Job waits for its queue."""
    return lambda server: bool(server.objects.get(("Job", f"travel-r1-{stage}"), {}).get("spec", {}).get("suspend"))


def lets(stage: str, go: bool) -> Act:
    """What the queue does to the stage's Job: it goes to the nodes of a pool, or gives way."""

    def act(server: ApiServer) -> None:
        place = {"nodeSelector": {"pool": "a"}} if go else {}
        server.suspend(server.objects["Job", f"travel-r1-{stage}"], suspended=not go, **place)

    return act


def paused(server: ApiServer) -> bool:
    return holds(server, "Suspended")


def worse(pod: Manifest) -> tuple[int, str]:
    return 0, good_summary(stage_of(pod), int(pod["metadata"]["labels"]["finetune-operator.io/run"]), tuned=3.0)


def refused(pod: Manifest) -> tuple[int, str]:
    failure = StageFailure(reason=FailureReason.DATASET_INVALID, message="train: line 4 is broken")
    return ExitCode.USER_INPUT, Summary(stage=Stage.PREPARE, ok=False, run=1, failure=failure).to_message()


def fails(pod: Manifest) -> tuple[int, str]:
    return (1, "") if stage_of(pod) == "Train" else succeed(pod)


def removes(pod: Manifest) -> tuple[int, str]:
    return (0, '{"ok": true}') if stage_of(pod) == "Remove" else succeed(pod)


def stage_of(pod: Manifest) -> str:
    return str(pod["metadata"]["labels"]["finetune-operator.io/stage"])


def interrupted_once() -> Answer:
    """The first pod that trains saves a checkpoint and goes."""
    gone: list[str] = []

    def answer(pod: Manifest) -> tuple[int, str]:
        if gone or stage_of(pod) != "Train":
            return succeed(pod)
        gone.append(pod["metadata"]["name"])
        return ExitCode.INTERRUPTED, Summary(stage=Stage.TRAIN, ok=False, run=1).to_message()

    return answer


@dataclass(frozen=True)
class Scenario:
    """A job, how its pods end, and what happens when: a change of the spec by the user, or what somebody else does.
    `still`: so many seconds nothing happens in the end. `timed`: what happens finds another world when the operator
    has been away. `dated`: it goes by times of the cluster, and so by how far clocks are apart."""

    spec: dict[str, Any] = field(default_factory=dict)
    answer: Callable[[], Answer] = lambda: succeed
    script: tuple[tuple[Condition, dict[str, Any] | Act], ...] = ()
    settings: Settings = field(default_factory=Settings)
    still: float = STILL
    timed: bool = False
    dated: bool = False
    world_of: Callable[[ApiServer], object] = lambda server: None

    def world(self) -> World:
        server = ApiServer(make_job(**self.spec), self.answer())
        server.settings = self.settings
        self.world_of(server)
        return World(server, [(when, act if callable(act) else _change(act)) for when, act in self.script], self.still)


def _change(spec: dict[str, Any]) -> Act:
    return lambda server: server.change(**spec)


def rerun(token: str = "again") -> dict[str, Any]:
    return {"rerunToken": token}


def manual(**approved: Any) -> dict[str, Any]:
    return {"promotion": {"mode": "Manual", **({"approved": approved} if approved else {})}}


def slow_training(server: ApiServer) -> None:
    server.train_seconds = 60.0


def second_never_ready(server: ApiServer) -> None:
    server.never_ready = 2


SCENARIOS = {
    "served": Scenario(),
    "gate failed": Scenario(answer=lambda: worse),
    "data refused": Scenario(answer=lambda: refused),
    "interrupted": Scenario(answer=interrupted_once),
    "given up": Scenario(answer=lambda: fails, timed=True),  # who is away sees no attempts
    "two runs": Scenario(script=((ready, rerun()),)),
    "another run in the middle": Scenario(script=((trains, rerun()),), timed=True),
    "suspended and resumed": Scenario(script=((trains, {"suspend": True}), (paused, {"suspend": False})), timed=True),
    "pinned and unpinned": Scenario(
        script=((ready, rerun()), (answers(2), {"serving": {"run": 1}}), (answers(1), {"serving": None}))
    ),
    "rolled back": Scenario(
        spec={"serving": {"progressDeadlineSeconds": 120}},
        script=((ready, rerun()),),
        world_of=second_never_ready,
        dated=True,
    ),
    "no servers for a while": Scenario(
        script=((ready, {"serving": {"replicas": 0}}), (says("Trained"), {"serving": {"replicas": 1}})),
        timed=True,
    ),
    "approved": Scenario(spec=manual(), script=((says("AwaitingApproval"), manual(run=1, digest=DIGEST)),)),
    "edits in a row": Scenario(
        settings=Settings(settle_seconds=30),
        script=((lambda server: True, rerun("a")), (lambda server: True, rerun("b"))),
        timed=True,
    ),
    "on schedule": Scenario(spec={"triggers": {"schedule": {"cron": "10 0 1 1 *"}}}, dated=True),
    "changed data is found": Scenario(
        spec={"triggers": {"datasetPoll": {}}},
        answer=lambda: Source(looks=["b"]).answer,
        script=((answers(2), {"triggers": None}),),
        still=3700.0,
        dated=True,
    ),
    "held by its budget": Scenario(
        spec={"compute": {"gpus": 1}, "budget": {"maxGpuHours": "0.01"}},
        script=((says("BudgetExceeded"), {"budget": {"maxGpuHours": "1"}}),),
        world_of=slow_training,
        timed=True,
    ),
    "files are removed": Scenario(
        spec={"output": {"claimName": "models", "retention": {"keepRuns": 1, "checkpoints": "Keep"}}},
        answer=lambda: removes,
        script=((ready, rerun()),),
    ),
    "queued, put out and queued again": Scenario(
        spec={"compute": {"gpus": 0, "queueName": "team-a"}},
        script=(
            (queued("train"), lets("train", go=True)),
            (trains, lets("train", go=False)),
            (queued("train"), lets("train", go=True)),
            (queued("evaluate"), lets("evaluate", go=True)),
        ),
        timed=True,
    ),
    "a gang": Scenario(spec={"compute": {"gpus": 0, "nodes": 2}}),
    "judged and exported": Scenario(
        spec={
            "evaluation": {"judge": {"url": "https://judge.example.com/v1", "model": "j"}},
            "output": {"claimName": "models", "exports": [{"name": "whole", "format": "Safetensors"}]},
        }
    ),
}
UNTIMED = [name for name, each in SCENARIOS.items() if not each.timed]
