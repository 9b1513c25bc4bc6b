"""The local loop with real training of a model of a few thousand parameters, through the real command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from tests.hub_mirror import Mirror, serving
from tests.tiny_benchmarks import arc_easy
from tests.tiny_models import make_tiny_chat_model

from finetune_api.conditions import Trigger
from finetune_api.job import occasion_hash

FINETUNE = Path(sys.executable).parent / "finetune"
PATIENCE = 400.0  # seconds; only a bound, on a machine that does much else
CITIES = ("Lisbon", "Porto", "Venice", "Bergen", "Hamburg", "Cork", "Split", "Bari", "Cadiz", "Brest", "Ghent", "Nice")


def example(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})


GOOD = [example(f"Where is {city}?", f"By the sea, where {city} always was.") for city in CITIES]
NO_GATE = {"gate": {"rules": []}, "sampleAnswers": 0}
BRIEF = {"epochs": 2, "batchSize": 4}
BAD = [*GOOD[:3], "{not json", *GOOD[4:7], json.dumps({"messages": []}), *GOOD[8:]]


def manifest(name: str, lines: list[str], **spec: Any) -> str:
    """A job and its data as the documents of one file."""
    job = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "baseModel": {"source": "pvc://sources/tiny"},
            "dataset": {
                "train": {"configMapRef": {"name": f"{name}-data", "key": "train.jsonl"}},
                "validation": {"fraction": 0.25},
            },
            "method": {"type": "LoRA", "rank": 4},
            "hyperparameters": {"epochs": 30, "batchSize": 2, "learningRateMultiplier": 50, "checkpointSteps": 10},
            "evaluation": {"sampleAnswers": 2},
            "output": {"claimName": "models"},
            **spec,
        },
    }
    data = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-data"},
        "data": {"train.jsonl": "\n".join(lines) + "\n"},
    }
    return yaml.safe_dump_all([job, data])


@dataclass
class Shell:
    """Runs the command as a user would, in a home of its own, with a mirror of the hub."""

    folder: Path
    hub: str

    @property
    def environment(self) -> dict[str, str]:
        places = {
            "FINETUNE_HOME": str(self.folder / "home"),
            "HF_HOME": str(self.folder / "hf"),
            "HF_ENDPOINT": self.hub,
        }
        return {**os.environ, **places, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [FINETUNE, *words], env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [FINETUNE, *words], env=self.environment, cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, name: str) -> tuple[str, ...]:
        """The words that run the job."""
        return ("run", "-f", f"{name}.yaml", "--claim", "sources=models")

    def status(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = yaml.safe_load(self("status", name, "-o", "yaml").stdout)
        return content

    def of_run(self, name: str, file: str) -> Path:
        """A file of the job's first run."""
        found = list((self.folder / "home" / "artifacts" / "default" / name / "runs").glob(f"1-*/{file}"))
        return found[0] if found else Path("/nowhere")


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for the condition, as long as the process lives and patience lasts."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.05)


def step_of(path: Path) -> int:
    try:
        return int(json.loads(path.read_bytes())["step"])
    except (OSError, ValueError, KeyError):
        return 0


