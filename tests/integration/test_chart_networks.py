"""Who may talk to whom, as the chart says it: rendered, taken by a real API server, told in the notes."""

from __future__ import annotations

from typing import Any

import pytest
from tests.chart import NAME, Release, objects, release

__all__ = ["release"]  # the fixture

STAGES = ("prepare", "train", "evaluate", "judge", "package", "serve")
GATEWAY = "networkPolicy.serveFrom[0].namespaceSelector.matchLabels.team=gateway"


def policies(release: Release, *settings: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The specs by namespace and name without the release's."""
    return {
        (each["metadata"]["namespace"], each["metadata"]["name"].removeprefix(f"{NAME}-")): each["spec"]
        for each in objects(release.template(*settings), "NetworkPolicy")
    }


@pytest.mark.parametrize(
    ("settings", "fenced"),
    [
        ((), set()),
        (("networkPolicy.jobNamespaces={team-a,team-b}",), {"team-a", "team-b"}),
        (("watchNamespaces={team-a}",), {"team-a"}),
        (("watchNamespaces={team-a}", "networkPolicy.jobNamespaces={team-b}"), {"team-b"}),
        (("watchNamespaces={team-a}", "networkPolicy.jobPolicies=false"), set()),
    ],
    ids=["unknown", "named", "watched", "named wins", "not wanted"],
)
def test_where_the_pods_of_jobs_are_fenced_in(release: Release, settings: tuple[str, ...], fenced: set[str]) -> None:
    found = {key for key in policies(release, *settings) if key[1] in STAGES}
    assert found == {(namespace, stage) for namespace in fenced for stage in STAGES}


def test_every_stage_reaches_what_it_needs(release: Release) -> None:
    found = policies(release, "networkPolicy.jobNamespaces={team-a}")
    prepare, train, evaluate, judge, package, serve = (found["team-a", stage] for stage in STAGES)
    assert judge["egress"] == package["egress"] == prepare["egress"] == found["team-a", "poll"]["egress"]
    blocks = [peer["ipBlock"] for rule in prepare["egress"] for peer in rule.get("to", ())]
    assert "169.254.0.0/16" in blocks[0]["except"]
    assert "fe80::/10" in blocks[1]["except"]
    names, operator = train["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert operator["ports"] == [{"port": 8443}]
    assert operator["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == NAME
    assert serve["ingress"] == [{"from": [{"podSelector": {}}], "ports": [{"port": 8000}]}]
    for closed, part in (
        (prepare, "ingress"),
        (judge, "ingress"),
        (package, "ingress"),
        (train, "ingress"),
        (evaluate, "ingress"),
        (evaluate, "egress"),
    ):
        assert part not in closed
    assert "egress" not in serve
    assert all(each["policyTypes"] == ["Ingress", "Egress"] for each in found.values())


def test_pods_that_train_together_reach_each_other_and_nobody_else_reaches_them(release: Release) -> None:
    found = policies(release, "networkPolicy.jobNamespaces={team-a}", "progress.enabled=false")
    assert "egress" not in found["team-a", "train"], "one that trains alone reaches nobody"
    gang = found["team-a", "gang"]
    members = {"podSelector": {"matchLabels": {"finetune-operator.io/gang": "true"}}}
    assert gang["podSelector"] == members["podSelector"]
    assert gang["ingress"] == [{"from": [members]}]
    names, peers = gang["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert peers == {"to": [members]}


def test_who_may_talk_to_servers_metrics_and_receiver(release: Release) -> None:
    found = policies(release, "networkPolicy.jobNamespaces={team-a}", GATEWAY)
    gateway = {"namespaceSelector": {"matchLabels": {"team": "gateway"}}}
    assert found["team-a", "serve"]["ingress"][0]["from"] == [gateway]
    (own,) = (spec for (_, name), spec in found.items() if name == NAME)
    progress, metrics = own["ingress"]
    assert progress["from"][0]["podSelector"]["matchLabels"] == {"finetune-operator.io/stage": "Train"}
    assert metrics == {"from": [{"namespaceSelector": {}}], "ports": [{"port": 8080}]}


def test_an_empty_list_of_peers_lets_nobody_in(release: Release) -> None:
    """In a NetworkPolicy itself it would let everybody in."""
    found = policies(
        release, "watchNamespaces={team-a}", "networkPolicy.serveFrom=null", "networkPolicy.metricsFrom=null"
    )
    assert "ingress" not in found["team-a", "serve"]
    (own,) = (spec for (_, name), spec in found.items() if name == NAME)
    assert [rule["ports"] for rule in own["ingress"]] == [[{"port": 8443}]]


def test_names_are_asked_for_where_the_platform_says(release: Release) -> None:
    peer = "networkPolicy.dnsTo[0].podSelector.matchLabels.k8s-app=kube-dns"
    found = policies(release, "watchNamespaces={team-a}", peer, "networkPolicy.dnsPorts={5353}")
    for key in (("team-a", "prepare"), ("team-a", "train"), ("finetune-system", NAME)):
        rule = found[key]["egress"][0]
        assert rule["to"] == [{"podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}]
        assert rule["ports"] == [{"port": 5353, "protocol": "UDP"}, {"port": 5353, "protocol": "TCP"}]


def test_notes_tell_where_policies_are_and_the_api_server_has_them(release: Release) -> None:
    notes = release.install("networkPolicy.jobNamespaces={team-a,team-b}", GATEWAY)
    try:
        assert "fenced in, in the namespaces team-a, team-b; nowhere else" in notes
        for namespace in ("team-a", "team-b"):
            items = release.plane.kubectl.json("get", "networkpolicies", namespace=namespace)["items"]
            assert {each["metadata"]["name"] for each in items} == {
                f"{NAME}-{part}" for part in (*STAGES, "gang", "remove", "poll")
            }
        open_notes = release.install("networkPolicy.enabled=false")
        assert "pods of jobs: NONE" in open_notes
        assert "networkPolicy.enabled=false" in open_notes
        assert not release.plane.kubectl.json("get", "networkpolicies", "-A")["items"]
    finally:
        release.uninstall()


def test_operator_reaches_the_collector_of_traces_when_there_is_one(release: Release) -> None:
    def egress(*settings: str) -> list[dict[str, Any]]:
        (found,) = (spec for key, spec in policies(release, *settings).items() if key[1] == NAME)
        return list(found["egress"])

    to = "networkPolicy.tracesTo[0].namespaceSelector.matchLabels.team=observability"
    with_traces = egress("tracing.endpoint=http://collector:4318", to)
    without = egress()
    assert [rule for rule in with_traces if rule not in without] == [
        {"ports": [{"port": 4318}], "to": [{"namespaceSelector": {"matchLabels": {"team": "observability"}}}]}
    ]
