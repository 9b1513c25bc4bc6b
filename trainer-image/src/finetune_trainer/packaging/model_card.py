"""The model card that goes with an export: the run's own, whose header says what the folder holds now."""

from __future__ import annotations

from pathlib import Path

from finetune_api.exports import ExportFormat
from finetune_trainer import artifacts

# As Hugging Face's hub reads them: https://huggingface.co/docs/hub/model-cards
LIBRARY = {ExportFormat.SAFETENSORS: "transformers", ExportFormat.ONNX: "onnx", ExportFormat.QUANTIZED_ONNX: "onnx"}
RELATION = {ExportFormat.QUANTIZED_ONNX: "quantized"}
EDGE = "---\n"


def leave_card(source: Path, folder: Path, what: ExportFormat) -> None:
    """Copy the card with another header, where the run has one: a run that an earlier version measured has none."""
    if not source.is_file():
        return
    _, header, body = source.read_text(encoding="utf-8").split(EDGE, 2)
    said = {"library_name": LIBRARY[what], "base_model_relation": RELATION.get(what, "finetune")}
    lines = [_line(line, said) for line in header.splitlines()]
    text = EDGE + "\n".join(lines) + "\n" + EDGE + body
    (folder / artifacts.CARD).write_text(text, encoding="utf-8")


def _line(line: str, said: dict[str, str]) -> str:
    key = line.partition(":")[0]
    return f"{key}: {said[key]}" if key in said else line
