"""Tasks, methods and metrics that do not go together: a part of the table of bad manifests."""

from __future__ import annotations

from tests.integration.bad_manifests import Bad

TASK_RULES = (
    Bad(
        "a label for a chat",
        "dataset: {cleaning: {fill: {label: other}}}",
        "spec",
        "dataset.cleaning.fill: only the task Classification has label and textPair; remove what is not of spec.task",
    ),
    Bad(
        "a prompt for a classifier",
        "{task: Classification, dataset: {cleaning: {fill: {label: other, prompt: hi}}}}",
        "spec",
        "dataset.cleaning.fill: only the task Completion has prompt and completion; remove what is not of spec.task",
    ),
    Bad(
        "long contexts left out",
        "{task: QuestionAnswering, dataset: {cleaning: {overLong: Drop}}}",
        "spec",
        "dataset.cleaning.overLong: QuestionAnswering reads long texts in windows and cuts nothing; remove it",
    ),
    Bad(
        "a metric of another task",
        "evaluation: {gate: {rules: [{metric: bleu, max: '1'}]}}",
        "spec",
        "evaluation.gate: the task Chat measures loss, perplexity, tokenAccuracy",
    ),
    Bad(
        "a classifier's perplexity",
        "{task: Classification, evaluation: {gate: {rules: [{metric: perplexity, max: '9'}]}}}",
        "spec",
        "evaluation.gate: the task Classification measures loss, accuracy, macroF1, weightedF1; use one of them",
    ),
    Bad(
        "one of two metrics of another task",
        "{task: Preference, evaluation: {gate: {rules: [{metric: loss, max: '1'}, {metric: accuracy, min: '1'}]}}}",
        "spec",
        "evaluation.gate: the task Preference measures loss, rewardAccuracy, rewardMargin; use one of them",
    ),
    Bad(
        "vLLM for a classifier",
        "{task: Classification, serving: {engine: VLLM}}",
        "spec",
        "serving.engine: vLLM serves Chat, Completion and Preference; set it to auto or Native",
    ),
    Bad(
        "vLLM for a translator",
        "{task: Seq2Seq, serving: {engine: VLLM}}",
        "spec",
        "serving.engine: vLLM serves Chat, Completion and Preference; set it to auto or Native",
    ),
    Bad(
        "packed tags",
        "{task: TokenClassification, hyperparameters: {packing: Enabled}}",
        "spec",
        "hyperparameters.packing: only Chat and Completion can share a row; set it to auto",
    ),
    Bad(
        "examples in the prompt of a reader",
        "{task: QuestionAnswering, evaluation: {baselines: [Base, FewShot]}}",
        "spec",
        "evaluation.baselines: FewShot and Retrieval put examples into a prompt, which only Chat and Completion have",
    ),
    Bad(
        "the nearest examples in the prompt of a classifier",
        "{task: Classification, evaluation: {baselines: [Retrieval]}}",
        "spec",
        "evaluation.baselines: FewShot and Retrieval put examples into a prompt, which only Chat and Completion have",
    ),
    Bad(
        "a check of what a classifier writes",
        "{task: Classification, evaluation: {checks: [{name: short, maxWords: 9}]}}",
        "spec",
        "evaluation.checks: only Chat, Completion, Preference and Seq2Seq write answers that could be checked",
    ),
    Bad(
        "a beta for a chat",
        "hyperparameters: {beta: '0.1'}",
        "spec",
        "hyperparameters.beta: only the task Preference has it; remove it",
    ),
    Bad(
        "rank-stabilised full weights",
        "method: {type: Full, rsLoRA: true}",
        "spec.method",
        "method.rsLoRA: Full has no adapter; remove it or set method.type to LoRA, QLoRA or DoRA",
    ),
    Bad(
        "initialised full weights",
        "method: {type: Full, initialization: gaussian}",
        "spec.method",
        "method.initialization: Full has no adapter; remove it or set method.type to LoRA, QLoRA or DoRA",
    ),
    Bad(
        "doubly quantised LoRA",
        "method: {type: LoRA, doubleQuantization: true}",
        "spec.method",
        "method.doubleQuantization: only QLoRA quantises; remove it or set method.type to QLoRA",
    ),
    Bad(
        "DoRA begun otherwise",
        "method: {type: DoRA, initialization: orthogonal}",
        "spec.method",
        "method.initialization: DoRA has its own; remove it",
    ),
)
