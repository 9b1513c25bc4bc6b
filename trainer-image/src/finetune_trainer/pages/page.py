"""Templates to pages."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from finetune_trainer.pages import text


@cache
def environment() -> Environment:
    """Escapes everything, and refuses a name that is not given: a hole in a report is a mistake, not a blank."""
    made = Environment(
        autoescape=True,
        loader=PackageLoader("finetune_trainer.pages"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(shown=text.shown, spaced=text.spaced)
    made.globals.update(percent=text.percent)
    return made


def render(template: str, **values: Any) -> str:
    """The page. `template` is a file of `templates/` that extends `frame.html`, which says what it is given."""
    return environment().get_template(template).render(values)
