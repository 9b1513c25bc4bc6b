"""The command line: quick help, exit codes, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tests.simulator import Cluster, make_job

from finetune_api.conditions import FailureReason, Stage, Trigger
from finetune_api.job import FineTuneJob
from finetune_api.status import Failure, FineTuneJobStatus, RunStatus
from finetune_operator.cli import commands, report, words
from finetune_operator.local.children import Children
from finetune_operator.local.store import Store, find_home
from finetune_operator.names import LABEL_RUN, LABEL_STAGE


def finetune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with its home in `folder`."""
    code = "from finetune_operator.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"FINETUNE_HOME": str(folder / "home"), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def served_job(name: str = "travel") -> FineTuneJob:
    cluster = Cluster(make_job(name))
    cluster.run()
    return cluster.job


@pytest.mark.parametrize("module", ["torch", "kubernetes", "kopf", "httpx", "pydantic", "yaml", "finetune_api.spec"])
def test_help_imports_nothing_heavy(tmp_path: Path, module: str) -> None:
    code = f"import sys, finetune_operator.cli.main; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "no job was named"),
        (["run", "-f", "none.yaml"], "none.yaml: there is no such file"),
        (["check", "jbo.yaml"], "jbo.yaml: there is no such file What to do: did you mean job.yaml?"),
        (["check", "job.yaml"], "does not know the claim models"),
        (["check", "faqs.csv"], "faqs.csv is data, not a job"),
        (["run", "travel"], "there is no job default/travel"),
        (["run", "-f", "job.yaml", "--claim", "sources"], "not NAME=FOLDER"),
        (["run", "-f", "job.yaml", "--claim", "sources=none"], "there is no such folder"),
        (["run", "-f", "job.yaml"], "does not know the claim models"),
        (["check", "-f", "wrong.yaml"], "wrong.yaml:5: spec.baseModl: unknown field; did you mean baseModel?"),
        (["chat", "travel"], "there is no job"),
        (["status", "travel"], "there is no job"),
        (["frobnicate"], "No such command"),
        (["status", "travel", "-n", "../.."], "'../..': no name of a namespace"),
        (["delete", "../travel"], "'../travel': no name of a job"),
    ],
)
def test_wrong_input_ends_with_2_and_says_what(tmp_path: Path, arguments: list[str], words: str) -> None:
    wire = make_job().to_wire()
    wire["metadata"] = {"name": "travel"}
    wire["spec"]["dataset"] = {"train": {"source": "pvc://models/train.jsonl"}}
    wire["spec"]["output"] = {"claimName": "results"}
    del wire["status"]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(wire))
    head = "apiVersion: finetune-operator.io/v1alpha1\nkind: FineTuneJob\nmetadata: {name: a}\nspec:\n"
    (tmp_path / "faqs.csv").write_text("question,answer\nWhere?,Here\n")
    (tmp_path / "wrong.yaml").write_text(f"{head}  baseModl: {{}}\n")
    result = finetune(tmp_path, *arguments)
    assert result.returncode == 2, result.stderr
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", [["run", "travel"], ["status"], ["delete", "travel"]])
def test_a_home_that_cannot_be_one_is_named(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "home").write_text("a file")
    result = finetune(tmp_path, *command)
    assert result.returncode == 2, result.stderr
    assert f"{tmp_path}/home is no folder that can be written to" in " ".join(result.stderr.split())
    assert "FINETUNE_HOME" in result.stderr


def test_status_prints_what_is_stored(tmp_path: Path) -> None:
    job = served_job()
    Store(tmp_path / "home").save(scaled_down(job))
    result = finetune(tmp_path, "status", "travel", "-n", "team-a", "-o", "json")
    assert json.loads(result.stdout)["metadata"]["name"] == "travel"
    table = finetune(tmp_path, "status").stdout.splitlines()
    assert table[0].split()[:4] == ["NAMESPACE", "NAME", "STATE", "STAGE"]
    assert table[1].split()[:7] == ["team-a", "travel", "finished", "Chat", "tiny-base", "1", "Passed"]


