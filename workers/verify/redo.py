"""One micro-batch now and then is computed by all replicas of a stage, and compared to the bit.

    step    [1] what the first micro-batch gives this stage is remembered
            [2] after the sums: may it be compared? the same hardware, software, shapes
            [3] all take the inputs of the first replica
            [4] forward and backward, for nobody: outputs and gradients, summed
            [5] only where they differ: once more, and each tells what it has of each

A wrong gradient goes to all replicas by the sum, so that their states stay equal: this is what
sees a device that computes wrongly. What does not repeat itself on most of them, as some kernels of
GPUs do not, is compared no more. The parameters are those that the step has begun with, the random
numbers those of its micro-batch 0, and nothing of it stays: no gradient, no buffer.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.topology import Topology
from bundlerun.splits.stage import Forward, chunk_forwards
from bundlerun.workers.data.order import mix_seed
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.pipeline.arithmetic import Arithmetic
from bundlerun.workers.values.nest import form_sent, leaf_values, mapped
from bundlerun.workers.verify.replica_check import AllSum, Finding, are_equal
from bundlerun.workers.verify.slices import PRIME, Checksum, bytes_of, steps_of
from bundlerun.workers.verify.suspects import judged

log = logging.getLogger(__name__)

MOST_SHARE = 0.005
"""Of the passes of a rank, where --verify-steps does not say how often."""
ACTIVATION, GRADIENT = "activation", "gradient"


def redo_steps(config: TrainConfig, topology: Topology) -> int:
    """Pure: steps from one such micro-batch to the next; 0: there is none."""
    every = steps_of(config)
    if config.verify_steps > 0 or not every:
        return every
    replicas = topology.num_bundles * max(topology.shape.widths)
    own = max(1, config.num_microbatches // replicas)
    return every * math.ceil(1 / (MOST_SHARE * own * every))


class Redo:
    """One rank's part in it.

    Args:
        config: of the run.
        stage: of this rank.
        arithmetic: in which it computes.
        num_replicas: of the stage.
        replica: this one.
        every: steps from one to the next; 0: there is none.
        all_sum: over the replicas.
        take_first: makes tensors those of the first replica; collective, in place.
        is_quiet: whether no forward writes to the state.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: nn.Module,
        arithmetic: Arithmetic,
        *,
        num_replicas: int,
        replica: int,
        every: int,
        all_sum: AllSum,
        take_first: Callable[[Sequence[Tensor]], None],
        is_quiet: Callable[[], bool],
    ) -> None:
        self._seed = config.seed
        self._stage = stage
        self._arithmetic = arithmetic
        self._forwards = chunk_forwards(stage, config.chunks)
        self._num_replicas, self._replica = num_replicas, replica
        self._every = every if num_replicas > 1 else 0
        self._all_sum = all_sum
        self._take_first = take_first
        self._is_quiet = is_quiet
        self._hardware = _numbers_of(_hardware(arithmetic))
        self._chunk = -1
        """That is remembered in this step; -1: none is."""
        self._taken: tuple[Any, ...] | None = None

    def is_due(self, step: int) -> bool:
        """Whether a micro-batch of this step is done again."""
        return self._every > 0 and step % self._every == self._every - 1

    def begin(self, step: int) -> None:
        """Call it before the forwards of a step."""
        self._taken = None
        # In turn, where a stage has several chunks.
        self._chunk = step // self._every % len(self._forwards) if self.is_due(step) else -1

    def around(self, forwards: Sequence[Forward]) -> list[Forward]:
        """[1] The same forwards of the stage's chunks, of which one is remembered now and then."""
        if not self._every:
            return list(forwards)
        return [self._remembering(number, forward) for number, forward in enumerate(forwards)]

    def _remembering(self, number: int, forward: Forward) -> Forward:
        def run(*arguments: Any) -> object:  # noqa: ANN401 (what crosses a cut)
            if number == self._chunk and self._taken is None and torch.is_grad_enabled():
                self._taken = arguments
            return forward(*arguments)

        return run

    def compare(self, step: int) -> Finding | None:
        """What replicas get unlike from one micro-batch; None: nothing, or it is not compared.

        Collective: every replica of the stage, after the sums of a step that is due and before its
        parameters change.
        """
        taken, self._taken = self._taken, None
        if not self._is_alike(taken):
            return None
        assert taken is not None
        # [3]
        arguments = mapped(_own, taken)
        self._take_first([t.detach() for t in _tensors(arguments)])
        # [4]
        first = self._computed(arguments, step)
        if self._agree(first):
            return None
        # [5]
        second = self._computed(arguments, step)
        return self._found(first, second)

    def _is_alike(self, taken: tuple[Any, ...] | None) -> bool:
        """[2] Whether all replicas have such a micro-batch, and may get the same bits of it."""
        work = (0, 0) if taken is None or not self._is_quiet() else _numbers_of(_form(taken))
        own = torch.tensor([*self._hardware, *work], dtype=torch.float64)
        sums = self._summed(own)
        hardware = [*sums[0:2], *sums[4:6]]
        if not are_equal(self._num_replicas, hardware):
            self._stop("they have unlike devices, threads or software")
            return False
        return any(work) and are_equal(self._num_replicas, [*sums[2:4], *sums[6:8]])

    def _summed(self, own: Tensor) -> list[float]:
        numbers = torch.cat([own, own**2]).to(self._arithmetic.device)
        found: list[float] = self._all_sum(numbers).tolist()
        return found

    def _stop(self, why: str) -> None:
        self._every = 0
        if self._replica == 0:
            log.info("replicas do not compare what they get from a micro-batch: %s", why)

    def _agree(self, found: Sequence[tuple[str, str, int]]) -> bool:
        whole = _numbers_of(repr([number for _, _, number in found]))
        return are_equal(self._num_replicas, self._summed(torch.tensor(whole).double()))

    def _found(
        self, first: Sequence[tuple[str, str, int]], second: Sequence[tuple[str, str, int]]
    ) -> Finding | None:
        shape = (self._num_replicas, 2, len(first))
        own = torch.zeros(shape, dtype=torch.float64, device=self._arithmetic.device)
        for number, each in enumerate((first, second)):
            own[self._replica, number] = torch.tensor([n for _, _, n in each]).double()
        told = self._all_sum(own.view(-1)).view(shape).long().tolist()
        found = judged([one for one, _ in told], [other for _, other in told])
        if found is None:
            self._stop("it is not the same when one of them does it again")
            return None
        kind, name, _ = first[found.index]
        return Finding(kind=kind, name=name, wrong=found.wrong)

    def _computed(self, arguments: tuple[Any, ...], step: int) -> list[tuple[str, str, int]]:
        """Kind, name and checksum of each output and gradient."""
        device, checksum = self._arithmetic.device, Checksum(self._arithmetic.device)
        named = [(n, p) for n, p in self._stage.named_parameters() if p.requires_grad]
        inputs = [t for t in _tensors(arguments) if t.requires_grad]
        with door.kept_random_state(device), _kept_buffers(self._stage), torch.enable_grad():
            door.seed(device, mix_seed(self._seed, step, 0, self._chunk))
            with self._arithmetic.autocast():
                outputs = _tensors(self._forwards[self._chunk](*arguments))
            trained = [t for t in outputs if t.requires_grad]
            # Numbers of all sizes, the same on all: a gradient of ones would leave much at zero.
            seeds = [torch.randn_like(t) for t in trained]
            wanted = [*inputs, *(p for _, p in named)]
            gradients = (
                torch.autograd.grad(trained, wanted, seeds, allow_unused=True)
                if trained and wanted
                else [None] * len(wanted)
            )
        names = [f"input {i}" for i in range(len(inputs))] + [n for n, _ in named]
        found = [(ACTIVATION, f"output {i}", t) for i, t in enumerate(outputs)]
        found += [(GRADIENT, n, g) for n, g in zip(names, gradients, strict=True) if g is not None]
        with torch.no_grad():
            sums = [checksum.of_bytes([bytes_of(tensor)]) for _, _, tensor in found]
            numbers = torch.stack(sums).tolist() if sums else []
        return [
            (kind, name, high * (PRIME + 1) + low)
            for (kind, name, _), (high, low) in zip(found, numbers, strict=True)
        ]


