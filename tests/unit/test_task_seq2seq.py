"""Seq2Seq without the stages: data to tokens, loss, training steps, and what the model writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.tiny_models import make_tiny_chat_model
from tests.tiny_seq2seq import make_tiny_seq2seq, make_tokenizer, pairs
from tests.trained_runs import one_thread
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    PreTrainedTokenizerFast,
    WhisperConfig,
)

from finetune_api.spec import MethodSpec
from finetune_api.status import ResolvedValues
from finetune_api.tasks import Metric
from finetune_trainer.data.problems import EncodingError, Findings
from finetune_trainer.errors import UserInputError
from finetune_trainer.estimate import measure_shape
from finetune_trainer.tasks.kind import Facts, HeldOut, TrainerParts
from finetune_trainer.tasks.seq2seq import Seq2Seq
from finetune_trainer.tasks.seq2seq_data import Seq2SeqFormat
from finetune_trainer.tasks.seq2seq_scoring import batches, score
from finetune_trainer.tasks.seq2seq_steps import first_tokens, write
from finetune_trainer.training.progress import ProgressCallback
from finetune_trainer.training.stopping import StopRequest

FAMILIES = ("t5", "bart")
NO_SPECIAL = re.compile(r"(?!)")


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Any:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("seq2seq")
    return {family: make_tiny_seq2seq(root / family, family) for family in FAMILIES}


def loaded(folder: Path) -> tuple[Any, Any]:
    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def held_out(tokenizer: Any, count: int, offset: int = 0) -> HeldOut:
    examples = pairs(count, offset)
    form = Seq2SeqFormat(tokenizer, NO_SPECIAL)
    rows = [{name: list(ids) for name, ids in form.encode(example).items()} for example in examples]
    return HeldOut(rows, examples, tokenizer, Facts(), max_length=64, context=64)


def word_tokenizer(words: str, template: str | None) -> PreTrainedTokenizerFast:
    vocabulary = {word: at for at, word in enumerate(["<pad>", "</s>", "<unk>", "<de>", *words.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        special = [(token, vocabulary[token]) for token in ("</s>", "<de>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


# --- tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_each_side_has_its_own_length_and_the_ends_that_the_model_knows(family: str) -> None:
    tokenizer = make_tokenizer(family)
    tokens = Seq2SeqFormat(tokenizer, NO_SPECIAL).encode({"source": "the red cat sleeps", "target": "le chat"})
    begin = [tokenizer.bos_token_id] if family == "bart" else []
    assert list(tokens["labels"]) == [
        *begin,
        *tokenizer("le chat", add_special_tokens=False)["input_ids"],
        1 + len(begin),
    ]
    assert tokens["input_ids"][-1] == tokenizer.eos_token_id
    assert len(tokens["input_ids"]) != len(tokens["labels"])
    assert Seq2SeqFormat(tokenizer, NO_SPECIAL).learned(tokens) == len(tokens["labels"])


def test_a_target_is_ended_where_the_tokenizer_ends_nothing() -> None:
    tokens = Seq2SeqFormat(word_tokenizer("red cat", None), NO_SPECIAL).encode({"source": "cat", "target": "red cat"})
    assert {name: list(ids) for name, ids in tokens.items()} == {"input_ids": [5], "labels": [4, 5, 1]}


# (tokenizer's template, max_length, source after the cut, target after it); a..f are 4..9
CUTS = [
    ("$A </s>", 7, None, None),
    ("$A </s>", 4, [4, 5, 6, 1], [9, 8, 1]),
    ("$A </s>", 2, [4, 1], [9, 1]),
    ("$A </s> <de>", 4, [4, 5, 1, 3], [9, 8, 1, 3]),
    ("<de> $A </s>", 4, [3, 4, 5, 1], [3, 9, 8, 1]),
    (None, 4, [4, 5, 6, 7], [9, 8, 1]),
]


@pytest.mark.parametrize(("template", "length", "source", "target"), CUTS)
def test_a_cut_takes_from_the_end_of_the_text_and_keeps_what_ends_it(
    template: str | None, length: int, source: list[int] | None, target: list[int] | None
) -> None:
    form = Seq2SeqFormat(word_tokenizer("a b c d e f", template), NO_SPECIAL)
    tokens = form.encode({"source": "a b c d e f", "target": "f e"})
    cut = form.cut(tokens, length)
    if source is None:
        assert cut is tokens
    else:
        assert cut is not None
        assert {name: list(ids) for name, ids in cut.items()} == {"input_ids": source, "labels": target}


def test_nothing_is_left_of_an_example_when_there_is_room_for_the_ends_only() -> None:
    form = Seq2SeqFormat(word_tokenizer("a b", "<de> $A </s>"), NO_SPECIAL)
    tokens = form.encode({"source": "a b", "target": "b a"})
    assert form.cut(tokens, 2) is None
    assert form.cut(tokens, 3) is not None


def test_a_text_of_which_the_tokenizer_makes_nothing_is_refused() -> None:
    form = Seq2SeqFormat(word_tokenizer("a", "$A </s>"), NO_SPECIAL)
    with pytest.raises(EncodingError, match="makes nothing of `target`") as caught:
        form.encode({"source": "a", "target": "\u2003"})
    assert (caught.value.check, caught.value.where) == ("no_target_tokens", "target")


@pytest.mark.parametrize(("targets", "severity"), [(["a", "a", "a ж"], "warning"), (["ж", "a"], "error")])
def test_targets_that_the_vocabulary_cannot_write_are_counted(targets: list[str], severity: str) -> None:
    form = Seq2SeqFormat(word_tokenizer("a", "$A </s>"), NO_SPECIAL)
    for target in targets:
        form.encode({"source": "a", "target": target})
    findings = Findings()
    form.end_of_training_data(findings)
    (finding,) = findings.sorted()
    assert (finding.fault.check, finding.fault.severity) == ("unknown_characters", severity)
    assert f"1 of {len(targets)} targets" in finding.message


# --- models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_estimate_knows_the_layers_of_both_sides(folders: dict[str, Path], family: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders[family])
    shape = measure_shape(folders[family], Seq2Seq(), MethodSpec(), tokenizer, "hf://a/b")
    assert (shape.layers, shape.width) == (4, 32)
    assert 0 < shape.trainable < shape.parameters


def test_a_model_without_an_encoder_is_refused_with_the_task_that_fits_it(tmp_path: Path) -> None:
    folder = make_tiny_chat_model(tmp_path)
    with pytest.raises(UserInputError, match="no encoder and decoder, it is a llama model") as caught:
        Seq2Seq().require(AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), "hf://a/b")
    assert caught.value.reason == "ModelInvalid"
    assert "spec.task to Completion and dataset.columns to {prompt: source, completion: target}" in caught.value.advice


def test_an_encoder_decoder_that_hears_is_refused() -> None:
    with pytest.raises(UserInputError, match="does not turn text into text"):
        Seq2Seq().require(WhisperConfig(), make_tokenizer("t5"), "hf://a/b")


def test_a_tokenizer_of_many_languages_must_say_which(folders: dict[str, Path]) -> None:
    tokenizer, config = make_tokenizer("bart"), AutoConfig.from_pretrained(folders["bart"])
    tokenizer.set_tgt_lang_special_tokens = lambda language: None
    tokenizer.src_lang = "en_XX"
    with pytest.raises(UserInputError, match="tgt_lang not set") as caught:
        Seq2Seq().require(config, tokenizer, "hf://a/b")
    assert "tokenizer_config.json" in caught.value.advice
    tokenizer.tgt_lang = "fr_XX"
    Seq2Seq().require(config, tokenizer, "hf://a/b")


LETTERS = [(letter, -5.0) for letter in "acdeghlortu"]
PIECES = [*((token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")), ("\u2581", -2.0), *LETTERS]

# (tokenizer, tokens of a source, of a target, before an answer) with single letters, which all models know
LANGUAGES = [
    (MBartTokenizer, ["\u2581", "c", "</s>", "en_XX"], ["\u2581", "c", "</s>", "fr_XX"], ["fr_XX"]),
    (MBart50Tokenizer, ["en_XX", "\u2581", "c", "</s>"], ["fr_XX", "\u2581", "c", "</s>"], ["</s>", "fr_XX"]),
]


@pytest.mark.parametrize(("kind", "source", "target", "first"), LANGUAGES)
def test_models_of_many_languages_write_the_one_that_their_tokenizer_names(
    tmp_path: Path, kind: Any, source: list[str], target: list[str], first: list[str]
) -> None:
    kind(vocab=PIECES, src_lang="en_XX", tgt_lang="fr_XX").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = MBartConfig(vocab_size=len(tokenizer), encoder_attention_heads=2, decoder_attention_heads=2, **sizes)
    Seq2Seq().require(config, tokenizer, "hf://a/b")
    form = Seq2SeqFormat(tokenizer, NO_SPECIAL)
    tokens = form.encode({"source": "c", "target": "c"})
    assert tokenizer.convert_ids_to_tokens(list(tokens["input_ids"])) == source
    assert tokenizer.convert_ids_to_tokens(list(tokens["labels"])) == target
    again = form.encode({"source": "c", "target": "c"})
    assert again == tokens, "a tokenizer that has changed its language must change back"
    model = MBartForConditionalGeneration(config)
    assert tokenizer.convert_ids_to_tokens(first_tokens(model, tokenizer)) == first
    cut = form.cut(form.encode({"source": "c", "target": "c d e c d e"}), 5)
    assert cut is not None
    ends = [token for token in target if token in ("</s>", "fr_XX")][-1]
    assert tokenizer.convert_ids_to_tokens(int(cut["labels"][-1])) == ends


def test_marian_reads_one_language_and_writes_another(folders: dict[str, Path], tmp_path: Path) -> None:
    model, tokenizer = loaded(make_tiny_seq2seq(tmp_path, "marian"))
    assert not tokenizer.is_fast
    tokens = Seq2SeqFormat(tokenizer, NO_SPECIAL).encode({"source": "the cat", "target": "le chat"})
    assert tokenizer.convert_ids_to_tokens(list(tokens["input_ids"])) == ["\u2581the", "\u2581cat", "</s>"]
    assert tokenizer.convert_ids_to_tokens(list(tokens["labels"])) == ["\u2581le", "\u2581chat", "</s>"]
    assert first_tokens(model, tokenizer) == [tokenizer.pad_token_id]
    assert tokenizer.pad_token_id not in write(model, tokenizer, [list(tokens["input_ids"])], 8)[0]


@pytest.mark.parametrize(("family", "first"), [("t5", ["<pad>"]), ("bart", ["</s>", "<s>"])])
def test_an_answer_begins_as_the_targets_do_in_training(
    folders: dict[str, Path], family: str, first: list[str]
) -> None:
    model, tokenizer = loaded(folders[family])
    assert tokenizer.convert_ids_to_tokens(first_tokens(model, tokenizer)) == first


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_transformers_without_beams_and_alone_as_in_a_batch(
    folders: dict[str, Path], family: str
) -> None:
    model, tokenizer = loaded(folders[family])
    sources = [row["input_ids"] for row in held_out(tokenizer, 6).rows] + [tokenizer("the cat")["input_ids"]]
    together = write(model, tokenizer, sources, 12)
    first = first_tokens(model, tokenizer)
    for source, ids in zip(sources, together, strict=True):
        assert write(model, tokenizer, [source], 12) == [ids]
        expected = model.generate(
            input_ids=torch.tensor([source]),
            decoder_input_ids=torch.tensor([first]),
            max_new_tokens=12,
            num_beams=1,
            do_sample=False,
            forced_eos_token_id=None,
            suppress_tokens=[tokenizer.pad_token_id, *range(len(tokenizer), model.config.vocab_size)],
        )
        assert expected[0, len(first) :].tolist() == ids


def test_who_has_ended_leaves_the_batch_and_the_others_go_on(folders: dict[str, Path]) -> None:
    model, tokenizer = loaded(folders["bart"])
    sources = [tokenizer(text)["input_ids"] for text in ("the red red wolf", "the", "cat sings", "le chat rouge")]
    before = [write(model, tokenizer, [source], 12)[0] for source in sources]
    at, end = next(
        (at, token)
        for at, token in enumerate(before[1])
        if at < 11 and all(token not in ids[: at + 1] for ids in before[2:])
    )
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    together = write(model, tokenizer, sources, 12)
    assert together[1] == before[1][: at + 1]
    assert max(map(len, together)) > at + 1, "the others must go on"
    assert together == [write(model, tokenizer, [source], 12)[0] for source in sources]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_transformers_whatever_the_batches(folders: dict[str, Path], family: str) -> None:
    model, tokenizer = loaded(folders[family])
    data = held_out(tokenizer, 5)
    rows = [*data.rows, {"input_ids": data.rows[0]["input_ids"][:2], "labels": data.rows[1]["labels"] * 3}]
    found = score(model, rows)
    for row, loss, weight in zip(rows, found.loss, found.tokens, strict=True):
        batch = {name: torch.tensor([ids]) for name, ids in row.items()}
        assert weight == len(row["labels"])
        assert loss == pytest.approx(model(**batch).loss.item() * weight, rel=1e-5)
    measured = Seq2Seq().measure(model, data)
    assert measured.mean_loss == pytest.approx(found.loss[:5].sum() / found.tokens[:5].sum())
    assert set(measured.metrics) == {Metric.PERPLEXITY, Metric.TOKEN_ACCURACY}


def test_batches_are_bounded_by_tokens_and_by_scores_and_leave_nothing_out() -> None:
    rows = [{"input_ids": [1] * (1 + 37 * at % 900), "labels": [1] * (1 + 91 * at % 300)} for at in range(60)]
    vocabulary = 250_000
    found = list(batches(rows, vocabulary))
    assert sorted(index for batch in found for index in batch) == list(range(60))
    for batch in (batch for batch in found if len(batch) > 1):
        source, target = (max(len(rows[index][name]) for index in batch) for name in ("input_ids", "labels"))
        assert len(batch) * (source + target) <= 8192
        assert len(batch) * target * vocabulary * 4 <= 2**28


def test_a_request_to_stop_ends_the_measurement_between_batches(folders: dict[str, Path]) -> None:
    def stop() -> None:
        raise InterruptedError

    model, tokenizer = loaded(folders["t5"])
    data = held_out(tokenizer, 2)
    for work in (Seq2Seq().measure, Seq2Seq().generated):
        with pytest.raises(InterruptedError):
            work(model, data, between_batches=stop)


# --- training ------------------------------------------------------------------------------------------------


def trained(folder: Path, root: Path, micro: int, accumulation: int) -> dict[str, torch.Tensor]:
    """Weights after three optimizer steps of 8 examples, the targets of different lengths."""
    model, tokenizer = loaded(folder)
    rows = held_out(tokenizer, 24).rows
    rows = [{**row, "labels": row["labels"][-(1 + at % 5) :]} for at, row in enumerate(rows)]
    required = [name for name, field in ResolvedValues.model_fields.items() if field.is_required()]
    values = dict.fromkeys(required, 0) | {"precision": "float32", "packing": False}
    parts = TrainerParts(
        model=model,
        tokenizer=tokenizer,
        resolved=ResolvedValues.model_validate(values),
        arguments={
            "output_dir": str(root),
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 3,
            "learning_rate": 0.1,
            "optim": "sgd",  # Adam would hide a gradient of the wrong size
            "max_grad_norm": 1e9,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
        },
        train=Dataset.from_list(rows),
        validation=Dataset.from_list(rows[:2]),
        facts=Facts(),
        base_dir=folder,
        extra={
            "measure": lambda *_: None,
            "progress": ProgressCallback(root / "progress.json", 0),
            "stop": StopRequest(),
            "resumed": None,
        },
    )
    trainer = Seq2Seq().trainer(parts)
    trainer.train()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_the_same_in_one_pass_as_in_four(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    """The stock trainer's steps would be four times as large, and weigh short targets more than long ones."""
    whole, split = trained(folders[family], tmp_path, 8, 1), trained(folders[family], tmp_path, 2, 4)
    before = loaded(folders[family])[0].state_dict()
    moved = max((whole[name] - before[name]).abs().max() for name in whole)
    assert moved > 1e-3
    assert max((whole[name] - split[name]).abs().max() for name in whole) < 1e-3 * moved


# --- what is said of the texts -------------------------------------------------------------------------------


def test_answers_are_read_measured_and_in_order(folders: dict[str, Path]) -> None:
    model, tokenizer = loaded(folders["bart"])
    data, kind = held_out(tokenizer, 20), Seq2Seq()
    questions = list(kind.ask(data))
    assert (questions[3].prompt, questions[3].expected) == (data.examples[3]["source"], data.examples[3]["target"])
    answers = kind.answer(model, tokenizer, questions, facts=data.facts)
    for question, answer in zip(questions, answers, strict=True):
        assert answer.length <= 2 * max(len(row["labels"]) for row in data.rows) + 16
        (ids,) = write(model, tokenizer, [question.row["input_ids"]], answer.length + 1)
        assert tokenizer.decode(ids[: answer.length], skip_special_tokens=True).strip() == answer.text
    assert set(kind.generated(model, data)) == {Metric.BLEU, Metric.CHRF, Metric.ROUGE_L}


def test_the_toy_language_says_each_thing_once() -> None:
    assert len({json.dumps(pair) for pair in pairs(120)}) == 120
