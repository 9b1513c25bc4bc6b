"""Classification without the stages: what lines become, what is said of bad ones, and that a tiny encoder learns."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_encoders import make_tiny_encoder, make_tiny_encoder_tokenizer
from tests.tiny_models import make_tiny_chat_model, make_tiny_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BartConfig, VitsConfig

from finetune_api.tasks import Metric
from finetune_trainer.data.examples import special_tokens
from finetune_trainer.data.problems import EncodingError, Findings
from finetune_trainer.errors import UserInputError
from finetune_trainer.tasks.classification import Classification, targets
from finetune_trainer.tasks.classification_data import ClassificationFormat, as_label
from finetune_trainer.tasks.classification_text import Layout, batches, padded, share
from finetune_trainer.tasks.kind import Facts, HeldOut, Row
from finetune_trainer.training.device import Device
from finetune_trainer.training.inputs import load_model

KIND = Classification()
BILLING = ("invoice", "refund", "charge", "payment")
DELIVERY = ("parcel", "courier", "box", "shipment")
SUBJECTS = {"billing": BILLING, "delivery": DELIVERY, "login": ("password", "account", "reset", "email")}
FILLERS = ("the", "my", "is", "was", "late", "please", "today", "again", "not", "here")


def topics(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Short texts; one word of each tells its label."""
    random_words = random.Random(seed)
    rows = []
    for index in range(count):
        label = list(SUBJECTS)[index % 3]
        words = [random_words.choice(FILLERS) for _ in range(5)]
        words.insert(random_words.randrange(6), random_words.choice(SUBJECTS[label]))
        rows.append({"text": " ".join(words), "label": label})
    return rows


def new_format(tokenizer: Any = None) -> ClassificationFormat:
    tokenizer = tokenizer or make_tiny_encoder_tokenizer()
    return KIND.example_format(tokenizer, frozenset(), special_tokens(tokenizer))


def read(form: ClassificationFormat, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Row], list[dict[str, Any]]]:
    """What Prepare does with good training data."""
    normal = []
    for row in rows:
        assert [fault for fault in form.check(row) if fault.severity == "error"] == []
        normal.append(form.normalise(row))
    tokens = [form.encode(one) for one in normal]
    form.end_of_training_data(Findings())
    return [form.settled(each) for each in tokens], normal


def checks(form: ClassificationFormat, row: Mapping[str, Any]) -> list[str]:
    return [fault.check for fault in form.check(row)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a", "label": "x"}, []),
        ({"text": "a", "label": 3}, []),
        ({"text": "a", "label": False}, []),
        ({"text": "a", "label": 1.0}, []),
        ({"text": "a", "label": ["x", "y"]}, []),
        ({"text": "a", "label": []}, []),
        ({"text": "a", "text_pair": "b", "label": "x"}, []),
        ({"text": "a", "text_pair": None, "label": "x"}, []),
        ({"label": "x"}, ["missing_text"]),
        ({"text": "a"}, ["missing_label"]),
        ({"text": "a", "label": None}, ["missing_label"]),
        ({"text": 3, "label": "x"}, ["text_type"]),
        ({"text": None, "label": "x"}, ["text_type"]),
        ({"text": " \n", "label": "x"}, ["empty_text"]),
        ({"text": "a", "text_pair": "", "label": "x"}, ["empty_text_pair"]),
        ({"text": "a", "text_pair": ["b"], "label": "x"}, ["text_pair_type"]),
        ({"text": "a", "label": " "}, ["empty_label"]),
        ({"text": "a", "label": ["x", ""]}, ["empty_label"]),
        ({"text": "a", "label": {"name": "x"}}, ["label_type"]),
        ({"text": "a", "label": ["x", None]}, ["label_type"]),
        ({"text": "a", "label": 0.5}, ["label_fraction"]),
        ({"text": "a", "label": "word " * 50}, ["long_label"]),
        ({"text": "a", "label": ["x", "x"]}, ["label_twice"]),
        ({"text": "a", "label": "x", "id": 7}, ["unknown_key"]),
        ({"messages": []}, ["wrong_task"]),
    ],
)
def test_every_fault_of_a_line_has_its_check(row: dict[str, Any], expected: list[str]) -> None:
    assert checks(new_format(), row) == expected


