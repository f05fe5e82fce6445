"""torch's operations on the device: what a result looks like at once, the work when its turn comes.

torch finds no kernel of ours for an operation and calls `Kernels.call`. Views are made by the CPU's
kernel, which only writes another shape beside the same memory. Anything else is done with tensors
of no memory ("meta") for the shapes, and given to the current stream to be done on the CPU. What an
operation is made of in torch itself (`reshape`, `zeros`) gets here as its parts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.standin.device import KIND, Device
from tests.standin.draws import Generator, draws

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_WRITES_UNTOLD = {"aten::native_batch_norm": ("running_mean", "running_var")}
"""What operations write though their signature does not say so."""
Look = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Size, stride and type of a tensor."""
_LOOKED_AT = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_PREFIXES = ("aten::_foreach_", "aten::_fused_")
"""One kernel or a few on a GPU; torch would take them apart here."""
_TAKE_NUMBERS = ("add", "sub", "mul", "div", "true_divide", "floor_divide", "ne")
_WHOLE = ("aten::native_layer_norm", "aten::native_group_norm")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of an operation from its signature."""

    name: str
    is_view: bool
    is_looked_at: bool
    draws: bool
    written: frozenset[str]
    names: tuple[str, ...]
    """Of its arguments, in order."""
    is_in_place: bool
    """Whether it returns nothing but what it was given."""
    targets: tuple[str, ...]
    """Arguments that it may make longer: `out`."""
    tensors: frozenset[int]
    """Positions of arguments where Python may give no number."""

    def writes(self, position: int | str) -> bool:
        """Whether it writes an argument, which is named or at some position."""
        name = position if isinstance(position, str) else self.names[position]
        return name in self.written


@functools.cache
def plan_of(op: Any) -> Plan:
    """The plan of an operation."""
    schema = op._schema
    aliases = [r.alias_info for r in schema.returns]
    written = {a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write}
    return Plan(
        name=str(op).removeprefix("aten."),
        is_view=any(a is not None and not a.is_write for a in aliases),
        is_looked_at=any(tag in op.tags for tag in _LOOKED_AT),
        draws=draws(op),
        written=frozenset(written | set(_WRITES_UNTOLD.get(schema.name, ()))),
        names=tuple(a.name for a in schema.arguments),
        is_in_place=bool(written) and all(a is not None and a.is_write for a in aliases),
        targets=tuple(a.name for a in schema.arguments if a.kwarg_only and a.name in written),
        tensors=frozenset(_tensors_only(op)),
    )


def _tensors_only(op: Any) -> list[int]:
    """Positions of arguments where Python may not give a number though torch takes it for one."""
    schema = op._schema
    if schema.name.removeprefix("aten::").rstrip("_") in _TAKE_NUMBERS:
        return []
    return [i for i, a in enumerate(schema.arguments) if str(a.type) == "Tensor"]


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Arguments or results with each leaf changed; lists become tuples, which can be compared."""
    if isinstance(value, (list, tuple)):
        return tuple(mapped(each, change) for each in value)
    if isinstance(value, dict):
        return {name: mapped(each, change) for name, each in value.items()}
    return change(value)


def leaves_of(value: Any) -> list[Any]:
    """What is in nested lists and tuples, in order."""
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in leaves_of(each)]
    return [value]


