"""Which held-out examples are asked, and by which rule the answers of a new model are judged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_models import make_tiny_tokenizer

from finetune_api.evaluation import EvaluationSpec
from finetune_api.status import ResolvedValues
from finetune_api.tasks import Task
from finetune_trainer import verification
from finetune_trainer.errors import ArtifactInvalidError
from finetune_trainer.evaluation.checking import ask
from finetune_trainer.evaluation.questions import ANSWER_TOKENS, choose, question
from finetune_trainer.evaluation.scoring import request_tokens
from finetune_trainer.tasks.kind import Answer, Facts, HeldOut, Question
from finetune_trainer.tasks.table import KINDS
from finetune_trainer.training.inputs import Prepared

TOKENIZER = make_tiny_tokenizer()


def chat(asked: str, answered: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}


def test_prompts_without_room_for_an_answer_are_left_out_and_counted() -> None:
    examples = [chat(f"{'sun ' * words}?", "Yes.") for words in (1, 20, 60, 2)]
    lengths = [len(found.row["input_ids"]) for found in questions(examples, 10**6)]
    context = lengths[1] + ANSWER_TOKENS
    chosen = choose(questions(examples, context), context, most=9)
    assert [len(q.row["input_ids"]) for q in chosen.asked] == [lengths[0], lengths[1], lengths[3]]
    assert chosen.too_long == 1
    assert chosen.notes[0].startswith("1 held-out question(s) were not asked")
    assert choose(questions(examples, context - 1), context - 1, most=9).too_long == 2
    enough = choose(questions(examples, context), context, most=2)
    assert (len(enough.asked), enough.too_long, enough.notes) == (2, 0, [])


def questions(examples: Sequence[dict[str, Any]], context: int) -> list[Question]:
    return [found for example in examples if (found := question(example, TOKENIZER, context))]


def asked(*lengths: int) -> list[Question]:
    return [Question(str(n), "", {"input_ids": [1]}, length) for n, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("lengths", "indices", "should_stop"),
    [
        ([10] * 12, [*range(8)], True),
        ([64, 65, 500, 3, 4, 5], [0, 3, 4, 5], True),  # the short ones alone
        ([300, 10, 300, 300, 20, 300, 300], [*range(7)], False),  # too few of them
        ([300] * 20, [*range(8)], False),
        ([10], [0], True),
        ([65], [0], False),
    ],
)
def test_short_answers_are_asked_for_where_there_are_some(
    lengths: list[int], indices: list[int], should_stop: bool
) -> None:
    found, judged_by_stop = verification.smoke_questions(asked(*lengths))
    assert [int(one.prompt) for one in found] == indices
    assert judged_by_stop is should_stop


STOPS = Answer("Yes.", stopped=True, length=2, distinct=2)
LONG = Answer("word after word", stopped=False, length=128, distinct=70)
LOOP = Answer("la la la la", stopped=False, length=128, distinct=2)
EMPTY = Answer("", stopped=True, length=0, distinct=0)


@pytest.mark.parametrize(
    ("length", "tuned", "base", "refused"),
    [
        (10, [LONG, STOPS], [STOPS, STOPS], None),
        (10, [LONG, LONG], [STOPS, STOPS], "none of 2 answers ends by itself, while 100% of the base"),
        (10, [LONG, LONG], [LONG, LONG], None),
        (400, [LONG, LONG], [STOPS, STOPS], None),  # cut off, and right to be
        (400, [LOOP, EMPTY], [LONG, STOPS], "none of 2 answers is more than a repetition"),
        (400, [LOOP, LONG], [LONG, STOPS], None),
        (400, [LOOP, EMPTY], [LOOP, LOOP], None),
    ],
)
def test_a_good_model_of_long_answers_is_not_refused(
    length: int, tuned: list[Answer], base: list[Answer], refused: str | None
) -> None:
    def ask(questions: Sequence[Question]) -> list[Answer]:
        assert len(questions) == 2
        return tuned

    if refused:
        with pytest.raises(ArtifactInvalidError, match=refused):
            verification.verify_answers(ask, lambda _: base, asked(length, length))
    else:
        verified = verification.verify_answers(ask, lambda _: base, asked(length, length))
        assert verified.stopped == sum(one.stopped is True for one in tuned) / 2


def test_where_nothing_is_generated_nothing_can_fail_to_end() -> None:
    verified = verification.verify_answers(lambda _: [Answer("spam")], None, asked(1))
    assert (verified.stopped, verified.notes) == (None, [])


def prepared(folder: Path, questions: Sequence[str]) -> Prepared:
    folder.mkdir()
    lines = "".join(json.dumps(chat(text, "Yes.")) + "\n" for text in questions)
    (folder / "validation.jsonl").write_text(lines, encoding="utf-8")
    return Prepared(ResolvedValues.model_construct(), "", folder, folder, KINDS[Task.CHAT], Facts())


def test_held_out_examples_are_chosen_by_content_not_by_place(tmp_path: Path) -> None:
    topics = [f"{topic} {n}?" for topic in ("boats", "trains") for n in range(40)]  # a sorted file
    chosen = []
    for name, questions in (("sorted", topics), ("reversed", topics[::-1])):
        data = prepared(tmp_path / name, questions)
        examples = data.held_out_examples(data.held_out(20))
        chosen.append([example["messages"][0]["content"] for example in examples])
    assert chosen[0] == chosen[1]
    assert 5 <= sum("trains" in text for text in chosen[0]) <= 15
    assert sorted(data.held_out(500)) == list(range(80))


def held_out(context: int = 400) -> HeldOut:
    return HeldOut([], [], TOKENIZER, Facts(), 128, context, answer_tokens=64)


@pytest.mark.parametrize("task", [Task.CHAT, Task.PREFERENCE])
def test_a_prompt_of_the_spec_is_a_users_only_message(task: Task) -> None:
    found = KINDS[task].pose("Which share shall I buy?", held_out())
    assert found is not None
    assert (found.prompt, found.expected, found.most, found.fits) == ("Which share shall I buy?", "", 64, True)
    wanted = question(chat("Which share shall I buy?", "None."), TOKENIZER, 400)
    assert wanted is not None
    assert found.row == wanted.row
    small = KINDS[task].pose("Which share shall I buy?", held_out(len(found.row["input_ids"]) + 63))
    assert small is not None
    assert not small.fits


def test_a_prompt_of_the_spec_is_the_text_that_a_completion_goes_on_with() -> None:
    found = KINDS[Task.COMPLETION].pose("The boats", held_out())
    assert found is not None
    assert TOKENIZER.decode(found.row["input_ids"], skip_special_tokens=True) == "The boats"
    assert KINDS[Task.CLASSIFICATION].pose("The boats", held_out()) is None


def test_each_prompt_is_asked_once_and_what_does_not_fit_is_said() -> None:
    checks = [
        {"name": "short", "maxWords": 9, "prompts": ["Sun?", "Boats?"]},
        {"name": "polite", "contains": ["please"], "prompts": ["Boats?", "sun " * 400]},
    ]
    settings = EvaluationSpec.model_validate({"checks": checks, "sampleAnswers": 0, "answerTokens": 64})
    found = ask(KINDS[Task.CHAT], held_out(), settings)
    assert [each.prompt for each in found.questions] == ["Sun?", "Boats?"]
    assert {name: list(places) for name, places in found.checked.items()} == {"short": [0, 1], "polite": [1]}
    assert found.notes == [
        "1 prompt(s) of evaluation.checks were not asked: they leave no room for an answer in the context"
    ]


def test_requests_are_counted_up_to_the_last_answer() -> None:
    one = {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}
    two = {"input_ids": list(range(8)), "labels": [-100, 1, 2, -100, -100, 5, 6, 7]}
    assert request_tokens([one]) == 2
    assert request_tokens([two]) == 5
    assert request_tokens([one, two]) == 3.5
    assert request_tokens([]) == 0
