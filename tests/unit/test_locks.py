"""What the images hold is what the tests have run with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LOCKS = Path(__file__).parents[2] / "requirements"


def pins(lock: str) -> dict[str, str]:
    found = re.findall(r"^([a-z0-9.-]+)==([^ \\]+)", (LOCKS / lock).read_text(), re.MULTILINE)
    assert found
    return dict(found)


@pytest.mark.parametrize("lock", ["operator.txt", "trainer.txt"])
def test_an_image_has_the_versions_that_the_tests_have(lock: str) -> None:
    tested = pins("dev.txt")
    assert {name: version for name, version in pins(lock).items() if tested.get(name) != version} == {}
