"""A batched answer is the answer of a request alone, and costs a fraction of the forward calls."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import PeftModel
from tests.tiny_models import make_tiny_adapter, make_tiny_chat_model, make_tiny_tokenizer
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from finetune_trainer.serving.cohort import Piece, Row, decode, prefill
from finetune_trainer.serving.config import ServerConfig, is_plain_lora
from finetune_trainer.serving.engine import Engine, make_decode
from finetune_trainer.serving.errors import ApiError, GenerationFailed, GenerationTimeout, QueueFull, Unavailable
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.sampling import Sampling
from finetune_trainer.serving.text import Detokenizer, StopScanner
from finetune_trainer.serving.weights import Weights, load_weights

GREEDY = Sampling(temperature=0)
PROMPTS = ("The", "What is the best time to visit Lisbon?", "boats", "x " * 40, "é🚢")
BOUND = 60.0  # seconds after which a wait is a failure


@dataclass
class Answer:
    """A row and what it said."""

    row: Row
    events: queue.Queue[Piece | Exception] = field(default_factory=queue.Queue)
    cancelled: bool = False

    def result(self) -> tuple[str, str, int]:
        """Wait for the end: text, finish reason, tokens."""
        text = ""
        while True:
            event = self.events.get(timeout=BOUND)
            if isinstance(event, Exception):
                raise event
            text += event.text
            if event.finish:
                return text, event.finish, event.tokens


def ask(weights: Weights, name: str, prompt: str, limit: int = 24, sampling: Sampling = GREEDY, **more: Any) -> Answer:
    model = weights.models[name]
    answer: Answer
    row = Row(
        model=model,
        prompt=model.tokenizer(prompt)["input_ids"],
        limit=limit,
        sampling=sampling,
        detokenizer=Detokenizer(make_decode(model)),
        stops=StopScanner(more.pop("stops", ())),
        emit=lambda event: answer.events.put(event),
        is_cancelled=lambda: answer.cancelled,
        deadline=more.pop("deadline", float("inf")),
    )
    answer = Answer(row)
    return answer


def alone(weights: Weights, answer: Answer) -> tuple[str, str, int]:
    cohort = prefill(weights, answer.row.model.lane, [answer.row])
    while cohort.alive:
        decode(weights, cohort)
    return answer.result()


@contextmanager
def running(config: ServerConfig, weights: Weights) -> Iterator[Engine]:
    engine = Engine(config, Metrics(), lambda _: weights)
    engine.start()
    wait_for(lambda: engine.ready or not engine.alive)
    try:
        yield engine
    finally:
        engine.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    root = tmp_path_factory.mktemp("engine")
    base = make_tiny_chat_model(root / "base")
    adapter = make_tiny_adapter(base, root / "adapter")
    return ServerConfig(base_dir=base, adapter_dir=adapter, base_name="base", tuned_name="tuned", threads=1)


@pytest.fixture
def weights(config: ServerConfig) -> Weights:
    return load_weights(config)


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_greedy_answers_are_those_of_transformers(config: ServerConfig, weights: Weights, name: str) -> None:
    reference: Any = AutoModelForCausalLM.from_pretrained(config.base_dir)
    if name == "tuned":
        reference = PeftModel.from_pretrained(reference, config.adapter_dir)
    model = weights.models[name]
    for prompt in PROMPTS:
        inputs = model.tokenizer(prompt, return_tensors="pt")
        ids = reference.generate(
            **inputs, max_new_tokens=20, do_sample=False, suppress_tokens=[model.tokenizer.pad_token_id]
        )[0, inputs["input_ids"].shape[1] :]
        expected = model.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
        assert alone(weights, ask(weights, name, prompt, 20))[0] == expected


def test_models_differ(weights: Weights) -> None:
    assert alone(weights, ask(weights, "base", "The"))[0] != alone(weights, ask(weights, "tuned", "The"))[0]


def test_a_mixed_batch_answers_as_each_alone(config: ServerConfig, weights: Weights) -> None:
    cases = [(name, prompt, 5 + 4 * at) for at, prompt in enumerate(PROMPTS) for name in ("base", "tuned")]
    expected = [alone(weights, ask(weights, *case)) for case in cases]
    with running(config, weights) as engine:
        answers = [ask(weights, *case) for case in cases]
        engine.submit([answer.row for answer in answers])
        assert [answer.result() for answer in answers] == expected


def test_eight_at_once_cost_about_as_many_calls_as_one(config: ServerConfig, weights: Weights) -> None:
    alone(weights, ask(weights, "base", "The", 30))
    single = weights.calls
    with running(config, weights) as engine:
        before = weights.calls
        answers = [ask(weights, "base" if at % 2 else "tuned", "The", 30) for at in range(8)]
        engine.submit([answer.row for answer in answers])
        tokens = sum(answer.result()[2] for answer in answers)
    assert weights.calls - before <= single + 1
    assert tokens > 4 * single


def test_late_arrivals_join_the_running_batch(
    config: ServerConfig, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request is held in its third step until the second has come; both then share every call."""
    expected = [alone(weights, ask(weights, "base", prompt, 24)) for prompt in PROMPTS[:2]]
    late, gate = threading.Event(), threading.Event()
    original = Weights.forward
    widths: list[int] = []

    def held(self: Weights, lane: Any, adapters: Any, ids: Any, mask: Any, cache: Any) -> torch.Tensor:
        widths.append(len(adapters))
        if len(widths) == 3:
            late.set()
            assert gate.wait(BOUND)
        return original(self, lane, adapters, ids, mask, cache)

    with running(config, weights) as engine:
        monkeypatch.setattr(Weights, "forward", held)
        first, second = (ask(weights, "base", prompt, 24) for prompt in PROMPTS[:2])
        engine.submit([first.row])
        assert late.wait(BOUND)
        engine.submit([second.row])
        gate.set()
        assert [first.result(), second.result()] == expected
    assert widths[:4] == [1, 1, 1, 1]
    assert 2 in widths[4:6]


