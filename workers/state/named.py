"""The state of one stage as named tensors, the same names however the model is split.

model.layer1.0.conv1.weight                          a parameter or persistent buffer
optimizer.layer1.0.conv1.weight.momentum_buffer      see `bundlerun.workers.optim.optimizer_state`
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from bundlerun.launcher.errors import CheckpointError, nearest
from bundlerun.launcher.run_folder.checkpoints import MODEL
from bundlerun.workers.optim.optimizer_state import load_optimizer, optimizer_tensors, owner_of
from bundlerun.workers.optim.param_groups import ParamGroups


def state_tensors(
    module: nn.Module,
    optimizer: Optimizer | None,
    groups: ParamGroups | None = None,
    *,
    without: Collection[str] = (),
) -> dict[str, Tensor]:
    """The whole state of a stage, detached but not copied.

    Args:
        module: the stage itself, not what torch.compile made of it.
        optimizer: over parameters of `module`, or None.
        groups: its groups; None: they are not kept.
        without: names of parameters that another stage keeps, with what the optimizer has for them.

    Raises:
        CheckpointError: a state is neither tensor nor number.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"cannot keep {name!r} of the model: {type(value).__name__}")
        tensors[MODEL + name] = value.detach()
    if optimizer is not None:
        tensors.update(optimizer_tensors(module, optimizer, groups))
    if not without:
        return tensors
    return {n: t for n, t in tensors.items() if _parameter_of(n) not in without}


def _parameter_of(name: str) -> str | None:
    """The parameter or buffer that a tensor of the state is, or is kept for."""
    return name[len(MODEL) :] if name.startswith(MODEL) else owner_of(name)


def stage_names(module: nn.Module, available: Iterable[str]) -> list[str]:
    """Those of the names `available` in a checkpoint that belong to the stage `module`.

    Raises:
        CheckpointError: a parameter or buffer of the stage is not available.
    """
    names = list(available)
    model = {MODEL + name for name in module.state_dict()}
    _check_names(model, [name for name in names if name in model])
    # Under all names: optimizer state is kept under one of them, whichever stage it is split to.
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return [name for name in names if name in model or owner_of(name) in parameters]


def load_state_tensors(
    module: nn.Module,
    optimizer: Optimizer | None,
    tensors: Mapping[str, Tensor],
    groups: ParamGroups | None = None,
) -> None:
    """Puts `tensors` into the stage and its optimizer, so that training continues bit-equal.

    Args:
        module: the stage itself, not what torch.compile made of it.
        optimizer: its state is replaced; None leaves optimizer state in `tensors` unused.
        tensors: exactly the stage's own, as `stage_names` picks them.
        groups: of the optimizer; None: what was kept of them is left unused.

    Raises:
        CheckpointError: model names are missing or too many, a shape differs, or optimizer state
            is for a parameter that the model does not have. Nothing is changed then.
    """
    # Everything is checked first, so that a refusal leaves module and optimizer as they were.
    own = module.state_dict()
    given = {n[len(MODEL) :]: tensor for n, tensor in tensors.items() if n.startswith(MODEL)}
    _check_names({MODEL + name for name in own}, [MODEL + name for name in given])
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{name!r} has shape {_shape(tensor)} in the checkpoint and {_shape(own[name])} in "
                "the model; is the checkpoint of another --model or --num-classes?"
            )
    if optimizer is not None:
        # Before the module: this may still refuse, the checked names and shapes cannot.
        load_optimizer(module, optimizer, tensors, groups)
    module.load_state_dict(given)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _check_names(wanted: set[str], given: Iterable[str]) -> None:
    found = set(given)
    for what, names, others in (
        ("has no", wanted - found, found - wanted),
        ("has, and the stage lacks,", found - wanted, wanted - found),
    ):
        if names:
            first = min(names)
            hint = f"{nearest(first, sorted(others))}; " if others else ""
            raise CheckpointError(
                f"the checkpoint {what} {first!r} ({len(names)} such names); "
                f"{hint}is it of another --model?"
            )
