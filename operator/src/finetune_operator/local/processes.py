"""Child processes that end with their parent, and that can be found again if they did not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# Linux tells a process when its parent is gone (prctl PR_SET_PDEATHSIG = 1), however that ended: SIGTERM lets a
# training save its checkpoint. It is asked for by the child itself, because code between fork and exec of a
# program with threads may hang. The setting survives exec.
TETHER = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
if os.getppid() != int(sys.argv[1]): sys.exit(75)
os.execvp(sys.argv[2], sys.argv[2:])
"""
POLL_SECONDS = 0.1
# PyTorch's threads wait for each other in a busy loop. Beside other work on the same cores that made a training step
# of a small model ten times slower (5.8 s in place of 0.5 s on two cores with a load of 8); asleep they cost nothing.
POLITE = {"OMP_WAIT_POLICY": "PASSIVE"}


def tethered(arguments: Sequence[str]) -> list[str]:
    """The command, such that it ends with this process."""
    if sys.platform != "linux":
        return list(arguments)
    return [sys.executable, "-S", "-c", TETHER, str(os.getpid()), *arguments]


def spawn(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start in a process group of its own, so that Ctrl-C in the terminal reaches only us. Output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            tethered(arguments),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the process, or for SIGKILL its whole group."""
    with suppress(ProcessLookupError):
        if number is signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def end(process: subprocess.Popen[bytes], grace_seconds: float) -> int:
    """SIGTERM, wait, SIGKILL. Returns the exit code."""
    send(process, signal.SIGTERM)
    try:
        return process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        send(process, signal.SIGKILL)
        return process.wait()


def end_stray(pid: int, marker: str, grace_seconds: float) -> bool:
    """End a process of an earlier parent, known by a word of its command line. Returns whether it was there."""
    if marker not in _command_line(pid):
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while marker in _command_line(pid):
        if time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            break
        time.sleep(POLL_SECONDS)
    return True


def _command_line(pid: int) -> str:
    """What the process was started with; empty when it is gone or a zombie."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    if Path("/proc").is_dir():
        return ""
    found = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True)
    return found.stdout
