"""The tiny base model: its prose, its chat template, its folder, and that it loads and generates."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "tiny-base" / "tiny_base.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_base", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_base"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


tiny_base = load_script()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "tiny"
    assert tiny_base.main([str(out), "--quick"]) == 0
    return out


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("A dictionary maps the keys that you give to their values.", True),
        ("Too short to keep.", False),
        ("a paragraph that starts in the middle of a sentence.", False),
        ("A paragraph that just stops before it has come to", False),
        ("Use x[0] = {1: 2} + y_1 -> z() or q(a, b=1), not w[1:2].", False),
    ],
)
def test_prose_is_told_from_code(paragraph: str, expected: bool) -> None:
    assert tiny_base.is_prose(paragraph) is expected


def test_paragraphs_lose_their_mark_up() -> None:
    text = "Return the *first* of all\nthe ``items`` in this list.\n\n  >>> code()\n"
    assert list(tiny_base.paragraphs_of(text)) == ["Return the first of all the items in this list."]


def test_the_rate_warms_up_stays_and_falls() -> None:
    rates = [tiny_base.rate_at(step, 660) for step in range(660)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[19] == rates[197] == 1.0
    assert rates[-1] == pytest.approx(0.02, abs=0.01)
    assert rates[198:] == sorted(rates[198:], reverse=True)


def test_the_model_loads_and_generates(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert 1_000_000 < model.num_parameters() < 1_100_000
    assert model.config.max_position_embeddings >= 512
    assert len(tokenizer) == tiny_base.VOCABULARY == model.config.vocab_size
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is a list?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert output.shape[1] > prompt["input_ids"].shape[1]


def test_the_end_of_turn_ends_generation_and_is_not_padding(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    assert tokenizer.eos_token == tiny_base.END
    assert settings["eos_token_id"] == tokenizer.eos_token_id
    assert settings["pad_token_id"] == tokenizer.pad_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_only_the_assistants_words_and_its_end_are_marked(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Where to?"},
        {"role": "assistant", "content": "To sea."},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "Home."},
    ]
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    assert tokenizer.decode([token for token, marked in pairs if marked]) == "To sea.<|end|>Home.<|end|>"


def test_the_generation_prompt_is_a_prefix_of_the_answered_chat(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Where to?"}, {"role": "assistant", "content": "To sea."}]
    asked = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False)
    assert tokenizer.apply_chat_template(chat, tokenize=False) == f"{asked}To sea.<|end|>"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "tool", "content": "x"}, "role 'tool' is unknown .* use system, user or assistant"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, "must be text"),
    ],
)
def test_the_template_refuses_what_the_model_does_not_know(folder: Path, message: object, reason: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(Exception, match=reason):
        tokenizer.apply_chat_template([message], tokenize=False)


def test_text_survives_the_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Steer for Troms\u00f8, caf\u00e9 and \u6771\u4eac: 20\u00b0!\n Done."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_same_recipe_is_not_made_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert tiny_base.main([str(folder), "--quick"]) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert "already there" in capsys.readouterr().out


def test_the_folder_has_a_card_and_no_leftovers(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "license: psf-2.0" in card
    assert "Python Software Foundation" in card
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_seed_decides_the_weights(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        tiny_base.make(tmp_path / name, tiny_base.Recipe(steps=2, seed=seed, quick=True))
    one, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same", "other"))
    assert one == same
    assert one != other


def test_a_changed_recipe_replaces_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    assert tiny_base.main([str(out), "--quick", "--steps", "1"]) == 0
    assert tiny_base.is_complete(out, tiny_base.Recipe(steps=1, quick=True))
    assert not tiny_base.is_complete(out, tiny_base.Recipe(steps=2, quick=True))
    assert tiny_base.main([str(out), "--quick", "--steps", "2"]) == 0
    assert tiny_base.is_complete(out, tiny_base.Recipe(steps=2, quick=True))


def test_a_foreign_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert tiny_base.main([str(tmp_path), "--quick"]) == 2
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert "was not made by tiny_base.py" in capsys.readouterr().err


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def broken(part: Path) -> None:
        (part / "model.safetensors").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        tiny_base.write_folder(tmp_path / "tiny", broken)
    assert list(tmp_path.iterdir()) == []
