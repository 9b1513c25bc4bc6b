"""Mistakes in `evaluation`: its baselines, its checks and its gate."""

from __future__ import annotations

from tests.integration.bad_manifests import Bad

ONE_KIND = "give exactly one of contains, notContains, matches, notMatches, jsonSchema, maxWords and maxTokens"
GATE = "spec.evaluation.gate.rules[0]"

EVALUATION = (
    Bad("a check of nothing", "evaluation: {checks: [{name: a}]}", "spec.evaluation.checks[0]", ONE_KIND),
    Bad(
        "a check of two things",
        "evaluation: {checks: [{name: a, maxWords: 9, contains: [sea]}]}",
        "spec.evaluation.checks[0]",
        ONE_KIND,
    ),
    Bad(
        "a length that no answer can have",
        "evaluation: {checks: [{name: a, maxTokens: 128}]}",
        "spec.evaluation",
        "evaluation.checks: answers are cut off at answerTokens, so that no answer could break maxTokens",
    ),
    Bad(
        "a rule on a check that is not there",
        "evaluation: {checks: [{name: a, maxWords: 9}], gate: {rules: [{check: b, minShare: 90%}]}}",
        "spec.evaluation",
        "evaluation.gate: a rule names a check that is not there; add it to evaluation.checks",
    ),
    Bad(
        "a rule on a check without its share",
        "evaluation: {checks: [{name: a, maxWords: 9}], gate: {rules: [{check: a}]}}",
        GATE,
        "a check goes with minShare, and minShare with a check",
    ),
    Bad(
        "a share of a metric",
        "evaluation: {gate: {rules: [{metric: loss, max: '1', minShare: 90%}]}}",
        GATE,
        "a check goes with minShare, and minShare with a check",
    ),
    Bad(
        "a rule on a check with a bound",
        "evaluation: {checks: [{name: a, maxWords: 9}], gate: {rules: [{check: a, minShare: 90%, min: '1'}]}}",
        GATE,
        "a check goes with minShare, and minShare with a check",
    ),
    Bad(
        "a rule on nothing",
        "evaluation: {gate: {rules: [{max: '1'}]}}",
        GATE,
        "give one of a metric, the name of a check and the task of a benchmark",
    ),
    Bad(
        "a rule on a metric and a check",
        "evaluation: {checks: [{name: a, maxWords: 9}], gate: {rules: [{metric: loss, check: a, minShare: 90%}]}}",
        GATE,
        "give one of a metric, the name of a check and the task of a benchmark",
    ),
    Bad(
        "a rule on a judge that is not there",
        "evaluation: {gate: {rules: [{check: judge, minShare: 50%}]}}",
        "spec.evaluation",
        "evaluation.gate: a rule names a check that is not there; add it to evaluation.checks, or set evaluation.judge",
    ),
    Bad(
        "a check that is called judge",
        "evaluation: {checks: [{name: judge, maxWords: 9}]}",
        "spec.evaluation.checks[0]",
        "a check cannot be called judge: that is evaluation.judge in a gate rule; give it another name",
    ),
    Bad(
        "a judge of labels",
        "{task: Classification, evaluation: {judge: {url: 'https://llm.example.com/v1', model: m}}}",
        "spec",
        "evaluation.judge: only Chat, Completion, Preference and Seq2Seq write answers that could be judged; remove it",
    ),
    Bad(
        "a judge above its folder",
        "evaluation: {judge: {url: 'https://llm.example.com/../v1', model: m}}",
        "spec.evaluation.judge",
        "judge.url: '..' is not allowed; write the endpoint's base URL",
    ),
    Bad(
        "a baseline of a bound",
        "evaluation: {gate: {rules: [{metric: loss, max: '1', against: Base}]}}",
        GATE,
        "against says what minImprovement is measured by; give minImprovement, or remove it",
    ),
    Bad(
        "a rule against what is not measured",
        "evaluation: {gate: {rules: [{metric: loss, minImprovement: 0%, against: Previous}]}}",
        "spec.evaluation",
        "evaluation.gate: a rule compares with a baseline that is not measured; add it to evaluation.baselines",
    ),
    Bad(
        "calls that are not made with examples in the prompt",
        "evaluation: {baselines: [FewShot], "
        "gate: {rules: [{metric: toolExact, minImprovement: 0%, against: FewShot}]}}",
        GATE,
        "with FewShot and Retrieval only loss, perplexity and tokenAccuracy are measured",
    ),
    Bad(
        "benchmarks of a model that labels",
        "{task: Classification, evaluation: {benchmarks: [{task: hellaswag}]}}",
        "spec",
        "evaluation.benchmarks: only Chat, Completion and Preference tune a language model that does them; remove them",
    ),
    Bad(
        "a benchmark that is a path",
        "evaluation: {benchmarks: [{task: ../../etc/passwd}]}",
        "spec.evaluation.benchmarks[0].task",
        "should match",
    ),
    Bad(
        "a benchmark of no questions",
        "evaluation: {benchmarks: [{task: hellaswag, limit: 0}]}",
        "spec.evaluation.benchmarks[0].limit",
        "greater than or equal to 1",
    ),
    Bad(
        "a rule on a benchmark that is not done",
        "evaluation: {gate: {rules: [{benchmark: hellaswag, maxDrop: 5%}]}}",
        "spec.evaluation",
        "evaluation.gate: a rule names a benchmark that is not there; add it to evaluation.benchmarks",
    ),
    Bad(
        "a rule on a benchmark without a bound",
        "evaluation: {benchmarks: [{task: hellaswag}], gate: {rules: [{benchmark: hellaswag}]}}",
        GATE,
        "a benchmark goes with exactly one of maxDrop, max and min, and maxDrop with a benchmark",
    ),
    Bad(
        "a drop of a metric",
        "evaluation: {gate: {rules: [{metric: loss, max: '1', maxDrop: 5%}]}}",
        GATE,
        "a benchmark goes with exactly one of maxDrop, max and min, and maxDrop with a benchmark",
    ),
)
