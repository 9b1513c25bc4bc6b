"""One kubelet with its container runtime: what makes a machine a node. Several can be on one machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import binaries, network
from tests.cluster.containerd import Containerd
from tests.cluster.control_plane import ControlPlane
from tests.cluster.credentials import User
from tests.cluster.processes import Component, start


@dataclass(frozen=True)
class Host:
    """What tells the nodes of one machine apart: the node's name, what its programs and its folder have after their
    names, the kubelet's port, and the first and the last address of its pods. `settings` are the kubelet's own."""

    name: str
    suffix: str
    port: int
    pods: tuple[str, str]
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def user(self) -> User:
        """Its kubelet, as the API server knows it."""
        return User(f"kubelet{self.suffix}", ("system:nodes",), user=f"system:node:{self.name}")

    def containerd(self, folder: Path) -> Containerd:
        """Its container runtime, below the folder of all nodes."""
        return Containerd(folder / f"containerd{self.suffix}")


def start_kubelet(host: Host, plane: ControlPlane, nodes: Path, *, die_with_parent: bool) -> Component:
    """Starts it, with what it writes below the folder of all nodes; not waited for."""
    folder = nodes / host.user.name
    folder.mkdir()
    settings = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "port": host.port,
        "healthzPort": 0,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        # Works with cgroup v1 and v2, with swap, and in a container that may not write the root cgroup.
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "containerRuntimeEndpoint": f"unix://{host.containerd(nodes).socket}",
        "resolvConf": "",
        "clusterDNS": [network.GATEWAY],
        "clusterDomain": "cluster.local",
        "volumePluginDir": str(folder / "plugins"),
        "podLogsDir": str(folder / "pod-logs"),
        # A full disk of the developer's machine is not what these tests are about.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        **dict(host.settings),
    }
    configuration = folder.with_suffix(".json")
    configuration.write_text(json.dumps(settings))
    command: list[str | Path] = [
        binaries.kube_assets() / "kubelet",
        f"--config={configuration}",
        f"--kubeconfig={plane.kubeconfig_of(host.user.name)}",
        *(f"--hostname-override={host.name}", f"--node-ip={network.GATEWAY}"),
        *(f"--root-dir={folder}", f"--cert-dir={folder / 'pki'}"),
    ]
    component = start(host.user.name, command, plane.logs, die_with_parent=die_with_parent, cwd=plane.folder)
    plane.components.append(component)
    return component
