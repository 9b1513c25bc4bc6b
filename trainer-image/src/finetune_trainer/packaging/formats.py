"""What each format of an export is made by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from finetune_api.exports import ExportFormat, ExportSpec
from finetune_trainer.packaging import merged, onnx_export
from finetune_trainer.packaging.comparison import Difference
from finetune_trainer.packaging.tuned import Tuned

Maker = Callable[[Tuned, ExportSpec, Path], Difference]
"""Makes the export's files in an empty folder, and proves them. Raises UserInputError (ExportUnsupported) when this
model cannot be exported so, ArtifactInvalidError when what came out does not answer as the tuned model does."""

FORMATS: Mapping[ExportFormat, Maker] = {
    ExportFormat.SAFETENSORS: merged.export,
    ExportFormat.ONNX: onnx_export.export,
    ExportFormat.QUANTIZED_ONNX: onnx_export.export_quantized,
}
