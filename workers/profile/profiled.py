"""The costs of the model that a configuration trains, on one device of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from bundlerun.launcher.agreement.profile_key import profile_key
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.planning.model_costs import ModelCosts, Profile, UpdateCosts
from bundlerun.launcher.planning.profile_request import Peak, ProfileRequest
from bundlerun.splits.profile.costs import Batch, estimated_costs, measured_costs
from bundlerun.splits.profile.passes import Subject
from bundlerun.splits.profile.pieces import Pieces, pieces_of
from bundlerun.splits.random_state import kept_random_state
from bundlerun.workers.data.order import mix_seed
from bundlerun.workers.data.readers import check_samples
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device.switches import prepare, set_switches
from bundlerun.workers.model.compiled import compiled
from bundlerun.workers.model.memory_format import arrange
from bundlerun.workers.model.norms.batchnorm import StatisticsPool
from bundlerun.workers.model.rollback import rolled_back
from bundlerun.workers.model.stage import cut_model, info_of
from bundlerun.workers.optim.loss_scale import LossScale
from bundlerun.workers.pipeline.arithmetic import Arithmetic
from bundlerun.workers.pipeline.loss import share_of
from bundlerun.workers.profile.device_clock import clock_of
from bundlerun.workers.profile.first_batch import FirstBatch, bytes_of, first_batch
from bundlerun.workers.profile.split import split_share
from bundlerun.workers.profile.update import update_costs
from bundlerun.workers.recipe import DataSets, Recipe, model_inputs
from bundlerun.workers.values.module_tensors import moved
from bundlerun.workers.values.nest import mapped


def profile_of(config: TrainConfig, recipe: Recipe, wanted: ProfileRequest) -> Profile:
    """What the model of a configuration costs; opens the data.

    Args:
        config: of the run; how it cuts the model does not count.
        recipe: of that configuration.
        wanted: sizes and device.

    Raises:
        BundleError: the data or the model does not do for it.
    """
    program = psutil.Process().memory_info().rss
    config = config.in_shape(Shape((1,)))
    sizes = sorted(set(wanted.sizes)) or [config.samples_per_microbatch]
    device = _device(config, wanted)
    data = recipe.open_data()
    check_samples(data)
    first = first_batch(data, config, max(sizes))
    with _threads(wanted), kept_random_state(), door.kept_random_state(device):
        maker = _Maker(config, recipe, data, device, wanted.peak)
        found = tuple(maker.costs(size) for size in sizes)
        update = maker.update()
    return Profile(
        key=profile_key(
            config,
            kind=wanted.kind,
            threads=wanted.threads or torch.get_num_threads(),
            is_estimate=wanted.peak is not None,
        ),
        by_samples=found,
        update=replace(update, load_s=first.load_s),
        program_bytes=program,
        cutter=maker.pieces.cutter,
        why=maker.pieces.why,
    )


def _device(config: TrainConfig, wanted: ProfileRequest) -> torch.device:
    if wanted.peak is not None:
        return torch.device("meta")
    prepare(config)
    device = torch.device("cpu")
    if wanted.kind == "gpu":
        device = door.own_device(0)
        if not door.is_gpu(device):
            raise ConfigError(
                "there is no GPU here to profile on; use --devices cpu, or --estimate"
            )
    set_switches(config, device, speaks=False)
    return device


@contextmanager
def _threads(wanted: ProfileRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Maker:
    """Has the model, on its device, in pieces."""

    def __init__(
        self,
        config: TrainConfig,
        recipe: Recipe,
        data: DataSets,
        device: torch.device,
        peak: Peak | None,
    ) -> None:
        self._config, self._recipe, self._data = config, recipe, data
        self._device, self._peak = device, peak
        with _building_on(device):
            model = cut_model(config, recipe, info_of(data)).model
        roots = [model] if isinstance(model, nn.Module) else list(model)
        for root in roots:
            moved(root.double() if config.precision == "float64" else root, device)
        formats = [
            arrange(root, config.memory_format, has_gpus=door.is_gpu(device)) for root in roots
        ]
        self._arithmetic = Arithmetic(
            device,
            config.precision,
            next((f for f in formats if f is not torch.preserve_format), torch.preserve_format),
            LossScale.of(config),
        )
        self._model = model
        self._split_share: float | None = None
        self.pieces: Pieces
        self._cut(self._batch(2))

    def _batch(self, samples: int) -> FirstBatch:
        return first_batch(self._data, self._config, samples)

    def _placed(self, value: object) -> Any:  # noqa: ANN401 - as it is nested
        if self._device.type == "meta":
            return mapped(lambda t: torch.empty_like(t, device="meta"), value)
        return mapped(self._arithmetic.placed, value)

    def _arguments(self, first: FirstBatch) -> tuple[Any, ...]:
        """What the model is called with."""
        placed = self._placed(first.batch.inputs)
        made = model_inputs(self._recipe, placed)
        return placed if made is placed else self._placed(made)

    def _cut(self, first: FirstBatch) -> None:
        example = mapped(lambda t: torch.empty_like(t, device="meta"), self._arguments(first))
        self.pieces = pieces_of(self._model, self._config.cutter, example)
        # Constants of its graph were made in CPU memory.
        if isinstance(self.pieces.forward, nn.Module):
            moved(self.pieces.forward, self._device)

    def costs(self, samples: int) -> ModelCosts:
        """Those of micro-batches of one size."""
        first = self._batch(samples)
        arguments = self._arguments(first)
        if self.pieces.sent:
            self._cut(first)  # what crosses is known of that size only
        pieces = self.pieces
        batch = Batch(
            samples=samples,
            input_bytes=bytes_of(first.batch.inputs),
            target_bytes=bytes_of(first.batch.target),
        )
        with rolled_back([pieces.whole]):
            pieces.whole.train()
            if isinstance(pieces.forward, nn.Module):
                pieces.forward.train()
            subject = self._subject(arguments, self._placed(first.batch.target), samples)
            if self._peak is not None:
                return self._estimated(subject, batch, self._peak)
            mode = "off" if pieces.cutter == "replay" else self._config.compile_mode
            forward = compiled(pieces.plain, mode) if mode != "off" else None
            clock = clock_of(self._device)
            found = measured_costs(pieces, subject, batch, clock, forward)
            if self._split_share is None and mode == "off":
                # Of one size: it hardly differs between them.
                self._split_share = split_share(pieces.whole, subject, clock)
            return with_split(found, self._split_share or 0.0)

    def _estimated(self, subject: Subject, batch: Batch, peak: Peak) -> ModelCosts:
        try:
            return estimated_costs(self.pieces, subject, batch, peak)
        except ConfigError:
            raise
        except Exception as exc:
            line = (str(exc).splitlines() or [""])[0]
            raise ConfigError(
                f"the model or its loss does not run without numbers ({type(exc).__name__}: "
                f"{line}), which an estimate needs; profile it on a device of that kind"
            ) from exc

    def _subject(self, arguments: tuple[Any, ...], target: object, samples: int) -> Subject:
        whole, device = self.pieces.whole, self._device
        sums = torch.zeros(StatisticsPool.size(whole), dtype=torch.float64, device=device)
        pool = StatisticsPool(whole, sums)
        seed = mix_seed(self._config.seed)

        def inputs() -> tuple[Any, ...]:
            if device.type != "meta":
                door.seed(device, seed)  # the same dropout in each pass
            # Copies: a forward may overwrite them.
            copies: tuple[Any, ...] = mapped(_cloned, arguments)
            return copies

        def judge(output: object) -> Tensor:
            share = share_of(self._recipe.loss(output, target), samples, self._config.batch_size)
            with torch.no_grad():
                self._recipe.metrics(output, target)
            return self._arithmetic.loss_scale.scaled(share.loss)

        return Subject(
            forward=self.pieces.forward,
            count=self.pieces.count,
            inputs=inputs,
            judge=judge,
            around=pool.around,
            context=self._arithmetic.autocast,
        )

    def update(self) -> UpdateCosts:
        """What an update costs, see `update_costs`; changes the model, so it comes last."""
        model = self.pieces.whole
        model.train()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        clock = None if self._peak is not None else clock_of(self._device)
        found = update_costs(self._config, self._recipe, model, clock)
        if self._peak is None:
            return found
        # Parameters, gradients and state are read, and all but gradients written.
        seconds = (3 + 2 * found.state_share) / self._peak.bytes_per_s
        return replace(found, update_s_per_byte=seconds)


def with_split(costs: ModelCosts, share: float) -> ModelCosts:
    """The same, where a backward in two passes takes that much longer."""
    pieces = tuple(replace(p, split_s=share * p.backward_s) for p in costs.pieces)
    return replace(costs, pieces=pieces)


def _cloned(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value


@contextmanager
def _building_on(device: torch.device) -> Iterator[None]:
    if device.type != "meta":
        yield
        return
    with torch.device("meta"):
        yield
