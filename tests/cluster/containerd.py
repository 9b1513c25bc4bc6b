"""containerd with everything under one folder, so that removing the folder removes it all."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from tests.cluster import debian, network
from tests.cluster.errors import CommandFailed, ComponentDied
from tests.cluster.processes import Component, run, say, start, wait_until

PAUSE_IMAGE = "localhost/pause:1"
CONFIGURATION = """version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Containers (and CI machines that are containers) may not lower a process's score.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}/cni"
"""


class Containerd:
    """A container runtime of the test node's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def socket(self) -> Path:
        """Where the kubelet finds it."""
        return self.folder / "containerd.sock"

    def start(self, logs: Path, pods: tuple[str, str], *, die_with_parent: bool) -> Component:
        """Writes the configuration, starts it, and returns when it answers. Pods get addresses from `pods`, the first
        and the last one."""
        (self.folder / "cni").mkdir(parents=True, exist_ok=True)
        settings = CONFIGURATION.format(folder=self.folder, pause=PAUSE_IMAGE, plugins=debian.cni_plugins())
        (self.folder / "config.toml").write_text(settings)
        (self.folder / "cni" / "10-bridge.conflist").write_text(network.cni_configuration(self.folder / "ipam", *pods))
        command = ["containerd", "-c", str(self.folder / "config.toml")]
        component = start(self.folder.name, command, logs, die_with_parent=die_with_parent)

        def answers() -> str:
            if not component.running():
                raise ComponentDied(component.tail())
            return self.ctr("version", timeout=5)

        wait_until(answers, 60, "containerd", component.tail)
        return component

    def ctr(self, *args: str | Path, timeout: float = 600) -> str:
        """containerd's own command line, in the namespace that the kubelet uses."""
        return run("ctr", "--address", self.socket, "--namespace", "k8s.io", *args, timeout=timeout)

    def load(self, archive: Path) -> None:
        """Imports a docker-archive."""
        say(f"importing {archive.name} ({archive.stat().st_size / 1e6:.0f} MB)")
        self.ctr("images", "import", archive)

    def remove_pods(self) -> None:
        """Ends every container; their shims end with them."""
        try:
            for task in self.ctr("tasks", "list", "-q", timeout=20).split():
                self.ctr("tasks", "delete", "--force", task, timeout=20)
            for container in self.ctr("containers", "list", "-q", timeout=20).split():
                self.ctr("containers", "delete", container, timeout=20)
        except CommandFailed as error:
            say(f"containers are ended the hard way, because: {error}")

    def remove_remains(self) -> None:
        """Ends processes that still belong to this folder, unmounts what is below it, and deletes it."""
        for pid in self._pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self._pids(), 20, "end of containers' processes")
        unmount_below(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _pids(self) -> list[int]:
        """Shims carry the socket's path in their arguments: that they are ours is certain."""
        marker = str(self.socket).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if marker in words and b"containerd-shim" in words[0]:
                    found.append(int(entry.name))
        return found


def unmount_below(folder: Path) -> None:
    """Unmounts everything below a folder and on it, the deepest first."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in sorted((each for each in points if f"{each}/".startswith(f"{folder}/")), reverse=True):
        run("umount", "--lazy", point.replace("\\040", " "))
