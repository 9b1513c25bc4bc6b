"""The judge: asked in both orders over real HTTP, and nothing that an endpoint does ends the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.judge_server import Judge, judging
from tests.unit.test_run_report import context, report

from finetune_api.conditions import GateVerdict
from finetune_api.evaluation import GateRule
from finetune_api.gate import judge as gate
from finetune_api.judge import JudgeSpec
from finetune_api.reports import EvaluateReport, SampleAnswer
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.evaluation.judging import TRIES, Endpoint, Judged, connect, judge, read_verdict
from finetune_trainer.stages import judge as stage

GOOD, BAD = "a good answer", "a bad answer"


def pairs(*answers: tuple[str, str]) -> list[SampleAnswer]:
    return [
        SampleAnswer(prompt=f"Question {n}?", expected="", base=base, tuned=tuned, tuned_stopped=True)
        for n, (base, tuned) in enumerate(answers)
    ]


def fair(a: str, b: str) -> str:
    better = "tie" if (a == GOOD) == (b == GOOD) else "A" if a == GOOD else "B"
    return f"Answer B seems A bit longer.\nVERDICT: {better}"


def ask(server: Judge, answers: list[SampleAnswer], pauses: list[float] | None = None, **spec: Any) -> Judged:
    wanted = JudgeSpec(url=server.url, model="judge-7b", rubric="Prefer {good} answers.", **spec)
    with connect(wanted, "sk-secret") as client:
        return judge(Endpoint(client, wanted, ([] if pauses is None else pauses).append), answers, 42)


def test_wins_ties_and_losses_are_counted_with_an_interval() -> None:
    with judging(Judge(fair)) as server:
        found = ask(server, pairs((BAD, GOOD), (BAD, GOOD), (GOOD, BAD), (BAD, "another bad one"), (GOOD, f" {GOOD}")))
    status = found.status
    assert (status.asked, status.wins, status.ties, status.losses, status.unusable) == (5, 2, 2, 1, 0)
    assert status.share == pytest.approx(0.6)
    assert status.interval is not None
    assert status.interval.low < 0.6 < status.interval.high
    assert found.notes == []
    assert len(server.seen) == 8  # equal answers were not sent
    assert {(seen["path"], seen["model"]) for seen in server.seen} == {("/v1/chat/completions", "judge-7b")}
    assert "Prefer {good} answers." in server.seen[0]["messages"][0]["content"]
    assert server.keys == {"Bearer sk-secret"}


@pytest.mark.parametrize("favourite", ["A", "B"])
def test_who_prefers_a_place_prefers_nobody(favourite: str) -> None:
    with judging(Judge(lambda a, b: f"VERDICT: {favourite}")) as server:
        status = ask(server, pairs((BAD, GOOD), (GOOD, BAD))).status
    assert (status.wins, status.ties, status.losses, status.share) == (0, 2, 0, 0.5)


@pytest.mark.parametrize(
    "fault", [429, 500, 503, b"", b"[]", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b"\xff"]
)
def test_a_fault_that_passes_changes_no_verdict(fault: int | bytes) -> None:
    pauses: list[float] = []
    with judging(Judge(fair, faults=[fault])) as server:
        found = ask(server, pairs((BAD, GOOD)), pauses)
    assert (found.status.wins, found.notes) == (1, [])
    assert pauses == ([1.0] if isinstance(fault, int) else [])


def test_a_rate_limit_is_waited_for_as_long_as_it_says_but_not_for_ever() -> None:
    pauses: list[float] = []
    with judging(Judge(fair, faults=[429, 429], headers={"Retry-After": "7"})) as server:
        ask(server, pairs((BAD, GOOD)), pauses)
    assert pauses == [7.0, 7.0]
    with judging(Judge(fair, faults=[429], headers={"Retry-After": "999999999999"})) as server:
        ask(server, pairs((BAD, GOOD)), pauses)
    assert pauses[-1] == 60.0


def test_a_judge_that_hangs_is_given_up() -> None:
    with judging(Judge(fair, faults=[60.0] * TRIES)) as server:
        found = ask(server, pairs((BAD, GOOD), (BAD, GOOD)), timeout_seconds=1)
    assert (found.status.asked, found.status.unusable) == (1, 1)
    assert found.notes == ["judge: 1 of 2 questions had no verdict that could be read"]


@pytest.mark.parametrize("status", [401, 404, 307])
def test_a_judge_that_refuses_is_asked_once_and_named(status: int) -> None:
    with judging(Judge(fair, faults=[status] * 99, headers={"Location": "http://elsewhere/"})) as server:
        found = ask(server, pairs((BAD, GOOD), (BAD, GOOD)))
    assert len(server.seen) == 1
    assert found.status.share is None
    assert found.notes == [f"judge: not asked to the end, since {server.url} gave HTTP {status}"]


def test_a_judge_that_is_away_is_not_asked_for_hours() -> None:
    with judging(Judge(fair)) as server:
        pass
    pauses: list[float] = []
    found = ask(server, pairs(*[(BAD, GOOD)] * 50), pauses)
    assert len(pauses) == 3 * (TRIES - 1)
    assert found.status.asked == 0
    assert "ConnectError, 5 times" in found.notes[0]


def test_replies_that_say_nothing_are_counted_as_such() -> None:
    with judging(Judge(lambda a, b: "I cannot say.")) as server:
        found = ask(server, pairs((BAD, GOOD)))
    assert (found.status.asked, found.status.unusable, len(server.seen)) == (0, 1, 4)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("VERDICT: A", "A"),
        ("**Verdict:** B.", "B"),
        ("VERDICT: A\n\nNo: VERDICT: tie", "tie"),
        ("b", "B"),
        (" (A) ", "A"),
        ("A good answer is B", None),
        ("VERDICT: About equal", None),
        ("", None),
    ],
)
def test_the_last_verdict_of_a_reply_counts(reply: str, verdict: str | None) -> None:
    assert read_verdict(reply) == verdict


def test_the_stage_writes_the_verdict_beside_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-secret")
    with judging(Judge(fair)) as server:
        found = context(tmp_path, evaluation={"judge": {"url": server.url, "model": "judge-7b"}})
        with pytest.raises(ArtifactInvalidError, match=r"report.json cannot be read"):
            stage.run(found)
        found.evaluation_dir.mkdir(parents=True)
        path = found.evaluation_dir / "report.json"
        kept = report(toJudge=[pair.to_wire() for pair in pairs((BAD, GOOD), (GOOD, BAD), (BAD, GOOD))])
        path.write_text(kept.model_dump_json(by_alias=True, exclude_none=True))
        summary = stage.run(found)
    assert server.keys == {"Bearer sk-of-the-secret"}
    assert summary.evaluation == EvaluateReport.model_validate_json(path.read_bytes()).evaluation
    assert summary.evaluation is not None
    assert summary.evaluation.tuned == kept.evaluation.tuned
    for text in (found.page_path.read_text(), found.card_path.read_text()):
        assert "2 times and the base" in text
    for share, verdict in (("66%", GateVerdict.PASSED), ("67%", GateVerdict.FAILED)):
        rule = GateRule.model_validate({"check": "judge", "minShare": share})
        assert gate([rule], summary.evaluation).verdict is verdict
    none = gate([rule], kept.evaluation)
    assert (none.verdict, none.reasons) == (GateVerdict.FAILED, ["judge: gave no verdict"])
