"""The quality of data, through the whole stage: what is found, what is changed on request, and what the report says."""

from __future__ import annotations

import json
import logging
import random
import re
from pathlib import Path
from typing import Any

import pytest
from tests import browser
from tests.dataset_runs import page_of, report_of, with_dataset
from tests.html_page import Page
from tests.prepared_runs import Laptop, chat, lines
from tests.tiny_encoders import make_tiny_encoder
from tests.tiny_models import make_tiny_chat_model

from finetune_api.conditions import FailureReason
from finetune_api.reports import Summary
from finetune_api.spec import Hyperparameters, Task
from finetune_trainer.context import StageContext
from finetune_trainer.tasks.kind import Facts

WORDS = "harbour tide pilot rope north lantern salt gull anchor deck chart wind mast keel buoy fog pier crew".split()  # noqa: SIM905
SECRET = "gh" + "p_" + "Zx9" * 12
EMAIL = "joe.doe@a-real-shop.de"
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)></pre>\u202egnp\u2066\x1b[31m{{ 7*7 }}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def laptop(tmp_path: Path, base: Path) -> Laptop:
    return Laptop(tmp_path, base.parent)


def some_chat(seed: int) -> dict[str, Any]:
    words = random.Random(seed).choices(WORDS, k=30)
    return chat(" ".join(words[:10]), " ".join(words[10:]))


CHATS = [some_chat(seed) for seed in range(30)]


def changed(row: dict[str, Any], word: str = "otherwise") -> dict[str, Any]:
    """Nearly the same: one more word."""
    question, answer = row["messages"]
    return {"messages": [question, {**answer, "content": f"{answer['content']} {word}"}]}


def prepare(
    laptop: Laptop,
    train: list[dict[str, Any]],
    validation: list[dict[str, Any]] | None = None,
    *,
    dataset: dict[str, Any] | None = None,
    **fields: Any,
) -> tuple[int, Summary, StageContext]:
    held = laptop.put("held.jsonl", lines(validation)) if validation else None
    context = with_dataset(laptop.context(laptop.put("train.jsonl", lines(train)), held, **fields), **(dataset or {}))
    return *laptop.prepare(context), context


def problems(summary: Summary) -> dict[str, tuple[int, list[int]]]:
    assert summary.dataset is not None
    return {f"{each.file}:{each.check}": (each.count, each.lines) for each in summary.dataset.problems}


def stored(context: StageContext, part: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (context.dataset_dir / f"{part}.jsonl").read_text().splitlines()]


def test_near_duplicates_are_counted_and_named_and_stay(laptop: Laptop) -> None:
    code, summary, context = prepare(laptop, [*CHATS, changed(CHATS[4]), CHATS[6]], [some_chat(99)])
    assert code == 0
    assert problems(summary)["train:near_duplicate"] == (1, [31])
    assert problems(summary)["train:duplicate"] == (1, [32])
    assert summary.dataset is not None
    assert (summary.dataset.near_duplicates, summary.dataset.duplicates, summary.dataset.cleaned) == (1, 1, [])
    assert len(stored(context)) == 32
    (pair,) = report_of(context)["nearDuplicates"]["pairs"]
    assert (pair["line"], pair["otherFile"], pair["otherLine"]) == (31, "train", 5)
    assert "otherwise" in pair["text"]
    assert "otherwise" not in pair["otherText"]


def test_a_held_out_example_that_is_nearly_trained_on_is_a_leak(laptop: Laptop) -> None:
    code, summary, context = prepare(laptop, CHATS, [some_chat(99), changed(CHATS[4]), CHATS[6]])
    assert code == 0
    assert problems(summary)["validation:near_overlap"] == (1, [2])
    assert problems(summary)["validation:overlap"] == (1, [3])
    assert summary.dataset is not None
    assert (summary.dataset.near_overlap, summary.dataset.overlap, summary.dataset.validation_examples) == (1, 1, 2)
    assert "line 5 of train" in page_of(context).text


def test_a_leak_within_one_file_is_found_by_the_split(laptop: Laptop) -> None:
    """Every example has a near-copy, and a fifth is held out: each held-out one whose copy is trained on leaks."""
    twice = [*CHATS, *map(changed, CHATS)]
    _, summary, context = prepare(laptop, twice)
    trained = {row["messages"][0]["content"] for row in stored(context)}
    leaked = sum(row["messages"][0]["content"] in trained for row in stored(context, "validation"))
    assert summary.dataset is not None
    assert 0 < summary.dataset.near_overlap == leaked
    assert summary.dataset.near_duplicates == len(CHATS)


def test_nothing_is_changed_that_is_not_asked_for(laptop: Laptop) -> None:
    odd = chat("a question \u202e\x07", "an answer\x00 with more")
    rows = [*CHATS, CHATS[0], changed(CHATS[1]), odd]
    code, summary, context = prepare(laptop, rows, [some_chat(99)])
    assert code == 0
    assert [row["messages"] for row in stored(context)] == [row["messages"] for row in rows]
    assert problems(summary)["train:control_characters"] == (1, [33])


def test_every_step_of_a_cleaning_is_done_in_its_order_and_counted(laptop: Laptop) -> None:
    rows = [
        *CHATS,
        chat("half", ""),
        {"messages": []},
        CHATS[0],
        changed(CHATS[1]),
        # Without its control characters it is what came before: the steps after stripping see it stripped.
        chat(CHATS[2]["messages"][0]["content"] + "\u202e", "\x07" + CHATS[2]["messages"][1]["content"]),
        chat("long", " ".join(WORDS * 8)),
    ]
    cleaning = {
        "missingValues": "Drop",
        "controlCharacters": "Strip",
        "duplicates": "Drop",
        "nearDuplicates": "Drop",
        "overLong": "Drop",
    }
    held = [some_chat(99), changed(CHATS[3], "too"), chat("odd\x07", "also odd and held out")]
    code, summary, context = prepare(
        laptop, rows, held, dataset={"cleaning": cleaning}, hyperparameters=Hyperparameters(max_length=256)
    )
    assert code == 0, summary.failure
    assert summary.dataset is not None
    assert [(step.step, step.count) for step in summary.dataset.cleaned] == [
        ("missingValues", 2),
        ("controlCharacters", 2),
        ("duplicates", 2),
        ("nearDuplicates", 2),
        ("overLong", 1),
    ]
    assert [row["messages"] for row in stored(context)] == [row["messages"] for row in CHATS]
    assert len(stored(context, "validation")) == 2
    assert (summary.dataset.near_duplicates, summary.dataset.near_overlap, summary.dataset.truncated) == (1, 0, 0)
    assert "control_characters" not in str(problems(summary))
    found = page_of(context)
    assert found.problems == []
    assert "left out: nearly the same as one before 2" in found.text


def test_labels_are_counted_as_often_as_they_are_learned(laptop: Laptop, tmp_path: Path) -> None:
    """By these counts a weighted loss weighs; in the file label a stands 42 times and b 20 times."""
    laptop.mount(make_tiny_encoder(tmp_path / "encoder" / "tiny").parent)
    texts = (
        [("a", "the same text")] * 40 + [("a", f"text {n}") for n in range(2)] + [("b", f"b {n}") for n in range(20)]
    )
    rare = [("c", f"{n} " + "long " * 60) for n in range(3)]
    rows = [{"text": text, "label": label} for label, text in [*texts, *rare]]
    cleaning = {"duplicates": "Drop", "overLong": "Drop", "maxDroppedPercent": 100}
    held = [{"text": "a text", "label": "a"}]
    code, summary, context = prepare(
        laptop,
        rows,
        held,
        dataset={"cleaning": cleaning},
        task=Task.CLASSIFICATION,
        hyperparameters=Hyperparameters(max_length=32),
    )
    assert code == 0
    assert summary.dataset is not None
    counts = {each.label: each.count for each in summary.dataset.labels}
    assert counts == {"a": 3, "b": 20, "c": 0}
    assert summary.dataset.train_examples == sum(counts.values())
    assert Facts.from_json((context.dataset_dir / "facts.json").read_text()).counts == (3, 20, 0)
    assert "train:label_not_learned" in problems(summary)


def test_missing_values_are_filled_before_they_are_missed(laptop: Laptop) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "completion": "one thing"},
        {"prompt": None, "completion": "another thing"},
        {"completion": "a third thing"},
        {"prompt": "b", "completion": " "},
        *({"text": f"all of this is learned {time} times"} for time in range(7)),
    ]
    cleaning = {"fill": {"prompt": "say:"}, "missingValues": "Drop"}
    code, summary, context = prepare(
        laptop, rows, [{"prompt": "c", "completion": "held"}], dataset={"cleaning": cleaning}, task=Task.COMPLETION
    )
    assert code == 0, summary.failure
    assert [row["prompt"] for row in stored(context)] == ["a", "say:", "say:", *[""] * 7]
    assert summary.dataset is not None
    assert [(step.step, step.count) for step in summary.dataset.cleaned] == [("fill", 2), ("missingValues", 1)]


