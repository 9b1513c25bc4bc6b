"""A model does a benchmark, and base and tuned are compared question by question."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.benchmarks import BenchmarkSpec
from finetune_api.measured import BenchmarkScore
from finetune_api.reports import BenchmarkReport
from finetune_trainer.benchmarks.data import source_of, stored
from finetune_trainer.benchmarks.harness import build, quiet
from finetune_trainer.errors import ArtifactInvalidError, TrainerError
from finetune_trainer.evaluation.statistics import interval

log = logging.getLogger(__name__)

BATCH = 8  # rows at once, as for our own answers
ABSENT = "its data is not there: it is fetched when a run is prepared; a new rerunToken starts one"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What is done, and the folder that has its data."""

    wanted: BenchmarkSpec
    folder: Path


@dataclass(frozen=True, slots=True)
class Done:
    """How one model did one benchmark. Names are lm-eval's, without a filter where there is none.

    `each` has the figure of each question where a metric is their mean. With `why` it was not measured."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    each: Mapping[str, Sequence[float]] = field(default_factory=dict)
    questions: int = 0
    few_shot: int = 0
    version: str = ""
    why: str = ""


def do(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int, benchmarks: Sequence[Benchmark]
) -> dict[str, Done]:
    """How the model does each benchmark, by its task. Prompts longer than `context` tokens lose their beginning.

    What cannot be measured is said and fails nothing: it stands beside the proof on the held-out examples.
    """
    if not benchmarks:
        return {}
    quiet()
    lm = _language_model(model, tokenizer, context)
    return {benchmark.wanted.task: _done(lm, benchmark) for benchmark in benchmarks}


def _language_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int) -> Any:
    from lm_eval.models.huggingface import HFLM  # seconds to import

    class Model(HFLM):  # type: ignore[misc]  # the library has no types
        @property
        def max_gen_toks(self) -> int:
            """Of tasks that do not say it: lm-eval's 256 tokens, or what leaves as much of a short context to read."""
            return min(int(super().max_gen_toks), context // 2)

        # Without its bars of progress, which only these arguments leave out.
        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

    # A copy: the library gives a tokenizer without a padding token one.
    return Model(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=BATCH, max_length=context)


def _done(lm: Any, benchmark: Benchmark) -> Done:
    wanted = benchmark.wanted
    if not benchmark.folder.is_dir():
        return Done(why=ABSENT)
    try:
        found = _evaluate(lm, benchmark)
    except ArtifactInvalidError as error:
        return Done(why=error.message)
    except TrainerError:  # asked to stop
        raise
    except Exception as error:  # whatever the task's code does on what a model writes, out of memory too
        log.warning("benchmark %s: %s", wanted.task, error, exc_info=True)
        return Done(why=f"lm-eval failed: {type(error).__name__}: {error}"[:300])
    log.info("benchmark=%s questions=%d %s", wanted.task, found.questions, dict(found.metrics))
    return found


def _evaluate(lm: Any, benchmark: Benchmark) -> Done:
    from lm_eval.api.metrics import mean
    from lm_eval.evaluator import evaluate

    wanted = benchmark.wanted
    task = build(wanted, lambda config: stored(benchmark.folder))
    # No bootstrap of the library's: it starts a process a core for each figure.
    found = evaluate(
        lm, {"tasks": {wanted.task: task}, "groups": {}}, limit=wanted.limit, bootstrap_iters=0, log_samples=True
    )
    better, means = task.higher_is_better(), task.aggregation()
    metrics = {
        _name(key): float(value)
        for key, value in found["results"][wanted.task].items()
        if key.partition(",")[0] in means and isinstance(value, int | float | np.number)
    }
    samples = found["samples"][wanted.task]
    return Done(
        metrics=metrics,
        higher_is_better={name: bool(better.get(name.partition(",")[0], True)) for name in metrics},
        each={name: _each(samples, name) for name in metrics if means[name.partition(",")[0]] is mean},
        questions=len({sample["doc_id"] for sample in samples}),
        few_shot=int(task.get_config("num_fewshot")),
        version=str(task.VERSION),
    )


def _name(key: str) -> str:
    return key.removesuffix(",none")


def _each(samples: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The metric of each question, in their order; empty when it is no number of each."""
    metric, _, way = name.partition(",")
    mine = sorted((one for one in samples if one["filter"] == (way or "none")), key=lambda one: one["doc_id"])
    values = [one[metric] for one in mine if isinstance(one.get(metric), int | float | np.number)]
    return [float(value) for value in values] if len(values) == len(mine) else []


def compared(
    benchmarks: Sequence[Benchmark], base: Mapping[str, Done], tuned: Mapping[str, Done], seed: int
) -> tuple[list[BenchmarkReport], list[str]]:
    """What both have done, and a note for each benchmark that one of them could not."""
    reports, notes = [], []
    for benchmark in benchmarks:
        task = benchmark.wanted.task
        found = _compared(benchmark, base[task], tuned[task], seed)
        if isinstance(found, str):
            notes.append(f"benchmark {task}: not measured: {found}")
        else:
            reports.append(found)
    return reports, notes


def _compared(benchmark: Benchmark, base: Done, tuned: Done, seed: int) -> BenchmarkReport | str:
    if why := base.why or tuned.why:
        return why
    name = _chosen(benchmark.wanted.metric, tuned.metrics)
    if name is None:
        return f"it has no metric {benchmark.wanted.metric or ''}".rstrip() + f", but {', '.join(tuned.metrics)}"
    if not (math.isfinite(base.metrics[name]) and math.isfinite(tuned.metrics[name])):
        return f"{name} is not finite"
    score = BenchmarkScore(
        task=benchmark.wanted.task,
        metric=name,
        lower_is_better=not tuned.higher_is_better[name],
        questions=tuned.questions,
        base=base.metrics[name],
        tuned=tuned.metrics[name],
    )
    pairs = np.array([tuned.each.get(name, ()), base.each.get(name, ())])
    if pairs.size:
        each = pairs[0] - pairs[1]
        score = score.model_copy(update={"difference": interval(each, np.ones(len(each), dtype=np.int64), seed)})
    return BenchmarkReport(
        score=score,
        base=_finite(base.metrics),
        tuned=_finite(tuned.metrics),
        few_shot_examples=tuned.few_shot,
        source=source_of(benchmark.folder),
        harness=f"lm-eval {_version()}",
        version=tuned.version,
    )


def _chosen(wanted: str | None, metrics: Mapping[str, float]) -> str | None:
    """The metric of that name, with whichever filter comes first where none is named; the first when none is wanted."""
    return next((name for name in metrics if wanted is None or wanted in (name, name.partition(",")[0])), None)


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _version() -> str:
    import lm_eval

    return str(lm_eval.__version__)
