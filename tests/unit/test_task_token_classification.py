"""TokenClassification: what is refused, what is learned of a line, and that long texts lose nothing."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_encoders import make_tiny_encoder, make_tiny_encoder_tokenizer
from tests.tiny_models import make_tiny_tokenizer
from tokenizers import normalizers
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    CamembertConfig,
    MPNetConfig,
    RobertaConfig,
    T5Config,
)

from finetune_trainer.data.problems import Findings
from finetune_trainer.errors import UserInputError
from finetune_trainer.evaluation.entities import Entity, by_label, entities, entity_f1, word_accuracy
from finetune_trainer.masking import IGNORED
from finetune_trainer.tasks import windows
from finetune_trainer.tasks.kind import EncodingError, Facts, HeldOut
from finetune_trainer.tasks.token_classification import TagFormat, TokenClassification, collate, tag_words
from finetune_trainer.tasks.token_classification_data import rendered, words_and_tags, words_of_text, words_of_tokens
from finetune_trainer.tasks.token_classification_tags import to_bio

NOTHING = re.compile(r"(?!)")
TEXT = "Anna left Bern for Lisbon."
TOKENS = ["Anna", "left", "Bern", "for", "New", "York"]
TAGS = ["B-PER", "O", "B-LOC", "O", "B-LOC", "I-LOC"]


def make_format(tokenizer: Any = None) -> TagFormat:
    return TagFormat(tokenizer or make_tiny_encoder_tokenizer(), NOTHING)


def span(start: Any, end: Any, label: Any = "LOC") -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


@pytest.mark.parametrize(
    ("row", "check", "said"),
    [
        ({"sentence": "x"}, "missing_tokens", "needs `tokens`"),
        ({"ner_tags": ["O"], "words": ["a"]}, "missing_tokens", "dataset.columns.tags: ner_tags"),
        ({"tokens": ["a"], "ner_tags": [0]}, "missing_tags", "dataset.columns.tags: ner_tags"),
        ({"tags": ["O"]}, "missing_tokens", "no `tokens`"),
        ({"tokens": "a b", "tags": ["O"]}, "tokens_type", "list of texts, not a text"),
        ({"tokens": [], "tags": []}, "empty_tokens", "remove the line"),
        ({"tokens": ["a", 5], "tags": ["O", "O"]}, "token_type", "must be a text, not a number"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "empty_token", "together with its tag"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "tag_count", "2 tokens and 1 tags"),
        ({"tokens": ["a"], "tags": [3]}, "tag_type", "numbers, which say nothing without their names"),
        ({"tokens": ["a"], "tags": [None]}, "tag_type", "not null"),
        ({"tokens": ["a"], "tags": ["NOUN"]}, "tag_form", "B-LABEL"),
        ({"tokens": ["a"], "tags": ["B-"]}, "tag_form", "B-LABEL"),
        ({"tokens": ["a"], "tags": ["X-PER"]}, "tag_form", "B-LABEL"),
        ({"tokens": ["a"], "tags": ["I-PER"]}, "tag_sequence", "IOB1"),
        ({"tokens": ["a", "b"], "tags": ["B-PER", "I-LOC"]}, "tag_sequence", "put B- there"),
        ({"tokens": ["a", "b"], "tags": ["O", "L-LOC"]}, "tag_sequence", "L- goes on"),
        ({"tokens": ["a", "b"], "tags": ["U-PER", "B-LOC"]}, "tag_sequence", "has no last word"),
        ({"tokens": ["a", "b", "c"], "tags": ["B-PER", "O", "U-LOC"]}, "tag_sequence", "has no last word"),
        ({"tokens": ["a", "b", "c"], "tags": ["B-P", "L-P", "I-P"]}, "tag_sequence", "I- goes on"),
        ({"text": 5, "spans": []}, "text_type", "not a number"),
        ({"text": " ", "spans": []}, "empty_text", "remove the line"),
        ({"text": TEXT, "spans": {}}, "spans_type", "must be a list"),
        ({"text": TEXT, "spans": [[0, 4, "PER"]]}, "span_form", "must be an object"),
        ({"text": TEXT, "spans": [{"start": 0, "end": 4}]}, "span_form", "label"),
        ({"text": TEXT, "spans": [span(0, 4, "")]}, "span_label", "without space"),
        ({"text": TEXT, "spans": [span("0", 4)]}, "span_place", "whole numbers"),
        ({"text": TEXT, "spans": [span(20, 99)]}, "span_place", "the text has 26"),
        ({"text": TEXT, "spans": [span(4, 4)]}, "span_place", "not in its text"),
        ({"text": TEXT, "spans": [span(4, 5)]}, "span_place", "only space"),
        ({"text": TEXT, "spans": [span(0, 9), span(5, 14)]}, "span_overlap", "overlap"),
        ({"text": TEXT, "spans": [span(0, 2), span(2, 4)]}, "span_overlap", "share a word"),
    ],
)
def test_a_wrong_line_is_refused_with_the_remedy(row: dict[str, Any], check: str, said: str) -> None:
    faults = [fault for fault in make_format().check(row) if fault.severity == "error"]

    assert (faults[0].check, said in faults[0].message) == (check, True), faults


@pytest.mark.parametrize(
    ("row", "check"),
    [
        ({"text": TEXT, "spans": [span(10, 12)]}, "span_boundary"),
        ({"tokens": ["a"], "tags": ["O"], "pos": [1]}, "unknown_key"),
    ],
)
def test_what_is_odd_but_usable_is_a_warning(row: dict[str, Any], check: str) -> None:
    assert [(fault.check, fault.severity) for fault in make_format().check(row)] == [(check, "warning")]


@pytest.mark.parametrize(
    "row",
    [
        {"tokens": TOKENS, "tags": TAGS, "id": "7"},
        {"tokens": ["a", "b", "c"], "tags": ["B-P", "L-P", "U-Q"]},
        {"tokens": ["a", "b", "c"], "tags": ["B-P", "E-P", "S-Q"]},
        {"text": TEXT, "spans": [span(10, 15), span(0, 5, "PER")]},
        {"text": TEXT, "spans": []},
    ],
)
def test_a_right_line_has_no_fault(row: dict[str, Any]) -> None:
    assert make_format().check(row) == []


def test_bilou_becomes_bio() -> None:
    assert to_bio(["B-P", "I-P", "L-P", "O", "U-Q", "S-Q", "B-Q", "E-Q"]) == [
        *("B-P", "I-P", "I-P", "O", "B-Q", "B-Q", "B-Q", "I-Q")
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_two_schemes_in_one_file_are_refused(order: int) -> None:
    form = make_format()
    lines = [{"tokens": ["a"], "tags": ["B-P"]}, {"tokens": ["a", "b"], "tags": ["U-P", "O"]}][::order]

    assert form.check(lines[0]) == []
    assert form.check({"tokens": ["a"], "tags": ["O"]}) == []
    assert [fault.check for fault in form.check(lines[1])] == ["mixed_schemes"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("U.N. in Bern, 2024!", ["U", ".", "N", ".", "in", "Bern", ",", "2024", "!"]),
        ("東京 はa", ["東", "京", "は", "a"]),
        ("Mu\u0308nchen café", ["Mu\u0308nchen", "café"]),
        ("नमस्ते दिल्ली", ["नमस्ते", "दिल्ली"]),
        ("a_b\n c", ["a_b", "c"]),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    found = words_of_text(text)

    assert [text[start:end] for start, end in found.spans] == words


def test_spans_become_tags_of_the_words_that_they_touch() -> None:
    form = make_format()
    normal = form.normalise({"text": TEXT, "spans": [span(19, 22), span(0, 9, "X")]})

    words, tags = words_and_tags(normal)

    assert tags == ["B-X", "I-X", "O", "O", "B-LOC", "O"]
    assert rendered(words, tags) == "Anna left = X; Lisbon = LOC"
    assert json.loads(json.dumps(normal)) == normal


def test_the_first_token_of_a_word_has_its_label_and_no_other() -> None:
    form = make_format()
    tokenizer = make_tiny_encoder_tokenizer()
    columns = form.encode(form.normalise({"tokens": TOKENS, "tags": TAGS}))

    read = tokenizer.convert_ids_to_tokens(list(columns["input_ids"]))
    labels = [form.facts.labels[label] if label != IGNORED else "" for label in columns["labels"]]

    assert form.facts.labels == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    assert form.facts.counts == (2, 1, 0, 2, 1)
    assert [(token, label) for token, label in zip(read, labels, strict=True) if label] == [
        ("Anna", "B-PER"),
        ("left", "O"),
        ("Bern", "B-LOC"),
        ("f", "O"),
        ("N", "B-LOC"),
        ("Y", "I-LOC"),
    ]
    assert read[0] == "[CLS]"
    assert read[-1] == "[SEP]"
    assert form.learned(columns) == 6


def test_words_of_a_tokenizer_that_counts_spaces_are_found_too() -> None:
    """Byte-level BPE has the space before a word in the word's first token."""
    tokenizer = make_tiny_tokenizer()
    form = make_format(tokenizer)
    columns = form.encode(form.normalise({"tokens": ["The", "harbour", "x"], "tags": ["O", "B-A", "O"]}))

    labelled = [
        (tokenizer.decode([token]).strip()[0], form.facts.labels[label])
        for token, label in zip(columns["input_ids"], columns["labels"], strict=True)
        if label != IGNORED
    ]

    assert labelled == [("T", "O"), ("h", "B-A"), ("x", "O")]


