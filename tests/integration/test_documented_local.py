"""What the README and docs/ tell to type on a laptop, typed: word for word, in a copy of the checkout."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests import documented
from tests.cluster.processes import wait_until
from tests.documented import LOCAL, ROOT, Command
from tests.hub_mirror import Mirror, Repository, serving

BINARIES = Path(sys.executable).parent
REAL_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PATIENCE = 1500  # seconds; only a bound. `make demo` takes 4 minutes on two busy cores
COMMANDS = documented.commands(LOCAL)
DEMOS = [command for command in COMMANDS if command.text.startswith("make demo")]
SHELL_STATE = [command for command in COMMANDS if command.text.split()[0] in ("source", "export")]
OTHERS = [command for command in COMMANDS if command not in DEMOS]
# What must be in the output of a command that begins so; of several the longest counts.
TELLS = {
    "make demo": "Questions that it has never seen",
    "finetune demo": "Questions that it has never seen",
    "make bench": '"budgets"',
    "make bench-prepare": '"ratio"',
    ".venv/bin/python -m tests.bench": '"budgets"',
    "finetune check": "The data is fit for training.",
    "finetune run": "finetune chat travel-demo",
    "finetune status": "travel-demo",
    "finetune logs": "INFO",
    "finetune chat": "tuned",
    "finetune chat NAME": "Ask; every question stands by itself.",
    "finetune report": "evaluation/report.html",
    "finetune serve": "base_url=",
    "finetune delete": "removes",
    "make generate": "",
    "make gpu": "",
    "python -m finetune_api generate": "",
    "source": "",
    "export": "",
}


@dataclass
class Terminal:
    """A shell in the copy, in which the lines that change a shell's state have been typed."""

    folder: Path
    hub: Mirror

    def start(self, command: Command) -> subprocess.Popen[str]:
        """The command in a process group of its own, with nothing to read from the keyboard."""
        lines = [*(state.text for state in SHELL_STATE), command.text]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("FINETUNE_HOME", "HF_"))},
            "HOME": str(self.folder / "home"),
            "HF_ENDPOINT": self.hub.url,
            "FINETUNE_TEST_CACHE": os.environ.get("FINETUNE_TEST_CACHE", str(Path.home() / ".cache/finetune-operator")),
            "FINETUNE_BENCH_JOBS": "5",
            "FINETUNE_BENCH_IDLE_SECONDS": "1",
            "FINETUNE_BENCH_MEGABYTES": "1",
            "PYTHON": sys.executable,
            "COLUMNS": "160",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            ["bash", "-ec", "\n".join(lines)], cwd=self.folder, env=environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def type(self, command: Command) -> str:
        """What it prints. It must end well."""
        process = self.start(command)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"{command.page}: `{command.text}` ended with {process.returncode}:\n{output}"
        return output


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A copy of the checkout, with a virtual environment that `make` finds complete and no results of its own."""
    folder = tmp_path_factory.mktemp("laptop") / "checkout"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info"))
    (folder / ".venv").mkdir()
    for path in BINARIES.parent.iterdir():
        if path.name != ".complete":
            (folder / ".venv" / path.name).symlink_to(path)
    (folder / ".venv" / ".complete").touch()
    travel = ROOT / "examples" / "travel"
    one_file = "\n---\n".join((travel / name).read_text() for name in ("demo.yaml", "dataset.yaml"))
    (folder / "job.yaml").write_text(one_file)
    with serving(Mirror({})) as hub:
        yield Terminal(folder, hub)


@pytest.fixture(scope="module")
def demos(terminal: Terminal) -> dict[str, str]:
    """What every documented `make demo` printed; the other commands say that they come after it.

    The model that the second one takes from the hub is the one that the first one made: a mirror has it by that name.
    """
    printed = {}
    for command in sorted(DEMOS, key=lambda command: REAL_MODEL in command.text):
        printed[command.text] = terminal.type(command)
        base = terminal.folder / ".finetune" / "claims" / "sources" / "tiny-base"
        files = {path.name: path.read_bytes() for path in base.iterdir()}
        terminal.hub.repositories[f"models/{REAL_MODEL}"] = Repository(files)
    return printed


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("command", DEMOS, ids=lambda command: command.text)
def test_a_documented_demo_shows_what_was_learnt(demos: dict[str, str], command: Command) -> None:
    assert expected(command) in demos[command.text]


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("command", OTHERS, ids=lambda command: command.text)
def test_a_documented_command_works(terminal: Terminal, demos: dict[str, str], command: Command) -> None:
    # The second demo's job is there to be deleted; the other commands need the first one's.
    name = "travel-demo-model" if command.text.startswith("finetune delete") else "travel-demo"
    meant = command.meant(NAME=name)
    serves = command.text.startswith("finetune serve")
    output = serve_and_stop(terminal, meant, expected(command)) if serves else terminal.type(meant)
    assert expected(command) in output
    assert not documented.lacks(output, command), output


def expected(command: Command) -> str:
    begins = [words for words in TELLS if command.text.startswith(words)]
    assert begins, f"{command.page}: `{command.text}`: say in TELLS what it prints"
    return TELLS[max(begins, key=len)]


def serve_and_stop(terminal: Terminal, command: Command, until: str) -> str:
    """The output of a command that ends with Ctrl-C, which is typed when these words were printed."""
    process, lines = terminal.start(command), list[str]()
    assert process.stdout is not None
    reader = threading.Thread(target=lines.extend, args=(iter(process.stdout.readline, ""),), daemon=True)
    reader.start()
    try:
        wait_until(lambda: any(until in line for line in lines) or process.poll() is not None, PATIENCE, command.text)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        reader.join(60)
    assert process.wait(60) == 0, "".join(lines)
    return "".join(lines)