def test_every_fault_says_the_remedy() -> None:
    said = {fault.check: fault.message for fault in new_format().check({"label": None, "text": ""})}
    assert "remove the line" in said["missing_label"]
    assert "give it words" in said["empty_text"]
    assert "spec.dataset.columns: {text: NAME}" in new_format().check({"label": "x"})[0].message


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"label": "x"}, {"label": ["x"]}, ["mixed_labels"]),
        ({"label": ["x"]}, {"label": "x"}, ["mixed_labels"]),
        ({"label": "x", "text_pair": "b"}, {"label": "x"}, ["mixed_pairs"]),
        ({"label": "x"}, {"label": "x", "text_pair": "b"}, ["mixed_pairs"]),
    ],
)
def test_all_lines_have_the_form_of_the_first(first: Any, second: Any, expected: list[str]) -> None:
    form = new_format()
    assert checks(form, {"text": "a", **first}) == []
    assert checks(form, {"text": "a", **second}) == expected
    assert checks(form, {"text": "a", **first}) == []


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"label": "x"}, {"label": "y"}, ["contradiction"]),
        ({"label": "1"}, {"label": 1}, []),
        ({"label": ["x", "y"]}, {"label": ["y", "x"]}, []),
        ({"label": ["x", "y"]}, {"label": ["y"]}, ["contradiction"]),
        ({"label": "x", "text_pair": "b"}, {"label": "y", "text_pair": "c"}, []),
    ],
)
def test_one_text_with_two_labels_is_noticed(first: Any, second: Any, expected: list[str]) -> None:
    form = new_format()
    assert checks(form, {"text": "a", **first}) == []
    assert checks(form, {"text": "a", **second}) == expected
    assert checks(form, {"text": "a", **first}) == []


def test_labels_are_numbered_in_order_whatever_the_order_of_the_lines() -> None:
    form = new_format()
    rows, normal = read(form, [{"text": "a", "label": label} for label in ("10", "spam", 9, "ham", "10 ", True)])
    assert form.facts == Facts(("9", "10", "ham", "spam", "true"), (1, 2, 1, 1, 1))
    assert [row["labels"][0] for row in rows] == [1, 3, 0, 2, 1, 4]
    assert [row["label"] for row in normal] == ["10", "spam", "9", "ham", "10", "true"]
    assert list(form.settled(form.encode({"text": "a", "label": "ham"}))["labels"]) == [2]


def test_several_labels_and_none() -> None:
    form = new_format()
    rows, normal = read(form, [{"text": "a", "label": ["b", "a", "b"]}, {"text": "a", "label": []}])
    assert form.facts == Facts(("a", "b"), (1, 1), multi_label=True)
    assert [list(row["labels"]) for row in rows] == [[0, 1], []]
    assert normal[0]["label"] == ["b", "a"]
    assert [form.learned(row) for row in rows] == [1, 1]
    assert targets(rows, form.facts).tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_a_label_that_only_the_held_out_data_has_is_refused() -> None:
    form = new_format()
    read(form, [{"text": "a", "label": "spam"}, {"text": "b", "label": "ham"}])
    with pytest.raises(
        EncodingError, match=r"'eggs' does not occur in the training data.*known: 'ham', 'spam'"
    ) as found:
        form.encode({"text": "a", "label": "eggs"})
    assert (found.value.check, found.value.where) == ("unknown_label", "label")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["x"] * 5, {"one_label": "error"}),
        ([["x"]] * 5 + [[]] * 5, {}),
        ([[], []], {"one_label": "error"}),
        (["x"] * 5 + ["y"] * 5, {}),
        (["x"] * 5 + ["y"] * 5 + ["z"], {"rare_label": "warning"}),
        (["x"] * 96 + ["y"] * 4, {"imbalance": "warning"}),
        (["Spam"] * 4 + ["spam"] * 4, {"labels_alike": "warning"}),
        (["caf\u00e9"] * 4 + ["cafe\u0301"] * 4, {"labels_alike": "warning"}),
        ([f"t{index}" for index in range(30)], {"many_labels": "warning", "rare_label": "warning"}),
        ([], {}),
    ],
)
def test_what_the_labels_together_say(labels: list[Any], expected: dict[str, str]) -> None:
    form = new_format()
    for index, label in enumerate(labels):
        row = {"text": f"text {index}", "label": label}
        assert form.check(row) == []
        form.encode(form.normalise(row))
    findings = Findings()
    form.end_of_training_data(findings)
    assert {found.fault.check: found.fault.severity for found in findings.sorted()} == expected


def test_no_message_shows_a_label_that_may_be_private() -> None:
    form = new_format()
    for label in ("Anna Meier, Bern", "x", "x"):
        form.encode({"text": "a", "label": label})
    findings = Findings()
    form.end_of_training_data(findings)
    assert "Anna" not in " ".join(found.message for found in findings.sorted())


