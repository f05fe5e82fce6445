"""Which shape a round takes, by what is foreseen of each; the most devices, where that is open."""

from __future__ import annotations

from itertools import permutations

import pytest

from bundlerun.launcher.layout.prospects import Cut, Prospect, Prospects
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology, best_shape

LIST = "1,1,1|1,1|1"


def foreseen(*rows: tuple[tuple[int, ...], str, float]) -> Prospects:
    return Prospects(
        tuple(
            Prospect(devices=devices, shape=Shape.parse(shape), samples_per_s=rate)
            for devices, shape, rate in rows
        )
    )


ALL = foreseen(
    ((1, 1, 1), "1,1,1", 90.0),
    ((1, 1, 1), "1,1", 95.0),
    ((1, 1, 1), "1", 80.0),
    ((2, 1), "1,1,1", 70.0),
    ((2, 1), "1,1", 60.0),
    ((2, 1), "1", 0.0),
    ((1, 1), "1,1", 50.0),
    ((1, 1), "1", 50.0),
    ((1,), "1", 0.0),
)


@pytest.mark.parametrize(
    ("devices", "prospects", "shape"),
    [
        ((1, 1, 1), ALL, "1,1"),  # faster, though a device is idle
        ((1, 1, 1), Prospects(), "1,1,1"),
        ((2, 1), ALL, "1,1,1"),
        ((1, 2), ALL, "1,1,1"),  # in any order
        ((1, 1), ALL, "1,1"),  # of equals the first
        ((1,), ALL, "1"),  # does not fit by the forecast, and there is no other
        ((1, 1, 1, 1), ALL, "1,1"),  # nobody has foreseen four: of most devices the first
        ((1, 1, 1), foreseen(((1, 1, 1), "1,1", 95.0)), "1,1,1"),  # the others are not foreseen
        ((1, 1, 1), foreseen(*(((1, 1, 1), s, 0.0) for s in LIST.split("|"))), "1,1,1"),
    ],
)
def test_the_fastest_that_is_foreseen_else_the_most_devices(
    devices: tuple[int, ...], prospects: Prospects, shape: str
) -> None:
    assert str(best_shape(Shape.parse(LIST), devices, prospects)) == shape
    assert str(Topology.best(Shape.parse(LIST), devices, prospects=prospects).shape) == shape


def test_the_order_in_which_it_was_foreseen_decides_nothing() -> None:
    rows = ALL.rows[:3]
    found = {
        str(best_shape(Shape.parse(LIST), (1, 1, 1), Prospects(p))) for p in permutations(rows)
    }
    assert found == {"1,1"}


def test_all_that_is_foreseen_goes_through_a_text() -> None:
    cut = Cut(("layer 1", 'a"b'), "graph")
    made = Prospects((Prospect(devices=(2, 1), shape=Shape((2, 1)), samples_per_s=1 / 3, cut=cut),))
    assert Prospects.parse(made.to_text()) == made
    assert Prospects.parse(Prospects().to_text()) == Prospects()


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', "[[1, 2]]", "[[[1], [1], null, [], 1]]"])
def test_another_text_is_told_from_one(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # what it says is Python's
        Prospects.parse(text)


def test_the_rendezvous_is_told_the_best_of_each_set_of_nodes() -> None:
    assert ALL.rates_text(Shape.parse(LIST)) == "1,1,1=95|2,1=70|1,1=50"
    assert Prospects().rates_text(Shape.parse(LIST)) == ""