def _look_of(tensor: Tensor) -> Look:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _signature(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return type(value), value
    return value.device.type, *_look_of(value)


def is_ours(value: object) -> bool:
    """Whether it is a tensor of the device."""
    return isinstance(value, Tensor) and value.device.type == KIND


def _is_mixed(lists: Sequence[Sequence[Tensor]]) -> bool:
    """Whether some of the tensors are ours and some are not."""
    return len({is_ours(tensor) for tensors in lists[:2] for tensor in tensors}) > 1


class Kernels:
    """What torch calls for tensors of a device.

    Args:
        device: theirs.
        generator: its random numbers.
    """

    def __init__(self, device: Device, generator: Generator) -> None:
        self._device = device
        self._generator = generator
        self._looks: dict[Any, list[Look | None]] = {}
        """What operations return, by what they are given; torch takes long to say."""

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Does an operation."""
        plan = plan_of(op)
        if op._schema.name == "aten::_foreach_copy_" and _is_mixed(args):
            # As torch does where memory of several kinds meets: one copy after the other.
            for target, source in zip(args[0], args[1], strict=True):
                target.copy_(source, *args[2:], **kwargs)
            return None
        if plan.is_view:
            return op.redispatch(_CPU, *args, **kwargs)
        args = _with_tensors(plan, args)
        act = self._generator.bound(op, kwargs) if plan.draws else op
        if plan.is_looked_at:
            return self._look(act, args, kwargs)
        if plan.targets:
            self._lengthen(op, plan, args, kwargs)
        inputs = mapped((args, kwargs), self._captured)
        uses = [self._device.use(t, writes=writes) for t, writes in _tensors(plan, args, kwargs)]
        results = [] if plan.is_in_place else self._results(op, plan, args, kwargs)
        outputs = [None if t is None else self._device.plain(t) for t in results]
        uses += [self._device.use(t, writes=True) for t in results if t is not None]

        def work() -> None:
            with torch._C._AutoDispatchBelowAutograd():  # type: ignore[attr-defined]
                _fill(outputs, act(*inputs[0], **inputs[1]))

        self._device.give(plan.name, work, uses)
        return _returned(op, plan, args, kwargs, results)

    def _captured(self, value: Any) -> Any:
        """An argument as it is now, for the CPU."""
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if not isinstance(value, Tensor):
            return value
        if is_ours(value):
            return self._device.plain(value)
        if value.dim():
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, "
                f"{KIND}:0 and {value.device}!"
            )
        # As CUDA does: a number is read when the kernel is started.
        return value.detach().clone()

    def _results(self, op: Any, plan: Plan, args: Any, kwargs: Any) -> list[Tensor | None]:
        """Memory for what an operation returns."""
        looks = self._looks_of(op, args, kwargs)
        if "output_mask" in plan.names:
            mask = args[plan.names.index("output_mask")]
            looks = [look if wanted else None for look, wanted in zip(looks, mask, strict=True)]
        return [look if look is None else self._device.empty(*look) for look in looks]

    def _looks_of(self, op: Any, args: Any, kwargs: Any) -> list[Look | None]:
        """How that looks."""
        key = op, mapped((args, tuple(kwargs.items())), _signature)
        if key not in self._looks:
            metas = mapped((args, kwargs), _meta)
            found = leaves_of(op(*metas[0], **metas[1]))
            self._looks[key] = [m if m is None else _look_of(m) for m in found]
        return self._looks[key]

    def _lengthen(self, op: Any, plan: Plan, args: Any, kwargs: Any) -> None:
        """Gives a result that is to be written into a tensor the room that it needs."""
        targets = [t for name in plan.targets for t in leaves_of(kwargs.get(name)) if is_ours(t)]
        if any(target.numel() for target in targets):
            return
        try:
            looks = self._looks_of(op, args, kwargs)
        except NotImplementedError:  # nobody can know, so torch has looked already
            return
        for target, look in zip(targets, looks, strict=False):
            if look is not None and tuple(target.shape) != look[0]:
                self.resize(target, look[0])

    def resize(self, tensor: Tensor, size: Sequence[int]) -> Tensor:
        """Gives a tensor another size; what was in it is lost."""
        made = self.like(torch.empty(size, dtype=tensor.dtype, device="meta"))
        set_ = torch.ops.aten.set_.source_Storage_storage_offset
        resized: Tensor = set_.redispatch(
            _CPU, tensor, made.untyped_storage(), 0, made.shape, made.stride()
        )
        return resized

    def like(self, meta: Tensor) -> Tensor:
        """Memory for a tensor that looks like another one."""
        return self._device.empty(*_look_of(meta))

    def _look(self, act: Any, args: Any, kwargs: Any) -> Any:
        """An operation whose result has a size that nobody can know before."""
        self._device.wait_current()
        inputs = mapped((args, kwargs), self._captured)
        found = act(*inputs[0], **inputs[1])
        return mapped(found, self._placed)

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        made = self.like(value)
        self._device.plain(made).copy_(value)
        return made


def _with_tensors(plan: Plan, args: Sequence[Any]) -> Sequence[Any]:
    """torch hands numbers over as such where the signature has a tensor."""
    return [
        torch.tensor(a, dtype=torch.float64 if isinstance(a, float) else None)
        if i in plan.tensors and isinstance(a, (int, float, complex))
        else a
        for i, a in enumerate(args)
    ]


def _tensors(plan: Plan, args: Sequence[Any], kwargs: dict[str, Any]) -> list[tuple[Tensor, bool]]:
    """The tensors of the device among some arguments, and whether they are written."""
    found = []
    for position, value in [*enumerate(args), *kwargs.items()]:
        found += [(leaf, plan.writes(position)) for leaf in leaves_of(value) if is_ours(leaf)]
    return found


def _meta(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("meta")
    if not isinstance(value, Tensor):
        return value
    if value.device.type == "cpu":
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _fill(outputs: Sequence[Tensor | None], found: Any) -> None:
    """Puts what an operation made where it was promised."""
    for output, value in zip(outputs, leaves_of(found), strict=False):
        if output is not None and output.numel():
            output.copy_(value)


def _returned(op: Any, plan: Plan, args: Any, kwargs: Any, results: list[Tensor | None]) -> Any:
    if not plan.is_in_place:
        if _is_list(op):
            return list(results)
        return results[0] if len(op._schema.returns) == 1 else tuple(results)
    given = {**dict(zip(plan.names, args, strict=False)), **kwargs}
    written = [given[name] for name in plan.names if name in plan.written]
    count = len(op._schema.returns)
    return None if not count else written[0] if count == 1 else tuple(written[:count])


def _is_list(op: Any) -> bool:
    return "[]" in str(op._schema.returns[0].type) or "List" in str(op._schema.returns[0].type)


def whole_operations() -> list[str]:
    """Names of operations that are one here though torch can take them apart."""
    names: list[str] = torch._C._dispatch_get_all_op_names()  # type: ignore[attr-defined]
    return [n for n in names if n.startswith(_PREFIXES) or n in _WHOLE]


def overload(name: str) -> Any:
    """The operation of a full name, such as "aten::add.out"."""
    space, _, rest = name.partition("::")
    base, _, kind = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, space), base), kind or "default")
