"""A model that a function of the user's own builds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from bundlerun.launcher.errors import ConfigError, nearest

OUTPUTS = ("num_outputs", "num_classes", "num_labels", "n_classes", "classes")
"""What a parameter is called that takes the number of outputs."""
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def built_by_user(
    module: ModuleType, function: str, num_outputs: int, name: str, where: str
) -> nn.Module | list[nn.Module]:
    """What a function of `module` builds.

    Args:
        module: the user's, imported.
        function: its name there.
        num_outputs: see `called_with_outputs`.
        name: of both, for messages.
        where: the module has been found, for messages.

    Raises:
        ConfigError: there is no such function, it takes something else, or it builds no model.
    """
    build = function_of(module, function, where)
    return _checked(called_with_outputs(build, num_outputs, name), name)


def function_of(module: ModuleType, function: str, where: str) -> Callable[..., Any]:
    """A function of the user's; arguments and errors as those of `built_by_user`."""
    build = getattr(module, function, None)
    if not callable(build):
        functions = [n for n, v in vars(module).items() if inspect.isfunction(v)]
        raise ConfigError(
            f"--model {where!r} has no function {function!r}; {nearest(function, functions)}"
        )
    return build  # type: ignore[no-any-return]


def called_with_outputs(build: Callable[..., Any], num_outputs: int, name: str) -> object:
    """Calls `build` with the number of outputs if it asks for it.

    It does with a parameter that is called so (`OUTPUTS`), or with a first one that has no default
    or a whole number.

    Raises:
        ConfigError: it needs something else, too.
    """
    parameters = list(inspect.signature(build).parameters.values())
    named = [p for p in parameters if p.name in OUTPUTS and p.kind is not _BY_PLACE[0]]
    first = parameters[0] if parameters and parameters[0].kind in _BY_PLACE else None
    args: tuple[int, ...] = ()
    options: dict[str, int] = {}
    given = None
    if named:
        given = named[0]
        options = {given.name: num_outputs}
    elif first is not None and _takes_number(first):
        given = first
        args = (num_outputs,)
    needs = [p.name for p in parameters if p is not given and _is_needed(p)]
    if needs:
        raise ConfigError(
            f"--model {name!r} needs {', '.join(needs)}, and is given the number of outputs only; "
            "let the function take num_outputs, or nothing, and give all else a default"
        )
    return build(*args, **options)


def _takes_number(parameter: inspect.Parameter) -> bool:
    # A bool is an int, and `pretrained=False` no number of outputs.
    return parameter.default is parameter.empty or type(parameter.default) is int


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in _ANY_NUMBER


def _checked(built: object, name: str) -> nn.Module | list[nn.Module]:
    if isinstance(built, nn.Module) and not isinstance(built, nn.ModuleList):
        return built
    stages = list(built) if isinstance(built, (list, tuple, nn.ModuleList)) else []
    if stages and all(isinstance(stage, nn.Module) for stage in stages):
        return stages
    raise ConfigError(
        f"--model {name!r} returned {type(built).__name__}; return a torch.nn.Module, or a list "
        "of them, one per stage"
    )
