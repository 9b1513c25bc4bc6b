"""Whether an architecture can have several examples in one row, by trying it without data."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, masking_utils


class _MaskFromPositions(Exception):
    """The model was about to make its mask from the positions."""


def separates_packed(model: PreTrainedModel) -> bool:
    """Whether the architecture keeps examples that share a row apart, given positions that begin anew with each.

    Its mask must be made from the positions, and nothing may be carried along the row beside the attention, as
    recurrent and convolution layers do. transformers has no word for the former (a forward may take positions and
    make its mask without them, as Falcon's does), so it is tried: on the meta device that costs no memory.
    """
    return not carries_along(model) and _masks_by_position(model)


def carries_along(model: PreTrainedModel) -> bool:
    """Whether layers beside the attention, recurrent or convolution, carry something from example to example."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
    return bool(getattr(model, "_is_stateful", False)) or any(
        kind.startswith("linear") or not kind.endswith("attention") for kind in kinds
    )


def _masks_by_position(model: PreTrainedModel) -> bool:
    def reached(_positions: torch.Tensor) -> torch.Tensor:
        raise _MaskFromPositions

    table = model.get_input_embeddings().weight
    stock = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = reached
    try:
        model(
            inputs_embeds=torch.zeros(1, 4, table.shape[1], dtype=table.dtype, device=table.device),
            position_ids=torch.tensor([[0, 1, 0, 1]], device=table.device),
            use_cache=False,
        )
    except _MaskFromPositions:
        return True
    except Exception:  # no such argument, or an operation that the meta device lacks: not known to separate
        return False
    finally:
        masking_utils.find_packed_sequence_indices = stock
    return False
