"""The shape of a bundle: its text, its size, and what it leaves of a node."""

from __future__ import annotations

import doctest

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout import shape as shape_module
from bundlerun.launcher.layout.shape import Shape


def test_the_example_of_the_docstring_is_true() -> None:
    found = doctest.testmod(shape_module)
    assert (found.failed, found.attempted) == (0, 5)


@pytest.mark.parametrize("text", ["1", "1,1", "4,2,1", "1,1,1,1|1,1,1|2"])
def test_a_text_is_read_as_it_is_written(text: str) -> None:
    assert str(Shape.parse(text)) == text


@pytest.mark.parametrize("text", ["", "1,", "a", "1.5", "1,1|", "auto|1"])
def test_what_is_no_list_of_numbers_is_no_shape(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        Shape.parse(text)


@pytest.mark.parametrize(
    ("shape", "devices", "used"),
    [((1, 1), 5, 4), ((1, 1), 1, 1), ((4, 2), 8, 6), ((7, 1), 8, 8), ((1,), 3, 3)],
)
def test_devices_that_no_bundle_can_use_stay_idle(
    shape: tuple[int, ...], devices: int, used: int
) -> None:
    assert Shape(shape).usable_devices(devices) == used


@pytest.mark.parametrize("shape", [(), (0,), (1, 0), (-1, 2)])
def test_a_shape_without_a_device_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="--shape"):
        Shape(shape)


@pytest.mark.parametrize(("devices", "used"), [(1, 1), (2, 2), (4, 4), (5, 4), (7, 6), (8, 8)])
def test_a_node_runs_as_many_ranks_as_any_shape_of_the_family_uses(devices: int, used: int) -> None:
    assert Shape.parse("1,1,1,1|1,1").usable_devices(devices) == used


@pytest.mark.parametrize(
    ("text", "said"), [("1,1|1,1", "has a shape twice"), ("1,1|1,0", "a stage without a device")]
)
def test_a_family_has_whole_shapes_each_once(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Shape.parse(text)
