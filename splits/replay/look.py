"""Dry runs of a model: begun, ended, and what is left of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_pre_hook

from bundlerun.splits.random_state import kept_random_state, seed_random
from bundlerun.splits.replay.alike import undecided, unlike
from bundlerun.splits.replay.composite import composites_shown
from bundlerun.splits.replay.dry_run import DryRun
from bundlerun.splits.replay.memo import Memo
from bundlerun.splits.replay.record import Reached, Record, Unforeseen
from bundlerun.splits.tracing.undo import members_kept


def look(
    model: nn.Module,
    inputs: Any,  # noqa: ANN401 - any nested value
    device: torch.device,
    *,
    until: str = "",
    is_high: bool = False,
    known: Mapping[int, object] = MappingProxyType({}),
    said: Mapping[str, object] = MappingProxyType({}),
    counts: bool = False,
    memo: Memo | None = None,
) -> Record:
    """What a forward of `model` does, in the mode that it is in; it is left as it was.

    Args:
        model: on any device; its state is not touched.
        inputs: what it is called with; only shapes and types of tensors count.
        device: where the forward is to be thought.
        until: a module at whose first entry to end.
        is_high: which random numbers to take, see `DryRun`.
        known: numbers that are read, see `DryRun`.
        said: the same, see there.
        counts: whether to count operations.
        memo: see there; of such a forward nothing is known but the results of its calls.

    Raises:
        Exception: any that the forward raises.
    """
    run = DryRun(
        model,
        device,
        until=until,
        is_high=is_high,
        known=known,
        said=said,
        counts=counts,
        memo=memo,
    )
    with ExitStack() as stack:
        stack.enter_context(members_kept([model]))
        for module in model.modules():
            # What gathers statistics is around the model's own forward, which is meant here.
            own = getattr(vars(module).get("forward"), "own", None)
            if own is not None:
                module.forward = own
        stack.enter_context(kept_random_state())
        # Not those around the forward: what is saved here is no activation.
        stack.enter_context(saved_tensors_hooks(_same, _same))
        # What is decided by a generator of Python's is decided otherwise the other time.
        seed_random(int(is_high))
        if run.counter is not None:
            stack.enter_context(run.counter)
        stack.enter_context(composites_shown())
        stack.enter_context(_quiet())
        stack.callback(register_module_forward_pre_hook(run.enter).remove)
        if torch.get_default_device().type == "meta":
            # Where no parameter is made: but what comes of no input has its numbers, as in a run.
            stack.enter_context(torch.device(device))
        ghosts = run.ghosts_of(inputs)
        with suppress(Reached):
            try:
                with run:
                    result = model(*ghosts)
                run.end(result)
            except Unforeseen as exc:
                run.fail(str(exc))
            finally:
                run.let_go()
    return run.record


def look_twice(
    model: nn.Module,
    inputs: Any,  # noqa: ANN401 - any nested value
    device: torch.device,
    *,
    said: Mapping[str, object] = MappingProxyType({}),
    counts: bool = False,
) -> tuple[Record, str]:
    """What a forward does, and in words what it does otherwise with other random numbers.

    Args:
        model: see `look`, as all that follows.
        inputs: see there.
        device: see there.
        said: see there.
        counts: see there.

    Raises:
        Exception: any that the forward raises.
    """
    found = look(model, inputs, device, said=said, counts=counts)
    again = look(model, inputs, device, said=said, is_high=True)
    why = unlike(found, again)
    if not why:
        found.undecided = undecided(found, again)
    return found, why


def _same(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch tells of functions that know no tensors without numbers; those are run on zeros."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
