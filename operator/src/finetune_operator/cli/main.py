"""`finetune`: the commands. Everything heavy is imported by the command that needs it, so that --help is quick."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finetune_operator.cli.output import Output

app = typer.Typer(
    name="finetune",
    help="Fine-tune a language model on this machine, from the same FineTuneJob as on a cluster.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


class StageName(StrEnum):
    """--stage"""

    PREPARE = "Prepare"
    TRAIN = "Train"
    EVALUATE = "Evaluate"
    JUDGE = "Judge"
    PACKAGE = "Package"
    SERVE = "Serve"


def _named(word: str | None) -> str | None:
    """Names become folders. Imported here: --help has none, and is quick."""
    from finetune_operator.local.manifests import is_name

    if word is not None and not is_name(word):
        raise typer.BadParameter(f"{word!r}: no name of a job")
    return word


def _in_namespace(word: str | None) -> str | None:
    from finetune_operator.local.manifests import is_namespace

    if word is not None and not is_namespace(word):
        raise typer.BadParameter(f"{word!r}: no name of a namespace: write lower-case letters, digits and dashes")
    return word


Files = Annotated[
    list[str] | None,
    typer.Option(
        "-f",
        "--file",
        metavar="FILE",
        help="File of the job or of its data in a ConfigMap (YAML), a folder of such files, or - for standard input. "
        "May be repeated.",
    ),
]
Claims = Annotated[
    list[str] | None,
    typer.Option(
        "--claim",
        metavar="NAME=FOLDER",
        help="The folder on this machine that pvc://NAME/... means in the job. Remembered.",
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "-n",
        "--namespace",
        callback=_in_namespace,
        help="Namespace of the job; default: the one in its file, or `default`.",
    ),
]
NamespaceOfName = Annotated[
    str | None,
    typer.Option("-n", "--namespace", callback=_in_namespace, help="Namespace of the job, if not `default`."),
]
Name = Annotated[str, typer.Argument(metavar="NAME", callback=_named, help="Name of the job.")]
MaybeName = Annotated[
    str | None, typer.Argument(metavar="NAME", callback=_named, help="Name of the job; all jobs without one.")
]
Job = Annotated[
    str | None,
    typer.Argument(metavar="JOB", help="The job's file, or the name of a job that was run here before."),
]
Format = Annotated[Output, typer.Option("-o", "--output", help="For people, or the object for machines.")]
Port = Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port to listen on; 8000, or a free one.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"finetune {version('finetune-operator')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Fine-tune a language model on this machine, from the same FineTuneJob as on a cluster."""


@app.command()
def check(files: Files = None, name: Job = None, claim: Claims = None, namespace: Namespace = None,
          output: Format = Output.TABLE) -> None:  # fmt: skip
    """Check the job and every example of its data; show what would be trained, and what it would need."""
    from finetune_operator.cli import commands

    commands.check(files or [], name, claim or [], namespace, output)


@app.command()
def run(name: Job = None, files: Files = None, claim: Claims = None, namespace: Namespace = None,
        output: Format = Output.TABLE) -> None:  # fmt: skip
    """Check the data, train, and measure the result. Ctrl-C saves a checkpoint; the same command goes on from there."""
    from finetune_operator.cli import commands

    commands.run(files or [], name, claim or [], namespace, output)


@app.command()
def status(name: MaybeName = None, namespace: NamespaceOfName = None, output: Format = Output.TABLE) -> None:
    """Show a job, or all of them, and what to do next."""
    from finetune_operator.cli import commands

    commands.status(name, namespace, output)


@app.command()
def logs(
    name: Name,
    stage: Annotated[
        StageName | None,
        typer.Option("--stage", case_sensitive=False, help="Of this stage; default: the newest log of all."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Wait for more while something works on the job.")
    ] = False,
    namespace: NamespaceOfName = None,
) -> None:
    """Print the newest log of a job."""
    from finetune_operator.cli import commands

    commands.logs(name, stage.value if stage else None, follow, namespace)


@app.command()
def chat(
    name: Name,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Ask this and end. May be repeated.")
    ] = None,
    namespace: NamespaceOfName = None,
) -> None:
    """Ask base (before training) and tuned model (after) side by side. Every question stands by itself."""
    from finetune_operator.cli import commands

    commands.chat(name, prompt or [], namespace)


@app.command()
def serve(name: Name, port: Port = None, namespace: NamespaceOfName = None) -> None:
    """Serve the model over the OpenAI API, on this machine, until Ctrl-C."""
    from finetune_operator.cli import commands

    commands.serve(name, port, namespace)


@app.command()
def report(
    name: Name,
    run: Annotated[int | None, typer.Option("--run", min=1, help="Number of the run; default: the newest.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Print the model card (Markdown) in its place.")] = False,
    namespace: NamespaceOfName = None,
) -> None:
    """Open the report of a run: figures, answers side by side, curves, data, lineage. Where no browser is, its path."""
    from finetune_operator.cli import commands

    commands.open_report(name, run, namespace, card=card)


@app.command()
def delete(
    name: Name,
    artifacts: Annotated[bool, typer.Option("--artifacts", help="Remove its runs with their models, too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before models are removed.")] = False,
    namespace: NamespaceOfName = None,
) -> None:
    """Forget a job. Its models stay, unless --artifacts is given."""
    from finetune_operator.cli import commands

    commands.delete(name, namespace, artifacts=artifacts, yes=yes)


@app.command()
def demo(
    model: Annotated[str | None, typer.Option(help="hf://OWNER/NAME or a folder, in place of the tiny base.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier demo made.")] = False,
) -> None:
    """Fine-tune a tiny model here and see what it has learnt: at most five minutes on two idle processors."""
    import finetune_operator.cli.demo as demonstration

    demonstration.demo(model, fresh=fresh, folder=Path.cwd())


def main() -> None:
    """The entry point. Exit codes: 0 done, 1 the job failed, 2 the input is wrong, 130 interrupted."""
    from finetune_operator.local.errors import LocalError

    try:
        app()
    except LocalError as error:
        print(error.message, file=sys.stderr)
        if error.advice:
            print(f"What to do: {error.advice}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
