"""Remove what the control plane names of finished runs, and nothing else.

The volume is shared and its contents are not trusted: every folder on the way is opened without following links, and
what is removed is moved aside first, under a name that no stage reads, so that a removal that is cut short leaves
nothing half there. To do it again is to find it done.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from finetune_api.conditions import ExitCode
from finetune_api.retention import CHECKPOINTS, RemovalOrder, RemovalSummary

log = logging.getLogger(__name__)

VARIABLE = "FINETUNE_REMOVE"
ASIDE = ".removing-"
MESSAGE = 1024
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class RefusedError(Exception):
    """What was asked for is outside of the job's runs, or no folder. Trying again is useless."""


def run(environment: Mapping[str, str], artifacts: Path, termination_log: Path | None) -> int:
    """Remove all that the variable names; what cannot be removed does not keep the rest. Returns the exit code: 10 when
    something is refused, 1 when something failed that may go another time."""
    try:
        order = RemovalOrder.from_record(environment.get(VARIABLE) or "")
        runs = _parts(order.runs)
    except (ValueError, RefusedError) as error:
        return _end(termination_log, RemovalSummary(ok=False, message=f"{VARIABLE}: {error}"), ExitCode.USER_INPUT)
    done, code = RemovalSummary(ok=True), 0
    faults: list[str] = []
    with _opened(artifacts, runs, faults) as folder:
        for removal in order.removals if folder is not None else ():
            place = f"{order.runs}/{removal.folder}" + (f"/{CHECKPOINTS}" if removal.checkpoints_only else "")
            try:
                freed = (
                    _checkpoints(folder, removal.folder) if removal.checkpoints_only else _whole(folder, removal.folder)
                )
                found = {"removed": done.removed + (freed is not None), "bytes": done.bytes + (freed or 0)}
                done = done.model_copy(update=found)
                log.info("%s: %s", place, "was gone already" if freed is None else f"removed, {freed} bytes")
            except RefusedError as error:
                faults.append(f"{place}: {error}")
                code = ExitCode.USER_INPUT
            except OSError as error:
                faults.append(f"{place}: {error.strerror or error}")
                code = code or 1
    if faults:
        done = done.model_copy(update={"ok": False, "message": "; ".join(faults)[:MESSAGE]})
    return _end(termination_log, done, (code or ExitCode.USER_INPUT) if faults else 0)


def _end(termination_log: Path | None, summary: RemovalSummary, code: int) -> int:
    if summary.message:
        log.error("%s", summary.message)
    if termination_log:
        text = summary.message if summary.message else summary.model_dump_json(by_alias=True)
        termination_log.write_text(text, encoding="utf-8")
    return code


def _parts(runs: str) -> tuple[str, ...]:
    """NAMESPACE, JOB, runs."""
    parts = PurePosixPath(runs).parts
    if len(parts) != 3 or parts[2] != "runs" or ".." in parts or "/" in parts:
        raise RefusedError(f"{runs!r} is not NAMESPACE/JOB/runs")
    return parts


@contextmanager
def _opened(root: Path, parts: tuple[str, ...], faults: list[str]) -> Iterator[int | None]:
    """The folder of the job's runs, reached without a link; None where there is none, which is no fault."""
    opened = [os.open(root, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        for part in parts:
            opened.append(os.open(part, FOLDER, dir_fd=opened[-1]))
        yield opened[-1]
    except FileNotFoundError:
        yield None
    except NotADirectoryError:
        faults.append(f"{'/'.join(parts)}: a link or a file stands where a folder should be")
        yield None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _whole(runs: int | None, name: str) -> int | None:
    assert runs is not None
    return _remove(runs, name)


def _checkpoints(runs: int | None, name: str) -> int | None:
    """Those of a run; None when run or checkpoints are gone."""
    try:
        folder = os.open(name, FOLDER, dir_fd=runs)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise RefusedError("it is no folder") from None
    try:
        return _remove(folder, CHECKPOINTS)
    finally:
        os.close(folder)


def _remove(parent: int, name: str) -> int | None:
    """Move the folder aside and remove it, and what an earlier attempt left aside. Bytes, or None when nothing was
    there."""
    aside = ASIDE + name
    freed = _remove_now(parent, aside)
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise RefusedError("it is no folder")
    except FileNotFoundError:
        return freed
    os.rename(name, aside, src_dir_fd=parent, dst_dir_fd=parent)
    os.fsync(parent)
    return (freed or 0) + (_remove_now(parent, aside) or 0)


def _remove_now(parent: int, name: str) -> int | None:
    try:
        size = _size(parent, name)
        shutil.rmtree(name, dir_fd=parent)
    except FileNotFoundError:
        return None
    return size


def _size(parent: int, name: str) -> int:
    """Bytes of the files below, without following links. Raises FileNotFoundError when there is no such folder, and
    RefusedError when it is none."""
    try:
        top = os.open(name, FOLDER, dir_fd=parent)
    except NotADirectoryError:
        raise RefusedError("it is no folder") from None
    try:
        return sum(
            os.stat(file, dir_fd=folder, follow_symlinks=False).st_size
            for _, _, files, folder in os.fwalk(".", dir_fd=top, follow_symlinks=False)
            for file in files
        )
    finally:
        os.close(top)
