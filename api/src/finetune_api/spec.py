"""`FineTuneJob.spec`: what a user asks for. Every field has a bound, a unit and a default that works."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Named, Rule

Auto = Literal["auto"]

# Kubernetes' own limits: object names (RFC 1123 subdomain) and ConfigMap keys.
NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
KEY = r"^[-._a-zA-Z0-9]+$"
SOURCE = r"^(hf|pvc|s3|https)://[^\s]+$"
DECIMAL_OR_AUTO = r"^(auto|[0-9]{1,4}(\.[0-9]{1,6})?)$"
PERCENT = r"^[0-9]{1,3}(\.[0-9]{1,3})?%$"
DECIMAL = r"^[0-9]{1,6}(\.[0-9]{1,6})?$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"


def int_or_auto(description: str, low: int, high: int, **extra: Any) -> Any:
    """A field that takes a whole number or the word `auto`; the bounds become a CEL rule."""
    schema = {"x-int-or-auto": {"minimum": low, "maximum": high}}
    return Field(
        default="auto", description=f"{description} `auto` or {low} to {high}.", json_schema_extra=schema, **extra
    )


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


SOURCE_RULES = (
    Rule(
        "!self.startsWith('pvc://') || self.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[^/].*$')",
        "source: write pvc://CLAIM/PATH, for example pvc://datasets/travel/train.jsonl",
    ),
    Rule(
        "!self.startsWith('hf://') || self.matches('^hf://[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*(/.+)?$')",
        "source: write hf://OWNER/NAME, and for a dataset hf://OWNER/NAME/FILE",
    ),
    Rule(
        "!self.startsWith('s3://') || self.matches('^s3://[a-z0-9][-.a-z0-9]+/[^/].*$')",
        "source: write s3://BUCKET/KEY",
    ),
    Rule("!self.contains('..')", "source: '..' is not allowed in a path; name the file from the root of its source"),
    Rule(
        "!self.startsWith('https://') || !self.substring(8).split('/')[0].contains('@')",
        "source: an https URL must not carry a user or a password; put them into a Secret and name it in secretRef",
    ),
)

Source = Annotated[
    str, Field(max_length=1024, min_length=1, pattern=SOURCE, json_schema_extra={"x-rules": SOURCE_RULES})
]


class BaseModelSpec(ApiModel):
    """The model that is tuned."""

    source: Source = Field(
        description="Where the base model lies: hf://OWNER/NAME, pvc://CLAIM/FOLDER or s3://BUCKET/PREFIX. "
        "A folder in Hugging Face format with safetensors weights."
    )
    revision: str | None = Field(
        default=None,
        description="Commit of a hub model, 40 hexadecimal digits. When absent, the newest is resolved once and recorded.",
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
        ),
        Rule(
            "!self.source.startsWith('hf://') || self.source.matches('^hf://[^/]+/[^/]+$')",
            "baseModel.source: write hf://OWNER/NAME; a commit goes into baseModel.revision",
        ),
        Rule(
            "!has(self.revision) || self.source.startsWith('hf://')",
            "baseModel.revision: only a hub model (hf://) has a revision; remove it",
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
        ),
        Rule(
            "!has(self.source) || !self.source.startsWith('hf://') || self.source.matches('^hf://[^/]+/[^/]+/.+$')",
            "source: a hub dataset needs its file: hf://OWNER/NAME/FILE, for example hf://team/travel/train.jsonl",
        ),
    )


class ValidationData(DataFile):
    """Held-out examples: a file of their own, or a share of the training data."""

    fraction: float | None = Field(
        default=None, description="Share of the training examples that is held out, 0.01 to 0.5.", ge=0.01, le=0.5
    )
    rules: ClassVar = (
        Rule(
            "[has(self.source), has(self.configMapRef), has(self.fraction)].filter(x, x).size() == 1",
            "give exactly one of fraction, source and configMapRef",
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
    max_lost_percent: int = Field(
        default=5,
        ge=0,
        le=100,
        description="Share of the examples, in percent, that may be cut or dropped because they are longer than maxLength. "
        "Above it the data is refused before a GPU is asked for.",
    )


class MethodSpec(ApiModel):
    """How the weights change."""

    type: MethodType = Field(
        default=MethodType.LORA, description="LoRA trains small adapter matrices; Full trains all weights."
    )
    rank: int | None = Field(default=None, ge=1, le=512, description="LoRA rank. Default 16.")
    alpha: int | None = Field(default=None, ge=1, le=2048, description="LoRA alpha. Default twice the rank.")
    dropout: str | None = Field(
        default=None,
        max_length=8,
        pattern=r"^0(\.[0-9]{1,4})?$",
        description='LoRA dropout, "0" to "0.9999". Default "0".',
    )
    target_modules: list[Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.]+$")]] | None = (
        Field(
            default=None,
            min_length=1,
            max_length=64,
            description="Names of the linear layers that get an adapter. Default: all of them but the output layer.",
            json_schema_extra={"x-kubernetes-list-type": "set"},
        )
    )
    rules: ClassVar = tuple(
        Rule(
            f"self.type == 'LoRA' || !has(self.{field})",
            f"method.{field}: only LoRA has it; remove it or set method.type to LoRA",
        )
        for field in ("rank", "alpha", "dropout", "targetModules")
    )

    @property
    def resolved_rank(self) -> int:
        return self.rank or 16

    @property
    def resolved_alpha(self) -> int:
        return self.alpha or 2 * self.resolved_rank


class Hyperparameters(ApiModel):
    """What `auto` resolved to is recorded in `status.run.resolved`."""

    epochs: Annotated[int, Field(ge=1, le=100)] | Auto = int_or_auto("Passes over the training data.", 1, 100)
    batch_size: Annotated[int, Field(ge=1, le=256)] | Auto = int_or_auto(
        "Examples per optimizer step, over all devices.", 1, 256
    )
    learning_rate_multiplier: str | int = Field(
        default="auto",
        description="Factor on the method's own learning rate (2e-4 for LoRA, 2e-5 for Full): `auto` (1), a whole number, "
        'or a decimal in quotes, for example "1.8".',
        json_schema_extra={"x-decimal-or-auto": {"pattern": DECIMAL_OR_AUTO}},
    )
    max_length: Annotated[int, Field(ge=16, le=131072)] | Auto = int_or_auto(
        "Longest example, in tokens; what is longer is cut.", 16, 131072
    )
    packing: Packing = Field(
        default=Packing.AUTO,
        description="Several short examples in one row, without seeing each other. `auto`: where the attention "
        "implementation keeps them apart.",
    )
    evaluation_steps: Annotated[int, Field(ge=1, le=100000)] | Auto = int_or_auto(
        "Optimizer steps between two evaluations.", 1, 100000
    )
    checkpoint_steps: Annotated[int, Field(ge=1, le=100000)] | Auto = int_or_auto(
        "Optimizer steps between two checkpoints.", 1, 100000
    )
    seed: int = Field(default=42, ge=0, le=2147483647, description="Seed of every random choice.")


class ResourceList(ApiModel):
    """Kubernetes quantities of one container."""

    cpu: str | None = Field(
        default=None, max_length=32, pattern=QUANTITY, description='CPU, for example "4" or "500m".'
    )
    memory: str | None = Field(default=None, max_length=32, pattern=QUANTITY, description='Memory, for example "32Gi".')
    ephemeral_storage: str | None = Field(
        default=None, alias="ephemeral-storage", max_length=32, pattern=QUANTITY, description="Scratch space."
    )


class Resources(ApiModel):
    """Requests and limits of one container. GPUs are asked for by `gpus`."""

    requests: ResourceList | None = Field(default=None, description="What is set aside.")
    limits: ResourceList | None = Field(default=None, description="What is never exceeded.")


class Toleration(ApiModel):
    """A Kubernetes toleration."""

    key: str | None = Field(default=None, max_length=316, description="Taint key; empty with Exists tolerates all.")
    operator: Literal["Equal", "Exists"] = Field(
        default="Equal", description="Equal compares the value; Exists does not."
    )
    value: str | None = Field(default=None, max_length=63, description="Taint value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Taint effect."
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, le=31536000, description="Seconds that a NoExecute taint is tolerated."
    )
    rules: ClassVar = (
        Rule(
            "self.operator != 'Exists' || !has(self.value)", "value: must be empty when operator is Exists; remove it"
        ),
        Rule("self.operator == 'Exists' || has(self.key)", "key: give the taint's key, or set operator to Exists"),
    )


LABEL_KEY_RULE = Rule(
    "self.all(k, size(k) <= 316 && k.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$'))",
    "nodeSelector: every key must be a valid label key, for example nvidia.com/gpu.product",
)


class Placement(ApiModel):
    """Where pods run and what they get."""

    resources: Resources = Field(default=Resources(), description="CPU and memory of the pod.")
    node_selector: dict[
        str, Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
    ] = Field(
        default={},
        max_length=32,
        description="Labels that the node must have.",
        json_schema_extra={"x-rules": (LABEL_KEY_RULE,)},
    )
    tolerations: list[Toleration] = Field(
        default=[],
        max_length=32,
        description="Taints that the pods tolerate.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class ComputeSpec(Placement):
    """What training and evaluation run on."""

    gpus: int = Field(default=1, ge=0, le=1, description="GPUs of the training pod. 0 trains on the CPU.")
    gpu_resource: str = Field(
        default="nvidia.com/gpu",
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        description="Name of the extended resource that counts GPUs.",
    )
    priority_class_name: str | None = Field(
        default=None, min_length=1, max_length=253, pattern=NAME, description="PriorityClass of the job's pods."
    )
    active_deadline_seconds: int | None = Field(
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

    baselines: list[Baseline] = Field(
        default=[Baseline.BASE],
        max_length=2,
        description="What the tuned model is compared with, beside its gate. Base is always measured.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    few_shot_examples: int = Field(
        default=3, ge=1, le=16, description="Examples in the prompt of the FewShot baseline."
    )
    max_examples: int = Field(default=500, ge=1, le=10000, description="Held-out examples that are measured at most.")
    sample_answers: int = Field(
        default=8, ge=0, le=32, description="Answers of base and tuned that are kept side by side."
    )
    gate: Gate = Field(
        default=Gate(rules=[GateRule(metric=Metric.LOSS, min_improvement="0%")]),
        description="When a run may take over serving. By default the tuned loss must not be above the base's.",
    )


class OutputSpec(ApiModel):
    """Where models, checkpoints and reports are kept."""

    claim_name: str = Field(
        min_length=1,
        max_length=253,
        pattern=NAME,
        description="PersistentVolumeClaim of the job's namespace. It outlives the job.",
    )


class ServingSpec(Placement):
    """The endpoint that answers with the promoted model."""

    engine: Engine = Field(
        default=Engine.AUTO, description="auto: vLLM when the server has a GPU, our own server otherwise."
    )
    replicas: int = Field(default=1, ge=0, le=32, description="Servers. 0: the model is trained and kept, not served.")
    gpus: Annotated[int, Field(ge=0, le=1)] | Auto = int_or_auto(
        "GPUs of a server; auto: as many as compute.gpus.", 0, 1
    )
    run: int | None = Field(
        default=None,
        ge=1,
        le=1000000,
        description="Number of the run to serve, whatever came later: the rollback. Absent: the newest promoted run.",
    )
    rules: ClassVar = (
        Rule(
            "self.engine != 'VLLM' || !has(self.gpus) || self.gpus != 0",
            "serving.engine: VLLM needs a GPU; set serving.gpus to 1 or engine to Native",
        ),
    )


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
        description="Any word. A new word starts a new run of an unchanged specification, for example after the data changed.",
    )
    rules: ClassVar = (
        Rule(
            "self.serving.engine != 'VLLM' || self.serving.gpus != 'auto' || self.compute.gpus > 0",
            "serving.engine: VLLM needs a GPU, and compute.gpus is 0; set serving.gpus to 1 or engine to Native",
        ),
    )
