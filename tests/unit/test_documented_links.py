"""Links within the repository lead to pages and headings that are there; every page is found from the README."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from tests.documented import ROOT

HIDDEN = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)  # code is no link
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")  # none to other hosts
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FOLDERS = ("docs", "examples", "charts", "requirements")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])


@cache
def anchors(page: Path) -> frozenset[str]:
    """As GitHub makes them of headings; of equal ones the second gets -1."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    seen: Counter[str] = Counter()
    found = set()
    for heading in HEADING.findall(text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return frozenset(found)


def links(page: Path) -> list[tuple[Path, str]]:
    """Where the page leads: a file or folder, and a heading of it or nothing."""
    found = LINK.findall(HIDDEN.sub("", page.read_text()))
    return [((page.parent / path).resolve() if path else page, anchor) for path, anchor in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_link_leads_nowhere(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), f"{target.name}#{anchor}"


def test_every_page_is_found_from_the_first_one() -> None:
    found, left = {ROOT / "README.md"}, [ROOT / "README.md"]
    while left:
        target = left.pop()
        pages = target.glob("*.md") if target.is_dir() else [page for page, _ in links(target)]
        new = {page for page in pages if page.suffix == ".md" or page.is_dir()} - found
        found |= new
        left += new
    assert set(PAGES) - found == set()
