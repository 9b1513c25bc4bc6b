"""The test cluster by hand.

python -m tests.cluster build     compile what is missing (Go; about 10 minutes the first time on 2 cores)
python -m tests.cluster assets    compile what `make test` needs of these, as far as this machine can
python -m tests.cluster images    build the product's images (root)
python -m tests.cluster up        a one-node Kubernetes that stays, with the images loaded (root)
python -m tests.cluster env       print the line that points kubectl to it:  eval "$(python -m tests.cluster env)"
python -m tests.cluster down      end it and remove everything, also what a killed test run left
"""

from __future__ import annotations

import argparse
import sys

from tests.cluster import binaries, images
from tests.cluster.errors import ClusterError, Unavailable
from tests.cluster.node import clear_remains, node_folder, running, start_node
from tests.cluster.processes import say


def build() -> None:
    """Compiles what is missing."""
    for name, path in binaries.everything().items():
        print(f"{name}\t{path}")


def assets() -> None:
    """Compiles what tests without a node need. What cannot be had is named; the tests that need it say the same."""
    for make in (binaries.kube_assets, binaries.helm, binaries.versitygw, binaries.kstatus, binaries.promtool):
        try:
            make()
        except Unavailable as error:
            say(str(error))


def build_images() -> None:
    """Builds what is missing of the images."""
    for image in images.build_all():
        print(f"{image.name}\t{image.megabytes:.0f} MB\t{image.archive}")


def up() -> None:
    """Starts a node that outlives this process, and loads the images into it."""
    if running():
        say("it is running already; `python -m tests.cluster down` ends it")
        return
    node = start_node(die_with_parent=False)
    for image in (*images.build_all(), images.python_image()):
        node.load_image(image.archive)
    say("ready; now in your shell:")
    env()


def env() -> None:
    """Prints what a shell needs to talk to the node."""
    if not running():
        raise Unavailable("no cluster is running; start it with `python -m tests.cluster up`")
    kubeconfig = node_folder() / "kubernetes" / "pki" / "admin.kubeconfig"
    print(f"export KUBECONFIG={kubeconfig} PATH={binaries.kube_assets()}:{binaries.helm().parent}:$PATH")


def down() -> None:
    """Ends the node; the lock keeps this from ending one that a test run is using."""
    if running() and not binaries.unlocked("node"):
        raise Unavailable("a test run is using the node; end that first")
    clear_remains()


def main(arguments: list[str]) -> int:
    """Runs one command; returns 0, or 1 with the reason on the error stream."""
    commands = {"build": build, "assets": assets, "images": build_images, "up": up, "env": env, "down": down}
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=commands)
    try:
        commands[parser.parse_args(arguments).command]()
    except ClusterError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
