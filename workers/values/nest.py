"""Values inside each other: dicts, tuples, lists and named tuples, taken apart and put together.

    {"image": t0, "boxes": [t1, t2]}     <->     [t0, t1, t2]  and a form, which JSON can say:
                                                 ["dict", [["image", []], ["boxes", ["list", ...

So samples, what crosses a cut and what an optimizer keeps all travel as flat tensors. A form names
no class that it makes: a named tuple is one of its own kind where this process knows that kind, and
else one with the same fields.
"""

from __future__ import annotations

import functools
import sys
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

from bundlerun.launcher.errors import ConfigError

Form: TypeAlias = Any
"""A list that JSON can say; `LEAF` where a leaf goes."""
LEAF: Form = ["leaf"]
Branch: TypeAlias = Literal["dict", "list", "tuple", "named"]
_CONSTANTS = (type(None), bool, int, float, str)


class Leaf(NamedTuple):
    """One value that holds no others, and where it is: `['boxes'][0]`."""

    place: str
    value: object


def branch_of(value: object) -> Branch | None:
    """What kind of holder of other values it is; None: it is a leaf."""
    kind: Any = type(value)
    return _branch_of_kind(kind)


@functools.lru_cache(maxsize=256)  # kinds that `built` makes are let go again
def _branch_of_kind(kind: type) -> Branch | None:
    # Asked for each value of each micro-batch, and whether a kind is a mapping takes long to say.
    if issubclass(kind, Mapping):
        return "dict"
    if issubclass(kind, tuple):
        # Named tuples are tuples, and want their items one by one: told apart first.
        return "named" if hasattr(kind, "_fields") else "tuple"
    return "list" if issubclass(kind, list) else None


def entries(value: object, branch: Branch) -> Iterator[tuple[str, object]]:
    """What a holder holds, each with its place: `['boxes']`, `[0]`, `.boxes`."""
    if branch == "dict":
        assert isinstance(value, Mapping)
        return ((f"[{key!r}]", item) for key, item in value.items())
    assert isinstance(value, (tuple, list))
    if branch == "named":
        names: Sequence[str] = getattr(value, "_fields")  # noqa: B009 (no type has it)
        return ((f".{name}", item) for name, item in zip(names, value, strict=True))
    return ((f"[{number}]", item) for number, item in enumerate(value))


def leaves(value: object, place: str = "") -> Iterator[Leaf]:
    """The leaves of a value, in order."""
    branch = branch_of(value)
    if branch is None:
        yield Leaf(place, value)
        return
    for step, item in entries(value, branch):
        yield from leaves(item, place + step)


def leaf_values(value: object) -> Iterator[object]:
    """The leaves of a value, in order, without their places."""
    branch = branch_of(value)
    if branch is None:
        yield value
        return
    for item in _items(value, branch):
        yield from leaf_values(item)


def _items(value: object, branch: Branch) -> Iterable[object]:
    """What a holder holds."""
    if branch == "dict":
        assert isinstance(value, Mapping)
        return value.values()
    assert isinstance(value, (tuple, list))
    return value


def like(holder: object, branch: Branch, items: Sequence[object]) -> object:
    """The items in a holder of the same kind and keys as `holder`; a mapping becomes a dict."""
    if branch == "dict":
        assert isinstance(holder, Mapping)
        return dict(zip(holder, items, strict=True))
    if branch == "named":
        # A named tuple takes its fields as arguments, not as one sequence.
        return type(holder)(*items)
    return tuple(items) if branch == "tuple" else list(items)


def mapped(change: Callable[[Any], object], value: object) -> Any:  # noqa: ANN401 (as `value` is)
    """The same with each leaf changed."""
    branch = branch_of(value)
    if branch is None:
        return change(value)
    return like(value, branch, [mapped(change, item) for item in _items(value, branch)])


def form_of(value: object, is_leaf: Callable[[object], bool]) -> Form:
    """The form of a value; what is no leaf must be one that JSON can say, and is in the form.

    Raises:
        TypeError: something inside is neither; the text names its place and kind.
    """
    return _form(value, is_leaf, "")


def _form(value: object, is_leaf: Callable[[object], bool], place: str) -> Form:
    if is_leaf(value):
        return LEAF
    branch = branch_of(value)
    if branch is None:
        # By exact type: JSON would turn a subclass, such as numpy's float64, into another type.
        if type(value) not in _CONSTANTS:
            raise TypeError(f"{place or 'it'} is of type {type(value).__name__}")
        return ["is", value]
    forms = [_form(item, is_leaf, place + step) for step, item in entries(value, branch)]
    if branch == "dict":
        assert isinstance(value, Mapping)
        keys = list(value)
        # Keys are kept as values in a list of pairs: JSON's own dicts would make texts of numbers.
        strange = [key for key in keys if type(key) not in _CONSTANTS]
        if strange:
            raise TypeError(f"{place or 'it'} has a key of type {type(strange[0]).__name__}")
        return ["dict", [list(pair) for pair in zip(keys, forms, strict=True)]]
    if branch == "named":
        kind = type(value)
        return ["named", kind.__module__, kind.__qualname__, getattr(value, "_fields"), forms]  # noqa: B009
    return [branch, forms]


def form_sent(value: object) -> Form:
    """The form of what one stage hands on to another; the tensors are its leaves.

    Raises:
        ConfigError: something in it is neither a tensor nor a constant.
    """
    try:
        return form_of(value, lambda item: isinstance(item, Tensor))
    except TypeError as exc:
        raise ConfigError(
            f"what a stage hands on cannot be sent: {exc}, neither a tensor nor a plain number; "
            "let the model make it where it is used, or use --shape 1"
        ) from exc


def built(form: Form, found: Iterator[object]) -> Any:  # noqa: ANN401 (whatever the form says)
    """The value of a form, its leaves taken from `found` in order."""
    kind = form[0]
    if kind == "leaf":
        return next(found)
    if kind == "is":
        return form[1]
    if kind == "dict":
        return {key: built(item, found) for key, item in form[1]}
    # The forms of the items come last in all of these kinds.
    items = [built(item, found) for item in form[-1]]
    if kind == "named":
        return _named_tuple(*form[1:4])(*items)
    return tuple(items) if kind == "tuple" else items


def _named_tuple(module: str, name: str, fields: Sequence[str]) -> Callable[..., object]:
    # Only what is imported already: a checkpoint must not make this process import a module.
    known: Any = getattr(sys.modules.get(module), name, None)
    is_one = isinstance(known, type) and issubclass(known, tuple)
    if is_one and list(getattr(known, "_fields", ())) == list(fields):
        made: Callable[..., object] = known
        return made
    return namedtuple(name.rpartition(".")[2], fields)
