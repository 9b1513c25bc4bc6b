"""What the commands do with a job on this machine: apply, drive, check, serve, settle, delete."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.conditions import ConditionType
from finetune_api.job import FineTuneJob, run_hash
from finetune_api.status import FineTuneJobStatus
from finetune_operator import names
from finetune_operator.conditions import is_true
from finetune_operator.local import machine
from finetune_operator.local.backend import Backend
from finetune_operator.local.errors import BadInput
from finetune_operator.local.loop import Ending, Loop, Stop, answering, never
from finetune_operator.local.manifests import Given
from finetune_operator.local.store import Store
from finetune_operator.runs import newest_promoted

Watch = Callable[[FineTuneJob, Stop], None]
CHECK_TOKEN = "finetune-check"


@dataclass(frozen=True, slots=True)
class Result:
    """How a command's loop ended."""

    job: FineTuneJob
    ending: Ending


def take(store: Store, given: Given, claims: Sequence[tuple[str, Path]]) -> tuple[FineTuneJob, list[str]]:
    """Keep claims and ConfigMaps, and make of the job what this machine can run; what was changed.
    Raises BadInput when something that it names is not known here."""
    machine.require_trainer()
    for name, folder in claims:
        store.link_claim(name, folder)
    job, notes = machine.adapted(given.job, gpus=machine.gpu_count(), replicas=0)
    notes += [f"{what} is not used on one machine" for what in given.ignored]
    if job.spec.base_model.secret_ref or job.spec.dataset.secret_ref:
        notes.append("secretRef is not read here: set HF_TOKEN and the like in your shell")
    namespace = job.metadata.namespace
    known = {**_known_config_maps(store, job), **given.config_maps}
    machine.check_sources(job.spec, known, store)
    _require_origin(store, job)
    changed = [
        name
        for name in sorted(machine.referenced_config_maps(job.spec))
        if (old := store.config_map(namespace, name)) is not None and old != known[name]
    ]
    done = store.load(namespace, job.metadata.name)
    if changed and done and done.status.model and done.status.run and done.status.run.hash == run_hash(job.spec):
        notes.append(
            f"ConfigMap {', '.join(changed)} has changed, but the spec has not: as on a cluster, the finished run "
            "stays. A new spec.rerunToken trains anew"
        )
    for config_map in given.config_maps.values():
        store.save_config_map(namespace, config_map)
    return job, notes


def _require_origin(store: Store, job: FineTuneJob) -> None:
    """Nothing else runs on this machine by itself: raise BadInput rather than wait for another job's model."""
    ref = job.spec.base_model.fine_tune_job
    if ref is None or ref.name == job.metadata.name:
        return
    other = store.load(job.metadata.namespace, ref.name)
    if other is None or newest_promoted(other.status.runs) is None:
        raise BadInput(
            f"spec.baseModel.fineTuneJob: {ref.name} has no promoted run on this machine",
            f"run that job first, then `finetune status {ref.name}` shows its runs",
        )


def require_not_built_on(store: Store, job: FineTuneJob) -> None:
    """Raise BadInput when another job's run would begin from the files that are about to go."""
    name = job.metadata.name
    refs = {other.metadata.name: other.spec.base_model.fine_tune_job for other in store.jobs(job.metadata.namespace)}
    built = sorted(other for other, ref in refs.items() if ref is not None and ref.name == name and other != name)
    if built:
        raise BadInput(
            f"{', '.join(built)} goes on from a model of {name}, whose files would be removed",
            f"delete {built[0]} first, or keep the files of {name}",
        )


def drive(store: Store, wanted: FineTuneJob, stop: Stop, watch: Watch) -> Result:
    """Run the job to its end. A run that had failed is tried again: its user has asked for it."""
    with store.lock(wanted.metadata.namespace, wanted.metadata.name):
        job = store.submit(wanted)
        backend = Backend.open(store, job, data_of(store, job))
        job = _forgiven(job, backend)
        return _loop(store, backend, job, Loop(backend, stop, store.save, watch))


def check(store: Store, wanted: FineTuneJob, stop: Stop, watch: Watch) -> tuple[Result, Path]:
    """Prepare only, with the data as it is now, and nothing kept but the downloaded model and the reports. Returns the
    result and the run's folder, which the caller gives to `keep_reports` when the data is good."""
    scratch = checks(store)
    for part in ("artifacts", "claims"):
        (store.home / part).mkdir(parents=True, exist_ok=True)
        scratch.home.mkdir(parents=True, exist_ok=True)
        if not (scratch.home / part).is_symlink():
            (scratch.home / part).symlink_to(store.home / part)
    spec = wanted.spec.model_copy(update={"rerun_token": CHECK_TOKEN, "suspend": False})
    meta = wanted.metadata
    with scratch.lock(meta.namespace, meta.name):
        scratch.object_path(meta.namespace, meta.name).unlink(missing_ok=True)
        scratch.children_path(meta.namespace, meta.name).unlink(missing_ok=True)
        job = scratch.submit(wanted.model_copy(update={"spec": spec, "status": FineTuneJobStatus()}))
        folder = store.artifacts / names.run_folder(meta.namespace, meta.name, 1, run_hash(spec))
        shutil.rmtree(folder, ignore_errors=True)
        backend = Backend.open(scratch, job, data_of(store, job))
        loop = Loop(backend, stop, scratch.save, watch, until=_is_checked)
        return _loop(scratch, backend, job, loop), folder


