"""FINETUNE_HOME: what an API server, a volume and the kubelet's log folder are on one machine.

objects/NAMESPACE/NAME.json            the FineTuneJob with its status
objects/NAMESPACE/NAME.children.json   its Jobs, pods, ConfigMaps and Deployment
configmaps/NAMESPACE/NAME.json         ConfigMaps that were given beside a job
claims/NAME                            a claim: a folder, or a link to one
artifacts/                             the output claim: models, runs, reports
logs/NAMESPACE/NAME/                   r1-train-attempt1.log
pods/                                  scratch folders of running stages
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.job import FineTuneJob
from finetune_operator import names
from finetune_operator.local.errors import BadInput, Busy
from finetune_operator.local.suggestions import meant
from finetune_operator.times import stamp

FOLDER = ".finetune"
LONGEST_STEM = 200


def find_home(environment: Mapping[str, str], start: Path) -> Path:
    """$FINETUNE_HOME; else a `.finetune` in this folder or one above, as git finds its own; else ~/.finetune."""
    if environment.get("FINETUNE_HOME"):
        return Path(environment["FINETUNE_HOME"]).expanduser().absolute()
    for folder in (start, *start.parents):
        if (folder / FOLDER).is_dir():
            return folder / FOLDER
    return Path.home() / FOLDER


def timestamp() -> str:
    """Now as Kubernetes writes it."""
    return stamp(datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Store:
    """Files below `home`. Every write is atomic; who changes a job holds its lock."""

    home: Path

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"

    @property
    def claims(self) -> Path:
        return self.home / "claims"

    def require_writable(self) -> None:
        """Raise BadInput when nothing can be kept in the home."""
        there = next(folder for folder in (self.home, *self.home.parents) if os.path.exists(folder))
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            what = f"{self.home} is no folder that can be written to"
            raise BadInput(f"{what}: see {there}", "set FINETUNE_HOME to a folder of your own")

    def logs(self, namespace: str, name: str) -> Path:
        return self.home / "logs" / namespace / name

    def object_path(self, namespace: str, name: str) -> Path:
        return self.home / "objects" / namespace / f"{_stem(name)}.json"

    def children_path(self, namespace: str, name: str) -> Path:
        return self.home / "objects" / namespace / f"{_stem(name)}.children.json"

    def load(self, namespace: str, name: str) -> FineTuneJob | None:
        """The job, or None when there is none. Raises BadInput when its file is not readable."""
        path = self.object_path(namespace, name)
        try:
            return FineTuneJob.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise BadInput(f"{path} cannot be read: {error}", "move it away and run the job again") from error

    def require(self, namespace: str, name: str) -> FineTuneJob:
        """The job. Raises BadInput that names the jobs there are."""
        job = self.load(namespace, name)
        if job is not None:
            return job
        known = sorted({job.metadata.name for job in self.jobs(namespace)})
        raise BadInput(
            f"there is no job {namespace}/{name} in {self.home}{meant(name, known) or '; there is none at all'}",
            "make one with `finetune run -f FILE`, or set FINETUNE_HOME to where it was made",
        )

    def jobs(self, namespace: str | None = None) -> list[FineTuneJob]:
        """All jobs, or those of a namespace, by name."""
        paths = sorted((self.home / "objects").glob(f"{namespace or '*'}/*.json"))
        found = [self.load(path.parent.name, path.stem) for path in paths if not path.stem.endswith(".children")]
        return [job for job in found if job is not None]

    def save(self, job: FineTuneJob) -> None:
        write_json(self.object_path(job.metadata.namespace, job.metadata.name), job.to_wire())

    def submit(self, wanted: FineTuneJob) -> FineTuneJob:
        """What `kubectl apply` does: identity and status stay, a changed spec raises the generation. Saves."""
        old = self.load(wanted.metadata.namespace, wanted.metadata.name)
        job = wanted.model_copy(update=_identity(wanted, old))
        if job != old:
            self.save(job)
        return job

    def save_config_map(self, namespace: str, config_map: Mapping[str, Any]) -> None:
        write_json(self._config_map_path(namespace, config_map["metadata"]["name"]), config_map)

    def config_map(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A ConfigMap that was once given beside a job."""
        try:
            content: dict[str, Any] = json.loads(self._config_map_path(namespace, name).read_bytes())
        except (OSError, ValueError):
            return None
        return content

    def _config_map_path(self, namespace: str, name: str) -> Path:
        return self.home / "configmaps" / namespace / f"{_stem(name)}.json"

    def link_claim(self, name: str, folder: Path) -> None:
        """Make `folder` the claim. Raises BadInput when it is no folder, or the claim is a folder of its own."""
        if not folder.is_dir():
            raise BadInput(f"--claim {name}={folder}: there is no such folder", "create it, or correct the path")
        link = self.claims / name
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            if link.resolve() == folder.resolve():
                return
            raise BadInput(
                f"--claim {name}={folder}: {link} is a folder already", "leave --claim out, or choose another name"
            )
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder.resolve(), target_is_directory=True)

    @contextmanager
    def lock(self, namespace: str, name: str) -> Iterator[None]:
        """Hold the job. Raises Busy when another process does. The lock ends with its process, however that ends."""
        path = self.home / "objects" / namespace / f"{_stem(name)}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                raise Busy(
                    f"process {file.read().strip() or 'unknown'} is at work on {namespace}/{name}",
                    f"follow it with `finetune logs {name} --follow`, or end it with Ctrl-C where it runs",
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def is_driven(self, namespace: str, name: str) -> bool:
        """Whether a process is at work on the job now."""
        try:
            with self.lock(namespace, name):
                return False
        except Busy:
            return True


def _stem(name: str) -> str:
    """A name in Kubernetes has up to 253 characters, a file's 255 with its endings."""
    return name if len(name) <= LONGEST_STEM else names.cut(name)


def _identity(wanted: FineTuneJob, old: FineTuneJob | None) -> dict[str, Any]:
    if old is None:
        update = {"uid": str(uuid.uuid4()), "generation": 1, "creation_timestamp": timestamp()}
        return {"metadata": wanted.metadata.model_copy(update=update)}
    changed = old.spec != wanted.spec
    update = {
        "uid": old.metadata.uid,
        "generation": old.metadata.generation + changed,
        "creation_timestamp": old.metadata.creation_timestamp,
    }
    return {"metadata": wanted.metadata.model_copy(update=update), "status": old.status}


def write_json(path: Path, content: object) -> None:
    """Atomic: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        part.replace(path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
