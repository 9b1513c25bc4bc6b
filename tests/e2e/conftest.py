"""One node, two images and one Helm release for all end-to-end tests; a namespace of its own for each."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import binaries
from tests.cluster.environment import Cluster
from tests.documented import ROOT
from tests.e2e.manifests import TICKET_WORDS, travel_job, write_data
from tests.e2e.product import NAMESPACE, VALUES, Product, Tenant, tenancy
from tests.tiny_encoders import make_tiny_encoder

README_MODEL = "smollm2-135m-instruct"  # a tiny model under the name that the README shows


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails tells the state of its namespace and of the operator: jobs, pods, events, logs."""
    report = yield
    used: dict[str, Any] = getattr(item, "funcargs", {})
    cluster, tenant = used.get("node_cluster"), used.get("tenant")
    if report.when == "call" and report.failed and (cluster or tenant):
        kubectl = (cluster or tenant.cluster).kubectl
        namespaces = {tenant.name if tenant else used.get("namespace"), NAMESPACE if "product" in used else None}
        for namespace in sorted(filter(None, namespaces)):
            report.sections.append((f"namespace {namespace}", kubectl.explain(namespace)))
    return report


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory, operator_image: str, trainer_image: str) -> Path:
    """The checkout as a reader of the README has it: with a values file that names the images, and a job whose model
    these machines can reach and train in a minute."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("charts", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    operator, trainer = operator_image.rpartition(":"), trainer_image.rpartition(":")
    values = {
        "replicas": 1,
        "settleSeconds": 5,  # tests edit one job after the other
        "image": {"repository": operator[0], "tag": operator[2]},
        "trainer": {"image": {"repository": trainer[0], "tag": trainer[2]}},
    }
    (folder / VALUES).write_text(json.dumps(values))
    path = folder / "examples" / "travel" / "job.yaml"
    job, small = yaml.safe_load(path.read_text()), travel_job("small")["spec"]
    replaced = ("method", "hyperparameters", "compute", "serving")
    job["spec"] |= {name: small[name] for name in replaced} | {"baseModel": {"source": f"pvc://sources/{README_MODEL}"}}
    path.write_text(yaml.safe_dump(job))
    return folder


@pytest.fixture(scope="session")
def product(node_cluster: Cluster, checkout: Path) -> Iterator[Product]:
    """The operator, installed by helm from the chart, with the command that the README says."""
    node_cluster.kubectl.make_namespace(NAMESPACE)
    own_helm = None if node_cluster.is_local else shutil.which("helm")
    product = Product(node_cluster.kubectl, Path(own_helm) if own_helm else binaries.helm(), checkout)
    product.install_as_documented()
    yield product
    if product.installed:
        product.uninstall()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base model (briefly trained) and the travel data, as a PVC would hold them."""
    folder = tmp_path_factory.mktemp("sources")
    script = ROOT / "examples" / "tiny-base" / "tiny_base.py"
    base = binaries.cache_root() / "tiny-base-200"  # made once a machine; the script checks that it is complete
    subprocess.run([sys.executable, str(script), str(base), "--steps", "200"], check=True, timeout=600)
    for name in ("tiny-base", README_MODEL):
        shutil.copytree(base, folder / name)
    make_tiny_encoder(folder / "tiny-encoder", texts=TICKET_WORDS)
    write_data(folder / "travel")
    return folder


@pytest.fixture
def tenant(request: pytest.FixtureRequest, node_cluster: Cluster, inputs: Path, tmp_path: Path) -> Iterator[Tenant]:
    """A namespace for one test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")[:40].strip("-")
    with tenancy(node_cluster, name, inputs, tmp_path) as tenant:
        yield tenant
