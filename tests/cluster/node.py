"""A whole Kubernetes node on this machine, from nothing to Ready in 5 seconds; needs root.

What it makes outside its folder (a bridge, iptables rules, two kernel settings) is undone by stop(). One node a
machine at a time: a second process waits for the first. What a killed test run left is cleared at the next start.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster import binaries, debian, network
from tests.cluster.archive import docker_archive
from tests.cluster.containerd import PAUSE_IMAGE, Containerd, unmount_below
from tests.cluster.control_plane import Address, ControlPlane, start_control_plane
from tests.cluster.credentials import User
from tests.cluster.errors import ComponentDied, Unavailable
from tests.cluster.kubectl import Kubectl
from tests.cluster.kubelet import Host, start_kubelet
from tests.cluster.processes import Component, recorded, run, say, start, tails, wait_until
from tests.cluster.volumes import offer_default_class

NODE = "node-1"
SCHEDULER = User("kube-scheduler", user="system:kube-scheduler")
PROXY = User("kube-proxy", user="system:kube-proxy")
FIRST = Host(NODE, "", 10250, (network.FIRST_POD, network.LAST_POD))
# Not there unless a test starts it; it counts what a pod writes to its scratch space, and evicts one that writes too
# much.
SECOND = Host("node-2", "-2", 10260, network.OTHERS, (("localStorageCapacityIsolation", True),))
HOSTS = (FIRST, SECOND)
READY_SECONDS = 120
KEPT = "kept-by-hand"


@dataclass
class Node:
    """A running node with its control plane. `kubectl` is the administrator's."""

    folder: Path
    plane: ControlPlane
    containerd: Containerd
    lock: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    loaded: set[Path] = field(default_factory=set)

    @property
    def kubectl(self) -> Kubectl:
        """kubectl as the administrator."""
        return self.plane.kubectl

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.plane.kubeconfig

    def load_image(self, archive: Path) -> None:
        """Makes the images of a docker-archive known to the kubelet (imagePullPolicy: IfNotPresent), once."""
        if archive not in self.loaded:
            self.containerd.load(archive)
            self.loaded.add(archive)

    def set_gpus(self, count: int) -> None:
        """Pretends that the node has this many GPUs: the scheduler counts them and pods with them run."""
        amount = {"nvidia.com/gpu": str(count)}
        patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
        self.kubectl("patch", "node", NODE, "--subresource=status", "--type=merge", "-p", patch)

    def stop(self) -> None:
        """Ends and removes everything, and lets the next process have the machine."""
        try:
            _stop_node_programs(self.plane.components)
            self.containerd.remove_pods()
            self.plane.stop()
            _remove_remains(self.folder)
        finally:
            self.lock.close()


def node_folder() -> Path:
    """Where the node lives: always the same, so that what a killed run left can be found."""
    return binaries.cache_root() / "node"


def start_node(*, die_with_parent: bool = True) -> Node:
    """Starts the node and returns when it is Ready and cluster DNS answers.

    Raises Unavailable without root, without Go or without the programs, and WaitTimeout with the logs' ends.
    """
    debian.require_root("a Kubernetes node")
    debian.require_programs(debian.NODE_PROGRAMS)
    assets, coredns, pause = binaries.kube_assets(), binaries.coredns(), binaries.pause()
    lock = contextlib.ExitStack()
    lock.enter_context(binaries.locked("node"))
    if kept_by_hand():
        lock.close()
        raise Unavailable("a node that was started by hand is running; end it: `python -m tests.cluster down`")
    try:
        clear_remains()
        network.check_free()
        folder = node_folder()
        folder.mkdir(parents=True)
        if not die_with_parent:
            (folder / KEPT).touch()
        network.make_bridge(folder / "settings-before.json")
        address = Address(network.GATEWAY, "0.0.0.0", for_pods=True)
        plane = start_control_plane(
            folder / "kubernetes",
            controller_manager=True,
            address=address,
            users=(SCHEDULER, PROXY, FIRST.user, SECOND.user),
            die_with_parent=die_with_parent,
            assets=assets,
        )
        node = Node(folder, plane, FIRST.containerd(folder), lock)
        _start_programs(node, coredns, pause, die_with_parent=die_with_parent)
    except BaseException:
        clear_remains()
        lock.close()
        raise
    return node


def running() -> bool:
    """Whether the node's API server is alive."""
    log = node_folder() / "kubernetes" / "log"
    return any(each.name == "kube-apiserver" and each.running() for each in recorded(log))


