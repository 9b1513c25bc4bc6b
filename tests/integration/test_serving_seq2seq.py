"""Encoder-decoder models behind /v1/completions: the same protocol, and the answers of transformers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from peft import PeftModel
from starlette.testclient import TestClient
from tests.integration.test_serving_engine import Answer, ask
from tests.tiny_seq2seq import CONTEXT, make_tiny_seq2seq, make_tiny_seq2seq_adapter, pairs
from tests.trained_runs import one_thread
from transformers import AutoModelForSeq2SeqLM

from finetune_trainer.serving.app import create_app
from finetune_trainer.serving.cohort import decode, prefill
from finetune_trainer.serving.config import ServerConfig
from finetune_trainer.serving.engine import Engine
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.weights import Weights, load_weights

FAMILIES = ("t5", "bart")
SOURCES = [pair["source"] for pair in pairs(4)] + ["the cat", "the red red red red fish eats the grey wolf"]


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ServerConfig]:
    root = tmp_path_factory.mktemp("served")
    found = {}
    for family in FAMILIES:
        base = make_tiny_seq2seq(root / family, family, copying=40)
        adapter = make_tiny_seq2seq_adapter(base, root / f"{family}-adapter")
        found[family] = ServerConfig(
            base_dir=base, base_name="base", adapter_dir=adapter, tuned_name="tuned", threads=1, run=7
        )
    return found


def expected(config: ServerConfig, weights: Weights, name: str, source: str, limit: int) -> str:
    """What transformers makes of it, greedily."""
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(config.base_dir)
    if name == "tuned":
        model = PeftModel.from_pretrained(model, config.adapter_dir).merge_and_unload()
    served: Any = weights.models[name]
    first = list(served.lane.first)
    ids = model.generate(
        **served.tokenizer(source, return_tensors="pt"),
        decoder_input_ids=torch.tensor([first]),
        max_new_tokens=limit,
        num_beams=1,
        do_sample=False,
        forced_eos_token_id=None,
        suppress_tokens=served.banned.tolist(),
    )
    return str(served.tokenizer.decode(ids[0, len(first) :], skip_special_tokens=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_base_and_tuned_rows_of_all_lengths_share_a_batch_and_answer_as_alone(
    configs: dict[str, ServerConfig], family: str
) -> None:
    weights = load_weights(configs[family])
    answers = [
        ask(weights, name, source, limit)
        for name in ("base", "tuned")
        for source, limit in zip(SOURCES, range(3, 9), strict=True)
    ]
    cohort = prefill(weights, answers[0].row.model.lane, [answer.row for answer in answers])
    while cohort.alive:
        decode(weights, cohort)
    told = [answer.result()[0] for answer in answers]
    assert told == [
        expected(configs[family], weights, name, source, limit)
        for name in ("base", "tuned")
        for source, limit in zip(SOURCES, range(3, 9), strict=True)
    ]
    assert told[: len(SOURCES)] != told[len(SOURCES) :]
    assert weights.calls <= 8  # one for each token of the longest answer


@pytest.mark.parametrize("change", [{"use_dora": True}, {}])
def test_an_adapter_that_cannot_be_switched_is_served_merged(
    configs: dict[str, ServerConfig], tmp_path: Path, change: dict[str, Any]
) -> None:
    base = configs["t5"].base_dir
    adapter = make_tiny_seq2seq_adapter(base, tmp_path, **change)
    config = ServerConfig(base_dir=base, base_name="base", adapter_dir=adapter, tuned_name="tuned", threads=1)
    weights = load_weights(config)
    assert (weights.models["base"].lane is weights.models["tuned"].lane) is not bool(change)
    answer = ask(weights, "tuned", SOURCES[0], 8)
    alone(weights, answer)
    assert answer.result()[0] == expected(config, weights, "tuned", SOURCES[0], 8)


def alone(weights: Weights, answer: Answer) -> None:
    cohort = prefill(weights, answer.row.model.lane, [answer.row])
    while cohort.alive:
        decode(weights, cohort)


def test_who_comes_later_runs_beside_who_is_there(configs: dict[str, ServerConfig]) -> None:
    weights = load_weights(configs["bart"])
    engine = Engine(configs["bart"], Metrics(), lambda _: weights)
    first, later = ask(weights, "base", SOURCES[0], 12), ask(weights, "base", SOURCES[5], 12)
    began = threading.Event()
    emit = first.row.emit
    first.row.emit = lambda event: (emit(event), began.set())  # type: ignore[func-returns-value]
    engine.start()
    try:
        engine.submit([first.row])
        assert began.wait(60)
        engine.submit([later.row])
        told = [answer.result()[0] for answer in (first, later)]
    finally:
        engine.stop()
    assert told == [expected(configs["bart"], weights, "base", source, 12) for source in (SOURCES[0], SOURCES[5])]


@pytest.fixture(scope="module")
def client(configs: dict[str, ServerConfig]) -> Iterator[openai.OpenAI]:
    config = configs["t5"]
    with TestClient(create_app(config, Engine(config, Metrics())), base_url="http://server") as http:
        while http.get("/readyz").json()["status"] == "loading":
            pass
        assert http.get("/readyz").json() == {"status": "ready"}
        yield openai.OpenAI(base_url="http://server/v1", api_key="none", http_client=http, max_retries=0)


def test_both_names_answer_whole_and_streamed(client: openai.OpenAI, configs: dict[str, ServerConfig]) -> None:
    weights = load_weights(configs["t5"])
    assert [model.id for model in client.models.list()] == ["tuned", "base"]
    for name in ("base", "tuned"):
        wanted = expected(configs["t5"], weights, name, SOURCES[0], 8)
        whole = client.completions.create(model=name, prompt=SOURCES[0], max_tokens=8, temperature=0)
        assert whole.choices[0].text == wanted
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == len(weights.models[name].tokenizer(SOURCES[0])["input_ids"])
        pieces = list(
            client.completions.create(model=name, prompt=SOURCES[0], max_tokens=8, temperature=0, stream=True)
        )
        assert len(pieces) > 1
        assert "".join(piece.choices[0].text for piece in pieces) == wanted
        assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_stop_sequences_several_prompts_choices_and_seeds(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="base", prompt=SOURCES[:2], max_tokens=8, temperature=0, n=2)
    texts = [choice.text for choice in plain.choices]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    stop = texts[0].split()[1]
    ended = client.completions.create(model="base", prompt=SOURCES[0], max_tokens=8, temperature=0, stop=stop)
    assert ended.choices[0].text == texts[0].split(stop)[0]
    assert ended.choices[0].finish_reason == "stop"
    short = client.completions.create(model="base", prompt=SOURCES[0], max_tokens=1, temperature=0)
    assert short.choices[0].finish_reason == "length"
    drawn = [
        client.completions.create(model="base", prompt=SOURCES[0], max_tokens=6, temperature=2, seed=5).choices[0].text
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]


LONG = "the red cat sleeps " * 30
# (request, part of the message, param, code)
REFUSED = [
    ({"prompt": ""}, "nothing to read", "prompt", None),
    ({"prompt": LONG}, f"reads at most {CONTEXT} tokens", "prompt", "context_length_exceeded"),
    ({"prompt": "the cat", "max_tokens": CONTEXT}, "writes at most 63", "max_tokens", "context_length_exceeded"),
    ({"prompt": "the cat", "model": "nobody"}, "does not exist", "model", "model_not_found"),
    ({"prompt": "the cat", "echo": True}, "echo", "echo", "unsupported_parameter"),
]


@pytest.mark.parametrize(("request_", "words", "param", "code"), REFUSED)
def test_what_cannot_be_answered_is_refused(
    client: openai.OpenAI, request_: dict[str, Any], words: str, param: str, code: str | None
) -> None:
    with pytest.raises(openai.APIStatusError, match=words) as caught:
        client.completions.create(**{"model": "base", **request_})
    assert (caught.value.param, caught.value.code) == (param, code)


def test_source_and_answer_count_apart(client: openai.OpenAI) -> None:
    source = "the red cat sleeps " * 15  # 61 tokens of 64
    answer = client.completions.create(model="base", prompt=source, max_tokens=CONTEXT - 1, temperature=0)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > CONTEXT - 5


def test_a_conversation_is_refused_with_the_route_that_answers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Use /v1/completions"):
        client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": "the cat"}])
