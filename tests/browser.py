"""A page in a real browser, where there is one: nothing here installs it (Debian: chromium)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def chromium() -> str:
    """Its path; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on this machine; on Debian: apt-get install chromium")
    return found


def run(page: Path, *flags: str) -> str:
    """What the browser prints of the page, without a network, a profile or a screen."""
    command = [
        chromium(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--proxy-server=127.0.0.1:9",  # nothing listens there: what the page would fetch fails
        f"--user-data-dir={page.parent / 'profile'}",
        *flags,
        page.as_uri(),
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout


def dom(page: Path) -> str:
    """The document after everything in it has had its chance to run."""
    return run(page, "--dump-dom", "--virtual-time-budget=2000")


def picture(page: Path, target: Path) -> bytes:
    """A PNG of the page's top."""
    run(page, "--window-size=1000,1400", "--hide-scrollbars", f"--screenshot={target}")
    return target.read_bytes()
