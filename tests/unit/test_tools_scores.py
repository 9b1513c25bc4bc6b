"""The three shares of tool calls: what counts as right, as valid and as equal, and which examples are asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_models import make_tiny_chat_model
from tests.tool_chats import CLOCK, UNKNOWN, WEATHER, asked, tool_tokenizer
from transformers import AutoModelForCausalLM

from finetune_api.tasks import Metric
from finetune_trainer.data.chat import normalise_chat
from finetune_trainer.evaluation import tools
from finetune_trainer.evaluation.tools import ROOM, judge, tool_questions, tool_scores
from finetune_trainer.messages import TemplateAbilities, encode_rendered, render
from finetune_trainer.tasks.kind import Facts, HeldOut
from finetune_trainer.tool_forms import Call

OSLO = Call("weather", {"city": "Oslo", "days": 3})
TIME = Call("time", {"city": "Oslo"})


def weather(**arguments: Any) -> Call:
    return Call("weather", arguments)


@pytest.mark.parametrize(
    ("calls", "expected", "verdict"),
    [
        ([OSLO], [OSLO], (True, True, True)),
        ([weather(days=3, city="Oslo")], [OSLO], (True, True, True)),
        ([weather(city="Oslo", days=3.0)], [OSLO], (True, True, True)),
        ([weather(city="Oslo", days=4)], [OSLO], (True, True, False)),
        ([weather(city="Oslo", days=True)], [weather(city="Oslo", days=1)], (True, False, False)),
        ([weather(city="Oslo", days="3")], [OSLO], (True, False, False)),
        ([weather(city="Oslo")], [OSLO], (True, False, False)),
        ([weather(city="Oslo", days=3, hour=2)], [OSLO], (True, False, False)),
        ([TIME, OSLO], [OSLO, TIME], (True, True, True)),
        ([OSLO], [OSLO, TIME], (False, True, False)),
        ([OSLO, OSLO], [OSLO], (False, True, False)),
        ([TIME], [OSLO], (False, True, False)),
        ([Call("rain", {})], [OSLO], (False, False, False)),
        ([], [OSLO], (False, False, False)),
    ],
)
def test_an_answer_is_judged_by_all_its_calls(
    calls: list[Call], expected: list[Call], verdict: tuple[bool, bool, bool]
) -> None:
    found = judge(calls, expected, [WEATHER, CLOCK])
    assert (found.name, found.valid, found.exact) == verdict


@pytest.mark.parametrize("parameters", [{"type": "dictionary"}, {"$ref": "https://example.invalid/s.json"}])
def test_without_a_usable_schema_nothing_is_said_of_validity(parameters: dict[str, Any]) -> None:
    broken = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    assert judge([OSLO], [OSLO], [broken]).valid is None
    assert judge([OSLO], [OSLO], []).valid is None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = make_tiny_chat_model(tmp_path_factory.mktemp("model"), tokenizer=tool_tokenizer())
    return AutoModelForCausalLM.from_pretrained(path).eval()


def held_out(*examples: dict[str, Any], tokenizer: Any = None, context: int = 512) -> HeldOut:
    normal = [normalise_chat(example, TemplateAbilities()) for example in examples]
    return HeldOut([], normal, tokenizer or tool_tokenizer(), Facts(), context, context)


def says(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]}


CALLING = asked("Weather", "Oslo")
RESULT = {"role": "tool", "tool_call_id": CALLING["messages"][1]["tool_calls"][0]["id"], "content": "sun"}
GOES_ON = {**CALLING, "messages": [*CALLING["messages"], RESULT, {"role": "assistant", "content": "Sunny."}]}
UNASKED = {**CALLING, "messages": CALLING["messages"][1:]}


def test_only_conversations_that_end_with_a_call_are_asked(model: Any) -> None:
    assert len(list(tool_questions(held_out(says("Hello."), GOES_ON, UNASKED, CALLING)))) == 1
    assert tool_scores(model, held_out(says("Hello."), GOES_ON)) == {}


def test_what_leaves_no_room_is_not_asked() -> None:
    question = next(tool_questions(held_out(CALLING)))
    needed = len(question.prompt) + question.expected_tokens + ROOM
    assert list(tool_questions(held_out(CALLING, context=needed)))
    assert not list(tool_questions(held_out(CALLING, context=needed - 1)))


def test_a_form_that_nobody_can_read_is_not_measured(model: Any) -> None:
    assert tool_scores(model, held_out(CALLING, tokenizer=tool_tokenizer(UNKNOWN))) == {}


def test_a_model_that_calls_nothing_scores_nothing_and_can_be_stopped(model: Any) -> None:
    assert tool_scores(model, held_out(CALLING)) == dict.fromkeys(
        (Metric.TOOL_NAME, Metric.TOOL_VALID, Metric.TOOL_EXACT), 0.0
    )
    with pytest.raises(KeyboardInterrupt):
        tool_scores(model, held_out(CALLING), between_batches=interrupt)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_shares_are_of_the_first_calls_and_count_what_the_model_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault injected: a model that knows the first answer by heart and gives it always."""
    monkeypatch.setattr(tools, "MOST_QUESTIONS", 4)
    data = held_out(CALLING, asked("Weather", "Rome"), asked("Time", "Oslo"), asked("Both", "Oslo"), CALLING)
    example = data.examples[0]
    prompt = next(tool_questions(data)).prompt
    whole = encode_rendered(
        data.tokenizer, render(data.tokenizer, example["messages"], tools=example["tools"], prompt=False)
    )
    answer = torch.tensor(whole[len(prompt) :])

    class ByHeart:
        generation_config = type("Settings", (), {"eos_token_id": None})

        def get_output_embeddings(self) -> Any:
            return torch.nn.Linear(1, 1)

        def generate(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
            return torch.cat([input_ids, answer.repeat(len(input_ids), 1)], dim=1)

    shares: Any = tool_scores(ByHeart(), data)  # type: ignore[arg-type]
    assert shares == {Metric.TOOL_NAME: 0.5, Metric.TOOL_VALID: 1.0, Metric.TOOL_EXACT: 0.25}
