"""What rounding has kept back, by parameter: whoever has the parameter can make up for it.

    round r      node 0 keeps  |w -0.01 0.02|    node 1 keeps  |w 0.03 0.00|
    round r+1    both are in other places, or the run resumes from a checkpoint:
                 the first holder of w on a node adds what is there to its next gradient

So the sum over the ranks of what was sent and of what is kept stays that of the gradients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from bundlerun.workers.sync.bucket import Bucket, num_reals, shaped


class Owed(NamedTuple):
    """A part of what is kept back of the gradient of one parameter.

    Args:
        parameter: of which.
        begin: where in its memory the part begins, in numbers (a complex one is two).
        numbers: flat.
    """

    parameter: Parameter
    begin: int
    numbers: Tensor


def owed_in(bucket: Bucket, begin: int, kept: Tensor) -> Iterator[Owed]:
    """The parts of `kept`, flat, which are the numbers of a bucket from `begin` on; views of it."""
    end = begin + kept.numel()
    for parameter, (first, last) in bucket.places.items():
        low, high = max(first, begin), min(last, end)
        if low < high:
            yield Owed(parameter, low - first, kept[low - begin : high - begin])


class Debts:
    """What is still to be added to the gradients of a rank, once."""

    def __init__(self) -> None:
        self._of: defaultdict[Parameter, list[Owed]] = defaultdict(list)

    def add(self, parts: Sequence[Owed]) -> None:
        """Takes a copy of `parts`."""
        for part in parts:
            self._of[part.parameter].append(part._replace(numbers=part.numbers.clone()))

    def drop(self) -> None:
        """Forgets them all."""
        self._of.clear()

    @torch.no_grad()
    def pay(self, parameters: Sequence[Parameter]) -> set[Parameter]:
        """Adds what is owed of some parameters to their gradients; those of which something was.

        A gradient is made where there is none.
        """
        paid = {p for p in parameters if p in self._of} if self._of else set()
        for parameter in paid:
            debt = self._taken(parameter)
            if parameter.grad is None:
                parameter.grad = debt
            elif parameter.grad.is_sparse:
                parameter.grad = debt + parameter.grad
            else:
                parameter.grad += debt
        return paid

    def _taken(self, parameter: Parameter) -> Tensor:
        whole = torch.zeros(num_reals(parameter), dtype=parameter.dtype.to_real())
        for part in self._of.pop(parameter):
            whole[part.begin : part.begin + part.numbers.numel()] += part.numbers.to(whole)
        return shaped(whole.to(parameter.device), parameter)


def flat_of(gradient: Tensor, parameter: Parameter) -> Tensor:
    """A whole gradient as flat numbers, in the order of the parameter's own memory."""
    flat = torch.empty(num_reals(parameter), dtype=gradient.dtype.to_real(), device=gradient.device)
    shaped(flat, parameter).copy_(gradient)
    return flat
