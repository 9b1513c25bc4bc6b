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

from finetune_api.conditions import FailureReason, GateVerdict
from finetune_api.job import FineTuneJob
from finetune_api.meanings import METRIC_MEANINGS, PLAIN_METRICS
from finetune_api.measured import BenchmarkScore, CheckScore, EvaluationStatus, Scores
from finetune_api.reports import EvaluateReport, SampleAnswer
from finetune_api.status import DatasetStatus, Problem, RunStatus
from finetune_api.tasks import Metric
from finetune_operator import names
from finetune_operator.cli import words
from finetune_operator.local.errors import BadInput
from finetune_operator.local.store import Store

SAMPLES = 4
BESIDE = 2  # models, beside which a table has room for words in a terminal of 80 columns
CLAIM_DEPTH = 6  # NAMESPACE/NAME/runs/RUN/reports/FILE
# For who sees these words for the first time.
EXPLAINED = {
    Metric.LOSS: "how wrong its guesses are; lower is better",
    Metric.PERPLEXITY: "among how many tokens it wavers; lower is better, 1 is certain",
    Metric.TOKEN_ACCURACY: "how often it guesses the next token; higher is better",
}
SEVERITIES = {"error": "bold red", "warning": "yellow"}


def say(console: Console, text: str) -> None:
    """Prose with markup: wrapped between words in a terminal, one line elsewhere."""
    console.print(text, highlight=False, soft_wrap=not console.is_terminal)


def show_dataset(console: Console, job: FineTuneJob, data: DatasetStatus, *, details: bool = False) -> None:
    """Problems always; with `details` the figures, too."""
    if details:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in _figures(data):
            table.add_row(name, value)
        console.print("\n[bold]The data[/]")
        console.print(table)
    show_problems(console, job, data.problems)
    if details and not data.problems:
        console.print("  no problems found")


def _figures(data: DatasetStatus) -> Iterator[tuple[str, str]]:
    yield "examples to learn from", f"{data.train_examples:,}"
    yield "examples held out", f"{data.validation_examples:,}"
    if data.labels:
        most = ", ".join(f"{each.label} ({each.count:,})" for each in data.labels[:12])
        yield "labels", most + (f" and {len(data.labels) - 12} more" if len(data.labels) > 12 else "")
    else:
        yield "tokens to learn", f"{data.loss_tokens:,} of {data.train_tokens:,} (the rest is only read)"
    if data.length:
        yield "tokens of an example", f"{data.length.min} to {data.length.max}, half of them at most {data.length.p50}"
    for name in ("truncated", "dropped", "duplicates", "near_duplicates", "overlap", "near_overlap"):
        if count := getattr(data, name):
            yield name.replace("_", " "), f"{count:,}"
    for step in data.cleaned:
        yield f"cleaning, {step.step}", f"{step.count:,}"


def show_problems(console: Console, job: FineTuneJob, problems: Sequence[Problem]) -> None:
    """The file, and a line a kind of problem: how bad, where, what."""
    for file in dict.fromkeys(problem.file for problem in problems):
        say(console, f"\nIn the {_role(file)}, {escape(source_of(job, file))}:")
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(max_width=36)
        table.add_column(overflow="fold")
        for problem in (each for each in problems if each.file == file):
            severity, separator, text = problem.message.partition(": ")
            if severity not in SEVERITIES or not separator:
                severity, text = "warning", problem.message
            table.add_row(Text(f"  {severity}", style=SEVERITIES[severity]), Text(_where(problem)), Text(text))
        console.print(table, highlight=False)


def _role(file: str) -> str:
    return "held-out data" if file == "validation" else "training data"


def source_of(job: FineTuneJob, file: str) -> str:
    """Where the job says that the data lies, in words. Held out of the training data is what has no file of its own."""
    data = job.spec.dataset
    held_out = file == "validation" and data.validation.fraction is None
    own = data.validation if held_out else {place: each for place, each, _ in data.train.parts}.get(file, data.train)
    return own.told or file


def _where(problem: Problem) -> str:
    lines = ", ".join(map(str, problem.lines))
    more = f" and {problem.count - len(problem.lines)} more" if problem.count > len(problem.lines) else ""
    return f"line{'s' if problem.count > 1 else ''} {lines}{more}" if lines else "as a whole"


def show_run(console: Console, store: Store, job: FineTuneJob, *, samples: int = SAMPLES) -> None:
    """The end of a successful run."""
    run = job.status.run
    if run is None:
        return
    if run.dataset:
        show_dataset(console, job, run.dataset)
        show_dataset_page(console, store, job)
    if run.cost:
        say(console, f"\nUsed: {words.cost(run.cost)}")
    if run.evaluation:
        show_scores(console, run.evaluation)
    if run.gate:
        passed = run.gate.verdict is GateVerdict.PASSED
        text = "passed: the model is promoted, so chat and serve use it" if passed else "failed: the model is not used"
        say(console, f"\nGate (what the job asks of a model) [bold {'green' if passed else 'red'}]{text}[/].")
        say(console, escape("; ".join(run.gate.reasons)))
    for note in [*run.notes, *(run.evaluation.notes if run.evaluation else ())]:
        say(console, f"Note: {escape(note)}")
    answers = sample_answers(store, job, run)
    if answers and samples:
        show_answers(console, [(a.prompt, a.base, a.tuned) for a in answers[:samples]], "Held-out questions")


