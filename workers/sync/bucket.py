"""Gradients that travel together in a sync.

    first bucket, float64    | extra: loss, counts, batch-norm sums | gradients |
    any other, one dtype                                            | gradients |
    the last of them                                                | gradients | unused |

    first backward of a step   autograd keeps each gradient by itself, as in a plain loop; once
                               all are there, one operation copies them in
    later ones                 add to what is in the bucket

Complex gradients are summed as pairs of reals; they have buckets of their own, after the first.

`unused` has one number per parameter of all buckets: on how many ranks it got no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import Parameter

from bundlerun.launcher.layout.bucket_size import MOST_WIDENED
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.values.strides import strides_of

Allocate = Callable[[int, torch.dtype], Tensor]
"""Gives a flat tensor of zeros that many elements long, on the CPU, where sums are taken."""


class Bucket:
    """One flat tensor that is summed over the replicas.

    `flat`, `wire`, and `extra` (the first `num_extra` numbers of `flat`) are one-dimensional.

    Args:
        parameters: whose gradients it holds; of one dtype and device.
        num_extra: numbers before the gradients; if there are any, the whole bucket is float64.
        device: where the gradients are.
        allocate: gives the memory that is summed; None: the gradients are summed where they are.
        num_parts: its length is a multiple of that; zeros at the end make up for the rest.
        num_unused: numbers after the gradients.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        num_extra: int,
        device: torch.device,
        allocate: Allocate | None,
        num_parts: int = 1,
        num_unused: int = 0,
    ) -> None:
        self.parameters = list(parameters)
        self.pending = 0
        self.is_exact = False
        """Whether it travels as it is, whatever the form of others is."""
        self._num_missing = 0
        sizes = [num_reals(p) for p in parameters]
        own = parameters[0].dtype.to_real() if parameters else torch.float64
        dtype = torch.float64 if num_extra else own
        own_length = num_extra + sum(sizes) + num_unused
        length = own_length + -own_length % num_parts
        # Gradients are written into `flat` and summed in `wire`: one tensor if possible.
        wire = allocate(length, dtype) if allocate is not None else None
        if wire is None or door.is_gpu(device):
            self.flat = torch.zeros(length, dtype=dtype, device=device)
        else:
            self.flat = wire
        self.wire = self.flat if wire is None else wire
        self.extra, gradients, self.unused, _ = self.flat.split(
            [num_extra, sum(sizes), num_unused, length - own_length]
        )
        # A gradient has its parameter's dtype, so in a wider bucket it is a copy, made at the end.
        self._is_wider = own != dtype
        self.views = [
            shaped(part, p) for part, p in zip(gradients.split(sizes), parameters, strict=True)
        ]
        self._event = door.event(device) if door.is_gpu(device) else None

    @cached_property
    def places(self) -> Mapping[Parameter, tuple[int, int]]:
        """Where in `flat` the gradient of each parameter begins and ends."""
        ends = [*accumulate(map(num_reals, self.parameters), initial=self.extra.numel())]
        return dict(zip(self.parameters, pairwise(ends), strict=True))

    @property
    def num_bytes(self) -> int:
        """Bytes that are summed."""
        return self.wire.numel() * self.wire.element_size()

    def begin(self) -> None:
        """Starts a step, in which no parameter has a gradient yet."""
        self.pending = self._num_missing = len(self.parameters)

    def note_first(self) -> None:
        """A parameter has got its first gradient of the step; once all have, they are in here."""
        self._num_missing -= 1
        if not self._num_missing and not self._is_wider:
            self._gather()

    def close(self) -> None:
        """Ends this rank's part: what is in here now may travel."""
        if self._num_missing or self._is_wider or self._is_replaced():
            self._gather()
        self.mark_ready()

    def _is_replaced(self) -> bool:
        """Whether a hook of the user's has put another tensor in place of a gradient in here."""
        pairs = zip(self.parameters, self.views, strict=True)
        return any(parameter.grad is not view for parameter, view in pairs)

    def _gather(self) -> None:
        """Copies all gradients in; those that have not come are zeros."""
        views, found, empty = [], [], []
        for parameter, view in zip(self.parameters, self.views, strict=True):
            gradient = parameter.grad
            if gradient is None:
                empty.append(view)
            else:
                views.append(view)
                found.append(gradient.to_dense() if gradient.is_sparse else gradient)
        if found:
            torch._foreach_copy_(views, found)
        if empty:
            torch._foreach_zero_(empty)
        if not self._is_wider:
            for parameter, view in zip(self.parameters, self.views, strict=True):
                parameter.grad = view

    def open(self) -> None:
        """Takes the sums in: each parameter has its gradient's."""
        self.wait_ready()
        if self._is_wider:
            gradients = [_room(parameter) for parameter in self.parameters]
            torch._foreach_copy_(gradients, self.views)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient

    def mark_ready(self) -> None:
        """Records that what the current stream has been given so far belongs to this bucket."""
        if self._event is not None:
            self._event.record()

    def wait_ready(self) -> None:
        """Lets the current stream wait for `mark_ready`."""
        if self._event is not None:
            self._event.wait()

    def load_wire(self) -> None:
        """Brings the gradients to where they are summed."""
        if self.wire is not self.flat:
            self.wire.copy_(self.flat, non_blocking=True)
            # The processor adds up next, and does not wait for streams.
            door.finish(self.flat.device)

    def unload_wire(self) -> None:
        """Brings the sums back."""
        if self.wire is not self.flat:
            self.flat.copy_(self.wire, non_blocking=True)


