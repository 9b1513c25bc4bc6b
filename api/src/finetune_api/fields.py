"""Types of single values: their patterns, their bounds, and the rules that the schema alone cannot say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    ValidationInfo,
)
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import with_info_before_validator_function

from finetune_api.base import Int, Rule, asks_rules, check_rules

Auto = Literal["auto"]
Word = Annotated[str, Field(max_length=253)]
Count = Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]

# Kubernetes' own limits: object names (RFC 1123 subdomain) and ConfigMap keys.
NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
KEY = r"^[-._a-zA-Z0-9]+$"
SOURCE = r"^(hf|pvc|s3|https)://[^\s]+$"
MULTIPLIER = "^[0-9]{1,4}([.][0-9]{1,6})?$"  # and one digit that is not 0
PERCENT = r"^[0-9]{1,3}(\.[0-9]{1,3})?%$"
DECIMAL = r"^[0-9]{1,6}(\.[0-9]{1,6})?$"
QUANTITY = "^[0-9]{1,15}([.][0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
SUFFIXES = {"": Decimal(1), "m": Decimal("0.001")}
SUFFIXES |= {letter: Decimal(1000) ** power for power, letter in enumerate("kMGTP", 1)}
SUFFIXES |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTP", 1)}
LABEL_KEY = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"


@dataclass(frozen=True, slots=True)
class IntOrAuto:
    """Annotation of a field that takes a whole number within bounds, or the word `auto`.

    One sentence for every mistake, in place of pydantic's one for each member of the union.
    """

    field: str
    low: int
    high: int

    @property
    def message(self) -> str:
        """What the API server and the laptop say."""
        return f"{self.field}: write auto or a whole number from {self.low} to {self.high}"

    def check(self, value: Any, info: ValidationInfo) -> Any:
        """The value, if it is one of ours."""
        known = type(value) is int and (self.low <= value <= self.high or not asks_rules(info))
        if value == "auto" or known:
            return value
        raise PydanticCustomError("int_or_auto", "{message}", {"message": self.message})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return with_info_before_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        rule = f"type(self) == int ? self >= {self.low} && self <= {self.high} : self == 'auto'"
        return {
            "anyOf": [
                {"type": "integer", "minimum": self.low, "maximum": self.high},
                {"type": "string", "const": "auto", "maxLength": len("auto")},
            ],
            "x-kubernetes-int-or-string": True,
            "x-kubernetes-validations": [{"rule": rule, "message": self.message}],
        }


def given(*values: object) -> int:
    """How many of these are there."""
    return sum(value is not None for value in values)


def distinct(values: Sequence[object]) -> Sequence[object]:
    """The API server refuses the second of two equal items of a set; so do we."""
    if len(set(values)) < len(values):
        raise ValueError("an item occurs twice; remove one")
    return values


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity as a number. https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity"""
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", text)
    if match is None or match[2] not in SUFFIXES:
        raise ValueError(f"{text!r} is not a Kubernetes quantity; write for example 2Gi")
    return Decimal(match[1]) * SUFFIXES[match[2]]


def ruled(*rules: Rule) -> tuple[Any, Any]:
    """The two halves of a field's rules: what a laptop checks, and what the CRD says."""
    schema: Any = {"x-kubernetes-validations": [rule.to_cel() for rule in rules]}

    def check(value: Any, info: ValidationInfo) -> Any:
        return check_rules(value, rules) if asks_rules(info) else value

    return AfterValidator(check), Field(json_schema_extra=schema)


# The API server compares a whole number with a bound's whole part: 0 would pass as at least 0.01.
_CHECKED, _DECLARED = ruled(
    Rule(
        "self >= 0.01 && self <= 0.5",
        "fraction: write a number from 0.01 to 0.5",
        lambda value: 0.01 <= value <= 0.5,
    )
)
Fraction = Annotated[float, Strict(), _CHECKED, _DECLARED, Field(json_schema_extra={"minimum": 0.01, "maximum": 0.5})]


