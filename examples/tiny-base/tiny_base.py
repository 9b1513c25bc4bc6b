"""Make a one-million-parameter chat model from the English prose that every Python has.

``python tiny_base.py OUT`` writes a Llama model, its tokenizer and a model card into the folder OUT: in about
a minute on two CPU cores, without a network, and without downloading anything. The model knows the shape of
English and of a chat, and next to nothing else; it is there to be fine-tuned in demos and tests.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Raise this when a change below makes other weights: folders of an older recipe are then made anew.
RECIPE = 1
MARKER = "tiny-base.json"
VOCABULARY = 2048
WINDOW = 128  # tokens in a training example
PROSE_WINDOWS, CHAT_WINDOWS = 5, 3  # examples of each kind in a batch
LEARNING_RATE = 3e-3
# At the usual 0.02 the tied embeddings stay so small that LoRA, which leaves them frozen, cannot learn from them.
EMBEDDING_STD = 0.09

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"

# The end of turn is inside the generation block: a model that is never trained on it never stops.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception("role '" ~ message['role'] ~ "' is unknown to this model: use system, user or assistant") -}}
{%- endif -%}
{%- if message['content'] is not string -%}
{{- raise_exception('the content of a message must be text for this model') -}}
{%- endif -%}
{{- '<|' ~ message['role'] ~ '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] ~ '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] ~ '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer in a few words.", "You explain things simply.")
QUESTIONS = ("What is {}?", "Tell me about {}.", "Can you explain {}?", "What should I know about {}?")


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, apart from the Python that the prose comes from."""

    steps: int = 660
    seed: int = 0
    quick: bool = False  # only the language topics as prose, so that a test has a model in seconds
    recipe: int = RECIPE


# --- prose ---------------------------------------------------------------------------------------------------


def is_prose(paragraph: str) -> bool:
    """Say whether a paragraph reads as English: a sentence or more, and few symbols."""
    words = paragraph.split()
    if len(words) < 7 or not paragraph[0].isupper() or paragraph[-1] not in ".!?:":
        return False
    plain = sum(bool(re.fullmatch(r"[A-Za-z][a-z'-]*[.,;:!?]?", word)) for word in words)
    return plain >= 0.72 * len(words)


def paragraphs_of(text: str) -> Iterator[str]:
    """Yield the prose paragraphs of a text, each on one line and without mark-up."""
    for block in re.split(r"\n\s*\n", text):
        line = " ".join(block.replace("`", "").replace("*", "").split()).removeprefix("- ")
        if line.isascii() and line and is_prose(line):
            yield line.replace('"', "")


def language_topics() -> dict[str, str]:
    """Return the chapters of Python's language reference that ``help()`` shows, by name."""
    from pydoc_data.topics import topics

    return dict(sorted(topics.items()))


