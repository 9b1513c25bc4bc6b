"""A second node on the same machine, which a test may lose: a kubelet and a container runtime of its own, with its own
pods, on the first one's bridge, name server and service rules."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.containerd import Containerd, unmount_below
from tests.cluster.kubelet import start_kubelet
from tests.cluster.node import SECOND, Node, is_ready
from tests.cluster.processes import tails, wait_until

READY_SECONDS = 90
NAME = SECOND.name
KUBELET = SECOND.user.name


@dataclass(frozen=True)
class SecondNode:
    """Running once `start` came back."""

    node: Node
    containerd: Containerd

    @classmethod
    def start(cls, node: Node, *archives: Path) -> SecondNode:
        """Starts it beside the first one, with these images, and returns when it is Ready."""
        second = cls(node, SECOND.containerd(node.folder))
        plane = node.plane
        plane.components.append(second.containerd.start(plane.logs, SECOND.pods, die_with_parent=True))
        for archive in (node.folder / "pause.tar", *archives):
            second.containerd.load(archive)
        start_kubelet(SECOND, plane, node.folder, die_with_parent=True)
        second.wait(ready=True)
        return second

    def lose(self) -> None:
        """As if its power went: its kubelet says nothing any more, and every process of its pods is gone at once."""
        self.node.plane.kill(KUBELET)
        for line in self.containerd.ctr("tasks", "list", timeout=20).splitlines()[1:]:
            with suppress(ProcessLookupError):
                os.kill(int(line.split()[1]), signal.SIGKILL)

    def come_back(self) -> None:
        """Its kubelet starts again and finds what became of its pods; waits until the node is Ready."""
        self.node.plane.revive(KUBELET)
        self.wait(ready=True)

    def wait(self, *, ready: bool, seconds: float = READY_SECONDS) -> None:
        """Until the cluster has it so."""
        plane, what = self.node.plane, f"{NAME} {'Ready' if ready else 'not Ready'}"
        explain = lambda: tails(plane.components)  # noqa: E731
        wait_until(lambda: is_ready(plane, NAME) is ready, seconds, what, explain, interval=0.5)

    def stop(self) -> None:
        """Ends and removes it, and its Node object."""
        plane = self.node.plane
        mine = [each for each in plane.components if each.name in (KUBELET, self.containerd.folder.name)]
        self.node.kubectl("delete", "node", NAME, "--ignore-not-found")
        for component in mine[1:]:
            component.end(signal.SIGKILL)
        self.containerd.remove_pods()
        mine[0].end(signal.SIGKILL)
        for component in mine:
            plane.components.remove(component)
        self.containerd.remove_remains()
        unmount_below(self.node.folder / KUBELET)
        shutil.rmtree(self.node.folder / KUBELET, ignore_errors=True)
