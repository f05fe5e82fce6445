"""Building a model without memory for its parameters."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

Built = nn.Module | Sequence[nn.Module]


def build_on_default_device(build: Callable[[], Built]) -> Built:
    """What `build` returns; on the meta device also where it computes while building.

    Under `torch.device("meta")` a constructor cannot read numbers back from a tensor, nor move one
    to a device. Then only the parameters go to the meta device, and where it reads these, too, such
    as weights that it has loaded, none before it is done.

    Args:
        build: is called a second time there, and a third.
    """
    if torch.get_default_device().type != "meta":
        return build()
    # Weights loaded there are left out, as all numbers are; torch warns of each tensor.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is a no-op")
        # Whatever a user's code made of it: an error that is not about meta comes again below.
        with contextlib.suppress(Exception):
            return build()
        built = _built_on_cpu(build)
    for module in [built] if isinstance(built, nn.Module) else built:
        module.to("meta")  # what is not there
    return built


def _built_on_cpu(build: Callable[[], Built]) -> Built:
    with torch.device("cpu"):
        with contextlib.suppress(Exception), _parameters_on_meta():
            return build()
        return build()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    # torch annotates the hook as returning nothing; what it returns takes the parameter's place.
    handle = register_module_parameter_registration_hook(_meta_parameter)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def _meta_parameter(
    module: nn.Module, name: str, parameter: nn.Parameter | None
) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta:
        return None  # as it is: a tied parameter stays one object
    return nn.Parameter(parameter.to("meta"), parameter.requires_grad)
