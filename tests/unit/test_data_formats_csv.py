"""CSV as spreadsheets and programs write it, and every way in which it is broken, with the line."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data_rows import read_file, read_for

from finetune_api.tasks import Task
from finetune_trainer.data.formats import delimited, unpacked
from finetune_trainer.errors import UserInputError

CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    cells=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6),
    delimiter=st.sampled_from(",;\t"),
    line_end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
def test_what_was_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, ...]], delimiter: str, line_end: str, mark: bool
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL).writerows(
        [("text", "the label", "x"), *cells]
    )
    content = text.getvalue().encode("utf-8-sig" if mark else "utf-8")
    found = read_file(tmp_path_factory.getbasetemp() / "table", content, "a.csv")
    assert [tuple(row.values()) for row in found.values] == cells
    assert {tuple(row) for row in found.values} == {("text", "the label", "x")}
    assert not found.faults


def test_numbers_are_those_of_the_lines_in_which_rows_begin(tmp_path: Path) -> None:
    content = b'text,label\n"two\nlines",a\n\nplain,b\n"three\n\nlines",c\n'
    found = read_file(tmp_path / "data", content, "a.csv")
    assert [number for number, _ in found.rows] == [2, 5, 6]
    assert found.faults == [("empty_line", [4], "")]
    assert found.values[0]["text"] == "two\nlines"


@pytest.mark.parametrize(
    ("content", "rows", "faults", "text"),
    [
        (b"text,label\na,b\nc\nd,e,f\ng,h\n", [2, 5], [("cell_count", [3, 4], "")], "1 cells and the header 2"),
        (b'text,label\n"a" b,c\nd,e\n', [3], [("quotes", [2], "")], "goes on after its closing"),
        (b'text,label\na,b\n"c,d\ne,f\n', [2], [("quotes", [3], "")], "never closed"),
        (b"text,label\na\xff,b\nc,d\n", [3], [("not_utf8", [2], "byte 2")], "CSV UTF-8"),
        (b'text,label\n"a\nb\xff",b\nc,d\n', [4], [("not_utf8", [2], "byte 2")], "CSV UTF-8"),
    ],
)
def test_bad_rows_have_their_lines(
    tmp_path: Path, content: bytes, rows: list[int], faults: list[Any], text: str
) -> None:
    found = read_file(tmp_path / "data", content, "a.csv")
    assert [number for number, _ in found.rows] == rows
    assert found.faults == faults
    assert text in found.texts[faults[0][0]]


@pytest.mark.parametrize(
    ("content", "message", "advice"),
    [
        (b"", "line 1 of the CSV file is empty", "text,label"),
        (b"\n\na,b\n", "line 1 of the CSV file is empty", "text,label"),
        (b"text,label\n", "a header and no row below it", "add the rows"),
        (b"text,label", "a header and no row below it", "add the rows"),
        (b"text,label,text\na,b,c\n", "names a column twice: 'text'", "a line of names before it"),
        (b"4,4,5\n1,2,3\n", "names a column twice: another text", "a line of names before it"),
        (b'"text,label\na,b\n', "line 1: a double quote is opened", "name the columns"),
        (b"text,label\ra,b\rc,d\r", "line ends are those of old Macs", "name the columns"),
        (b"te\xffxt,label\na,b\n", "line 1: the line is not UTF-8", "name the columns"),
    ],
)
def test_table_without_usable_header_is_refused(tmp_path: Path, content: bytes, message: str, advice: str) -> None:
    with pytest.raises(UserInputError) as caught:
        read_file(tmp_path / "data", content, "a.csv")
    assert message in caught.value.message
    assert advice in caught.value.advice


def test_index_without_a_name_is_left_out(tmp_path: Path) -> None:
    found = read_file(tmp_path / "data", b",text,label\n0,a,x\n1,b,y\n", "a.csv")
    assert found.values == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert found.faults == [("unnamed_column", [1], "")]


def test_huge_line_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (delimited, unpacked):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 100)
    content = b"text,label\na,b\n" + b"x" * 5000 + b",c\nd,e\n"
    found = read_file(tmp_path / "data", content, "a.csv")
    assert ([number for number, _ in found.rows], found.faults) == ([2, 4], [("line_too_long", [3], "")])


def test_quote_that_is_never_closed_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_ROW_BYTES", 100)
    content = b'text,label\na,b\n"c,d\n' + b"e,f\n" * 1000
    with pytest.raises(UserInputError, match="row that begins in line 3 is longer"):
        read_file(tmp_path / "data", content, "a.csv")


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"tokens": '["a", "b"]', "tags": '["O", "B-X"]'}, {"tokens": ["a", "b"], "tags": ["O", "B-X"]}),
        ({"label": '["x", "y"]'}, {"label": ["x", "y"]}),
        ({"label": "[1, 2]"}, {"label": [1, 2]}),
        ({"label": "[]"}, {"label": []}),
        ({"label": "[unknown]"}, {"label": "[unknown]"}),
        ({"label": "3"}, {"label": "3"}),
        ({"label": "", "text_pair": "", "text": ""}, {"label": None, "text_pair": None, "text": ""}),
        ({"answers": '{"text": [], "answer_start": []}'}, {"answers": {"text": [], "answer_start": []}}),
        ({"answers": "by the sea"}, {"answers": "by the sea"}),
        ({"answers": "", "is_impossible": "True"}, {"answers": None, "is_impossible": True}),
        ({"prompt": "[1] says", "completion": "[]"}, {"prompt": "[1] says", "completion": "[]"}),
        ({"chosen": '[{"role": "user"}]'}, {"chosen": [{"role": "user"}]}),
        ({"input": '{"messages": []}'}, {"input": {"messages": []}}),
        ({"instruction": "Fix", "input": '{"a" 1}'}, {"instruction": "Fix", "input": '{"a" 1}'}),
        ({"text": '["a"]', "source": "{}"}, {"text": '["a"]', "source": "{}"}),
    ],
)
def test_cells_hold_json_where_a_list_is_needed(tmp_path: Path, row: dict[str, str], wanted: dict[str, Any]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, row)
    writer.writeheader()
    writer.writerow(row)
    found = read_for(Task.PREFERENCE, tmp_path / "data", text.getvalue().encode(), "a.csv")
    assert (found.values, found.faults) == ([wanted], [])


def test_a_prompt_of_completion_may_be_json(tmp_path: Path) -> None:
    content = b'prompt,completion\n"[{""id"": 1}]",one\n'
    found = read_for(Task.COMPLETION, tmp_path / "data", content, "a.csv")
    assert (found.values, found.faults) == ([{"prompt": '[{"id": 1}]', "completion": "one"}], [])


@pytest.mark.parametrize(
    ("cell", "text"), [("['a', 'b']", "json.dumps"), ("[a, b]", "not valid JSON"), ("[" * 100_000, "not valid JSON")]
)
def test_cell_with_broken_json_has_its_line_and_column(tmp_path: Path, cell: str, text: str) -> None:
    content = f'words,tags\n"[""a""]","[""O""]"\n"{cell}","[""O""]"\n'.encode()
    found = read_for(Task.TOKEN_CLASSIFICATION, tmp_path / "data", content, "a.csv", tokens="words")
    assert [number for number, _ in found.rows] == [2]
    assert found.faults == [("cell_json", [3], "tokens")]
    assert text in found.texts["cell_json"]
