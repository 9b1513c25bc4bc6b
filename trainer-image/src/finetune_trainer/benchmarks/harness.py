"""EleutherAI's lm-eval as far as we use it: its task of a name, with the data given by us.

A task of lm-eval is a YAML file (with functions beside it): from which repository its examples are, how a prompt is
made of one, what is measured. Left out is what fetches or runs something else by itself.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from finetune_api.benchmarks import BenchmarkSpec
from finetune_api.conditions import FailureReason
from finetune_trainer.errors import UserInputError

NAMED = re.compile(rb"^['\"]?(?:task|group)['\"]?:[ \t]*['\"]?([^\s'\"#]+)['\"]?[ \t]*\r?$", re.MULTILINE)
FETCHES = re.compile(rb"\b(evaluate\.load|load_dataset|snapshot_download|hf_hub_download|urlopen|requests\.get)\(")
REPOSITORY = re.compile(r"[-_.A-Za-z0-9]+/[-_.A-Za-z0-9]+")
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
Read = Callable[[Mapping[str, Any]], DatasetDict]
"""From a task's configuration to its data, by split."""


def require_benchmarks(benchmarks: Iterable[BenchmarkSpec]) -> None:
    """Raise UserInputError (SpecInvalid) for a name that lm-eval does not have, or a task that cannot be done here."""
    for wanted in benchmarks:
        configuration(wanted)


def configuration(wanted: BenchmarkSpec) -> dict[str, Any]:
    """The task as lm-eval's YAML has it, with what the spec says otherwise. Raises UserInputError (SpecInvalid)."""
    files = _files()
    path = files.get(wanted.task)
    if path is None:
        near = difflib.get_close_matches(wanted.task, files, n=3)
        raise refused(wanted, "lm-eval has no such task", f"perhaps {' or '.join(near)}" if near else "")
    from lm_eval.tasks._yaml_loader import load_yaml  # heavy to import

    _require_plain(wanted, load_yaml(path, resolve_func=False))
    try:
        found = load_yaml(path, resolve_func=True)
    except ImportError as error:
        raise refused(wanted, f"it needs a package that is not in the image: {error}") from error
    except Exception as error:  # the task's own code, which is loaded with it
        raise refused(wanted, f"lm-eval cannot load it: {error}") from error
    shots = {} if wanted.few_shot_examples is None else {"num_fewshot": wanted.few_shot_examples}
    # What says where to find the task, and is no setting of it.
    return {key: value for key, value in {**found, **shots}.items() if key not in ("tag", "group", "task_list")}


def _require_plain(wanted: BenchmarkSpec, found: Mapping[str, Any]) -> None:
    if "group" in found and not isinstance(found.get("task"), str):
        raise refused(wanted, "it is a group of tasks", "name those of its tasks that matter to you")
    if "class" in found or found.get("custom_dataset"):
        raise refused(wanted, "it fetches its data by code of its own")
    if found.get("unsafe_code"):
        raise refused(wanted, "it runs what the model writes as a program")
    if found.get("doc_to_image") or found.get("doc_to_audio"):
        raise refused(wanted, "it shows pictures or plays sounds")
    if any(metric.get("hf_evaluate") for metric in found.get("metric_list") or ()):
        raise refused(wanted, "its metric is a program that is fetched when it is used")
    if any(FETCHES.search(path.read_bytes()) for path in _code(found)):
        raise refused(wanted, "its code fetches data or programs by itself")
    if not REPOSITORY.fullmatch(str(found.get("dataset_path"))):
        raise refused(wanted, "its data is in no repository of the hub")


def _code(value: Any) -> Iterator[Path]:
    """The files of the functions that a configuration names: as /FOLDER/MODULE.FUNCTION while they are not loaded."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _code(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _code(inner)
    elif isinstance(value, str) and value.startswith(str(_folder())):
        path = Path(value).with_suffix(".py")
        if path.is_file():
            yield path


def build(wanted: BenchmarkSpec, read: Read) -> Any:
    """lm-eval's task (a ConfigurableTask) on the data that `read` gives. The library tries it on one example.

    Raises UserInputError as `configuration` does, and what `read` raises.
    """
    from lm_eval.api.task import ConfigurableTask

    config = configuration(wanted)

    class GivenData(ConfigurableTask):  # type: ignore[misc]  # the library has no types
        """Its data comes from us in place of the network."""

        def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
            self.dataset = read(config)

    task = GivenData(config=dict(config))
    # As lm-eval's simple_evaluate does, which we do not call: it asks git and the machine for their versions.
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=1234)
    return task


def splits(config: Mapping[str, Any]) -> list[str]:
    """The parts of the data that the task reads: its own, and the one that it takes solved examples from."""
    few_shot = (config.get("fewshot_config") or {}).get("split")
    found = [*(config.get(name) for name in SPLITS), few_shot]
    return list(dict.fromkeys(name for name in found if isinstance(name, str)))


def refused(wanted: BenchmarkSpec, why: str, advice: str = "") -> UserInputError:
    """That this benchmark cannot be done, and what to do."""
    return UserInputError(
        f"evaluation.benchmarks, {wanted.task}: {why}",
        advice=f"{advice}; or remove it".removeprefix("; or ") if advice else "remove it, or name another task",
        reason=FailureReason.SPEC_INVALID,
    )


@cache
def _files() -> dict[str, Path]:
    """Each task's and group's YAML file by its name. lm-eval's own index parses all 14,000 of them: 20 seconds."""
    found: dict[str, Path] = {}
    for path in sorted(_folder().rglob("*.yaml")):
        for name in NAMED.findall(path.read_bytes()):
            found.setdefault(name.decode(errors="replace"), path)
    return found


@cache
def _folder() -> Path:
    package = find_spec("lm_eval")
    assert package is not None, "lm-eval is a dependency"
    assert package.submodule_search_locations, "it is a package"
    return Path(package.submodule_search_locations[0]) / "tasks"


def quiet() -> None:
    """lm-eval warns of each default that it takes."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
