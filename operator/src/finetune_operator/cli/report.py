"""What came out: the data's findings, base against tuned, answers side by side, and what went wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from finetune_api.conditions import GateVerdict
from finetune_api.job import FineTuneJob
from finetune_api.reports import EvaluateReport, SampleAnswer
from finetune_api.status import DatasetStatus, EvaluationStatus, Problem, RunStatus
from finetune_operator import names
from finetune_operator.cli import words
from finetune_operator.local.store import Store

SAMPLES = 4


def show_dataset(console: Console, data: DatasetStatus, *, details: bool = False) -> None:
    """Problems always; with `details` the figures, too."""
    if details:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in _figures(data):
            table.add_row(name, value)
        console.print("\n[bold]The data[/]")
        console.print(table)
    for problem in data.problems:
        console.print(f"  [yellow]{escape(problem.check)}[/]: {escape(_finding(problem))}", highlight=False)
    if details and not data.problems:
        console.print("  no problems found")


def _figures(data: DatasetStatus) -> Iterator[tuple[str, str]]:
    yield "examples to learn from", f"{data.train_examples:,}"
    yield "examples held out", f"{data.validation_examples:,}"
    yield "tokens to learn", f"{data.loss_tokens:,} of {data.train_tokens:,} (the rest is only read)"
    if data.length:
        yield "tokens of an example", f"{data.length.min} to {data.length.max}, half of them at most {data.length.p50}"
    for name in ("truncated", "dropped", "duplicates", "overlap"):
        if count := getattr(data, name):
            yield name, f"{count:,}"


def _finding(problem: Problem) -> str:
    lines = ", ".join(map(str, problem.lines))
    more = f" and {problem.count - len(problem.lines)} more" if problem.count > len(problem.lines) else ""
    where = f"{problem.file}, line{'s' if problem.count > 1 else ''} {lines}{more}" if lines else problem.file
    return f"{where}: {problem.message}"


def show_run(console: Console, store: Store, job: FineTuneJob, *, samples: int = SAMPLES) -> None:
    """The end of a successful run."""
    run = job.status.run
    if run is None:
        return
    if run.dataset:
        show_dataset(console, run.dataset)
    if run.evaluation:
        show_scores(console, run.evaluation)
    if run.gate:
        passed = run.gate.verdict is GateVerdict.PASSED
        text = "passed: the model is promoted" if passed else "failed: the model is kept, but not promoted"
        console.print(f"Gate [bold {'green' if passed else 'red'}]{text}[/]. {escape('; '.join(run.gate.reasons))}")
    for note in run.notes:
        console.print(f"Note: {escape(note)}", highlight=False)
    answers = sample_answers(store, job, run)
    if answers and samples:
        show_answers(console, [(a.prompt, a.base, a.tuned) for a in answers[:samples]], "Held-out questions")


def show_scores(console: Console, evaluation: EvaluationStatus) -> None:
    """Base against tuned, and how sure that is, in plain words."""
    base, few, tuned = evaluation.base, evaluation.few_shot, evaluation.tuned
    columns = [("base", base), ("base with examples", few), ("tuned", tuned)]
    table = Table(title=f"\nOn {evaluation.examples} held-out examples", title_justify="left", title_style="bold")
    table.add_column("")
    shown = [(name, scores) for name, scores in columns if scores is not None]
    for name, _ in shown:
        table.add_column(name, justify="right")
    table.add_column("")
    table.add_row("loss", *(f"{s.loss:.3f}" for _, s in shown), "lower is better")
    table.add_row("perplexity", *(f"{s.perplexity:,.1f}" for _, s in shown), "lower is better; 1 is certain")
    table.add_row("right next token", *(f"{s.token_accuracy:.1%}" for _, s in shown), "higher is better")
    console.print(table, highlight=False)
    interval = evaluation.loss_difference
    if interval is not None:
        sure = "so it is not by chance" if interval.low > 0 else "so it may be by chance; more held-out examples tell"
        if interval.high < 0:
            sure = "so the tuned model is worse"
        text = f"The tuned loss is lower by {interval.low:.2f} to {interval.high:.2f} (95 % interval), {sure}."
        console.print(text, highlight=False)


def show_answers(console: Console, answers: Sequence[tuple[str, str, str]], title: str) -> None:
    """Question, base, tuned: side by side."""
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", show_lines=True, expand=True)
    table.add_column("question", ratio=2)
    table.add_column("base", ratio=3, style="dim")
    table.add_column("tuned", ratio=4)
    for question, base, tuned in answers:
        table.add_row(Text(question), Text(_short(base)), Text(_short(tuned)))
    console.print(table, highlight=False)


def _short(answer: str, length: int = 320) -> str:
    text = " ".join(answer.split()) or "(nothing)"
    return text if len(text) <= length else f"{text[:length]} ..."


def sample_answers(store: Store, job: FineTuneJob, run: RunStatus) -> list[SampleAnswer]:
    """What Evaluate kept; none when its report is gone."""
    path = run_folder(store, job, run) / "evaluation" / "report.json"
    try:
        return EvaluateReport.model_validate_json(path.read_bytes()).samples
    except (OSError, ValueError):
        return []


def run_folder(store: Store, job: FineTuneJob, run: RunStatus) -> Path:
    meta = job.metadata
    return store.artifacts / names.run_folder(meta.namespace, meta.name, run.number, run.hash)


def show_failure(console: Console, job: FineTuneJob, log: Path | None) -> None:
    """What went wrong, where, and the remedy."""
    run = job.status.run
    failure = run.failure if run else None
    if run and run.dataset:
        show_dataset(console, run.dataset)
    if failure is None:
        console.print(f"[red]{escape(words.message(job))}[/]", highlight=False, soft_wrap=True)
        return
    where = f"{failure.stage.value}: " if failure.stage else ""
    console.print(f"[red bold]{where}{failure.reason}[/] {escape(failure.message)}", highlight=False, soft_wrap=True)
    if failure.advice:
        console.print(f"What to do: {escape(failure.advice)}", highlight=False, soft_wrap=True)
    if log:
        console.print(f"The log: {escape(str(log))}", highlight=False, soft_wrap=True)


def show_rendered(console: Console, folder: Path) -> None:
    """One example as the model sees it, with what is trained on marked."""
    try:
        examples: list[dict[str, Any]] = json.loads((folder / "dataset" / "report.json").read_bytes())["examples"]
    except (OSError, ValueError, KeyError):
        return
    if not examples:
        return
    text = Text()
    colour = console.is_terminal and not console.no_color
    for piece in examples[0]["pieces"]:
        marked = piece["text"] if colour or not piece["trained"] else f">>{piece['text']}<<"
        text.append(marked, style="bold green" if piece["trained"] else "dim")
    marks = "in green" if colour else "between >> and <<"
    console.print(f"\n[bold]An example as the model sees it[/] (what stands {marks} is learnt, the rest is only read)")
    console.print(text, soft_wrap=True)


def show_plan(console: Console, run: RunStatus) -> None:
    """What `auto` became, and what the training is expected to need."""
    values, needs = run.resolved, run.estimate
    if values:
        rank = f", LoRA rank {values.lora_rank}" if values.lora_rank else ""
        trained = f"{values.trainable_parameters or 0:,} of {values.model_parameters or 0:,} parameters"
        console.print(
            f"\n[bold]The training[/]\n{values.epochs} epochs, {values.total_steps:,} steps of {values.batch_size} "
            f"examples, learning rate {values.learning_rate:g}{rank}: {trained}",
            highlight=False,
        )
    if needs:
        time = words.duration(needs.train_seconds)
        console.print(
            f"Expected: {words.size(needs.memory_bytes)} of memory, about {time} of training", highlight=False
        )
    for note in run.notes:
        console.print(f"Note: {escape(note)}", highlight=False)
