"""How much longer a backward takes in two passes, as zero-bubble has it, than in one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves, tree_map_only

from bundlerun.splits.profile.clock import Clock
from bundlerun.splits.profile.passes import Subject
from bundlerun.splits.stage import overwritable
from bundlerun.workers.pipeline.split_backward import input_pass

_NUM_TRIES = 2


def split_share(model: nn.Module, subject: Subject, clock: Clock) -> float:
    """The time that it takes more, as a share of a whole backward's; 0 where it takes no more.

    Args:
        model: in training; its gradients are changed.
        subject: gives inputs and loss.
        clock: of the device.
    """
    whole, split = [], []
    for _ in range(_NUM_TRIES):
        loss, _ = _forward(subject)
        whole.append(_seconds(clock, loss.backward))
        loss, given = _forward(subject)
        leaves = [t for t in tree_leaves(given) if isinstance(t, Tensor) and t.requires_grad]
        # Tokens have no gradients: then the first parameter is what the first pass leads to.
        leaves = leaves or [p for p in list[Tensor](model.parameters()) if p.requires_grad][:1]
        split.append(_seconds(clock, partial(_apart, loss, leaves)))
    return max(0.0, min(split) / max(min(whole), 1e-9) - 1)


def _forward(subject: Subject) -> tuple[Tensor, Any]:
    given = tree_map_only(Tensor, _as_leaf, subject.inputs())
    marks = _Unmarked()
    forward = subject.around(lambda *inputs: subject.forward(marks, *inputs))
    with subject.context():
        loss = subject.judge(forward(*tree_map_only(Tensor, overwritable, given)))
    return loss, given


def _as_leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def _apart(loss: Tensor, leaves: list[Tensor]) -> None:
    _, rest = input_pass([get_gradient_edge(loss)], [torch.ones_like(loss)], leaves)
    rest.run()


def _seconds(clock: Clock, call: Any) -> float:  # noqa: ANN401
    marks = [clock.mark()]
    call()
    marks.append(clock.mark())
    return clock.seconds(marks)[0]


class _Unmarked:
    """Nobody listens to where the forward has come to."""

    def enter(self, piece: int, crossing: object = None) -> None:
        """Nothing."""
