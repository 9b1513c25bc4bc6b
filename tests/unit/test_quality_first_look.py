"""The first look passes over no text in which a search would find something."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator
from pydoc_data.topics import topics

import phonenumbers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.test_quality_sensitive import HARMLESS, SECRETS

from finetune_trainer.data.quality import sensitive
from finetune_trainer.data.quality.first_look import FirstLook, Marks, in_small_letters

KINDS = {kind.check: kind for kind in sensitive.kinds()}
NUMBERS = {"card": sensitive.CARD, "iban": sensitive.IBAN, "ssn": sensitive.SSN, "email": sensitive.EMAIL}
PROSE = " ".join(topics.values())


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """(check, pattern) of all that is looked for by a pattern."""
    for name, _, detector, _ in sensitive.DETECTORS:
        for pattern in detector().denylist:
            yield f"secret_{name}", pattern
    for name, _, prefix, rest in sensitive.PREFIXES:
        yield f"secret_{name}", re.compile(prefix + rest, re.ASCII)
    for name, pattern in NUMBERS.items():
        yield f"personal_{name}", pattern


def has_marks(check: str, text: str) -> bool:
    return list(FirstLook([KINDS[check].marks]).worth(text)) == [0]


@pytest.mark.parametrize(("check", "pattern"), patterns())
def test_every_match_of_a_pattern_has_a_mark(check: str, pattern: re.Pattern[str]) -> None:
    @settings(max_examples=30, deadline=None)
    @given(st.from_regex(pattern))
    def is_passed_on(text: str) -> None:
        assert has_marks(check, text)

    is_passed_on()


def test_every_telephone_number_with_its_country_has_the_mark() -> None:
    forms = phonenumbers.PhoneNumberFormat
    for region in phonenumbers.SUPPORTED_REGIONS:
        number = phonenumbers.example_number(region)
        assert number is not None
        for form in (forms.E164, forms.INTERNATIONAL):
            written = phonenumbers.format_number(number, form)
            assert has_marks("personal_phone", written), written
            assert has_marks("personal_phone", "+ -- ( -- " + written[1:]), written
            assert KINDS["personal_phone"].search(written), written
    lengths = (
        len(str(data.country_code)) + min(data.general_desc.possible_length)
        for region in phonenumbers.SUPPORTED_REGIONS
        if (data := phonenumbers.PhoneMetadata.metadata_for_region(region)) and data.general_desc
    )
    assert min(lengths) == 6  # digits, as many as the mark asks for


def soup(seed: int) -> str:
    """Prose, marks, halves of secrets and whole ones."""
    draw = random.Random(seed)
    marks = [mark for kind in KINDS.values() for mark in (*kind.marks.exact, *kind.marks.small)]
    words = []
    for _ in range(draw.randrange(1, 12)):
        at = draw.randrange(len(PROSE) - 400)
        secret = draw.choice([*SECRETS.values(), *HARMLESS])
        noise = "".join(draw.choices(string.printable + "\u017f\u212a\u0130\uff0b\u0663é", k=draw.randrange(40)))
        cut = secret[: draw.randrange(len(secret))]
        words.append(draw.choice([PROSE[at : at + draw.randrange(400)], draw.choice(marks), secret, cut, noise]))
    return draw.choice(["", " "]).join(words)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32).map(soup) | st.text(max_size=300))
@example("AWſ key: " + "a" * 40)
def test_it_finds_what_all_searches_find(text: str) -> None:
    every = [kind for kind in KINDS.values() if any(kind.search(part) for part in sensitive.pieces(text))]
    assert list(sensitive.found_in(text)) == every


def test_a_letter_in_small_is_what_a_pattern_that_ignores_case_takes_for_it() -> None:
    characters = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
    for letter in string.ascii_lowercase:
        for taken in re.findall(letter, characters, re.IGNORECASE):
            assert in_small_letters(taken) == letter, (letter, taken)


def test_every_kind_has_marks_and_nothing_is_worth_a_search_without_them() -> None:
    assert all(kind.marks != Marks() for kind in KINDS.values())
    assert list(FirstLook([kind.marks for kind in KINDS.values()]).worth("The harbour is open all year.")) == []