def kept_by_hand() -> bool:
    """Whether a developer's own node runs, which tests must not end."""
    return running() and (node_folder() / KEPT).exists()


def clear_remains() -> None:
    """Removes what is left of a node whose owner is gone; does nothing when there is none."""
    folder = node_folder()
    if not folder.exists():
        return
    components = recorded(folder / "kubernetes" / "log")
    _stop_node_programs(components)
    for containerd in (host.containerd(folder) for host in HOSTS):
        if any(component.name == containerd.folder.name and component.running() for component in components):
            containerd.remove_pods()
    for component in components:
        component.end()
    _remove_remains(folder)


def _start_programs(node: Node, coredns: Path, pause: Path, *, die_with_parent: bool) -> None:
    plane, kubectl = node.plane, node.kubectl
    kubectl("create", "clusterrolebinding", "proxy", "--clusterrole=system:node-proxier", f"--user={PROXY.username}")
    plane.components.append(node.containerd.start(plane.logs, FIRST.pods, die_with_parent=die_with_parent))
    node.containerd.load(_pause_archive(node.folder, pause))
    plane.start_component(
        "kube-scheduler",
        f"--kubeconfig={plane.kubeconfig_of(SCHEDULER.name)}",
        *("--leader-elect=false", "--secure-port=0"),
        die_with_parent=die_with_parent,
    )
    start_kubelet(FIRST, plane, node.folder, die_with_parent=die_with_parent)
    plane.start_component(
        "kube-proxy",
        f"--kubeconfig={plane.kubeconfig_of(PROXY.name)}",
        *(f"--cluster-cidr={network.POD_RANGE}", "--proxy-mode=iptables", f"--hostname-override={NODE}"),
        # 0 leaves the kernel's own values: a container may not change them.
        *("--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"),
        "--conntrack-tcp-timeout-close-wait=0",
        die_with_parent=die_with_parent,
    )
    plane.components.append(_start_dns(node, coredns, die_with_parent=die_with_parent))
    wait_until(lambda: _ready(node), READY_SECONDS, "a Ready node", lambda: tails(plane.components), interval=0.2)
    offer_default_class(kubectl, node.folder / "volumes")


def _start_dns(node: Node, coredns: Path, *, die_with_parent: bool) -> Component:
    resolv = Path("/etc/resolv.conf")
    outside = "  forward . /etc/resolv.conf\n" if resolv.exists() and "nameserver" in resolv.read_text() else ""
    corefile = node.folder / "Corefile"
    corefile.write_text(
        f".:53 {{\n  bind {network.GATEWAY}\n  errors\n  kubernetes cluster.local in-addr.arpa {{\n"
        f"    kubeconfig {node.kubeconfig}\n  }}\n{outside}  cache 5\n}}\n"
    )
    return start("coredns", [coredns, "-conf", corefile], node.plane.logs, die_with_parent=die_with_parent)


def _ready(node: Node) -> bool:
    dead = [component for component in node.plane.components if not component.running()]
    if dead:
        raise ComponentDied(tails(dead))
    return is_ready(node.plane, NODE)


def is_ready(plane: ControlPlane, name: str) -> bool:
    """Whether the cluster has the node as Ready."""
    found = plane.kubectl.get("node", name)
    conditions = found["status"].get("conditions", []) if found else []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _pause_archive(folder: Path, program: Path) -> Path:
    """The pause image: one static program and nothing else, made without any image tool."""
    return docker_archive(folder / "pause.tar", PAUSE_IMAGE, {"pause": program.read_bytes()}, ["/pause"])


def _stop_node_programs(components: list[Component]) -> None:
    for component in components:
        if component.name in (
            *(host.user.name for host in HOSTS),
            "kube-proxy",
            "coredns",
            "kube-scheduler",
            "kube-controller-manager",
        ):
            component.end(signal.SIGKILL)


def _remove_remains(folder: Path) -> None:
    for host in HOSTS:
        host.containerd(folder).remove_remains()
    network.undo(folder / "settings-before.json")
    unmount_below(folder)
    for link in Path("/var/log/containers").glob("*.log"):  # the kubelet's links to the logs of our pods
        if link.is_symlink() and str(link.readlink()).startswith(f"{folder}/"):
            link.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        say(f"could not remove all of {folder}: {run('find', folder, '-maxdepth', '3')[:500]}")