def test_a_text_of_which_the_tokenizer_leaves_nothing_is_refused() -> None:
    tokenizer = make_tiny_encoder_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()  # drops control characters
    form = make_format(tokenizer)

    with pytest.raises(EncodingError, match="leaves nothing"):
        form.encode({"tokens": ["\u200b"], "tags": ["O"]})
    assert form.learned(form.encode({"tokens": ["\u200b", "Bern"], "tags": ["O", "O"]})) == 1


def test_a_cut_keeps_the_first_words_and_the_end_mark() -> None:
    form = make_format()
    columns = form.encode(form.normalise({"tokens": TOKENS, "tags": TAGS}))

    short = form.cut(columns, 5)

    assert form.cut(columns, 99) is columns
    assert short is not None
    assert list(short["input_ids"]) == [*columns["input_ids"][:4], columns["input_ids"][-1]]
    assert form.learned(short) == 3
    assert form.cut(columns, 2) is None


def test_a_label_that_only_validation_has_is_refused() -> None:
    form, findings = make_format(), Findings()
    form.encode(form.normalise({"tokens": TOKENS, "tags": TAGS}))
    form.end_of_training_data(findings)

    assert form.check({"tokens": ["a"], "tags": ["B-PER"]}) == []
    assert [fault.check for fault in form.check({"tokens": ["a"], "tags": ["B-ORG"]})] == ["unknown_label"]
    assert [fault.check for fault in form.check({"text": TEXT, "spans": [span(0, 4, "ORG")]})] == ["unknown_label"]
    form.encode(form.normalise({"tokens": ["a"], "tags": ["B-PER"]}))
    assert form.facts.counts == (2, 1, 0, 2, 1)


