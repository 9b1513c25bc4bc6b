"""`status.run.evaluation` and `status.run.gate`: what was measured of each model, and the verdict on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from finetune_api.base import StatusModel
from finetune_api.benchmarks import MOST_BENCHMARKS, MetricName, TaskName
from finetune_api.checks import MOST_CHECKS, NAME_LENGTH
from finetune_api.conditions import GateVerdict
from finetune_api.evaluation import Baseline
from finetune_api.failure import Count
from finetune_api.tasks import Metric

FEWEST_EXAMPLES = 10  # held-out examples below which a difference between two models is not called certain


class Interval(StatusModel):
    """A 95 % bootstrap interval."""

    low: float = Field(description="Lower end.")
    high: float = Field(description="Upper end.")


class Scores(StatusModel):
    """Metrics on the held-out examples: those of the task, named as in `evaluation.gate`."""

    loss: float = Field(description="Mean loss: of a trained-on token, or of an example. Nats.")
    loss_interval: Interval | None = Field(default=None, description="Interval of the loss.")
    perplexity: float | None = Field(default=None, description="exp(loss).")
    token_accuracy: float | None = Field(
        default=None, description="Share of the trained-on tokens (or words) that were right, 0 to 1."
    )
    tool_name: float | None = Field(
        default=None,
        description="Share of the held-out turns with calls in which the right functions are called, 0 to 1.",
    )
    tool_valid: float | None = Field(
        default=None, description="Share of such turns whose arguments are valid against the tools' schemas, 0 to 1."
    )
    tool_exact: float | None = Field(
        default=None, description="Share of such turns with the right functions and equal arguments, 0 to 1."
    )
    reward_accuracy: float | None = Field(
        default=None, description="Share of the pairs in which the better answer is preferred, 0 to 1."
    )
    reward_margin: float | None = Field(
        default=None, description="Mean of the better answer's reward minus the worse one's, nats times beta."
    )
    accuracy: float | None = Field(default=None, description="Share of the examples that were right, 0 to 1.")
    macro_f1: float | None = Field(default=None, alias="macroF1", description="Mean F1 of the labels, 0 to 1.")
    weighted_f1: float | None = Field(
        default=None, alias="weightedF1", description="Mean F1 of the labels, weighted by how often they occur, 0 to 1."
    )
    entity_f1: float | None = Field(
        default=None, alias="entityF1", description="F1 of whole entities, by seqeval's rules, 0 to 1."
    )
    bleu: float | None = Field(default=None, description="Corpus BLEU by sacrebleu, 0 to 100.")
    chrf: float | None = Field(default=None, description="Corpus chrF by sacrebleu, 0 to 100.")
    rouge_l: float | None = Field(default=None, description="Mean ROUGE-L F1, 0 to 1.")
    exact_match: float | None = Field(
        default=None, description="Share of the answers that equal an expected one, by SQuAD's rules, 0 to 1."
    )
    answer_f1: float | None = Field(
        default=None, alias="answerF1", description="Mean word overlap with the expected answers, by SQuAD's rules."
    )

    request_tokens: float | None = Field(
        default=None,
        description="Mean tokens that are read before an answer is written: what a request costs. Chat, Completion.",
    )

    def value(self, metric: Metric) -> float | None:
        """What was measured under this name; None when it was not."""
        found: float | None = self.model_dump(by_alias=True).get(metric.value)
        return found


class CheckScore(StatusModel):
    """How many answers pass a check. Which ones do not is in the run's report."""

    name: Annotated[str, Field(max_length=NAME_LENGTH)] = Field(description="The check's name.")
    asked: Count = Field(description="Answers of each model.")
    base: float | None = Field(default=None, description="Share of the base model's answers that pass, 0 to 1.")
    tuned: float = Field(description="Share of the tuned model's answers that pass, 0 to 1.")


class BenchmarkScore(StatusModel):
    """How base and tuned model do a benchmark. All its metrics are in the run's report."""

    task: TaskName = Field(description="Name of the task in lm-eval.")
    metric: MetricName | None = Field(
        default=None,
        description="What is measured, by lm-eval's name. It and `questions` stand in the run's report, too.",
    )
    lower_is_better: bool = Field(default=False, description="Whether it is better when lower, as a perplexity.")
    questions: Count | None = Field(default=None, description="Questions that both models were asked.")
    base: float = Field(description="The base model's figure.")
    tuned: float = Field(description="The tuned model's figure.")
    difference: Interval | None = Field(
        default=None,
        description="95 % interval of tuned minus base, question by question; with 0 in it the change may be chance.",
    )

    @property
    def measure(self) -> str:
        """The metric, and which way is better where that is not up."""
        name = self.metric or "figure"  # a summary that was too long for a termination message has lost its name
        return f"{name} (lower is better)" if self.lower_is_better else name

    @property
    def change(self) -> str:
        """What the tuning did, in a word or two. Empty where only a figure of all questions together is known."""
        if self.difference is None:
            return ""
        if self.difference.low <= 0 <= self.difference.high:
            return "may be chance" if self.difference.low < self.difference.high else "none"
        return "worse" if (self.difference.high < 0) != self.lower_is_better else "better"


