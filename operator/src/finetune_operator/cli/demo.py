"""`finetune demo`: a small model made on the spot learns a voice; base and tuned answer side by side."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from finetune_api.job import FineTuneJob
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.cli import chat as chatting
from finetune_operator.cli import commands, report, words
from finetune_operator.local import jobs, manifests, processes
from finetune_operator.local.errors import BadInput, LocalError
from finetune_operator.local.store import FOLDER, Store

JOB = "travel-demo"
MODEL_JOB = "travel-demo-model"  # with a model of the user's: another job, so that both demos stay
LEARNT = (
    "What should I see in Lisbon?",
    "What clothes do I need in Stockholm?",
    "When should I go to Venice?",
    "How do I spend an evening in Barcelona?",
)
HELD_OUT = ("It is raining in Marseille. Where do I go?", "I am hungry in Hong Kong. What do I order?")
RANDOM_HELD_OUT = 2
# transformers' bar for each file that it writes, and DeepSpeed's warning that it found no GPU: none is wanted.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "DS_ACCELERATOR": "cpu"}
INTRODUCTION = (
    "[bold]Fine-tuning on this machine[/]: a small language model, the base, learns how an old harbour pilot answers "
    "travel questions. What comes out is the tuned model; at the end both answer the same questions."
)
TIMES = "At most 5 minutes the first time on two processors that do nothing else, and less than 2 after that."
OTHER_TIMES = "How long it takes depends on the model and on this machine; it is said while it trains."
FRANK = (
    "[bold]Be frank:[/] this base has one million parameters, a hundredth of the smallest usual chat models. It learns "
    "the voice and says trained answers nearly word for word; asked something new it keeps the voice and makes up the "
    "facts. Do not plan a voyage by it.\n"
)


class DemoFailed(LocalError):
    """A step of the demo that is no job did not work."""


def demo(model: str | None, *, fresh: bool, folder: Path) -> None:
    """Make the base, run the job, show answers. What is there already is not made again."""
    started = time.monotonic()
    console, checkout = Console(), find_checkout(folder)
    store = Store(checkout / FOLDER)
    if fresh:
        _forget(console, store)
    report.say(console, INTRODUCTION)
    report.say(console, f"{OTHER_TIMES if model else TIMES} Everything is kept in {escape(str(store.home))}\n")
    if model is None:
        make_base(console, checkout, store.claims / "sources" / "tiny-base")
    step = "2 of 3" if model is None else "1 of 2"
    console.print(f"\n[bold]Step {step}: the data is checked, the model learns, and is measured[/]")
    job = commands.drive(store, console, _job(store, console, checkout, model))
    report.show_run(console, store, job, samples=0)
    console.print(f"\n[bold]Step {'3 of 3' if model is None else '2 of 2'}: both models are asked[/]")
    with commands.endpoint_of(store, console, job) as endpoint:
        held_out = [*HELD_OUT, *_more_held_out(checkout)]
        console.print("The models answer ...", highlight=False)
        answers = chatting.ask_both(endpoint, job.spec.task, [*LEARNT, *held_out])
    report.show_answers(console, answers[: len(LEARNT)], "Questions that it was trained on")
    report.show_answers(console, answers[len(LEARNT) :], "Questions that it has never seen")
    console.print()
    if model is None:
        report.say(console, FRANK)
    _next(console, checkout, job, time.monotonic() - started)


def find_checkout(folder: Path) -> Path:
    """The checkout around the folder, or the one that this code runs from. Raises BadInput without one."""
    for place in (folder, *folder.parents, *Path(__file__).resolve().parents):
        if (place / "examples" / "travel" / "demo.yaml").is_file():
            return place
    raise BadInput("the demo needs the examples of the source code", "run it inside a checkout of the repository")


def make_base(console: Console, checkout: Path, folder: Path) -> None:
    """The tiny base, unless it is there; its recipe says itself how far it is. Raises DemoFailed."""
    what = "a small language model is made[/], once, from the English in Python's documentation"
    report.say(console, f"[bold]Step 1 of 3: {what} (loss: how wrong its guesses still are; it should fall)")
    script = checkout / "examples" / "tiny-base" / "tiny_base.py"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # In a session of its own: on Ctrl-C we end it, and its stack trace does not hide what we say.
    command = processes.tethered([sys.executable, str(script), str(folder)])
    process = subprocess.Popen(command, start_new_session=True, env={**processes.POLITE, **os.environ, **QUIET})
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.kill()
        process.wait()
        console.print("\nInterrupted. The same command makes the base model anew.")
        sys.exit(commands.INTERRUPTED)
    if code:
        raise DemoFailed("the base model could not be made; see above", f"try by hand: python {script} {folder}")


def _job(store: Store, console: Console, checkout: Path, model: str | None) -> FineTuneJob:
    travel = checkout / "examples" / "travel"
    given = manifests.read([str(travel / "demo.yaml"), str(travel / "dataset.yaml")], name=JOB)
    claims: list[tuple[str, Path]] = []
    if model is not None:
        source, claims = _source(model)
        given = replace(given, job=_with_model(given.job, source))
    job, notes = jobs.take(store, given, claims)
    for note in notes:
        report.say(console, f"Note: {escape(note)}")
    return job


def _source(model: str) -> tuple[str, list[tuple[str, Path]]]:
    if "://" in model:
        return model, []
    folder = Path(model).expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise BadInput(f"--model {model}: no such model folder", "give hf://OWNER/NAME, or a folder with config.json")
    return f"pvc://demo-model/{folder.name}", [("demo-model", folder.parent)]


def _with_model(job: FineTuneJob, source: str) -> FineTuneJob:
    """The demo's data on a real model: the recipe of the tiny one would be far too hot for it."""
    wire: dict[str, Any] = job.spec.to_wire()
    wire["baseModel"] = {"source": source}
    wire["method"] = {"type": "LoRA"}
    wire["hyperparameters"] = {"epochs": 3, "batchSize": 8}
    try:
        spec = FineTuneJobSpec.model_validate(wire)
    except ValidationError as error:
        wrong = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        raise BadInput(f"--model {source}: {wrong}", "write hf://OWNER/NAME") from error
    return job.model_copy(update={"spec": spec, "metadata": job.metadata.model_copy(update={"name": MODEL_JOB})})


