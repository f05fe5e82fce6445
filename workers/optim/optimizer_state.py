"""What an optimizer keeps, as named tensors, the same names however the model is split.

    optimizer.W.momentum_buffer          a tensor that it keeps for the parameter W
    optimizer.W.step#int                 a Python number that it keeps for it
    optimizer.W.factors#form             anything nested: JSON bytes, see `workers.values.nest`, ...
    optimizer.W.factors#0  #1  ...       ... and the tensors in it
    optimizer.W.@group#form              what the optimizer has changed in the group of W

So a value of a group is kept with each of its parameters. Where groups of several stages meet in
one, as another cut makes them, the value of the parameter that comes first in the model holds, and
it is told where they differ.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bundlerun.launcher.errors import CheckpointError
from bundlerun.workers.optim.param_groups import ParamGroups
from bundlerun.workers.values.encoded import FORM, decoded, encoded
from bundlerun.workers.values.nest import mapped

OPTIMIZER = "optimizer."
_NUMBERS: dict[str, type[bool] | type[int] | type[float]] = {
    "bool": bool,
    "int": int,
    "float": float,
}
_GROUP = "@group"

log = logging.getLogger(__name__)


def owner_of(name: str) -> str | None:
    """The parameter whose optimizer state `name` is; None for anything else."""
    return name[len(OPTIMIZER) :].rpartition(".")[0] if name.startswith(OPTIMIZER) else None


# --- to tensors


def optimizer_tensors(
    module: nn.Module, optimizer: Optimizer, groups: ParamGroups | None
) -> Iterator[tuple[str, Tensor]]:
    """The whole state of the optimizer by name, detached but not copied.

    Raises:
        CheckpointError: something is neither tensor nor number nor these nested.
    """
    what = type(optimizer).__name__
    records = {} if groups is None else groups.records()
    of_groups = {
        key: encoded(record, f"a group of {what}")
        # Once per group: all parameters of a group share one record.
        for key, record in {id(r): r for r in records.values()}.items()
    }
    num_kept = 0
    for name, parameter in module.named_parameters():
        state = optimizer.state.get(parameter)
        # Counted, to notice state that belongs to no parameter of this stage.
        num_kept += state is not None
        full = f"{OPTIMIZER}{name}."
        for key, value in _by_key(state or {}):
            if isinstance(value, Tensor):
                yield full + key, value.detach()
            else:
                yield from _kept(full + key, value, f"{key!r} of {what} for {name!r}")
        if records and parameter in records:
            for suffix, tensor in of_groups[id(records[parameter])].items():
                yield f"{full}{_GROUP}{suffix}", tensor
    if num_kept < len(optimizer.state):
        _refuse_strays(module, optimizer)


def _refuse_strays(module: nn.Module, optimizer: Optimizer) -> None:
    strays = optimizer.state.keys() - set(module.parameters())
    raise CheckpointError(
        f"cannot keep what {type(optimizer).__name__} has for {len(strays)} keys that are no "
        f"parameters of the model, such as {_shown(min(strays, key=str))}; it has to keep that "
        "with a parameter, or in a group"
    )


def _shown(key: object) -> str:
    return f"a tensor of {list(key.shape)}" if isinstance(key, Tensor) else repr(key)


def _by_key(state: Mapping[Any, object]) -> Iterator[tuple[str, object]]:
    """The entries of a parameter's state; those that no name can hold come together under one."""
    odd = {}
    for key, value in state.items():
        # A dot or # in a key could not be told from those of the name's own parts.
        if isinstance(key, str) and key.isidentifier():
            yield key, value
        else:
            odd[key] = value
    if odd:
        yield "", odd


def _kept(full: str, value: object, place: str) -> Iterator[tuple[str, Tensor]]:
    if type(value) in _NUMBERS.values() and _fits(value):
        dtype = torch.float64 if isinstance(value, float) else torch.int64
        yield f"{full}#{type(value).__name__}", torch.tensor(value, dtype=dtype)
    else:
        for suffix, tensor in encoded(value, place).items():
            yield full + suffix, tensor