class JudgeStatus(StatusModel):
    """What the judge preferred. A verdict counts when it is the same in both orders; otherwise it is a tie."""

    asked: Count = Field(default=0, description="Questions with a verdict.")
    wins: Count = Field(default=0, description="Of these, the tuned model's answer was preferred.")
    ties: Count = Field(default=0, description="Neither was, or the verdict turned with the order.")
    losses: Count = Field(default=0, description="The base model's answer was preferred.")
    unusable: Count = Field(default=0, description="Questions without a verdict that could be read.")
    share: float | None = Field(default=None, description="Wins, and ties by half, of those asked: 0 to 1.")
    interval: Interval | None = Field(default=None, description="95 % interval of the share.")


class EvaluationStatus(StatusModel):
    """The proof: base and tuned on the same held-out examples."""

    examples: Count = Field(default=0, description="Examples that were measured.")
    base: Scores | None = Field(default=None, description="The base model.")
    few_shot: Scores | None = Field(default=None, description="The base model with examples in its prompt.")
    retrieval: Scores | None = Field(
        default=None, description="The base model with those examples in its prompt that are nearest to the question."
    )
    previous: Scores | None = Field(default=None, description="The model of the earlier run.")
    previous_run: Count | None = Field(
        default=None, description="Number of the earlier run, also when its model could not be measured."
    )
    tuned: Scores | None = Field(default=None, description="The tuned model.")
    loss_difference: Interval | None = Field(
        default=None, description="95 % interval of base loss minus tuned loss, example by example; above 0: better."
    )
    stopped_by_itself: float | None = Field(
        default=None, description="Share of the sample answers that ended by themselves."
    )
    checks: list[CheckScore] = Field(default=[], max_length=MOST_CHECKS, description="The behaviour checks.")
    benchmarks: list[BenchmarkScore] = Field(
        default=[], max_length=MOST_BENCHMARKS, description="The benchmarks; one that could not be measured is a note."
    )
    judge: JudgeStatus | None = Field(default=None, description="What the judge says of the answers.")
    notes: list[Annotated[str, Field(max_length=512)]] = Field(
        default=[], max_length=8, description="What the figures do not say: what was left out, and why."
    )
    settings_hash: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="Of `evaluation` without its gate, as it was then. Another one: measured anew."
    )

    @property
    def says_enough(self) -> bool:
        """Whether so many examples were measured that `loss_difference` is more than chance."""
        return self.examples >= FEWEST_EXAMPLES

    def scores(self, baseline: Baseline) -> Scores | None:
        """What was measured of a baseline; None when it was not."""
        return {
            Baseline.BASE: self.base,
            Baseline.FEW_SHOT: self.few_shot,
            Baseline.RETRIEVAL: self.retrieval,
            Baseline.PREVIOUS: self.previous,
        }[baseline]

    @property
    def certainty(self) -> str | None:
        """What the interval of base minus tuned loss says, and whether that many examples can say it. None when the
        base was not measured."""
        if self.loss_difference is None:
            return None
        worse = self.loss_difference.high < 0
        low, high = sorted(abs(end) if worse else end for end in (self.loss_difference.low, self.loss_difference.high))
        text = f"The tuned loss is {'higher' if worse else 'lower'} by {low:.2f} to {high:.2f} (95 % interval)"
        if not self.says_enough:
            return (
                f"{text}, but {self.examples} held-out examples are too few to trust that; hold out at least "
                f"{FEWEST_EXAMPLES}."
            )
        if worse:
            return f"{text}: training made it worse."
        if low > 0:
            return f"{text}, so it is not by chance."
        return f"{text}, so it may be by chance; more held-out examples tell."

    @property
    def worth(self) -> str | None:
        """Whether tuning was worth it at all, in a sentence: against the best of what needs no training. None when
        only the base was measured, which `loss_difference` tells of."""
        prompted = [(one, found) for one, found in self._prompted() if found.request_tokens is not None]
        if self.tuned is None or self.tuned.request_tokens is None or len(prompted) < 2:
            return None
        best, found = min(prompted, key=lambda pair: pair[1].loss)
        verdict = "worth it" if self.tuned.loss < found.loss else "not worth it"
        sure = "was" if self.says_enough else "looks"
        return (
            f"Tuning {sure} {verdict}: a prompt with {PROMPT_WORDS[best]} reaches a loss of {found.loss:.3g} with "
            f"{found.request_tokens:,.0f} tokens a request, the tuned model {self.tuned.loss:.3g} with "
            f"{self.tuned.request_tokens:,.0f}."
        )

    @property
    def preferred(self) -> str | None:
        """What the judge says, in a sentence. None where none was asked, or none answered."""
        found = self.judge
        if found is None or found.share is None or found.interval is None:
            return None
        return (
            f"The judge prefers the tuned model's answer {found.wins} times and the base's {found.losses} times in "
            f"{found.asked} questions, each asked in both orders: {found.share:.0%} for the tuned model, ties by half "
            f"(95 % interval {found.interval.low:.0%} to {found.interval.high:.0%})."
        )

    def _prompted(self) -> Iterator[tuple[Baseline, Scores]]:
        for baseline in PROMPT_WORDS:
            if (found := self.scores(baseline)) is not None:
                yield baseline, found


PROMPT_WORDS = {
    Baseline.BASE: "no examples",
    Baseline.FEW_SHOT: "fixed examples",
    Baseline.RETRIEVAL: "the nearest examples",
}


class GateStatus(StatusModel):
    """The gate's verdict on the run."""

    verdict: GateVerdict = Field(description="Passed or Failed.")
    reasons: list[Annotated[str, Field(max_length=256)]] = Field(
        default=[], max_length=16, description="One sentence a rule."
    )
