"""What docs/tasks/ shows of each task: the job is taken, the data is right, and the question is asked, word for word.

What is asked answers a server of ours, in a process of its own, with a random model of the task under the names that
the page's job gives it. Only the address differs from the page: a free port stands for 8000, and in Python for the
Service.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from tests import documented
from tests.cluster.processes import wait_until
from tests.documented import ROOT, TASK_PAGES, TASKS, Command
from tests.integration.conftest import JobApi
from tests.tiny_encoders import make_tiny_encoder
from tests.tiny_models import make_tiny_chat_model
from tests.tiny_seq2seq import make_tiny_seq2seq
from tests.tool_chats import tool_tokenizer
from tests.trained_runs import one_thread
from transformers import AutoTokenizer

from finetune_api.job import FineTuneJob
from finetune_api.tasks import Task
from finetune_operator import names
from finetune_trainer.data.examples import special_tokens
from finetune_trainer.serving import ServerConfig, serve
from finetune_trainer.serving.predict_table import PREDICTORS
from finetune_trainer.tasks.kind import Facts
from finetune_trainer.tasks.table import KINDS

BOUND = 90.0  # seconds after which a wait is a failure
CONTEXT = 512  # of the tiny chat model, whose answers go on until it is full
# What a page's server learned of its data.
FACTS = {
    Task.CLASSIFICATION: Facts(labels=("billing", "delivery", "login")),
    Task.TOKEN_CLASSIFICATION: Facts(labels=("O", "B-PERSON", "I-PERSON", "B-PLACE", "I-PLACE")),
}
SAME = ("object", "model", "role")  # of these the value must be the page's, of all others its type


class Page:
    """A page of docs/tasks/."""

    def __init__(self, path: Path) -> None:
        self.name = path.relative_to(ROOT).as_posix()
        self.text = path.read_text()

    @cached_property
    def jobs(self) -> list[dict[str, Any]]:
        documents = [each for block in documented.blocks(self.text, "yaml") for each in yaml.safe_load_all(block)]
        return [each for each in documents if isinstance(each, dict) and each.get("kind") == "FineTuneJob"]

    @property
    def job(self) -> FineTuneJob:
        """The first of them, which the rest of the page is about."""
        return FineTuneJob.model_validate(self.jobs[0])

    @property
    def examples(self) -> list[Any]:
        """The lines of data; a page may break one line into several."""
        return [each for block in documented.blocks(self.text, "json", "jsonl") for each in values(block)]


def values(text: str) -> Iterator[Any]:
    """The JSON values that stand one after the other."""
    while text := text.lstrip():
        value, end = json.JSONDecoder().raw_decode(text)
        yield value
        text = text[end:]


PAGES = {page.name: page for page in map(Page, TASK_PAGES)}
COMMANDS = documented.commands(TASKS)
SCRIPTS = [(name, code) for name, page in PAGES.items() for code in documented.blocks(page.text, "python")]


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Task], Path]:
    """Where the base model of a task lies, `base`, and one that knows the task, `tuned`."""
    root = tmp_path_factory.mktemp("models")
    return lambda task: make_models(task, root / task)


def make_models(task: Task, root: Path) -> Path:
    if root.exists():
        return root
    if task in PREDICTORS:
        make_tiny_encoder(root / "base")
    elif task is Task.SEQ2SEQ:
        make_tiny_seq2seq(root / "base")
    else:
        tokenizer = tool_tokenizer()
        tokenizer.model_max_length = CONTEXT
        make_tiny_chat_model(root / "base", tokenizer=tokenizer, max_position_embeddings=CONTEXT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = KINDS[task]
        tuned = kind.auto_model.from_pretrained(root / "base", **kind.model_options(FACTS.get(task, Facts())))
    tuned.save_pretrained(root / "tuned")
    AutoTokenizer.from_pretrained(root / "base").save_pretrained(root / "tuned")
    return root


# --- the job and the data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_a_job_is_taken(page: str, job_api: JobApi) -> None:
    assert PAGES[page].jobs
    for manifest in PAGES[page].jobs:
        FineTuneJob.model_validate(manifest)
        answer = job_api.create(manifest)
        assert answer.code == 201, f"{page}: {answer.message}"


@pytest.mark.parametrize("page", PAGES)
def test_the_data_is_right(page: str, folder: Callable[[Task], Path]) -> None:
    task = PAGES[page].job.spec.task
    tokenizer = AutoTokenizer.from_pretrained(folder(task) / "base")
    assert PAGES[page].examples
    for line in PAGES[page].examples:
        # Each by itself: a page shows every form, and a file has but one.
        form = KINDS[task].example_format(tokenizer, frozenset({tokenizer.eos_token_id}), special_tokens(tokenizer))
        errors = [fault for fault in form.check(line) if fault.severity == "error"]
        assert not errors, f"{page}: {json.dumps(line)}: {errors}"
        assert form.learned(form.encode(form.normalise(line)))


# --- the question -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Processes forked from one that has imported the server, since importing it takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["finetune_trainer.serving"])
        yield context


@pytest.fixture(scope="module")
def port_of(folder: Callable[[Task], Path], processes: ForkServerContext) -> Iterator[Callable[[str], int]]:
    """The port at which a page's model answers."""
    started: dict[str, tuple[Any, int]] = {}

    def find(page: str) -> int:
        if page not in started:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            job = PAGES[page].job
            task, models = job.spec.task, folder(job.spec.task)
            config = ServerConfig(
                base_dir=models / "base",
                base_name=names.base_name(job.spec),
                tuned_dir=models / "tuned",
                tuned_name=names.tuned_name(job.metadata.name, job.spec),
                host="127.0.0.1",
                port=port,
                run=1,
                threads=1,
            )
            process = processes.Process(target=serve, args=(config, task, FACTS.get(task, Facts())))
            process.start()
            started[page] = process, port
            wait_until(lambda: ready(port) or not process.is_alive(), BOUND, f"the server of {page}")
        return started[page][1]

    yield find
    for process, _ in started.values():
        process.kill()
        process.join(BOUND)


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=BOUND).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_how_to_ask(page: str) -> None:
    assert page in {*(command.page for command in COMMANDS), *(name for name, _ in SCRIPTS)}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}-{COMMANDS.index(command)}")
