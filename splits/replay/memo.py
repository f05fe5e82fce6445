"""What calls have given for arguments of the same shapes and types: they give the like again.

A stage thinks through the calls before its part once for each size of its inputs. Sizes repeat from
call to call and from micro-batch to micro-batch, such as those of padded images, and what a fake
makes of a convolution takes a hundred times as long as to look it up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten

from bundlerun.splits.replay.calls import draws, reads
from bundlerun.splits.replay.ghosts import Ghost

_PLAIN = (bool, int, float, str, type(None), torch.Size, torch.dtype, torch.device, torch.layout)
_MOST_KEPT = 1 << 14


class _Argument(NamedTuple):
    """A result that is one of the arguments: its place among their leaves."""

    place: int


class Outcome(NamedTuple):
    """The result of a call: leaves, each an argument, a tensor that looks so, or a plain value."""

    leaves: Sequence[object]
    form: TreeSpec

    def built(self, arguments: Sequence[Any], made: Callable[[Ghost], Tensor]) -> Any:  # noqa: ANN401
        """The result for other arguments that are like them.

        Args:
            arguments: leaves.
            made: gives a tensor that looks like one.
        """

        def one(leaf: Any) -> Any:  # noqa: ANN401
            if isinstance(leaf, _Argument):
                return arguments[leaf.place]
            return made(leaf) if isinstance(leaf, Ghost) else leaf

        return self.form.unflatten([one(leaf) for leaf in self.leaves])


class Memo:
    """Outcomes by what a call was given; for one kind of forwards."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Outcome] = {}

    def get(self, key: Hashable) -> Outcome | None:
        """What is known of a call."""
        return self._known.get(key)

    def put(self, key: Hashable, result: object, arguments: Sequence[object]) -> None:
        """Keeps a result, unless it holds what is not known by its look alone.

        Args:
            key: of the call.
            result: tensors without numbers, and plain values.
            arguments: leaves, as the user's code gave them.
        """
        places = {id(value): n for n, value in enumerate(arguments) if isinstance(value, Tensor)}
        flat, form = tree_flatten(result)
        leaves: list[object] = []
        for leaf in flat:
            if id(leaf) in places:
                leaves.append(_Argument(places[id(leaf)]))
            elif isinstance(leaf, Ghost):
                leaves.append(Ghost.of(leaf))
            elif isinstance(leaf, _PLAIN):
                leaves.append(leaf)
            else:
                return
        if len(self._known) >= _MOST_KEPT:
            self._known.clear()
        self._known[key] = Outcome(leaves, form)


def key_of(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    is_numberless: Callable[[Tensor], bool],
    device: torch.device,
) -> Hashable:
    """What the look of a call's result depends on; None where that is not known.

    Args:
        func: what is called.
        args: as given.
        kwargs: as given.
        is_numberless: whether nothing can be decided by the numbers of a tensor.
        device: where the call is thought.
    """
    # What overwrites its first argument gives that again, which looks as before.
    if draws(func) or reads(func) or "out" in kwargs:
        return None
    flat, form = tree_flatten((tuple(args), dict(kwargs)))
    looks: list[Hashable] = []
    tensors: dict[int, int] = {}
    for value in flat:
        if isinstance(value, Tensor):
            if not is_numberless(value):
                return None
            # The same tensor twice is another call than two alike.
            same = tensors.setdefault(id(value), len(tensors))
            looks.append((value.shape, value.stride(), value.dtype, value.requires_grad, same))
        elif isinstance(value, slice):
            looks.append(("slice", value.start, value.stop, value.step))
        else:
            # 1, 1.0 and True are equal, and not the same argument.
            looks.append((type(value), value))
    key = func, form, _mode(device), tuple(looks)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _mode(device: torch.device) -> Hashable:
    """What beside the arguments says how a result looks: its type, and whether it has gradients."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
    )