def _fits(value: Any) -> bool:  # noqa: ANN401 (a number)
    # Python's integers have no end; larger ones go into a form, as JSON's have none either.
    return isinstance(value, float) or -(1 << 63) <= value < 1 << 63


# --- and back


def load_optimizer(
    module: nn.Module,
    optimizer: Optimizer,
    tensors: Mapping[str, Tensor],
    groups: ParamGroups | None,
) -> None:
    """Puts what `optimizer_tensors` gave into an optimizer, in place of what it has.

    A parameter that was not trained before begins without state; that of one that is not trained
    any more is dropped.

    Raises:
        CheckpointError: there is state for a parameter that the model does not have.
    """
    by_owner = _values(module, tensors)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
    states: dict[Tensor, dict[Any, object]] = {}
    records: dict[Tensor, Any] = {}
    dropped = []
    for owner, values in by_owner.items():
        parameter = parameters[owner]
        record = values.pop(_GROUP, None)
        # Frozen since, or left out by another recipe: nothing takes its state.
        if parameter not in group_of:
            dropped += [owner] if values else []
            continue
        if record is not None:
            records[parameter] = record
        odd: Any = values.pop("", {})
        placed = {
            key: _placed(key, value, parameter, group_of[parameter])
            for key, value in [*values.items(), *odd.items()]
        }
        if placed:
            states[parameter] = placed
    if groups is None or groups.speaks:
        _tell(type(optimizer).__name__, module, dropped, states, group_of)
    optimizer.state.clear()
    optimizer.state.update(states)
    if groups is not None:
        groups.load({p: records[p] for p in parameters.values() if p in records})


def _values(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What is kept, by parameter and key, put together again."""
    # Tied parameters under all their names: another cut may have saved the state under another.
    known = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    found: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        owner = owner_of(name)
        if owner is None:
            continue
        if owner not in known:
            raise CheckpointError(
                f"the checkpoint has {name!r}, which is of no parameter of the model"
            )
        # What is after the # says how the tensor is to be read; without one it is the value.
        key, _, what = name[len(OPTIMIZER) + len(owner) + 1 :].partition("#")
        if what in _NUMBERS:
            found.setdefault(owner, {})[key] = _NUMBERS[what](tensor.item())
        elif what == "form":
            found.setdefault(owner, {})[key] = decoded(tensors, name.removesuffix(FORM))
        elif not what:
            found.setdefault(owner, {})[key] = tensor
    return found


def _tell(
    what: str,
    module: nn.Module,
    dropped: Sequence[str],
    states: Mapping[Tensor, object],
    group_of: Mapping[Tensor, object],
) -> None:
    if dropped:
        log.warning(
            "%s does not train %d parameters any more, such as %r: what it kept for them is left",
            what, len(dropped), dropped[0],
        )  # fmt: skip
    trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    new = [n for n, p in trained if p in group_of and p not in states]
    if new and states:
        log.warning(
            "the state to resume from has nothing that %s keeps for %d of its parameters, such as "
            "%r: they begin from nothing", what, len(new), new[0],
        )  # fmt: skip


def _placed(key: object, value: object, parameter: Tensor, group: Mapping[str, object]) -> object:
    """A copy of a parameter's state where the optimizer expects it."""
    # As torch's own load_state_dict: a step counter stays on the CPU, unless a kernel reads it.
    on_device = key != "step" or bool(group.get("capturable") or group.get("fused"))
    device = parameter.device if on_device else torch.device("cpu")
    return mapped(lambda v: _like(v, parameter, device) if isinstance(v, Tensor) else v, value)


def _like(tensor: Tensor, parameter: Tensor, device: torch.device) -> Tensor:
    """A copy of optimizer state in the parameter's memory layout, dtype kept.

    torch's own `Optimizer.load_state_dict` casts state to the parameter's dtype, which would not
    be bit-equal for an optimizer that keeps float32 state of bfloat16 parameters.
    """
    if tensor.shape != parameter.shape:
        return tensor.to(device, copy=True)
    return torch.empty_like(parameter, dtype=tensor.dtype, device=device).copy_(tensor).detach()
