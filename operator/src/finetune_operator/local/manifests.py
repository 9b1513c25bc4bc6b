"""From YAML files to one FineTuneJob and its ConfigMaps. What is wrong is said with file, line, path and remedy."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from finetune_api import API_VERSION, KIND
from finetune_api.fields import NAME, PERCENT
from finetune_api.job import FineTuneJob
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.local.data_files import refuse_data
from finetune_operator.local.errors import BadInput
from finetune_operator.local.suggestions import meant, nearest, nearest_path

SUFFIXES = (".yaml", ".yml", ".json")
KINDS = "FineTuneJob and ConfigMap"
# What the API server takes as an object's name: an RFC 1123 subdomain.
SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
NAME_LENGTH = 253
LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"  # a namespace's name
DATA_KEY = r"(?!\.\.?$)[-._a-zA-Z0-9]{1,253}"  # becomes the name of a file
# What these patterns ask for, in words.
FORMS = {
    PERCENT: 'write a share in percent, for example "5%"',
    NAME: "write lower-case letters, digits, dashes and dots, for example travel-models",
}
SOURCE_FORMS = (
    "write pvc://CLAIM/PATH for what lies on this machine (--claim CLAIM=FOLDER says where), or hf://OWNER/NAME, "
    "s3://BUCKET/KEY"
)


class Loader(yaml.SafeLoader):
    """Without YAML 1.1's dates, which are texts to kubectl: rerunToken: 2026-01-15."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in each if tag != "tag:yaml.org,2002:timestamp"]
    for first, each in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document, with the nodes that know the lines."""

    file: str
    content: dict[str, Any]
    node: yaml.MappingNode

    @property
    def kind(self) -> str:
        return str(self.content.get("kind", ""))

    @property
    def name(self) -> str:
        meta = self.content.get("metadata")
        return str(meta.get("name", "")) if isinstance(meta, dict) else ""

    def place(self, path: Sequence[str | int]) -> str:
        """FILE:LINE of the deepest part of the path that is there."""
        node: yaml.Node = self.node
        line = node.start_mark.line
        for step in path:
            found = _child(node, step)
            if found is None:
                break
            line, node = found
        return f"{self.file}:{line + 1}"


@dataclass(frozen=True, slots=True)
class Given:
    """What the files hold. `ignored`: documents that mean nothing on one machine, as KIND NAME."""

    job: FineTuneJob
    document: Document
    config_maps: Mapping[str, dict[str, Any]]
    ignored: tuple[str, ...] = ()


def read(files: Sequence[str], *, name: str | None = None, namespace: str | None = None) -> Given:
    """The one job (or the one called `name`) in files, folders or `-`. Raises BadInput."""
    documents = [document for file in files for document in _documents(file)]
    document = _the_job(documents, name, files)
    job = parse_job(document, namespace)
    config_maps = {d.name: _config_map(d) for d in documents if d.kind == "ConfigMap" and _beside(d, job)}
    others = [d for d in documents if d.kind not in (KIND, "ConfigMap")]
    return Given(
        job, document, config_maps, tuple(f"{d.kind or 'an object without a kind'} {d.name}".rstrip() for d in others)
    )


def parse_job(document: Document, namespace: str | None = None) -> FineTuneJob:
    """The job with all defaults. Raises BadInput with one line for each mistake."""
    content = document.content
    meta: dict[str, Any] = content["metadata"] if isinstance(content.get("metadata"), dict) else {}
    space = namespace or meta.get("namespace") or "default"
    problems = list(_head_problems(document, space))
    unknown = [key for key in content if key not in ("apiVersion", "kind", "metadata", "spec", "status")]
    known = ["apiVersion", "kind", "metadata", "spec"]
    problems += [f"{document.place([key])}: {key}: unknown field{meant(str(key), known)}" for key in unknown]
    try:
        spec = FineTuneJobSpec.model_validate(content.get("spec") or {}, by_alias=True, by_name=False)
    except ValidationError as error:
        # A number where a whole one or a text may stand is told twice, in the same words.
        problems += dict.fromkeys(_problem(document, detail) for detail in error.errors(include_url=False))
    if problems:
        raise BadInput(
            "\n".join(problems), f"every field is described in docs/reference.md and by `kubectl explain {KIND}.spec`"
        )
    labels = {str(key): str(value) for key, value in (meta.get("labels") or {}).items()}
    head = {"name": meta["name"], "namespace": space, "labels": labels}
    return FineTuneJob.model_validate({"metadata": head, "spec": spec})


def _documents(file: str) -> Iterator[Document]:
    if file == "-":
        yield from _parse("-", sys.stdin.read())
        return
    path = Path(file)
    if path.is_dir():
        inside = sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES and entry.is_file())
        if not inside:
            raise BadInput(f"{file}: the folder has no {', '.join(SUFFIXES)} file", "name the file itself")
        for entry in inside:
            yield from _parse(str(entry), _text(entry, str(entry)))
        return
    refuse_data(file)
    yield from _parse(file, _text(path, file))


def _text(path: Path, file: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = nearest_path(file)
        advice = f"did you mean {near}?" if near else "give the file of a FineTuneJob with -f"
        raise BadInput(f"{file}: there is no such file", advice) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text in UTF-8"
        raise BadInput(f"{file}: {reason}", "give the file of a FineTuneJob with -f") from error


def _parse(file: str, text: str) -> Iterator[Document]:
    try:
        for node in yaml.compose_all(text, Loader=Loader):
            if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
                continue
            _refuse_twice(file, node)
            yield from _objects(file, node)
    except (yaml.YAMLError, ValueError) as error:  # the latter: a value that is not of its explicit tag
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        problem = getattr(error, "problem", None) or str(error)
        raise BadInput(f"{where}: not valid YAML: {problem}", "look at indentation, colons and quotes there") from error


def _objects(file: str, node: yaml.Node) -> Iterator[Document]:
    """The object, or those in a List, which is how kubectl writes several."""
    content = Loader("").construct_document(node)
    if not isinstance(node, yaml.MappingNode) or not isinstance(content, dict):
        raise BadInput(f"{file}:{node.start_mark.line + 1}: not a Kubernetes object", f"write {KINDS}")
    if not str(content.get("kind", "")).endswith("List"):
        yield Document(file, content, node)
        return
    _, items = _child(node, "items") or (0, None)
    for item in items.value if isinstance(items, yaml.SequenceNode) else ():
        yield from _objects(file, item)


def _refuse_twice(file: str, node: yaml.Node) -> None:
    """YAML readers keep the last of two equal keys silently; the API server warns. Raises BadInput."""
    children: Iterable[yaml.Node] = ()
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise BadInput(
                    f"{file}:{line}: {key.value} stands in line {seen[key.value]} already", "remove one of them"
                )
            if isinstance(key, yaml.ScalarNode):
                seen[key.value] = line
        children = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    for child in children:
        _refuse_twice(file, child)


def _the_job(documents: Sequence[Document], name: str | None, files: Sequence[str]) -> Document:
    jobs = [document for document in documents if document.kind == KIND]
    if name is not None:
        jobs = [document for document in jobs if document.name == name]
    if len(jobs) == 1:
        return jobs[0]
    where = ", ".join(files)
    if jobs:
        names = ", ".join(document.name for document in jobs)
        raise BadInput(f"{where}: {len(jobs)} FineTuneJobs ({names})", "say which: finetune run NAME -f ...")
    kinds = sorted({document.kind or "no kind" for document in documents})
    wanted = f"FineTuneJob {name}" if name else "FineTuneJob"
    raise BadInput(
        f"{where}: there is no {wanted}; found: {', '.join(kinds) or 'nothing'}",
        f"write `apiVersion: {API_VERSION}` and `kind: {KIND}`",
    )


def _head_problems(document: Document, namespace: object) -> Iterator[str]:
    content, meta = document.content, document.content.get("metadata")
    if content.get("apiVersion") != API_VERSION:
        yield f"{document.place(['apiVersion'])}: apiVersion: {content.get('apiVersion')!r}; write {API_VERSION}"
    yield from _name_problems(document)
    if not is_namespace(namespace):
        yield (
            f"{document.place(['metadata', 'namespace'])}: metadata.namespace: {namespace!r}; write lower-case "
            "letters, digits and dashes, at most 63 characters, for example team-a"
        )
    if isinstance(meta, dict) and not isinstance(meta.get("labels") or {}, dict):
        yield f"{document.place(['metadata', 'labels'])}: metadata.labels: not a map; write KEY: VALUE"


def _name_problems(document: Document) -> Iterator[str]:
    meta = document.content.get("metadata")
    name = meta.get("name") if isinstance(meta, dict) else None
    if not is_name(name):
        yield (
            f"{document.place(['metadata', 'name'])}: metadata.name: {name!r}; write lower-case letters, digits, "
            f"dashes and dots, at most {NAME_LENGTH} characters, for example travel-assistant"
        )


def is_name(name: object) -> bool:
    """Whether an object can be called so. Names become folders: no other can lead out of FINETUNE_HOME."""
    return isinstance(name, str) and len(name) <= NAME_LENGTH and re.fullmatch(SUBDOMAIN, name) is not None


def is_namespace(name: object) -> bool:
    """Whether a namespace can be called so."""
    return isinstance(name, str) and re.fullmatch(LABEL, name) is not None


def _beside(document: Document, job: FineTuneJob) -> bool:
    """Whether the ConfigMap is in the job's namespace; one that names none is."""
    meta = document.content.get("metadata")
    return not isinstance(meta, dict) or meta.get("namespace") in (None, job.metadata.namespace)


