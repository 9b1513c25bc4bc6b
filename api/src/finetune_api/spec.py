"""`FineTuneJob.spec`: what a user asks for. Every field has a bound, a unit and a default that works."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Bool, Int, Named, Rule
from finetune_api.base_model import BaseModelSpec as BaseModelSpec
from finetune_api.budget import BUDGET_NEEDS_GPUS
from finetune_api.budget import BudgetSpec as BudgetSpec
from finetune_api.cleaning import FILLED, fill_rule, over_long_rule
from finetune_api.combinations import COMBINATIONS
from finetune_api.dataset import Columns as Columns
from finetune_api.dataset import ConfigMapRef as ConfigMapRef
from finetune_api.dataset import DataFile as DataFile
from finetune_api.dataset import DatasetSpec as DatasetSpec
from finetune_api.dataset import SecretRef as SecretRef
from finetune_api.dataset import TrainData as TrainData
from finetune_api.dataset import ValidationData as ValidationData
from finetune_api.dataset import WeightedFile as WeightedFile
from finetune_api.distribution import COMPUTE_RULES, MOST_PROCESSES, spec_rules
from finetune_api.distribution import DistributionSpec as DistributionSpec
from finetune_api.evaluation import IN_PROMPT as IN_PROMPT
from finetune_api.evaluation import Baseline as Baseline
from finetune_api.evaluation import EvaluationSpec as EvaluationSpec
from finetune_api.evaluation import Gate as Gate
from finetune_api.evaluation import GateRule as GateRule
from finetune_api.exports import ONE_EXPORT_A_TAG, Exports
from finetune_api.fields import NAME as NAME
from finetune_api.fields import Auto, IntOrAuto, Quantity, quantity
from finetune_api.gang import Spreading
from finetune_api.hyperparameters import Hyperparameters as Hyperparameters
from finetune_api.hyperparameters import Packing as Packing
from finetune_api.method import MethodSpec as MethodSpec
from finetune_api.placement import Placement as Placement
from finetune_api.placement import Resources as Resources
from finetune_api.promotion import PromotionSpec as PromotionSpec
from finetune_api.retention import RetentionSpec as RetentionSpec
from finetune_api.rollout import SmokeTest as SmokeTest
from finetune_api.tasks import DECODERS, TASKS, other_than
from finetune_api.tasks import MethodType as MethodType
from finetune_api.tasks import Metric as Metric
from finetune_api.tasks import Task as Task
from finetune_api.tracking import TrackingSpec as TrackingSpec
from finetune_api.triggers import TriggersSpec as TriggersSpec


class Engine(Named):
    AUTO = "auto"
    NATIVE = "Native"
    VLLM = "VLLM"


class ComputeSpec(Spreading):
    """What training and evaluation run on."""

    gpus: Int = Field(
        default=1,
        ge=0,
        le=MOST_PROCESSES,
        description="GPUs of the training pod, one process each. 0 trains on the CPU. Evaluation takes at most one.",
    )
    processes: Int | None = Field(
        default=None,
        ge=1,
        le=MOST_PROCESSES,
        description="Training processes of a pod without GPUs. Default 1.",
    )
    distribution: DistributionSpec = Field(
        default=DistributionSpec(), description="How the training is spread over the processes."
    )
    gpu_resource: str = Field(
        default="nvidia.com/gpu",
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        description="Name of the extended resource that counts GPUs.",
    )
    gpu_memory: Quantity | None = Field(
        default=None,
        description="Memory of one GPU, for example 80Gi. With it Prepare chooses how many examples a forward pass "
        "has, and refuses a training that does not fit before a GPU is asked for. Absent: 24Gi is assumed, nothing is "
        "refused.",
    )
    priority_class_name: str | None = Field(
        default=None, min_length=1, max_length=253, pattern=NAME, description="PriorityClass of the job's pods."
    )
    active_deadline_seconds: Int | None = Field(
        default=None,
        ge=60,
        le=2592000,
        description="Seconds after which a training that still runs is ended. 60 to 30 days.",
    )
    rules: ClassVar = (
        *Spreading.rules,
        *COMPUTE_RULES,
        Rule(
            "self.gpus > 0",
            "compute.gpuMemory: the job asks for no GPU; remove it, or set gpus",
            lambda compute: compute.gpu_memory is None or compute.gpus > 0,
            unless="!has(self.gpuMemory)",
        ),
        Rule(
            "quantity(string(self.gpuMemory)).compareTo(quantity('1Gi')) >= 0",
            "compute.gpuMemory: less than 1Gi is no GPU's memory; write it with its unit, for example 80Gi",
            lambda compute: compute.gpu_memory is None or quantity(compute.gpu_memory) >= 2**30,
            unless="!has(self.gpuMemory)",
        ),
    )


class OutputSpec(ApiModel):
    """Where models, checkpoints and reports are kept."""

    claim_name: str = Field(
        min_length=1,
        max_length=253,
        pattern=NAME,
        description="PersistentVolumeClaim of the job's namespace. It outlives the job. A change starts no run: a run "
        "that has begun stays on its claim, in training and in service, and the next one uses the new claim.",
    )
    exports: Exports = Field(
        default=[],
        description="What is made of each promoted run beside serving it. A change packages the model that is there "
        "and trains nothing; a failed export never stops serving.",
    )
    retention: RetentionSpec | None = Field(
        default=None,
        description="What is removed of finished runs. Absent: nothing. The run in service, a pinned one, one that "
        "waits for approval, and one that another job goes on from always stay.",
    )
    rules: ClassVar = (ONE_EXPORT_A_TAG,)


class ServingSpec(Placement):
    """The endpoint that answers with the promoted model."""

    engine: Engine = Field(
        default=Engine.AUTO, description="auto: vLLM when the server has a GPU, our own server otherwise."
    )
    replicas: Int = Field(default=1, ge=0, le=32, description="Servers. 0: the model is trained and kept, not served.")
    gpus: Annotated[Int | Auto, IntOrAuto("serving.gpus", 0, 1)] = Field(
        default="auto", description="GPUs of a server; auto: one when compute.gpus is above 0. `auto` or 0 to 1."
    )
    run: Int | None = Field(
        default=None,
        ge=1,
        le=1000000,
        description="Number of the run to serve, whatever came later: the rollback. Absent: the run that was promoted "
        "last.",
    )
    smoke_test: SmokeTest = Field(default=SmokeTest(), description="What a new server is asked before it takes over.")
    progress_deadline_seconds: Int = Field(
        default=1800,
        ge=60,
        le=86400,
        description="Seconds that new servers may take to be ready before the run before is put back. Waiting for a "
        "node, an image, a volume or a quota is no fault of theirs, and is waited for. 60 to 86400.",
    )
    rules: ClassVar = (
        Rule(
            "self.engine != 'VLLM' || !has(self.gpus) || self.gpus != 0",
            "serving.engine: VLLM needs a GPU; set serving.gpus to 1 or engine to Native",
            lambda serving: serving.engine != Engine.VLLM or serving.gpus != 0,
        ),
    )


def _task_measures(task: Task) -> Rule:
    metrics = [metric.value for metric in TASKS[task].metrics]
    return Rule(
        f"self.evaluation.gate.rules.all(r, !has(r.metric) || r.metric in {metrics})",
        f"evaluation.gate: the task {task} measures {', '.join(metrics)}; use one of them",
        lambda spec: (
            spec.task is not task or all(rule.metric in (None, *metrics) for rule in spec.evaluation.gate.rules_)
        ),
        unless=other_than(task),
    )


_DECODER = f"self.task in {[task.value for task in DECODERS]}"
_GENERATES = f"self.task in {[task.value for task, rules in TASKS.items() if rules.generates]}"
_TEXT = "self.task in ['Chat', 'Completion']"
_TEXT_TASKS = (Task.CHAT, Task.COMPLETION)


def _vllm_has_gpu(spec: str) -> str:
    return f"{spec}.serving.engine != 'VLLM' || {spec}.serving.gpus != 'auto' || {spec}.compute.gpus > 0"


class FineTuneJobSpec(ApiModel):
    """One fine-tuning, from data to a served model."""

    task: Task = Field(
        default=Task.CHAT,
        description="What the model learns. Chat: conversations, with tools. Completion: text after text. Preference: "
        "the better of two answers (DPO). Classification: labels of texts. TokenClassification: labels of words. "
        "Seq2Seq: a text from a text (translation, summary). QuestionAnswering: where the answer stands in a text.",
    )
    base_model: BaseModelSpec = Field(description="The model that is tuned.")
    dataset: DatasetSpec = Field(description="The examples.")
    method: MethodSpec = Field(default=MethodSpec(), description="How the weights change.")
    hyperparameters: Hyperparameters = Field(default=Hyperparameters(), description="The knobs of training.")
    compute: ComputeSpec = Field(default=ComputeSpec(), description="What training and evaluation run on.")
    evaluation: EvaluationSpec = Field(default=EvaluationSpec(), description="How the result is proven.")
    output: OutputSpec = Field(description="Where results are kept.")
    promotion: PromotionSpec = Field(default=PromotionSpec(), description="Who says that a run may answer.")
    serving: ServingSpec = Field(default=ServingSpec(), description="The endpoint.")
    tracking: TrackingSpec = Field(default=TrackingSpec(), description="Trackers that each measured run goes to.")
    budget: BudgetSpec | None = Field(default=None, description="What each run may spend on GPUs. Absent: no bound.")
    triggers: TriggersSpec = Field(default=TriggersSpec(), description="What starts a run of an unchanged spec.")
    suspend: Bool = Field(
        default=False,
        description="true: no stage runs. A training saves a checkpoint and gives its GPU back; false goes on from "
        "there. What was promoted keeps answering: serving.replicas: 0 ends that.",
    )
    rerun_token: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[-._A-Za-z0-9]+$",
        description="Any word. A new word starts a new run of an unchanged specification, for example after the "
        "data changed.",
    )
    rules: ClassVar = (
        Rule(
            f"{_vllm_has_gpu('self')} || (oldSelf.hasValue() && !({_vllm_has_gpu('oldSelf.value()')}))",
            "serving.engine: VLLM needs a GPU, and compute.gpus is 0; set serving.gpus to 1 or engine to Native",
            lambda spec: spec.serving.engine != Engine.VLLM or spec.serving.gpus != "auto" or spec.compute.gpus > 0,
            old_self=True,
        ),
        *(_task_measures(task) for task in TASKS),
        *spec_rules(),
        Rule(
            "self.serving.engine != 'VLLM'",
            "serving.engine: vLLM serves Chat, Completion and Preference; set it to auto or Native",
            lambda spec: spec.serving.engine is not Engine.VLLM or spec.task in DECODERS,
            unless=_DECODER,
        ),
        Rule(
            "self.hyperparameters.packing != 'Enabled'",
            "hyperparameters.packing: only Chat and Completion can share a row; set it to auto",
            lambda spec: spec.hyperparameters.packing is not Packing.ENABLED or spec.task in _TEXT_TASKS,
            unless=_TEXT,
        ),
        Rule(
            "!('FewShot' in self.evaluation.baselines || 'Retrieval' in self.evaluation.baselines)",
            "evaluation.baselines: FewShot and Retrieval put examples into a prompt, which only Chat and Completion "
            "have; remove them",
            lambda spec: not set(IN_PROMPT) & set(spec.evaluation.baselines) or spec.task in _TEXT_TASKS,
            unless=_TEXT,
        ),
        Rule(
            "self.evaluation.checks.size() == 0",
            "evaluation.checks: only Chat, Completion, Preference and Seq2Seq write answers that could be checked; "
            "remove them",
            lambda spec: not spec.evaluation.checks or TASKS[spec.task].generates,
            unless=_GENERATES,
        ),
        Rule(
            "self.evaluation.benchmarks.size() == 0",
            "evaluation.benchmarks: only Chat, Completion and Preference tune a language model that does them; "
            "remove them",
            lambda spec: not spec.evaluation.benchmarks or spec.task in DECODERS,
            unless=_DECODER,
        ),
        Rule(
            "!has(self.evaluation.judge)",
            "evaluation.judge: only Chat, Completion, Preference and Seq2Seq write answers that could be judged; "
            "remove it",
            lambda spec: spec.evaluation.judge is None or TASKS[spec.task].generates,
            unless=_GENERATES,
        ),
        Rule(
            "!has(self.serving.smokeTest.prompt)",
            "serving.smokeTest.prompt: QuestionAnswering takes a question and a text, not a prompt; remove it",
            lambda spec: spec.serving.smoke_test.prompt is None or spec.task is not Task.QUESTION_ANSWERING,
            unless=other_than(Task.QUESTION_ANSWERING),
        ),
        Rule(
            "!has(self.hyperparameters.beta)",
            "hyperparameters.beta: only the task Preference has it; remove it",
            lambda spec: spec.hyperparameters.beta is None or spec.task is Task.PREFERENCE,
            unless="self.task == 'Preference'",
        ),
        *COMBINATIONS,
        BUDGET_NEEDS_GPUS,
        *(fill_rule(task) for task in FILLED),
        over_long_rule(),
    )
