"""The real Kueue on the built-in node: its own program and its own Helm chart."""

from __future__ import annotations

from tests.cluster import binaries
from tests.cluster.archive import docker_archive
from tests.cluster.errors import CommandFailed
from tests.cluster.kubectl import Kubectl
from tests.cluster.node import Node
from tests.cluster.processes import run

IMAGE, TAG = "localhost/kueue", "test"
NAMESPACE = "kueue-system"


def install_kueue(node: Node) -> None:
    """Returns when its webhooks answer: a Job that comes before them would be refused."""
    made = binaries.kueue()
    archive = node.folder / "kueue.tar"
    docker_archive(archive, f"{IMAGE}:{TAG}", {"manager": (made / "manager").read_bytes()}, ["/manager"])
    node.load_image(archive)
    archive.unlink()
    manager = "controllerManager.manager"
    values = {
        f"{manager}.image.repository": IMAGE,
        f"{manager}.image.tag": TAG,
        f"{manager}.image.pullPolicy": "IfNotPresent",
        f"{manager}.podSecurityContext.runAsUser": "65532",
        f"{manager}.resources.requests.cpu": "50m",
    }
    flags = [flag for key, value in values.items() for flag in ("--set", f"{key}={value}")]
    environment = node.kubectl.environment()
    command = [binaries.helm(), "install", "kueue", made / "chart", "--namespace", NAMESPACE, "--create-namespace"]
    run(*command, *flags, env=environment, timeout=240)
    node.kubectl.wait_until(lambda: _answers(node.kubectl), 240, "Kueue's webhooks", NAMESPACE)


def _answers(kubectl: Kubectl) -> bool:
    """Whether it takes a flavor, which its webhook looks at."""
    flavor = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "any"}}
    # What every node has: the flavor must choose nodes, so that it is seen what Kueue writes into a Job.
    spec = {"nodeLabels": {"kubernetes.io/os": "linux"}}
    try:
        kubectl.apply({**flavor, "spec": spec})
    except CommandFailed:
        return False
    return True