def _config_map(document: Document) -> dict[str, Any]:
    for problem in _name_problems(document):
        raise BadInput(problem, "correct the ConfigMap")
    parts = {part: document.content[part] for part in ("data", "binaryData") if document.content.get(part)}
    for part, content in parts.items():
        for path, what in _data_problems(part, content):
            place, field = document.place(path), ".".join(path)
            raise BadInput(f"{place}: ConfigMap {document.name}: {field}: {what}", "write `data:`, below it `KEY: |`")
    return {"metadata": {"name": document.name}, "data": {}, **parts}


def _data_problems(part: str, content: object) -> Iterator[tuple[list[str], str]]:
    """(path, what is wrong) in a ConfigMap's `data` or `binaryData`."""
    if not isinstance(content, dict):
        yield [part], "not a map"
        return
    for key, value in content.items():
        if not re.fullmatch(DATA_KEY, str(key)):
            yield [part, str(key)], "no key of a ConfigMap: write letters, digits, dashes, dots and underscores"
        elif not isinstance(value, str):
            yield [part, str(key)], "not a text"
        elif part == "binaryData" and not _is_base64(value):
            yield [part, str(key)], "not in base64"


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


def _problem(document: Document, detail: Mapping[str, Any]) -> str:
    path = ["spec", *_yaml_path(document, detail["loc"])]
    field = ".".join(str(step) for step in path)
    return f"{document.place(path)}: {field}: {_words(detail, path)}"


