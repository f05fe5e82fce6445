"""What one part of a model does in one kind of forward, and the doing of it.

number    0  1  2  3  4 | 5  6  7  8 | 9 ...
ghosts | for real   | not any more
start ^        end ^
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack, _pop_mode
from torch.utils._pytree import tree_flatten, tree_leaves

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.replay.calls import (
    is_checkpoints,
    is_counter,
    may_be_unnumbered,
    name_of,
    one_of,
    reads_counter,
    sets_grad_mode,
    users_line,
)
from bundlerun.splits.replay.composite import Watch, unseen
from bundlerun.splits.replay.ghosts import Ghost
from bundlerun.splits.replay.record import Key, Record

Function = Callable[..., Any]


class Finished(BaseException):
    """The part has come to its end; no Exception, as the user's code is not to handle it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The calls of a whole forward, and what crosses its cuts."""

    funcs: Sequence[Function]
    starts: Sequence[int]
    """Number of the first call behind each cut."""
    crossing: Sequence[Sequence[Key]]
    """What crosses each cut."""
    known: Mapping[int, object]
    """What calls have given that read numbers."""
    plain: Mapping[int, object]
    """Of these, what is to be the same each time."""
    rewritten: frozenset[Key]
    said: Mapping[str, object]
    """What lines of the user's code have read, see `Record`."""

    @classmethod
    def of(cls, record: Record, cuts: Sequence[str]) -> Route:
        """That of a dry run, with these cuts, in order."""
        starts = [record.entries[cut] for cut in cuts]
        return cls(
            funcs=[call.func for call in record.calls],
            starts=starts,
            crossing=[record.crossing(start) for start in starts],
            known={n: record.calls[n].result for n in record.read},
            plain={n: record.calls[n].result for n in record.read - record.undecided.reads},
            rewritten=frozenset(record.rewritten),
            said=record.said,
        )


@dataclass(slots=True)
class Script:
    """What one part does."""

    route: Route
    start: int
    """The number of its first call for real."""
    end: int | None
    receives: Sequence[Key]
    sends: Sequence[Key]
    values: list[Any] = field(default_factory=list)
    """Results of the calls before `start`."""
    received_in: dict[int, list[tuple[int, Key]]] = field(default_factory=dict)
    """Calls among whose results is something received: its place there, and its name."""
    cloned: list[int] = field(default_factory=list)
    """Calls whose result is written to later, so that each forward has its own."""
    wanted: dict[int, list[tuple[int, Key]]] = field(default_factory=dict)
    """Calls for real among whose results is something to send."""
    raised: frozenset[int] = frozenset()
    """Calls that have raised."""
    special: frozenset[int] = frozenset()
    """Calls of which more has to be known than their number; all others take a short way."""

    @classmethod
    def of(cls, route: Route, part: int, record: Record) -> Script:
        """That of a part of the route.

        Args:
            route: of the whole forward.
            part: its number.
            record: of a dry run up to its start.
        """
        values = [call.result for call in record.calls]
        is_last = part == len(route.starts)
        made = cls(
            route=route,
            start=route.starts[part - 1] if part else 0,
            end=None if is_last else route.starts[part],
            receives=route.crossing[part - 1] if part else (),
            sends=() if is_last else route.crossing[part],
            values=values,
            raised=frozenset(n for n, v in enumerate(values) if isinstance(v, Exception)),
        )
        names = {id(record.looks[key]): key for key in made.receives}
        for number, value in enumerate(values):
            for place, leaf in enumerate(tree_leaves(value)):
                # In-place operations give the same tensor once more.
                if id(leaf) in names:
                    made.received_in.setdefault(number, []).append((place, names[id(leaf)]))
        for key in made.sends:
            if key[0] >= made.start:
                made.wanted.setdefault(key[0], []).append((key[1], key))
        again = {key[0] for key in route.rewritten} - set(made.received_in)
        made.cloned = sorted(n for n in again if n < made.start)
        lists = {n for n, value in enumerate(values) if type(value) is list}
        # One that is not numbered, of the same function, may come just before.
        unnumbered = {n for n, func in enumerate(route.funcs) if may_be_unnumbered(func)}
        made.special = frozenset(
            {*made.cloned, *made.received_in, *made.wanted, *made.raised, *route.plain}
            | lists
            | unnumbered
        )
        return made


