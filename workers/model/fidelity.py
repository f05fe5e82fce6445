"""The check before the first step: the prepared stages give what the model itself gives (I13).

    the model as built                       inputs -> forward --------------------> outputs
    its stages, as they are going to train   inputs -> stage 0 -> copy -> stage 1 -> outputs

in evaluation and in training, in training the gradients too, with the same random numbers. What
differs is refused by name: then another model would be trained than the user's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any

import psutil
import torch
from torch import Tensor

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.random_state import kept_random_state
from bundlerun.splits.stage import Stage
from bundlerun.workers.model.trial import (
    Call,
    Result,
    StageRaised,
    Subject,
    recorded,
    run,
    staged_pass,
    whole_pass,
)
from bundlerun.workers.values.nest import Leaf, leaves, mapped

log = logging.getLogger(__name__)

_NUM_SAMPLES = 2
_TOLERANCE = 1e-3
"""Of the largest number in a tensor. On a CPU the two are usually equal to the bit."""
_WAY_ON = (
    "put what its forward does besides calling its modules into a module of its own, cut "
    "elsewhere, return a list of modules, or train it whole with --shape 1"
)
_PLAIN = (bool, int, float, str)
_COST_OF_TRAINING = 3
"""Forward and backward, in forwards."""
_NUM_GRADIENTS = 3
"""The model's, those of its stages, and as much again for all else."""


def check_fidelity(
    subject: Subject, first_inputs: Callable[[], tuple[Any, ...] | None], longest_s: float
) -> None:
    """Compares the stages with the model; leaves no trace, random numbers included.

    Args:
        subject: in CPU memory, freshly made.
        first_inputs: gives those of the first micro-batch; None: there is none.
        longest_s: leave the check out where it would take longer, as others wait for this rank.

    Raises:
        ConfigError: they differ.
    """
    # Reading the first micro-batch takes time: only where there is something to compare.
    inputs = first_inputs() if subject.may_differ else None
    if inputs is not None:
        with kept_random_state():
            _check(subject, inputs, longest_s)


def _check(subject: Subject, inputs: tuple[Any, ...], longest_s: float) -> None:
    reason: Exception | None = None
    # The first samples, or all where the model wants more.
    for some in (_first_samples(inputs), inputs):
        try:
            own = _own_results(subject, some, longest_s)
        except Exception as exc:
            reason = exc
            continue
        for training, result in own.items():
            _compare(subject, some, result, training=training)
        return
    # It may want a GPU. If not, the first step says the same, with the user's own lines.
    log.info(
        "the stages are not compared with the model, which does not run on the CPU: %s: %s",
        type(reason).__name__, reason,
    )  # fmt: skip


def _own_results(subject: Subject, inputs: tuple[Any, ...], longest_s: float) -> dict[bool, Result]:
    """The model's own results for `inputs`, in each mode that is compared."""
    start = time.perf_counter()
    evaluated = run(subject, whole_pass, inputs, False)
    # Both modes, of the model and of its stages, from one measured forward.
    cost_s = (time.perf_counter() - start) * 2 * (1 + _COST_OF_TRAINING)
    want = _NUM_GRADIENTS * sum(p.nbytes for p in subject.whole.parameters() if p.requires_grad)
    if cost_s > longest_s or want > psutil.virtual_memory().available:
        log.info(
            "the stages are not compared with the model: that would take some %.0f s and %.1f GB",
            cost_s, want / 1e9,
        )  # fmt: skip
        return {}
    # Whole models evaluate as they are.
    found = {False: evaluated} if subject.is_cut else {}
    return {**found, True: run(subject, whole_pass, inputs, True)}


