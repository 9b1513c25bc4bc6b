"""A file is what its first bytes say: every form by whatever name, and foreign files refused with a remedy."""

from __future__ import annotations

import functools
import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.data_rows import read_file

from finetune_trainer.data.formats.detection import claimed
from finetune_trainer.data.formats.form import Form
from finetune_trainer.errors import UserInputError

zipped_up = functools.partial(gzip.compress, mtime=0)  # the same bytes, and name of a case, each time
ROW = b'{"text": "hi, you", "label": "x"}'
TABLE = b'text,label\n"hi, you",x\n'
WANTED = {"text": "hi, you", "label": "x"}


def parquet_bytes(rows: list[dict[str, object]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


PARQUET = parquet_bytes([WANTED])


def zipped(name: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), "x")  # without the hour, so that the case keeps its name
    return sink.getvalue()


def tarred() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("data.jsonl"), io.BytesIO())
    return sink.getvalue()


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (ROW, ["train.jsonl", "train.json", "train.ndjson", "train", "data.txt", "train.JSONL", "train.jsonl.gz"]),
        (b"[" + ROW + b"]", ["train.json", "train.jsonl", "train"]),
        (b'{"data": [' + ROW + b"]}", ["train.json", "train.jsonl", ""]),
        (b'{"version": "1.0", "n": [1], "data" : [ ' + ROW + b"]}", ["train.json", ""]),
        (TABLE, ["train.csv", "train.tsv", "train", "train.txt"]),
        (b"\xef\xbb\xbf" + TABLE.replace(b"\n", b"\r\n"), ["train.csv", ""]),
        (b"text;label\nhi, you;x\n", ["train.csv", ""]),
        (b"text\tlabel\nhi, you\tx\n", ["train.tsv", "train.csv", ""]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_form_is_known_by_content(tmp_path: Path, content: bytes, names: list[str], packed: bool) -> None:
    for name in names:
        found = read_file(tmp_path / "data", zipped_up(content) if packed else content, name)
        assert (found.values, found.faults) == ([WANTED], []), name


@pytest.mark.parametrize("name", ["train.parquet", "train.pq", "0000", ""])
def test_parquet_is_known_by_content(tmp_path: Path, name: str) -> None:
    assert read_file(tmp_path / "data", PARQUET, name).values == [WANTED]


@pytest.mark.parametrize(
    ("content", "name", "message", "advice"),
    [
        (PARQUET, "train.jsonl", "named .jsonl (JSON Lines), but it holds Parquet", "rename it to .parquet"),
        (PARQUET, "train.csv", "named .csv (CSV), but it holds Parquet", "right file"),
        (ROW, "train.csv", "named .csv (CSV), but it holds JSON Lines", ".jsonl"),
        (ROW, "train.csv.gz", "named .csv (CSV), but it holds JSON Lines", ".jsonl"),
        (b"[" + ROW + b"]", "train.tsv", "named .tsv (CSV), but it holds JSON", ".json"),
        (ROW, "train.parquet", "named .parquet (Parquet), but it holds JSON Lines", ".jsonl"),
        (TABLE, "train.parquet", "named .parquet (Parquet), but it holds CSV", ".csv"),
        (TABLE, "train.jsonl", "named .jsonl (JSON Lines), but it holds CSV", ".csv"),
        (b"Once upon a time\nthere was a boat.\n", "train.txt", "plain text", '{"text": "..."}'),
        (b"Once upon a time\n", "train.jsonl", "plain text and not JSON Lines, as its name says", "Completion"),
        (zipped("data.jsonl"), "train.jsonl", "ZIP archive", "unpack"),
        (zipped("xl/workbook.xml"), "train.csv", "Excel", "CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "train.xls", "old Excel", "CSV UTF-8"),
        (b"\x28\xb5\x2f\xfd\x00", "train.jsonl", "zstd", "gzip"),
        (b"BZh91AY", "train.jsonl", "bzip2", "gzip"),
        (b"\xfd7zXZ\x00", "train.jsonl", "xz", "gzip"),
        (b"ARROW1\x00\x00", "train.arrow", "Arrow", "to_parquet"),
        (b"\xff\xff\xff\xff\x10\x00", "train.arrow", "Arrow stream", "to_parquet"),
        (b"SQLite format 3\x00", "train.db", "SQLite", "CSV"),
        (b"\x80\x04\x95\x10", "train.pkl", "pickle", "JSON Lines"),
        (b"%PDF-1.7", "book.pdf", "PDF", "JSON Lines"),
        (tarred(), "data.tar", "tar archive", "unpack"),
        (zipped_up(tarred()), "data.tar.gz", "tar archive", "unpack"),
        (zipped_up(PARQUET), "train.parquet.gz", "Parquet file inside gzip", "gunzip"),
        (zipped_up(zipped("a")), "train.jsonl.gz", "ZIP", "unpack"),
        (b"PARE\x00", "train.parquet", "encrypted", "without encryption"),
        ('{"a": 1}'.encode("utf-16"), "train.jsonl", "UTF-16", "iconv"),
        (b"<!DOCTYPE html><html>", "train.jsonl", "web page", "signing in"),
        (b"\n <html>", "train.csv", "web page", "address"),
        (b"<?xml version='1.0'?>", "train.xml", "XML", "address"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "train.parquet", "Git LFS pointer", "git lfs pull"),
        (b"\x01\x02\x00\x00\x09", "train.bin", "binary", "Parquet"),
        (b"\x01\x02\x00\x00\x09", "train.jsonl", "binary", "Parquet"),
    ],
)
def test_file_that_is_not_what_it_should_be_is_refused(
    tmp_path: Path, content: bytes, name: str, message: str, advice: str
) -> None:
    with pytest.raises(UserInputError) as caught:
        read_file(tmp_path / "data", content, name)
    assert message in caught.value.message
    assert caught.value.message.startswith("train data: ")
    assert advice in caught.value.advice


def test_broken_first_line_of_json_lines_is_a_line_and_no_table(tmp_path: Path) -> None:
    content = b"'a': 1, 'b'\n" + ROW + b"\n"
    for name in ("train.jsonl", ""):
        found = read_file(tmp_path / "data", content, name)
        assert (found.values, found.faults) == ([WANTED], [("not_json", [1], "column 1")])


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.parquet", "train"])
def test_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    assert read_file(tmp_path / "data", b"", name).rows == []


def test_row_whose_own_list_is_called_data_is_a_line(tmp_path: Path) -> None:
    assert read_file(tmp_path / "data", b'{"data": [1, 2]}\n{"data": [3]}\n').values == [
        {"data": [1, 2]},
        {"data": [3]},
    ]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.JSONL.gz", Form.JSON_LINES),
        ("a.b.csv", Form.TABLE),
        ("csv", None),
        (".csv", None),
        ("a.xlsx", None),
        ("", None),
    ],
)
def test_name_promises_a_form_by_its_ending(name: str, form: Form | None) -> None:
    assert claimed(name) is form


SEEDS = [ROW, b"[" + ROW + b"]", TABLE, PARQUET, zipped_up(ROW), b'{"data": [{"paragraphs": []}]}']


@settings(max_examples=300, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.tuples(st.sampled_from(SEEDS), st.integers(0, 400), st.binary(max_size=8)).map(
            lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :]
        ),
    ),
    name=st.sampled_from(["", "a.jsonl", "a.json", "a.csv", "a.parquet"]),
)
@example(content=b'[{"a": 1}', name="")
@example(content=b'{"data": [', name="")
@example(content=PARQUET.replace(b"label", b"\x80abel", 1), name="")
def test_any_bytes_are_read_or_explained(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    """Whatever the bytes: rows and faults have numbers from 1, or the whole file is refused with a remedy."""
    refusal = None
    try:
        found = read_file(tmp_path_factory.getbasetemp() / "any", content, name)
    except UserInputError as error:
        refusal = error
    if refusal:
        assert refusal.message.startswith("train data")
        assert refusal.advice
        return
    numbers = [number for number, _ in found.rows]
    assert numbers == sorted(set(numbers))
    assert all(number >= 1 for number in numbers)
    assert all(isinstance(row, dict) for row in found.values)
