"""Mistakes that the comparison of replicas might have, each of which has to be noticed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from bundlerun.workers.verify import replica_check
from bundlerun.workers.verify.replica_check import Finding, ReplicaCheck
from bundlerun.workers.verify.slices import PRIME
from tests.unit.workers.verify.test_replica_check import Replicas, flip, model

ARE_EQUAL = replica_check.are_equal
CUT = replica_check.cut_into_slices
FIRST = replica_check.first_difference


def said(*numbers: tuple[int, int]) -> list[float]:
    """The sums over replicas that have these two checksums each."""
    linear = [float(sum(each)) for each in zip(*numbers, strict=True)]
    squares = [float(sum(n * n for n in each)) for each in zip(*numbers, strict=True)]
    return [*linear, *squares]


def mistakes() -> list[str]:
    """What does not hold of the comparison as it is."""
    found = []
    equal, top = replica_check.are_equal, PRIME - 1
    if not all(equal(n, said(*[(top, 7)] * n)) for n in (2, 3, 5, 1000)):
        found.append("equal replicas are accused")
    pairs = [(4, 4), (4, 5)], [(4, 4), (5, 4)], [(3, 9), (5, 9)], [(0, top), (0, top - 1)]
    if any(equal(2, said(*pair)) for pair in pairs):
        found.append("one number is not looked at")
    # The mean is what the others have, as a sum alone would show.
    if equal(3, said((3, 1), (4, 1), (5, 1))):
        found.append("differences that cancel out are not seen")
    if equal(1000, said(*[(top, top)] * 999, (top, top - 1))):
        found.append("one of many is not seen")
    modules = [model() for _ in range(3)]
    replicas = Replicas(modules)
    if replicas.within_a_pass() is not None:
        found.append("equal states are accused")
    for name in ("0.weight", "3.bias"):
        own = modules[1].state_dict()[name]
        flip(own, 3)
        if replicas.within_a_pass() != Finding(kind="parameter", name=name, wrong=(1,)):
            found.append(f"{name} is not found, or another is accused")
        flip(own, 3)
    state = replicas.optimizers[2].state[modules[2][3].bias]["exp_avg"]
    flip(state, 3)
    if replicas.within_a_pass() is None:
        found.append("the state of an optimizer is not looked at")
    return found


def test_nothing_is_wrong() -> None:
    assert mistakes() == []


def without_last(entries: Sequence[Any], steps: int) -> list[Any]:
    *slices, _ = CUT(entries, steps)
    return [*slices, slices[0]]


def parameters_only(entries: Sequence[Any], steps: int) -> list[Any]:
    return CUT([each for each in entries if each.kind == "parameter"], steps)


def others(table: Sequence[Sequence[int]]) -> Any:
    found = FIRST(table)
    wrong = tuple(set(range(len(table))) - set(found.wrong)) if found else ()
    return found and replace(found, wrong=wrong)


MUTATIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "never unequal": ("are_equal", lambda *_: True),
    "always unequal": ("are_equal", lambda *_: False),
    "the first number only": ("are_equal", lambda n, s: ARE_EQUAL(n, s[::2])),
    "the second number only": ("are_equal", lambda n, s: ARE_EQUAL(n, s[1::2])),
    "sums without squares": ("are_equal", lambda n, s: all(x % n == 0 for x in s[: len(s) // 2])),
    "one replica too few": ("are_equal", lambda n, s: ARE_EQUAL(n - 1, s)),
    "a slice is left out": ("cut_into_slices", without_last),
    "no optimizer's state": ("cut_into_slices", parameters_only),
    "the majority is accused": ("first_difference", others),
    "nobody is accused": (
        "first_difference",
        lambda table: (found := FIRST(table)) and replace(found, wrong=()),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_mistake_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, mutated = MUTATIONS[name]
    monkeypatch.setattr(replica_check, where, mutated)
    assert mistakes()


def test_a_check_that_looks_at_one_slice_only_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    write = ReplicaCheck.write
    monkeypatch.setattr(ReplicaCheck, "write", lambda self, sums, step: write(self, sums, 0))
    assert mistakes()
