"""The commands that the README and the documentation tell a reader to type, and which test runs each.

A command is a line after `$ ` in a `console` block, with what the page shows as its output (in the block, or in a
`json` block right below it), or a whole command `in backticks` of the prose. It goes on in the next line after a
backslash or within quotes. Words in capitals stand for what a reader puts there; STANDS_FOR says what a test does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
TASK_PAGES = sorted((ROOT / "docs" / "tasks").glob("*.md"))
CHART_PAGE = ROOT / "charts" / "finetune-operator" / "README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *TASK_PAGES, CHART_PAGE]
LOOKS = "docs/troubleshooting.md"  # where to look first, for each reason; a log needs a node
FENCE = re.compile(r"^ *```(\w*)")
ANSWER_BELOW = re.compile(r"(^```console\n(?:(?!```).*\n)+)```\n```json\n", re.MULTILINE)
PROGRAMS = r"(?:\.venv/bin/)?(?:make|finetune|kubectl|helm|git|python3?|pip|curl|docker|source|export|cd)"
IN_PROSE = re.compile(rf"`({PROGRAMS} [^`]+)`")
SUBCOMMAND = re.compile(
    r"(?:kubectl|helm)(?: (?:set|rollout|auth|config))? \w+"
)  # a sentence speaks of it; alone it does nothing
DURATION = re.compile(r"(?:\d+[smhd])+")

LOCAL, CLUSTER, CI, NODE, TASKS, GITOPS, TENANCY = "local", "cluster", "CI", "node", "tasks", "gitops", "tenancy"
API_SERVER = "API server"
# The file that runs the commands of each kind, one by one, word for word.
RUNNERS = {
    LOCAL: "tests/integration/test_documented_local.py",
    CLUSTER: "tests/e2e/test_documented_cluster.py",
    NODE: "tests/e2e/test_cluster_by_hand.py",
    TASKS: "tests/integration/test_documented_tasks.py",
    GITOPS: "tests/integration/test_gitops.py",
    TENANCY: "tests/integration/test_tenancy.py",
    API_SERVER: "tests/integration/test_documented_api_server.py",
    CI: ".ci/run",
}
RELEASE = "finetune-operator charts/finetune-operator --namespace finetune-system"
BY_PROGRAM = {"finetune": LOCAL, "source": LOCAL, "export": LOCAL, "kubectl": CLUSTER, "helm": CLUSTER, "curl": CLUSTER}
# Commands of other programs. Those of CI are lines of .ci/run, or a part of what these make.
BY_TEXT = {
    "make test": CI,
    "make e2e": CI,
    "make setup": CI,
    "make generate": LOCAL,
    "python -m finetune_api generate": LOCAL,
    "make bench": LOCAL,
    "make bench-prepare": LOCAL,
    ".venv/bin/python -m tests.bench --output bench.json": LOCAL,
    "make gpu": LOCAL,
    "make demo": LOCAL,
    "make demo MODEL=hf://HuggingFaceTB/SmolLM2-135M-Instruct": LOCAL,
    "make images": NODE,
    "make cluster": NODE,
    'eval "$(python -m tests.cluster env)"': NODE,
    "python -m tests.cluster down": NODE,
    "kubectl create namespace team-a": GITOPS,
    "kubectl apply --server-side -k examples/gitops": GITOPS,
    "kubectl auth can-i create finetunejobs --namespace team-a": TENANCY,
    f"helm install {RELEASE} --create-namespace": API_SERVER,
    f"helm upgrade {RELEASE} --reuse-values": API_SERVER,
    f'helm template {RELEASE} --validate --set "networkPolicy.jobNamespaces={{team-a}}" '
    "--show-only templates/job-network-policies.yaml | kubectl apply -f -": API_SERVER,
    "kubectl get finetunejobs -A -o wide": API_SERVER,
    "kubectl -n finetune-system rollout restart deployment/finetune-operator": API_SERVER,
    "kubectl -n argocd patch configmap argocd-cm --patch-file examples/gitops/argocd/argocd-cm.yaml": API_SERVER,
}
# Named in a sentence, not to be typed as they stand.
ONLY_NAMED = {
    "finetune check",
    "finetune run",
    "finetune chat",
    "finetune serve",
    "finetune delete --artifacts",
    "finetune delete NAME --artifacts",
    "python -m finetune_trainer prepare",
    "helm rollback finetune-operator --namespace finetune-system",
    "kubectl taint nodes NODE node.kubernetes.io/out-of-service=off:NoExecute",
    "kubectl delete node NODE",
    "make e2e-faults",
    "helm uninstall finetune-operator --namespace finetune-system",
    "kubectl delete crd finetunejobs.finetune-operator.io",
    "make soak",
    "make bench-trainer",
    "pip download --no-deps --dest wheels --index-url https://download.pytorch.org/whl/cpu -r requirements/torch.txt",
    ".venv/bin/python -m pytest FILE",
}
STANDS_FOR = {"FILE": "job.yaml", "FOLDER": "examples/travel"}


@dataclass(frozen=True)
class Command:
    """One command as a page has it; `shown` are the lines that the page prints below it, `typed` are all its lines."""

    page: str
    text: str
    shown: tuple[str, ...] = ()
    typed: str = field(default="", compare=False)

    @property
    def kind(self) -> str | None:
        """A key of RUNNERS; None when no test runs it."""
        if self.text.startswith("curl ") and ROOT / self.page in TASK_PAGES:
            return TASKS
        if self.page == LOOKS and self.text.startswith("kubectl ") and not self.text.startswith("kubectl logs "):
            return API_SERVER
        return BY_TEXT.get(self.text) or BY_PROGRAM.get(self.text.split()[0])

    def meant(self, **names: str) -> Command:
        """With what the words in capitals stand for: `names`, and STANDS_FOR."""
        text = self.text
        for word, value in {**STANDS_FOR, **names}.items():
            text = re.sub(rf"(?<![\w-]){word}(?!\w)", value, text)
        return replace(self, text=text)


def commands(*kinds: str) -> list[Command]:
    """The commands of these kinds, or all, in the order of the pages; each once, with its output where one is shown."""
    found: dict[tuple[str | None, str], Command] = {}
    for command in said():
        key = (command.page if command.kind == TASKS else None, command.text)
        if command.text not in ONLY_NAMED and (key not in found or not found[key].shown):
            found[key] = command
    return [command for command in found.values() if not kinds or command.kind in kinds]


def said() -> Iterator[Command]:
    """All commands of all pages, also those that are said twice or only named."""
    for page in PAGES:
        yield from of_page(page.relative_to(ROOT).as_posix(), page.read_text())


def of_page(page: str, text: str) -> Iterator[Command]:
    """The commands of one page, also those that are only named."""
    language: str | None = None
    command: Command | None = None
    for line in _lines(ANSWER_BELOW.sub(r"\1", text)):
        if fence := FENCE.match(line):
            if command is not None:
                yield command
            language, command = (fence.group(1) if language is None else None), None
        elif language is None:
            yield from (Command(page, span) for span in IN_PROSE.findall(line) if not SUBCOMMAND.fullmatch(span))
        elif language == "console" and line.lstrip().startswith("$ "):
            if command is not None:
                yield command
            words = line.replace("\\\n", " ").partition(" #")[0].split()[1:]
            command = Command(page, " ".join(words), typed=line.lstrip().removeprefix("$ "))
        elif command is not None and line.strip():
            command = replace(command, shown=(*command.shown, line.strip()))


def _lines(text: str) -> Iterator[str]:
    """The lines of a page; a command that goes on in the next line is one."""
    begun: list[str] = []
    for line in text.splitlines():
        begun = [*begun, line] if begun or line.lstrip().startswith("$ ") else []
        if not begun:
            yield line
        elif FENCE.match(line):  # a page that leaves a quote open
            yield from begun
            begun = []
        elif _whole(command := "\n".join(begun)):
            yield command
            begun = []


def _whole(command: str) -> bool:
    """Whether a shell would run it, or wait for more: after a backslash at the end, or within quotes."""
    try:
        return bool(shlex.split(command, comments=True))
    except ValueError:
        return False


def blocks(text: str, *languages: str) -> list[str]:
    """What stands in a page's blocks of these languages. What a command answers is the command's: see Command.shown."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", ANSWER_BELOW.sub(r"\1", text), re.MULTILINE | re.DOTALL)
    return [content for language, content in found if language in languages]


def lacks(output: str, command: Command) -> list[str]:
    """The lines of the page's output that the real one does not have; spaces and durations may differ."""
    have = [_gist(line) for line in output.splitlines()]
    return [line for line in command.shown if _gist(line) not in have]


def _gist(line: str) -> str:
    return " ".join("TIME" if DURATION.fullmatch(word) else word for word in line.split())
