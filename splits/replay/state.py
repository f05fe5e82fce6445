"""Where a stage finds the tensors of a module, those of other stages included."""

from __future__ import annotations

from torch import Tensor, nn

HIDDEN = "_of_other_stages"
"""The member of a module in which a stage keeps what stands in for other stages' tensors."""


def state_of(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers of one module, and those of other stages that stand in for it."""
    hidden = vars(module).get(HIDDEN, {})
    holders = (module._parameters, module._buffers, hidden)
    return [t for holder in holders for t in dict.values(holder) if t is not None]
