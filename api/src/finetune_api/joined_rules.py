"""The rules of an object as the CRD has them: those that begin with the same question are one.

The API server asks every rule by itself, and for each `self.field` in one it builds a table of all fields of that
object (apiextensions-apiserver 1.36, `Structural.Properties`), at each write, that of a status too. So what many rules
have in common is asked once, and what is behind it only where that does not hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

RULES = "x-kubernetes-validations"
# Many fields, of which rules of the whole spec ask several. No list is in it: behind a variable the API server does not
# know how long one may be, and so would refuse the rule as too dear.
WIDE = "self.hyperparameters"
Cel = dict[str, Any]


def with_joined_rules(node: Any) -> Any:
    """A copy of a schema in which no rule has an `unless` any more."""
    if isinstance(node, dict):
        # Of an object that is a default the rules are asked before the fields in it have theirs.
        filled = "default" not in node
        return {
            key: _joined(value, filled=filled) if key == RULES else with_joined_rules(value)
            for key, value in node.items()
        }
    return [with_joined_rules(item) for item in node] if isinstance(node, list) else node


def _joined(rules: Sequence[Cel], *, filled: bool) -> list[Cel]:
    asked: dict[str, list[Cel]] = {}
    for place, rule in enumerate(rules):
        first = (filled and _subject(rule)) or rule.get("unless", str(place))
        asked.setdefault(first, []).append(rule)
    return [_one(each) if "unless" in each[0] else each[0] for each in asked.values()]


def _subject(rule: Cel) -> str | None:
    """The field of the object itself that its `unless` asks, if it asks one only."""
    field = re.fullmatch(r"(self\.\w+) [!=i][^|&]+", rule.get("unless", ""))
    return field[1] if field else None


def _one(rules: Sequence[Cel]) -> Cel:
    """One rule that holds where all of them do, and otherwise says the messages of all that do not."""
    guarded: dict[str, list[str]] = {}
    for rule in rules:
        guarded.setdefault(rule["unless"], []).append(_in_brackets(rule["rule"]))
    every = [f"{unless} || {_in_brackets(_with_variable(WIDE, ' && '.join(held)))}" for unless, held in guarded.items()]
    subject = _subject(rules[0])
    if len(every) > 1 and subject:
        every = [_with_variable(subject, " && ".join(map(_in_brackets, every)))]
    if len(rules) == 1:
        return {"rule": every[0], "message": rules[0]["message"]}
    # No list: the API server could not tell how long its parts may be, and would fear for its time.
    said = " + ".join(
        f"({rule['unless']} || {_in_brackets(rule['rule'])} ? '' : {json.dumps(rule['message'] + '. ')})"
        for rule in rules
    )
    return {"rule": every[0], "messageExpression": said}


def _with_variable(field: str, rule: str) -> str:
    """With a variable for a field that it asks more than once."""
    if len(re.findall(rf"{re.escape(field)}\b", rule)) < 2:
        return rule
    name = field.removeprefix("self.")
    return f"[{field}].all(its_{name}, " + re.sub(rf"{re.escape(field)}\b", f"its_{name}", rule) + ")"


def _in_brackets(rule: str) -> str:
    return f"({rule})" if re.search(r"&&|\|\||\?", rule) else rule
