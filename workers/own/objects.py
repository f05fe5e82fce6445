"""What a user's loop has protected, by name, and its state as named tensors.

model.layer1.0.weight        a tensor of a state_dict, by its own name
optimizer.3.exp_avg          one that an optimizer has for its parameter number 3
schedule#form #0 #1          what is nested in one, see `bundlerun.workers.values.encoded`

Parameters and what an optimizer keeps change in an optimizer's step only, so they need not be
copied before the next one. All else (running means, counters, averages of the weights) may change
at any time: it is copied at once. So is, from the first step on, what is seen to change like that.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from bundlerun.launcher.errors import CheckpointError, ConfigError
from bundlerun.launcher.layout.rounding import rounded_up
from bundlerun.workers.state.tensor_file import check_dtypes
from bundlerun.workers.values.encoded import FORM, decoded, encoded
from bundlerun.workers.values.nest import mapped

_ROOM = 1024
"""Bytes: a form that grows changes the layout of a snapshot, so it gets twice what it needs."""
_REST = "rest"
_SHARDED = ("DTensor", "ShardedTensor")


class Stateful(Protocol):
    """Whatever can tell its state and take it up again: a module, an optimizer, a schedule."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state: tensors, numbers and texts, in dicts, lists and tuples."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> object:  # noqa: ANN401 (as torch has it)
        """Takes it up."""
        ...


def named(objects: Sequence[Stateful]) -> dict[str, Stateful]:
    """The objects by name: model, optimizer, or their class; the second of a kind is model2.

    Raises:
        ConfigError: one has no state, or is given twice.
    """
    found: dict[str, Stateful] = {}
    for given in objects:
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(given, method, None)):
                raise ConfigError(
                    f"protect() got {_shown(given)}, which has no {method}(); give it modules, "
                    "optimizers, schedulers and what else has both state_dict() and "
                    "load_state_dict()"
                )
        inner = _unwrapped(given)
        if any(inner is other for other in found.values()):
            raise ConfigError(f"protect() got one {type(inner).__name__} twice; give it once")
        base = _kind(inner)
        same = sum(name.rstrip("0123456789") == base for name in found)
        found[base if not same else f"{base}{same + 1}"] = inner
    return found


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


def _unwrapped(given: Stateful) -> Stateful:
    """The model itself, whose names do not depend on what is around it.

    Raises:
        ConfigError: each rank has a part of it only.
    """
    inner: Any = given
    while True:
        if type(inner).__name__ == "FullyShardedDataParallel":
            raise ConfigError(
                "protect() keeps what all ranks have alike, and FullyShardedDataParallel gives "
                "each rank a part; use DistributedDataParallel"
            )
        if isinstance(inner, DistributedDataParallel):
            inner = inner.module
        elif isinstance(inner, nn.Module) and hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod  # of torch.compile
        else:
            found: Stateful = inner
            return found


def _kind(value: Stateful) -> str:
    if isinstance(value, nn.Module):
        return "model"
    return "optimizer" if isinstance(value, Optimizer) else type(value).__name__.lower()


