"""What can be learned, how it is measured, and what goes together: one table for admission, gate and documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.base import Named


class Task(Named):
    CHAT = "Chat"
    COMPLETION = "Completion"
    PREFERENCE = "Preference"
    CLASSIFICATION = "Classification"
    TOKEN_CLASSIFICATION = "TokenClassification"
    SEQ2SEQ = "Seq2Seq"
    QUESTION_ANSWERING = "QuestionAnswering"


class MethodType(Named):
    LORA = "LoRA"
    QLORA = "QLoRA"
    DORA = "DoRA"
    FULL = "Full"

    @property
    def adapter(self) -> bool:
        """Whether small matrices beside the frozen weights are trained."""
        return self is not MethodType.FULL


class Metric(Named):
    """What is measured on the held-out examples. The word is also the field of `status.run.evaluation.tuned`."""

    LOSS = "loss"
    PERPLEXITY = "perplexity"
    TOKEN_ACCURACY = "tokenAccuracy"
    TOOL_NAME = "toolName"
    TOOL_VALID = "toolValid"
    TOOL_EXACT = "toolExact"
    REWARD_ACCURACY = "rewardAccuracy"
    REWARD_MARGIN = "rewardMargin"
    ACCURACY = "accuracy"
    MACRO_F1 = "macroF1"
    WEIGHTED_F1 = "weightedF1"
    ENTITY_F1 = "entityF1"
    BLEU = "bleu"
    CHRF = "chrf"
    ROUGE_L = "rougeL"
    EXACT_MATCH = "exactMatch"
    ANSWER_F1 = "answerF1"

    @property
    def lower_is_better(self) -> bool:
        return self in (Metric.LOSS, Metric.PERPLEXITY)


@dataclass(frozen=True, slots=True)
class TaskRules:
    """`route`: where the server answers. `decoder`: a causal language model, which vLLM can serve and which can be
    shown examples in its prompt. `data`: what a line holds."""

    metrics: tuple[Metric, ...]
    route: str
    data: str
    decoder: bool = False

    @property
    def generates(self) -> bool:
        """Whether the model writes text."""
        return "completions" in self.route


_LANGUAGE = (Metric.LOSS, Metric.PERPLEXITY, Metric.TOKEN_ACCURACY)
TASKS: Mapping[Task, TaskRules] = {
    Task.CHAT: TaskRules(
        (*_LANGUAGE, Metric.TOOL_NAME, Metric.TOOL_VALID, Metric.TOOL_EXACT),
        "/v1/chat/completions",
        "messages, tools",
        decoder=True,
    ),
    Task.COMPLETION: TaskRules(_LANGUAGE, "/v1/completions", "prompt and completion, or text", decoder=True),
    Task.PREFERENCE: TaskRules(
        (Metric.LOSS, Metric.REWARD_ACCURACY, Metric.REWARD_MARGIN),
        "/v1/chat/completions",
        "input, preferred_output and non_preferred_output, or prompt, chosen and rejected",
        decoder=True,
    ),
    Task.CLASSIFICATION: TaskRules(
        (Metric.LOSS, Metric.ACCURACY, Metric.MACRO_F1, Metric.WEIGHTED_F1),
        "/v1/classify",
        "text and label (a list: several labels), or text, text_pair and label",
    ),
    Task.TOKEN_CLASSIFICATION: TaskRules(
        (Metric.LOSS, Metric.TOKEN_ACCURACY, Metric.ENTITY_F1), "/v1/tag", "tokens and tags, or text and spans"
    ),
    Task.SEQ2SEQ: TaskRules(
        (*_LANGUAGE, Metric.BLEU, Metric.CHRF, Metric.ROUGE_L), "/v1/completions", "source and target"
    ),
    Task.QUESTION_ANSWERING: TaskRules(
        (Metric.LOSS, Metric.EXACT_MATCH, Metric.ANSWER_F1), "/v1/answer", "question, context and answers (SQuAD)"
    ),
}


def other_than(task: Task) -> str:
    """CEL, for rules of the whole specification that are those of one task."""
    return f"self.task != '{task}'"


DECODERS = tuple(task for task, rules in TASKS.items() if rules.decoder)
