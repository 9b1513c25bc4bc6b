"""What each command does, apart from parsing its flags."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from finetune_api.conditions import ConditionType, Stage
from finetune_api.job import FineTuneJob
from finetune_api.reasons import INPUT_REASONS
from finetune_api.status import EndpointStatus
from finetune_operator import names
from finetune_operator.cli import chat as chatting
from finetune_operator.cli import objects, report, words
from finetune_operator.cli.asking import route_of
from finetune_operator.cli.output import Output
from finetune_operator.cli.screen import Screen, newest_log
from finetune_operator.cli.state import state_of
from finetune_operator.diagnose import job_condition
from finetune_operator.local import data_files, jobs, machine, manifests
from finetune_operator.local.backend import Backend
from finetune_operator.local.children import Children
from finetune_operator.local.errors import BadInput, LocalError
from finetune_operator.local.loop import Ending, stop_on_signals
from finetune_operator.local.store import Store, find_home

RUN_STAGES = (Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE)
INTERRUPTED = 130
FOLLOW_SECONDS = 0.5


def open_store() -> Store:
    """The home of this command. Raises BadInput when it cannot be one."""
    store = Store(find_home(os.environ, Path.cwd()))
    store.require_writable()
    return store


def consoles(output: Output) -> Console:
    """Where people read: standard output, unless that is for machines."""
    return Console(stderr=output is not Output.TABLE)


def check(files: Sequence[str], name: str | None, claims: Sequence[str], namespace: str | None, output: Output) -> None:
    """Exit code 0, or 2 with what is wrong in the data or the manifest."""
    store, console = open_store(), consoles(output)
    job = _wanted(store, console, files, name, claims, namespace)
    with stop_on_signals() as stop, Screen(console, jobs.checks(store), (Stage.PREPARE,)) as screen:
        result, folder = jobs.check(store, job, stop, screen)
    if output is not Output.TABLE:
        objects.write(result.job.model_copy(update={"spec": job.spec}).to_wire(), output)
    if result.ending is Ending.INTERRUPTED:
        sys.exit(INTERRUPTED)
    if result.ending is not Ending.REACHED:
        # The folder stays until the next check: the page about the data is in it.
        report.show_failure(console, store, result.job, newest_log(jobs.checks(store), result.job, Stage.PREPARE))
        sys.exit(exit_code(jobs.checks(store), result.job))
    run = result.job.status.run
    if run and run.dataset:
        report.show_dataset(console, job, run.dataset, details=True)
        report.show_rendered(console, folder)
        report.show_plan(console, run)
    jobs.keep_reports(folder)
    report.show_dataset_page(console, store, result.job)
    console.print(f"\nThe data is fit for training. Next: {_like_this('run')}", highlight=False, soft_wrap=True)


def run(files: Sequence[str], name: str | None, claims: Sequence[str], namespace: str | None, output: Output) -> None:
    """Exit code 0 when the job is Ready, 1 when it failed or is suspended, 2 when its input is wrong, 130 when it was
    interrupted."""
    store, console = open_store(), consoles(output)
    job = _wanted(store, console, files, name, claims, namespace)
    before = store.load(job.metadata.namespace, job.metadata.name)
    job = drive(store, console, job, output)
    if output is Output.TABLE and before is not None and before.status == job.status:
        console.print("Nothing to do: the job is as it was, and finished.")
    show_end(console, store, job)


def drive(store: Store, console: Console, job: FineTuneJob, output: Output = Output.TABLE) -> FineTuneJob:
    """The job when it is Ready. Ends the command when it is not: with what went wrong, or how to go on. Machines get
    the object however it ended."""
    with stop_on_signals() as stop, Screen(console, store, _stages(job)) as screen:
        result = jobs.drive(store, job, stop, screen)
    job = result.job
    if output is not Output.TABLE:
        objects.write(job.to_wire(), output)
    if result.ending is Ending.INTERRUPTED:
        run = job.status.run
        saved = run.checkpoint if run and words.condition(job, ConditionType.TRAINED) != "True" else None
        kept = f"The checkpoint of step {saved.step} is saved." if saved else "What was finished is kept."
        console.print(f"Interrupted. {kept} Go on with: {_like_this()}", highlight=False, soft_wrap=True)
        sys.exit(INTERRUPTED)
    if result.ending is Ending.HELD:
        if job.status.run and job.status.run.evaluation:
            report.show_run(console, store, job)
        console.print(f"{words.message(job)} Set it in the job's file.", highlight=False, soft_wrap=True)
        sys.exit(1)
    if result.ending is not Ending.READY:
        if job.status.run and job.status.run.evaluation:
            report.show_run(console, store, job)
        report.show_failure(console, store, job, newest_log(store, job))
        sys.exit(exit_code(store, job))
    return job


def _stages(job: FineTuneJob) -> tuple[Stage, ...]:
    judged = (Stage.JUDGE,) if job.spec.evaluation.judge else ()
    packaged = job.spec.output.exports or job.spec.tracking.trackers
    return (*RUN_STAGES, *judged, *((Stage.PACKAGE,) if packaged else ()))


def show_end(console: Console, store: Store, job: FineTuneJob) -> None:
    """The result, and what to do with it."""
    report.show_run(console, store, job)
    console.print(f"\nTalk to it:   finetune chat {words.named(job)}", highlight=False)
    console.print(f"Serve it:     finetune serve {words.named(job)}", highlight=False)
    if job.status.model:
        folder = store.artifacts / job.status.model.uri.removeprefix("pvc://").split("/", 1)[1]
        console.print(f"The model:    {escape(str(folder))}", highlight=False, soft_wrap=True)
    console.print(f"The report:   finetune report {words.named(job)}", highlight=False)
    for export in report.exports_of(store, job):
        console.print(f"Exported:     {escape(export)}", highlight=False, soft_wrap=True)


def status(name: str | None, namespace: str | None, output: Output) -> None:
    """One job, or all."""
    store, console = open_store(), Console()
    if name is None:
        found = store.jobs(namespace)
        if output is not Output.TABLE:
            objects.write(objects.listing(found), output)
        elif found:
            objects.show_table(console, [(job, state_of(job, driven=_driven(store, job))) for job in found])
        else:
            console.print(f"No jobs in {escape(str(store.home))}. Make one with: finetune run -f FILE", soft_wrap=True)
        return
    job = _truthful(store, store.require(namespace or "default", name))
    if output is not Output.TABLE:
        objects.write(job.to_wire(), output)
    else:
        objects.show_details(console, job, driven=_driven(store, job))


def _driven(store: Store, job: FineTuneJob) -> bool:
    return store.is_driven(job.metadata.namespace, job.metadata.name)


def logs(name: str, stage: str | None, follow: bool, namespace: str | None) -> None:
    """The newest log to standard output."""
    store = open_store()
    job = store.require(namespace or "default", name)
    wanted = Stage(stage) if stage else None
    path = newest_log(store, job, wanted)
    if path is None:
        raise BadInput(f"{name} has no log{f' of {stage}' if stage else ''} yet", "run it first")
    try:
        for text in _lines(store, job, wanted, path, follow=follow):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return


def _lines(store: Store, job: FineTuneJob, stage: Stage | None, path: Path, *, follow: bool) -> Iterator[str]:
    """The file, and what is written to it and its successors while something works on the job."""
    file = path.open(encoding="utf-8", errors="replace")
    try:
        while True:
            going = follow and store.is_driven(job.metadata.namespace, job.metadata.name)
            yield file.read()
            newest = newest_log(store, job, stage) or path
            if newest != path:
                file.close()
                path, file = newest, newest.open(encoding="utf-8", errors="replace")
            elif not going:
                return
            else:
                time.sleep(FOLLOW_SECONDS)
    finally:
        file.close()


def chat(name: str, prompts: Sequence[str], namespace: str | None) -> None:
    """Both models' answers. Uses the server that runs, or has one for as long as it takes."""
    store, console = open_store(), Console()
    job = jobs.promoted(store.require(namespace or "default", name))
    with endpoint_of(store, console, job) as endpoint:
        if prompts:
            answers = chatting.ask_both(endpoint, job.spec.task, prompts)
            both = f"{endpoint.base_model} and {endpoint.model}" if endpoint.base_model else endpoint.model
            report.show_answers(console, answers, both)
            return

        def answer(prompt: str) -> None:
            try:
                _, base, tuned = chatting.ask_both(endpoint, job.spec.task, [prompt])[0]
            except LocalError as error:
                console.print(f"[red]{escape(error.message)}[/]", highlight=False)
                return
            if endpoint.base_model:
                console.print(f"[dim]base:  {escape(base.strip() or '(nothing)')}[/]", highlight=False)
            console.print(f"[green]tuned: {escape(tuned.strip() or '(nothing)')}[/]\n", highlight=False)

        console.print("Ask; every question stands by itself. End with Ctrl-D.", highlight=False)
        chatting.converse(lambda: console.input("[bold]you:[/]   "), answer)


