"""Schemes of tags: BIO and BILOU (also called BIOES) come in, BIO goes on.

B- begins an entity, I- goes on with it, O is outside; BILOU also marks the last word (L- or E-) and an entity of one
word (U- or S-). Which of them a line has is seen from its letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from finetune_trainer.data.problems import Fault, json_type
from finetune_trainer.evaluation.entities import OUTSIDE

TAG = re.compile(r"O|[BILUES]-\S(.*\S)?", re.DOTALL)
BEGIN, INSIDE = "B-", "I-"
ENDS, SINGLES = ("L-", "E-"), ("U-", "S-")
TO_BIO = {"L": "I", "E": "I", "U": "B", "S": "B"}
FORM = "write O for a word outside, B-LABEL for the first word of an entity and I-LABEL for its other words"


def check_tags(tags: Sequence[object]) -> Iterator[Fault]:
    """What is wrong with the tags of one text."""
    for index, tag in enumerate(tags):
        if not isinstance(tag, str):
            text = f"a tag must be a text, not {json_type(tag)}; {FORM}"
            if isinstance(tag, int):
                text = f"the tags are numbers, which say nothing without their names; {FORM}"
            yield Fault("tag_type", text, f"tags[{index}]")
            return
        if not TAG.fullmatch(tag):
            yield Fault("tag_form", f"a tag is neither O nor has it a scheme's letter before a -; {FORM}", _at(index))
            return
    yield from _check_sequence([str(tag) for tag in tags])


def _check_sequence(tags: Sequence[str]) -> Iterator[Fault]:
    bilou = is_bilou(tags)
    previous = OUTSIDE
    for index, tag in enumerate(tags):
        follows = tag.startswith((INSIDE, *ENDS))
        if follows and (label(previous) != label(tag) or previous.startswith((*ENDS, *SINGLES))):
            yield _not_begun(tag, index, bilou)
            return
        if bilou and _is_open(previous) and not follows:
            yield _not_ended(index - 1)
            return
        previous = tag
    if bilou and _is_open(previous):
        yield _not_ended(len(tags) - 1)


def _not_begun(tag: str, index: int, bilou: bool) -> Fault:
    if bilou or not tag.startswith(INSIDE):
        text = f"{tag[:2]} goes on with an entity that no B- of the same label began"
    else:
        text = (
            "I- goes on with an entity of the same label, and none was begun; the first word of an entity is B- (in "
            "the older scheme IOB1 it is I-: put B- there)"
        )
    return Fault("tag_sequence", text, _at(index))


def _not_ended(index: int) -> Fault:
    text = "the entity has no last word: in BILOU its last word is L- (or E-), and an entity of one word U- (or S-)"
    return Fault("tag_sequence", text, _at(index))


def _is_open(tag: str) -> bool:
    return tag.startswith((BEGIN, INSIDE))


def _at(index: int) -> str:
    return f"tags[{index}]"


def is_bilou(tags: Sequence[str]) -> bool:
    """Whether the scheme marks the ends of entities."""
    return any(tag.startswith((*ENDS, *SINGLES)) for tag in tags)


def has_open_end(tags: Sequence[str]) -> bool:
    """Whether an entity ends without a mark, as in BIO only."""
    pairs = zip(tags, [*tags, OUTSIDE][1:], strict=True)
    return any(_is_open(tag) and not following.startswith((INSIDE, *ENDS)) for tag, following in pairs)


def label(tag: str) -> str:
    """`PER` of `B-PER`; empty for O."""
    return tag[2:]


def to_bio(tags: Sequence[str]) -> list[str]:
    return [TO_BIO.get(tag[0], tag[0]) + tag[1:] for tag in tags]
