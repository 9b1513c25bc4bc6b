"""QuestionAnswering: what is refused, which window is learned from, and that one function finds every answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny_encoders import CONTEXT as LIMIT
from tests.tiny_encoders import Kind, make_tiny_encoder, make_tiny_encoder_tokenizer
from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoTokenizer, LlamaConfig

from finetune_api.tasks import TASKS, Metric, Task
from finetune_trainer.data.problems import Findings
from finetune_trainer.errors import UserInputError
from finetune_trainer.evaluation.squad import answer_f1, exact_match
from finetune_trainer.serving.errors import InvalidRequest
from finetune_trainer.serving.predict_answer import AnswerPredictor
from finetune_trainer.serving.predictor import PredictModel
from finetune_trainer.serving.protocol import parse
from finetune_trainer.tasks.kind import Facts, HeldOut, Tokens
from finetune_trainer.tasks.question_answering import AnswerFormat, QuestionAnswering, collate, mean_loss
from finetune_trainer.tasks.question_answering_spans import Scored, best_passage, read

NOTHING = re.compile(r"(?!)")
QUESTION = "Who left Bern?"
CONTEXT = "The courier is late. Anna left Bern, and Anna wrote the letter."


def make_format(*, token_types: bool = True) -> AnswerFormat:
    return AnswerFormat(make_tiny_encoder_tokenizer(token_types=token_types), NOTHING)


def line(answers: Any, context: Any = CONTEXT, **more: Any) -> dict[str, Any]:
    return {"question": QUESTION, "context": context, "answers": answers, **more}


def squad(text: Any, start: Any) -> dict[str, Any]:
    return {"text": [text], "answer_start": [start]}


def long_line(place: int, filler: str = "parcel ") -> dict[str, Any]:
    """A context of 303 tokens with the answer at token `place`."""
    words = [filler.strip()] * 300
    words[place : place + 1] = ["Anna", "left", "Bern"]
    context = " ".join(words)
    return line(squad("Anna left Bern", context.index("Anna")), context)


@pytest.mark.parametrize(
    ("row", "check", "said"),
    [
        ({"context": CONTEXT, "answers": []}, "missing_question", "needs question, context and answers"),
        ({"data": [{"paragraphs": []}]}, "missing_question", "nested form: give it as one JSON document"),
        ({"question": QUESTION, "answers": []}, "missing_context", "no `context`"),
        ({"question": QUESTION, "context": CONTEXT}, "missing_answers", "an empty list"),
        (line([], 5), "context_type", "not a number"),
        (line([], " "), "empty_context", "remove the line"),
        (line(7), "answers_form", "a number"),
        (line({"texts": ["Anna"]}), "answers_form", "an object of another form"),
        (line({"text": ["Anna"], "answer_start": [1, 2]}), "answers_form", "answer_start"),
        (line([["Anna"]]), "answers_form", "a list of another form"),
        (line([5]), "answer_type", "not a number"),
        (line(squad("", 0)), "empty_answer", "an empty list"),
        (line([" "]), "empty_answer", "an empty list"),
        (line(squad("Anna", "21")), "answer_start", "must be a number of characters"),
        (line(squad("Anna", -3)), "answer_start", "0 or more"),
        (line(squad("Bern", 20)), "answer_start", "`answer_start` 20; it stands at 31"),
        (line(squad("Anna", 20)), "answer_start", "the first of 2 places is 21"),
        (line(squad("Anna", 3), "é Anna"), "answer_start", "counts bytes; count characters: 2"),
        (line(["Berta"]), "answer_not_in_context", "use the task Seq2Seq"),
        (line(["anna LEFT"]), "answer_not_in_context", "other capitals"),
        (line(["left  Bern"]), "answer_not_in_context", "other spaces"),
        (line(["Anna"], is_impossible=True), "impossible_answer", "remove one of the two"),
    ],
)
def test_a_wrong_line_is_refused_with_the_remedy(row: dict[str, Any], check: str, said: str) -> None:
    faults = [fault for fault in make_format().check(row) if fault.severity == "error"]

    assert (faults[0].check, said in faults[0].message) == (check, True), faults
    assert all("Anna" not in fault.message for fault in faults)  # no text of the data


@pytest.mark.parametrize(
    ("row", "check"), [(line("Anna"), "answer_places"), (line(["Bern"], topic="travel"), "unknown_key")]
)
def test_what_is_odd_but_usable_is_a_warning(row: dict[str, Any], check: str) -> None:
    assert [(fault.check, fault.severity) for fault in make_format().check(row)] == [(check, "warning")]


@pytest.mark.parametrize(
    ("answers", "texts", "starts"),
    [
        (squad("Anna", 41), ["Anna"], [41]),
        ({"text": ["Bern", "Anna left Bern"], "answer_start": [31, 21]}, ["Bern", "Anna left Bern"], [31, 21]),
        ([{"text": "Bern", "answer_start": 31}], ["Bern"], [31]),
        (["Bern"], ["Bern"], [31]),
        ("Bern", ["Bern"], [31]),
        (squad(" Bern", 30), ["Bern"], [31]),
        ([], [], []),
        (None, [], []),
        ({"text": [], "answer_start": []}, [], []),
    ],
)
def test_every_form_of_answers_becomes_one(answers: Any, texts: list[str], starts: list[int]) -> None:
    form = make_format()
    row = line(answers, id="56", title="Bern")

    assert form.check(row) == []
    assert form.normalise(row)["answers"] == {"text": texts, "answer_start": starts}


def shown(columns: Tokens) -> str:
    """What the answer's columns point at."""
    first, last = columns["answer"]
    tokenizer = make_tiny_encoder_tokenizer()
    return " ".join(tokenizer.convert_ids_to_tokens(list(columns["input_ids"][first : last + 1])))