def show_scores(console: Console, evaluation: EvaluationStatus) -> None:
    """Base against tuned, and how sure that is, in plain words."""
    title = f"\nOn {evaluation.examples} held-out examples, which it was not trained on"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    shown = [(name, scores) for name, scores in _columns(evaluation) if scores is not None]
    for name, _ in shown:
        table.add_column(name, justify="right")
    rows = list(_score_rows([scores for _, scores in shown]))
    beside = len(shown) <= BESIDE  # of more models nothing is left of the line for words
    if beside:
        table.add_column("")
    for word, figures, hint in rows:
        table.add_row(word, *figures, *([hint] if beside else []))
    console.print(table, highlight=False)
    for word, _, hint in [] if beside else rows:
        console.print(f"  {word}: {hint}", highlight=False, style="dim")
    for sentence in (evaluation.certainty, evaluation.worth, evaluation.preferred):
        if sentence:
            console.print(sentence, highlight=False)
    if evaluation.checks:
        show_checks(console, evaluation.checks)
    if evaluation.benchmarks:
        show_benchmarks(console, evaluation.benchmarks)


def _score_rows(shown: Sequence[Scores]) -> Iterator[tuple[str, list[str], str]]:
    """What was measured, the figure of each model, and how to read it."""
    for metric, (word, hint) in METRIC_MEANINGS.items():
        if any(scores.value(metric) is not None for scores in shown):
            yield word, [_figure(metric, scores.value(metric)) for scores in shown], EXPLAINED.get(metric, hint)
    if len({scores.request_tokens for scores in shown}) > 1:  # the same for all says nothing
        tokens = ["–" if scores.request_tokens is None else f"{scores.request_tokens:,.0f}" for scores in shown]
        yield "tokens of a request", tokens, "what is read before the answer; fewer are cheaper"


def _columns(evaluation: EvaluationStatus) -> list[tuple[str, Scores | None]]:
    return [
        ("base (before)", evaluation.base),
        ("base with examples", evaluation.few_shot),
        ("base with the nearest examples", evaluation.retrieval),
        (f"run {evaluation.previous_run}", evaluation.previous),
        ("tuned (after)", evaluation.tuned),
    ]


def show_checks(console: Console, checks: Sequence[CheckScore]) -> None:
    """How many answers pass each behaviour check."""
    table = Table(title="\nAnswers that pass the checks", title_justify="left", title_style="bold")
    for name in ("check", "answers", "base (before)", "tuned (after)"):
        table.add_column(name, justify="left" if name == "check" else "right")
    for check in checks:
        shares = ("–" if not check.asked or share is None else f"{share:.0%}" for share in (check.base, check.tuned))
        table.add_row(check.name, str(check.asked), *shares)
    console.print(table, highlight=False)


def show_benchmarks(console: Console, benchmarks: Sequence[BenchmarkScore]) -> None:
    """What the tuning did to what the base could do before."""
    table = Table(title="\nBenchmarks (lm-eval)", title_justify="left", title_style="bold")
    for name in ("task", "metric", "questions", "base (before)", "tuned (after)", "change"):
        table.add_column(name, justify="left" if name in ("task", "metric", "change") else "right")
    for found in benchmarks:
        questions, figures = str(found.questions or "–"), (f"{found.base:.4g}", f"{found.tuned:.4g}")
        table.add_row(found.task, found.measure, questions, *figures, found.change)
    console.print(table, highlight=False)


def _figure(metric: Metric, value: float | None) -> str:
    if value is None:
        return "–"
    if metric not in PLAIN_METRICS:
        return f"{value:.1%}"
    return f"{value:,.1f}" if metric in (Metric.PERPLEXITY, Metric.BLEU, Metric.CHRF) else f"{value:.3f}"


def show_answers(console: Console, answers: Sequence[tuple[str, str, str]], title: str) -> None:
    """Question, base, tuned: side by side. Where the base says nothing at all, it was not asked."""
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", show_lines=True, expand=True)
    asked = any(base for _, base, _ in answers)
    table.add_column("question", ratio=2)
    if asked:
        table.add_column("base", ratio=3, style="dim")
    table.add_column("tuned", ratio=4)
    for question, base, tuned in answers:
        table.add_row(Text(question), *([Text(_short(base))] if asked else []), Text(_short(tuned)))
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


def exports_of(store: Store, job: FineTuneJob) -> Iterator[str]:
    """Each finished export and where it lies; what is on the claim, as a folder of this machine."""
    package = job.status.run.package if job.status.run else None
    for tracker in package.trackers if package else ():
        yield f"{tracker.tracker} -> {tracker.url or 'files on the claim'}"
    for export in package.exports if package else ():
        here = store.artifacts / names.path_of(export.uri) if export.uri.startswith("pvc://") else export.uri
        yield f"{export.name} -> {here}"


