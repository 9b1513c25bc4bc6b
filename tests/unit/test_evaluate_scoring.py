"""Scores of a model on held-out rows: exact, whatever the batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_models import make_tiny_chat_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from finetune_trainer.evaluation import scoring

LENGTHS = (3, 17, 9, 30, 2, 9)


def rows() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in LENGTHS:
        ids = torch.randint(5, 300, (length,), generator=generator).tolist()
        half = length // 2
        made.append({"input_ids": ids, "labels": [-100] * half + ids[half:]})
    made[2]["labels"][6] = -100  # a gap, as a conversation of several turns has
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(make_tiny_chat_model(tmp_path_factory.mktemp("base"))).eval()


def by_hand(model: LlamaForCausalLM, row: dict[str, list[int]]) -> tuple[float, int, int]:
    targets = torch.tensor(row["labels"][1:])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
    trained = targets != -100
    loss = cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item()
    return loss, int(trained.sum()), int((logits.argmax(-1) == targets)[trained].sum())


@pytest.mark.parametrize("batch_tokens", [1, 60, 8192])
@pytest.mark.parametrize("chosen", [True, False])
def test_scores_are_those_of_each_row_alone(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, batch_tokens: int, chosen: bool
) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(scoring, "keeps_chosen_logits", lambda model: chosen)
    scores = scoring.score(model, rows())
    for index, row in enumerate(rows()):
        loss, tokens, correct = by_hand(model, row)
        assert scores.loss[index] == pytest.approx(loss, rel=1e-5)
        assert (scores.tokens[index], scores.correct[index]) == (tokens, correct)
    assert scores.mean_loss == pytest.approx(scores.loss.sum() / scores.tokens.sum())


def test_only_the_needed_scores_are_computed(model: LlamaForCausalLM) -> None:
    seen = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    scoring.score(model, [rows()[3]])
    hook.remove()
    assert scoring.keeps_chosen_logits(model)
    assert seen == [15]  # of 30 positions


def test_between_batches_may_stop(model: LlamaForCausalLM) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scoring.score(model, rows(), between_batches=stop)


@given(st.lists(st.integers(1, 400), max_size=40), st.integers(1, 300_000))
def test_every_row_is_in_one_batch_and_batches_are_bounded(lengths: list[int], vocabulary: int) -> None:
    made = [{"input_ids": [1] * n, "labels": [1] * n} for n in lengths]
    found = list(scoring.batches(made, vocabulary))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    for batch in found:
        longest = max(lengths[index] for index in batch)
        positions = sum(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= scoring.BATCH_TOKENS
        assert len(batch) == 1 or len(batch) * positions * vocabulary * 4 <= scoring.SCORE_BYTES