@pytest.mark.parametrize(
    ("lines", "counts"),
    [
        ([["O"]], {"train:no_entity": 1}),
        ([["B-A"], ["B-A"]], {}),
        ([["B-A"], ["B-A"], ["B-B"]], {"train:rare_label": 1}),
        ([["B-A"]] * 200 + [["B-B"]] * 2, {"train:imbalance": 1}),
    ],
)
def test_what_the_training_data_lacks_is_said(lines: list[list[str]], counts: dict[str, int]) -> None:
    form, findings = make_format(), Findings()
    for tags in lines:
        form.encode({"tokens": ["a"], "tags": tags})
    form.end_of_training_data(findings)

    assert findings.counts() == counts
    assert bool(findings.errors()) == ("train:no_entity" in counts)


@pytest.mark.parametrize(
    ("gold", "predicted", "f1", "accuracy"),
    [
        ([["B-A", "I-A", "O"]], [["B-A", "I-A", "O"]], 1.0, 1.0),
        ([["B-A", "I-A", "O"]], [["B-A", "O", "O"]], 0.0, 2 / 3),
        ([["B-A", "O", "B-B"]], [["B-A", "O", "B-A"]], 0.5, 2 / 3),
        ([["B-A", "O"], ["B-B"]], [["I-A", "O"], ["O"]], 2 / 3, 1 / 3),  # lenient: I- may begin
        ([["O"]], [["O"]], 0.0, 1.0),
    ],
)
def test_entity_f1(gold: list[list[str]], predicted: list[list[str]], f1: float, accuracy: float) -> None:
    assert entity_f1(gold, predicted) == pytest.approx(f1)
    assert word_accuracy(gold, predicted) == pytest.approx(accuracy)


def test_figures_of_each_label() -> None:
    found = by_label([["B-A", "O", "B-B", "B-B"]], [["B-A", "B-A", "B-B", "O"]])

    assert found["A"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "examples": 1}
    assert found["B"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "examples": 2}
    assert set(found) == {"A", "B"}
    assert by_label([["O"]], [["O"]]) == {}


def test_labels_with_hyphens_stay_whole() -> None:
    assert entities(["B-job-title", "I-job-title", "B-job-title"]) == [
        Entity("job-title", 0, 1),
        Entity("job-title", 2, 2),
    ]