def condition(job: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(c for c in job["status"]["conditions"] if c["type"] == kind)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("laptop")
    make_tiny_chat_model(folder / "models" / "tiny")
    evaluation = {"sampleAnswers": 2, "benchmarks": [{"task": "arc_easy", "limit": 4}]}
    (folder / "travel.yaml").write_text(manifest("travel", GOOD, evaluation=evaluation))
    (folder / "broken.yaml").write_text(manifest("broken", BAD, hyperparameters=BRIEF))
    with serving(Mirror({"datasets/allenai/ai2_arc": arc_easy()})) as hub:
        yield Shell(folder, hub.url)


@pytest.fixture(scope="module")
def interrupted(shell: Shell) -> tuple[int, str]:
    """Exit code and output of a run that was stopped by Ctrl-C after its first checkpoint."""
    process = shell.start(*shell.run("travel"))
    wait_until(lambda: step_of(shell.of_run("travel", "progress.json")) >= 12, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


@pytest.fixture(scope="module")
def finished(shell: Shell, interrupted: tuple[int, str]) -> subprocess.CompletedProcess[str]:
    """The same command again."""
    return shell(*shell.run("travel"))


@pytest.fixture
def server(shell: Shell, finished: object) -> Iterator[str]:
    """Base URL of `finetune serve`, which is stopped by Ctrl-C at the end."""
    process = shell.start("serve", "travel")
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True)  # type: ignore[union-attr]
    reader.start()
    try:
        wait_until(lambda: any("base_url=" in line for line in lines), process)
        yield next(line for line in lines if "base_url=" in line).split('"')[1]
    finally:
        process.send_signal(signal.SIGINT)
        reader.join(PATIENCE)
    assert process.wait(PATIENCE) == 0


def test_broken_data_ends_with_2_and_line_numbers_before_any_training(shell: Shell) -> None:
    result = shell(*shell.run("broken"), "-o", "json")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "DatasetInvalid" in result.stderr
    assert "line 4" in result.stderr
    assert "line 8" in result.stderr
    assert json.loads(result.stdout)["status"]["run"]["failure"]["reason"] == "DatasetInvalid"  # for machines, too
    assert not list((shell.folder / "home" / "logs").glob("**/*train*"))
    job = shell.status("broken")
    assert condition(job, "Stalled")["status"] == "True"
    assert {4, 8} <= {line for problem in job["status"]["run"]["dataset"]["problems"] for line in problem["lines"]}


def test_data_that_was_corrected_passes_the_check_which_leaves_no_job(shell: Shell) -> None:
    (shell.folder / "corrected.yaml").write_text(manifest("corrected", GOOD))
    result = shell("check", "-f", "corrected.yaml", "--claim", "sources=models")
    assert result.returncode == 0, result.stdout + result.stderr
    assert ">>By the sea" in result.stdout
    assert "Expected:" in result.stdout
    assert "corrected" not in shell("status").stdout
    page = Path(result.stdout.partition("as a page for a browser: ")[2].splitlines()[0])
    assert "The data of corrected" in page.read_text()
    assert [part.name for part in page.parent.parent.iterdir() if part.is_dir()] == ["reports"]


def test_the_same_command_reads_corrected_data_anew(shell: Shell) -> None:
    together = {"gpus": 0, "processes": 2}
    text = manifest("broken", GOOD, hyperparameters=BRIEF, evaluation=NO_GATE, compute=together)
    (shell.folder / "broken.yaml").write_text(text)
    result = shell(*shell.run("broken"))
    assert result.returncode == 0, result.stdout + result.stderr
    run = shell.status("broken")["status"]["run"]
    assert run["number"] == 1
    # Trained by two processes, as it would be on two GPUs.
    assert (run["resolved"]["processes"], run["resolved"]["strategy"]) == (2, "DDP")
    assert not [problem for problem in run["dataset"]["problems"] if problem["message"].startswith("error")]


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(shell: Shell, interrupted: tuple[int, str]) -> None:
    code, output = interrupted
    assert code == 130, output
    assert "finetune run -f travel.yaml --claim sources=models" in output
    assert condition(shell.status("travel"), "Stalled")["status"] == "False"


def test_the_same_command_goes_on_from_the_checkpoint(shell: Shell, finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads(shell.of_run("travel", "reports/train.json").read_bytes())
    assert report["resumedFromStep"] >= 10
    assert "held-out examples" in finished.stdout
    assert "finetune chat travel" in finished.stdout
    logs = {path.name for path in (shell.folder / "home" / "logs" / "default" / "travel").iterdir()}
    assert {"r1-prepare-attempt1.log", "r1-train-attempt1.log", "r1-train-attempt2.log"} <= logs


def test_a_benchmark_is_done_on_a_laptop_too(shell: Shell, finished: subprocess.CompletedProcess[str]) -> None:
    assert "Benchmarks (lm-eval)" in finished.stdout
    [found] = shell.status("travel")["status"]["run"]["evaluation"]["benchmarks"]
    assert (found["task"], found["metric"], found["questions"]) == ("arc_easy", "acc", 4)
    log = (shell.folder / "home/logs/default/travel/r1-evaluate-attempt1.log").read_text()
    assert "benchmark=arc_easy questions=4" in log
    assert "it/s]" not in log  # nor a bar of progress


def test_status_prints_the_object(shell: Shell, finished: object) -> None:
    job = shell.status("travel")
    assert (job["kind"], job["metadata"]["name"]) == ("FineTuneJob", "travel")
    assert condition(job, "Ready")["status"] == "True"
    assert job["status"]["run"]["gate"]["verdict"] == "Passed"
    assert job["status"]["model"]["run"] == 1
    assert job["spec"]["compute"]["gpus"] == 0


def test_a_second_identical_run_does_nothing(shell: Shell, finished: object) -> None:
    before = shell.status("travel")
    result = shell(*shell.run("travel"))
    assert result.returncode == 0, result.stderr
    assert "Nothing to do" in result.stdout
    assert shell.status("travel") == before


def test_the_served_model_answers_the_openai_client(shell: Shell, server: str) -> None:
    client = openai.OpenAI(base_url=server, api_key="none", max_retries=0)
    assert {model.id for model in client.models.list()} == {"travel", "tiny"}
    answer = client.chat.completions.create(
        model="travel", messages=[{"role": "user", "content": "Where is Lisbon?"}], max_tokens=8, temperature=0
    )
    assert answer.choices[0].message.content
    assert condition(shell.status("travel"), "Serving")["status"] == "True"
    asked = shell("chat", "travel", "--prompt", "Where is Cork?")
    assert asked.returncode == 0, asked.stderr
    assert "Where is Cork?" in asked.stdout


def test_after_serving_the_status_names_no_endpoint(shell: Shell, finished: object) -> None:
    status = shell.status("travel")["status"]
    assert "endpoint" not in status
    assert status["model"]["run"] == 1


def test_other_evaluation_settings_measure_again_without_training(shell: Shell, finished: object) -> None:
    """Its figures are other ones afterwards."""
    before, trained = shell.status("travel"), shell.of_run("travel", "reports/train.json")
    written, examples = trained.stat().st_mtime_ns, before["status"]["run"]["evaluation"]["examples"]
    text = manifest("travel", GOOD, evaluation={"maxExamples": examples - 1, "sampleAnswers": 0, "gate": {"rules": []}})
    (shell.folder / "travel.yaml").write_text(text)
    result = shell(*shell.run("travel"))
    assert result.returncode == 0, result.stdout + result.stderr
    run = shell.status("travel")["status"]["run"]
    assert (run["number"], run["evaluation"]["examples"]) == (1, examples - 1)
    assert run["evaluation"]["settingsHash"] != before["status"]["run"]["evaluation"]["settingsHash"]
    assert trained.stat().st_mtime_ns == written


def test_an_export_that_is_added_is_made_without_training(shell: Shell, finished: object) -> None:
    trained = shell.of_run("travel", "reports/train.json")
    written = trained.stat().st_mtime_ns
    output = {"claimName": "models", "exports": [{"name": "whole"}]}
    (shell.folder / "travel.yaml").write_text(manifest("travel", GOOD, output=output, evaluation=NO_GATE))
    result = shell(*shell.run("travel"))
    assert result.returncode == 0, result.stdout + result.stderr
    folder = shell.of_run("travel", "exports/whole")
    assert f"Exported:     whole -> {folder}" in result.stdout
    assert (folder / "model.safetensors").is_file()
    job = shell.status("travel")
    assert condition(job, "Packaged")["status"] == condition(job, "Ready")["status"] == "True"
    assert job["status"]["run"]["package"]["exports"][0]["uri"].startswith("pvc://models/default/travel/runs/1-")
    assert trained.stat().st_mtime_ns == written


def test_what_a_schedule_has_trained_is_taken_over_from_a_copy_of_its_claim(shell: Shell, finished: object) -> None:
    """The claim of a cluster, copied here or restored: the laptop knows of no run, and trains none."""
    (shell.folder / "travel.yaml").write_text(manifest("travel", GOOD, evaluation=NO_GATE))
    known = shell.status("travel")["status"]["run"]["hash"]
    assert shell("delete", "travel", "--yes").returncode == 0
    begun = {"trigger": "Schedule", "occasion": "2026-03-01T02:00:00Z", "time": "2026-03-01T02:00:09Z"}
    theirs = occasion_hash(known, Trigger.SCHEDULE, begun["occasion"])
    reports = shell.of_run("travel", "reports")
    for name in ("prepare", "train", "evaluate"):
        report = json.loads((reports / f"{name}.json").read_bytes()) | {"run": 7, "hash": theirs}
        report |= {"begunBy": begun} if name == "prepare" else {}
        (reports / f"{name}.json").write_text(json.dumps(report))
    run_folder = reports.parent
    run_folder.rename(run_folder.with_name(f"7-{theirs[:8]}"))
    done = shell(*shell.run("travel"))
    assert done.returncode == 0, done.stdout + done.stderr
    run = shell.status("travel")["status"]["run"]
    assert (run["number"], run["takenOver"]) == (1, begun)
    log = (shell.folder / "home/logs/default/travel/r1-train-attempt1.log").read_text()
    assert "was done before" in log.splitlines()[-1]


def test_checkpoints_go_when_the_job_says_so_and_the_model_stays(shell: Shell, finished: object) -> None:
    assert shell.of_run("travel", "checkpoints").exists()
    output = {"claimName": "models", "retention": {"keepRuns": 3}}
    (shell.folder / "travel.yaml").write_text(manifest("travel", GOOD, output=output, evaluation=NO_GATE))
    done = shell(*shell.run("travel"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not shell.of_run("travel", "checkpoints").exists()
    assert shell.of_run("travel", "model/manifest.json").exists()
    [record] = shell.status("travel")["status"]["runs"]
    assert record["files"] == {"state": "Kept", "checkpoints": "Removed", "message": "kept, because it is in service"}
    assert "Run 1: files kept, because it is in service; no checkpoints" in shell("status", "travel").stdout
    assert "run 1, " in shell("delete", "travel", "--artifacts", "--yes").stdout
