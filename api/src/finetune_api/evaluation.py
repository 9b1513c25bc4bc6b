"""`FineTuneJob.spec.evaluation`: with what a tuned model is compared, what its answers must do, and the gate."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from finetune_api.base import ApiModel, Int, Named, Rule
from finetune_api.benchmarks import MOST_BENCHMARKS, BenchmarkSpec, TaskName
from finetune_api.checks import MOST_CHECKS, BehaviourCheck, CheckName
from finetune_api.fields import DECIMAL, PERCENT, distinct, given
from finetune_api.judge import JUDGE_CHECK, JudgeSpec
from finetune_api.tasks import Metric

ANSWER_TOKENS = 128


class Baseline(Named):
    """What a tuned model is compared with. The first three cost no training."""

    BASE = "Base"
    FEW_SHOT = "FewShot"
    RETRIEVAL = "Retrieval"
    PREVIOUS = "Previous"


IN_PROMPT = (Baseline.FEW_SHOT, Baseline.RETRIEVAL)
# What is measured without generating: with examples in the prompt nothing is generated.
IN_PROMPT_METRICS = (Metric.LOSS, Metric.PERPLEXITY, Metric.TOKEN_ACCURACY)


class GateRule(ApiModel):
    """One condition that the tuned model must meet: of a metric on the held-out examples, of a check's answers, or of a
    benchmark."""

    metric: Metric | None = Field(
        default=None,
        description="What is measured; the reference has each task's metrics under Tasks. loss and perplexity are "
        "better when lower, all others when higher.",
    )
    min_improvement: str | None = Field(
        default=None,
        max_length=10,
        pattern=PERCENT,
        description='How much better than the baseline, in percent of the baseline\'s value, for example "5%".',
    )
    against: Baseline | None = Field(
        default=None,
        description="minImprovement: the baseline, one of those that are measured. Default Base. Previous: holds while "
        "there is no earlier promoted run.",
    )
    max: str | None = Field(default=None, max_length=16, pattern=DECIMAL, description='Upper bound, for example "1.5".')
    min: str | None = Field(default=None, max_length=16, pattern=DECIMAL, description='Lower bound, for example "0.7".')
    check: CheckName | None = Field(
        default=None,
        description="In place of a metric: name of one of the checks, or judge: the share of the questions on which it "
        "prefers the tuned model's answer, ties by half.",
    )
    min_share: str | None = Field(
        default=None,
        max_length=10,
        pattern=PERCENT,
        description='check: share of the tuned model\'s answers that must pass it, for example "95%".',
    )
    benchmark: TaskName | None = Field(
        default=None, description="In place of a metric: task of one of evaluation.benchmarks, judged by its metric."
    )
    max_drop: str | None = Field(
        default=None,
        max_length=10,
        pattern=PERCENT,
        description="benchmark: how much worse than the base's figure the tuned model's may be, in percent of it, for "
        'example "5%".',
    )
    rules: ClassVar = (
        Rule(
            "[has(self.metric), has(self.check), has(self.benchmark)].filter(x, x).size() == 1",
            "give one of a metric, the name of a check and the task of a benchmark",
            lambda rule: given(rule.metric, rule.check, rule.benchmark) == 1,
        ),
        Rule(
            "!has(self.metric) || [has(self.minImprovement), has(self.max), has(self.min)].filter(x, x).size() == 1",
            "give exactly one of minImprovement, max and min",
            lambda rule: rule.metric is None or given(rule.min_improvement, rule.max, rule.min) == 1,
        ),
        Rule(
            "has(self.benchmark) ? [has(self.maxDrop), has(self.max), has(self.min)].filter(x, x).size() == 1 && "
            "!has(self.minImprovement) : !has(self.maxDrop)",
            "a benchmark goes with exactly one of maxDrop, max and min, and maxDrop with a benchmark",
            lambda rule: (
                rule.max_drop is None
                if rule.benchmark is None
                else given(rule.max_drop, rule.max, rule.min) == 1 and rule.min_improvement is None
            ),
        ),
        Rule(
            "has(self.check) == has(self.minShare) && (!has(self.check) || "
            "!(has(self.minImprovement) || has(self.max) || has(self.min)))",
            "a check goes with minShare, and minShare with a check",
            lambda rule: (
                (rule.check is None) == (rule.min_share is None)
                and (rule.check is None or given(rule.min_improvement, rule.max, rule.min) == 0)
            ),
        ),
        Rule(
            "!has(self.against) || has(self.minImprovement)",
            "against says what minImprovement is measured by; give minImprovement, or remove it",
            lambda rule: rule.against is None or rule.min_improvement is not None,
        ),
        Rule(
            "!has(self.against) || !has(self.metric) || !(self.against in ['FewShot', 'Retrieval']) || "
            f"self.metric in {[metric.value for metric in IN_PROMPT_METRICS]}",
            "with FewShot and Retrieval only loss, perplexity and tokenAccuracy are measured; compare another metric "
            "with Base or Previous",
            lambda rule: rule.against not in IN_PROMPT or rule.metric is None or rule.metric in IN_PROMPT_METRICS,
        ),
    )


class Gate(ApiModel):
    """The rules that decide whether a run is promoted. All must hold. No rule: every verified run is promoted."""

    rules_: list[GateRule] = Field(
        default=[],
        alias="rules",
        max_length=16,
        description="Conditions; all must hold.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


def _names(checks: list[BehaviourCheck]) -> list[BehaviourCheck]:
    """The API server refuses a second entry of one name; so do we."""
    distinct([check.name for check in checks])
    return checks


def _tasks(benchmarks: list[BenchmarkSpec]) -> list[BenchmarkSpec]:
    distinct([benchmark.task for benchmark in benchmarks])
    return benchmarks


# The API server tries the rules on the default of the whole, `{}`, before the fields in it have theirs.
_DEFAULT = "!has(self.gate)"


class EvaluationSpec(ApiModel):
    """How the result is proven against the base model."""

    baselines: Annotated[list[Baseline], AfterValidator(distinct)] = Field(
        default=[Baseline.BASE],
        max_length=len(Baseline),
        description="What the tuned model is compared with. Base is always measured. FewShot: the base with training "
        "examples in its prompt, always the same ones. Retrieval: with those that are nearest to the question. "
        "Previous: the model in service, or the last promoted one.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    few_shot_examples: Int = Field(
        default=3, ge=1, le=16, description="Examples in the prompt of the baselines FewShot and Retrieval."
    )
    max_examples: Int = Field(default=500, ge=1, le=10000, description="Held-out examples that are measured at most.")
    sample_answers: Int = Field(
        default=8, ge=0, le=32, description="Answers of base and tuned that are kept side by side."
    )
    answer_tokens: Int = Field(
        default=ANSWER_TOKENS,
        ge=16,
        le=2048,
        description="Tokens after which a generated answer is cut off. Seq2Seq: its answers also end at twice the "
        "length of the expected ones.",
    )
    checks: Annotated[list[BehaviourCheck], AfterValidator(_names)] = Field(
        default=[],
        max_length=MOST_CHECKS,
        description="What every generated answer must do. Base and tuned are both asked.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    check_answers: Int = Field(
        default=32, ge=1, le=500, description="Held-out questions that are answered for the checks, at most."
    )
    benchmarks: Annotated[list[BenchmarkSpec], AfterValidator(_tasks)] = Field(
        default=[],
        max_length=MOST_BENCHMARKS,
        description="Tasks of lm-eval that base and tuned model both do: whether the tuning broke what the base could. "
        "Chat, Completion, Preference. Their data is fetched when a run is prepared.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["task"]},
    )
    judge: JudgeSpec | None = Field(
        default=None, description="A model that compares the answers of base and tuned model. Default: none."
    )
    gate: Gate = Field(
        default=Gate(rules_=[GateRule(metric=Metric.LOSS, min_improvement="0%")]),
        description="When a run may take over serving. By default the tuned loss must not be above the base's.",
    )
    rules: ClassVar = (
        Rule(
            "self.gate.rules.all(r, !has(r.against) || r.against == 'Base' || r.against in self.baselines)",
            "evaluation.gate: a rule compares with a baseline that is not measured; add it to evaluation.baselines",
            lambda spec: all(rule.against in (None, Baseline.BASE, *spec.baselines) for rule in spec.gate.rules_),
            unless=_DEFAULT,
        ),
        Rule(
            f"self.gate.rules.all(r, !has(r.check) || (r.check == '{JUDGE_CHECK}' "
            "? has(self.judge) : self.checks.exists(c, c.name == r.check)))",
            "evaluation.gate: a rule names a check that is not there; add it to evaluation.checks, or set "
            "evaluation.judge",
            lambda spec: (
                {rule.check for rule in spec.gate.rules_ if rule.check}
                <= {check.name for check in spec.checks} | ({JUDGE_CHECK} if spec.judge else set())
            ),
            unless=_DEFAULT,
        ),
        Rule(
            "self.gate.rules.all(r, !has(r.benchmark) || self.benchmarks.exists(b, b.task == r.benchmark))",
            "evaluation.gate: a rule names a benchmark that is not there; add it to evaluation.benchmarks",
            lambda spec: (
                {rule.benchmark for rule in spec.gate.rules_ if rule.benchmark}
                <= {benchmark.task for benchmark in spec.benchmarks}
            ),
            unless=_DEFAULT,
        ),
        Rule(
            "self.checks.all(c, !has(c.maxTokens) || c.maxTokens < self.answerTokens)",
            "evaluation.checks: answers are cut off at answerTokens, so that no answer could break maxTokens; raise "
            "evaluation.answerTokens above it",
            lambda spec: all((check.max_tokens or 0) < spec.answer_tokens for check in spec.checks),
            unless=_DEFAULT,
        ),
    )
