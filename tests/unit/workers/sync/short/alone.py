"""A group of one node: its sums are what it gives."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from bundlerun.workers.rank.comm import Group


class _Done:
    def wait(self) -> None:
        """Done already."""


class _Alone:
    size, index, backend = 1, 0, "gloo"

    def all_reduce(self, tensor: Tensor) -> Any:
        del tensor
        return _Done()


def alone() -> Group:
    return cast(Group, _Alone())
