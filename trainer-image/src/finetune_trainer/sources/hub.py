"""hf:// sources: the Hugging Face hub, or a private mirror of it that HF_ENDPOINT names."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of the HTTP library it uses
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_api.conditions import FailureReason
from finetune_api.run_config import SourcePolicy
from finetune_trainer.errors import DIVIDE, TrainerError, UserInputError
from finetune_trainer.sources.location import Hub
from finetune_trainer.sources.model_files import wanted_files

log = logging.getLogger(__name__)

PUBLIC_HUB = "https://huggingface.co"


def endpoint() -> str:
    """The hub's address. Read when it is used: a Secret may set HF_ENDPOINT."""
    return os.environ.get("HF_ENDPOINT", PUBLIC_HUB).rstrip("/")


def resolve_revision(location: Hub, revision: str | None) -> str:
    """The commit, 40 hexadecimal digits: the one that was asked for, or the newest. Raises UserInputError."""
    with _explained(location, FailureReason.MODEL_ACCESS):
        commit = HfApi(endpoint=endpoint()).model_info(location.repo, revision=revision).sha
    log.info("base model: hf://%s at commit %s of %s", location.repo, commit, endpoint())
    return str(commit)


def fetch_model(location: Hub, revision: str, folder: Path, policy: SourcePolicy) -> None:
    """Download the wanted files of a commit into `folder`. Raises UserInputError."""
    source = f"hf://{location.repo}"
    with _explained(location, FailureReason.MODEL_ACCESS):
        info = HfApi(endpoint=endpoint()).model_info(location.repo, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    names = wanted_files((name for name in sizes if "/" not in name), source)
    _refuse_large({name: sizes[name] for name in names}, source, policy)
    folder.mkdir(parents=True)
    for name in names:
        log.info("base model: downloads %s (%s bytes)", name, f"{sizes[name]:,}")
        _download(location, name, folder, revision=revision, repo_type="model")
    _remove_bookkeeping(folder)


def fetch_file(location: Hub, folder: Path, policy: SourcePolicy) -> Path:
    """Download one file of a dataset repository at its newest commit; return its path. Raises UserInputError."""
    found = _holding(location)
    _refuse_large({location.path: found.sizes[location.path]}, f"hf://{location.repo}/{location.path}", policy)
    log.info("data: hf://%s at commit %s", location.repo, found.commit)
    return _download(location, location.path, folder, revision=found.commit, repo_type="dataset")


def version(location: Hub) -> str:
    """Of one file of a dataset repository at its newest commit: its blob, or the commit where the hub does not name it.
    Raises UserInputError."""
    found = _holding(location)
    blob = found.blobs.get(location.path)
    return f"blob {blob}" if blob else f"commit {found.commit}"


def _holding(location: Hub) -> DatasetRepository:
    """The repository at its newest commit. Raises UserInputError where it lacks the file."""
    found = dataset_repository(location.repo)
    sizes = found.sizes
    if location.path not in sizes:
        names = ", ".join(sorted(name for name in sizes if ".json" in name)[:8]) or "no JSON Lines file"
        raise UserInputError(
            f"hf://{location.repo} has no file {location.path} (it has: {names})",
            advice="correct the file's name in dataset source",
            reason=FailureReason.SOURCE_UNAVAILABLE,
        )
    return found


@dataclass(frozen=True, slots=True)
class DatasetRepository:
    """A dataset repository at a commit, with the sizes of its files (bytes), and Git's names of their contents."""

    repo: str
    commit: str
    sizes: Mapping[str, int]
    blobs: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def told(self) -> str:
        return f"hf://{self.repo}@{self.commit[:12]}"

    def require_small(self, names: Iterable[str], policy: SourcePolicy) -> None:
        """Raise UserInputError where one of these files is larger than the platform allows."""
        _refuse_large({name: self.sizes[name] for name in names if name in self.sizes}, self.told, policy)


def dataset_repository(repo: str, revision: str | None = None) -> DatasetRepository:
    """The repository at `revision`, or at its newest commit. Raises UserInputError, and TrainerError when the hub does
    not answer."""
    with _explained(Hub(repo), FailureReason.SOURCE_UNAVAILABLE):
        info = HfApi(endpoint=endpoint()).dataset_info(repo, revision=revision, files_metadata=True)
    files = info.siblings or []
    sizes, blobs = {file.rfilename: file.size or 0 for file in files}, {file.rfilename: file.blob_id for file in files}
    return DatasetRepository(repo, str(info.sha), sizes, blobs)


def _download(location: Hub, name: str, folder: Path, *, revision: str | None, repo_type: str) -> Path:
    reason = FailureReason.MODEL_ACCESS if repo_type == "model" else FailureReason.SOURCE_UNAVAILABLE
    with _explained(location, reason):
        path = hf_hub_download(
            location.repo, name, repo_type=repo_type, revision=revision, local_dir=folder, endpoint=endpoint()
        )
    return Path(path)


def _remove_bookkeeping(folder: Path) -> None:
    """The library's `.cache` inside a local folder is no part of the model."""
    for path in sorted((folder / ".cache").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with contextlib.suppress(FileNotFoundError):
        (folder / ".cache").rmdir()


def _refuse_large(sizes: dict[str, int], source: str, policy: SourcePolicy) -> None:
    for name, size in sizes.items():
        if size > policy.max_bytes:
            raise UserInputError(
                f"{source}: {name} has {size} bytes, and {policy.max_bytes} are allowed for a file",
                advice=DIVIDE,
                reason=FailureReason.SOURCE_UNAVAILABLE,
            )


@contextlib.contextmanager
def _explained(location: Hub, reason: FailureReason) -> Iterator[None]:
    """Turn the library's errors into ours: wrong name, no access, or a hub that does not answer."""
    name = f"hf://{location.repo}"
    try:
        yield
    except GatedRepoError as error:
        raise _error(
            f"{name} is gated, and the token has not been granted access",
            f"accept its terms at {endpoint()}/{location.repo} and put your HF_TOKEN into the Secret of secretRef",
            reason,
        ) from error
    except RevisionNotFoundError as error:
        raise _error(f"{name} has no such revision", "correct baseModel.revision", reason) from error
    except RemoteEntryNotFoundError as error:
        raise _error(f"{name} lacks a file that it lists", "upload the model again", reason) from error
    except RepositoryNotFoundError as error:
        raise _error(
            f"{name} was not found on {endpoint()}, or it is private",
            "correct the name, or put an HF_TOKEN that may read it into the Secret of secretRef",
            reason,
        ) from error
    except HFValidationError as error:
        raise _error(
            f"{name} is not a valid name: {error}", "write hf://OWNER/NAME", FailureReason.SPEC_INVALID
        ) from error
    except HfHubHTTPError as error:
        _raise_for_status(name, error, reason)
    except (HTTPError, LocalEntryNotFoundError) as error:  # the latter: no answer, and nothing cached
        raise _later(name, error) from error


def _raise_for_status(name: str, error: HfHubHTTPError, reason: FailureReason) -> None:
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        raise _error(
            f"{endpoint()} refused access to {name} (HTTP {status})",
            "put an HF_TOKEN that may read it into the Secret of secretRef",
            reason,
        ) from error
    raise _later(name, error) from error


def _later(name: str, error: Exception) -> TrainerError:
    """A hub that does not answer now may do so later: the stage ends with a fault of the system, and is tried again."""
    return TrainerError(
        f"{endpoint()} does not answer for {name}: {error}",
        advice="see that the hub can be reached from the prepare pod, and HF_ENDPOINT is right",
        reason=FailureReason.SOURCE_UNAVAILABLE,
    )


def _error(message: str, advice: str, reason: FailureReason) -> UserInputError:
    return UserInputError(message, advice=advice, reason=reason)
