"""Starting, watching and ending the programs of the test cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.cluster.errors import CommandFailed, WaitTimeout

Value = TypeVar("Value")


def say(text: str) -> None:
    """Tells the developer what is going on, on the error stream."""
    print(f"[cluster] {text}", file=sys.stderr, flush=True)


def run(
    *command: str | Path,
    input: str | None = None,
    timeout: float = 120,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Runs a program to its end and returns its standard output.

    Raises CommandFailed with everything it printed, also when it took longer than `timeout` seconds.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, input=input, capture_output=True, text=True, timeout=timeout, env=env, cwd=cwd)
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"`{' '.join(words)}` took longer than {timeout:.0f} s") from error
    except FileNotFoundError as error:
        raise CommandFailed(f"`{words[0]}` is not installed") from error
    if done.returncode:
        output = (done.stdout + done.stderr).strip()
        raise CommandFailed(f"`{' '.join(words)}` ended with {done.returncode}:\n{output[-6000:]}")
    return done.stdout


def wait_until(
    predicate: Callable[[], Value],
    timeout: float,
    what: str,
    explain: Callable[[], str] | None = None,
    interval: float = 0.1,
) -> Value:
    """Returns the predicate's first true value; a predicate that raises CommandFailed or OSError counts as false.

    Raises WaitTimeout after `timeout` seconds, with what the predicate said last and what `explain` adds.
    """
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            value = predicate()
            if value:
                return value
            last = value
        except (CommandFailed, OSError) as error:
            last = error
        if time.monotonic() > deadline:
            details = explain() if explain else ""
            raise WaitTimeout(f"gave up after {timeout:.0f} s on: {what}\nlast answer: {last}\n{details}")
        time.sleep(interval)


@dataclass(frozen=True)
class Component:
    """One program of the cluster, running in the background with its output in a file."""

    name: str
    pid: int
    born: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def running(self) -> bool:
        """Whether the process is alive; a process number that something else has by now does not count."""
        if self.process is not None:
            return self.process.poll() is None
        return _birth(self.pid) == self.born

    def tail(self, lines: int = 25) -> str:
        """The end of what it printed."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"--- {self.name} ({self.log})\n" + "\n".join(text.splitlines()[-lines:])

    def end(self, how: signal.Signals = signal.SIGKILL, grace: float = 5) -> None:
        """Ends this very process, by its number, and waits for it; SIGKILL when `how` was not enough in `grace` s."""
        for step in (how, signal.SIGKILL):
            if not self.running():
                break
            os.kill(self.pid, step)
            try:
                wait_until(lambda: not self.running(), grace, f"end of {self.name}", interval=0.02)
                break
            except WaitTimeout:
                continue


def start(
    name: str,
    command: Sequence[str | Path],
    logs: Path,
    *,
    die_with_parent: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Component:
    """Starts a program in a session of its own.

    With `die_with_parent` the kernel ends it when this process is gone (where the `setpriv` program is), so that
    an interrupted test run leaves nothing behind.
    """
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{name}.log"
    words = [str(word) for word in command]
    if die_with_parent and shutil.which("setpriv"):
        words = ["setpriv", "--pdeathsig", "KILL", "--", *words]
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=env, cwd=cwd
        )
    component = Component(name, process.pid, _birth(process.pid), log, process)
    with (logs / "processes.jsonl").open("a") as record:
        record.write(json.dumps({"name": name, "pid": component.pid, "born": component.born, "log": str(log)}) + "\n")
    return component


def recorded(logs: Path) -> list[Component]:
    """The programs that an earlier process started with these logs, in their order."""
    record = logs / "processes.jsonl"
    if not record.exists():
        return []
    entries = (json.loads(line) for line in record.read_text().splitlines())
    return [Component(entry["name"], entry["pid"], entry["born"], Path(entry["log"])) for entry in entries]


def tails(components: Iterable[Component], lines: int = 25) -> str:
    """The ends of all logs, those of dead programs marked."""
    return "\n".join(
        component.tail(lines) + ("" if component.running() else f"\n({component.name} is not running)")
        for component in components
    )


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Port numbers that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((host, 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _birth(pid: int) -> str:
    """The kernel's start time of a process, which tells it from a later one of the same number; "" when gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
