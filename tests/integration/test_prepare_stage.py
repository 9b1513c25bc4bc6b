"""The whole stage, from run.json to the prepared dataset, as a pod runs it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.tiny_models import make_tiny_chat_model

from finetune_api.conditions import FailureReason, Stage
from finetune_api.reports import MAX_MESSAGE_BYTES, Summary, parse_summary
from finetune_api.run_config import RunConfig, RunPaths
from finetune_api.spec import (
    BaseModelSpec,
    ConfigMapRef,
    DataFile,
    DatasetSpec,
    EvaluationSpec,
    Hyperparameters,
    MethodSpec,
    Task,
    ValidationData,
)
from finetune_trainer import artifacts, frame
from finetune_trainer.context import StageContext
from finetune_trainer.masking import IGNORED
from finetune_trainer.training.inputs import load_prepared, load_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data" / "travel-finetune.jsonl"
PLACES = ["Lisbon", "Porto", "Oslo", "Rome", "Paris", "Cork", "Bern", "Graz", "Nice", "Bath", "Lima", "Doha"]


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        **more,
    }


CHATS = [chat(f"Is {place} nice?", f"{place} is a harbour town, and yes.") for place in PLACES]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@dataclass
class Laptop:
    """Folders as a pod sees them."""

    root: Path

    def put(self, name: str, content: bytes) -> DataFile:
        """A key of the ConfigMap `travel`."""
        path = self.root / "sources" / "configmap" / "travel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return DataFile(config_map_ref=ConfigMapRef(name="travel", key=name))

    def context(self, train: DataFile, validation: DataFile | None = None, **fields: Any) -> StageContext:
        held = {"config_map_ref": validation.config_map_ref} if validation else {"fraction": 0.2}
        values: dict[str, Any] = {
            "task": Task.CHAT,
            "base_model": BaseModelSpec(source="pvc://models/tiny"),
            "hyperparameters": Hyperparameters(),
            "max_lost_percent": 5,
            **fields,
        }
        lost = values.pop("max_lost_percent")
        config = RunConfig(
            namespace="team-a",
            job="travel",
            run=1,
            hash="0123456789abcdef",
            base_name="tiny",
            tuned_name="travel",
            dataset=DatasetSpec(train=train, validation=ValidationData(**held), max_lost_percent=lost),
            method=MethodSpec(rank=4),
            evaluation=EvaluationSpec(),
            paths=RunPaths(run="team-a/travel/runs/1-01234567", models="team-a/models"),
            **values,
        )
        return StageContext(config=config, artifacts=self.root / "artifacts", sources=self.root / "sources")

    def prepare(self, context: StageContext) -> tuple[int, Summary]:
        log = self.root / "termination-log"
        code = frame.run_stage(Stage.PREPARE, context, log)
        assert len(log.read_bytes()) <= MAX_MESSAGE_BYTES
        summary = parse_summary(log.read_text())
        assert summary is not None
        return code, summary


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def laptop(tmp_path: Path, base: Path) -> Laptop:
    (tmp_path / "sources" / "pvc").mkdir(parents=True)
    # A link in the place of the mount point, not inside it: links out of a claim are refused.
    (tmp_path / "sources" / "pvc" / "models").symlink_to(base.parent)
    return Laptop(tmp_path)


def rows(context: StageContext, part: str) -> list[dict[str, list[int]]]:
    return list(datasets.load_from_disk(str(context.dataset_dir / part)))


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
    report = json.loads((context.dataset_dir / "report.json").read_text())
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


def test_broken_lines_are_named_and_nothing_is_left_to_train_on(
    laptop: Laptop, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = lines(CHATS).splitlines()
    broken[2] = b'{"messages": ['
    broken[4] = json.dumps(chat("private question", "x", tools=[{}])).encode()
    broken[6] = json.dumps({"messages": [{"role": "user", "content": "private question"}]}).encode()
    broken[8] = json.dumps(chat("private <|user|> question", "x")).encode()
    context = laptop.context(laptop.put("train.jsonl", b"\n".join(broken)))
    code, summary = laptop.prepare(context)
    assert (code, summary.ok) == (10, False)
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.DATASET_INVALID
    assert summary.dataset is not None
    assert {problem.check: problem.lines for problem in summary.dataset.problems} == {
        "no_assistant": [7],
        "not_json": [3],
        "special_token": [9],
        "template_tools": [5],
        "tools": [5],
    }
    assert "line 7" in summary.failure.message
    report = (context.run_dir / "reports" / "dataset-problems.json").read_text()
    assert json.loads(report)["problems"][0]["lines"]
    assert "private question" not in report + summary.model_dump_json() + capsys.readouterr().err
    assert not context.dataset_dir.exists()
    assert not context.report_path(Stage.PREPARE).exists()


def test_thousand_broken_lines_still_fit_the_message(laptop: Laptop) -> None:
    bad: list[dict[str, Any]] = [{"messages": [{"role": f"role{n % 30}", "content": n}]} for n in range(1000)]
    more: list[dict[str, Any]] = [{"prompt": "a", "completion": "b"}, {}, chat("a", "b", functions=[])] * 200
    code, summary = laptop.prepare(laptop.context(laptop.put("train.jsonl", lines([*bad, *more]))))
    assert code == 10
    assert summary.dataset is not None
    assert summary.dataset.problems[0].count == 1000
    assert summary.dataset.problems[0].lines[:3] == [1, 2, 3]


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


LONG = chat("Tell me more.", "The harbour is quiet in the morning. " * 40)
LATE = chat("The harbour is quiet in the morning. " * 40, "Yes.")


def test_cut_examples_are_refused_unless_allowed(laptop: Laptop) -> None:
    data = laptop.put("train.jsonl", lines([*CHATS, LONG, LATE]))
    held = laptop.put("held.jsonl", lines([chat("Is Fez nice?", "Fez is far from the sea.")]))
    code, summary = laptop.prepare(laptop.context(data, held))
    assert code == 10
    assert summary.failure is not None
    assert "lines 13 and 14" in summary.failure.message
    assert "14.3 %" in summary.failure.message
    assert "maxLostPercent" in summary.failure.advice
    context = laptop.context(data, held, max_lost_percent=20)
    code, summary = laptop.prepare(context)
    assert code == 0
    assert summary.dataset is not None
    assert summary.resolved is not None
    assert (summary.dataset.truncated, summary.dataset.dropped, summary.dataset.train_examples) == (1, 1, 13)
    assert max(len(row["input_ids"]) for row in rows(context, "train")) == summary.resolved.max_length == 256
    assert len(list((context.dataset_dir / "train.jsonl").open())) == 13


def test_completion_needs_no_chat_template(laptop: Laptop, base: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain" / "tiny"
    plain.mkdir(parents=True)
    for path in base.iterdir():
        if path.name != "chat_template.jinja":
            (plain / path.name).write_bytes(path.read_bytes())
    (laptop.root / "sources" / "pvc" / "models").unlink()
    (laptop.root / "sources" / "pvc" / "models").symlink_to(plain.parent)
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


@pytest.mark.parametrize(
    ("change", "reason", "text"),
    [
        ({"base_model": BaseModelSpec(source="pvc://models/tyni")}, FailureReason.SOURCE_UNAVAILABLE, "tiny"),
        ({"hyperparameters": Hyperparameters(max_length=512)}, FailureReason.SPEC_INVALID, "256 tokens"),
        ({"task": Task.COMPLETION}, FailureReason.DATASET_INVALID, "spec.task to Chat"),
    ],
)
def test_mistakes_of_the_specification_are_named(
    laptop: Laptop, change: dict[str, Any], reason: FailureReason, text: str
) -> None:
    code, summary = laptop.prepare(laptop.context(laptop.put("train.jsonl", lines(CHATS)), **change))
    assert code == 10
    assert summary.failure is not None
    assert summary.failure.reason is reason
    assert text in summary.failure.message


@pytest.mark.parametrize(
    ("train", "held", "text"),
    [
        (b"", None, "no examples in key train.jsonl of ConfigMap travel"),
        (lines(CHATS[:1] * 5), None, "1 different example"),
        (lines(CHATS), b"", "no examples in key held.jsonl"),
        (lines(CHATS), lines(CHATS[:2]), "every held-out example is also a training example"),
        (json.dumps(CHATS).encode(), None, "one JSON array"),
    ],
)
def test_too_little_data_is_refused(laptop: Laptop, train: bytes, held: bytes | None, text: str) -> None:
    validation = None if held is None else laptop.put("held.jsonl", held)
    code, summary = laptop.prepare(laptop.context(laptop.put("train.jsonl", train), validation))
    assert code == 10
    assert summary.failure is not None
    assert text in summary.failure.message
    assert summary.failure.advice


def test_travel_data_of_others_is_prepared(laptop: Laptop) -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not there")
    make_tiny_chat_model(laptop.root / "large" / "tiny", max_position_embeddings=1024)
    (laptop.root / "sources" / "pvc" / "models").unlink()
    (laptop.root / "sources" / "pvc" / "models").symlink_to(laptop.root / "large")
    context = laptop.context(laptop.put("train.jsonl", SHARED.read_bytes()))
    code, summary = laptop.prepare(context)
    assert code == 0
    assert summary.dataset is not None
    assert summary.dataset.train_examples + summary.dataset.validation_examples == 10
    assert {problem.check for problem in summary.dataset.problems} == {"few_examples"}


# Runs Prepare again and again, each time in a fork that is killed at a later write to the disk, and then once more to
# the end. Forks of a process without threads: no lock can be left behind.
CRASHES = """
import json, os, pathlib, shutil, signal, sys
import peft, transformers.models.llama.modeling_llama
from finetune_api.conditions import Stage
from finetune_trainer import artifacts, frame
from finetune_trainer.context import StageContext
import finetune_trainer.stages.prepare

