"""A pytest plugin for builds of torch that torchvision's wheel is not linked for.

Its operators cannot be loaded then, and its import ends at those that it describes to torch without
looking whether they are there. No model here uses them.
"""

from __future__ import annotations

import torch

for name in ("nms", "qnms"):
    torch.library.define(
        f"torchvision::{name}", "(Tensor dets, Tensor scores, float limit) -> Tensor"
    )