_CHECKED, _DECLARED = ruled(
    Rule(
        "self >= 0.01 && self <= 100",
        "weight: write a number from 0.01 to 100; a file that is not to be learned is left out of the list",
        lambda value: 0.01 <= value <= 100,
    )
)
Weight = Annotated[float, Strict(), _CHECKED, _DECLARED, Field(json_schema_extra={"minimum": 0.01, "maximum": 100})]


def _form(scheme: str, pattern: str, message: str) -> Rule:
    """Sources of this scheme must match the pattern (RE2 and Python's re alike, without backslashes)."""
    return Rule(
        f"!self.startsWith('{scheme}') || self.matches('{pattern}')",
        message,
        lambda source: not source.startswith(scheme) or re.search(pattern, source) is not None,
    )


_HUB_NAME = "[A-Za-z0-9][-._A-Za-z0-9]*"
_CHECKED, _DECLARED = ruled(
    _form(
        "pvc://",
        "^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[^/].*$",
        "source: write pvc://CLAIM/PATH, for example pvc://datasets/travel/train.jsonl",
    ),
    _form(
        "hf://",
        f"^hf://{_HUB_NAME}/{_HUB_NAME}(/.+)?$",
        "source: write hf://OWNER/NAME, for a dataset hf://OWNER/NAME/FILE",
    ),
    _form("s3://", "^s3://[a-z0-9][-.a-z0-9]+/[^/].*$", "source: write s3://BUCKET/KEY"),
    _form(
        "https://",
        "^https://[^/?#@]*([/?#].*)?$",
        "source: an https URL must not carry a user or a password; put them into a Secret and name it in secretRef",
    ),
    _form("https://", "^https://[^/?#]+/[^/].*$", "source: write https://HOST/PATH"),
    Rule(
        "!self.contains('..')",
        "source: '..' is not allowed in a path; name the file from the root of its source",
        lambda source: ".." not in source,
    ),
)
Source = Annotated[str, Field(max_length=1024, min_length=1, pattern=SOURCE), _CHECKED, _DECLARED]


ModuleName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.]+$")]


def is_multiplier(value: int | str) -> bool:
    """`auto`, 1 to 9999, or a decimal above 0 as text."""
    if isinstance(value, int):
        return 0 < value <= 9999
    return value == "auto" or bool(re.search(MULTIPLIER, value) and re.search("[1-9]", value))


MULTIPLIER_RULE = Rule(
    "type(self) == int ? self > 0 && self <= 9999 "
    f": self == 'auto' || (self.matches('{MULTIPLIER}') && self.matches('[1-9]'))",
    'hyperparameters.learningRateMultiplier: write auto, a whole number from 1 to 9999, or a decimal in quotes: "1.8"',
    is_multiplier,
)
_CHECKED, _DECLARED = ruled(MULTIPLIER_RULE)
Multiplier = Annotated[
    Int | Annotated[str, Field(max_length=12)],
    _CHECKED,
    _DECLARED,
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]


_CHECKED, _DECLARED = ruled(
    Rule(
        f"type(self) == int ? self >= 0 && self < 1000000000000000 : self.matches('{QUANTITY}')",
        "write a quantity: a number, or a number with a unit, for example 4, 500m, 0.5 or 32Gi",
        lambda text: bool(re.search(QUANTITY, text)),
    )
)
Quantity = Annotated[
    str,
    Field(max_length=32),
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    _CHECKED,
    _DECLARED,
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]


_CHECKED, _DECLARED = ruled(
    Rule(
        f"self.all(key, size(key) <= 316 && key.matches('{LABEL_KEY}'))",
        "nodeSelector: every key must be a valid label key, for example nvidia.com/gpu.product",
        lambda labels: all(len(key) <= 316 and re.search(LABEL_KEY, key) for key in labels),
    )
)
NodeSelector = Annotated[
    dict[str, Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]], Field(max_length=32), _CHECKED, _DECLARED
]
