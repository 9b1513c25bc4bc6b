"""Every command in the README and the documentation names something that exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:bash|sh|console|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            joined = block.replace("\\\n", " ")
            found += [(page.name, line.strip().removeprefix("$ ")) for line in joined.splitlines() if line.strip()]
    return [(page, line) for page, line in found if not line.startswith("#")]


COMMANDS = commands()


def test_there_are_commands() -> None:
    assert {"make", "finetune", "kubectl", "helm"} <= {line.split()[0] for _, line in COMMANDS}


@pytest.mark.parametrize(("page", "line"), [c for c in COMMANDS if c[1].startswith("make ")])
def test_make_target_exists(page: str, line: str) -> None:
    target = shlex.split(line, comments=True)[1]
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{page}: {line}"


@pytest.mark.parametrize(("page", "line"), [c for c in COMMANDS if c[1].startswith("finetune ")])
def test_finetune_options_exist(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    arguments = ["finetune", words[1], "--help"]
    call = f"import sys; sys.argv = {arguments!r}; from finetune_operator.cli.main import main; main()"
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True, env=environment)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    for option in (word.split("=")[0] for word in words[2:] if word.startswith("-") and word != "-"):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", shown), f"{page}: {line}: no {option}"


@pytest.mark.parametrize(
    ("page", "line"),
    [c for c in COMMANDS if re.search(r"(examples|charts|crds)/", c[1]) and not c[1].startswith("python")],
)
def test_named_paths_exist(page: str, line: str) -> None:
    for path in re.findall(r"\b(?:examples|charts|crds)/[\w./-]+", line):
        assert (ROOT / path).exists(), f"{page}: {line}: {path}"
