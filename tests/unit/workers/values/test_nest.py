"""Values inside each other go through JSON and come back."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest

from bundlerun.workers.values.nest import built, form_of, leaves, mapped


class Pair(NamedTuple):
    first: Any
    second: Any


class Leaf:
    pass


def is_leaf(value: object) -> bool:
    return isinstance(value, Leaf)


VALUES = [
    Leaf(),
    {"a": Leaf(), "b": [Leaf(), (Leaf(), Pair(Leaf(), 3))]},
    OrderedDict(x=Leaf()),
    [],
    {},
    (),
    {"none": None, "yes": True, "number": 0.1, "text": "t", "infinite": float("inf"), 3: Leaf()},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_a_value_is_built_again_from_its_form_and_leaves(value: object) -> None:
    form = json.loads(json.dumps(form_of(value, is_leaf)))
    found = [leaf.value for leaf in leaves(value) if is_leaf(leaf.value)]
    again = built(form, iter(found))
    assert again == value
    assert form_of(again, is_leaf) == form_of(value, is_leaf)


def test_a_named_tuple_that_is_not_known_here_has_the_same_fields() -> None:
    form = form_of(Pair(1, 2), is_leaf)
    form[1] = "no.such.module"
    again = built(form, iter(()))
    assert type(again) is not Pair
    assert (again.first, again.second) == (1, 2)


def test_places_say_where_a_leaf_is() -> None:
    value = {"a": [1, Pair(2, (3,))]}
    places = [leaf.place for leaf in leaves(value)]
    assert places == ["['a'][0]", "['a'][1].first", "['a'][1].second[0]"]


def test_mapped_changes_leaves_only() -> None:
    assert mapped(str, Pair([1, (2,)], {"x": 3})) == Pair(["1", ("2",)], {"x": "3"})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, {"a": object()}], r"\[1\]\['a'\] is of type object"),
        ({Leaf(): 1}, "it has a key of type Leaf"),
    ],
)
def test_what_json_cannot_say_is_named(value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        form_of(value, is_leaf)