class Packing:
    """Turns states of objects into named tensors; forms keep their room, so that layouts stay."""

    def __init__(self) -> None:
        self._rooms: dict[str, int] = {}

    def packed(self, name: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
        """A state, by names that begin with `name`; tensors as they are.

        Raises:
            CheckpointError: something in it cannot be kept.
        """
        direct = {key: value for key, value in state.items() if _is_direct(key, value)}
        rest = {key: value for key, value in state.items() if key not in direct}
        found = {f"{name}.{key}": value for key, value in direct.items()}
        nested = encoded(rest, f"the state of {name}", lambda length: self._room(name, length))
        found |= {name + suffix: value for suffix, value in nested.items()}
        for key, value in found.items():
            if type(value).__name__ in _SHARDED:
                raise CheckpointError(
                    f"cannot keep {key!r}: it is a {type(value).__name__}, of which each rank has "
                    "a part; protect() keeps what all ranks have alike"
                )
        return found

    def _room(self, name: str, length: int) -> int:
        if length > self._rooms.get(name, 0):
            self._rooms[name] = rounded_up(2 * length, _ROOM)
        return self._rooms[name]


def _is_direct(key: object, value: object) -> bool:
    return isinstance(value, Tensor) and isinstance(key, str) and "#" not in key


def unpacked(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state that `Packing.packed` was given for `name`.

    Raises:
        CheckpointError: there is none.
    """
    if name + FORM not in tensors:
        has = sorted(key.removesuffix(FORM) for key in tensors if key.endswith(FORM))
        raise CheckpointError(
            f"the run's state has nothing of {name!r}, it has {', '.join(has)}; give protect() the "
            "same objects in the same order as before, or another run_dir"
        )
    prefix = f"{name}."
    state: dict[str, Any] = decoded(tensors, name)
    return state | {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}


class Objects:
    """The state of some objects, which all ranks have alike.

    Args:
        objects: of the user.
    """

    def __init__(self, objects: Sequence[Stateful]) -> None:
        self._named = named(objects)
        self._packing = Packing()
        self._is_known = False
        self._moving: set[str] = set()
        """Names that were seen to change outside of an optimizer's step."""
        self._lent: list[tuple[str, Tensor, int]] = []
        """What was not copied at the last `state`, with its version then."""

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those among them."""
        return [each for each in self._named.values() if isinstance(each, Optimizer)]

    @property
    def modules(self) -> list[nn.Module]:
        """Those among them."""
        return [each for each in self._named.values() if isinstance(each, nn.Module)]

    def buffers(self) -> dict[str, Tensor]:
        """Running means and the like, by name.

        Ranks may have others: DistributedDataParallel copies those of the first rank to all as the
        next forward begins, and not as a step ends.
        """
        modules = ((n, each) for n, each in self._named.items() if isinstance(each, nn.Module))
        return {f"{n}.{key}": t for n, each in modules for key, t in each.named_buffers()}

    def state(self) -> dict[str, Tensor]:
        """The whole state by name; what is no copy does not change before `look`.

        Raises:
            CheckpointError: something in it cannot be kept.
        """
        owned = {id(p) for o in self.optimizers for g in o.param_groups for p in g["params"]}
        found: dict[str, Tensor] = {}
        self._lent = []
        for key, value, is_optimizers in self._tensors():
            is_lent = is_optimizers or id(value) in owned
            tensor = value.detach()
            if is_lent and key not in self._moving:
                self._lent.append((key, tensor, tensor._version))
                # Before the first step nobody knows what a forward writes.
                found[key] = tensor if self._is_known else tensor.clone()
            else:
                found[key] = tensor.clone()
        return found

    def _tensors(self) -> Iterable[tuple[str, Tensor, bool]]:
        for name, each in self._named.items():
            is_optimizer = isinstance(each, Optimizer)
            state = _state_of(name, each)
            if is_optimizer:
                state = _flat(state)
            for key, value in self._packing.packed(name, state).items():
                yield key, value, is_optimizer and not key.endswith(FORM)

    def look(self) -> list[str]:
        """What has changed since `state` and was not copied then; is copied from here on.

        Called before an optimizer's step.
        """
        changed = [key for key, tensor, version in self._lent if tensor._version != version]
        told = changed if self._is_known else []
        self._moving |= set(changed)
        self._is_known = self._is_known or bool(self._lent)
        self._lent = []
        return told

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `state` gave; `tensors` are not used any more afterwards.

        Raises:
            CheckpointError: it is of other objects.
        """
        states = {name: unpacked(name, tensors) for name in self._named}
        for name, each in self._named.items():
            try:
                _load(each, states[name])
            except (RuntimeError, ValueError, KeyError) as exc:
                text = " ".join(str(exc).split())[:400]
                raise CheckpointError(
                    f"{name} does not take up its state of the run: {text}; is it another model or "
                    "optimizer than in the run's last start? Then give another run_dir"
                ) from exc

    def check(self) -> None:
        """Raises ConfigError for what no checkpoint could hold."""
        for name, each in self._named.items():
            parameters = each.named_parameters() if isinstance(each, nn.Module) else ()
            lazy = next((key for key, value in parameters if is_lazy(value)), None)
            if lazy is not None:
                raise ConfigError(
                    f"protect() got {name}.{lazy}, which has no values before a first forward (a "
                    "lazy module); let a batch through the model before"
                )
        try:
            check_dtypes({key: value for key, value, _ in self._tensors()})
        except CheckpointError as exc:
            raise ConfigError(f"this loop cannot be protected: {exc}") from exc


def _state_of(name: str, each: Stateful) -> Mapping[str, Any]:
    try:
        # With the parameters themselves: whose they are tells when they change.
        return each.state_dict(keep_vars=True) if isinstance(each, nn.Module) else each.state_dict()
    except RuntimeError as exc:
        raise CheckpointError(f"the state of {name} cannot be read: {exc}") from exc


def _flat(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer with its tensors at the top: a tenth of the time for each step."""
    found: dict[str, Any] = {key: value for key, value in state.items() if key != "state"}
    rest: dict[int, dict[str, Any]] = {}
    for number, values in state["state"].items():
        # With their keys in order; a tensor's is without a value.
        rest[number] = {k: None if isinstance(v, Tensor) else v for k, v in values.items()}
        found |= {f"{number}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
    return found | {_REST: rest}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What `_flat` was given."""
    state: dict[int, dict[str, Any]] = {n: dict(own) for n, own in flat[_REST].items()}
    found: dict[str, Any] = {"state": state}
    for key, value in flat.items():
        number, dot, name = key.partition(".")
        if isinstance(value, Tensor) and dot and number.isdecimal():
            state[int(number)][name] = value
        elif key != _REST:
            found[key] = value
    return found


def _load(each: Stateful, state: dict[str, Any]) -> None:
    if isinstance(each, nn.Module):
        own: Any = each.state_dict()
        given: Any = OrderedDict(state)
        given._metadata = getattr(own, "_metadata", None)  # versions of the modules' states
        each.load_state_dict(given)
        return
    copied = _copied(_nested(state) if isinstance(each, Optimizer) else state)
    each.load_state_dict(copied)
    if isinstance(each, Optimizer):
        _mend_dtypes(each, copied)


def _copied(value: Any) -> Any:  # noqa: ANN401 (a state)
    # Torch's optimizers take tensors over as they are, and these are the memory of a snapshot.
    return mapped(lambda v: v.clone() if isinstance(v, Tensor) else v, value)


def _mend_dtypes(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Gives states back their dtypes: torch casts them to that of their parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for parameter, number in zip(parameters, numbers, strict=True):
        kept = state["state"].get(number, {})
        for key, value in optimizer.state.get(parameter, {}).items():
            before = kept.get(key)
            is_cast = isinstance(value, Tensor) and isinstance(before, Tensor)
            if is_cast and before.dtype != value.dtype:
                optimizer.state[parameter][key] = before.to(value.device)


def first_difference(ranks: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """Says what ranks do not have alike, first of all, and on which of them.

    Args:
        ranks: the node of each, and its `fingerprints`; they differ.
    """
    names = sorted({name for _, prints in ranks for name in prints})
    name = next(n for n in names if len({prints.get(n) for _, prints in ranks}) > 1)
    has = [prints.get(name, "not there") for _, prints in ranks]
    other = next(rank for rank, its in enumerate(has) if its != has[0])
    # The print of a form says nothing to people.
    is_form = name.endswith(FORM) and "not there" not in (has[0], has[other])
    one, two = ("one", "another") if is_form else (has[0], has[other])
    return (
        f"ranks differ in {name.partition('#')[0]!r}: it is {one} on rank 0 on {ranks[0][0]} and "
        f"{two} on rank {other} on {ranks[other][0]}; protect() keeps it once for all: give what "
        "each rank has for itself as each_rank=[...], or make it the same"
    )


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What ranks compare: dtype and shape of each tensor, and what forms say."""
    return {
        key: hashlib.sha256(value.numpy().tobytes()).hexdigest()[:12]
        if key.endswith(FORM)
        else f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        for key, value in tensors.items()
    }