@pytest.mark.parametrize(
    ("answers", "tokens"),
    [
        (squad("Anna", 41), "Anna"),
        (squad("Anna left Bern", 21), "Anna left Bern"),
        (squad("nna lef", 22), "Anna left"),
        ([], "[CLS]"),
    ],
)
@pytest.mark.parametrize("token_types", [True, False])
def test_the_answer_becomes_tokens(answers: Any, tokens: str, token_types: bool) -> None:
    form = make_format(token_types=token_types)

    columns = form.encode(form.normalise(line(answers)))

    assert shown(columns) == tokens
    assert ("token_type_ids" in columns) == token_types
    first, after = columns["context"]
    assert after == len(columns["input_ids"]) - 1
    assert first == 6


@pytest.mark.parametrize(
    ("answers", "counts"),
    [
        ([["Bern"], []], {}),
        ([[], []], {"train:no_answer": 1}),
        ([squad("ern", 32)], {"train:answer_boundary": 1}),
    ],
)
def test_what_the_training_data_lacks_is_said(answers: list[Any], counts: dict[str, int]) -> None:
    """`Bern` is one token, so that `ern` begins within it."""
    form, findings = make_format(), Findings()
    for one in answers:
        form.encode(form.normalise(line(one)))
    form.end_of_training_data(findings)

    assert findings.counts() == counts
    assert bool(findings.errors()) == ("train:no_answer" in counts)


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1),
        ("Paris", ["London", "paris."], 1, 1),
        ("in Paris", ["Paris"], 0, 2 / 3),
        ("Paris", ["London"], 0, 0),
        ("", [], 1, 1),
        ("Paris", [], 0, 0),
        ("", ["Paris"], 0, 0),
        ("", ["the"], 1, 1),
        ("a b b c", ["b b d"], 0, 2 * 2 / 6),
        ("state-of-the-art", ["stateoftheart"], 1, 1),
    ],
)
def test_squads_rules(answer: str, expected: list[str], exact: float, f1: float) -> None:
    assert exact_match(answer, expected) == exact
    assert answer_f1(answer, expected) == pytest.approx(f1)


WORDS = "one two three four five"
OFFSETS = [match.span() for match in re.finditer(r"\w+", WORDS)]


