"""The data of benchmarks: fetched by Prepare into the run's folder, read by Evaluate, which has no network."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import DatasetBuilder, DatasetDict, load_dataset_builder, load_from_disk
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of the HTTP library it uses
    HTTPError,
    LocalEntryNotFoundError,
)

from finetune_api.benchmarks import BenchmarkSpec
from finetune_api.conditions import FailureReason
from finetune_api.run_config import SourcePolicy
from finetune_trainer import artifacts
from finetune_trainer.benchmarks.harness import build, quiet, refused, splits
from finetune_trainer.context import StageContext
from finetune_trainer.errors import TrainerError, UserInputError
from finetune_trainer.sources.hub import DatasetRepository, dataset_repository

log = logging.getLogger(__name__)

SOURCE, DATA = "source.json", "data"


def fetch_benchmarks(context: StageContext, scratch: Path) -> None:
    """Fetch what each benchmark needs and is not there yet, to `benchmarks/TASK` of the run's folder.

    Each task is made of it and tries an example, so that what cannot be measured fails before a GPU is asked for.
    Raises UserInputError, and TrainerError when the hub does not answer.
    """
    quiet()
    for wanted in context.config.evaluation.benchmarks:
        folder = context.benchmarks_dir / wanted.task
        if artifacts.is_complete(folder):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        _fetch(wanted, folder, scratch / wanted.task, context.config.policy)


def stored(folder: Path) -> DatasetDict:
    """The data that `fetch_benchmarks` left in `folder`, in memory: what lm-eval derives from it is written nowhere.

    Raises ArtifactInvalidError when it is not as it was left.
    """
    artifacts.verify(folder)
    found = load_from_disk(str(folder / DATA), keep_in_memory=True)
    assert isinstance(found, DatasetDict)
    return found


def source_of(folder: Path) -> str:
    """From where it is: hf://OWNER/NAME@COMMIT."""
    return str(json.loads((folder / SOURCE).read_bytes())["source"])


def _fetch(wanted: BenchmarkSpec, folder: Path, scratch: Path, policy: SourcePolicy) -> None:
    found: list[str] = []

    def read(config: Mapping[str, Any]) -> DatasetDict:
        repository = dataset_repository(config["dataset_path"], (config.get("dataset_kwargs") or {}).get("revision"))
        found.append(repository.told)
        log.info("benchmark %s: fetches %s", wanted.task, repository.told)
        return _parts(wanted, config, _download(wanted, config, repository, scratch, policy))

    try:
        task = build(wanted, read)
    except TrainerError:
        raise
    except Exception as error:  # the task's own code, on data of another form than it expects
        of = found[-1] if found else "its data"
        raise _unusable(wanted, f"lm-eval cannot make its questions of {of}: {_words(error)}") from error
    if wanted.metric and (wanted.metric.partition(",")[0] not in task.aggregation()):
        raise refused(wanted, f"it has no metric {wanted.metric}, but {', '.join(task.aggregation())}")
    making = folder.with_name(f".{folder.name}")
    shutil.rmtree(making, ignore_errors=True)
    task.dataset.save_to_disk(str(making / DATA))
    artifacts.write_json(making / SOURCE, json.dumps({"source": found[-1]}))
    artifacts.finish(making)
    making.rename(folder)


def _download(
    wanted: BenchmarkSpec, config: Mapping[str, Any], repository: DatasetRepository, scratch: Path, policy: SourcePolicy
) -> DatasetDict:
    more = {k: v for k, v in (config.get("dataset_kwargs") or {}).items() if k not in ("trust_remote_code", "revision")}
    try:
        builder = load_dataset_builder(
            repository.repo,
            config.get("dataset_name"),
            revision=repository.commit,
            cache_dir=str(scratch),
            **more,
        )
        repository.require_small(_files(builder), policy)
        builder.download_and_prepare()
        found = builder.as_dataset()
    except TrainerError:
        raise
    except Exception as error:
        # No such configuration, a script, a broken file; but a file that did not come is not found, too.
        if isinstance(error, ValueError | RuntimeError | FileNotFoundError) and not _did_not_come(error):
            raise _unusable(wanted, f"{repository.told} cannot be read: {_words(error)}") from error
        if not isinstance(error, OSError | HTTPError):
            raise
        raise TrainerError(
            f"evaluation.benchmarks, {wanted.task}: {repository.told} could not be fetched: {_words(error)}",
            advice="see that the hub can be reached from the prepare pod",
            reason=FailureReason.SOURCE_UNAVAILABLE,
        ) from error
    assert isinstance(found, DatasetDict)
    return found


def _did_not_come(error: BaseException | None) -> bool:
    """Whether the hub did not answer for a file: the library wraps that in an error of its own."""
    return isinstance(error, LocalEntryNotFoundError) or (error is not None and _did_not_come(error.__cause__))


def _files(builder: DatasetBuilder) -> Iterable[str]:
    """Paths in the repository of what will be downloaded: of hf://datasets/OWNER/NAME@COMMIT/PATH."""
    for files in (builder.config.data_files or {}).values():
        yield from (str(file).partition("@")[2].partition("/")[2] for file in files)


def _parts(wanted: BenchmarkSpec, config: Mapping[str, Any], found: DatasetDict) -> DatasetDict:
    needed = splits(config)
    if missing := [name for name in needed if name not in found]:
        raise _unusable(wanted, f"its data has no part {', '.join(missing)}, but {', '.join(found)}")
    return DatasetDict({name: found[name] for name in needed})


def _unusable(wanted: BenchmarkSpec, why: str) -> UserInputError:
    error = refused(wanted, why, "give the mirror the repository as the hub has it")
    error.reason = FailureReason.SOURCE_UNAVAILABLE
    return error


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