@contextmanager
def endpoint_of(store: Store, console: Console, job: FineTuneJob) -> Iterator[EndpointStatus]:
    """The server that runs, or one of our own that ends with the block."""
    if job.status.endpoint is not None and chatting.is_alive(job.status.endpoint):
        yield job.status.endpoint
        return
    with store.lock(job.metadata.namespace, job.metadata.name):
        backend: Backend | None = None
        try:
            with stop_on_signals() as stop, Screen(console, store, (Stage.SERVE,)) as screen:
                # Nobody has to know the port of a server that ends with the command: what begins on the usual one at
                # the same moment is not in its way.
                result, backend = jobs.serve(store, job, stop, screen, port=machine.free_port(None, usual=0))
            if result.ending is Ending.INTERRUPTED:
                sys.exit(INTERRUPTED)
            if result.job.status.endpoint is None or result.ending is not Ending.READY:
                report.show_failure(console, store, result.job, newest_log(store, result.job, Stage.SERVE))
                sys.exit(1)
            yield result.job.status.endpoint
        finally:
            if backend is not None:
                backend.close()
            jobs.settle(store, job.metadata.namespace, job.metadata.name)


def serve(name: str, port: int | None, namespace: str | None) -> None:
    """In the foreground. Exit code 0 after Ctrl-C, 1 when the server fell over."""
    store, console = open_store(), Console()
    job = jobs.promoted(store.require(namespace or "default", name))
    listen = machine.free_port(port)
    with store.lock(job.metadata.namespace, name):
        backend: Backend | None = None
        try:
            with stop_on_signals() as stop:
                with Screen(console, store, (Stage.SERVE,)) as screen:
                    result, backend = jobs.serve(store, job, stop, screen, port=listen)
                if result.ending is Ending.READY and result.job.status.endpoint:
                    _invite(console, result.job, result.job.status.endpoint)
                    result = jobs.stay(store, backend, result.job, stop)
        finally:
            if backend is not None:
                backend.close()
            jobs.settle(store, job.metadata.namespace, name)
    if result.ending is not Ending.INTERRUPTED:
        report.show_failure(console, store, result.job, newest_log(store, result.job, Stage.SERVE))
        sys.exit(1)
    console.print("Stopped.")


