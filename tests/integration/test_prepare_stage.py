"""The whole stage, from run.json to the prepared dataset, as a pod runs it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from tests.prepared_runs import CHATS, PLACES, Laptop, lines, rows
from tests.tiny_models import make_tiny_chat_model

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import Summary, parse_summary
from finetune_api.spec import Hyperparameters, Task
from finetune_trainer import artifacts
from finetune_trainer.context import StageContext
from finetune_trainer.masking import IGNORED
from finetune_trainer.training.inputs import load_prepared, load_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data" / "travel-finetune.jsonl"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def laptop(tmp_path: Path, base: Path) -> Laptop:
    return Laptop(tmp_path, base.parent)


def trained_texts(context: StageContext, summary: Summary, part: str) -> list[str]:
    tokenizer = load_tokenizer(context.artifacts / str(summary.base_path))
    return [tokenizer.decode([label for label in row["labels"] if label != IGNORED]) for row in rows(context, part)]


def test_prepared_dataset_is_what_train_reads(laptop: Laptop) -> None:
    context = laptop.context(laptop.put("train.jsonl", lines(CHATS)))
    code, summary = laptop.prepare(context)
    assert (code, summary.ok) == (0, True)
    prepared = load_prepared(context)
    assert summary.dataset is not None
    assert summary.resolved is not None
    assert (summary.dataset.train_examples, summary.dataset.validation_examples) == (10, 2)
    for part, count in (("train", 10), ("validation", 2)):
        data = prepared.rows(part)
        assert data.features == datasets.Features(
            {"input_ids": datasets.List(datasets.Value("int32")), "labels": datasets.List(datasets.Value("int32"))}
        )
        answers = [example["messages"][1]["content"] + "<|end|>" for example in prepared.examples(part)]
        assert trained_texts(context, summary, part) == answers
        assert len(answers) == count
    assert summary.dataset.train_tokens == sum(len(row["input_ids"]) for row in rows(context, "train"))
    assert summary.resolved.revision == artifacts.verify(prepared.base_dir)
    assert summary.estimate is not None
    assert summary.estimate.memory_bytes > 0
    assert [entry.name for entry in context.run_dir.iterdir() if entry.name.startswith(".")] == []


def test_report_shows_what_is_trained_on(laptop: Laptop) -> None:
    context = laptop.context(laptop.put("train.jsonl", lines(CHATS)))
    laptop.prepare(context)
    report = json.loads((context.run_dir / "reports" / "dataset.json").read_text())
    assert len(report["examples"]) == 3
    pieces = report["examples"][0]["pieces"]
    assert [piece["trained"] for piece in pieces] == [False, True]
    assert pieces[0]["text"].startswith("<|user|>Is ")
    assert pieces[1]["text"].endswith("and yes.<|end|>")


def test_same_data_is_prepared_the_same_whatever_its_packing(laptop: Laptop) -> None:
    first = laptop.context(laptop.put("train.jsonl", lines(CHATS)))
    laptop.prepare(first)
    digests = [artifacts.sha256_of(first.dataset_dir / name) for name in ("train.jsonl", "validation.jsonl")]
    packed = gzip.compress(b"\xef\xbb\xbf" + lines(CHATS).replace(b"\n", b"\r\n"))
    second = laptop.context(laptop.put("train.jsonl", packed))
    first.report_path(Stage.PREPARE).unlink()
    assert laptop.prepare(second)[0] == 0
    assert [artifacts.sha256_of(second.dataset_dir / name) for name in ("train.jsonl", "validation.jsonl")] == digests


def test_seed_decides_what_is_held_out(laptop: Laptop) -> None:
    held = []
    for seed in (1, 2, 1):
        data = laptop.put("train.jsonl", lines(CHATS))
        context = laptop.context(data, hyperparameters=Hyperparameters(seed=seed))
        context.report_path(Stage.PREPARE).unlink(missing_ok=True)
        laptop.prepare(context)
        held.append((context.dataset_dir / "validation.jsonl").read_text())
    assert held[0] == held[2] != held[1]


def test_duplicates_and_overlap_are_counted_and_not_measured_on(laptop: Laptop) -> None:
    train = laptop.put("train.jsonl", lines([*CHATS[:10], CHATS[0], CHATS[0]]))
    context = laptop.context(train, laptop.put("held.jsonl", lines([CHATS[1], CHATS[10], CHATS[11]])))
    _, summary = laptop.prepare(context)
    assert summary.dataset is not None
    assert (summary.dataset.train_examples, summary.dataset.validation_examples) == (12, 2)
    assert (summary.dataset.duplicates, summary.dataset.overlap) == (2, 1)
    assert {problem.check: (problem.file, problem.lines) for problem in summary.dataset.problems} == {
        "duplicate": ("train", [11, 12]),
        "overlap": ("validation", [1]),
        "few_examples": ("train", []),
    }


def test_copies_never_lie_on_both_sides_of_the_split(laptop: Laptop) -> None:
    context = laptop.context(laptop.put("train.jsonl", lines(CHATS * 3)))
    laptop.prepare(context)
    train, held = ((context.dataset_dir / f"{part}.jsonl").read_text().splitlines() for part in ("train", "validation"))
    assert not set(train) & set(held)
    assert (len(train), len(held)) == (30, 2)


def test_completion_needs_no_chat_template(laptop: Laptop, base: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain" / "tiny"
    plain.mkdir(parents=True)
    for path in base.iterdir():
        if path.name != "chat_template.jinja":
            (plain / path.name).write_bytes(path.read_bytes())
    laptop.mount(plain.parent)
    pairs = [{"prompt": f"{place} is", "completion": " by the sea."} for place in PLACES]
    data = laptop.put("train.jsonl", lines(pairs))
    context = laptop.context(data, task=Task.COMPLETION)
    code, summary = laptop.prepare(context)
    assert code == 0
    assert set(trained_texts(context, summary, "train")) == {" by the sea.<|end|>"}
    context.report_path(Stage.PREPARE).unlink()
    code, summary = laptop.prepare(laptop.context(laptop.put("chat.jsonl", lines(CHATS))))
    assert code == 10
    assert summary.failure is not None
    assert (summary.failure.reason, "chat template" in summary.failure.message) == (FailureReason.MODEL_INVALID, True)


def test_travel_data_of_others_is_prepared(laptop: Laptop) -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not there")
    make_tiny_chat_model(laptop.root / "large" / "tiny", max_position_embeddings=1024)
    laptop.mount(laptop.root / "large")
    context = laptop.context(laptop.put("train.jsonl", SHARED.read_bytes()))
    code, summary = laptop.prepare(context)
    assert code == 0
    assert summary.dataset is not None
    assert summary.dataset.train_examples + summary.dataset.validation_examples == 10
    assert {problem.check for problem in summary.dataset.problems} == {"few_examples"}


def test_entry_point_prepares_as_a_pod_does(laptop: Laptop) -> None:
    context = laptop.context(laptop.put("train.jsonl", lines(CHATS)))
    (laptop.root / "run.json").write_text(context.config.model_dump_json(by_alias=True))
    paths = ":".join(path for path in sys.path if path)
    roots = ["--artifacts", str(context.artifacts), "--sources", str(context.sources)]
    command = [sys.executable, "-m", "finetune_trainer", "prepare", "--config", str(laptop.root / "run.json"), *roots]
    done = subprocess.run(
        [*command, "--termination-log", str(laptop.root / "log")],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": paths, "HOME": str(laptop.root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    summary = parse_summary((laptop.root / "log").read_text())
    assert summary is not None
    assert summary.ok
    assert all(
        " INFO job=team-a/travel run=1 stage=Prepare " in line or " WARNING " in line
        for line in done.stderr.splitlines()
    )
