"""QuestionAnswering: which windows of a context that is longer than the model reads are learned, and what of each."""

from __future__ import annotations

import pytest
from tests.tiny_encoders import make_tiny_encoder_tokenizer
from tests.unit.test_task_question_answering import line, long_line, make_format, shown, squad

from finetune_trainer.tasks import windows


@pytest.mark.parametrize("place", [0, 3, 40, 62, 90, 150, 290, 299])
@pytest.mark.parametrize("token_types", [True, False])
def test_a_long_context_is_cut_to_the_window_that_holds_the_answer(place: int, token_types: bool) -> None:
    form = make_format(token_types=token_types)
    normal = form.normalise(long_line(place))
    whole = form.encode(normal)

    short = form.cut(whole, 64)

    assert short is not None
    assert len(short["input_ids"]) == 64
    assert shown(short) == "Anna left Bern"
    assert short["input_ids"][:6] == whole["input_ids"][:6]
    assert short["input_ids"][-1] == whole["input_ids"][-1]
    assert len({len(column) for name, column in short.items() if name.endswith("ids")}) == 1
    tokenizer = make_tiny_encoder_tokenizer(token_types=token_types)
    asked = windows.windows(windows.lay_out(tokenizer, normal["context"], normal["question"]), 64)
    assert list(short["input_ids"]) in [list(window.input_ids) for window in asked]


def test_an_answer_longer_than_the_overlap_is_learned_from_a_window_around_it() -> None:
    form = make_format()
    words = ["parcel"] * 40 + ["Anna"] * 50 + ["parcel"] * 200
    context = " ".join(words)
    whole = form.encode(form.normalise(line(squad(" ".join(["Anna"] * 50), context.index("Anna")), context)))

    short = form.cut(whole, 64)

    assert short is not None
    assert shown(short).split() == ["Anna"] * 50
    assert form.cut(whole, 50) is None


def test_a_question_without_answer_learns_the_first_window() -> None:
    form = make_format()
    whole = form.encode(form.normalise(line([], "parcel " * 200)))

    short = form.cut(whole, 64)

    assert form.cut(whole, 999) is whole
    assert short is not None
    assert list(short["answer"]) == [0, 0]
    assert form.cut(whole, 12) is None


@pytest.mark.parametrize("token_types", [True, False])
@pytest.mark.parametrize("place", [0, 40, 62, 150, 299, None])
def test_the_other_windows_are_learned_too(place: int | None, token_types: bool) -> None:
    """The model is asked with all of them: what it was never taught of would be answered at random."""
    form = make_format(token_types=token_types)
    normal = form.normalise(line([], "parcel " * 300) if place is None else long_line(place))
    whole = form.encode(normal)
    taken = form.cut(whole, 64)
    assert taken is not None

    rows = [taken, *form.beside(whole, 64)]

    tokenizer = make_tiny_encoder_tokenizer(token_types=token_types)
    asked = windows.windows(windows.lay_out(tokenizer, normal["context"], normal["question"]), 64)
    learned = {tuple(row["input_ids"]): shown(row) for row in rows}
    answer = tokenizer("Anna left Bern", add_special_tokens=False)["input_ids"]
    for window in asked:
        held = [token for token in window.input_ids[window.here] if token in answer]
        if place is not None and held == answer:
            assert learned[tuple(window.input_ids)] == "Anna left Bern"
        elif not held:
            assert learned[tuple(window.input_ids)] == "[CLS]"
    assert set(learned) <= {tuple(window.input_ids) for window in asked}
    assert all(row.keys() == taken.keys() for row in rows)


def test_a_window_with_a_part_of_the_answer_is_not_learned() -> None:
    form = make_format()
    whole = form.encode(form.normalise(long_line(62)))
    kept = form.cut(whole, 64)
    assert kept is not None
    rows = [kept, *form.beside(whole, 64)]
    answer = list(whole["input_ids"][whole["answer"][0] : whole["answer"][1] + 1])
    for row in rows:
        held = [token for token in row["input_ids"][row["context"][0] : row["context"][1]] if token in answer]
        assert held in ([], answer)


def test_a_context_that_fits_has_one_row() -> None:
    form = make_format()
    whole = form.encode(form.normalise(line(squad("Anna", 41))))
    assert form.beside(whole, 999) == []
    assert form.beside(whole, 8) == []  # the example itself is left out
