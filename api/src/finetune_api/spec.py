"""`FineTuneJob.spec`: what a user asks for. Every field has a bound, a unit and a default that works."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from finetune_api.base import ApiModel, Int, Named, Rule
from finetune_api.fields import (
    DECIMAL,
    KEY,
    PERCENT,
    Auto,
    Fraction,
    IntOrAuto,
    ModuleName,
    Multiplier,
    Source,
    distinct,
    given,
)
from finetune_api.fields import (
    NAME as NAME,
)
from finetune_api.placement import Placement as Placement
from finetune_api.placement import Resources as Resources


class Task(Named):
    CHAT = "Chat"
    COMPLETION = "Completion"


class MethodType(Named):
    LORA = "LoRA"
    FULL = "Full"


class Packing(Named):
    AUTO = "auto"
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Engine(Named):
    AUTO = "auto"
    NATIVE = "Native"
    VLLM = "VLLM"


class Baseline(Named):
    BASE = "Base"
    FEW_SHOT = "FewShot"


class Metric(Named):
    LOSS = "loss"
    PERPLEXITY = "perplexity"
    TOKEN_ACCURACY = "tokenAccuracy"


class SecretRef(ApiModel):
    """A Secret of the job's namespace. Only the prepare pod sees it; the operator never reads it."""

    name: str = Field(description="Name of the Secret.", min_length=1, max_length=253, pattern=NAME)


class ConfigMapRef(ApiModel):
    """A key of a ConfigMap in the job's namespace: a small dataset that lives in Git beside the job."""

    name: str = Field(description="Name of the ConfigMap.", min_length=1, max_length=253, pattern=NAME)
    key: str = Field(description="Key that holds the JSON Lines text.", min_length=1, max_length=253, pattern=KEY)


class BaseModelSpec(ApiModel):
    """The model that is tuned."""

    source: Source = Field(
        description="Where the base model lies: hf://OWNER/NAME, pvc://CLAIM/FOLDER or s3://BUCKET/PREFIX. "
        "A folder in Hugging Face format with safetensors weights."
    )
    revision: str | None = Field(
        default=None,
        description="Commit of a hub model, 40 hexadecimal digits. "
        "When absent, the newest is resolved once and recorded.",
        min_length=40,
        max_length=40,
        pattern=r"^[0-9a-f]{40}$",
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret whose keys become environment variables of the prepare pod (HF_TOKEN, HF_ENDPOINT, "
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL).",
    )
    rules: ClassVar = (
        Rule(
            "!self.source.startsWith('https://')",
            "baseModel.source: a model is a folder, which https:// cannot list; use hf://, pvc:// or s3://",
            lambda model: not model.source.startswith("https://"),
        ),
        Rule(
            "!self.source.startsWith('hf://') || self.source.matches('^hf://[^/]+/[^/]+$')",
            "baseModel.source: write hf://OWNER/NAME; a commit goes into baseModel.revision",
            lambda model: not model.source.startswith("hf://") or model.source.count("/") == 3,
        ),
        Rule(
            "!has(self.revision) || self.source.startsWith('hf://')",
            "baseModel.revision: only a hub model (hf://) has a revision; remove it",
            lambda model: model.revision is None or model.source.startswith("hf://"),
        ),
    )


class DataFile(ApiModel):
    """One file of examples: a source, or a key of a ConfigMap."""

    source: Source | None = Field(
        default=None,
        description="Where the JSON Lines file (may be gzip) lies: hf://OWNER/NAME/FILE, pvc://CLAIM/PATH, "
        "s3://BUCKET/KEY or https://HOST/PATH.",
    )
    config_map_ref: ConfigMapRef | None = Field(default=None, description="A small dataset kept in a ConfigMap.")
    rules: ClassVar = (
        Rule(
            "has(self.source) != has(self.configMapRef)",
            "give exactly one of source and configMapRef",
            lambda data: (data.source is None) != (data.config_map_ref is None),
        ),
        Rule(
            "!has(self.source) || !self.source.startsWith('hf://') || self.source.matches('^hf://[^/]+/[^/]+/.+$')",
            "source: a hub dataset needs its file: hf://OWNER/NAME/FILE, for example hf://team/travel/train.jsonl",
            lambda data: not (data.source or "").startswith("hf://") or data.source.count("/") >= 4,
        ),
    )