def scored(part: tuple[int, int], start: list[float], end: list[float], none: float) -> Scored:
    return Scored(part, np.array(start), np.array(end), none, 0.0)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([scored((0, 5), [0, 5, 0, 0, 0], [0, 0, 5, 0, 0], 0)], "two three"),
        ([scored((0, 5), [0, 0, 0, 5, 0], [5, 0, 0, 1, 0], 0)], "four"),  # an end before its start is none
        ([scored((0, 5), [0, 5, 0, 0, 0], [0, 0, 5, 0, 0], 11)], None),
        ([scored((0, 3), [0, 1, 0], [0, 1, 0], 9), scored((2, 5), [0, 0, 4], [0, 0, 4], 3)], "five"),
        ([scored((0, 3), [0, 1, 0], [0, 1, 0], 9), scored((2, 5), [0, 0, 4], [0, 0, 4], 8.5)], None),
        ([scored((0, 0), [], [], 1)], None),
    ],
)
def test_the_best_passage_of_all_windows(found: list[Scored], text: str | None) -> None:
    passage = best_passage(WORDS, OFFSETS, found)

    assert passage.text == text
    assert 0 < passage.score <= 1
    assert passage.text is None or WORDS[passage.start : passage.end] == text


def test_the_score_is_the_share_of_all_passages() -> None:
    passage = best_passage(WORDS, OFFSETS, [scored((0, 2), [1, 0], [0, 2], 0.5)])

    everything = np.exp([1 + 0, 1 + 2, 0 + 2, 0.5])
    assert passage.score == pytest.approx(float(everything[1] / everything.sum()))


def test_space_alone_is_no_answer() -> None:
    found = scored((0, 2), [9, 1], [9, 1], 0)

    assert best_passage("  one", [(2, 2), (2, 5)], [found]).text == "one"


