"""Parts of a model that are not trained.

A frozen parameter has no gradient, and the optimizer keeps nothing for it; checkpoints have it as
all others. A norm with running statistics whose module, or whose own parameters, are frozen stays
in evaluation: it normalises by its statistics, and these do not move. All else in a frozen module,
such as dropout, does what it does in training.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.splits.modes import modes_kept
from bundlerun.splits.weights.matching import is_under, modules_of

Model = nn.Module | Sequence[nn.Module]


def freeze(model: Model, patterns: Sequence[str]) -> str:
    """Freezes what has names of these patterns; says what that is, in a line.

    Args:
        model: or its stages, under the names that `nn.Sequential` of them would give.
        patterns: of parameters, or of modules with all that they hold; `*` stands for anything.

    Raises:
        ConfigError: a pattern names nothing, nothing is left to train, or the model's own `train`
            would train what is frozen.
    """
    roots = {"": model} if isinstance(model, nn.Module) else dict(_numbered(model))
    parameters = {
        prefix + name: parameter
        for prefix, root in roots.items()
        for name, parameter in root.named_parameters(remove_duplicate=False)
    }
    for pattern in patterns:
        if not any(is_under(name, pattern) for name in parameters):
            valid = [*modules_of(parameters), *parameters]
            raise ConfigError(
                f"--freeze {pattern!r} names no parameters; {nearest(pattern, valid)}"
            )
    # By identity: of a tied parameter one name will do.
    frozen = {
        id(p): p for name, p in parameters.items() if any(is_under(name, g) for g in patterns)
    }
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    every = {id(p): p for p in parameters.values()}
    if not any(p.requires_grad for p in every.values()):
        raise ConfigError(f"--freeze {','.join(patterns)} leaves nothing to train; freeze less")
    num_still = sum(keep_norms(root, prefix, patterns) for prefix, root in roots.items())
    for root in roots.values():
        _check_stays(root, frozen)
    sizes = [sum(p.numel() for p in found.values()) / 1e6 for found in (frozen, every)]
    return (
        f"frozen: {len(frozen)} of {len(every)} parameters, {sizes[0]:.3g} of {sizes[1]:.3g} "
        f"million numbers; norms that keep their statistics: {num_still}"
    )


def keep_norms(root: nn.Module, prefix: str, patterns: Sequence[str]) -> int:
    """Keeps frozen norms in evaluation, whatever the model is told; returns how many.

    Args:
        root: of the model.
        prefix: of its names.
        patterns: of modules that are frozen; a norm whose own parameters are frozen is, too.
    """
    count = 0
    for name, module in root.named_modules():
        if not isinstance(module, _NormBase) or module.running_mean is None:
            continue
        own = list(module.parameters(recurse=False))
        is_frozen = bool(own) and not any(p.requires_grad for p in own)
        if is_frozen or any(is_under(prefix + name, pattern) for pattern in patterns):
            module.train = _StaysStill(module)  # type: ignore[method-assign, assignment]
            module.eval()
            count += 1
    return count


def _numbered(modules: Sequence[nn.Module]) -> list[tuple[str, nn.Module]]:
    return [(f"{number}.", module) for number, module in enumerate(modules)]


class _StaysStill:
    """The `train` of a module that stays in evaluation; copies of it belong to the copy."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        self._module.training = False
        return self._module


def _check_stays(root: nn.Module, frozen: dict[int, nn.Parameter]) -> None:
    with modes_kept(root):
        root.train()
        for name, parameter in root.named_parameters():
            if id(parameter) in frozen and parameter.requires_grad:
                raise ConfigError(
                    f"--freeze names {name!r}, which the model's own train() sets to be trained; "
                    "leave it out of --freeze, or change train()"
                )