def _first_samples(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    tensors = [leaf.value for leaf in leaves(inputs) if isinstance(leaf.value, Tensor)]
    sizes = {tensor.size(0) if tensor.dim() else 0 for tensor in tensors}
    if len(sizes) != 1:
        return inputs  # not stacked along the first dimension
    return tuple(mapped(lambda v: v[:_NUM_SAMPLES] if isinstance(v, Tensor) else v, inputs))


def _compare(subject: Subject, inputs: tuple[Any, ...], own: Result, *, training: bool) -> None:
    """Raises ConfigError where the stages give another result than `own`."""
    try:
        other = run(subject, staged_pass, inputs, training)
    except StageRaised as exc:
        cause = exc.__cause__
        raise ConfigError(
            f"stage {subject.chunks.stage_of(exc.part)} of {_name(subject)} raises "
            f"{type(cause).__name__}: {cause}; the model by itself does not; {_way_on(subject)}"
        ) from exc
    difference = _difference(subject, own, other)
    if not difference:
        return
    # Only now, as it costs another pass: a model that differs from itself proves nothing.
    again = run(subject, whole_pass, inputs, training)
    if _difference(subject, own, again):
        log.info(
            "the stages cannot be compared with the model, which gives another result each time"
        )
        return
    first = _first_module(subject, inputs, training)
    raise ConfigError(
        f"in {'training' if training else 'evaluation'}, {_name(subject)} "
        f"{'in stages' if subject.is_cut else 'with its running statistics gathered'} is not what "
        f"it is by itself: {difference}; {first}; {_way_on(subject)}"
    )


def _way_on(subject: Subject) -> str:
    """What to do about it."""
    is_by_graph = isinstance(subject.stages[0], Stage)
    return f"use --cutter replay, or {_WAY_ON}" if is_by_graph else _WAY_ON


def _difference(subject: Subject, own: Result, other: Result) -> str:
    """What is not equal, in words; nothing where all is."""
    text = _unlike_outputs(own.outputs, other.outputs)
    if text:
        return text
    pairs = [
        (name, own.gradients.get(id(parameter)), other.gradients.get(id(parameter)))
        for name, parameter in subject.whole.named_parameters()
    ]
    unequal = [pair for pair in pairs if not _is_equal(*pair[1:])]  # on a CPU hardly ever one
    largest = _largest(own.gradients.values()) if unequal else 0.0
    for name, one, two in unequal:
        text = _unlike(one, two, largest)
        if text:
            return f"the gradient of {name!r} {text}"
    return ""


def _is_equal(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.dtype == two.dtype and torch.equal(one, two)


def _largest(gradients: Iterable[Tensor | None]) -> float:
    tensors = [g for g in gradients if g is not None and g.numel()]
    return max((float(g.abs().max()) for g in tensors), default=0.0)


def _unlike_outputs(own: Sequence[Leaf], other: Sequence[Leaf]) -> str:
    if [leaf.place for leaf in own] != [leaf.place for leaf in other]:
        return "the output has another structure"
    for one, two in zip(own, other, strict=True):
        text = _unlike(one.value, two.value, 0.0)
        if text:
            return f"output{one.place} {text}"
    return ""


def _unlike(one: object, two: object, largest: float) -> str:
    """How two values differ, in words.

    Args:
        largest: numbers far below it are noise.
    """
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        # Objects of a user's class are taken as equal: not all of them can be compared.
        is_like = type(one) is type(two) and (one is None or type(one) not in _PLAIN or one == two)
        return "" if is_like else f"is {_short(two)} and not {_short(one)}"
    if one.shape != two.shape or one.dtype != two.dtype:
        return f"is {_short(two)} and not {_short(one)}"
    if torch.equal(one, two):
        return ""
    a, b = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (one, two))
    # A gradient that is zero in theory is noise: it is held against the largest of all.
    scale = max(float(a.nan_to_num().abs().max()), _TOLERANCE * largest)
    if torch.allclose(a, b, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True):
        return ""
    return f"differs by {float((a - b).nan_to_num().abs().max()):.3g} (largest {scale:.3g})"


def _short(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {'x'.join(map(str, value.shape)) or 'one number'}"
    return "missing" if value is None else repr(value)[:40]


def _name(subject: Subject) -> str:
    return type(subject.whole).__name__


# --- where it begins


def _first_module(subject: Subject, inputs: tuple[Any, ...], training: bool) -> str:
    """Names the first module with another result, or the last module before the difference."""
    own: list[Call] = []
    other: list[Call] = []
    for calls, how in ((own, whole_pass), (other, staged_pass)):
        run(subject, recorded(calls, how), inputs, training)
    for one, two in zip_longest(own, other):
        if one is None or two is None or one.name != two.name:
            return f"only one of the two calls {(one or two).name!r}"
        if _unlike_outputs(one.outputs, two.outputs):
            return f"the first module with another result is {one.name!r}"
    return f"it begins after the last module, {own[-1].name!r}" if own else "it calls no module"