def docstrings(folder: Path) -> Iterator[str]:
    """Yield the docstrings of a folder of Python sources, in a fixed order; files that do not parse are skipped."""
    skipped = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}
    for path in sorted(folder.rglob("*.py")):
        if skipped.intersection(path.relative_to(folder).parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield ast.get_docstring(node) or ""


def read_prose(quick: bool = False) -> list[str]:
    """Return the distinct prose paragraphs of this Python: about 8,700, or the language topics only."""
    texts = list(language_topics().values())
    if not quick:
        texts += docstrings(Path(sysconfig.get_paths()["stdlib"]))
    return list(dict.fromkeys(paragraph for text in texts for paragraph in paragraphs_of(text)))


def make_chats() -> list[list[dict[str, str]]]:
    """Return chats about the language topics, every other one with a short system prompt."""
    chats: list[list[dict[str, str]]] = []
    for text in language_topics().values():
        title = text.strip().split("\n", 1)[0].strip().replace('"', "")
        answer = next(paragraphs_of(text), "")
        if not answer or not title.isascii():
            continue
        sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", answer)
        subject = title[0].lower() + title[1:]
        for number, question in enumerate(QUESTIONS):
            chat = [
                {"role": "user", "content": question.format(subject)},
                {"role": "assistant", "content": " ".join(sentences[: 1 + number % 3])},
            ]
            if (len(chats) + number) % 2:
                chat.insert(0, {"role": "system", "content": SYSTEM_PROMPTS[len(chats) % len(SYSTEM_PROMPTS)]})
            chats.append(chat)
    return chats


# --- tokenizer -----------------------------------------------------------------------------------------------


def make_tokenizer(prose: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of 2,048 entries, with the chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(prose, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


# --- model and training --------------------------------------------------------------------------------------


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return an untrained Llama of 1.05 million float32 parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def rate_at(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: 20 to warm up, flat to 30 %, then down to 2 %."""
    flat = 0.3 * steps
    falling = 1.0 if step < flat else max(0.02, 1 - 0.98 * (step - flat) / max(1.0, steps - flat))
    return min(1.0, (step + 1) / 20) * falling


class Examples:
    """Two streams of token ids, and random windows of them: prose from anywhere, chats from where one starts."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prose: list[str], seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        held_out = max(1, len(prose) // 50)
        order = torch.randperm(len(prose), generator=self.random).tolist()
        texts = tokenizer([prose[index] + END for index in order], add_special_tokens=False)["input_ids"]
        self.held_out = torch.tensor(list(chain.from_iterable(texts[:held_out])))
        self.held_out_characters = sum(len(prose[index]) + 1 for index in order[:held_out])
        self.prose = torch.tensor(list(chain.from_iterable(texts[held_out:])))
        chats = make_chats()
        rendered = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        mixed = torch.randperm(len(chats), generator=self.random).tolist()
        ids = tokenizer([rendered[index] for index in mixed], add_special_tokens=False)["input_ids"]
        self.chats = torch.tensor(list(chain.from_iterable(ids)))
        starts = torch.tensor([0, *(len(chat) for chat in ids[:-1])]).cumsum(0)
        self.starts = starts[starts < len(self.chats) - WINDOW]

    def batch(self) -> torch.Tensor:
        """Return the next batch of token ids, of shape (8, 128)."""
        anywhere = torch.randint(len(self.prose) - WINDOW, (PROSE_WINDOWS,), generator=self.random)
        chosen = torch.randint(len(self.starts), (CHAT_WINDOWS,), generator=self.random)
        windows = [self.prose[at : at + WINDOW] for at in anywhere.tolist()]
        windows += [self.chats[at : at + WINDOW] for at in self.starts[chosen].tolist()]
        return torch.stack(windows)


def train(model: LlamaForCausalLM, examples: Examples, steps: int, report: Callable[[int, float], None]) -> None:
    """Train the model in place for a fixed number of steps; ``report`` gets the step and its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    model.train()
    for step in range(1, steps + 1):
        batch = examples.batch()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        report(step, loss.item())
    model.eval()


def bits_per_character(model: LlamaForCausalLM, examples: Examples) -> float:
    """Return how well the model foretells held-out prose: the usual measure that no tokenizer changes."""
    count = len(examples.held_out) // WINDOW
    windows = examples.held_out[: count * WINDOW].view(count, WINDOW)
    loss = 0.0
    with torch.no_grad():
        for part in torch.split(windows, 16):
            loss += float(model(input_ids=part, labels=part).loss) * len(part) / count
    return loss / math.log(2) * len(examples.held_out) / examples.held_out_characters


# --- the folder ----------------------------------------------------------------------------------------------


def progress_printer(steps: int) -> Callable[[int, float], None]:
    """Return a reporter that keeps one line up to date on a terminal, and prints ten lines anywhere else."""
    live = sys.stderr.isatty()
    start = time.monotonic()

    def report(step: int, loss: float) -> None:
        left = (time.monotonic() - start) / step * (steps - step)
        line = f"tiny base: step {step} of {steps}, loss {loss:.2f}, about {left:.0f} s left"
        if live:
            print(f"\r{line}   ", end="\n" if step == steps else "", file=sys.stderr, flush=True)
        elif step == 1 or step == steps or step % max(1, steps // 10) == 0:
            print(line, file=sys.stderr, flush=True)

    return report


CARD = """\
---
license: psf-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# Tiny base

A Llama of {parameters:,} parameters with a chat template, made on the spot by `tiny_base.py` in {steps} steps
(recipe {recipe}, seed {seed}) from the documentation inside Python {python}: {paragraphs:,} paragraphs of its language
reference and docstrings (Python Software Foundation License 2.0). Held-out prose: {bits:.2f} bits a character.

It is made to be fine-tuned in demos and tests. On its own it writes English-looking nonsense about programming;
fine-tuned, it takes on a style, repeats what it was trained on, and gets other facts wrong. Use it for nothing else.
"""


def is_complete(out: Path, recipe: Recipe) -> bool:
    """Say whether the folder holds a finished model of this very recipe."""
    try:
        return bool(json.loads((out / MARKER).read_text())["recipe"] == asdict(recipe))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def refuse_foreign(out: Path) -> None:
    """Raise FileExistsError when the folder holds something that this script did not make."""
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and was not made by tiny_base.py: remove it, or choose another folder")


def write_folder(out: Path, save: Callable[[Path], None]) -> None:
    """Fill a folder beside ``out`` and rename it at the end, so that ``out`` is never half made."""
    refuse_foreign(out)
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save(part)
        if out.exists():
            shutil.rmtree(out)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def make(out: Path, recipe: Recipe) -> dict[str, Any]:
    """Make the model in ``out``, and return what is known of it; raise FileExistsError on a foreign folder."""
    refuse_foreign(out)
    start = time.monotonic()
    prose = read_prose(recipe.quick)
    tokenizer = make_tokenizer(prose)
    model = make_model(tokenizer, recipe.seed)
    examples = Examples(tokenizer, prose, recipe.seed)
    train(model, examples, recipe.steps, progress_printer(recipe.steps))
    facts: dict[str, Any] = {
        "recipe": asdict(recipe),
        "parameters": model.num_parameters(),
        "paragraphs": len(prose),
        "bits": round(bits_per_character(model, examples), 3),
        "python": sysconfig.get_python_version(),
        "seconds": round(time.monotonic() - start, 1),
    }

    def save(part: Path) -> None:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / "README.md").write_text(CARD.format(**{**facts, **facts["recipe"]}))
        (part / MARKER).write_text(json.dumps(facts, indent=2) + "\n")

    write_folder(out, save)
    return facts


def main(arguments: list[str] | None = None) -> int:
    """Run the script; return 0, or 2 when the folder cannot be used."""
    parser = argparse.ArgumentParser(description="Make a tiny chat model from the prose inside Python.")
    parser.add_argument("out", type=Path, help="folder to make; left alone when it already holds this model")
    parser.add_argument("--steps", type=int, default=None, help="training steps (default 660, about a minute)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a barely trained model in seconds, for tests")
    options = parser.parse_args(arguments)
    steps = options.steps if options.steps is not None else (10 if options.quick else 660)
    if steps < 1:
        parser.error(f"--steps must be 1 or more, not {steps}")
    recipe = Recipe(steps=steps, seed=options.seed, quick=options.quick)
    out = options.out.absolute()
    if is_complete(out, recipe):
        print(f"tiny base: {out} is already there")
        return 0
    try:
        facts = make(out, recipe)
    except FileExistsError as error:
        print(f"tiny base: {error}", file=sys.stderr)
        return 2
    print(f"tiny base: {facts['parameters']:,} parameters, {facts['bits']:.2f} bits a character, in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