class Acting(Watch):
    """One forward of a part: results from the script first, then calls for real.

    Args:
        script: of the part.
        part: its number.
        received: the tensors of other parts, by name.
        model_name: for messages.
    """

    def __init__(
        self, script: Script, part: int, received: Mapping[Key, Tensor], model_name: str
    ) -> None:
        super().__init__()
        self._part = part
        self.is_noting = part > 0
        self._entered: set[int] = set()
        self._script = script
        self._funcs = script.route.funcs
        # The part ends there: a call behind it is not one of the dry run's.
        self._count = len(self._funcs) if script.end is None else script.end
        self._plain = script.route.plain
        self._start = script.start
        self._values = script.values
        self._special = script.special
        self._received = received
        self._model_name = model_name
        self._number = 0
        self._depth = 0
        self.is_off = False
        self.got: dict[Key, Tensor] = {}
        self._own: dict[int, Any] = {}
        for number in script.cloned:
            self._own[number] = _cloned(script.values[number])
        for number, places in script.received_in.items():
            flat, form = tree_flatten(script.values[number])
            for place, key in places:
                flat[place] = received[key]
            self._own[number] = form.unflatten(flat)

    def enter(self, part: int) -> None:
        """The module with which a part begins is entered; only the first time counts.

        Raises:
            Finished: it is the part behind, and the forward is not to go on.
        """
        if part in self._entered:
            return
        self._entered.add(part)
        if part == self._part:
            self._check_place(self._start)
            self.is_noting = False
            self._leave()
        elif part == self._part + 1:
            assert self._script.end is not None
            self._check_place(self._script.end)
            self._depth += 1  # what the user's code calls on its way out has no number
            raise Finished

    def _leave(self) -> None:
        """With nothing to send, no call need be looked at any more."""
        stack = _get_current_function_mode_stack()
        if self._script.end is None and stack[-1:] == [self]:
            _pop_mode()
            self.is_off = True

    def _check_place(self, number: int) -> None:
        if self._number != number:
            raise self._diverged(f"has made {self._number} calls where it made {number}")

    def __torch_function__(
        self,
        func: Function,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - any result
        """One call."""
        if self._depth:
            return func(*args, **(kwargs or {}))
        number = self._number
        # Each call of the forward comes here: a usual one is to cost little.
        if number < self._count and number not in self._special and func == self._funcs[number]:
            self._number = number + 1
            if number < self._start:
                return self._values[number]
            return func(*args, **kwargs) if kwargs else func(*args)
        if sets_grad_mode(func) or is_checkpoints(func):
            return func(*args, **(kwargs or {}))
        if number < self._start:
            if is_counter(func, args):
                return args[0]
            return one_of(func) if reads_counter(func) else self._noted(func)
        if is_counter(func, args) or reads_counter(func):
            return func(*args, **(kwargs or {}))
        self._advance(func)
        result = func(*args, **(kwargs or {}))
        self._look(number, result)
        return result

    def whole(self, func: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """One call, inside which nothing has a number."""
        if self._depth:
            return func(*args, **kwargs)
        number, name = self._number, getattr(func, "__func__", func)
        if number < self._start:
            return self._noted(name)
        self._advance(name)
        self._depth += 1
        try:
            result = func(*args, **kwargs)
        finally:
            self._depth -= 1
        with unseen(self):
            self._look(number, result)
        return result

    def _advance(self, func: Function) -> None:
        number = self._number
        if number == self._script.end:
            raise self._diverged(f"calls {name_of(func)!r} where it entered the next stage")
        if number >= len(self._funcs):
            # The dry run has ended before: nothing is known of what follows.
            self._number = number + 1
            return
        if func != self._funcs[number]:
            expected = name_of(self._funcs[number])
            raise self._diverged(f"calls {name_of(func)!r} where it called {expected!r}")
        self._number = number + 1

    def _noted(self, func: Function) -> Any:  # noqa: ANN401
        number = self._number
        self._advance(func)
        if number in self._own:
            return self._own[number]
        value = self._script.values[number]
        if number in self._script.raised:
            raise value
        # The user's code may change a list.
        return list(value) if type(value) is list else value

    def _look(self, number: int, result: Any) -> None:  # noqa: ANN401
        if number in self._script.wanted:
            flat = tree_leaves(result)
            for place, key in self._script.wanted[number]:
                self.got[key] = flat[place]
        elif number in self._plain and result != self._plain[number]:
            raise self._diverged(f"goes by {result}, and went by {self._plain[number]}")

    def sent(self) -> tuple[Tensor, ...]:
        """What the next part needs, in order."""
        return tuple(
            self.got[key] if key in self.got else self._received[key] for key in self._script.sends
        )

    def _diverged(self, what: str) -> ConfigError:
        return ConfigError(
            f"the forward of {self._model_name} does not do the same each time: at {users_line()} "
            f"it {what}, when its stages were made; let it depend on shapes and its configuration "
            "only, cut before that place, or use --shape 1"
        )


def _cloned(value: Any) -> Any:  # noqa: ANN401 - any result
    flat, form = tree_flatten(value)
    with torch.no_grad():
        return form.unflatten([_copy(value) for value in flat])


def _copy(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) and not isinstance(value, Ghost) else value
