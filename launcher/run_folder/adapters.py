"""Adapters of low rank in a checkpoint, added to the weights that they are beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
_TRANSPOSED = ".lora_transposed"


def merged(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state_dict of the model without adapters, which computes the same; as it is without any.

    Args:
        state: of the model.
        config: of the run, as its manifest has it.
    """
    rank = config.get("lora", 0)
    if not rank:
        return dict(state)
    scale = float(config.get("lora_alpha") or 2.0 * rank) / rank
    found = {n.replace(_BASE, "."): t for n, t in state.items() if ".lora_" not in n}
    for name, a in state.items():
        if name.endswith(_A):
            layer = name.removesuffix(_A)
            # Of a convolution: (rank, channels, size, ...) and (channels, rank, 1, ...).
            added = state[layer + _B].double().flatten(1) @ a.double().flatten(1) * scale
            weight = found[f"{layer}.weight"]
            if layer + _TRANSPOSED in state:
                added = added.T
            found[f"{layer}.weight"] = (weight.double() + added.reshape(weight.shape)).to(
                weight.dtype
            )
    return found
