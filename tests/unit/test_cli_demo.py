"""The demo asks what the data has, and makes a sound job of a model of the user's."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from finetune_operator.cli import commands, demo
from finetune_operator.local import machine, manifests
from finetune_operator.local.errors import BadInput
from finetune_operator.local.store import Store

CHECKOUT = Path(__file__).parents[2]
TRAVEL = CHECKOUT / "examples" / "travel"


def questions(file: str) -> set[str]:
    lines = (TRAVEL / file).read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["messages"][0]["content"] for line in lines}


def given() -> manifests.Given:
    return manifests.read([str(TRAVEL / "demo.yaml"), str(TRAVEL / "dataset.yaml")], name=demo.JOB)


def test_the_questions_are_in_the_data() -> None:
    assert set(demo.LEARNT) <= questions("train.jsonl")
    assert set(demo.HELD_OUT) <= questions("validation.jsonl") - questions("train.jsonl")
    more = demo._more_held_out(CHECKOUT)
    assert len(more) == demo.RANDOM_HELD_OUT
    assert set(more) <= questions("validation.jsonl") - set(demo.HELD_OUT)


def test_the_job_finds_its_data_and_its_base(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.claims / "sources").mkdir(parents=True)
    machine.check_sources(given().job.spec, given().config_maps, store)
    assert given().job.spec.compute.gpus == 0


def test_the_checkout_is_found_from_within_and_from_anywhere(tmp_path: Path) -> None:
    assert demo.find_checkout(TRAVEL) == CHECKOUT
    assert demo.find_checkout(tmp_path) == CHECKOUT


def test_a_model_of_the_users_gets_a_recipe_for_real_models() -> None:
    job = demo._with_model(given().job, "hf://owner/model")
    assert job.metadata.name == demo.MODEL_JOB
    assert job.spec.base_model.source == "hf://owner/model"
    assert job.spec.hyperparameters.learning_rate_multiplier == "auto"
    assert job.spec.dataset == given().job.spec.dataset


def test_a_folder_becomes_a_claim(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert demo._source(str(tmp_path / "mine")) == ("pvc://demo-model/mine", [("demo-model", tmp_path)])
    with pytest.raises(BadInput, match="no such model folder"):
        demo._source(str(tmp_path))


@pytest.mark.parametrize("source", ["hf://only-a-name", "ftp://host/model"])
def test_a_wrong_source_is_refused(source: str) -> None:
    with pytest.raises(BadInput, match=r"write hf://OWNER/NAME|should match pattern") as caught:
        demo._with_model(given().job, source)
    assert "pydantic" not in caught.value.message


def test_the_last_screen_can_be_copied_into_a_fresh_shell(tmp_path: Path) -> None:
    checkout = tmp_path / "my checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "activate").write_text(f'PATH="{checkout}/.venv/bin:$PATH"\n')
    program = checkout / ".venv" / "bin" / "finetune"
    program.write_text("#!/bin/sh\necho asked: $*\n")
    program.chmod(0o755)
    file = io.StringIO()
    demo._next(Console(file=file, width=60), checkout, given().job, 90)
    indented = [line.strip() for line in file.getvalue().splitlines() if line.startswith("  ")]
    commands = [line.split("    ")[0] for line in indented]
    assert [line.split()[0] for line in commands[:2]] == ["cd", "source"]
    script = "\n".join(commands)
    shell = subprocess.run(["bash", "-ec", script], cwd="/", capture_output=True, text=True)
    assert shell.returncode == 0, shell.stderr
    assert "asked: chat travel-demo --prompt What should I eat in Porto?" in shell.stdout
    assert "asked: run -f examples/travel/demo.yaml -f examples/travel/dataset.yaml" in shell.stdout


def test_the_base_is_made_without_bars_and_beside_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "examples" / "tiny-base" / "tiny_base.py"
    script.parent.mkdir(parents=True)
    script.write_text("import json, os, sys\njson.dump(dict(os.environ), open(sys.argv[1], 'w'))\n")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    demo.make_base(Console(file=io.StringIO()), tmp_path, tmp_path / "claims" / "seen")
    seen = json.loads((tmp_path / "claims" / "seen").read_text())
    assert (seen["HF_HUB_DISABLE_PROGRESS_BARS"], seen["OMP_WAIT_POLICY"]) == ("1", "PASSIVE")


def test_going_on_does_not_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["finetune", "demo", "--fresh", "--model", "my model"])
    assert commands._like_this() == "finetune demo --model 'my model'"
