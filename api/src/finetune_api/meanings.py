"""What the words of the status mean, for the reference. Complete by test. Those of failures are in `reasons.py`."""

from __future__ import annotations

from finetune_api.conditions import ConditionType, ExitCode, Stage
from finetune_api.tasks import Metric

STAGE_MEANINGS = {
    Stage.PREPARE: "Downloads model and data once, checks every example, resolves `auto`, estimates time and memory.",
    Stage.TRAIN: "Trains, keeps checkpoints, verifies the result.",
    Stage.EVALUATE: "Measures base and tuned model on the held-out examples.",
    Stage.JUDGE: "Asks the judge which answers are better, when `evaluation.judge` is set. The gate waits for it.",
    Stage.PACKAGE: "Exports and tracks the run, where the spec asks for it. Serving does not wait for it.",
    Stage.SERVE: "The promoted model answers.",
}
CONDITION_MEANINGS = {
    ConditionType.READY: "The specification as it is now is fulfilled: trained, judged and, if wanted, answering.",
    ConditionType.RECONCILING: "Something is under way or waited for.",
    ConditionType.STALLED: "It does not go on by itself; `status.run.failure` says why and what to do.",
    ConditionType.DATASET_VALID: "The data of the newest run passed every check.",
    ConditionType.TRAINED: "The newest run has a verified model.",
    ConditionType.EVALUATED: "The newest run was measured against the base.",
    ConditionType.JUDGED: "The judge was asked, where `evaluation.judge` is set.",
    ConditionType.PROMOTED: "The newest run passed its gate.",
    ConditionType.SERVING: "A promoted model answers at `status.endpoint`.",
    ConditionType.PACKAGED: "The newest run is exported and tracked as the spec asks. Absent without either.",
    ConditionType.WITHIN_BUDGET: "The newest run has GPU hours and money left. Absent without a budget.",
    ConditionType.SUSPENDED: "`spec.suspend` is true and no stage's pod is left. There only while it is true.",
    ConditionType.SCHEDULED: "A next run is planned by `triggers.schedule`. Absent without one.",
    ConditionType.DATASET_POLLED: "The data can be looked at, as `triggers.datasetPoll` asks. Absent without it.",
}
EXIT_CODES = {
    ExitCode.DONE: "Done.",
    ExitCode.USER_INPUT: "The user's input is wrong. Not tried again.",
    ExitCode.GPU_OUT_OF_MEMORY: "The GPU's memory does not suffice. Not tried again.",
    ExitCode.LOSS_NOT_FINITE: "The loss is not finite. Not tried again.",
    ExitCode.ARTIFACT_INVALID: "An artifact failed its verification. Not tried again.",
    ExitCode.STORAGE_FULL: "The volume is full. Tried again at growing intervals, and not counted.",
    ExitCode.INTERRUPTED: "Interrupted, with a checkpoint saved. Tried again, and not counted.",
}
# For people who never trained a model: a name, and how to read the figure.
METRIC_MEANINGS = {
    Metric.LOSS: ("loss", "lower is better"),
    Metric.PERPLEXITY: ("perplexity", "lower is better; 1 is certain"),
    Metric.TOKEN_ACCURACY: ("right next token", "higher is better"),
    Metric.TOOL_NAME: ("right function called", "higher is better"),
    Metric.TOOL_VALID: ("arguments fit the schema", "higher is better"),
    Metric.TOOL_EXACT: ("function and arguments right", "higher is better"),
    Metric.REWARD_ACCURACY: ("better answer preferred", "higher is better; the base is at 50 %"),
    Metric.REWARD_MARGIN: ("margin of the better answer", "higher is better"),
    Metric.ACCURACY: ("right label", "higher is better"),
    Metric.MACRO_F1: ("F1, every label alike", "higher is better"),
    Metric.WEIGHTED_F1: ("F1, frequent labels count more", "higher is better"),
    Metric.ENTITY_F1: ("F1 of whole entities", "higher is better"),
    Metric.BLEU: ("BLEU", "higher is better, 0 to 100"),
    Metric.CHRF: ("chrF", "higher is better, 0 to 100"),
    Metric.ROUGE_L: ("ROUGE-L", "higher is better"),
    Metric.EXACT_MATCH: ("exactly the answer", "higher is better"),
    Metric.ANSWER_F1: ("words of the answer", "higher is better"),
}
# Shown as they are; every other one is a share, shown in percent.
PLAIN_METRICS = frozenset({Metric.LOSS, Metric.PERPLEXITY, Metric.REWARD_MARGIN, Metric.BLEU, Metric.CHRF})
