"""Adapters of low rank in a checkpoint, added to the weights that they are beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.checkpoints import AVERAGE, MODEL, Checkpoint, read_tensors

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


def model_state(checkpoint: Checkpoint, *, average: bool = False) -> dict[str, Tensor]:
    """The state_dict of the unsplit model, in CPU memory; adapters are added to its weights.

    Args:
        average: of the weights, in place of them.

    Raises:
        ConfigError: there is no average.
    """
    prefix = AVERAGE if average else MODEL
    names = [name for name in checkpoint.weight_map if name.startswith(prefix)]
    if average and not names:
        raise ConfigError(
            f"checkpoint {str(checkpoint.folder)!r} has no average of the weights; leave --ema "
            "out, or train with --model-ema"
        )
    tensors = read_tensors(checkpoint, names)
    state = {name[len(prefix) :]: tensors[name] for name in names}
    return merged(state, checkpoint.config)
