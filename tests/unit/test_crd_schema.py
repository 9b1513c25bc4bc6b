"""The schema that is made of the types: structural, bounded and described to the last field."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import BaseModel, Field

from finetune_api.__main__ import FILES, main
from finetune_api.conditions import ConditionType, ExitCode, FailureReason, Stage
from finetune_api.crd import chart_template, crd_yaml, job_schema, run_schema_json
from finetune_api.meanings import CONDITION_MEANINGS, EXIT_CODES, STAGE_MEANINGS
from finetune_api.reasons import REASONS
from finetune_api.reference import reference_page
from finetune_api.schema import Schema, SchemaError, structural_schema
from finetune_api.troubleshooting import TROUBLES

ROOT = Path(__file__).parents[2]


class Colour(StrEnum):
    """A colour."""

    RED = "Red"
    BLUE = "Blue"


class Inner(BaseModel):
    """Something
    inside."""

    size: int = Field(default=3, ge=1, le=5)
    word: str | None = Field(default=None, max_length=4)


class Outer(BaseModel):
    colour: Colour = Colour.RED
    inner: Inner = Field(default=Inner(), description="One.")
    larger: Inner = Field(default=Inner(size=5), description="Another.")
    several: list[Inner] = Field(default=[Inner(), Inner(size=2)], max_length=3)
    named: dict[str, Annotated[str, Field(max_length=5)]] = Field(default={}, max_length=2)
    either: Annotated[int, Field(ge=1, le=9)] | Annotated[str, Field(max_length=4)] = Field(
        default=1, json_schema_extra={"x-kubernetes-int-or-string": True}
    )


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for part in ("items", "additionalProperties"):
        if part in schema:
            yield from nodes(schema[part], f"{path}[]")


def test_references_are_inlined_and_descriptions_are_one_line() -> None:
    inner = structural_schema(Outer)["properties"]["inner"]
    assert inner["description"] == "One."
    assert inner["properties"]["size"] == {"type": "integer", "default": 3, "maximum": 5, "minimum": 1}
    assert structural_schema(Inner)["description"] == "Something inside."


def test_optional_is_absent_not_null() -> None:
    assert structural_schema(Inner)["properties"]["word"] == {"type": "string", "maxLength": 4}


def test_defaults_hold_only_what_the_inside_does_not_say() -> None:
    properties = structural_schema(Outer)["properties"]
    assert properties["inner"]["default"] == {}
    assert properties["larger"]["default"] == {"size": 5}
    assert properties["several"]["default"] == [{}, {"size": 2}]
    assert properties["colour"] == {
        "description": "A colour.",
        "type": "string",
        "default": "Red",
        "enum": ["Red", "Blue"],
    }


def test_integer_or_string_has_no_type() -> None:
    assert structural_schema(Outer)["properties"]["either"] == {
        **{"default": 1, "maxLength": 4},
        "x-kubernetes-int-or-string": True,
    }


class TwoTypes(BaseModel):
    field: int | float | list[int] = 1


class NoType(BaseModel):
    field: Any


class Multiple(BaseModel):
    field: int = Field(default=2, multiple_of=2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TwoTypes, r"TwoTypes\.field: one field, one type"),
        (NoType, r"NoType\.field: has no type"),
        (Multiple, r"Multiple\.field: multipleOf cannot be said"),
    ],
)
def test_what_cannot_be_said_is_refused_with_its_place(model: type[BaseModel], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        structural_schema(model)


def unbounded(schema: Schema) -> str | None:
    """What bound a node lacks."""
    if "enum" in schema or schema.get("format") == "date-time":
        return None
    needs = {"string": "maxLength", "array": "maxItems", "integer": "minimum", "object": "maxProperties"}
    if schema.get("x-kubernetes-int-or-string"):
        return None if "maxLength" in schema else "maxLength"
    need = needs.get(schema["type"])
    return need if need and need not in schema and "properties" not in schema else None


def test_everything_is_bounded() -> None:
    properties = job_schema()["properties"]
    lacking = {
        path: unbounded(schema)
        for part in ("spec", "status")
        for path, schema in nodes(properties[part], part)
        if unbounded(schema)
    }
    assert lacking == {}


def test_numbers_of_the_spec_have_both_bounds() -> None:
    numbers = [
        (path, node)
        for path, node in nodes(job_schema()["properties"]["spec"])
        if node.get("type") in ("integer", "number")
    ]
    assert numbers
    assert [path for path, node in numbers if not {"minimum", "maximum"} <= node.keys()] == []


def test_every_field_has_a_description() -> None:
    lacking = [
        path
        for part in ("spec", "status")
        for path, schema in nodes(job_schema()["properties"][part], part)
        if not path.endswith("[]") and not schema.get("description")
    ]
    assert lacking == []


def test_every_rule_says_which_field_and_what_to_write() -> None:
    for path, schema in nodes(job_schema()):
        for rule in schema.get("x-kubernetes-validations", ()):
            assert rule["message"], path
            assert "\\" not in rule["rule"], f"{path}: CEL reads a backslash as an escape"


def test_reference_names_every_field_reason_and_condition() -> None:
    page = reference_page()
    for path, _ in nodes(job_schema()["properties"]["spec"], "spec"):
        assert f"`{path.rstrip('[]').rpartition('.')[2]}`" in page or path == "spec"
    assert set(REASONS) == set(TROUBLES) == set(FailureReason)
    assert set(CONDITION_MEANINGS) == set(ConditionType)
    assert set(STAGE_MEANINGS) == set(Stage)
    assert set(EXIT_CODES) == {value for name, value in vars(ExitCode).items() if name.isupper()}
    assert all(f"`{reason}`" in page for reason in FailureReason)


def test_a_table_row_of_the_reference_has_four_cells() -> None:
    for line in reference_page().splitlines():
        if line.startswith("| `") and "kubectl" not in line:
            assert line.replace("\\|", "").count("|") in (3, 5), line


def test_run_schema_has_none_of_our_extensions() -> None:
    assert '"x-' not in run_schema_json()


def test_chart_copy_differs_in_its_metadata_only() -> None:
    template = chart_template()
    assert template.splitlines()[1] == "{{- if .Values.crds.enabled }}"
    without = "\n".join(line for line in template.splitlines() if not line.strip().startswith("{{"))
    copy, original = yaml.safe_load(without), yaml.safe_load(crd_yaml())
    assert copy["spec"] == original["spec"]


def test_committed_files_are_up_to_date() -> None:
    assert main(["generate", "--check", "--root", str(ROOT)]) == 0


def test_check_names_what_is_out_of_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--root", str(tmp_path)]) == 0
    (tmp_path / "docs" / "reference.md").write_text("old")
    (tmp_path / "crds" / "finetunejobs.yaml").unlink()
    capsys.readouterr()
    assert main(["generate", "--check", "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.count("is out of date") == 2
    assert "docs/reference.md" in said
    assert main(["crd", "--check", "--root", str(tmp_path)]) == 1
    assert main(["run-schema", "--check", "--root", str(tmp_path)]) == 0


@pytest.mark.parametrize("what", ["crd", "reference", "run-schema"])
def test_a_part_is_printed(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([what]) == 0
    assert capsys.readouterr().out in {make() for make in FILES.values()}
