"""What a rank calls for each chunk of its stage: the model's own forward, and what is around it.

batch norms lend their buffers          once per micro-batch
what a forward writes is watched      once per micro-batch
recomputation: --recompute          in the forward, and again in the backward
torch.compile                       not of a stage that replays
the model
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bundlerun.launcher.config import TrainConfig
from bundlerun.splits.replay.stage import ReplayStage
from bundlerun.splits.stage import Forward, chunk_forwards
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.model.compiled import compiled
from bundlerun.workers.model.forward_state import ForwardState
from bundlerun.workers.model.norms.batchnorm import StatisticsPool
from bundlerun.workers.values.nest import leaves, mapped


def forwards_of(
    stage: nn.Module,
    config: TrainConfig,
    statistics: StatisticsPool,
    state: ForwardState,
    device: torch.device,
    *,
    recomputes: bool,
) -> list[Forward]:
    """One per chunk.

    Args:
        stage: this rank's part of the model.
        config: of the run.
        statistics: of its batch norms.
        state: what its forwards write.
        device: where it is.
        recomputes: whether the activations are to be computed again in the backward.
    """
    forwards = []
    for chunk, own in enumerate(chunk_forwards(stage, config.chunks)):
        # What replays leaves its forward in the middle, which torch.compile knows nothing of.
        mode = "off" if isinstance(stage, ReplayStage) else config.compile_mode
        forward = compiled(own, mode)
        if recomputes:
            forward = Recomputed(forward, device, begin_again=state.undo)
        forwards.append(statistics.around(state.watched(chunk, forward)))
    return forwards


class Recomputed:
    """A forward that keeps its inputs only; the backward computes all else once more.

    The second time it has the random numbers, the precision and the written state of the first
    time. It counts for nothing: batch norms gather what is lent to them around the first one, and
    what it writes is undone before the next forward.

    Args:
        forward: of a chunk.
        device: where it computes.
        begin_again: called before the second time; brings back the state that a forward begins
            with.
    """

    def __init__(
        self, forward: Forward, device: torch.device, *, begin_again: Callable[[], None]
    ) -> None:
        self._forward = forward
        self._device = device
        self._begin_again = begin_again
        # Unknown at first, and then as the first micro-batch was treated.
        self._overwrites: bool | None = None

    def __call__(self, *inputs: Any) -> Any:  # noqa: ANN401 - as the model's
        """As the forward; keeps nothing to compute again where there is no backward."""
        if not torch.is_grad_enabled():
            return self._forward(*inputs)
        # Not left to torch: it knows the generators of its own kinds of devices.
        state = door.random_state(self._device)
        is_again = False

        def run(*given: Any) -> Any:  # noqa: ANN401
            nonlocal is_again
            if not is_again:
                is_again = True
                return self._run(given)
            with door.kept_random_state(self._device):
                door.set_random_state(self._device, state)
                self._begin_again()
                return self._run(given)

        return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)

    def _run(self, inputs: tuple[Any, ...]) -> Any:  # noqa: ANN401
        if self._overwrites is False:
            return self._forward(*inputs)
        # Inputs that the forward overwrites would not be what they were the second time.
        copies = mapped(_cloned, inputs)
        tensors = [leaf.value for leaf in leaves(copies) if isinstance(leaf.value, Tensor)]
        before = [tensor._version for tensor in tensors]
        result = self._forward(*copies)
        if self._overwrites is None:
            self._overwrites = before != [tensor._version for tensor in tensors]
        return result


def _cloned(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value
