"""Preference without the stages: lines to tokens, the loss by hand, TRL's steps, and what auto becomes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tests.tiny_models import make_tiny_chat_model, make_tiny_tokenizer
from tests.trained_runs import RESOLVED, one_thread
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM

from finetune_api.run_config import RunConfig, RunPaths
from finetune_api.spec import (
    BaseModelSpec,
    DatasetSpec,
    EvaluationSpec,
    Hyperparameters,
    MethodSpec,
    MethodType,
    Task,
    TrainData,
)
from finetune_api.status import ResolvedValues
from finetune_api.tasks import Metric
from finetune_trainer.data.examples import special_tokens
from finetune_trainer.data.problems import EncodingError
from finetune_trainer.errors import UserInputError
from finetune_trainer.estimate import ModelShape
from finetune_trainer.messages import TemplateAbilities
from finetune_trainer.resolve import DataSizes, Resolution, resolve
from finetune_trainer.tasks.kind import Facts, HeldOut, TrainerParts
from finetune_trainer.tasks.preference import Preference, PreferenceFormat
from finetune_trainer.tasks.preference_data import check_preference
from finetune_trainer.tasks.preference_scoring import log_probabilities, preferences
from finetune_trainer.training.dpo import DpoTrainer
from finetune_trainer.training.progress import ProgressCallback
from finetune_trainer.training.stopping import StopRequest

ABILITIES = TemplateAbilities()
USER = {"role": "user", "content": "Is Oslo nice?"}
YES, NO = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No, it rains."}
OPENAI = {"input": {"messages": [USER]}, "preferred_output": [YES], "non_preferred_output": [NO]}
TEXTS = {"prompt": "Is Oslo nice?", "chosen": "Yes.", "rejected": "No, it rains."}
NORMAL = {"messages": [USER], "chosen": YES, "rejected": NO}


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    with one_thread():
        yield


# --- tokens --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def form() -> PreferenceFormat:
    tokenizer = make_tiny_tokenizer()
    found = Preference().example_format(tokenizer, frozenset({tokenizer.eos_token_id}), special_tokens(tokenizer))
    assert isinstance(found, PreferenceFormat)
    return found


def decoded(form: PreferenceFormat, line: dict[str, Any]) -> dict[str, str]:
    tokens = form.encode(form.normalise(line))
    return {name: form.masker.tokenizer.decode(list(ids)) for name, ids in tokens.items()}


def test_the_model_reads_what_the_server_writes(form: PreferenceFormat) -> None:
    earlier = [USER, YES, {"role": "user", "content": "Why?"}]
    found = decoded(form, {**OPENAI, "input": {"messages": earlier}})
    assert found["prompt_ids"] == form.masker.tokenizer.apply_chat_template(
        earlier, tokenize=False, add_generation_prompt=True
    )
    assert (found["chosen_ids"], found["rejected_ids"]) == ("Yes.<|end|>", "No, it rains.<|end|>")
    assert found["input_ids"] == found["prompt_ids"] + found["rejected_ids"]  # the longer one


def test_what_follows_the_end_of_turn_is_no_answer(form: PreferenceFormat) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|end|>'", "'<|end|>\\n'")
    other = Preference().example_format(tokenizer, frozenset({tokenizer.eos_token_id}), form.special)
    assert decoded(other, OPENAI)["chosen_ids"] == "Yes.<|end|>"
    assert decoded(other, OPENAI)["prompt_ids"] == "<|user|>Is Oslo nice?<|end|>\n<|assistant|>"


def test_a_token_across_the_border_is_the_answers(form: PreferenceFormat) -> None:
    """The template ends the prompt with a letter that begins a word of one of the two answers."""
    tokenizer = make_tiny_tokenizer(["The harbour. The boats. The sun."])
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|assistant|>'", "'<|assistant|>T'").replace(
        "message['role'] ~ '|>'", "message['role'] ~ ('|>T' if message['role'] == 'assistant' else '|>')"
    )
    other = Preference().example_format(tokenizer, frozenset({tokenizer.eos_token_id}), form.special)
    line = {"prompt": "Where?", "chosen": "he harbour", "rejected": "Quite"}
    found = decoded(other, line)
    assert found["prompt_ids"] == "<|user|>Where?<|end|><|assistant|>"
    assert found["prompt_ids"] + found["chosen_ids"] == "<|user|>Where?<|end|><|assistant|>The harbour<|end|>"
    assert found["prompt_ids"] + found["rejected_ids"] == "<|user|>Where?<|end|><|assistant|>TQuite<|end|>"


def test_answers_that_the_template_makes_alike(form: PreferenceFormat) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content'] ~", "message['content'] | trim ~")
    other = Preference().example_format(tokenizer, frozenset({tokenizer.eos_token_id}), form.special)
    line = {**TEXTS, "rejected": "Yes. "}
    assert check_preference(line, ABILITIES) == []
    with pytest.raises(EncodingError, match="writes both answers alike") as caught:
        other.encode(other.normalise(line))
    assert (caught.value.check, caught.value.where) == ("equal_outputs", "rejected")


def test_the_cut(form: PreferenceFormat) -> None:
    tokens = form.encode(NORMAL)
    prompt, chosen, rejected = (len(tokens[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    assert chosen < rejected
    assert form.learned(tokens) == rejected
    assert form.cut(tokens, prompt + rejected) is tokens
    cut = form.cut(tokens, prompt + chosen)
    assert cut is not None
    assert {name: len(ids) for name, ids in cut.items()} == {
        "input_ids": prompt + chosen,
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": chosen,
    }
    assert form.learned(cut) == chosen
    assert form.cut(tokens, prompt + 1) is not None  # the first tokens differ
    assert form.cut(tokens, prompt) is None
    assert form.cut(tokens, 3) is None
    alike = form.encode({**NORMAL, "rejected": {**NO, "content": "Yes. And no."}})
    assert form.cut(alike, prompt + 1) is None  # they differ later


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    config = AutoConfig.from_pretrained(make_tiny_chat_model(tmp_path / "tiny"))
    Preference().require(config, tokenizer, "hf://a/b")
    tokenizer.chat_template = None
    with pytest.raises(UserInputError, match="hf://a/b has no chat template") as caught:
        Preference().require(config, tokenizer, "hf://a/b")
    assert "instruct variant" in caught.value.advice


# --- the loss ------------------------------------------------------------------------------------------------


def test_rewards_and_ties() -> None:
    base = np.array([[-3.0, -4.0], [-5.0, -2.0], [-1.0, -1.0]])
    moved = np.array([[2.0, -1.0], [0.0, 4.0], [1.0, 1.0]])
    found = preferences(base + moved, base, 0.5)
    assert found.loss == pytest.approx([math.log(1 + math.exp(-m)) for m in (1.5, -2.0, 0.0)])
    assert found.metrics == {Metric.REWARD_ACCURACY: 0.5, Metric.REWARD_MARGIN: pytest.approx(-0.5 / 3)}
    assert found.weight.tolist() == [1, 1, 1]
    itself = preferences(base, base, 0.5)
    assert (itself.mean_loss, itself.metrics[Metric.REWARD_ACCURACY]) == (pytest.approx(math.log(2)), 0.5)
    assert np.isfinite(preferences(base + 1e6 * moved, base, 2.0).loss).all()
    broken = base.copy()
    broken[1, 0] = -np.inf
    assert np.isnan(preferences(broken, broken, 0.5).loss).tolist() == [False, True, False]


LINES = [
    {"prompt": f"Is it {n}?", "chosen": "Yes " * (1 + n % 3), "rejected": "No, never " * (1 + n % 4)} for n in range(13)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_chat_model(tmp_path_factory.mktemp("base") / "tiny")


def held_out(form: PreferenceFormat, beta: float = 0.3) -> HeldOut:
    examples = [form.normalise(line) for line in LINES]
    rows = [{name: list(ids) for name, ids in form.encode(example).items()} for example in examples]
    resolved = ResolvedValues(**RESOLVED, beta=beta)
    return HeldOut(rows, examples, form.masker.tokenizer, Facts(), 128, 256, resolved)


def by_hand(model: Any, row: Any) -> torch.Tensor:
    """Log-probabilities of both answers, token after token, without padding or batches."""
    sums = []
    for answer in ("chosen_ids", "rejected_ids"):
        ids = torch.tensor([[*row["prompt_ids"], *row[answer]]])
        scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        picked = scores.gather(1, ids[0, 1:, None])[:, 0]
        sums.append(picked[len(row["prompt_ids"]) - 1 :].sum())
    return torch.stack(sums)


def shaken(folder: Path) -> Any:
    """The model with other weights."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def test_the_measure_is_the_papers_loss(form: PreferenceFormat, folder: Path) -> None:
    held, kind = held_out(form), Preference()
    base, tuned = AutoModelForCausalLM.from_pretrained(folder).eval(), shaken(folder)
    reference = kind.measure(base, held)
    assert reference.outputs is not None
    assert reference.outputs.shape == (13, 2)
    assert reference.loss == pytest.approx(math.log(2))
    measured = kind.measure(tuned, held, reference=reference)
    assert measured.outputs is not None
    with torch.no_grad():
        for n, row in enumerate(held.rows):
            policy, before = by_hand(tuned, row), by_hand(base, row)
            assert measured.outputs[n] == pytest.approx(policy.numpy(), rel=1e-5)
            moved = policy - before
            expected = -logsigmoid(0.3 * (moved[0] - moved[1]))
            assert measured.loss[n] == pytest.approx(expected.item(), rel=1e-3)
    assert kind.measure(base, held, reference=reference).metrics[Metric.REWARD_ACCURACY] == 0.5