def _more_held_out(checkout: Path) -> Sequence[str]:
    """Two other held-out questions, drawn anew each time, so that the answers cannot have been picked."""
    path = checkout / "examples" / "travel" / "validation.jsonl"
    asked = re.findall(r'"role": "user", "content": "([^"]+)"', path.read_text(encoding="utf-8"))
    return random.sample([question for question in asked if question not in HELD_OUT], RANDOM_HELD_OUT)


def _forget(console: Console, store: Store) -> None:
    """Only what the demo made."""
    for name in (JOB, MODEL_JOB):
        job = store.load("default", name)
        if job is not None:
            with store.lock("default", name):
                jobs.remove(jobs.removable(store, job, artifacts=True))
    shutil.rmtree(store.claims / "sources" / "tiny-base", ignore_errors=True)
    console.print("Forgotten: what an earlier demo made.")


def _next(console: Console, checkout: Path, job: FineTuneJob, seconds: float) -> None:
    """Whole commands, for this shell or a fresh one in any folder."""
    name = job.metadata.name
    lines = [
        f"[bold]Done in {words.duration(seconds)}.[/] What to type next:",
        "",
        *(escape(f"  {line}") for line in shell_lines(checkout)),
        f'  finetune chat {name} --prompt "What should I eat in Porto?"',
        f"  finetune chat {name}                 questions and answers, until Ctrl-D",
        f"  finetune serve {name}                an OpenAI-compatible server on this machine, until Ctrl-C",
        f"  finetune status {name} -o yaml       all that is known of the job",
        "  finetune demo --model hf://HuggingFaceTB/SmolLM2-135M-Instruct    the same with a real model",
        "",
        "The job is examples/travel/demo.yaml, its data examples/travel/dataset.yaml. Change a setting, and train anew",
        "(where only the data has changed, write a new spec.rerunToken):",
        "",
        "  finetune run -f examples/travel/demo.yaml -f examples/travel/dataset.yaml",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def shell_lines(checkout: Path) -> list[str]:
    """What a fresh shell needs before `finetune`: the folder, and the virtual environment where there is one."""
    activate = checkout / ".venv" / "bin" / "activate"
    other = Path(sys.executable).parent / "activate"
    found = next((path for path in (activate, other) if path.is_file()), None)
    return [
        f"cd {shlex.quote(str(checkout))}",
        *([f"source {shlex.quote(str(_short(found, checkout)))}"] if found else []),
    ]


def _short(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path
