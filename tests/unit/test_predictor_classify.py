"""/v1/classify with real tiny models: whole ones and adapters with their head, encoders and a decoder."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny_encoders import CONTEXT, make_tiny_encoder
from tests.tiny_models import make_tiny_chat_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune_trainer.data.examples import special_tokens
from finetune_trainer.evaluation.classification import probabilities
from finetune_trainer.serving.config import ServerConfig
from finetune_trainer.serving.metrics import Metrics
from finetune_trainer.serving.predict_app import create_predict_app
from finetune_trainer.serving.predict_classify import ClassifyPredictor
from finetune_trainer.serving.predict_engine import PredictEngine
from finetune_trainer.serving.predict_weights import load_predict_model
from finetune_trainer.tasks.classification import Classification
from finetune_trainer.tasks.kind import Facts
from finetune_trainer.training.device import Device
from finetune_trainer.verification import load_tuned

BOUND = 60.0  # seconds after which a wait is a failure
KIND = Classification()
ONE = Facts(("billing", "delivery", "login"), (3, 3, 3))
SEVERAL = Facts(ONE.labels, ONE.counts, multi_label=True)
HEADS = ["classifier", "bert.pooler.dense"]  # of the tiny encoder
TEXTS = ["The invoice was charged twice.", "Who wrote the letter?", "late"]


def tuned_model(base: Path, facts: Facts) -> Any:
    """A classifier whose scores are far apart."""
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(base, **KIND.model_options(facts))
    for name, parameter in model.named_parameters():
        if name.startswith(("classifier", "score")):
            torch.nn.init.normal_(parameter, std=1.0)
    return model.eval()


def expected(model: Any, folder: Path, texts: list[Any], facts: Facts) -> list[dict[str, float]]:
    """What the task itself says of the texts, as Evaluate has it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    form = KIND.example_format(tokenizer, frozenset(), special_tokens(tokenizer))
    label: Any = [facts.labels[0]] if facts.multi_label else facts.labels[0]
    normal = [{"text": text, "label": label} if isinstance(text, str) else {**text, "label": label} for text in texts]
    scores = KIND.scores(model, tokenizer, [form.encode(one) for one in normal])
    found = probabilities(scores, multi_label=facts.multi_label)
    return [dict(zip(facts.labels, map(float, row), strict=True)) for row in found]


def config(base: Path, **tuned: Any) -> ServerConfig:
    return ServerConfig(base_dir=base, base_name="tiny", tuned_name="tiny/mail", threads=1, device="cpu", **tuned)


@asynccontextmanager
async def client_of(settings: ServerConfig, facts: Facts) -> AsyncIterator[httpx.AsyncClient]:
    engine = PredictEngine(
        settings, Metrics(), ClassifyPredictor(), lambda loaded: load_predict_model(loaded, KIND, facts)
    )
    app = create_predict_app(settings, engine)
    async with app.router.lifespan_context(app):
        end = time.monotonic() + BOUND
        while not engine.ready:
            assert engine.failure is None
            assert time.monotonic() < end, "waited too long"
            await asyncio.sleep(0.005)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=BOUND) as client:
            yield client


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/classify", json={"model": "tiny/mail", **fields})