@pytest.mark.parametrize("token_types", [True, False])
def test_what_is_measured_is_what_training_lowers(tmp_path: Path, token_types: bool) -> None:
    """Also where rows of different lengths share a batch, and for a row that was cut to the answer's window."""
    folder = make_tiny_encoder(tmp_path / "base", kind="bert" if token_types else "distilbert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kind, form = QuestionAnswering(), AnswerFormat(tokenizer, NOTHING)
    examples = [form.normalise(row) for row in (line(squad("Anna", 41)), line([]), long_line(200))]
    rows = [form.cut(form.encode(example), LIMIT) for example in examples]
    model = AutoModelForQuestionAnswering.from_pretrained(folder, **kind.model_options(Facts())).eval()

    held_out = HeldOut([row for row in rows if row], examples, tokenizer, Facts(), LIMIT, LIMIT)
    measured = kind.measure(model, held_out)

    assert len(held_out.rows) == 3
    assert measured.weight.tolist() == [1, 1, 1]
    with torch.no_grad():
        trained = float(mean_loss(model, collate(held_out.rows))[0])
    assert measured.mean_loss == pytest.approx(trained, rel=1e-5)
    assert set(measured.metrics) == {"exactMatch", "answerF1"}
    assert {name: part["examples"] for name, part in measured.details.items()} == {"answerable": 2, "unanswerable": 1}
    parts = [part["exactMatch"] * part["examples"] for part in measured.details.values()]
    assert sum(parts) / 3 == pytest.approx(measured.metrics[Metric.EXACT_MATCH])


def test_long_contexts_are_read_to_the_end(tmp_path: Path) -> None:
    folder = make_tiny_encoder(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    asked = (QUESTION, long_line(250)["context"])

    alone, again = read(model, tokenizer, [asked])[0], read(model, tokenizer, [(QUESTION, CONTEXT), asked])[1]

    assert {token for scored in alone.scored for token in range(*scored.part)} == set(range(302))
    assert len(alone.scored) > 2
    assert all(np.allclose(a.start, b.start, atol=1e-5) for a, b in zip(alone.scored, again.scored, strict=True))
    with pytest.raises(ValueError, match="shorten the question"):
        read(model, tokenizer, [("parcel " * 126, "parcel " * 9)])


def test_people_are_shown_question_and_context(tmp_path: Path) -> None:
    folder = make_tiny_encoder(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kind, form = QuestionAnswering(), AnswerFormat(tokenizer, NOTHING)
    examples = [form.normalise(row) for row in (line(squad("Anna", 41)), line([]))]
    rows = [form.encode(example) for example in examples]
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()

    asked = list(kind.ask(HeldOut(rows, examples, tokenizer, Facts(), LIMIT, LIMIT)))
    answers = kind.answer(model, tokenizer, asked, facts=Facts())
    found = read(model, tokenizer, [(QUESTION, CONTEXT)])[0]

    assert [question.expected for question in asked] == ["Anna", "(no answer)"]
    assert asked[0].prompt == f"{QUESTION}\n\n{CONTEXT}"
    assert answers[0].text == (best_passage(CONTEXT, found.layout.offsets, found.scored).text or "(no answer)")


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    kind, tokenizer = QuestionAnswering(), make_tiny_encoder_tokenizer()

    kind.require(AutoConfig.from_pretrained(make_tiny_encoder(tmp_path / "base")), tokenizer, "hf://a/b")
    with pytest.raises(UserInputError, match=r"cannot be used to find answers in a text: it is a LlamaForCausalLM"):
        kind.require(LlamaConfig(architectures=["LlamaForCausalLM"]), tokenizer, "hf://a/b")


def ask(model: PredictModel, asked: Any) -> list[dict[str, Any]]:
    predictor = AnswerPredictor()
    wanted = parse(predictor.request, json.dumps({"model": "tuned", "input": asked}).encode())
    items = predictor.items(wanted, model)
    outputs = iter(predictor.predict(model, [row for item in items for row in item.rows]))
    return [predictor.render(wanted, model, item, [next(outputs) for _ in item.rows]) for item in items]


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_the_server_says_what_the_evaluation_measured(tmp_path: Path, kind: Kind) -> None:
    folder = make_tiny_encoder(tmp_path / "base", kind=kind)
    module, tokenizer = (
        AutoModelForQuestionAnswering.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    model = PredictModel("tuned", module, tokenizer, Facts(), LIMIT)
    contexts = [CONTEXT, long_line(250)["context"], "Anna"]

    served = ask(model, [{"question": QUESTION, "context": context} for context in contexts])
    found = read(module, tokenizer, [(QUESTION, context) for context in contexts])
    passages = [best_passage(c, one.layout.offsets, one.scored) for c, one in zip(contexts, found, strict=True)]

    assert [(one["answer"], one["start"], one["end"]) for one in served] == [
        (passage.text, passage.start, passage.end) for passage in passages
    ]
    assert [one["score"] for one in served] == pytest.approx([passage.score for passage in passages], abs=1e-5)
    assert ask(model, {"question": QUESTION, "context": CONTEXT}) == [served[0]]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "empty list"),
        ({"question": " ", "context": "a"}, r"'input.question' is empty"),
        ([{"question": "a", "context": ""}], r"'input\[0\].context' is empty"),
        ({"question": "a"}, "input"),
        ({"question": "parcel " * 200, "context": "parcel " * 20}, "'input.question' is too long"),
    ],
)
def test_a_request_for_nothing_is_refused(tmp_path: Path, asked: Any, said: str) -> None:
    folder = make_tiny_encoder(tmp_path / "base")
    module = AutoModelForQuestionAnswering.from_pretrained(folder)
    model = PredictModel("tuned", module, AutoTokenizer.from_pretrained(folder), Facts(), LIMIT)

    with pytest.raises(InvalidRequest, match=said):
        ask(model, asked)


def test_the_route_is_the_one_that_is_documented() -> None:
    assert AnswerPredictor.route == TASKS[Task.QUESTION_ANSWERING].route


def test_an_adapter_reads_which_tokens_are_the_questions(tmp_path: Path) -> None:
    """PEFT's wrapper drops token_type_ids; merged, as it is served, the model would have them again."""
    folder = make_tiny_encoder(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForQuestionAnswering.from_pretrained(folder)
    tuned = get_peft_model(base, LoraConfig(task_type="QUESTION_ANS", init_lora_weights=False)).eval()

    alone = read(tuned, tokenizer, [(QUESTION, CONTEXT)])[0].scored[0]
    merged = read(tuned.merge_and_unload(), tokenizer, [(QUESTION, CONTEXT)])[0].scored[0]

    assert np.allclose(alone.start, merged.start, atol=1e-4)
    assert np.allclose(alone.end, merged.end, atol=1e-4)
