"""What GitOps tools see: their judgement of every state, and commits that are applied by them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import lupa
import pytest
import yaml
from tests import documented
from tests.cluster import binaries
from tests.cluster.errors import Unavailable
from tests.cluster.fixtures import leave_out
from tests.integration.conftest import ROOT, JobApi
from tests.life_states import states

from finetune_api.troubleshooting import troubleshooting_page
from finetune_operator.stages.pipeline import STAGES

GITOPS = ROOT / "examples" / "gitops"
STATES = states()
# What Argo CD and kstatus have to say of each.
EXPECTED = {
    "just applied": ("Progressing", "InProgress"),
    "spec changed, not seen yet": ("Progressing", "InProgress"),
    "preparing": ("Progressing", "InProgress"),
    "training": ("Progressing", "InProgress"),
    "evaluating": ("Progressing", "InProgress"),
    "rolling out": ("Progressing", "InProgress"),
    "serving": ("Healthy", "Current"),
    "trained, not served": ("Healthy", "Current"),
    "gate failed, no model": ("Degraded", "Failed"),
    "gate failed, the old model serves": ("Healthy", "Current"),
    "second run trains, the old model serves": ("Progressing", "InProgress"),
    "waits for approval, no model": ("Suspended", "InProgress"),
    "waits for approval, the old model serves": ("Healthy", "Current"),
    "second run is rolled back, the old model serves": ("Degraded", "Failed"),
    "suspended": ("Suspended", "InProgress"),
    "budget used up": ("Degraded", "Failed"),
    "data refused": ("Degraded", "Failed"),
    "pod waits for a node": ("Progressing", "InProgress"),
    "settling after an edit": ("Progressing", "InProgress"),
    "waits in a queue": ("Progressing", "InProgress"),
    "judging": ("Progressing", "InProgress"),
    "packaging": ("Progressing", "InProgress"),
    "suspending": ("Progressing", "InProgress"),
    "measured again, the old figures count": ("Progressing", "InProgress"),
    "second run failed, the old model serves": ("Degraded", "Failed"),
    "approval of another model": ("Suspended", "InProgress"),
    "pinned to a run that is not there": ("Degraded", "Failed"),
    "taken back": ("Healthy", "Current"),
    "waits for another job's model": ("Progressing", "InProgress"),
    "schedule that cannot be": ("Healthy", "Current"),
    "spec that this version refuses": ("Degraded", "Failed"),
}
# Every reason that Ready has but for those of failures, which are one case each: ended, waiting, held.
REASONS = {stage.words.doing for stage in STAGES.values()} | {
    *("RollingOut", "Serving", "Trained", "Settling", "Suspending", "Suspended", "GateFailed", "AwaitingApproval"),
    *("Queued", "SpecInvalid"),
}


def argo_health(job: dict[str, Any]) -> tuple[str, str]:
    """Status and message by the script, in a Lua that has no more libraries open than Argo CD's has by default."""
    lua = lupa.LuaRuntime(unpack_returned_tuples=True)
    lua.execute("io, os, debug, package, require, load, dofile, loadfile = nil")
    lua.globals().obj = lua.table_from(job, recursive=True)
    result = lua.execute((GITOPS / "argocd" / "health.lua").read_text())
    return str(result.status), str(result.message)


def test_every_state_has_its_judgement() -> None:
    assert EXPECTED.keys() == STATES.keys()
    ready = [
        each for state in STATES.values() for each in state["status"].get("conditions", ()) if each["type"] == "Ready"
    ]
    assert REASONS - {each["reason"] for each in ready} == set(), "a state that nobody has judged"


def test_every_word_of_the_column_reason_is_explained() -> None:
    page = troubleshooting_page()
    assert [word for word in REASONS if f"`{word}`" not in page and f"### {word}\n" not in page] == []


@pytest.mark.parametrize("name", STATES)
def test_argo_cd_judges(name: str) -> None:
    health, message = argo_health(STATES[name])
    assert health == EXPECTED[name][0]
    assert message


def test_the_schedule_of_the_example_is_accepted(job_api: JobApi) -> None:
    rendered = job_api.plane.kubectl("kustomize", GITOPS / "schedule")
    job = next(each for each in yaml.safe_load_all(rendered) if each["kind"] == "FineTuneJob")
    assert job["spec"]["triggers"]["schedule"]["cron"] == "0 2 * * SUN"
    answer = job_api.create({**job, "metadata": {"name": "scheduled", "namespace": "default"}})
    assert answer.code == 201, answer.message


def test_argo_cd_tells_what_to_do() -> None:
    _, message = argo_health(STATES["data refused"])
    assert "line 4 is broken" in message
    assert "Correct the lines" in message


def test_what_argo_cd_is_given_is_the_script() -> None:
    patch = yaml.safe_load((GITOPS / "argocd" / "argocd-cm.yaml").read_text())
    script = patch["data"]["resource.customizations.health.finetune-operator.io_FineTuneJob"]
    assert script == (GITOPS / "argocd" / "health.lua").read_text()


def test_flux_and_kubectl_judge_by_kstatus() -> None:
    try:
        program = binaries.kstatus()
    except Unavailable as error:
        leave_out(error)
        raise
    done = subprocess.run(
        [program], input=json.dumps(list(STATES.values())), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    verdicts = dict(zip(STATES, json.loads(done.stdout), strict=True))
    assert verdicts == {name: kstatus for name, (_, kstatus) in EXPECTED.items()}


def spec_of(job_api: JobApi) -> dict[str, Any]:
    found = job_api.send("GET", f"{job_api.collection('team-a')}/travel-assistant", None)
    assert found.code == 200, found.message
    return dict(found.body)


def type_in(job_api: JobApi, checkout: Path, command: str) -> None:
    """A documented command, word for word, in a checkout."""
    kubectl = job_api.plane.kubectl
    path = f"{Path(kubectl.binary).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(kubectl.kubeconfig)}
    subprocess.run(["bash", "-c", command], cwd=checkout, env=environment, check=True, timeout=60)


def commit(job_api: JobApi, folder: Path) -> None:
    """As a tool applies it."""
    job_api.plane.kubectl("apply", "--server-side", "-k", folder)


def test_a_commit_of_data_is_another_spec_and_a_revert_the_old_one(job_api: JobApi, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    folder = tmp_path / "examples" / "gitops"
    for command in documented.commands(documented.GITOPS):
        type_in(job_api, tmp_path, command.text)
    first = spec_of(job_api)
    name = first["spec"]["dataset"]["train"]["configMapRef"]["name"]
    assert re.fullmatch(r"travel-dataset-[a-z0-9]{10}", name)

    # Applied again it is silent: no conflict, no new generation.
    commit(job_api, folder)
    assert spec_of(job_api)["metadata"]["generation"] == first["metadata"]["generation"] == 1
    # What tools see before the operator has looked: not the generation that was applied.
    assert first["status"]["observedGeneration"] == STATES["just applied"]["status"]["observedGeneration"] == 0

    data = tmp_path / "examples" / "travel" / "train.jsonl"
    lines = data.read_text()
    data.write_text("".join(lines.splitlines(keepends=True)[:-1]))
    commit(job_api, folder)
    second = spec_of(job_api)
    assert second["metadata"]["generation"] == 2
    assert second["spec"]["dataset"]["train"]["configMapRef"]["name"] != name

    data.write_text(lines)
    commit(job_api, folder)
    assert spec_of(job_api)["spec"] == first["spec"]
