"""Functions among a model's attributes and hooks that have its modules in their closures.

    self.head.register_forward_hook(lambda module, args, result: self.drop(result))

`copy.deepcopy` takes functions as they are: in a copy of the model such a one would go on with the
modules of the model itself, in their mode and under their hooks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

from bundlerun.splits.replay.state import held


class Closures:
    """The functions of a model that are made anew for a copy of it.

    Args:
        model: any.
        memo: of the `copy.deepcopy` that is to come; gets the new functions.
    """

    def __init__(self, model: nn.Module, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._modules = {id(module) for module in model.modules()}
        self._reaching: dict[int, bool] = {}
        self._cells: dict[int, tuple[CellType, CellType]] = {}
        self._functions: dict[int, tuple[FunctionType, FunctionType]] = {}
        for module in model.modules():
            for value in vars(module).values():
                for function in _functions(value):
                    if self._reaches(function):
                        self._renew(function)

    def settle(self, made: nn.Module) -> None:
        """Gives the new functions what the old ones have, of the copy `made`."""
        for old, new in self._cells.values():
            new.cell_contents = self._of_copy(old.cell_contents)
        for function, new_function in self._functions.values():
            if function.__defaults__ is not None:
                new_function.__defaults__ = tuple(map(self._of_copy, function.__defaults__))
            if function.__kwdefaults__ is not None:
                kept = function.__kwdefaults__.items()
                new_function.__kwdefaults__ = {k: self._of_copy(v) for k, v in kept}
        for module in made.modules():
            for name, value in vars(module).items():
                # Of a method only the object that it belongs to has been copied.
                if isinstance(value, MethodType) and id(value.__func__) in self._functions:
                    new_function = self._functions[id(value.__func__)][1]
                    vars(module)[name] = MethodType(new_function, value.__self__)

    def _reaches(self, value: Any) -> bool:  # noqa: ANN401 - any value
        """Whether a module of the model is, or is in the closure of, `value`."""
        if isinstance(value, nn.Module):
            return id(value) in self._modules
        if isinstance(value, MethodType):
            return self._reaches(value.__self__) or self._reaches(value.__func__)
        if isinstance(value, partial):
            return any(map(self._reaches, held(value)))
        if not isinstance(value, FunctionType):
            return False
        if id(value) not in self._reaching:
            self._reaching[id(value)] = False  # while it is looked at: it may refer to itself
            self._reaching[id(value)] = any(map(self._reaches, _within(value)))
        return self._reaching[id(value)]

    def _renew(self, function: FunctionType) -> None:
        if id(function) in self._functions:
            return
        cells = tuple(map(self._renewed_cell, function.__closure__ or ()))
        new = FunctionType(
            function.__code__, function.__globals__, function.__name__, None, cells or None
        )
        new.__qualname__, new.__doc__ = function.__qualname__, function.__doc__
        vars(new).update(vars(function))
        self._functions[id(function)] = (function, new)
        self._memo[id(function)] = new
        for value in _within(function):
            for inner in _functions(value):
                if self._reaches(inner):
                    self._renew(inner)

    def _renewed_cell(self, cell: CellType) -> CellType:
        if _is_empty(cell) or not self._reaches(cell.cell_contents):
            return cell
        return self._cells.setdefault(id(cell), (cell, CellType()))[1]

    def _of_copy(self, value: Any) -> Any:  # noqa: ANN401 - any value
        return copy.deepcopy(value, self._memo) if self._reaches(value) else value


def _within(function: FunctionType) -> Iterator[Any]:
    """What a function holds: the contents of its cells, and its defaults."""
    for cell in function.__closure__ or ():
        if not _is_empty(cell):
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def _is_empty(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - asked for, not used
    except ValueError:
        return True
    return False


def _functions(value: Any) -> Iterator[FunctionType]:  # noqa: ANN401 - any value
    """The functions in an attribute of a module."""
    for one in held(value):
        found = one.__func__ if isinstance(one, MethodType) else one
        if isinstance(found, FunctionType):
            yield found
