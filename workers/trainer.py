"""One rank's state and what a step does to it: bundle, sync, batch norm, clip, optimizer."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from launcher.config import TrainConfig
from launcher.paths import RunPaths
from splits.stage import Forward, chunk_forwards, chunk_parameters
from workers.batchnorm import StatisticsPool, defer_batchnorm
from workers.bucket import bucket_bytes
from workers.bundle import Bundle, Outcome, StepWork
from workers.calibrate import read_choice, write_choice
from workers.lr import lr_factor
from workers.meters import Meters
from workers.recipe import Recipe
from workers.samples import Batch
from workers.session import Session
from workers.state import state_tensors
from workers.sync import GradientSync

log = logging.getLogger(__name__)

_NUM_METRICS = 16
_STOP = 1 + _NUM_METRICS
"""Where ranks that are told to stop are counted: behind the loss and the metrics."""
_NUM_SUMS = _STOP + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """What one step, or one evaluation, came to over all bundles; known on the last stage."""

    loss: float
    """Mean over the samples."""
    metrics: dict[str, float]
    """Means over the samples, such as {"top1": 0.97}."""


class Trainer:
    """Trains one stage replica; every rank of the job has one.

    Args:
        config: the run's configuration.
        session: this rank's place and groups.
        stage: this rank's part of the model, freshly made, in CPU memory.
        recipe: gives loss, metrics and optimizer.
        meters: gets the time of each phase.
    """

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        stage: nn.Module,
        recipe: Recipe,
        meters: Meters,
    ) -> None:
        self._config = config
        self._session = session
        self._meters = meters
        if config.precision == "float64":
            stage = stage.double()
        self.stage = defer_batchnorm(stage.to(session.device))
        self.optimizer = recipe.optimizer(self.stage.named_parameters())
        self._highest_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.sync = self._make_sync()
        self._sums = self.sync.extra[:_NUM_SUMS]
        self.wants_stop = False
        """Whether this rank has heard that the run is to stop; goes out with the next step."""
        self.heard_stop = False
        """Whether some replica of this stage wanted to stop in the last step; they all agree."""
        self._statistics = StatisticsPool(self.stage, self.sync.extra[_NUM_SUMS:])
        forwards = chunk_forwards(self.stage, config.chunks)
        self.bundle = Bundle(
            topology=session.topology,
            place=session.place,
            stage=self.stage,
            links=session.groups.links,
            recipe=recipe,
            device=session.device,
            precision=config.precision,
            meters=meters,
            schedule=config.schedule,
            forwards=[_compiled(f) if config.compile else f for f in forwards],
        )

    def _make_sync(self) -> GradientSync:
        config, topology, place = self._config, self._session.topology, self._session.place
        kept = RunPaths(Path(config.run_dir)).sync_choice(place.stage)
        sync = GradientSync(
            chunk_parameters(self.stage, config.chunks),
            num_extra=_NUM_SUMS + StatisticsPool.size(self.stage),
            groups=self._session.groups,
            scheme=config.sync,
            num_shards=topology.num_shards(place.stage),
            device=self._session.device,
            bucket_bytes=bucket_bytes(config.bucket_mb, topology.num_nodes),
            exchange_dtype=getattr(torch, config.exchange_dtype),
            timeout_s=config.timeout_s,
            meters=self._meters,
            situation=f"{topology.shape} on {topology.devices_per_node}, {config.exchange_dtype}",
            known=read_choice(kept) if self._session.is_writer else None,
        )
        if sync.choice is not None and self._session.is_writer:
            log.info("stage %d: sync %s", place.stage, sync.choice)
            write_choice(kept, sync.choice)
        return sync

    def step(self, work: StepWork, batches: Iterator[Batch], steps_per_epoch: int) -> Outcome:
        """Does one optimizer step; `last_sums` and `heard_stop` then have what it came to.

        Collective: every active rank.
        """
        self.sync.start_step()
        outcome = self.bundle.train(
            work,
            batches,
            before_last_backward=self.sync.arm,
            on_forwards_done=partial(_write_sums, self._sums, wants_stop=self.wants_stop),
        )
        self.sync.finish()
        self.heard_stop = bool(self._sums[_STOP] > 0)
        with self._meters.phase("optimizer"), torch.no_grad():
            self._statistics.apply()
            if self._config.clip_norm:
                self._clip(self._config.clip_norm)
            factor = lr_factor(self._config, work.step, steps_per_epoch)
            for group, highest in zip(self.optimizer.param_groups, self._highest_lr, strict=True):
                group["lr"] = highest * factor
            self.optimizer.step()
        if self._config.verify_replicas:
            self.verify_replicas(work.step)
        self.last_sums = _read_sums(self._sums, outcome, work.num_samples)
        return outcome

    def evaluate(self, work: StepWork, batches: Iterator[Batch]) -> StepSums:
        """Mean loss and metrics over the validation samples; right on the last stage only.

        Collective: every active rank.
        """
        outcome = self.bundle.evaluate(work, batches)
        sums = torch.zeros(_NUM_SUMS, dtype=torch.float64, device=self._session.device)
        _write_sums(sums, outcome)
        return _read_sums(self.sync.all_sum(sums), outcome, work.num_samples)

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums numbers over all active ranks of the job.

        Collective: every active rank, outside a step.
        """
        own = torch.tensor(values, dtype=torch.float64, device=self._session.device)
        of_stage = self.sync.all_sum(own).tolist()
        per_position = self._session.gather_bundle(of_stage)
        positions = self._session.topology.positions
        firsts = [v for v, (_, replica) in zip(per_position, positions, strict=True) if not replica]
        return [math.fsum(column) for column in zip(*firsts, strict=True)]

    def copy_from_first(self) -> None:
        """Starts every replica of a stage from the first one's parameters and buffers."""
        self.sync.copy_from_first([t.detach() for t in self.stage.state_dict().values()])

    def state(self) -> dict[str, Tensor]:
        """The whole state of the stage by name, not copied."""
        return state_tensors(self.stage, self.optimizer)

    def verify_replicas(self, step: int) -> None:
        """Raises RuntimeError unless all replicas of this stage are bit-equal.

        Collective: every replica of the stage. For n replicas and pieces h of a hash, all are
        equal exactly where n sum(h^2) = sum(h)^2; 16-bit pieces keep that exact in float64.
        """
        digest = hashlib.sha256()
        for tensor in self.stage.state_dict().values():
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        pieces = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint16).double()
        sums = self.sync.all_sum(torch.cat([pieces, pieces**2]).to(self._session.device)).cpu()
        linear, square = sums.chunk(2)
        count = len(self._session.topology.stage_ranks(self._session.place.stage))
        if not torch.equal(linear**2, count * square):
            raise RuntimeError(
                f"the replicas of stage {self._session.place.stage} differ after step {step}"
            )

    def close(self) -> None:
        """Ends the threads."""
        self.sync.close()

    def _clip(self, max_norm: float) -> None:
        """Scales the gradients of the whole model to a norm of at most `max_norm`.

        Source: `torch.nn.utils.clip_grad_norm_`; the squares meet across stages.
        """
        gradients = [p.grad for p in self.stage.parameters() if p.grad is not None]
        squares = [float(g.double().square().sum()) for g in gradients]
        positions = self._session.topology.positions
        per_position = self._session.gather_bundle(math.fsum(squares))
        norm = math.sqrt(
            math.fsum(v for v, (_, r) in zip(per_position, positions, strict=True) if r == 0)
        )
        scale = min(1.0, max_norm / (norm + 1e-6))
        for gradient in gradients:
            gradient.mul_(scale)


def _compiled(forward: Forward) -> Forward:
    compiled: Forward = torch.compile(forward)
    return compiled


def _write_sums(sums: Tensor, outcome: Outcome, wants_stop: bool = False) -> None:
    sums[_STOP] = float(wants_stop)
    if outcome.loss is None:
        return
    if len(outcome.metrics) > _NUM_METRICS:
        raise RuntimeError(f"a recipe may have {_NUM_METRICS} metrics, not {len(outcome.metrics)}")
    for index, value in enumerate([outcome.loss, *outcome.metrics.values()]):
        sums[index] = value


def _read_sums(sums: Tensor, outcome: Outcome, num_samples: int) -> StepSums:
    loss, *metrics = sums[:_STOP].tolist()
    return StepSums(
        loss=loss,
        metrics={
            name: value / max(1, num_samples)
            for name, value in zip(outcome.metrics, metrics, strict=False)
        },
    )