root, step = pathlib.Path(sys.argv[1]), int(sys.argv[2])
config = frame.load_config(root / "run.json")
context = StageContext(config=config, artifacts=root / "artifacts", sources=root / "sources")
WRITES = [(os, "fsync"), (shutil, "copyfile"), (shutil, "rmtree"),
          *((pathlib.Path, name) for name in ("rename", "replace", "mkdir", "unlink", "open", "write_text"))]

def forked(work):
    pid = os.fork()
    if pid == 0:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def kill_at(point):
    left = [point]
    def counted(function):
        def call(*args, **more):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **more)
        return call
    for owner, name in WRITES:
        setattr(owner, name, counted(getattr(owner, name)))

def attempt(point=0):
    kill_at(point)
    return frame.run_stage(Stage.PREPARE, context, root / "log")

def visible_manifests():
    paths = ((path, path.relative_to(context.artifacts).parts) for path in context.artifacts.rglob("manifest.json"))
    return [path for path, parts in paths if not any(part.startswith(".") for part in parts)]

def verify_then_attempt():
    for path in visible_manifests():
        artifacts.verify(path.parent)
    code = attempt()
    artifacts.verify(context.dataset_dir)
    return code

code, point = -9, 1
while code:
    shutil.rmtree(context.artifacts, ignore_errors=True)
    code = forked(lambda: attempt(point))
    again = forked(verify_then_attempt)
    left = [path.name for path in context.artifacts.rglob(".*") if not path.name.endswith(".tmp")]
    data = (context.dataset_dir / "train.jsonl").read_text()
    print(json.dumps({"point": point, "code": code, "again": again, "left": left, "data": data}), flush=True)
    point += step
"""
STEP = 9  # every ninth write; 1 tries them all (about ninety), which takes minutes


def test_killed_at_any_write_the_next_attempt_makes_it_whole(laptop: Laptop) -> None:
    context = laptop.context(laptop.put("train.jsonl", lines(CHATS)))
    (laptop.root / "run.json").write_text(context.config.model_dump_json(by_alias=True))
    paths = ":".join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(laptop.root), str(STEP)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) > 50 / STEP
    assert {outcome["code"] for outcome in outcomes[:-1]} == {-9}
    for outcome in outcomes:
        assert (outcome["again"], outcome["left"]) == (0, []), outcome
    assert len({outcome["data"] for outcome in outcomes}) == 1


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
