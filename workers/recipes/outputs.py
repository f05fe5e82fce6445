"""What models return, taken apart: logits by themselves, in a dict, or first of several."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bundlerun.launcher.errors import ConfigError

_NAMES = ("logits", "out")
"""As transformers and torchvision call them."""


def logits_of(output: object, dimensions: str) -> Tensor:
    """The logits in what a model returns.

    Args:
        dimensions: what they should be, such as "batch, tokens, vocabulary"; for their number
            and the message.

    Raises:
        ConfigError: there are none.
    """
    found = output
    if isinstance(found, Mapping):
        found = next((found[name] for name in _NAMES if name in found), None)
    elif isinstance(found, (tuple, list)) and found:
        found = found[0]
    wanted = dimensions.count(",") + 1
    if isinstance(found, Tensor) and found.ndim == wanted and found.is_floating_point():
        return found
    shown = type(output).__name__
    if isinstance(output, Mapping):
        shown += f" with {', '.join(map(repr, output)) or 'nothing'}"
    if isinstance(found, Tensor):
        shown += f" with a tensor {list(found.shape)} of {found.dtype}"
    raise ConfigError(
        f"the model returns {shown}, not logits ({dimensions}); let it return these, by "
        "themselves, first, or as 'logits' of a dict"
    )
