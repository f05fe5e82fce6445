"""`Bundle`: a user's own training loop over a model that is cut into stages.

    bundle = Bundle.of(model, loss, images[:2], batch_size=64)
    optimizer = AdamW(bundle.parameters())
    for images, targets in batches:
        loss = bundle.step(images, targets)     # forward, backward, gradients summed
        optimizer.step()

It is a trainer of `bundlerun.workers.trainer` whose optimizer is outside: schedule, links, sums of
gradients, batch norms and the checks of the replicas are those of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import torch
from torch import nn
from torch.optim import Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import CheckpointError, ConfigError
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.splits.shared import counted_elsewhere, model_parameters
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.model.example import describe, example_of
from bundlerun.workers.model.fidelity import check_fidelity
from bundlerun.workers.model.stage import cut_model
from bundlerun.workers.own.as_recipe import LoopRecipe, Loss, Metrics
from bundlerun.workers.own.batches import Use, arguments_of, cut_batch
from bundlerun.workers.own.cut import Cut
from bundlerun.workers.own.process.joined import as_rank, read_env
from bundlerun.workers.own.saved_folders import SavedFolders
from bundlerun.workers.own.stage_state import StageState
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.recipe import DataInfo
from bundlerun.workers.run.keeper import Keeper, look
from bundlerun.workers.run.same_model import check_same_model
from bundlerun.workers.run.same_model import described as whole_described
from bundlerun.workers.step import StepSums, StepWork
from bundlerun.workers.trainer import Trainer
from bundlerun.workers.values.norms import norms_of


class Bundle:
    """One rank's part of a model that is cut into stages; made by `Bundle.of`.

    Args:
        config: of the stages.
        session: this rank's place.
        trainer: has its stage.
        batch_size: samples of one bundle's step.
        saved: the folders that it saves to.
        keeps: what ends with it.
    """

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        trainer: Trainer,
        batch_size: int,
        saved: SavedFolders,
        keeps: ExitStack,
    ) -> None:
        self._config = config
        self._session = session
        self._trainer = trainer
        self._batch_size = batch_size
        self._saved = saved
        self._keeps = keeps
        self._is_closed = False
        self._step = 0
        self.metrics: dict[str, float] = {}
        """Those of the last step or evaluation, means over the samples."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss: Loss,
        example: object,
        *,
        batch_size: int,
        metrics: Metrics | None = None,
        cut: Cut = Cut(),  # noqa: B008 (frozen)
    ) -> Bundle:
        """Cuts a model; each rank gets its stage, all replicas the parameters of the first.

        Collective: every rank of the job, which a launcher has started. One process by itself has
        the whole model.

        Args:
            model: unsplit, in CPU memory, made alike on all ranks (the same seed before it). Stages
                share its parameters: let it go where they are to be in memory once.
            loss: of (output, targets) of a micro-batch: a mean over its samples, or (sum, weight).
            example: what the model is called with, a tuple for several arguments; a sample or two.
            batch_size: samples that one bundle does in a step, the same in all of them.
            metrics: of the same arguments: a dict of sums over the samples.
            cut: where, and how it runs.

        Raises:
            ConfigError: the model cannot be cut so, or ranks do not fit.
            NodeError: a rank cannot be reached.
        """
        env = read_env()
        if env.world_size == 1:
            cut = replace(cut, shape=(1,), at=(), chunks=1, schedule="auto", recompute="none")
        config = cut.config(env, batch_size)
        # What it notes down for a next start is of no use to it; its user says where it is saved.
        keeps = ExitStack()
        folder = keeps.enter_context(TemporaryDirectory(prefix="bundlerun-"))
        config = replace(config, run_dir=folder)
        inputs = arguments_of(example)
        described = example_of(describe(inputs))
        recipe = LoopRecipe(model, loss, metrics)
        info = DataInfo(num_train=batch_size, num_val=0, num_outputs=0)
        with keeps as made:
            session = as_rank(config, env)
            # What a user draws goes on as if nothing had been cut.
            with door.kept_random_state(session.device):
                found = cut_model(config, recipe, info, example=described)
                check_same_model(session, whole_described(found.stages))
                if session.has_first_microbatch:
                    longest_s = config.timeout_s / 4
                    check_fidelity(found.subject(), lambda: inputs, longest_s=longest_s)
                stage = found.stages[session.place.stage]
                trainer = Trainer(config, session, stage, recipe, Meters.of(session.device))
            made.callback(trainer.close)
            trainer.copy_from_first()
            kept = made.pop_all()
        return cls(config, session, trainer, batch_size, SavedFolders(env, kept), kept)

    # --- what is here

    @property
    def stage(self) -> nn.Module:
        """The part of the model that is here, on its device; its names are the model's own."""
        return self._trainer.stage

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._session.device

    @property
    def number(self) -> int:
        """Which bundle this rank is of, from 0 on: its batches are for it alone."""
        return self._session.place.bundle

    @property
    def count(self) -> int:
        """Bundles of the job."""
        return self._session.topology.num_bundles

    @property
    def is_first(self) -> bool:
        """Whether this rank has the first stage, which takes the batches."""
        return self._session.place.stage == 0

    @property
    def is_reporter(self) -> bool:
        """Whether it is the one rank of the job that should print."""
        return self._session.is_reporter

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of this rank's stage, for an optimizer."""
        return self._trainer.stage.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same, by the model's own names."""
        return model_parameters(self._trainer.stage)

    # --- a step

    def step(self, inputs: object = None, targets: object = None) -> float:
        """Forward and backward of a batch; gradients are there afterwards, of the mean over all.

        Gradients of the step before are gone: no zero_grad is needed.
        Collective: every rank.

        Args:
            inputs: of this bundle, tensors with `batch_size` samples along their first dimension,
                nested as you like; a tuple as the model takes several. Read on ranks of the first
                stage, others may leave it out.
            targets: of the same samples, likewise.

        Returns:
            The mean loss over all bundles, on all ranks.

        Raises:
            ConfigError: the bundle is closed, the batch has another size, or targets are missing.
        """
        self._check_open()
        batches = self._batches(inputs, targets, self._batch_size, Use.STEP)
        work = self._work(self._batch_size)
        result = self._trainer.step(work, batches, steps_per_epoch=1)
        self._step += 1
        return self._shared(result.sums)

    def evaluate(
        self,
        inputs: object,
        targets: object,
        *,
        num_samples: int = 0,
    ) -> float:
        """The mean loss over a batch in evaluation mode, over all bundles; no gradients.

        Collective: every rank.

        Args:
            inputs, targets: see `step`.
            num_samples: of this batch, the same in all bundles; 0: `batch_size`.
        """
        self._check_open()
        num_samples = num_samples or self._batch_size
        batches = self._batches(inputs, targets, num_samples, Use.EVALUATION)
        works = [self._work(num_samples)]
        return self._shared(self._trainer.evaluate(works, batches, is_told=lambda: False))

    def clip_grad_norm_(self, max_norm: float) -> float:
        """Scales the gradients of all stages so that their norm is at most `max_norm`.

        Collective: every rank, between `step` and the optimizer's.

        Returns:
            The norm before.
        """
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        # What several stages share counts once.
        elsewhere = counted_elsewhere(self._trainer.stage, self._session.place.stage)
        counted = [p.grad for p in self.parameters() if p.grad is not None and p not in elsewhere]
        own = math.fsum(float(norm) ** 2 for norm in norms_of(counted))
        positions = self._session.topology.positions
        found = zip(self._session.gather_bundle(own), positions, strict=True)
        # Replicas of a stage have the same gradients: one of each stage counts.
        norm = math.sqrt(math.fsum(square for square, (_, replica) in found if not replica))
        if gradients and norm > max_norm:
            torch._foreach_mul_(gradients, max_norm / (norm + 1e-6))
        return norm

    def _work(self, num_samples: int) -> StepWork:
        samples = self._session.arrival.samples_per_microbatch
        full, rest = divmod(num_samples, samples)
        sizes = [samples] * full + ([rest] if rest else [])
        return StepWork(
            seed=self._config.seed,
            step=self._step,
            first=self.number * len(sizes),
            sizes=sizes,
            num_samples=num_samples * self.count,
        )

    def _batches(
        self, inputs: object, targets: object, num_samples: int, use: Use
    ) -> Iterator[Batch]:
        """The micro-batches of this rank, in order; none on other stages than the first."""
        if not self.is_first:
            return iter(())
        samples = self._session.arrival.samples_per_microbatch
        found = cut_batch(inputs, targets, num_samples, samples, use)
        # The replicas of the first stage take micro-batches in turn (I3).
        return iter(found[self._session.place.replica :: self._config.shape.widths[0]])

    def _shared(self, sums: StepSums | None) -> float:
        """The loss on all ranks of the bundle, and the metrics; the last stage knows them."""
        own = None if sums is None else [sums.loss, sums.metrics]
        loss, metrics = self._session.gather_bundle(own)[-1]
        self.metrics = metrics
        return float(loss)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConfigError("this bundle is closed; make another with Bundle.of()")

    # --- on disk

    def save(
        self, folder: str | Path, optimizer: Optimizer | None = None, *, keep: int = 3
    ) -> Path:
        """Writes a checkpoint of the steps so far: of any shape and cut, by the model's own names.

        The folder is this job's until the bundle is closed.
        Collective: every rank.

        Args:
            folder: which all nodes share; the checkpoints are in it, as those of a run.
            optimizer: over this rank's parameters; its state is saved, too.
            keep: how many of the newest stay.

        Returns:
            The folder of the checkpoint.

        Raises:
            ConfigError: another program, or a run, has the folder.
            CheckpointError: it cannot be written; the older ones stay.
        """
        self._check_open()
        self._claim(Path(folder))
        keeper = self._keeper(replace(self._config, run_dir=str(folder), keep=keep), optimizer)
        name = "" if optimizer is None else type(optimizer).__name__
        keeper.save(
            Progress(
                step=self._step, epoch=0, step_in_epoch=self._step, samples_seen=0, optimizer=name
            )
        )
        # One rank looks, and no rank goes on before it is there.
        is_missing = self.is_reporter and not keeper.is_saved(self._step)
        if any(self._trainer.total([float(is_missing)])):
            raise CheckpointError(f"no checkpoint of step {self._step}: {keeper.why_unsaved}")
        return RunPaths(Path(folder)).checkpoint(self._step)

    def _claim(self, folder: Path) -> None:
        """Makes a folder this job's; collective, so that no rank waits for one that is refused."""
        refusal = self._saved.refusal(folder) if self.is_reporter else None
        if any(self._trainer.total([float(refusal is not None)])):
            raise refusal or ConfigError(
                f"cannot save to {str(folder)!r}: the rank that reports says why"
            )

    def load(self, folder: str | Path, optimizer: Optimizer | None = None) -> int:
        """Takes up the newest whole checkpoint in a folder, whichever shape has written it.

        Collective: every rank.

        Returns:
            The steps that it was taken after; 0 where there is none.

        Raises:
            CheckpointError: it is of another model.
            ConfigError: it is of another optimizer.
        """
        config = replace(self._config, run_dir=str(folder))
        resumed = self._keeper(config, optimizer).resume(look(config, self._session))
        self._step = resumed.progress.step if resumed else 0
        return self._step

    def _keeper(self, config: TrainConfig, optimizer: Optimizer | None) -> Keeper:
        self._check_open()
        return Keeper(config, self._session, StageState(self._session, self._trainer, optimizer))

    # --- the end

    def close(self) -> None:
        """Ends its threads and communicators; the stage and its parameters stay.

        Collective: every rank.
        """
        if not self._is_closed:
            self._is_closed = True
            self._keeps.close()
            self._session.close()

    def __enter__(self) -> Self:
        """Closes it at the end, where no error is."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """After an error other ranks may be gone, for whom closing would wait."""
        if error is None:
            self.close()