def test_delete_keeps_models_unless_asked(tmp_path: Path) -> None:
    store, job = Store(tmp_path / "home"), scaled_down(served_job())
    store.save(job)
    model = store.artifacts / "team-a" / "travel" / "runs" / "1-ab"
    model.mkdir(parents=True)
    kept = finetune(tmp_path, "delete", "travel", "-n", "team-a")
    assert "keeps" in kept.stdout
    assert model.exists()
    assert store.load("team-a", "travel") is None
    store.save(job)
    nobody = finetune(tmp_path, "delete", "travel", "-n", "team-a", "--artifacts")
    assert nobody.returncode == 2
    assert "add --yes" in nobody.stderr
    assert model.exists()
    finetune(tmp_path, "delete", "travel", "-n", "team-a", "--artifacts", "--yes")
    assert not model.exists()


@pytest.mark.parametrize(("ended", "code"), [("PodFailurePolicy", 2), ("BackoffLimitExceeded", 1)])
def test_a_source_that_did_not_answer_is_no_wrong_input(tmp_path: Path, ended: str, code: int) -> None:
    """The reason is the same; what was tried again and again was not the user's fault."""
    store, job = Store(tmp_path), make_job()
    failure = Failure(
        reason=FailureReason.SOURCE_UNAVAILABLE,
        stage=Stage.PREPARE,
        message="m",
        advice="a",
        since="2026-01-31T08:00:00Z",
    )
    run = RunStatus(number=1, hash="ab", trigger=Trigger.CREATED, failure=failure)
    job = job.model_copy(update={"status": FineTuneJobStatus(run=run)})
    failed = {
        "metadata": {"name": "travel-r1-prepare", "labels": {LABEL_RUN: "1", LABEL_STAGE: "Prepare"}},
        "status": {"conditions": [{"type": "Failed", "status": "True", "reason": ended}]},
    }
    Children(jobs={"travel-r1-prepare": failed}).save(store.children_path("team-a", "travel"))
    assert commands.exit_code(store, job) == code


def test_what_jobs_share_stays_when_a_job_of_that_name_is_deleted(tmp_path: Path) -> None:
    store, job = Store(tmp_path / "home"), scaled_down(served_job("models"))
    store.save(job)
    base, run = (
        store.artifacts / "team-a" / "models" / "tiny@ab",
        store.artifacts / "team-a" / "models" / "runs" / "1-ab",
    )
    for folder in (base, run):
        folder.mkdir(parents=True)
    finetune(tmp_path, "delete", "models", "-n", "team-a", "--artifacts", "--yes")
    assert not run.exists()
    assert base.exists()


@pytest.mark.parametrize(
    ("example", "shown"),
    [
        ({"pieces": [{"trained": False, "text": "Hi"}, {"trained": True, "text": "Hello"}]}, "Hi>>Hello<<"),
        ({"read": "[CLS] late [SEP]", "example": {"text": "late", "label": "spam"}}, '"label": "spam"'),
    ],
)
def test_an_example_of_every_task_can_be_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], example: dict[str, Any], shown: str
) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "dataset.json").write_text(json.dumps({"examples": [example]}))
    report.show_rendered(Console(width=200), tmp_path)
    assert shown in capsys.readouterr().out


def scaled_down(job: FineTuneJob) -> FineTuneJob:
    serving = job.spec.serving.model_copy(update={"replicas": 0})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"serving": serving})})


def test_the_home_is_the_variable_then_the_nearest_folder_then_the_users(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    assert find_home({}, inside) == Path.home() / ".finetune"
    (tmp_path / ".finetune").mkdir()
    assert find_home({}, inside) == tmp_path / ".finetune"
    assert find_home({"FINETUNE_HOME": "/elsewhere"}, inside) == Path("/elsewhere")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (90000, "1 d 1 h"), (3600, "1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_a_stage_says_what_it_found() -> None:
    run: Any = served_job().status.run
    assert words.result_of(run, Stage.PREPARE).startswith("180 examples to learn from, 20 held out to test it; ")
    assert words.result_of(run, Stage.EVALUATE) == "loss on the held-out examples: 2.00 before training, 1.00 after"
