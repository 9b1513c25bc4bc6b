"""Text comes in whole characters, with its spaces, and nothing of a stop sequence is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import USER, make_tiny_tokenizer

from finetune_trainer.serving.text import Detokenizer, StopScanner, overlap

TOKENIZER = make_tiny_tokenizer()


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True)


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "text", ["plain words here", " leading space", "🚢🌊🚀", "Grüße, 東京!", "a\n\n b  c", "e\u0301🏳️‍🌈"]
)
def test_pieces_make_the_whole_text(text: str) -> None:
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(token) for token in ids_of(text)]
    assert "".join(pieces) + detokenizer.flush() == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_survives(text: str) -> None:
    text = text.replace("\ufffd", "")
    detokenizer = Detokenizer(decode)
    assert "".join(detokenizer.push(token) for token in ids_of(text)) + detokenizer.flush() == text


def test_an_unfinished_character_is_never_shown() -> None:
    detokenizer = Detokenizer(decode)
    *most, _ = ids_of("ok 🦜")
    assert "".join(detokenizer.push(token) for token in most) + detokenizer.flush() == "ok "


def test_control_tokens_do_not_hurry_a_character() -> None:
    detokenizer = Detokenizer(decode)
    control = [TOKENIZER.convert_tokens_to_ids(USER)] * 6
    assert "".join(detokenizer.push(token) for token in [*control, *ids_of("🦜")]) == "🦜"


def test_bytes_that_are_no_character_do_not_hold_the_text_up() -> None:
    stray = TOKENIZER.convert_tokens_to_ids("Ħ")  # the byte-level letter of 0x84, which starts nothing
    detokenizer = Detokenizer(decode)
    shown = "".join(detokenizer.push(stray) for _ in range(20))
    assert len(shown) >= 15


def test_a_completion_keeps_its_first_space() -> None:
    """A tokenizer that drops the first space of what it decodes, as SentencePiece does, is told what came before."""

    def stripping(ids: list[int]) -> str:
        return decode(ids).removeprefix(" ")

    assert Detokenizer(stripping, ids_of("the")).push(ids_of(" is")[0]).startswith(" ")


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "hit"),
    [
        ((), ["a", "b"], "ab", False),
        (("END",), ["x", "E", "N", "D", "y"], "x", True),
        (("END",), ["x", "E", "N", "x"], "xENx", False),
        (("END",), ["xEND and more"], "x", True),
        (("aab",), ["a", "a", "a", "b"], "a", True),
        (("abab", "b"), ["a", "b"], "a", True),
        (("\n\n", "stop"), ["one\n", "\ntwo"], "one", True),
        (("END",), ["x", "EN"], "xEN", False),
        (("later", "lat"), ["plat"], "p", True),
    ],
)
def test_stop_sequences(stops: tuple[str, ...], pieces: list[str], shown: str, hit: bool) -> None:
    scanner = StopScanner(stops)
    text = "".join(scanner.push(piece) for piece in pieces)
    assert scanner.hit is hit
    assert text + scanner.flush() == shown


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_scanning_by_letters_shows_what_stands_before_the_first_stop_found(text: str, stops: list[str]) -> None:
    scanner = StopScanner(stops)
    shown = ""
    for letter in text:
        shown += scanner.push(letter)
        assert not any(stop in shown for stop in stops)
    shown += scanner.flush()
    assert text.startswith(shown)
    assert scanner.hit == any(stop in text for stop in stops)


@pytest.mark.parametrize(
    ("text", "stop", "length"), [("xEN", "END", 2), ("xEND", "END", 0), ("aa", "aab", 2), ("", "a", 0)]
)
def test_overlap(text: str, stop: str, length: int) -> None:
    assert overlap(text, stop) == length
