"""Several training files, and files that are in trouble while Prepare reads them."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.prepared_runs import CHATS, Laptop, chat, lines, rows
from tests.tiny_models import make_tiny_chat_model

from finetune_api.conditions import FailureReason, Stage
from finetune_api.dataset import DataFile, TrainData, WeightedFile
from finetune_api.reports import Summary
from finetune_trainer.data import reading
from finetune_trainer.data.spool import Spool
from finetune_trainer.stages import prepare

MORE = [chat(f"And {place}?", f"{place} has no harbour.") for place in ("Bern", "Graz", "Ulm", "Brno")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def laptop(tmp_path: Path, base: Path) -> Laptop:
    return Laptop(tmp_path, base.parent)


def several(laptop: Laptop, *files: tuple[str, bytes, float]) -> TrainData:
    put = [(laptop.put(name, content), weight) for name, content, weight in files]
    return TrainData(files=[WeightedFile(config_map_ref=data.config_map_ref, weight=weight) for data, weight in put])


def refused(laptop: Laptop, train: DataFile, held: DataFile | None = None) -> Summary:
    code, summary = laptop.prepare(laptop.context(train, held))
    assert (code, summary.ok) == (10, False)
    assert summary.failure is not None
    assert summary.failure.advice
    return summary


def test_several_files_are_one_dataset_with_weights(laptop: Laptop) -> None:
    held = laptop.put("held.jsonl", lines([chat("Is Kyiv nice?", "Kyiv is on a river.")]))
    csv = 'prompt_id,messages\n1,"{}"\n'.format(json.dumps(CHATS[0]["messages"]).replace('"', '""')).encode()
    train = several(laptop, ("a.jsonl", lines(CHATS), 0.5), ("b.json", json.dumps(MORE).encode(), 2), ("c.csv", csv, 1))
    context = laptop.context(train, held)
    code, summary = laptop.prepare(context)
    assert code == 0
    assert summary.dataset is not None
    assert summary.dataset.train_examples == 6 + 8 + 1 == len(rows(context, "train"))
    texts = [json.loads(line)["messages"][0]["content"] for line in (context.dataset_dir / "train.jsonl").open()]
    counts = Counter(texts)
    assert [counts[each["messages"][0]["content"]] for each in MORE] == [2, 2, 2, 2]
    assert sum(counts[each["messages"][0]["content"]] for each in CHATS) == 6 + 1
    assert {problem.check: (problem.file, problem.lines) for problem in summary.dataset.problems} == {
        "duplicate": ("train.files[2]", [2]),  # the line of that file
        "few_examples": ("train", []),
        "unknown_key": ("train.files[2]", [2]),
    }


def test_a_problem_is_named_with_its_file(laptop: Laptop) -> None:
    train = several(laptop, ("a.jsonl", lines(CHATS), 1), ("b.jsonl", lines(MORE[:2]) + b"{\n", 1))
    summary = refused(laptop, train)
    assert summary.failure is not None
    assert "train.files[1] data, line 3: the line is not valid JSON" in summary.failure.message
    assert "correct these lines of b.jsonl" in summary.failure.advice


def test_one_of_several_files_without_an_example_is_refused(laptop: Laptop) -> None:
    summary = refused(laptop, several(laptop, ("a.jsonl", lines(CHATS), 1), ("b.jsonl", b"\n", 1)))
    assert summary.failure is not None
    assert "train.files[1] data: there are no examples in key b.jsonl" in summary.failure.message


def test_the_same_data_under_two_names_is_refused(laptop: Laptop) -> None:
    summary = refused(laptop, several(laptop, ("a.jsonl", lines(CHATS), 1), ("b.jsonl", lines(CHATS), 3)))
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.SPEC_INVALID
    assert "dataset.train.files[0] and dataset.train.files[1] are the same data" in summary.failure.message
    assert "weight" in summary.failure.advice


@pytest.mark.parametrize("name", ["train.jsonl", "chats"])
def test_data_that_changes_while_it_is_read_is_refused(
    laptop: Laptop, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A file that is still being uploaded, and a folder that another shard is put into."""
    claim = laptop.root / "sources" / "pvc" / "data"
    claim.mkdir()
    (claim / "train.jsonl").write_bytes(lines(CHATS))
    if name == "chats":
        import datasets

        datasets.Dataset.from_list(CHATS).to_parquet(str(claim / "chats" / "a.parquet"))
    read = reading.read_examples

    def slowly(examples: Iterator[Any], *arguments: Any) -> Iterator[Any]:
        yield from read(examples, *arguments)
        written = claim / name if name == "train.jsonl" else claim / name / "b.parquet"
        with written.open("ab") as file:
            file.write(lines(MORE[:1]))

    monkeypatch.setattr(reading, "read_examples", slowly)
    summary = refused(laptop, TrainData(source=f"pvc://data/{name}"))
    assert summary.failure is not None
    assert f"pvc://data/{name} changed while it was read" in summary.failure.message
    assert "rerunToken" in summary.failure.advice


