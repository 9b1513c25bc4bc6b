"""ONNX and QuantizedONNX: graphs for onnxruntime, run and compared with PyTorch before they count.

By PyTorch's own exporter (torch.export, not tracing). Hugging Face's, optimum-onnx 0.1, wants transformers below 4.58.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from finetune_api.exports import ExportSpec
from finetune_trainer.methods import proof
from finetune_trainer.packaging.comparison import (
    Difference,
    decoder_inputs,
    difference,
    outputs,
    without_padding,
    worst_of,
)
from finetune_trainer.packaging.graphs import Graph, empty_past, graphs_of, past_names, positions, unsupported
from finetune_trainer.packaging.merged import copy_beside
from finetune_trainer.packaging.tuned import Batch, Tuned

log = logging.getLogger(__name__)

# Of the largest output. Both compute in float32, with sums in another order and other kernels for exp and tanh.
TOLERANCE = 1e-3


def export(tuned: Tuned, spec: ExportSpec, folder: Path) -> Difference:
    """Raises ArtifactInvalidError when onnxruntime answers otherwise than PyTorch."""
    model, batch = _loaded(tuned)
    _write(graphs_of(model, batch), folder)
    _copy(tuned, model, folder)
    measured = compare(model, batch, folder)
    if not measured.largest <= TOLERANCE:
        raise proof.invalid(
            f"the graph differs from PyTorch by {measured.largest:.1e} of the largest output, and {TOLERANCE:g} "
            "is allowed",
            advice="export it as Safetensors instead, and report the architecture",
        )
    return measured


def export_quantized(tuned: Tuned, spec: ExportSpec, folder: Path) -> Difference:
    """Weights of matrix products in 8 bits, activations as they come. How far that is from PyTorch is told, not judged:
    only the user knows what is too far. Raises ArtifactInvalidError when an output is not finite."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, batch = _loaded(tuned)
    graphs = graphs_of(model, batch)
    _write(graphs, folder)
    for graph in graphs:
        whole, small = folder / graph.file, folder / f"small-{graph.file}"
        quantize_dynamic(whole, small, weight_type=QuantType.QInt8, use_external_data_format=_is_split(whole))
        whole.unlink()
        whole.with_name(f"{whole.name}.data").unlink(missing_ok=True)
        small.rename(whole)
    _copy(tuned, model, folder)
    measured = compare(model, batch, folder)
    if not math.isfinite(measured.largest):
        raise proof.invalid("the quantised graph's outputs are not finite", advice="export it as ONNX instead")
    return measured


def compare(model: PreTrainedModel, batch: Batch, folder: Path) -> Difference:
    """PyTorch and onnxruntime on the same held-out examples: as one padded batch, and the first one alone and, where
    there is a past, in two pieces."""
    alone = {name: values[:1, : int(batch["attention_mask"][0].sum())] for name, values in batch.items()}
    found = [difference(outputs(model, each), _answers(model, each, folder)) for each in (batch, alone)]
    worst = worst_of(found)
    log.info("onnxruntime: outputs differ by %.1e of the largest, %.1f %% agree", worst.largest, 100 * worst.agreement)
    return worst


def _loaded(tuned: Tuned) -> tuple[PreTrainedModel, Batch]:
    """In float32, by the plain attention: the fused one has no form in ONNX."""
    batch = tuned.samples()
    if len(batch["input_ids"]) == 1:  # a size of 1 would be taken for a constant
        batch = {name: values.repeat(2, 1) for name, values in batch.items()}
    return tuned.load(torch.float32, attention="eager"), batch


def _write(graphs: list[Graph], folder: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # tells of operators of torchvision, which is not there
    for graph in graphs:
        try:
            program = torch.onnx.export(
                graph.module.eval(),
                (),
                kwargs=dict(graph.arguments),
                dynamic_shapes=dict(graph.shapes),
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise unsupported(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
        assert program is not None
        program.save(folder / graph.file)


def _copy(tuned: Tuned, model: PreTrainedModel, folder: Path) -> None:
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    copy_beside(tuned, folder)


def _is_split(path: Path) -> bool:
    """Whether the weights lie beside the graph, which holds 2 GiB at most."""
    return path.with_name(f"{path.name}.data").exists()


def _answers(model: PreTrainedModel, batch: Batch, folder: Path) -> list[torch.Tensor]:
    """The same outputs as `outputs` gives, by onnxruntime."""
    if model.config.is_encoder_decoder:
        states = _run(folder / "encoder_model.onnx", batch)["last_hidden_state"]
        ids = decoder_inputs(model, batch)["decoder_input_ids"]
        told = {"encoder_hidden_states": states, "encoder_attention_mask": batch["attention_mask"]}
        return [_run(folder / "decoder_model.onnx", {"input_ids": ids, **told})["logits"].float()]
    if model.can_generate():
        return [without_padding(_read_in_pieces(model, batch, folder / "model.onnx"), batch)]
    return [without_padding(each, batch) for each in _run(folder / "model.onnx", batch).values()]


def _read_in_pieces(model: PreTrainedModel, batch: Batch, path: Path) -> torch.Tensor:
    """Logits of all tokens: the first half read with nothing before it, the rest with the first half as the past."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    past, logits = empty_past(model, len(ids)), []
    names = past_names("past_key_values", len(past) // 2)
    half = max(1, ids.shape[1] // 2)
    for begin, end in ((0, half), (half, ids.shape[1])):
        if begin == end:
            continue
        read = {
            "input_ids": ids[:, begin:end],
            "attention_mask": mask[:, :end],
            "position_ids": positions(mask[:, :end], end - begin),
            **dict(zip(names, past, strict=True)),
        }
        found = _run(path, read)
        logits.append(found.pop("logits"))
        past = list(found.values())
    return torch.cat(logits, dim=1)


def _run(path: Path, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The graph's outputs by name. Inputs that it does not have are left out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {each.name for each in session.get_inputs()}
    feed = {name: value.contiguous().numpy() for name, value in values.items() if name in wanted}
    names = [each.name for each in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, session.run(None, feed), strict=True)}