def _invite(console: Console, job: FineTuneJob, endpoint: EndpointStatus) -> None:
    """How to talk to the server."""
    path, route = route_of(job.spec.task)
    body = json.dumps({"model": endpoint.model, **route.body(route.example)})
    base = f", {endpoint.base_model} (base)" if endpoint.base_model else ""
    lines = [
        f"\nModels: {endpoint.model} (tuned){base}. Ctrl-C stops the server.\n",
        f"curl -s {endpoint.url}/{path} -H 'Content-Type: application/json' -d '{body}'\n",
    ]
    if route.python:
        lines += [
            "from openai import OpenAI",
            f'client = OpenAI(base_url="{endpoint.url}", api_key="none")',
            f"print({route.python.format(name=endpoint.model)})\n",
        ]
    lines.append(f"finetune chat {words.named(job)}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def open_report(name: str, number: int | None, namespace: str | None, *, card: bool) -> None:
    """The page in a browser where this is a terminal that has one, and its path; the card to standard output."""
    store, console = open_store(), Console()
    job = store.require(namespace or "default", name)
    folder = report.folder_of(store, job, number)
    path = folder / "model" / "README.md" if card else folder / "evaluation" / "report.html"
    if not path.is_file():
        raise BadInput(f"{name} has no report there yet: {path}", f"see `finetune status {name}`, or run it to its end")
    if card:
        sys.stdout.write(path.read_text(encoding="utf-8"))
        return
    console.print(f"The report: {escape(str(path))}", highlight=False, soft_wrap=True)
    if console.is_terminal:
        webbrowser.open(path.as_uri())


def delete(name: str, namespace: str | None, *, artifacts: bool, yes: bool) -> None:
    """Says what goes and what stays; asks before models go."""
    store, console = open_store(), Console()
    job = store.require(namespace or "default", name)
    with store.lock(job.metadata.namespace, name):
        if artifacts:
            jobs.require_not_built_on(store, job)
        paths = jobs.removable(store, job, artifacts=artifacts)
        if artifacts and not yes and not sys.stdin.isatty():
            raise BadInput("models are removed only when somebody says so", "there is no terminal to ask: add --yes")
        for path in paths:
            console.print(f"removes {escape(str(path))}", highlight=False, soft_wrap=True)
        kept = store.artifacts / names.runs_folder(job.metadata.namespace, name)
        for run_folder in sorted(kept.glob("*-*")) if artifacts else ():
            amount = words.size(sum(path.lstat().st_size for path in run_folder.rglob("*") if not path.is_dir()))
            console.print(f"        run {run_folder.name.partition('-')[0]}, {amount}", highlight=False)
        if kept.exists() and not artifacts:
            console.print(f"keeps   {escape(str(kept))} (--artifacts removes it, too)", highlight=False, soft_wrap=True)
        if artifacts and not yes and console.input("Remove them? [y/N] ").strip() != "y":
            console.print("Nothing was removed.")
            return
        jobs.remove(paths)


def _wanted(
    store: Store, console: Console, files: Sequence[str], name: str | None, claims: Sequence[str], namespace: str | None
) -> FineTuneJob:
    """The job that the command line asks for, fit for this machine."""
    folders = [_claim(text) for text in claims]
    if name is not None and not files and _is_path(name):
        files, name = [name], None
    if not files:
        if name is None:
            raise BadInput("no job was named", "give its file with -f FILE, or the name of one that was run here")
        if folders:
            raise BadInput("--claim needs the job's file", "add it with -f FILE")
        machine.require_trainer()
        return machine.adapted(store.require(namespace or "default", name), gpus=machine.gpu_count(), replicas=0)[0]
    given = manifests.read(files, name=name, namespace=namespace)
    job, notes = jobs.take(store, given, folders)
    for note in notes:
        report.say(console, f"Note: {escape(note)}")
    return job


def _is_path(word: str) -> bool:
    """No job has such a name, so the file is meant, although it stands without -f."""
    return "/" in word or Path(word).is_file() or word.endswith((*manifests.SUFFIXES, *data_files.SUFFIXES))


def _claim(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not name or not separator or not folder or "/" in name:
        raise BadInput(f"--claim {text}: not NAME=FOLDER", "write for example --claim datasets=./data")
    return name, Path(folder).expanduser()


def _truthful(store: Store, job: FineTuneJob) -> FineTuneJob:
    """A server whose command was killed is still in the status; it goes out of it when nobody works on the job."""
    meta = job.metadata
    if job.spec.serving.replicas and not store.is_driven(meta.namespace, meta.name):
        with store.lock(meta.namespace, meta.name):
            return jobs.settle(store, meta.namespace, meta.name)
    return job


def exit_code(store: Store, job: FineTuneJob) -> int:
    """Of a job that failed: 2 when its input is wrong, else 1, also where a source answered none of the tries."""
    run, meta = job.status.run, job.metadata
    if run is None or run.failure is None or run.failure.reason not in INPUT_REASONS:
        return 1
    children = Children.load(store.children_path(meta.namespace, meta.name)).jobs.values()
    ends = [job_condition(child, "Failed") or {} for child in children if names.run_of(child) == run.number]
    return 1 if any(end.get("reason") == "BackoffLimitExceeded" for end in ends) else 2


def _like_this(command: str | None = None) -> str:
    """The command line as it was given, or with another command. Without what would throw away what was learnt."""
    arguments = [word for word in sys.argv[1:] if word != "--fresh"]
    if command and arguments:
        arguments[0] = command
    return shlex.join(["finetune", *arguments])
