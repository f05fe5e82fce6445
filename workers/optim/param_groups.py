"""The groups of an optimizer: their learning rate, and what the optimizer itself changes in them.

The run's own course of the learning rate holds, `--lr-schedule`, unless a scheduler of torch's was
made for the optimizer, or the optimizer changes its learning rate itself. Then that one holds, and
its current value is part of the state. So are all other numbers of a group that have changed
since the optimizer was made: Prodigy's `d`, the `k` of schedule-free ones.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bundlerun.workers.values.nest import branch_of, form_of, leaves, mapped

_NONE = object()
"""Stands for the first value of an entry that was not there at first."""

log = logging.getLogger(__name__)


class ParamGroups:
    """The groups of one optimizer, from when it was made.

    Args:
        optimizer: as the recipe gives it.
        speaks: whether this rank says what is to be told.
    """

    def __init__(self, optimizer: Optimizer, *, speaks: bool = True) -> None:
        self._groups = optimizer.param_groups
        self.speaks = speaks
        self._highest = self._now()
        # Copies: the optimizer may write into its tensors in place.
        self._first = [mapped(_copied, _numbers(group)) for group in self._groups]
        self._schedulers = _schedulers_of(optimizer)
        self._has_own_lr = bool(self._schedulers) or any(map(math.isnan, self._highest))
        if speaks and self._schedulers:
            names = " and ".join(type(scheduler).__name__ for scheduler in self._schedulers)
            log.info("the recipe's %s sets the learning rate, and --lr-schedule does not", names)
        self._set: list[float] | None = None
        self.lr = self._highest[0]
        """Of the first group, as the last step used it."""

    def set_lr(self, factor: float) -> None:
        """Sets the learning rate of a step, its highest value times `factor`, unless another does.

        What somebody else has set since the last call is not touched, from then on.
        """
        now = self._now()
        # Other rates than this object set: somebody else has taken them over.
        if not self._has_own_lr and self._set not in (None, now):
            self._has_own_lr = True
            if self.speaks:
                log.warning(
                    "the optimizer sets its learning rate itself: it holds from now on, and "
                    "--lr-schedule does not"
                )
        if not self._has_own_lr:
            now = [highest * factor for highest in self._highest]
            for group, lr in zip(self._groups, now, strict=True):
                _assign(group, "lr", lr)
            now = self._set = self._now()  # as the groups hold it: a float32 tensor rounds
        self.lr = now[0]

    def _now(self) -> list[float]:
        """The learning rates; NaN where the optimizer has none, or finds its own in each step."""
        rates = (group.get("lr") for group in self._groups)
        return [math.nan if rate is None else float(rate) for rate in rates]

    def records(self) -> dict[Tensor, dict[str, Any]]:
        """What has to be saved, by parameter; empty if no group has changed."""
        schedulers = [scheduler.state_dict() for scheduler in self._schedulers]
        found = {}
        for group, first in zip(self._groups, self._first, strict=True):
            changed = {
                key: value
                for key, value in _numbers(group).items()
                if (self._has_own_lr if key == "lr" else not _is_same(value, first.get(key, _NONE)))
            }
            # With each parameter, as another cut may put them into other groups.
            record = {"group": changed, "schedulers": schedulers}
            if changed or schedulers:
                found.update(dict.fromkeys(group["params"], record))
        return found

    def load(self, records: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Loads what `records` gave; in the order of the model's parameters."""
        for group in self._groups:
            own = set(group["params"])
            kept = [record for parameter, record in records.items() if parameter in own]
            for key in dict.fromkeys(key for record in kept for key in record["group"]):
                values = [record["group"][key] for record in kept if key in record["group"]]
                if self.speaks and not all(_is_same(value, values[0]) for value in values):
                    self._tell_difference(key)
                _assign(group, key, values[0])
                # A learning rate is in a record only where it was the optimizer's own.
                self._has_own_lr |= key == "lr"
        # The first record's: schedulers belong to the optimizer, not to a group.
        states: list[Any] = next((r["schedulers"] for r in records.values()), [])
        if len(states) == len(self._schedulers):
            for scheduler, state in zip(self._schedulers, states, strict=True):
                _load_scheduler(scheduler, state)
        elif self.speaks and any(group["params"] for group in self._groups):
            # Nothing says which of them is whose.
            log.warning(
                "the optimizer has %d schedulers of its learning rate, and the state to resume "
                "from has %d: they begin anew", len(self._schedulers), len(states),
            )  # fmt: skip

    def _tell_difference(self, key: str) -> None:
        log.warning(
            "the optimizer's %r differs between parameters that are in one group now: that of the "
            "first of them holds", key,
        )  # fmt: skip


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _copied(value: object) -> object:
    return value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)


def _is_same(one: object, other: object) -> bool:
    """Whether two values, nested as they may be, are equal to the bit."""
    # First the structure with its plain numbers, then the leaves, which JSON does not say.
    if json.dumps(form_of(one, _is_opaque)) != json.dumps(form_of(other, _is_opaque)):
        return False
    return all(
        torch.equal(a.value, b.value.to(a.value.device))
        if isinstance(a.value, Tensor) and isinstance(b.value, Tensor)
        else a.value is b.value or bool(a.value == b.value)
        for a, b in zip(leaves(one), leaves(other), strict=True)
    )


def _is_opaque(value: object) -> bool:
    """Whether JSON does not say what it is."""
    return branch_of(value) is None and type(value) not in (bool, int, float, str, type(None))


def _assign(group: dict[str, Any], key: str, value: Any) -> None:  # noqa: ANN401 (any number)
    """Sets a number of a group; a tensor stays the one that compiled code knows."""
    old = group.get(key)
    if isinstance(old, Tensor):
        with torch.no_grad():
            old.copy_(torch.as_tensor(value))
        return
    if isinstance(value, float):
        group[key] = value
        return
    device = group["params"][0].device if group["params"] else torch.device("cpu")
    group[key] = mapped(lambda v: v.to(device, copy=True) if isinstance(v, Tensor) else v, value)


def _schedulers_of(optimizer: Optimizer) -> list[LRScheduler]:
    """The schedulers that were made for an optimizer, without those that another one steps."""
    if not any("initial_lr" in group for group in optimizer.param_groups):
        return []  # each makes this entry
    # No optimizer knows its schedulers. By type(o), as isinstance also asks o.__class__, which
    # proxies compute.
    alive = [o for o in gc.get_objects() if issubclass(type(o), LRScheduler)]
    made = [s for s in alive if getattr(s, "optimizer", None) is optimizer]
    # SequentialLR and ChainedScheduler have the state of their inner ones in their own.
    inner = {id(child) for s in made for child in getattr(s, "_schedulers", ())}
    return sorted((s for s in made if id(s) not in inner), key=lambda s: type(s).__name__)


def _load_scheduler(scheduler: LRScheduler, state: Mapping[str, Any]) -> None:
    # MultiStepLR's milestones are a Counter, of which a form makes a dict.
    counters = {
        key: Counter(value)
        for key, value in state.items()
        if isinstance(getattr(scheduler, key, None), Counter)
    }
    scheduler.load_state_dict({**state, **counters})
