"""One node, two images and one Helm release for all end-to-end tests; a namespace of its own for each."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import binaries
from tests.cluster.environment import Cluster
from tests.e2e.manifests import SHARED_TRAVEL, TRAVEL
from tests.e2e.product import ROOT, Product, Tenant


@pytest.fixture(scope="session")
def product(node_cluster: Cluster, operator_image: str, trainer_image: str) -> Iterator[Product]:
    """The operator, installed by helm from the chart."""
    operator, trainer = operator_image.rpartition(":"), trainer_image.rpartition(":")
    values = {
        "image.repository": operator[0],
        "image.tag": operator[2],
        "trainer.image.repository": trainer[0],
        "trainer.image.tag": trainer[2],
        "replicas": "1",
    }
    node_cluster.kubectl.make_namespace("finetune-system")
    product = Product(node_cluster.kubectl, binaries.helm(), values)
    product.install()
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
    shutil.copytree(base, folder / "tiny-base")
    (folder / "travel").mkdir()
    for name in ("train.jsonl", "validation.jsonl"):
        shutil.copy(TRAVEL / name, folder / "travel" / name)
    if SHARED_TRAVEL.exists():
        shutil.copy(SHARED_TRAVEL, folder / "travel" / "shared.jsonl")
    return folder


@pytest.fixture
def tenant(request: pytest.FixtureRequest, node_cluster: Cluster, inputs: Path, tmp_path: Path) -> Iterator[Tenant]:
    """A namespace for one test, with its two claims bound. Removed at the end, and its children with it."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")[:40].strip("-")
    node_cluster.kubectl.make_namespace(name)
    sources, models = tmp_path / "sources", tmp_path / "models"
    shutil.copytree(inputs, sources)
    models.mkdir()
    node_cluster.claim(models, name, "models")
    node_cluster.claim(sources, name, "sources")
    yield Tenant(node_cluster.kubectl, name, models, sources)
    node_cluster.kubectl("delete", "namespace", name, "--wait=false")