@pytest.mark.parametrize(
    ("label", "written"), [(True, "true"), (False, "false"), (1, "1"), (2.0, "2"), (" a b ", "a b")]
)
def test_a_label_is_written_one_way(label: Any, written: str) -> None:
    assert as_label(label) == written


def test_a_cut_keeps_the_special_tokens_and_cuts_the_longer_text() -> None:
    tokenizer = make_tiny_encoder_tokenizer(["a b c d e f g h"])
    form = new_format(tokenizer)
    line = {"text": "a b c d e f", "text_pair": "g h", "label": "x"}
    rows, _ = read(form, [line])
    assert form.cut(rows[0], 11) is rows[0]

    def words(most: int) -> str:
        cut = form.cut(rows[0], most)
        assert cut is not None
        assert {len(cut["input_ids"]), len(cut["token_type_ids"])} == {most}
        assert cut["labels"] == rows[0]["labels"]
        assert sum(cut["token_type_ids"]) == 1 + len(tokenizer.decode(cut["input_ids"]).split("[SEP]")[1].split())
        return str(tokenizer.decode(cut["input_ids"]))

    assert words(10) == "[CLS] a b c d e [SEP] g h [SEP]"
    assert words(7) == "[CLS] a b [SEP] g h [SEP]"
    assert words(5) == "[CLS] a [SEP] g [SEP]"
    assert form.cut(rows[0], 4) is None


def test_one_text_is_cut_at_its_end() -> None:
    tokenizer = make_tiny_encoder_tokenizer(["a b c d e f"])
    form = new_format(tokenizer)
    rows, _ = read(form, [{"text": "a b c d e f", "label": "x"}])
    cut = form.cut(rows[0], 5)
    assert cut is not None
    assert tokenizer.decode(cut["input_ids"]) == "[CLS] a b c [SEP]"
    assert form.cut(rows[0], 2) is None


def test_a_tokenizer_without_special_tokens_joins_two_texts_by_a_line_end() -> None:
    tokenizer = make_tiny_tokenizer()
    assert Layout.of(tokenizer) == Layout((), (), ())
    form = new_format(tokenizer)
    rows, _ = read(form, [{"text": "one", "text_pair": "two", "label": "x"}])
    assert tokenizer.decode(rows[0]["input_ids"]) == "one\ntwo"
    cut = form.cut(rows[0], 2)
    assert cut is not None
    assert list(cut["input_ids"]) == list(rows[0]["input_ids"][:2])


@pytest.mark.parametrize(
    ("one", "two", "room", "expected"),
    [(5, 5, 10, (5, 5)), (9, 2, 6, (4, 2)), (2, 9, 6, (2, 4)), (9, 9, 7, (3, 4)), (9, 3, 7, (4, 3)), (1, 1, 2, (1, 1))],
)
def test_room_is_taken_from_the_longer_text(one: int, two: int, room: int, expected: tuple[int, int]) -> None:
    assert share(one, two, room) == expected


@given(one=st.integers(1, 12), two=st.integers(0, 12), most=st.integers(0, 30))
def test_a_cut_fits_and_keeps_all_special_tokens_and_some_of_each_text(one: int, two: int, most: int) -> None:
    layout = Layout(prefix=(101,), middle=(102, 102), suffix=(103,))
    second = [*layout.middle, *[2] * two] if two else []
    ids = [*layout.prefix, *[1] * one, *second, *layout.suffix]
    kept = layout.kept(ids, most, pair=bool(two))
    if kept is None:
        assert most < len(ids) - one - two + (2 if two else 1)
        return
    left = [ids[at] for at in kept]
    assert kept == sorted(set(kept))
    assert len(left) <= max(most, 0)
    assert len(left) == min(most, len(ids)), "room was left unused"
    assert [token for token in left if token > 100] == [token for token in ids if token > 100]
    assert left.count(1) >= 1
    assert left.count(2) >= min(1, two)


def test_batches_bound_the_padded_tokens_and_leave_nothing_out() -> None:
    lengths = [4000, 10, 4100, 3000, 9000, 10]
    found = list(batches(lengths))
    assert sorted(index for batch in found for index in batch) == list(range(6))
    assert all(len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 8192 for batch in found)
    assert found[0] == [4]


@pytest.mark.parametrize("config", [BartConfig(), VitsConfig()])
def test_a_base_that_cannot_classify_is_refused(config: Any) -> None:
    with pytest.raises(UserInputError, match="cannot be used for Classification") as found:
        KIND.require(config, make_tiny_tokenizer(), "hub/name")
    assert "BERT" in found.value.advice