@pytest.mark.parametrize(
    ("config", "named", "limit"),
    [
        (BertConfig(max_position_embeddings=64), 128, 64),
        (BertConfig(max_position_embeddings=512), 128, 128),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 10**30, 512),
        (CamembertConfig(max_position_embeddings=514, pad_token_id=1), 10**30, 512),
        (MPNetConfig(max_position_embeddings=514, pad_token_id=1), 10**30, 512),
        (T5Config(), 10**30, windows.UNKNOWN_LIMIT),
    ],
)
def test_how_much_a_model_reads_at_once(config: Any, named: int, limit: int) -> None:
    tokenizer = make_tiny_encoder_tokenizer()
    tokenizer.model_max_length = named

    assert windows.context_limit(config, tokenizer) == limit


@pytest.mark.parametrize("length", [1, 9, 10, 11, 17, 40])
def test_parts_cover_everything_and_overlap(length: int) -> None:
    found = windows.parts(length, 10)

    assert {token for part in found for token in range(*part)} == set(range(length))
    assert all(after - start <= 10 for start, after in found)
    assert all(later[0] <= earlier[1] - 3 for earlier, later in itertools.pairwise(found))


def test_long_texts_are_read_in_windows_and_no_word_is_lost(tmp_path: Path) -> None:
    folder = make_tiny_encoder(tmp_path / "base")
    labels = ("O", "B-A", "I-A")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=3).eval()
    short = words_of_tokens(TOKENS)
    long = words_of_tokens(TOKENS * 40)

    alone = tag_words(model, tokenizer, [short])[0]
    both = tag_words(model, tokenizer, [long, short])

    assert len(windows.lay_out(tokenizer, long.text).input_ids) > 3 * windows.context_limit(model.config, tokenizer)
    assert both[0].seen.all()
    assert both[0].scores.shape == (240, 3)
    assert np.allclose(both[1].scores, alone.scores, atol=1e-5)
    assert len(both[0].tags(labels)) == 240
    assert np.allclose(both[0].probabilities().sum(axis=1), 1)


def test_the_loss_is_the_models_own(tmp_path: Path) -> None:
    """What is measured is what training lowers."""
    folder = make_tiny_encoder(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    form, kind = make_format(tokenizer), TokenClassification()
    examples = [{"tokens": TOKENS, "tags": TAGS}, {"tokens": TOKENS[:2], "tags": TAGS[:2]}]
    rows = [form.encode(example) for example in examples]
    model = AutoModelForTokenClassification.from_pretrained(folder, **kind.model_options(form.facts)).eval()

    measured = kind.measure(model, HeldOut(rows, examples, tokenizer, form.facts, 128, 128))

    with torch.no_grad():
        own = float(model(**collate(rows)).loss)
    assert measured.weight.tolist() == [6, 2]
    assert measured.mean_loss == pytest.approx(own, rel=1e-5)
    assert set(measured.metrics) == {"tokenAccuracy", "entityF1"}
    assert {"PER", "LOC"} <= set(measured.details["labels"])
    assert model.config.id2label == dict(enumerate(form.facts.labels))


def test_people_are_shown_entities(tmp_path: Path) -> None:
    folder = make_tiny_encoder(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    form, kind = make_format(tokenizer), TokenClassification()
    examples = [{"tokens": TOKENS, "tags": TAGS}, {"text": TEXT, "spans": []}]
    rows = [form.encode(example) for example in examples]
    model = AutoModelForTokenClassification.from_pretrained(folder, **kind.model_options(form.facts)).eval()

    asked = list(kind.ask(HeldOut(rows, examples, tokenizer, form.facts, 128, 128)))
    answers = kind.answer(model, tokenizer, asked, facts=form.facts)

    assert [(question.prompt, question.expected) for question in asked] == [
        ("Anna left Bern for New York", "Anna = PER; Bern = LOC; New York = LOC"),
        (TEXT, "(no entity)"),
    ]
    found = tag_words(model, tokenizer, [words_of_tokens(TOKENS)])[0].tags(form.facts.labels)
    assert answers[0].text == rendered(words_of_tokens(TOKENS), found)
    assert answers[0].stopped is None


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    kind, tokenizer = TokenClassification(), make_tiny_encoder_tokenizer()

    kind.require(AutoConfig.from_pretrained(make_tiny_encoder(tmp_path / "base")), tokenizer, "hf://a/b")
    with pytest.raises(UserInputError, match=r"hf://a/b cannot be used to label words: it is a t5"):
        kind.require(T5Config(), tokenizer, "hf://a/b")


def test_facts_are_empty_before_the_data_is_read() -> None:
    assert make_format().facts == Facts(("O",), (0,))