def test_a_measurement_can_be_stopped_and_needs_beta(form: PreferenceFormat, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    held = held_out(form)

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Preference().measure(model, held, between_batches=stop)
    with pytest.raises(ValueError, match="beta"):
        Preference().measure(model, HeldOut(held.rows, held.examples, held.tokenizer, Facts(), 128, 256))


# --- TRL's steps ---------------------------------------------------------------------------------------------


def trainer(form: PreferenceFormat, model: Any, root: Path, **arguments: Any) -> DpoTrainer:
    held = held_out(form)
    assert held.resolved is not None
    found = Preference().trainer(
        TrainerParts(
            model=model,
            tokenizer=form.masker.tokenizer,
            resolved=held.resolved,
            arguments={
                "output_dir": str(root),
                "per_device_train_batch_size": 13,
                "max_steps": 3,
                "save_strategy": "no",
                "report_to": [],
                "use_cpu": True,
                "bf16": False,  # TRL's default is True
                "disable_tqdm": True,
                **arguments,
            },
            train=Dataset.from_list([dict(row) for row in held.rows]),
            validation=Dataset.from_list([dict(row) for row in held.rows[:1]]),
            facts=Facts(),
            base_dir=root,
            extra={
                "measure": lambda *_: None,
                "progress": ProgressCallback(root / "progress.json", 0),
                "stop": StopRequest(),
                "resumed": None,
            },
        )
    )
    assert isinstance(found, DpoTrainer)
    return found


def test_trl_optimises_what_is_measured(form: PreferenceFormat, folder: Path, tmp_path: Path) -> None:
    """Its loss after some steps, on all rows at once, is our mean, with the base as reference."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    fitted = trainer(form, model, tmp_path, learning_rate=1e-3)
    held = held_out(form)
    reference = log_probabilities(AutoModelForCausalLM.from_pretrained(folder).eval(), held.rows)
    columns = np.array([fitted.train_dataset["ref_chosen_logps"], fitted.train_dataset["ref_rejected_logps"]]).T
    assert columns == pytest.approx(reference, rel=1e-6)
    fitted.train()
    batch = fitted.data_collator(list(fitted.train_dataset))
    with torch.no_grad():
        theirs = fitted.compute_loss(fitted.model, batch).item()
    ours = preferences(log_probabilities(fitted.model.eval(), held.rows), reference, 0.3)
    assert theirs == pytest.approx(ours.mean_loss, rel=1e-4)
    assert ours.mean_loss < math.log(2)


def test_nothing_is_tokenised_or_cut_again(form: PreferenceFormat, folder: Path, tmp_path: Path) -> None:
    fitted = trainer(form, AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    held = held_out(form)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    for before, after in zip(held.rows, fitted.train_dataset, strict=True):
        assert {name: after[name] for name in names} == {name: before[name] for name in names}
    assert (fitted.data_collator.max_length, fitted.ref_model) == (None, None)
    batch = next(iter(fitted.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 26  # both answers of 13 pairs
    assert batch["completion_mask"].sum() == sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in held.rows)


def test_the_settings_are_the_jobs(form: PreferenceFormat, folder: Path, tmp_path: Path) -> None:
    fitted = trainer(form, AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    assert (fitted.beta, fitted.loss_types, fitted.label_smoothing) == (0.3, ["sigmoid"], 0.0)
    assert json.dumps(fitted.args.to_dict())


# --- what auto becomes ---------------------------------------------------------------------------------------


def resolved(task: Task, method: MethodType = MethodType.LORA, **knobs: Any) -> Resolution:
    shape = ModelShape(
        parameters=135_000_000,
        trainable=5_000_000,
        layers=30,
        width=576,
        inner_width=1536,
        kv_width=192,
        vocabulary=49152,
        context=8192,
    )
    config = RunConfig(
        namespace="a",
        job="b",
        run=1,
        hash="0123456789abcdef",
        task=task,
        base_model=BaseModelSpec(source="hf://a/b"),
        base_name="b",
        tuned_name="t",
        dataset=DatasetSpec(train=TrainData(source="pvc://a/b")),
        method=MethodSpec(type=method),
        hyperparameters=Hyperparameters(**knobs),
        evaluation=EvaluationSpec(),
        gpus=1,
        paths=RunPaths(run="a/b/runs/1", models="a/models"),
    )
    sizes = DataSizes(train_rows=4000, train_tokens=4_000_000, validation_tokens=100_000, longest=2048)
    return resolve(config, sizes, shape, 2048, "r", 2)


def test_a_pair_is_two_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.resolve.flash_attention_installed", lambda: True)
    chat, pairs = resolved(Task.CHAT), resolved(Task.PREFERENCE)
    assert (chat.values.micro_batch_size, pairs.values.micro_batch_size) == (4, 2)
    assert (chat.values.packing, pairs.values.packing) == (True, False)
    assert (chat.values.beta, pairs.values.beta) == (None, 0.1)
    assert chat.estimate.memory_bytes == pairs.estimate.memory_bytes  # half the rows, twice as long
    assert pairs.estimate.train_seconds > 1.5 * chat.estimate.train_seconds


@pytest.mark.parametrize(
    ("method", "rate"), [(MethodType.LORA, 1e-5), (MethodType.QLORA, 1e-5), (MethodType.FULL, 1e-6)]
)
def test_the_learning_rate_is_the_tasks(method: MethodType, rate: float) -> None:
    assert resolved(Task.PREFERENCE, method).values.learning_rate == pytest.approx(rate)
    knobs = {"learning_rate_multiplier": "2.5", "beta": "0.25"}
    values = resolved(Task.PREFERENCE, method, **knobs).values
    assert (values.learning_rate, values.beta) == (pytest.approx(2.5 * rate), 0.25)