def test_a_question_is_answered_as_shown(command: Command, port_of: Callable[[str], int], tmp_path: Path) -> None:
    typed = command.typed.replace("localhost:8000", f"localhost:{port_of(command.page)}")
    assert typed != command.typed, "a command asks the server at localhost:8000"
    # curl takes its options from this file, too: what is typed stays as it is.
    (tmp_path / ".curlrc").write_text('write-out = "\\n%{http_code}"\nnoproxy = "*"\n')
    done = subprocess.run(
        ["bash", "-c", typed], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=BOUND
    )
    body, _, status = done.stdout.rpartition("\n")
    assert (done.returncode, status) == (0, "200"), f"{command.page}: `{typed}`: {done.stdout}{done.stderr}"
    if command.shown:
        [shown] = values("\n".join(command.shown))
        assert not list(differences(shown, json.loads(body))), f"{command.page}: the answer is {body}"


@pytest.mark.parametrize(("page", "code"), SCRIPTS, ids=[page for page, _ in SCRIPTS])
def test_a_script_runs(page: str, code: str, port_of: Callable[[str], int]) -> None:
    service = f"http://{names.serve_name(PAGES[page].job.metadata.name)}:{names.PORT}/v1"
    assert service in code, f"{page}: the Service of the page's job is {service}"
    own = code.replace(service, f"http://127.0.0.1:{port_of(page)}/v1")
    done = subprocess.run([sys.executable, "-c", own], capture_output=True, text=True, timeout=BOUND)
    assert done.returncode == 0, f"{page}: {done.stderr}"


def differences(shown: Any, real: Any, place: str = "answer") -> Iterator[str]:
    """Where the form of the page's JSON is not that of the real one; `"..."` in a list stands for more of the same."""
    if isinstance(shown, dict) and isinstance(real, dict):
        if shown.keys() != real.keys():
            yield f"{place} has the keys {list(real)}, not {list(shown)}"
        for key in shown.keys() & real.keys():
            if key in SAME and isinstance(shown[key], str) and shown[key] != real[key]:
                yield f"{place}.{key} is {real[key]!r}, not {shown[key]!r}"
            yield from differences(shown[key], real[key], f"{place}.{key}")
    elif isinstance(shown, list) and isinstance(real, list):
        forms = [each for each in shown if each != "..."]
        if bool(forms) != bool(real):
            yield f"{place} has {len(real)} entries, not {len(forms)}"
        for index, each in enumerate(real if forms else []):
            yield from differences(forms[min(index, len(forms) - 1)], each, f"{place}[{index}]")
    elif kind(shown) is not kind(real):
        yield f"{place} is {real!r}, not {shown!r}"


def kind(value: Any) -> type:
    return float if type(value) is int else type(value)


@pytest.mark.parametrize(
    ("shown", "real", "count"),
    [
        ({"a": 1, "b": ["x", "..."]}, {"a": 0.5, "b": ["y", "z"]}, 0),
        ({"a": 1}, {"a": 1, "b": 2}, 1),
        ({"a": 1, "b": 2}, {"a": 1}, 1),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1}, {"c": 1}]}, 1),
        ({"a": [{"b": 1}]}, {"a": []}, 1),
        ({"a": "x"}, {"a": None}, 1),
        ({"model": "mail"}, {"model": "post"}, 1),
    ],
)
def test_answers_are_compared_by_their_form(shown: Any, real: Any, count: int) -> None:
    assert len(list(differences(shown, real))) == count