def _own(value: Any) -> Any:  # noqa: ANN401 (what crosses a cut)
    """A copy of a tensor, by itself."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _tensors(value: object) -> list[Tensor]:
    return [leaf for leaf in leaf_values(value) if isinstance(leaf, Tensor)]


@contextmanager
def _kept_buffers(stage: nn.Module) -> Iterator[None]:
    """Afterwards the buffers are as they were."""
    buffers = list(stage.buffers())
    kept = [(b._version, b.detach().clone()) for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, (version, value) in zip(buffers, kept, strict=True):
                if buffer._version != version:
                    buffer.copy_(value)


def _form(arguments: tuple[Any, ...]) -> str:
    looks = [(t.dtype, tuple(t.shape), t.stride(), t.requires_grad) for t in _tensors(arguments)]
    return repr((form_sent(arguments), looks))


def _hardware(arithmetic: Arithmetic) -> str:
    """All that decides on bits, besides the numbers."""
    device = arithmetic.device
    return repr(
        (
            door.name_of(device),
            torch.__version__,
            torch.backends.cpu.get_cpu_capability(),
            torch.get_num_threads(),
        )
    )


def _numbers_of(text: str) -> tuple[int, int]:
    """Two numbers of 16 bits, never both 0."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=4).digest()
    return 1 + int.from_bytes(digest[:2]) % (PRIME - 1), int.from_bytes(digest[2:]) % PRIME
