"""The state of one stage as named tensors, the same names however the model is split.

model.layer1.0.conv1.weight                          a parameter or persistent buffer
optimizer.layer1.0.conv1.weight.momentum_buffer      a tensor the optimizer keeps for it
optimizer.layer1.0.conv1.weight.step#int             a Python number it keeps for it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from launcher.errors import CheckpointError, nearest

MODEL = "model."
OPTIMIZER = "optimizer."
_NUMBERS: dict[str, type[bool] | type[int] | type[float]] = {
    "bool": bool,
    "int": int,
    "float": float,
}


def state_tensors(module: nn.Module, optimizer: Optimizer | None) -> dict[str, Tensor]:
    """The whole state of a stage, detached but not copied.

    Args:
        module: the stage itself, not what torch.compile made of it.
        optimizer: over parameters of `module`, or None.

    Raises:
        CheckpointError: a state is neither tensor nor number.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"cannot keep {name!r} of the model: {type(value).__name__}")
        tensors[MODEL + name] = value.detach()
    if optimizer is not None:
        tensors.update(_optimizer_tensors(module, optimizer))
    return tensors


def _optimizer_tensors(module: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            full = f"{OPTIMIZER}{name}.{key}"
            if isinstance(value, Tensor):
                yield full, value.detach()
            elif isinstance(value, (bool, int, float)):
                dtype = torch.float64 if isinstance(value, float) else torch.int64
                yield f"{full}#{type(value).__name__}", torch.tensor(value, dtype=dtype)
            elif value is not None:
                raise CheckpointError(
                    f"cannot keep {key!r} of {type(optimizer).__name__} for {name!r}: "
                    f"{type(value).__name__} is neither a tensor nor a number"
                )


def stage_names(module: nn.Module, available: Iterable[str]) -> list[str]:
    """Those of the names `available` in a checkpoint that belong to the stage `module`.

    Raises:
        CheckpointError: a parameter or buffer of the stage is not available.
    """
    names = list(available)
    model = {MODEL + name for name in module.state_dict()}
    _check_names(model, [name for name in names if name in model])
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return [name for name in names if name in model or _owner(name) in parameters]


def _owner(name: str) -> str | None:
    """The parameter whose optimizer state `name` is; None for anything else."""
    return name[len(OPTIMIZER) :].rpartition(".")[0] if name.startswith(OPTIMIZER) else None


def load_state_tensors(
    module: nn.Module, optimizer: Optimizer | None, tensors: Mapping[str, Tensor]
) -> None:
    """Puts `tensors` into the stage and its optimizer, so that training goes on bit-equal.

    Args:
        module: the stage itself, not what torch.compile made of it.
        optimizer: its state is replaced; None leaves optimizer state in `tensors` unused.
        tensors: exactly the stage's own, as `stage_names` picks them.

    Raises:
        CheckpointError: model names are missing or too many, a shape differs, or optimizer state
            is for a parameter that `optimizer` does not have. Nothing is changed then.
    """
    own = module.state_dict()
    given = {n[len(MODEL) :]: tensor for n, tensor in tensors.items() if n.startswith(MODEL)}
    _check_names({MODEL + name for name in own}, [MODEL + name for name in given])
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{name!r} has shape {_shape(tensor)} in the checkpoint and {_shape(own[name])} in "
                "the model; is the checkpoint of another --model or --num-classes?"
            )
    states = {} if optimizer is None else _optimizer_states(module, optimizer, tensors)
    module.load_state_dict(given)
    if optimizer is not None:
        optimizer.state.clear()
        optimizer.state.update(states)


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


def _optimizer_states(
    module: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]
) -> dict[Tensor, dict[str, object]]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    states: dict[Tensor, dict[str, object]] = {}
    for name, tensor in tensors.items():
        owner = _owner(name)
        if owner is None:
            continue
        parameter = parameters.get(owner)
        if parameter is None or parameter not in groups:
            raise CheckpointError(
                f"the checkpoint has {name!r}, which the optimizer does not train"
            )
        key, _, number = name[len(OPTIMIZER) + len(owner) + 1 :].partition("#")
        group = groups[parameter]
        on_device = key != "step" or bool(group.get("capturable") or group.get("fused"))
        value = _NUMBERS[number](tensor.item()) if number else _like(tensor, parameter, on_device)
        states.setdefault(parameter, {})[key] = value
    return states


def _like(tensor: Tensor, parameter: nn.Parameter, on_device: bool) -> Tensor:
    """A copy of optimizer state where the optimizer expects it, dtype kept.

    torch's own `Optimizer.load_state_dict` casts state to the parameter's dtype, which would not
    be bit-equal for an optimizer that keeps float32 state of bfloat16 parameters.
    """
    device = parameter.device if on_device else torch.device("cpu")
    if tensor.shape != parameter.shape:
        return tensor.to(device, copy=True)
    return torch.empty_like(parameter, dtype=tensor.dtype, device=device).copy_(tensor).detach()
