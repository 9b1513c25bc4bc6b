"""What the README and docs/ tell to type on a cluster, typed: word for word, in the order of the pages.

`helm install` is how the fixture `product` installs the operator for all tests. What differs from a reader's cluster
is in files, not in words: images.yaml names the images of this checkout, and job.yaml a model that is trained in a
minute (fixture `checkout`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import documented
from tests.cluster.environment import Cluster
from tests.cluster.processes import wait_until
from tests.documented import CLUSTER, Command
from tests.e2e.product import NAMESPACE, Product, Tenant

TRAINING_SECONDS = 420
# What must be in the output of a command that begins so; of several the longest counts.
TELLS = {
    "kubectl apply": "finetunejob.finetune-operator.io/travel-assistant created",
    "kubectl get finetunejobs": "travel-assistant",
    "kubectl get finetunejobs --watch": "True",
    "kubectl get jobs,pods --selector finetune-operator.io/stage=Poll": "",  # no job of a reader's looks yet
    "kubectl port-forward": "Forwarding from 127.0.0.1:8000",
    "curl -s localhost:8000/v1/chat/completions": '"finish_reason"',
    "kubectl explain": "baseModel",
    "kubectl describe finetunejob": "Promoted",
    "kubectl exec deployment/NAME-serve -- finetune-trainer report >": "",
    "kubectl exec deployment/NAME-serve -- finetune-trainer report --card": "library_name: ",
    "kubectl -n NAMESPACE get lease": "finetune-operator",
    "kubectl -n finetune-system logs": "/travel-assistant",
    "kubectl logs": "",
}


@dataclass
class Terminal:
    """A shell in the checkout, whose kubectl means the tenant's namespace."""

    folder: Path
    environment: Mapping[str, str]

    def type(self, command: Command) -> str:
        """What it prints. It must end well."""
        done = subprocess.run(
            ["bash", "-c", command.text],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command.page}: `{command.text}`: {done.stdout}{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def until(self, command: Command, words: str, seconds: float) -> Iterator[str]:
        """Runs a command that goes on until it is stopped; enters the block when it has printed these words."""
        log = self.folder / "terminal.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-c", command.text], cwd=self.folder, env=self.environment, stdout=output, stderr=output,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        try:
            wait_until(
                lambda: words in log.read_text() or process.poll() is not None, seconds, command.text, log.read_text
            )
            assert words in log.read_text(), f"{command.page}: `{command.text}` ended:\n{log.read_text()}"
            yield log.read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@pytest.fixture
def tenant(product: Product, node_cluster: Cluster, inputs: Path, tmp_path: Path) -> Iterator[Tenant]:
    """A namespace like a reader's: nothing is in it but a claim with the model that job.yaml names here."""
    name = "documented"
    node_cluster.kubectl.make_namespace(name)
    sources = tmp_path / "sources"
    shutil.copytree(inputs, sources)
    node_cluster.claim(sources, name, "sources")
    yield Tenant(node_cluster, name)
    node_cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def terminal(product: Product, tenant: Tenant, tmp_path: Path) -> Terminal:
    kubeconfig = tmp_path / "kubeconfig"
    shutil.copy(product.kubectl.kubeconfig, kubeconfig)
    environment = product.environment(kubeconfig)
    words = ("config", "set-context", "--current", f"--namespace={tenant.name}")
    subprocess.run([product.kubectl.binary, *words], env=environment, check=True, capture_output=True)
    return Terminal(product.checkout, environment)


def test_documented_commands_work_in_their_order(tenant: Tenant, terminal: Terminal) -> None:
    commands = [command for command in documented.commands(CLUSTER) if not command.text.startswith("helm install")]
    with contextlib.ExitStack() as background:
        for command in commands:
            meant = command.meant(NAME="travel-assistant", NAMESPACE=NAMESPACE)
            if "--watch" in command.text:
                with terminal.until(meant, expected(command), TRAINING_SECONDS) as output:
                    pass
            elif "port-forward" in command.text:
                output = background.enter_context(terminal.until(meant, expected(command), 60))
            else:
                output = terminal.type(meant)
            assert expected(command) in output, f"{command.page}: `{command.text}`:\n{output}"
            assert not documented.lacks(output, command), output


def expected(command: Command) -> str:
    begins = [words for words in TELLS if command.text.startswith(words)]
    assert begins, f"{command.page}: `{command.text}`: say in TELLS what it prints"
    return TELLS[max(begins, key=len)]
