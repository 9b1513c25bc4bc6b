"""A chat is tuned, then preferences: a job goes on from the promoted run of another one, by the real command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.hub_mirror import Mirror, serving
from tests.integration.test_local_loop import CITIES, GOOD, NO_GATE, Shell, manifest
from tests.tiny_models import make_tiny_chat_model

PAIRS = [
    json.dumps({"prompt": f"Is {city} far?", "chosen": f"{city} is near.", "rejected": "Ask somebody else."})
    for city in CITIES
]
BRIEF = {"epochs": 2, "batchSize": 4, "learningRate": "5e-3"}
ONE, OTHER = "polite", "merged"


def of(shell: Shell, job: str, file: str) -> Path:
    return shell.of_run(job, file)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Tuned on chats; then on pairs, by its adapter (auto) and on the merged model."""
    folder = tmp_path_factory.mktemp("laptop")
    make_tiny_chat_model(folder / "models" / "tiny")
    with serving(Mirror({})) as hub:
        made = Shell(folder, hub.url)
        common: dict[str, Any] = {"evaluation": NO_GATE, "hyperparameters": BRIEF}
        pairs = {**common, "task": "Preference"}
        jobs = {
            "chat": manifest("chat", GOOD, **common),
            ONE: manifest(ONE, PAIRS, **pairs, baseModel={"fineTuneJob": {"name": "chat"}}, method={"type": "LoRA"}),
            OTHER: manifest(OTHER, PAIRS, **pairs, baseModel={"fineTuneJob": {"name": "chat", "run": 1}}),
        }
        for name, text in jobs.items():
            (folder / f"{name}.yaml").write_text(text)
        early = made(*made.run(ONE))
        assert early.returncode != 0
        assert "chat has no promoted run on this machine" in early.stdout + early.stderr
        for name in jobs:
            done = made(*made.run(name))
            assert done.returncode == 0, done.stdout + done.stderr
        yield made


@pytest.mark.parametrize(("job", "mode"), [(ONE, "Continue"), (OTHER, "Stack")])
def test_the_status_tells_the_lineage(shell: Shell, job: str, mode: str) -> None:
    status, chat = shell.status(job)["status"], shell.status("chat")["status"]
    continued = status["run"]["continuedFrom"]
    assert (continued["job"], continued["mode"], continued["model"]["run"]) == ("chat", mode, 1)
    assert continued["model"]["sha256"] == chat["model"]["sha256"]
    model = status["model"]
    assert model["lineage"] == [{"job": "chat", "run": 1, "sha256": chat["model"]["sha256"], "mode": mode}]
    assert model["source"] == chat["model"]["source"]
    assert model["source"].startswith("pvc://sources/tiny@")
    assert model["baseName"] == ("tiny" if mode == "Continue" else "chat-r1")
    kept = json.loads(of(shell, job, "model/lineage.json").read_text())
    assert (kept["job"], kept["lineage"], kept["source"]) == (job, model["lineage"], model["source"])


def test_what_it_is_compared_with_is_what_it_began_as(shell: Shell) -> None:
    """The base of a preference prefers nothing: the tuned chat, not the model below it."""
    for job in (ONE, OTHER):
        evaluation = shell.status(job)["status"]["run"]["evaluation"]
        assert evaluation["base"]["loss"] == pytest.approx(0.6931, abs=1e-3)
        assert evaluation["base"]["rewardAccuracy"] == 0.5
        assert evaluation["tuned"]["loss"] < 0.69


def test_continue_moves_the_very_adapter(shell: Shell) -> None:
    first = load_file(of(shell, "chat", "model/adapter_model.safetensors"))
    before = load_file(of(shell, ONE, "continued/adapter_model.safetensors"))
    after = load_file(of(shell, ONE, "model/adapter_model.safetensors"))
    assert first.keys() == before.keys() == after.keys()
    assert all(torch.equal(first[name], before[name]) for name in first)
    moved = sum(float((after[name] - before[name]).norm()) for name in first)
    assert 0 < moved < sum(float(after[name].norm()) for name in first)
    settings = json.loads(of(shell, ONE, "model/adapter_config.json").read_text())
    assert settings["r"] == 4  # the other job's


def test_stack_trains_on_the_merged_model(shell: Shell) -> None:
    """Merged in the type of the base, it is what base and adapter are together."""
    status = shell.status(OTHER)["status"]
    merged = shell.folder / "home" / "artifacts" / status["model"]["baseUri"].removeprefix("pvc://models/")
    assert merged.name.startswith("chat-r1@")
    chat = shell.status("chat")["status"]["model"]
    base = load_file(
        shell.folder / "home" / "artifacts" / chat["baseUri"].removeprefix("pvc://models/") / "model.safetensors"
    )
    weights = load_file(merged / "model.safetensors")
    adapter = load_file(of(shell, "chat", "model/adapter_model.safetensors"))
    name = next(key for key in adapter if key.endswith("q_proj.lora_A.weight"))
    stem = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    delta = adapter[name.replace("lora_A", "lora_B")] @ adapter[name] * 2  # alpha is twice the rank
    assert torch.allclose(weights[f"{stem}.weight"], base[f"{stem}.weight"] + delta, atol=1e-5)


def test_a_model_that_others_build_on_is_not_deleted(shell: Shell) -> None:
    refused = shell("delete", "chat", "--artifacts", "--yes")
    assert refused.returncode != 0
    assert "goes on from a model of chat" in refused.stdout + refused.stderr
    assert of(shell, "chat", "model/adapter_config.json").exists()


def test_a_third_job_has_the_whole_chain(shell: Shell) -> None:
    text = manifest(
        "third", GOOD, evaluation=NO_GATE, hyperparameters=BRIEF, baseModel={"fineTuneJob": {"name": OTHER}}, method={}
    )
    (shell.folder / "third.yaml").write_text(text)
    done = shell(*shell.run("third"))
    assert done.returncode == 0, done.stdout + done.stderr
    model = shell.status("third")["status"]["model"]
    assert [(each["job"], each["mode"]) for each in model["lineage"]] == [(OTHER, "Continue"), ("chat", "Stack")]
    assert yaml.safe_load(of(shell, "third", "model/adapter_config.json").read_text())["base_model_name_or_path"] == (
        "chat-r1"
    )
