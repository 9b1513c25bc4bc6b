"""One node, two images and one Helm release for all end-to-end tests; a namespace of its own for each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import binaries, images, volumes
from tests.cluster.errors import Unavailable
from tests.cluster.node import Node, start_node
from tests.e2e.manifests import SHARED_TRAVEL, TRAVEL
from tests.e2e.product import ROOT, Product, Tenant


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A real one-node Kubernetes with both images loaded."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled():
            built = images.build_all()
            node = start_node()
    except Unavailable as error:
        if os.environ.get("FINETUNE_REQUIRE_CLUSTER") == "1":
            raise
        pytest.skip(str(error))
    for image in built:
        node.load_image(image.archive)
    yield node
    node.stop()


@pytest.fixture(scope="session")
def product(node: Node) -> Iterator[Product]:
    """The operator, installed by helm from the chart."""
    repository = {name: images.reference(name).rpartition(":") for name in ("operator", "trainer")}
    values = {
        "image.repository": repository["operator"][0],
        "image.tag": repository["operator"][2],
        "trainer.image.repository": repository["trainer"][0],
        "trainer.image.tag": repository["trainer"][2],
        "replicas": "1",
    }
    node.kubectl.make_namespace("finetune-system")
    product = Product(node.kubectl, binaries.helm(), values)
    product.install()
    yield product
    if product.installed:
        product.uninstall()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base model (briefly trained) and the travel data, as a PVC would hold them."""
    folder = tmp_path_factory.mktemp("sources")
    script = ROOT / "examples" / "tiny-base" / "tiny_base.py"
    subprocess.run([sys.executable, str(script), str(folder / "tiny-base"), "--steps", "60"], check=True, timeout=300)
    (folder / "travel").mkdir()
    for name in ("train.jsonl", "validation.jsonl"):
        shutil.copy(TRAVEL / name, folder / "travel" / name)
    if SHARED_TRAVEL.exists():
        shutil.copy(SHARED_TRAVEL, folder / "travel" / "shared.jsonl")
    return folder


@pytest.fixture
def tenant(request: pytest.FixtureRequest, node: Node, inputs: Path, tmp_path: Path) -> Iterator[Tenant]:
    """A namespace for one test, with its two claims bound. Removed at the end, and its children with it."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")[:40].strip("-")
    node.kubectl.make_namespace(name)
    sources, models = tmp_path / "sources", tmp_path / "models"
    shutil.copytree(inputs, sources)
    models.mkdir()
    volumes.bind(node.kubectl, namespace=name, claim="models", folder=models)
    volumes.bind(node.kubectl, namespace=name, claim="sources", folder=sources)
    yield Tenant(node.kubectl, name, models, sources)
    node.kubectl("delete", "namespace", name, "--wait=false")