def test_a_cleaning_that_leaves_too_little_is_refused(laptop: Laptop) -> None:
    rows = [*CHATS[:10], *[CHATS[2]] * 30]
    code, summary, _ = prepare(laptop, rows, dataset={"cleaning": {"duplicates": "Drop"}})
    assert code == 10
    assert summary.failure is not None
    assert "dataset.cleaning would leave out 30 of 40 examples (duplicates 30), 75 % of them" in summary.failure.message
    assert "maxDroppedPercent" in summary.failure.advice
    allowed = {"cleaning": {"duplicates": "Drop", "maxDroppedPercent": 80}}
    assert prepare(laptop, rows, dataset=allowed)[0] == 0


def test_secrets_are_warned_of_and_never_said(laptop: Laptop, caplog: pytest.LogCaptureFixture) -> None:
    rows = [chat(f"mail {EMAIL}", "noted"), *CHATS, chat("my token", f"it is {SECRET} then")]
    with caplog.at_level(logging.DEBUG):
        code, summary, context = prepare(laptop, rows, [some_chat(99)])
    assert code == 0
    assert problems(summary)["train:secret_github"] == (1, [32])
    assert problems(summary)["train:personal_email"] == (1, [1])
    said = [summary.to_message(), caplog.text, *(file.read_text() for file in (context.run_dir / "reports").iterdir())]
    assert len(said) >= 4
    for text in said:
        assert SECRET not in text
        assert EMAIL not in text
    found = page_of(context)
    assert "1 example is not shown here" in found.text
    assert "secret_github training data 1 32" in found.text


