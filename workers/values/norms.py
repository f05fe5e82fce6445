"""Norms of gradients, as clipping wants them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def norms_of(gradients: Sequence[Tensor]) -> list[Tensor]:
    """The norm of each gradient that has elements: scalars in float64, on its device.

    Source: `torch.nn.utils.clip_grad_norm_`.
    """
    found = [_real(gradient) for gradient in gradients if gradient.numel()]
    # float64, as squares of large gradients overflow float32. Torch takes no empty list.
    return list(torch._foreach_norm(found, 2.0, torch.float64)) if found else []


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
