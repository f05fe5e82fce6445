from __future__ import annotations

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.use.classes import in_order_of

SAMPLES = [("a", 0), ("b", 1), ("c", 1)]


def test_classes_go_by_name() -> None:
    found = in_order_of(["ape", "bat", "cat"], ["cat", "ape"], SAMPLES)
    assert [found[n] for n in range(len(found))] == [("a", 2), ("b", 0), ("c", 0)]


def test_a_class_that_was_not_learnt_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"1 of the 2 classes .* 'dog'; nearest: dogs"):
        in_order_of(["cat", "dogs"], ["cat", "dog"], SAMPLES)