def test_a_seed_gives_the_same_answer_whoever_is_near(config: ServerConfig, weights: Weights) -> None:
    warm = Sampling(temperature=1.0, top_p=0.9, seed=11)
    expected = alone(weights, ask(weights, "tuned", "The", 24, warm))
    with running(config, weights) as engine:
        answers = [ask(weights, "base", prompt, 30, Sampling(seed=at)) for at, prompt in enumerate(PROMPTS)]
        same = [ask(weights, "tuned", "The", 24, warm) for _ in range(2)]
        engine.submit([answer.row for answer in [*answers, *same]])
        assert [answer.result() for answer in same] == [expected, expected]


def test_a_stop_sequence_ends_the_row_before_it(weights: Weights) -> None:
    text = alone(weights, ask(weights, "base", "The", 24))[0]
    stop = text[6:9]
    shown, finish, _ = alone(weights, ask(weights, "base", "The", 24, stops=(stop,)))
    assert (shown, finish) == (text[: text.index(stop)], "stop")


def test_the_end_token_ends_and_is_not_shown(weights: Weights) -> None:
    answer = ask(weights, "base", "The", 24)
    model = weights.models["base"]
    scores = torch.zeros(400)
    scores[model.tokenizer.eos_token_id] = 9.0
    answer.row.take(scores)
    assert answer.result() == ("", "stop", 1)


def test_padding_and_ids_beyond_the_tokenizer_are_never_chosen(tmp_path: Path) -> None:
    base = make_tiny_chat_model(tmp_path / "base", vocab_size=448)
    weights = load_weights(ServerConfig(base_dir=base, base_name="base", threads=1))
    row = ask(weights, "base", "The").row
    scores = torch.zeros(448)
    scores[[row.model.tokenizer.pad_token_id, 400, 447]] = 99.0
    row.take(scores)
    assert row.last not in {row.model.tokenizer.pad_token_id, 400, 447}


def test_a_cancelled_row_makes_room(config: ServerConfig, weights: Weights) -> None:
    with running(replace(config, max_concurrent=1, max_queue=1), weights) as engine:
        running_row, waiting_row = ask(weights, "base", "The", 200), ask(weights, "base", "boats", 5)
        engine.submit([running_row.row, waiting_row.row])
        with pytest.raises(QueueFull):
            engine.submit([ask(weights, "base", "x").row])
        running_row.cancelled = True
        assert waiting_row.result()[2] == 5
        assert running_row.row.tokens < 200


def test_a_row_past_its_deadline_fails(config: ServerConfig, weights: Weights) -> None:
    with running(config, weights) as engine:
        late = ask(weights, "base", "The", deadline=time.monotonic() - 1)
        engine.submit([late.row])
        with pytest.raises(GenerationTimeout):
            late.result()


