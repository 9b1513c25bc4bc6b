"""System programs: found, or installed from Debian's packages when this is root on Debian."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.cluster.errors import CommandFailed, Unavailable
from tests.cluster.processes import run, say

# Program -> the Debian package that has it.
NODE_PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
IMAGE_PROGRAMS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "runc": "runc"}


def require_root(what: str) -> None:
    """Raises Unavailable when this process is not root."""
    if os.geteuid() != 0:
        raise Unavailable(
            f"{what} needs root (run it with sudo, or in a privileged container), or set KUBECONFIG_E2E to a "
            "kubeconfig of a cluster of your own (docs/development.md says what it must have)"
        )


def require_programs(programs: dict[str, str]) -> None:
    """Installs the packages of missing programs; raises Unavailable, with their names, when it cannot."""
    missing = sorted({package for program, package in programs.items() if not _present(program)})
    if not missing:
        return
    names = " ".join(missing)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Unavailable(f"missing programs; install them: `sudo apt-get install {names}` (or your system's like)")
    say(f"installing Debian packages: {names} (about 20 seconds)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        run("apt-get", "update", "-q", timeout=300, env=environment)
        run("apt-get", "install", "-q", "-y", "--no-install-recommends", *missing, timeout=600, env=environment)
    except CommandFailed as error:
        raise Unavailable(f"could not install {names}: {error}") from error


def cni_plugins() -> Path:
    """The folder with the bridge plugin."""
    return next(path for path in (Path("/usr/lib/cni"), Path("/opt/cni/bin")) if (path / "bridge").exists())


def _present(program: str) -> bool:
    if program.startswith("/"):
        return Path(program).exists() or (Path("/opt/cni/bin") / Path(program).name).exists()
    return shutil.which(program) is not None
