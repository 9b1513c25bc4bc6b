"""Keys and personal data are found by their form and are never said."""

from __future__ import annotations

import json
import random
import string

import pytest

from finetune_trainer.data.quality import sensitive

LETTERS = string.ascii_letters + string.digits


def made(seed: int, length: int, letters: str = LETTERS) -> str:
    return "".join(random.Random(seed).choices(letters, k=length))


# Made up here, so that no scanner of this repository takes them for real.
SECRETS = {
    "secret_aws": "AK" + "IA" + made(1, 16, string.ascii_uppercase),
    "secret_github": "gh" + "p_" + made(2, 36),
    "secret_gitlab": "gl" + "pat-" + made(3, 20),
    "secret_hugging_face": "h" + "f_" + made(4, 34, string.ascii_letters),
    "secret_openai": "s" + "k-proj-" + made(5, 40) + "T3Blbk" + "FJ" + made(6, 40),
    "secret_anthropic": "s" + "k-ant-api03-" + made(7, 90),
    "secret_google": "AI" + "za" + made(8, 35),
    "secret_slack": "xo" + "xb-123456789012-123456789012-" + made(9, 24),
    "secret_stripe": "sk_" + "live_" + made(10, 24),
    "secret_private_key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEowIBAAKCAQEA",
    "secret_url_password": "postgres://admin:" + "s3cr3t9@db.example.com/prod",
    "personal_card": "4111 1111 1111 1111",
    "personal_iban": "DE89 3704 0044 0532 0130 00",
    "personal_ssn": "536-90-4399",
    "personal_phone": "+44 20 7946 0958",
    "personal_email": "joe.doe@a-real-shop.de",
}
HARMLESS = (
    "Lisbon has 7 hills and 12 miradouros; the tram 28 leaves at 9:45.",
    "Write to joe@example.com or to info@shop.test.",
    "Card 4111 1111 1111 1112 has a wrong check digit, and so has DE89 3704 0044 0532 0130 01.",
    "Order 123456789, part 2345678901, version 1.2.3.4, 2026-11-28, +1 and +5 points.",
    "risk-averse and task-based; hf_hub is a library; sk-learn, too",
    "536-90-439 is not one",
)


@pytest.mark.parametrize(("check", "value"), SECRETS.items(), ids=list(SECRETS))
def test_each_kind_is_found_in_the_json_of_an_example_and_its_place_is_named(check: str, value: str) -> None:
    example = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": f"use {value} now"}]}
    found = list(sensitive.found_in(json.dumps(example, ensure_ascii=False)))
    assert [kind.check for kind in found] == [check]
    assert sensitive.place(example, found[0]) == "messages[1].content"
    assert value[4:] not in sensitive.message(found[0])


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_a_little_like_it_is_not(text: str) -> None:
    assert [kind.check for kind in sensitive.found_in(text)] == []


def test_a_key_is_found_wherever_a_long_text_is_parted() -> None:
    key = SECRETS["secret_github"]
    for before in range(sensitive.PIECE - 60, sensitive.PIECE + 60, 7):
        assert [kind.check for kind in sensitive.found_in("a " * (before // 2) + key + " b" * 9000)] == [
            "secret_github"
        ]


@pytest.mark.parametrize("length", [0, 1, sensitive.PIECE, sensitive.PIECE + 1, 3 * sensitive.PIECE, 100_003])
def test_a_text_is_read_in_pieces_of_bounded_length_and_whole(length: int) -> None:
    """Some patterns take a time that grows with the square of what they are given."""
    text = made(11, length)
    pieces = list(sensitive.pieces(text))
    assert max(map(len, pieces)) <= sensitive.PIECE
    for start in range(0, max(1, length - sensitive.SHARED), 501):
        assert any(text[start : start + sensitive.SHARED] in piece for piece in pieces)


def test_every_kind_has_a_name_of_its_own() -> None:
    names = [kind.check for kind in sensitive.kinds()]
    assert len(set(names)) == len(names)
    assert set(SECRETS) <= set(names)