def folder_of(store: Store, job: FineTuneJob, number: int | None) -> Path:
    """Of the newest run, or of the one with this number. Raises BadInput that names those that are known."""
    known = {record.number: record.hash for record in job.status.runs}
    if job.status.run is not None:
        known[job.status.run.number] = job.status.run.hash
    wanted = number if number is not None else job.status.run and job.status.run.number
    if wanted is None or wanted not in known:
        runs = ", ".join(map(str, sorted(known))) or "none"
        raise BadInput(f"{job.metadata.name} has no run {wanted or ''} here", f"known are: {runs}")
    meta = job.metadata
    return store.artifacts / names.run_folder(meta.namespace, meta.name, wanted, known[wanted])


def show_failure(console: Console, store: Store, job: FineTuneJob, log: Path | None) -> None:
    """What went wrong, where, and the remedy."""
    run = job.status.run
    failure = run.failure if run else None
    if failure is None:
        say(console, f"[red]{escape(words.message(job))}[/]")
        return
    problems = run.dataset.problems if run and run.dataset else []
    head = f"[red bold]{failure.stage or 'The run'} failed: {failure.reason}.[/]"
    if problems and failure.reason is FailureReason.DATASET_INVALID:
        say(console, f"{head} The data cannot be trained on.")
        show_problems(console, job, problems)
        console.print()
    else:
        show_problems(console, job, problems)
        say(console, f"{head} {escape(failure.message)}")
    if failure.advice:
        say(console, f"What to do: {escape(_with_whole_path(failure.advice, dataset_page(store, job)))}")
        if "secretRef" in failure.advice:
            say(console, "On this machine no Secret is read: set these variables in your shell.")
    if log:
        console.print(f"The log: {escape(str(log))}", highlight=False, soft_wrap=True)


def _with_whole_path(advice: str, path: Path | None) -> str:
    """The advice names the file as it lies on the output claim; here that is a folder of this machine."""
    if path is None:
        return advice
    return advice.replace("/".join(path.parts[-CLAIM_DEPTH:]), str(path))


def dataset_page(store: Store, job: FineTuneJob) -> Path | None:
    """The page about the run's data, where there is one: also of data that was refused."""
    run = job.status.run
    path = run_folder(store, job, run) / "reports" / "dataset.html" if run else None
    return path if path and path.is_file() else None


def show_dataset_page(console: Console, store: Store, job: FineTuneJob) -> None:
    if path := dataset_page(store, job):
        console.print(
            f"\nMore about the data, as a page for a browser: {escape(str(path))}", highlight=False, soft_wrap=True
        )


def show_rendered(console: Console, folder: Path) -> None:
    """One example as the model sees it, with what is trained on marked."""
    try:
        examples: list[dict[str, Any]] = json.loads((folder / "reports" / "dataset.json").read_bytes())["examples"]
    except (OSError, ValueError, KeyError):
        return
    if not examples:
        return
    if "pieces" not in examples[0]:
        _show_read(console, examples[0])
        return
    text = Text()
    colour = console.is_terminal and not console.no_color
    for piece in examples[0]["pieces"]:
        if piece.get("cut"):
            text.append(f" [cut off here: {len(piece['text']):,} more characters]", style="dim")
            continue
        marked = piece["text"] if colour or not piece["trained"] else f">>{piece['text']}<<"
        text.append(marked, style="bold green" if piece["trained"] else "dim")
    marks = "in green" if colour else "between >> and <<"
    console.print(f"\n[bold]An example as the model sees it[/] (what stands {marks} is learnt, the rest is only read)")
    console.print(text, soft_wrap=not console.is_terminal)


def _show_read(console: Console, example: dict[str, Any]) -> None:
    """An example of which not the words are learnt, but a label, tags, a place or another text."""
    console.print("\n[bold]An example[/], as the data has it, and as the model reads it")
    console.print(Text(json.dumps(example.get("example"), ensure_ascii=False)), soft_wrap=not console.is_terminal)
    console.print(Text(str(example.get("read", "")), style="dim"), soft_wrap=not console.is_terminal)


def show_plan(console: Console, run: RunStatus) -> None:
    """What `auto` became, and what the training is expected to need."""
    values, needs = run.resolved, run.estimate
    if values:
        rank = f", LoRA rank {values.lora_rank}" if values.lora_rank else ""
        trained = f"{values.trainable_parameters or 0:,} of {values.model_parameters or 0:,} parameters are trained"
        epochs = f"{values.epochs} epoch{'s' * (values.epochs != 1)}, {values.total_steps:,} steps"
        console.print("\n[bold]The training[/]")
        say(
            console,
            f"{epochs} of {values.batch_size} examples, learning rate {values.learning_rate:g}{rank}: {trained}",
        )
    if needs:
        say(
            console,
            f"Expected: {words.size(needs.memory_bytes)} of memory, {words.time_range(needs.train_seconds)} until the "
            "model is trained and measured; longer beside other work",
        )
    for note in run.notes:
        say(console, f"Note: {escape(note)}")
