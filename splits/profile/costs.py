"""From passes through a model to what its pieces cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bundlerun.launcher.planning.model_costs import (
    Boundary,
    ModelCosts,
    Piece,
    SharedParameters,
)
from bundlerun.launcher.planning.profile_request import Peak
from bundlerun.splits.profile.clock import Clock
from bundlerun.splits.profile.ledger import Ledger, RooflineClock
from bundlerun.splits.profile.passes import Pass, Subject, run_pass
from bundlerun.splits.profile.pieces import Pieces, Sent

_LEAST, _MOST = 2, 6
_ENOUGH_S = 1.0
"""Seconds of passes after which no more are made, beyond the fewest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sizes of one micro-batch."""

    samples: int
    input_bytes: int
    target_bytes: int


@dataclass(frozen=True, slots=True)
class _Seconds:
    """Of each piece; the loss, forward and backward, apart."""

    forward: Sequence[float]
    backward: Sequence[float]
    weights: Sequence[float]
    loss: float


def measured_costs(
    pieces: Pieces,
    subject: Subject,
    batch: Batch,
    clock: Clock,
    compiled: Callable[..., Any] | None = None,
) -> ModelCosts:
    """What the pieces of a model cost where it is: some passes of training.

    Of each piece the least time counts, as whatever disturbs only adds to it. In the end all are
    scaled to the least time of a whole pass without marks.

    Args:
        pieces: of a model that is in training, and in which nothing is kept that a forward writes.
        subject: gives inputs and loss; its forward is that of the pieces.
        batch: sizes.
        clock: of the device.
        compiled: the model's forward as a run calls it; None: as it is.
    """
    _add_gradients(pieces.whole)
    # The first one makes what later ones find: gradients, caches, the way of each convolution.
    ledger, told, used = _followed(pieces, subject)
    plain = replace(subject, forward=lambda marks, *given: (compiled or pieces.plain)(*given))
    if compiled is not None:
        run_pass(plain, clock)
    marked, whole = [run_pass(subject, clock, splits_backward=True)], [run_pass(plain, clock)]
    enough = math.ceil(_ENOUGH_S / max(whole[0].seconds, 1e-9))
    for _ in range(min(_MOST, max(_LEAST, enough)) - 1):
        marked.append(run_pass(subject, clock, splits_backward=True))
        whole.append(run_pass(plain, clock))
    seconds = _least(pieces.count, marked, whole)
    return _costs(pieces, batch, ledger, told.sent, seconds, used)


def estimated_costs(pieces: Pieces, subject: Subject, batch: Batch, peak: Peak) -> ModelCosts:
    """What they would cost on a device: counted, on the meta device, in one pass.

    Args:
        pieces: of a model without numbers, in training.
        subject: gives inputs without numbers.
        batch: sizes.
        peak: of the device.

    Raises:
        Exception: any that an operation raises which needs numbers.
    """
    _add_gradients(pieces.whole)
    ledger, told, used = _followed(pieces, subject, peak)
    seconds = _least(pieces.count, [told], [told])
    return _costs(pieces, batch, ledger, told.sent, seconds, used)


def _add_gradients(model: nn.Module) -> None:
    """As in a run, which has them from the first step on."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _followed(
    pieces: Pieces, subject: Subject, peak: Peak | None = None
) -> tuple[Ledger, Pass, frozenset[int]]:
    """And which parameters have got a gradient, by their identities."""
    parameters = list(pieces.whole.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    given = subject.inputs()
    known = [*parameters, *pieces.whole.buffers(), *gradients]
    trained = [p for p in parameters if p.requires_grad]
    ledger = Ledger(known, given, peak, trained)
    once = replace(subject, inputs=lambda: given)
    used: set[int] = set()
    with ledger.saving(), ledger, ExitStack() as stack:
        for parameter in trained:
            hook = parameter.register_post_accumulate_grad_hook(lambda p: used.add(id(p)))
            stack.callback(hook.remove)
        told = run_pass(
            once, RooflineClock(ledger), listener=ledger, splits_backward=peak is not None
        )
    return ledger, told, frozenset(used)


def _least(count: int, marked: Sequence[Pass], whole: Sequence[Pass]) -> _Seconds:
    def least(rows: Sequence[Sequence[float]]) -> list[float]:
        return [min(values) for values in zip(*rows, strict=True)]

    forward = least([each.forward for each in marked])
    backward = least([each.backward for each in marked])
    only = least([each.inputs_only or each.backward for each in marked])
    reached = min(each.reached for each in marked)
    weights = [
        backward[i] if i < reached else max(0.0, backward[i] - only[i]) for i in range(count)
    ]
    faster = _ratio(min(sum(each.forward[:count]) for each in whole), sum(forward[:count]))
    back = _ratio(min(sum(each.backward[:count]) for each in whole), sum(backward[:count]))
    return _Seconds(
        forward=[faster * value for value in forward[:count]],
        backward=[back * value for value in backward[:count]],
        weights=[back * value for value in weights],
        loss=min(each.forward[count] + each.backward[count] for each in whole),
    )


def _ratio(one: float, other: float) -> float:
    return one / other if other > 0 else 1.0


def _costs(
    pieces: Pieces,
    batch: Batch,
    ledger: Ledger,
    told: Sequence[Sent],
    seconds: _Seconds,
    used: frozenset[int],
) -> ModelCosts:
    count = pieces.count
    kept, peaks = ledger.kept, ledger.peaks(count)
    # What the loss keeps and needs is the last stage's.
    peaks = [*peaks[: count - 1], max(peaks[count - 1 :])]
    last = kept.get(count, 0)
    state = _state_of(pieces, used)
    found = tuple(
        Piece(
            forward_s=seconds.forward[i],
            backward_s=seconds.backward[i],
            weight_s=seconds.weights[i],
            kept_bytes=kept.get(i, 0) + (last if i == count - 1 else 0),
            peak_bytes=peaks[i],
            split_bytes=ledger.split[i],
            parameter_bytes=state.parameters[i],
            trained_bytes=state.trained[i],
            buffer_bytes=state.buffers[i],
            longest_bytes=state.longest[i],
            num_unused=state.unused[i],
        )
        for i in range(count)
    )
    sent = pieces.sent or told
    return ModelCosts(
        samples=batch.samples,
        pieces=found,
        boundaries=tuple(
            Boundary(
                name=name,
                forward_bytes=each.forward,
                backward_bytes=each.backward,
                late_bytes=ledger.late(number),
            )
            for number, (name, each) in enumerate(zip(pieces.names, sent, strict=True))
        ),
        shared=tuple(state.shared),
        input_bytes=batch.input_bytes,
        target_bytes=batch.target_bytes,
        loss_s=seconds.loss,
    )


@dataclass(frozen=True, slots=True)
class _State:
    parameters: list[int]
    trained: list[int]
    buffers: list[int]
    longest: list[int]
    unused: list[int]
    shared: list[SharedParameters]


def _state_of(pieces: Pieces, used: frozenset[int]) -> _State:
    """Which piece has which bytes; what several use is shared, constants too."""
    count = pieces.count
    found = _State([0] * count, [0] * count, [0] * count, [0] * count, [0] * count, [])
    for parameter in pieces.whole.parameters():
        _add(found, pieces, parameter, found.parameters, is_trained=parameter.requires_grad)
        if parameter.requires_grad and id(parameter) not in used:
            found.unused[pieces.used_by(parameter)[0]] += 1
    for buffer in pieces.whole.buffers():
        _add(found, pieces, buffer, found.buffers, is_trained=False)
    return found


def _add(
    state: _State, pieces: Pieces, tensor: Tensor, into: list[int], *, is_trained: bool
) -> None:
    users, size = pieces.used_by(tensor), tensor.numel() * tensor.element_size()
    if len(users) > 1:
        shared = SharedParameters(num_bytes=size, pieces=tuple(users), is_trained=is_trained)
        state.shared.append(shared)
        return
    into[users[0]] += size
    if is_trained:
        state.trained[users[0]] += size
        state.longest[users[0]] = max(state.longest[users[0]], size)