def num_reals(parameter: Parameter) -> int:
    """Numbers that a gradient has in a bucket."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def _room(parameter: Parameter) -> Tensor:
    """A tensor for a gradient that is not in its bucket."""
    gradient = parameter.grad
    if gradient is None or gradient.is_sparse:
        return torch.empty_like(parameter, requires_grad=False)
    return gradient


def shaped(part: Tensor, parameter: Parameter) -> Tensor:
    """A flat part of a bucket as the gradient of a parameter."""
    if not parameter.is_complex():
        # In the parameter's own order, as channels_last: so are gradients, and an optimizer works
        # through both at once.
        return part.as_strided(parameter.shape, strides_of(parameter), part.storage_offset())
    return torch.view_as_complex(part.view(*parameter.shape, 2))


def cut_into_buckets(
    chunks: Sequence[Sequence[Parameter]], most_bytes: int
) -> list[list[Parameter]]:
    """Parameters in buckets of one dtype and about `most_bytes`, in order of readiness.

    The last layers of the last chunk are the first to have their gradients. The first bucket is
    short; it is empty where no parameter is.
    """
    # A backward goes from the last layer to the first; buckets leave in that order (I6).
    ordered = [list(reversed(chunk)) for chunk in reversed(chunks)]
    first = _first_bucket(ordered[0] if ordered else [])
    buckets = [first]
    is_taken = set(first)
    for chunk in ordered:
        left = [p for p in chunk if p not in is_taken]
        buckets += _filled(left, most_bytes)
    return buckets


def _first_bucket(parameters: Sequence[Parameter]) -> list[Parameter]:
    """The first parameters that are short together; else the first one that is short.

    No complex ones: after an odd number of sums their pairs would not be aligned.
    """
    found: list[Parameter] = []
    for parameter in parameters:
        size = sum(p.numel() for p in found) + parameter.numel()
        is_like = all(p.dtype == parameter.dtype for p in found) and not parameter.is_complex()
        if size <= MOST_WIDENED and is_like:
            found.append(parameter)
        elif found:
            break
    return found


def _filled(parameters: Sequence[Parameter], most_bytes: int) -> list[list[Parameter]]:
    buckets: list[list[Parameter]] = []
    filled = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        # One dtype to a bucket: it is one tensor.
        fits = buckets and filled + size <= most_bytes
        if fits and buckets[-1][0].dtype == parameter.dtype:
            buckets[-1].append(parameter)
            filled += size
        else:
            buckets.append([parameter])
            filled = size
    return buckets