def keep_reports(folder: Path) -> None:
    """Of what a check has left only the reports, which stay until the next check."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != "reports":
            shutil.rmtree(path, ignore_errors=True)


def checks(store: Store) -> Store:
    """A store of its own for objects and logs of `check`; models and claims are shared with the real thing."""
    return Store(store.home / "checks")


def stay(store: Store, backend: Backend, job: FineTuneJob, stop: Stop) -> Result:
    """Go on serving until asked to stop, or until the server falls over."""
    return Result(*Loop(backend, stop, store.save, rest=never).run(job))


def serve(store: Store, job: FineTuneJob, stop: Stop, watch: Watch, *, port: int) -> tuple[Result, Backend]:
    """Start the promoted model's server; comes back when it answers. The caller holds the lock, and in the end closes
    the backend and calls `settle`."""
    scaled = job.spec.serving.model_copy(update={"replicas": 1})
    job = store.submit(job.model_copy(update={"spec": job.spec.model_copy(update={"serving": scaled})}))
    backend = Backend.open(store, job, data_of(store, job))
    backend.port, backend.trains = port, False
    job, ending = Loop(backend, stop, store.save, watch, rest=answering).run(job)
    return Result(job, ending), backend


def settle(store: Store, namespace: str, name: str) -> FineTuneJob:
    """No server any more, and the status says so. The caller holds the lock and has closed the backend."""
    job = store.require(namespace, name)
    scaled = job.spec.serving.model_copy(update={"replicas": 0})
    job = store.submit(job.model_copy(update={"spec": job.spec.model_copy(update={"serving": scaled})}))
    backend = Backend.open(store, job, data_of(store, job))
    backend.stopping, backend.trains = True, False  # one pass that starts nothing
    loop = Loop(backend, Stop(), store.save)
    return loop.once(job)


def removable(store: Store, job: FineTuneJob, *, artifacts: bool) -> list[Path]:
    """What `delete` removes, as far as it is there."""
    namespace, name = job.metadata.namespace, job.metadata.name
    paths = [store.object_path(namespace, name), store.children_path(namespace, name), store.logs(namespace, name)]
    if artifacts:
        paths.append(store.artifacts / names.runs_folder(namespace, name))
    return [path for path in paths if path.exists()]


def remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
            with suppress(OSError):  # what else is in there is not ours: base models, beside the runs of a job `models`
                path.parent.rmdir()
        else:
            path.unlink(missing_ok=True)


def promoted(job: FineTuneJob) -> FineTuneJob:
    """The job, when it has a promoted model. Raises BadInput that says what it lacks."""
    if job.status.model is None:
        raise BadInput(
            f"{job.metadata.name} has no promoted model yet", f"see `finetune status {job.metadata.name}`, or run it"
        )
    return job


def _loop(store: Store, backend: Backend, job: FineTuneJob, loop: Loop) -> Result:
    try:
        return Result(*loop.run(job))
    finally:
        backend.close()


def _forgiven(job: FineTuneJob, backend: Backend) -> FineTuneJob:
    run = job.status.run
    if run is None or run.failure is None or run.failure.waiting:
        return job
    backend.retry(run.number)
    again = run.model_copy(update={"failure": None, "attempt": run.attempt + 1})
    return job.model_copy(update={"status": job.status.model_copy(update={"run": again})})


def _is_checked(status: FineTuneJobStatus) -> bool:
    return is_true(status.conditions, ConditionType.DATASET_VALID)


def _known_config_maps(store: Store, job: FineTuneJob) -> dict[str, dict[str, Any]]:
    found = {name: store.config_map(job.metadata.namespace, name) for name in machine.referenced_config_maps(job.spec)}
    return {name: config_map for name, config_map in found.items() if config_map is not None}


def data_of(store: Store, job: FineTuneJob) -> Mapping[str, Mapping[str, str | bytes]]:
    """What the job's ConfigMaps hold, by their names: text, and decoded what kubectl has put into binaryData."""
    found = _known_config_maps(store, job).items()
    return {name: {**one["data"], **_decoded(one.get("binaryData", {}))} for name, one in found}


def _decoded(binary: Mapping[str, str]) -> dict[str, bytes]:
    return {key: base64.b64decode(text) for key, text in binary.items()}
