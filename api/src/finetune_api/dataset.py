"""The data: where it lies, what is held out, and how its columns are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Int, Rule
from finetune_api.cleaning import Cleaning, SensitiveData
from finetune_api.fields import KEY, NAME, Fraction, Source, Weight, given

MAX_FILES = 16  # of the training data
Column = Annotated[str, Field(min_length=1, max_length=128)]


class SecretRef(ApiModel):
    """A Secret of the job's namespace. Only the pod that needs it sees it; the operator never reads it."""

    name: str = Field(description="Name of the Secret.", min_length=1, max_length=253, pattern=NAME)


class ConfigMapRef(ApiModel):
    """A key of a ConfigMap in the job's namespace: a small dataset that lives in Git beside the job."""

    name: str = Field(description="Name of the ConfigMap.", min_length=1, max_length=253, pattern=NAME)
    key: str = Field(
        description="Key that holds the text: JSON Lines, JSON or CSV.", min_length=1, max_length=253, pattern=KEY
    )

    @property
    def told(self) -> str:
        """In words, for messages."""
        return f"key {self.key} of ConfigMap {self.name}"


class DataFile(ApiModel):
    """One file of examples: a source, or a key of a ConfigMap."""

    source: Source | None = Field(
        default=None,
        description="Where the file lies (JSON Lines, JSON, CSV or Parquet; may be gzip): hf://OWNER/NAME/FILE, "
        "pvc://CLAIM/PATH, s3://BUCKET/KEY or https://HOST/PATH.",
    )
    config_map_ref: ConfigMapRef | None = Field(default=None, description="A small dataset kept in a ConfigMap.")
    rules: ClassVar[Sequence[Rule]] = (
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

    @property
    def told(self) -> str:
        """Where the file lies, in words for messages; empty where nothing is said."""
        return self.config_map_ref.told if self.config_map_ref else self.source or ""

    @property
    def place(self) -> tuple[str, ...]:
        """Where the file lies: equal for what is the same file."""
        ref = self.config_map_ref
        return (self.source or "",) if ref is None else (ref.name, ref.key)


class WeightedFile(DataFile):
    """One of several training files."""

    weight: Weight = Field(
        default=1.0,
        description="How often an epoch passes over the file: 2 is twice; 0.5 takes a half of its examples, 2.5 all of "
        "them twice and a half once more, chosen by their contents.",
    )


class TrainData(DataFile):
    """The training examples: one file, or several with weights."""

    files: Annotated[list[WeightedFile], Field(min_length=1, max_length=MAX_FILES)] | None = Field(
        default=None, description="Several files, read one after the other."
    )
    rules: ClassVar = (
        Rule(
            "[has(self.source), has(self.configMapRef), has(self.files)].filter(x, x).size() == 1",
            "give exactly one of source, configMapRef and files",
            lambda data: given(data.source, data.config_map_ref, data.files) == 1,
        ),
        DataFile.rules[1],
        Rule(
            "!has(self.files) || self.files.all(f, self.files.exists_one(g, "
            "has(f.source) ? has(g.source) && g.source == f.source "
            ": has(g.configMapRef) && has(f.configMapRef) && g.configMapRef == f.configMapRef))",
            "files: name each file once; to train on it more often, give it a weight",
            lambda data: len({file.place for file in data.files or ()}) == len(data.files or ()),
        ),
    )

    @property
    def parts(self) -> list[tuple[str, DataFile, float]]:
        """(where in `dataset`, file, weight) of each file, in order."""
        if self.files is None:
            return [("train", self, 1.0)]
        return [(f"train.files[{index}]", file, file.weight) for index, file in enumerate(self.files)]


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


class Columns(ApiModel):
    """Names in the data, where they are not ours: the left side is what the task needs, the right side what the
    data calls it."""

    text: Column | None = Field(default=None, description="Classification, TokenClassification, Completion: the text.")
    text_pair: Column | None = Field(default=None, description="Classification: a second text.")
    label: Column | None = Field(default=None, description="Classification: the label, or a list of labels.")
    tokens: Column | None = Field(default=None, description="TokenClassification: the words.")
    tags: Column | None = Field(default=None, description="TokenClassification: a tag a word, for example B-PER.")
    spans: Column | None = Field(default=None, description="TokenClassification: start, end and label in `text`.")
    source: Column | None = Field(default=None, description="Seq2Seq: what the model reads.")
    target: Column | None = Field(default=None, description="Seq2Seq: what it writes.")
    question: Column | None = Field(default=None, description="QuestionAnswering: the question.")
    context: Column | None = Field(default=None, description="QuestionAnswering: the text with the answer.")
    answers: Column | None = Field(default=None, description="QuestionAnswering: the answers, as in SQuAD.")
    prompt: Column | None = Field(default=None, description="Completion, Preference: what comes before.")
    completion: Column | None = Field(default=None, description="Completion: what the model writes.")
    chosen: Column | None = Field(default=None, description="Preference: the better answer.")
    rejected: Column | None = Field(default=None, description="Preference: the worse answer.")
    messages: Column | None = Field(default=None, description="Chat: the conversation.")
    tools: Column | None = Field(default=None, description="Chat: the functions that may be called.")


class DatasetSpec(ApiModel):
    """The examples to learn from and to be judged by."""

    train: TrainData = Field(description="The training examples.")
    validation: ValidationData = Field(
        default=ValidationData(fraction=0.1),
        description="The held-out examples. By default a tenth of the training data.",
    )
    columns: Columns | None = Field(
        default=None, description="Names of the columns or keys, where the data calls them otherwise."
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret whose keys become environment variables of the prepare pod, and of looks at the data "
        "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, HF_TOKEN, HTTPS_AUTHORIZATION).",
    )
    max_lost_percent: Int = Field(
        default=5,
        ge=0,
        le=100,
        description="Share of the examples, in percent, that may be cut or dropped because they are longer than "
        "maxLength. Above it the data is refused before a GPU is asked for.",
    )
    cleaning: Cleaning = Field(default=Cleaning(), description="What Prepare changes in the data; by default nothing.")
    sensitive_data: SensitiveData = Field(
        default=SensitiveData.WARN,
        description="What is done when a key, a password, or a number or address of a person is found in the "
        "examples, which the model could learn by heart and say. Warn: kind, count and lines are reported. Refuse: the "
        "data is refused. Ignore: nothing is looked for.",
    )

    @property
    def files(self) -> list[tuple[str, DataFile]]:
        """(where in the spec, file) of everything that Prepare reads."""
        named = [(f"spec.dataset.{place}", file) for place, file, _ in self.train.parts]
        held_out = self.validation.fraction is None
        return [*named, ("spec.dataset.validation", self.validation)] if held_out else named
