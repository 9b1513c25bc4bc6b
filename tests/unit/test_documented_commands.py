"""No command stands in the README or the documentation that no test runs."""

from __future__ import annotations

import re

import pytest
from tests import documented
from tests.documented import CI, CLUSTER, PAGES, ROOT, RUNNERS, TASKS, Command

PAGE = """\
Type `make this` or `kubectl get x`, not `make`, nor `spec.serving`, nor `kubectl set image`.
```console
$ helm install a \\
    b  # a remark
NAME: a
STATUS   READY

$ finetune run -f FILE
```
```yaml
a: $ b
```
```console
$ curl x \\
    -d '{
      "a": "b c"}'
```
```json
{"d": 1,
 "e": 2}
```
```json
{"f": 3}
```
```console
$ echo 'a quote left open
```
"""


def test_commands_are_found_with_their_output() -> None:
    assert [(command.text, command.shown) for command in documented.of_page("page", PAGE)] == [
        ("make this", ()),
        ("kubectl get x", ()),
        ("helm install a b", ("NAME: a", "STATUS   READY")),
        ("finetune run -f FILE", ()),
        ('curl x -d \'{ "a": "b c"}\'', ('{"d": 1,', '"e": 2}')),
        ("echo 'a quote left open", ()),
    ]


def test_a_command_is_typed_with_all_its_lines_and_answers_are_no_data() -> None:
    [curl] = [command for command in documented.of_page("page", PAGE) if command.text.startswith("curl")]
    assert curl.typed == 'curl x \\\n    -d \'{\n      "a": "b c"}\''
    assert documented.blocks(PAGE, "json", "yaml") == ["a: $ b\n", '{"f": 3}\n']


def test_pages_of_tasks_count_and_their_questions_are_asked_of_their_own_models() -> None:
    asked = "curl -s localhost:8000/v1/classify"
    assert ROOT / "docs/tasks/classification.md" in PAGES
    assert [Command(page, asked).kind for page in ("docs/tasks/classification.md", "README.md")] == [TASKS, CLUSTER]


@pytest.mark.parametrize("command", documented.commands(), ids=lambda command: command.text)
def test_every_command_is_run_by_a_test(command: Command) -> None:
    assert command.kind, f"{command.page}: `{command.text}`: name the test that runs it in tests/documented.py"
    assert (ROOT / RUNNERS[command.kind]).is_file()


def test_what_ci_runs_is_in_its_script_or_in_what_that_makes() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make test", "make e2e"} <= set(script)
    makefile = (ROOT / "Makefile").read_text()
    for command in documented.commands(CI):
        target = command.text.removeprefix("make ")
        assert command.text in script or re.search(rf"^\w+:.* {target}\b", makefile, re.MULTILINE), command.text


def test_nothing_is_listed_that_no_page_says() -> None:
    spoken = {command.text for command in documented.said()}
    assert set(documented.BY_TEXT) | documented.ONLY_NAMED <= spoken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_to_type_stand_in_console_blocks_after_a_dollar(page: object) -> None:
    text = ROOT.joinpath(str(page)).read_text()
    assert not re.search(r"^ *```(bash|sh|shell|zsh)$", text, re.MULTILINE)
    assert not re.search(r"\n\n(?: {4}|\t)(?:\$|make|finetune|kubectl|helm|git|python|pip|curl) ", text)
    for block in documented.blocks(text, ""):
        assert not re.search(rf"^(?:\$ )?{documented.PROGRAMS} ", block, re.MULTILINE), block


@pytest.mark.parametrize(
    ("shown", "printed", "missing"),
    [
        (("NAME   AGE", "a  14m"), "NAME AGE\na 2m3s\n", []),
        (("a Ready",), "a   Failed", ["a Ready"]),
        ((), "", []),
    ],
)
def test_output_is_compared_by_its_words(shown: tuple[str, ...], printed: str, missing: list[str]) -> None:
    assert documented.lacks(printed, Command("page", "x", shown)) == missing


def test_each_decision_has_a_number_of_its_own_and_says_it() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [page.name[:4] for page in pages]
    assert numbers == [f"{number:04}" for number in range(1, len(pages) + 1)]
    assert [page.read_text()[2:6] for page in pages] == numbers


def test_each_link_of_a_page_leads_to_a_file() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "charts").rglob("*.md")]
    links = [
        (page, link)
        for page in pages
        if page.name != "reference.md"  # generated; its patterns look like links
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if not link.startswith(("http:", "https:"))
    ]
    assert len(links) > 50
    assert not [(str(page), link) for page, link in links if not (page.parent / link).exists()]