class ValidationData(DataFile):
    """Held-out examples: a file of their own, or a share of the training data."""

    fraction: Fraction | None = Field(
        default=None, description="Share of the training examples that is held out, 0.01 to 0.5."
    )
    rules: ClassVar = (
        Rule(
            "[has(self.source), has(self.configMapRef), has(self.fraction)].filter(x, x).size() == 1",
            "give exactly one of fraction, source and configMapRef",
            lambda data: given(data.source, data.config_map_ref, data.fraction) == 1,
        ),
        DataFile.rules[1],
    )


class DatasetSpec(ApiModel):
    """The examples to learn from and to be judged by."""

    train: DataFile = Field(description="The training examples.")
    validation: ValidationData = Field(
        default=ValidationData(fraction=0.1),
        description="The held-out examples. By default a tenth of the training data.",
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret whose keys become environment variables of the prepare pod (AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, HF_TOKEN, HTTPS_AUTHORIZATION).",
    )
    max_lost_percent: Int = Field(
        default=5,
        ge=0,
        le=100,
        description="Share of the examples, in percent, that may be cut or dropped because they are longer than "
        "maxLength. Above it the data is refused before a GPU is asked for.",
    )


def _only_lora(field: str) -> Rule:
    attribute = "target_modules" if field == "targetModules" else field
    return Rule(
        f"self.type == 'LoRA' || !has(self.{field})",
        f"method.{field}: only LoRA has it; remove it or set method.type to LoRA",
        lambda method: method.type == MethodType.LORA or getattr(method, attribute) is None,
    )


class MethodSpec(ApiModel):
    """How the weights change."""

    type: MethodType = Field(
        default=MethodType.LORA, description="LoRA trains small adapter matrices; Full trains all weights."
    )
    rank: Int | None = Field(default=None, ge=1, le=512, description="LoRA rank. Default 16.")
    alpha: Int | None = Field(default=None, ge=1, le=2048, description="LoRA alpha. Default twice the rank.")
    dropout: str | None = Field(
        default=None,
        max_length=8,
        pattern=r"^0(\.[0-9]{1,4})?$",
        description='LoRA dropout, "0" to "0.9999". Default "0".',
    )
    target_modules: Annotated[list[ModuleName], Field(min_length=1, max_length=64), AfterValidator(distinct)] | None = (
        Field(
            default=None,
            description="Names of the linear layers that get an adapter. Default: all of them but the output layer.",
            json_schema_extra={"x-kubernetes-list-type": "set"},
        )
    )
    rules: ClassVar = (_only_lora("rank"), _only_lora("alpha"), _only_lora("dropout"), _only_lora("targetModules"))

    @property
    def resolved_rank(self) -> int:
        return self.rank or 16

    @property
    def resolved_alpha(self) -> int:
        return self.alpha or 2 * self.resolved_rank


class Hyperparameters(ApiModel):
    """What `auto` resolved to is recorded in `status.run.resolved`."""

    epochs: Annotated[Int | Auto, IntOrAuto("hyperparameters.epochs", 1, 100)] = Field(
        default="auto", description="Passes over the training data. `auto` or 1 to 100."
    )
    batch_size: Annotated[Int | Auto, IntOrAuto("hyperparameters.batchSize", 1, 256)] = Field(
        default="auto", description="Examples per optimizer step, over all devices. `auto` or 1 to 256."
    )
    learning_rate_multiplier: Multiplier = Field(
        default="auto",
        description="Factor on the method's own learning rate (2e-4 for LoRA, 2e-5 for Full): `auto` (1), "
        'a whole number, or a decimal in quotes, for example "1.8".',
    )
    max_length: Annotated[Int | Auto, IntOrAuto("hyperparameters.maxLength", 16, 131072)] = Field(
        default="auto", description="Longest example, in tokens; what is longer is cut. `auto` or 16 to 131072."
    )
    packing: Packing = Field(
        default=Packing.AUTO,
        description="Several short examples in one row, without seeing each other. `auto`: where the attention "
        "implementation keeps them apart.",
    )
    evaluation_steps: Annotated[Int | Auto, IntOrAuto("hyperparameters.evaluationSteps", 1, 100000)] = Field(
        default="auto", description="Optimizer steps between two evaluations. `auto` or 1 to 100000."
    )
    checkpoint_steps: Annotated[Int | Auto, IntOrAuto("hyperparameters.checkpointSteps", 1, 100000)] = Field(
        default="auto", description="Optimizer steps between two checkpoints. `auto` or 1 to 100000."
    )
    seed: Int = Field(default=42, ge=0, le=2147483647, description="Seed of every random choice.")


