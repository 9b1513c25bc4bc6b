"""What is optimised: the mean over the trained-on tokens, however the batch is cut, padded or packed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from tests.trained_runs import BASE, make_run, one_thread
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from finetune_api.conditions import Stage
from finetune_api.reports import Summary
from finetune_api.spec import MethodSpec, MethodType
from finetune_trainer.context import StageContext
from finetune_trainer.evaluation.scoring import score
from finetune_trainer.methods.low_rank import casts_input
from finetune_trainer.training.device import Device
from finetune_trainer.training.fit import _trainer, make_reproducible
from finetune_trainer.training.inputs import load_prepared, load_tokenizer
from finetune_trainer.training.sft import SftTrainer
from finetune_trainer.training.stopping import StopRequest

CPU = Device("cpu", "float32", "cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def first_step(root: Path, **resolved: Any) -> tuple[float, dict[str, torch.Tensor], list[list[dict[str, Any]]]]:
    """Loss, gradients and rows of the first optimizer step of a full training."""
    context = make_run(root, method=MethodType.FULL, resolved=resolved)
    trainer = build(context)
    gradients: dict[str, torch.Tensor] = {}
    seen: list[list[dict[str, Any]]] = []
    stock = trainer._clip_grad_norm

    def keep(model: Any) -> Any:
        if not gradients:
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})
        return stock(model)

    collate = trainer.data_collator

    def collecting(rows: list[dict[str, Any]]) -> Any:
        seen.append([dict(row) for row in rows])
        return collate(rows)

    trainer.data_collator = collecting
    trainer._clip_grad_norm = keep  # type: ignore[method-assign]
    trainer.args.max_steps = 1
    trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return loss, gradients, seen


def build(context: StageContext, device: Device = CPU) -> SftTrainer:
    prepared = load_prepared(context)
    make_reproducible(1, device)
    tokenizer = load_tokenizer(prepared.base_dir)
    return _trainer(context, prepared, prepared.resolved, device, StopRequest(), tokenizer, None)


@pytest.fixture(scope="module")
def whole_batch(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, dict[str, torch.Tensor], list[Any]]:
    return first_step(tmp_path_factory.mktemp("whole"))


def test_loss_and_gradients_are_those_of_the_labels(
    tmp_path: Path, whole_batch: tuple[float, dict[str, torch.Tensor], list[Any]]
) -> None:
    """Computed once more by hand, example by example, without padding, TRL or transformers' loss."""
    loss, gradients, seen = whole_batch
    context = make_run(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(context.artifacts / BASE)
    rows = seen[0]
    assert len(rows) == 4
    total = torch.zeros(())
    tokens = 0
    for row in rows:
        targets = torch.tensor(row["labels"][1:])
        assert (targets == -100).any()  # the question is there, and must not count
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        total = total + cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        tokens += int((targets != -100).sum())
    (total / tokens).backward()
    assert loss == pytest.approx((total / tokens).item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "cut",
    [
        {"micro_batch_size": 1, "gradient_accumulation": 4},
        {"micro_batch_size": 2, "gradient_accumulation": 2},
        {"packing": True},
        {"packing": True, "micro_batch_size": 2, "gradient_accumulation": 2},
    ],
)
def test_the_batch_may_be_cut_or_packed(
    tmp_path: Path, cut: dict[str, Any], whole_batch: tuple[float, dict[str, torch.Tensor], list[Any]]
) -> None:
    """Examples of different lengths: a mean of means, or a packed neighbour that is seen, would differ."""
    loss, gradients, seen = first_step(tmp_path, **cut)
    whole = whole_batch[2][0]
    assert [row for micro in seen for row in micro][:4] == whole  # the same examples in the same order
    assert len({len(row["input_ids"]) for row in whole}) > 1
    assert loss == pytest.approx(whole_batch[0], rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, whole_batch[1][name], rtol=1e-3, atol=1e-6)


def test_nothing_is_cut_or_dropped_or_tokenised_again(tmp_path: Path) -> None:
    """An example longer than TRL's own default of 1,024 tokens, and one of which nothing is trained on."""
    long = [{"messages": [{"role": "user", "content": "sun " * 700}, {"role": "assistant", "content": "boats " * 700}]}]
    silent = [
        {
            "messages": [
                {"role": "user", "content": "Sun?"},
                {"role": "assistant", "content": "Rain.", "weight": 0},
                {"role": "user", "content": "And now?"},
            ]
        }
    ]
    context = make_run(tmp_path, train=[*long, *silent] * 3)
    prepared = load_prepared(context)
    trainer = build(context)
    assert trainer.train_dataset.to_list() == prepared.rows("train").to_list()
    assert max(len(row["input_ids"]) for row in trainer.train_dataset) > 1024
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == batch["labels"].shape
    assert batch["input_ids"].shape[1] > 1024


def test_evaluation_while_training_is_the_mean_over_tokens(tmp_path: Path) -> None:
    context = make_run(tmp_path)
    trainer = build(context)
    rows = load_prepared(context).rows("validation").to_list()
    expected = score(AutoModelForCausalLM.from_pretrained(context.artifacts / BASE).eval(), rows).mean_loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert trainer.model.training  # and training goes on as such
    assert Summary.model_validate_json(context.report_path(Stage.PREPARE).read_bytes()).resolved is not None


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_in_bfloat16_adapters_take_their_input_as_it_is(tmp_path: Path, recompute: bool) -> None:
    """As on a GPU. PEFT's detour over float32 changes no bit of what is learned."""
    learned = []
    for cast in (False, True):
        resolved = {"epochs": 1, "total_steps": 5, "evaluation_steps": 2, "gradient_checkpointing": recompute}
        trainer = build(make_run(tmp_path / str(cast), resolved=resolved), Device("cpu", "bfloat16", "cpu"))
        layers = [part for part in trainer.model.modules() if isinstance(part, LoraLayer)]
        assert layers
        for layer in layers:
            assert not layer.cast_input_dtype_enabled
            layer.cast_input_dtype_enabled = cast
        trainer.train()
        assert trainer.state.global_step == 5
        learned.append({name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad})
    assert all(torch.equal(tensor, learned[1][name]) for name, tensor in learned[0].items())


@pytest.mark.parametrize(
    ("method", "dropout", "dtype", "casts"),
    [
        (MethodType.LORA, None, torch.bfloat16, False),
        (MethodType.QLORA, "0", torch.bfloat16, False),
        (MethodType.LORA, None, torch.float32, True),
        (MethodType.LORA, "0.1", torch.bfloat16, True),
        (MethodType.DORA, None, torch.bfloat16, True),
    ],
)
def test_where_the_detour_says_something_it_is_taken(
    method: MethodType, dropout: str | None, dtype: torch.dtype, casts: bool
) -> None:
    assert casts_input(MethodSpec(type=method, dropout=dropout), dtype) is casts
