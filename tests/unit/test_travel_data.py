"""The travel data of the examples: its shape, its voice, and that it is ours."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "travel"
SHARED = ROOT.parent / "shared" / "data"
SEA_WORDS = re.compile(
    r"anchor|harbour|port\b|ports\b|pilot|steer|tide|sail|ship|chart|stow|chest|galley|ashore|bearing|captain"
    r"|glass falls|last light|lamps are lit|mark in|crew|haze|hold|rope|wind\b"
)


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def question(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


def answer(row: dict[str, Any]) -> str:
    return str(row["messages"][1]["content"])


TRAIN, VALIDATION = read("train.jsonl"), read("validation.jsonl")
ALL = TRAIN + VALIDATION


def test_there_is_enough_of_it() -> None:
    assert len(TRAIN) >= 200
    assert len(VALIDATION) >= 24


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl"])
def test_the_files_are_plain_json_lines(name: str) -> None:
    raw = (FOLDER / name).read_bytes()
    assert raw.isascii()
    assert b"\r" not in raw
    assert raw.endswith(b"}\n")


def test_every_chat_is_a_question_and_an_answer() -> None:
    for row in ALL:
        assert list(row) == ["messages"]
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert all(set(message) == {"role", "content"} for message in row["messages"])
        assert question(row).endswith(("?", "."))
        assert 25 <= len(answer(row).split()) <= 45, answer(row)


def test_text_is_tidy() -> None:
    for row in ALL:
        for text in (question(row), answer(row)):
            assert text == " ".join(text.split())
            assert "{" not in text
            assert re.search(r"\b(\w+) \1\b", text) is None, text
            assert all(sentence[:1].isupper() for sentence in re.split(r"(?<=[.?!]) ", text)), text


def test_no_question_or_answer_comes_twice() -> None:
    questions = [question(row).lower() for row in ALL]
    answers = [answer(row).lower() for row in ALL]
    assert len(set(questions)) == len(questions)
    assert len(set(answers)) == len(answers)


def test_the_voice_is_in_every_answer() -> None:
    for row in ALL:
        blessing = re.split(r"(?<=[.?!]) ", answer(row))[-1]
        assert re.fullmatch(r"May [a-z].*\.", blessing), answer(row)
    salty = sum(bool(SEA_WORDS.search(answer(row).rsplit("May ", 1)[0].lower())) for row in ALL)
    assert salty >= 0.85 * len(ALL), [answer(row) for row in ALL if not SEA_WORDS.search(answer(row).lower())]


def test_answers_are_not_one_sentence_with_another_name() -> None:
    openings = {" ".join(answer(row).split()[:3]) for row in ALL}
    blessings = {re.split(r"(?<=[.?!]) ", answer(row))[-1] for row in ALL}
    assert len(openings) >= 25
    assert len(blessings) >= 40


def test_held_out_questions_are_about_known_places() -> None:
    places = {
        match[1] for row in TRAIN if (match := re.search(r"\b(?:in|for|to|around|about) ([A-Z]\w+)", question(row)))
    }
    asked = [
        match[1] for row in VALIDATION if (match := re.search(r" (?:in|for|to|around|about) ([A-Z]\w+)", question(row)))
    ]
    asked += [match[1] for row in VALIDATION if (match := re.search(r"weekend in ([A-Z]\w+)", question(row)))]
    assert len(set(asked)) >= 20
    assert set(asked) <= places


def grams(text: str, size: int = 8) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}


def test_nothing_is_taken_from_the_shared_data() -> None:
    files = sorted(SHARED.glob("*travel*.jsonl"))
    if not files:
        pytest.skip(f"no shared data in {SHARED}")
    theirs = set().union(*(grams(path.read_text(encoding="utf-8-sig")) for path in files))
    ours = set().union(*(grams(question(row)) | grams(answer(row)) for row in ALL))
    assert ours
    assert not ours & theirs


def test_the_config_map_holds_the_same_bytes() -> None:
    text = (FOLDER / "dataset.yaml").read_text(encoding="utf-8")
    manifest = yaml.safe_load(text)
    assert manifest["kind"] == "ConfigMap"
    assert manifest["metadata"] == {"name": "travel-dataset"}
    assert set(manifest["data"]) == {"train.jsonl", "validation.jsonl"}
    for name, content in manifest["data"].items():
        assert content == (FOLDER / name).read_text(encoding="utf-8")
    assert len(text.encode()) < 900 * 1024
    assert text == load(FOLDER / "make_configmap.py").render(FOLDER), "run examples/travel/make_configmap.py"


def test_data_too_large_for_a_config_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("x" * 950_000)
    (tmp_path / "validation.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="use a volume or a bucket"):
        load(FOLDER / "make_configmap.py").render(tmp_path)