def test_secrets_are_refused_or_not_looked_for_as_the_job_says(laptop: Laptop) -> None:
    rows = [*CHATS, chat("my token", f"it is {SECRET} then")]
    code, summary, _ = prepare(laptop, rows, dataset={"sensitiveData": "Refuse"})
    assert code == 10
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.DATASET_INVALID
    assert "line 31: what looks like a token of GitHub" in summary.failure.message
    assert SECRET not in str(summary)
    code, summary, context = prepare(laptop, rows, [some_chat(99)], dataset={"sensitiveData": "Ignore"})
    assert code == 0
    assert "secret" not in str(problems(summary))
    assert "Nothing was looked for" in page_of(context).text


def test_hostile_data_is_shown_as_it_is_and_does_nothing(laptop: Laptop) -> None:
    rows = [
        *CHATS,
        {**chat(HOSTILE, f"{HOSTILE} \u0627\u0644\u0633\u0644\u0627\u0645"), HOSTILE: 1},
        chat("long", "x" * 100_000),
    ]
    code, _, context = prepare(laptop, [rows[-2], *rows[:-2], rows[-1]], max_lost_percent=50)
    assert code == 0
    found = page_of(context)
    assert found.problems == []
    assert "<script>document.title='owned'</script>" in found.text  # as text
    assert found.count("script") == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", found.html)
    assert len(found.html) < 300_000
    assert "{{ 7*7 }}" in found.text


def test_a_browser_shows_hostile_data_and_runs_none_of_it(laptop: Laptop, tmp_path: Path) -> None:
    browser.chromium()
    rows = [{**chat(HOSTILE, HOSTILE), HOSTILE: 1}, *CHATS]
    _, _, context = prepare(laptop, rows, max_lost_percent=50)
    page = tmp_path / "dataset.html"
    page.write_bytes((context.run_dir / "reports" / "dataset.html").read_bytes())
    shown = browser.dom(page)
    assert "<title>Data of travel, run 1</title>" in shown  # what the data would have set is another one
    assert "<script" not in shown
    assert "<img" not in shown
    assert Page(shown).count("section") == page_of(context).count("section")
    picture = browser.picture(page, tmp_path / "page.png")
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000  # an empty page has fewer bytes


def test_data_that_is_refused_has_its_page_with_the_words_of_the_bad_lines(laptop: Laptop) -> None:
    bad = [{"messages": [{"role": HOSTILE, "content": "who is that"}]}, chat("a", HOSTILE)]
    content = lines([*CHATS, *bad]) + b"{nonsense\n"
    context = laptop.context(laptop.put("train.jsonl", content))
    code, summary = laptop.prepare(context)
    assert code == 10
    assert summary.failure is not None
    assert summary.failure.advice.endswith("team-a/travel/runs/1-01234567/reports/dataset.html")
    found = page_of(context)
    assert found.problems == []
    assert "This data cannot be trained on." in found.text
    assert "must be corrected" in found.text
    assert "Line 31, messages[0].role" in found.text
    by_check = {problem["check"]: problem for problem in report_of(context)["problems"]}
    assert by_check["role"]["examples"] == [{"line": 31, "where": "messages[0].role", "text": HOSTILE}]
    assert by_check["not_json"]["lines"][0]["line"] == 33


def test_what_is_learned_read_and_cut_off_is_told_apart(laptop: Laptop) -> None:
    rows = [*CHATS[:20], chat("long", " ".join(WORDS * 6))]
    code, _, context = prepare(
        laptop, rows, [some_chat(99)], max_lost_percent=50, hyperparameters=Hyperparameters(max_length=160)
    )
    assert code == 0
    examples = report_of(context)["examples"]
    assert [example["line"] for example in examples][-1] == 21
    kinds = [(piece["trained"], piece.get("cut", False)) for piece in examples[-1]["pieces"]]
    assert kinds == [(False, False), (True, False), (False, True)]
    assert examples[-1]["pieces"][-1]["text"].endswith("crew<|end|>")
    found = page_of(context)
    assert (found.count("mark"), found.count("del")) == (4, 2)  # the legend has one of each


def test_a_page_of_an_earlier_attempt_does_not_stay(laptop: Laptop) -> None:
    context = laptop.context(laptop.put("train.jsonl", b"{nonsense\n"))
    assert laptop.prepare(context)[0] == 10
    assert page_of(context).problems == []
    laptop.put("train.jsonl", b"PK\x03\x04 is no text")
    assert laptop.prepare(context)[0] == 10
    assert list((context.run_dir / "reports").iterdir()) == []