def test_encoders_and_decoders_are_taken(tmp_path: Path) -> None:
    for folder in (make_tiny_encoder(tmp_path / "encoder"), make_tiny_chat_model(tmp_path / "decoder")):
        KIND.require(AutoConfig.from_pretrained(folder), make_tiny_tokenizer(), "hub/name")


def _load(folder: Path, facts: Facts) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, **KIND.model_options(facts))


def _train(model: Any, rows: Sequence[Row], facts: Facts, pad: int, *, steps: int, lr: float) -> None:
    torch.manual_seed(0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    model.train()
    for step in range(steps):
        batch = [rows[(step * 16 + at) % len(rows)] for at in range(16)]
        loss = model(**_inputs(model, padded(batch, pad)), labels=targets(batch, facts)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _inputs(model: Any, columns: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for name, tensor in columns.items()
        if name != "token_type_ids" or model.config.model_type == "bert"
    }


def _several(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Texts about two subjects or one, with a list of labels."""
    joined = []
    for index, row in enumerate(rows):
        other = rows[(index * 7 + 1) % len(rows)]
        both = index % 2 == 0
        joined.append(
            {
                "text": f"{row['text']} {other['text']}" if both else row["text"],
                "label": sorted({row["label"], other["label"]}) if both else [row["label"]],
            }
        )
    return joined


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
def test_a_tiny_encoder_learns_and_is_measured_as_the_trainer_measures(tmp_path: Path, several: bool) -> None:
    data = _several(topics(240)) if several else topics(240)
    folder = make_tiny_encoder(tmp_path / "base", texts=[row["text"] for row in data])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    form = new_format(tokenizer)
    rows, normal = read(form, data[:192])
    held_rows = [form.settled(form.encode(form.normalise(row))) for row in data[192:]]
    held = HeldOut(held_rows, [form.normalise(row) for row in data[192:]], tokenizer, form.facts, 128, 128)
    model = _load(folder, form.facts).eval()
    before = KIND.measure(model, held)
    _train(model, rows, form.facts, tokenizer.pad_token_id, steps=60, lr=3e-3)
    after = KIND.measure(model, held)
    assert after.metrics[Metric.ACCURACY] > 0.9 > before.metrics[Metric.ACCURACY]
    assert after.mean_loss < before.mean_loss
    with torch.no_grad():
        theirs = model(**padded(held_rows, tokenizer.pad_token_id), labels=targets(held_rows, form.facts)).loss
    assert after.mean_loss == pytest.approx(float(theirs), rel=1e-5)
    questions = list(KIND.ask(held))
    answers = KIND.answer(model, tokenizer, questions, facts=form.facts)
    assert sum(q.expected in a.text for q, a in zip(questions, answers, strict=True)) > 0.9 * len(questions) or several
    assert answers[0].text.startswith(tuple(form.facts.labels))
    details = after.details
    assert list(details["labels"]) == ["billing", "delivery", "login"]
    assert np.asarray(details["confusion"]).shape == ((3, 2, 2) if several else (3, 3))
    assert normal[0]["text"] == data[0]["text"]


@pytest.mark.parametrize("pad", ["pad", None])
def test_a_decoder_classifies_rows_of_unequal_length_as_it_does_alone(tmp_path: Path, pad: str | None) -> None:
    """Llama finds the last token of a text by the padding after it."""
    folder = make_tiny_chat_model(tmp_path / "base", **({} if pad else {"pad_token_id": None}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if pad is None:
        tokenizer.pad_token = None
    facts = Facts(("a", "b", "c"), (1, 1, 1))
    model = _load(folder, facts).eval()
    form = new_format(tokenizer)
    rows = [form.encode({"text": text, "label": "a"}) for text in ("The harbour is quiet.", "Spring", "a b c d")]
    together = KIND.scores(model, tokenizer, rows)
    alone = np.concatenate([KIND.scores(model, tokenizer, [row]) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-3)


def test_weights_that_disagree_with_the_configuration_are_refused_but_for_a_head(
    tmp_path: Path,
) -> None:
    """transformers would begin with random embeddings, and only log it."""
    base, folder = make_tiny_encoder(tmp_path / "base"), tmp_path / "classifier"
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=5).save_pretrained(folder)
    device, facts = Device("cpu", "float32", "CPU"), Facts(("a", "b"), (1, 1))
    assert load_model(folder, device, KIND, facts).fresh == ("classifier",)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "vocab_size": settings["vocab_size"] + 8}))
    with pytest.raises(UserInputError, match=r"word_embeddings.weight has another shape"):
        load_model(folder, device, KIND, facts)