def test_a_broken_step_fails_its_rows_and_nothing_else(
    config: ServerConfig, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*inputs: Any) -> torch.Tensor:
        raise RuntimeError("secret detail")

    with running(config, weights) as engine:
        monkeypatch.setattr(Weights, "forward", broken)
        lost = ask(weights, "base", "The")
        engine.submit([lost.row])
        with pytest.raises(GenerationFailed) as caught:
            lost.result()
        assert "secret" not in caught.value.message
        monkeypatch.undo()
        kept = ask(weights, "base", "The", 4)
        engine.submit([kept.row])
        assert kept.result()[2] == 4


def test_stopping_tells_who_waits(config: ServerConfig, weights: Weights) -> None:
    with running(config, weights) as engine:
        left = ask(weights, "base", "The", 10_000)
        engine.submit([left.row])
    with pytest.raises(ApiError) as caught:
        left.result()
    assert isinstance(caught.value, Unavailable)
    with pytest.raises(Unavailable):
        engine.submit([ask(weights, "base", "The").row])


def test_a_model_that_cannot_be_loaded_is_a_failure(config: ServerConfig) -> None:
    def load(_: ServerConfig) -> Weights:
        raise OSError("no such model")

    failed = threading.Event()
    engine = Engine(config, Metrics(), load)
    engine.on_failure = failed.set
    engine.start()
    assert failed.wait(BOUND)
    assert not engine.ready
    assert str(engine.failure) == "no such model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_adapters_that_cannot_be_switched_have_a_base_of_their_own(
    tmp_path: Path, settings: dict[str, Any], dtype: Literal["float32", "bfloat16"]
) -> None:
    base = make_tiny_chat_model(tmp_path / "base", tie_word_embeddings=False, attention_bias=True)
    adapter = make_tiny_adapter(base, tmp_path / "adapter", **{"target_modules": ["q_proj", "v_proj"], **settings})
    assert not is_plain_lora(adapter)
    alone_there = ServerConfig(base_dir=base, base_name="base", threads=1, dtype=dtype)
    config = replace(alone_there, adapter_dir=adapter, tuned_name="tuned")
    weights, plain = load_weights(config), load_weights(alone_there)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter)
    inputs = weights.models["tuned"].tokenizer("The", return_tensors="pt")
    ids = reference.generate(**inputs, max_new_tokens=8, do_sample=False, suppress_tokens=[0])[
        0, inputs["input_ids"].shape[1] :
    ]
    with running(config, weights) as engine:
        answers = [ask(weights, name, "The", 8) for name in ("tuned", "base")]
        engine.submit([answer.row for answer in answers])
        tuned, untouched = (answer.result() for answer in answers)
    assert tuned[0] == weights.models["tuned"].tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
    assert untouched == alone(plain, ask(plain, "base", "The", 8))


def test_a_whole_tuned_model_is_served_beside_the_base(tmp_path: Path) -> None:
    base, tuned = make_tiny_chat_model(tmp_path / "base"), make_tiny_chat_model(tmp_path / "tuned", seed=9)
    weights = load_weights(
        ServerConfig(base_dir=base, tuned_dir=tuned, base_name="base", tuned_name="tuned", threads=1)
    )
    other = load_weights(ServerConfig(base_dir=tuned, base_name="only", threads=1))
    assert alone(weights, ask(weights, "tuned", "The")) == alone(other, ask(other, "only", "The"))


def test_a_sliding_window_is_kept_in_a_batch(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "max_position_embeddings": 256, "sliding_window": 8, "vocab_size": len(tokenizer)}
    model = MistralForCausalLM(MistralConfig(**shape, **more, eos_token_id=1, pad_token_id=0, bos_token_id=None))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = ServerConfig(base_dir=tmp_path, base_name="base", threads=1)
    weights = load_weights(config)
    inputs = tokenizer(PROMPTS[1], return_tensors="pt")
    ids = model.eval().generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=24,
        do_sample=False,
        suppress_tokens=[0],
    )[0, inputs["input_ids"].shape[1] :]
    expected = [alone(weights, ask(weights, "base", prompt)) for prompt in PROMPTS]
    assert expected[1][0] == tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
    with running(config, weights) as engine:
        answers = [ask(weights, "base", prompt) for prompt in PROMPTS]
        engine.submit([answer.row for answer in answers])
        assert [answer.result() for answer in answers] == expected