def _yaml_path(document: Document, loc: Sequence[str | int]) -> list[str | int]:
    """pydantic's location without the members of unions, which are no part of the YAML. The last step of a field
    that is missing stays."""
    node: yaml.Node | None = (_child(document.node, "spec") or (0, None))[1]
    path: list[str | int] = []
    for index, step in enumerate(loc):
        found = _child(node, step) if node is not None else None
        if found is not None:
            path.append(step)
            node = found[1]
        elif isinstance(node, yaml.MappingNode) or (node is None and index == 0):
            path.append(step)
            node = None
    return path


def _words(detail: Mapping[str, Any], path: Sequence[str | int]) -> str:
    kind, message = detail["type"], _without_its_place(str(detail["msg"]).removeprefix("Value error, "), path)
    if kind == "extra_forbidden":
        return f"unknown field{meant(str(path[-1]), _fields(path[:-1]))}"
    if kind == "missing":
        return "missing; it has no default"
    if kind in ("value_error", "assertion_error"):
        return message
    given = f"{detail['input']!r}: "
    if form := _form(kind, detail, path):
        return f"{given}{form}"
    if kind == "enum":
        near = nearest(str(detail["input"]), re.findall("'([^']+)'", detail["ctx"]["expected"]))
        return f"{given}write one of {detail['ctx']['expected']}" + (f"; did you mean {near}?" if near else "")
    if kind == "model_type":
        return f"{given}write fields below it: {', '.join(_fields(path))}"
    if kind == "string_pattern_mismatch" and path[-1] == "source" and len(str(detail["input"]).split()) > 1:
        return f"{given}no blanks may be in it; rename what it names"
    if kind == "string_pattern_mismatch" and path[-1] == "source":
        return f"{given}{SOURCE_FORMS}"
    return f"{given}{message[:1].lower()}{message[1:]}"


def _without_its_place(message: str, path: Sequence[str | int]) -> str:
    """Rules that the API server has, too, begin with their field, which we have said already."""
    head, separator, rest = message.partition(": ")
    return rest if separator and ".".join(map(str, path)).endswith(head) else message


def _form(kind: str, detail: Mapping[str, Any], path: Sequence[str | int]) -> str:
    """What to write in place of a number, a text, or a name in a wrong form; empty for other mistakes."""
    value, asked = detail["input"], FORMS.get(_pattern(path), "")
    if kind in ("string_type", "int_type") and type(value) in (int, float):
        return asked or f'write it in quotes: "{value}"'
    if kind == "int_type" and isinstance(value, str):
        return f"write it without quotes: {value}" if value.isdecimal() else "write a whole number"
    return asked if kind == "string_pattern_mismatch" else ""


def _fields(path: Sequence[str | int]) -> list[str]:
    """The fields that may stand below this path."""
    return list(_schema(path).get("properties", {}))


def _pattern(path: Sequence[str | int]) -> str:
    """Of a text; empty where it has none."""
    here = _schema(path)
    return next((part["pattern"] for part in (here, *here.get("anyOf", ())) if "pattern" in part), "")


def _schema(path: Sequence[str | int]) -> dict[str, Any]:
    """Of the value at this path, as the API server has it, too."""
    schema = FineTuneJobSpec.model_json_schema(by_alias=True)
    here: dict[str, Any] = schema
    for step in path[1:]:
        here = _resolved(here, schema)
        here = here.get("items", {}) if isinstance(step, int) else here.get("properties", {}).get(step, {})
    return _resolved(here, schema)


def _resolved(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    options = [part, *part.get("anyOf", ()), *part.get("allOf", ())]
    reference = next((option["$ref"] for option in options if "$ref" in option), None)
    return schema["$defs"][reference.rsplit("/", 1)[-1]] if reference else part


def _child(node: yaml.Node, step: str | int) -> tuple[int, yaml.Node] | None:
    """Line and node below a key or an index."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key.start_mark.line, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark.line, node.value[step]
    return None