class ComputeSpec(Placement):
    """What training and evaluation run on."""

    gpus: Int = Field(default=1, ge=0, le=1, description="GPUs of the training pod. 0 trains on the CPU.")
    gpu_resource: str = Field(
        default="nvidia.com/gpu",
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        description="Name of the extended resource that counts GPUs.",
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


class GateRule(ApiModel):
    """One condition that the tuned model must meet on the held-out examples."""

    metric: Metric = Field(
        description="What is measured. loss and perplexity are better when lower, tokenAccuracy when higher."
    )
    min_improvement: str | None = Field(
        default=None,
        max_length=10,
        pattern=PERCENT,
        description='How much better than the base model, in percent of the base model\'s value, for example "5%".',
    )
    max: str | None = Field(default=None, max_length=16, pattern=DECIMAL, description='Upper bound, for example "1.5".')
    min: str | None = Field(default=None, max_length=16, pattern=DECIMAL, description='Lower bound, for example "0.7".')
    rules: ClassVar = (
        Rule(
            "[has(self.minImprovement), has(self.max), has(self.min)].filter(x, x).size() == 1",
            "give exactly one of minImprovement, max and min",
            lambda rule: given(rule.min_improvement, rule.max, rule.min) == 1,
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


class EvaluationSpec(ApiModel):
    """How the result is proven against the base model."""

    baselines: Annotated[list[Baseline], AfterValidator(distinct)] = Field(
        default=[Baseline.BASE],
        max_length=2,
        description="What the tuned model is compared with, beside its gate. Base is always measured.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    few_shot_examples: Int = Field(
        default=3, ge=1, le=16, description="Examples in the prompt of the FewShot baseline."
    )
    max_examples: Int = Field(default=500, ge=1, le=10000, description="Held-out examples that are measured at most.")
    sample_answers: Int = Field(
        default=8, ge=0, le=32, description="Answers of base and tuned that are kept side by side."
    )
    gate: Gate = Field(
        default=Gate(rules_=[GateRule(metric=Metric.LOSS, min_improvement="0%")]),
        description="When a run may take over serving. By default the tuned loss must not be above the base's.",
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


class ServingSpec(Placement):
    """The endpoint that answers with the promoted model."""

    engine: Engine = Field(
        default=Engine.AUTO, description="auto: vLLM when the server has a GPU, our own server otherwise."
    )
    replicas: Int = Field(default=1, ge=0, le=32, description="Servers. 0: the model is trained and kept, not served.")
    gpus: Annotated[Int | Auto, IntOrAuto("serving.gpus", 0, 1)] = Field(
        default="auto", description="GPUs of a server; auto: as many as compute.gpus. `auto` or 0 to 1."
    )
    run: Int | None = Field(
        default=None,
        ge=1,
        le=1000000,
        description="Number of the run to serve, whatever came later: the rollback. Absent: the newest promoted run.",
    )
    rules: ClassVar = (
        Rule(
            "self.engine != 'VLLM' || !has(self.gpus) || self.gpus != 0",
            "serving.engine: VLLM needs a GPU; set serving.gpus to 1 or engine to Native",
            lambda serving: serving.engine != Engine.VLLM or serving.gpus != 0,
        ),
    )


def _vllm_has_gpu(spec: str) -> str:
    return f"{spec}.serving.engine != 'VLLM' || {spec}.serving.gpus != 'auto' || {spec}.compute.gpus > 0"


class FineTuneJobSpec(ApiModel):
    """One fine-tuning, from data to a served model."""

    task: Task = Field(
        default=Task.CHAT, description="What the model learns: Chat (messages) or Completion (prompt and completion)."
    )
    base_model: BaseModelSpec = Field(description="The model that is tuned.")
    dataset: DatasetSpec = Field(description="The examples.")
    method: MethodSpec = Field(default=MethodSpec(), description="How the weights change.")
    hyperparameters: Hyperparameters = Field(default=Hyperparameters(), description="The knobs of training.")
    compute: ComputeSpec = Field(default=ComputeSpec(), description="What training and evaluation run on.")
    evaluation: EvaluationSpec = Field(default=EvaluationSpec(), description="How the result is proven.")
    output: OutputSpec = Field(description="Where results are kept.")
    serving: ServingSpec = Field(default=ServingSpec(), description="The endpoint.")
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
    )