def said(entry: dict[str, Any]) -> dict[str, float]:
    return {one["label"]: one["score"] for one in entry["scores"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(
        tmp_path_factory.mktemp("classify") / "base", kind="bert-without-pooler", initializer_range=0.5
    )


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classify") / "tuned"
    tuned_model(base, ONE).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


async def test_a_text_gets_the_label_and_the_probabilities_that_evaluation_measures(base: Path, whole: Path) -> None:
    pair = {"text": "The parcel is late.", "text_pair": "Who wrote the letter?"}
    wanted = expected(AutoModelForSequenceClassification.from_pretrained(whole), whole, [*TEXTS, pair], ONE)
    async with client_of(config(base, tuned_dir=whole), ONE) as client:
        answer = (await ask(client, input=[*TEXTS, pair])).json()
        alone = (await ask(client, input=TEXTS[0])).json()
        paired = (await ask(client, input=pair)).json()
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2, 3]
    for entry, right in zip(answer["data"], wanted, strict=True):
        assert said(entry) == pytest.approx(right, abs=1e-5)
        assert entry["label"] == max(right, key=lambda label: right[label])
        assert entry["score"] == entry["scores"][0]["score"]
        assert "labels" not in entry
    assert said(alone["data"][0]) == pytest.approx(wanted[0], abs=1e-5)
    assert said(paired["data"][0]) == pytest.approx(wanted[3], abs=1e-5)
    assert abs(wanted[0]["login"] - wanted[1]["login"]) > 0.001, "the test's model says the same of everything"
    assert alone["usage"]["prompt_tokens"] == 8  # six words and dots, [CLS] and [SEP]


async def test_top_k_and_threshold(base: Path, whole: Path) -> None:
    async with client_of(config(base, tuned_dir=whole), ONE) as client:
        two = (await ask(client, input=TEXTS[0], top_k=2)).json()["data"][0]
        unsure = (await ask(client, input=TEXTS[0], threshold=1.0)).json()["data"][0]
        refused = await ask(client, input=TEXTS[0], top_k=0)
    assert len(two["scores"]) == 2
    assert unsure["label"] is None
    assert unsure["score"] == two["score"]
    assert refused.json()["error"]["param"] == "top_k"


async def test_several_labels_are_those_above_the_threshold(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    tuned_model(base, SEVERAL).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    right = expected(AutoModelForSequenceClassification.from_pretrained(folder), folder, TEXTS[:1], SEVERAL)[0]
    async with client_of(config(base, tuned_dir=folder), SEVERAL) as client:
        half = (await ask(client, input=TEXTS[0])).json()["data"][0]
        every = (await ask(client, input=TEXTS[0], threshold=0)).json()["data"][0]
        none = (await ask(client, input=TEXTS[0], threshold=1)).json()["data"][0]
    ordered = sorted(right, key=lambda label: -right[label])
    assert said(half) == pytest.approx(right, abs=1e-5)
    assert half["labels"] == [label for label in ordered if right[label] >= 0.5]
    assert 0 < len(half["labels"]) < 3, "the test's model says the same of every label"
    assert (every["labels"], every["label"]) == (ordered, ordered[0])
    assert (none["labels"], none["label"]) == ([], None)


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
async def test_an_adapter_is_served_with_its_head(base: Path, tmp_path: Path, architecture: str, dora: bool) -> None:
    """Of a base without pooler all of the head must come from the adapter: a fresh one is random."""
    folder = base if architecture == "encoder" else make_tiny_chat_model(tmp_path / "llama", pad_token_id=None)
    heads = HEADS if architecture == "encoder" else ["score"]
    settings = LoraConfig(
        r=4,
        target_modules="all-linear",
        exclude_modules=heads if architecture == "encoder" else None,
        modules_to_save=heads,
        use_dora=dora,
        init_lora_weights=False,
        task_type=KIND.peft_type,
    )
    model = get_peft_model(tuned_model(folder, ONE), settings).eval()
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "adapter")
    wanted = expected(model, folder, TEXTS, ONE)
    torch.manual_seed(99)  # other random weights than when the adapter was made
    async with client_of(config(folder, adapter_dir=tmp_path / "adapter"), ONE) as client:
        answer = (await ask(client, input=TEXTS)).json()
    for entry, right in zip(answer["data"], wanted, strict=True):
        assert said(entry) == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
async def test_in_bfloat16_it_answers_as_it_was_measured(base: Path, tmp_path: Path, dora: bool) -> None:
    """As on a GPU. What an adapter adds to a weight is mostly less than bfloat16 can tell from the weight alone."""
    settings = LoraConfig(
        r=4,
        target_modules="all-linear",
        exclude_modules=HEADS,
        modules_to_save=HEADS,
        use_dora=dora,
        init_lora_weights=False,
        task_type=KIND.peft_type,
    )
    model = get_peft_model(tuned_model(base, ONE), settings)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data *= 1e-2
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "adapter")
    device = Device("cpu", "bfloat16", "cpu")
    measured = load_tuned(tmp_path / "adapter", base, device, KIND, ONE, "Adapter")
    wanted = expected(measured, base, TEXTS, ONE)
    rounded = expected(copy.deepcopy(measured).merge_and_unload(), base, TEXTS, ONE)
    apart = max(abs(one[label] - other[label]) for one, other in zip(wanted, rounded, strict=True) for label in one)
    assert apart > 1e-4, "merging makes no difference to the test's model"
    async with client_of(config(base, adapter_dir=tmp_path / "adapter", dtype="bfloat16"), ONE) as client:
        served = [(await ask(client, input=text)).json()["data"][0] for text in TEXTS]
    for entry, text in zip(served, TEXTS, strict=True):
        assert said(entry) == pytest.approx(expected(measured, base, [text], ONE)[0], abs=1e-6)


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ([], "input", "empty_input"),
        ("", "input[0]", "empty_input"),
        (["a", {"text": " "}], "input[1]", "empty_input"),
        ({"text": "a", "text_pair": ""}, "input[0].text_pair", "empty_input"),
        ([{"text": "a", "pair": "b"}], "input[0].pair", "unknown_parameter"),
        ([{"text_pair": "b"}], "input[0].text", "missing_required_parameter"),
        ([3], "input[0]", "invalid_value"),
        ("a " * CONTEXT, "input[0]", "context_length_exceeded"),
    ],
)
async def test_what_is_wrong_with_an_input_is_named(base: Path, whole: Path, given: Any, param: str, code: str) -> None:
    async with client_of(config(base, tuned_dir=whole), ONE) as client:
        answer = await ask(client, input=given)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
