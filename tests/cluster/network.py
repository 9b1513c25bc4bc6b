"""The node's network: a bridge, two kernel settings, and the rules that others add; all of it undone at the end."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from tests.cluster.errors import CommandFailed, Unavailable
from tests.cluster.processes import run

BRIDGE = "ftjtest0"
# A range that home routers, clouds, docker (172.17) and podman (10.88) do not use by default.
GATEWAY = "10.231.0.1"
POD_RANGE = "10.231.0.0/16"
FIRST_POD, LAST_POD = "10.231.1.1", "10.231.127.254"
OTHERS = ("10.231.128.1", "10.231.255.254")  # of the pods of a second node
CNI_NAME = "finetune-test"
SETTINGS = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables")
# Chains of kube-proxy, of kubelet and of the CNI plugins.
OUR_CHAINS = re.compile(r"\b(KUBE-|CNI-)")


def check_free() -> None:
    """Raises Unavailable when this machine is a Kubernetes node already: two kube-proxies would fight."""
    if "KUBE-SERVICES" in _rules("iptables-save"):
        raise Unavailable(
            "this machine already has a Kubernetes node's iptables rules; use that cluster with KUBECONFIG_E2E, "
            "or clear what a broken run left: `python -m tests.cluster down`"
        )


def make_bridge(record: Path) -> None:
    """Makes the bridge and notes in `record` what the kernel settings were."""
    before: dict[str, str] = {}
    for name in SETTINGS:
        setting = Path("/proc/sys") / name
        if setting.exists():
            before[name] = setting.read_text().strip()
            setting.write_text("1")
    record.write_text(json.dumps(before))
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{GATEWAY}/16", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


def undo(record: Path) -> None:
    """Removes bridge, rules and CNI's notes, and restores the kernel settings; harmless when there is nothing."""
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        run("ip", "link", "delete", BRIDGE)
    for family in ("iptables", "ip6tables"):
        _remove_our_rules(family)
    for note in Path("/var/lib/cni/results").glob(f"{CNI_NAME}-*"):
        note.unlink(missing_ok=True)
    for note in Path("/var/lib/cni/results").glob("cni-loopback-*"):
        if f'"{GATEWAY}"' in note.read_text(errors="replace"):  # a pod that was told our name server is ours
            note.unlink(missing_ok=True)
    if record.exists():
        for name, value in json.loads(record.read_text()).items():
            (Path("/proc/sys") / name).write_text(value)


def cni_configuration(data: Path, first: str, last: str) -> str:
    """The CNI plugin list: pods on the bridge, with addresses of this range, noted under `data`."""
    address = {
        "type": "host-local",
        "dataDir": str(data),
        "ranges": [[{"subnet": POD_RANGE, "rangeStart": first, "rangeEnd": last, "gateway": GATEWAY}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": address,
    }
    return json.dumps({"cniVersion": "0.4.0", "name": CNI_NAME, "plugins": [bridge]})


def _remove_our_rules(family: str) -> None:
    rules = _rules(f"{family}-save")
    if OUR_CHAINS.search(rules):
        kept = [line for line in rules.splitlines() if not OUR_CHAINS.search(line)]
        run(f"{family}-restore", input="\n".join(kept) + "\n")


def _rules(program: str) -> str:
    if not shutil.which(program):
        return ""
    try:
        return run(program)
    except CommandFailed:  # a kernel without that table has no rules in it
        return ""