def test_half_of_a_gzip_file_is_refused(laptop: Laptop) -> None:
    whole = gzip.compress(lines([chat(f"Number {os.urandom(8).hex()}?", "No.") for _ in range(200)]))
    summary = refused(laptop, laptop.put("train.jsonl.gz", whole[: len(whole) // 2]))
    assert summary.failure is not None
    assert "the gzip file is damaged or cut short after" in summary.failure.message


def test_a_volume_that_fills_up_is_called_so_and_nothing_is_left(
    laptop: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own answer: the spool lies on a device that is always full."""
    link = laptop.root / "full"
    link.symlink_to("/dev/full")
    monkeypatch.setattr(prepare, "Spool", lambda path, seed: Spool(link, seed))
    context = laptop.context(laptop.put("train.jsonl", lines(CHATS)))
    code, summary = laptop.prepare(context)
    assert code == 73  # tried again: somebody may make room
    assert summary.failure is not None
    assert summary.failure.reason is FailureReason.STORAGE_FULL
    assert "enlarge the output claim" in summary.failure.advice
    assert not list(context.run_dir.glob(".prepare-*"))
    assert not context.dataset_dir.exists()
    assert not context.report_path(Stage.PREPARE).exists()


LONG_LINE = """
import json, resource, sys
from pathlib import Path
from finetune_trainer.data.formats.open_file import open_file
from finetune_trainer.data.problems import Findings
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
findings = Findings()
rows = sum(1 for _ in open_file(Path(sys.argv[1]), sys.argv[1], "train", findings, max_bytes=2**30).rows)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([rows, [(f.fault.check, f.lines) for f in findings.sorted()], grown // 1024]))
"""


@pytest.mark.parametrize(
    ("name", "head", "good", "start", "end"),
    [
        ("train.jsonl", b"", b'{"text": "a"}\n', b'{"text": "', b'"}'),
        ("train.csv", b"text,label\n", b"a,1\n", b'"', b'",1'),
    ],
    ids=["jsonl", "csv"],
)
def test_a_line_of_400_mb_is_named_and_never_in_memory(
    tmp_path: Path, name: str, head: bytes, good: bytes, start: bytes, end: bytes
) -> None:
    path, before = tmp_path / name, 20_000
    with path.open("wb") as file:
        file.write(head + good * before + start)
        file.truncate(file.tell() + 400 * 2**20)  # a hole: nothing is written to the disk
        file.seek(0, os.SEEK_END)
        file.write(end + b"\n" + good)
    command = [sys.executable, "-c", LONG_LINE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, faults, grown = json.loads(done.stdout.splitlines()[-1])
    assert rows == before + 1
    assert faults == [["line_too_long", [head.count(b"\n") + before + 1]]]
    assert grown < 100  # MiB
