"""A standby warms up: it does what a rank does first, so that the rank it becomes need not.

    wait ........ | memory for it?  device, libraries  one step of a stage, for nobody | ready
    the ranks do their steps        with the threads and on the cores of its rank

Nothing of it stays but what the process has loaded: the stage goes, random numbers are as before.
What is the user's own (a recipe, a model in a file) is not run, as a file that runs twice in one
process may do more than one that runs once.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import BundleError
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.launcher.layout.hardware import rank_layout, read_cpus
from bundlerun.launcher.models.name import is_own
from bundlerun.launcher.run_folder.events import Events
from bundlerun.launcher.run_folder.microbatch import kept_samples
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.splits.random_state import kept_random_state
from bundlerun.splits.stage import chunk_forwards
from bundlerun.workers.data.readers import check_samples, read_first
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device.start import DeviceStart
from bundlerun.workers.device.switches import prepare, set_switches
from bundlerun.workers.model.example import NUM_SAMPLES, describe, example_of
from bundlerun.workers.model.memory_format import arrange
from bundlerun.workers.model.stage import cut_model, info_of
from bundlerun.workers.pipeline.arithmetic import Arithmetic
from bundlerun.workers.recipe import BUILT_IN, load_recipe, model_inputs, shapes_vary
from bundlerun.workers.values.nest import leaves, mapped

log = logging.getLogger(__name__)

_GPU_BYTES = 1 << 30
"""Of a GPU that have to be free beside the context of a standby."""
_COPIES = 4
"""Of the parameters: they, their gradients, and what an optimizer keeps."""


class Warming:
    """One standby, from its beginning until it is ready.

    Args:
        config: of the run.
        local_rank: whose place it may take.
        num_ranks: of this node.
        node_name: of this node.
    """

    def __init__(
        self, config: TrainConfig, local_rank: int, num_ranks: int, node_name: str
    ) -> None:
        self._config = config
        self._local_rank = local_rank
        self._num_ranks = num_ranks
        file = RunPaths(Path(config.run_dir)).node_events(node_name)
        self._events = Events(file, node_name, {"local_rank": local_rank, "pid": os.getpid()})

    def run(self, wait: Callable[[], int]) -> bool:
        """Whether it is ready; where not, it has told why.

        Args:
            wait: returns when there is time for it, with the process of its rank.
        """
        rank = wait()
        begin = time.monotonic()
        try:
            device = self._device(rank)
        except BundleError as exc:
            log.warning(
                "no standby for local rank %d: %s; it goes on without one", self._local_rank, exc
            )
            self._events.note("standby missing", {"why": str(exc)})
            return False
        else:
            with _on_cores_of(rank):
                has_stepped = self._step(device)
            took_s = round(time.monotonic() - begin, 3)
            self._events.note("standby ready", {"took_s": took_s, "has_stepped": has_stepped})
            return True
        finally:
            self._events.close()

    def _device(self, rank: int) -> torch.device:
        """The device of the rank, started.

        Raises:
            BundleError: there is no memory for a standby, or the device cannot be started.
        """
        why = why_no_room(_own_bytes(rank), psutil.virtual_memory().available)
        if why:
            raise BundleError(why)
        prepare(self._config)
        device = DeviceStart(self._local_rank).take()
        set_switches(self._config, device, speaks=False)
        memory = door.memory(device)
        why = "" if memory is None else why_no_room(_GPU_BYTES, memory.free, "GPU memory")
        if why:
            raise BundleError(why)
        return device

    def _step(self, device: torch.device) -> bool:
        """Does one step of the stage that this local rank has where all nodes are alike."""
        if is_users(self._config):
            return False
        layout = rank_layout(
            self._local_rank,
            self._num_ranks,
            read_cpus(),
            threads=self._config.threads,
            affinity=False,
            environ=os.environ,
        )
        torch.set_num_threads(layout.threads)
        try:
            with kept_random_state(), door.kept_random_state(device), _quietly():
                step_of(self._config, stage_of(self._config, self._local_rank), device)
        except Exception as exc:
            # The rank will say it, if it concerns a rank. Ready without it: all else is loaded.
            log.debug("a standby could not do a step: %s", exc)
            return False
        finally:
            gc.collect()
            door.free_unused(device)
        return True


def why_no_room(needed: int, free: int, what: str = "memory of the node") -> str:
    """Pure: what is wrong; empty where a standby has room.

    Args:
        needed: bytes that it takes.
        free: bytes that are there.
        what: they are of.
    """
    if needed <= free:
        return ""
    return f"it needs {needed / 1e9:.1f} GB of {what}, and {free / 1e9:.1f} GB are free"


def _own_bytes(rank: int) -> int:
    """Memory that a rank has for itself; as much may a standby need for a moment."""
    with suppress(psutil.Error):
        return int(psutil.Process(rank).memory_full_info().uss)
    return 0


def is_users(config: TrainConfig) -> bool:
    """Whether recipe or model is code of the user's."""
    return config.recipe not in BUILT_IN or is_own(config.model)


def stage_of(config: TrainConfig, local_rank: int) -> int:
    """The stage of a local rank, where bundles begin with the first rank of a node."""
    stages = [stage for stage, width in enumerate(config.shape.widths) for _ in range(width)]
    return stages[local_rank % len(stages)]


def step_of(config: TrainConfig, own_stage: int, device: torch.device) -> None:
    """One forward, backward and step of an optimizer of one stage.

    The stages before it work out its inputs, on the CPU.
    """
    recipe = load_recipe(config)
    data = recipe.open_data()
    check_samples(data)
    settled = config.microbatch_size or kept_samples(config.run_dir, config.batch_size)
    num_samples = samples_of(settled, door.memory(device))
    batch, messages = read_first(data, config, num_samples)
    if batch is None:
        raise BundleError(messages[0])
    inputs = model_inputs(recipe, batch.inputs)
    example = example_of(describe(inputs, varies=shapes_vary(recipe)))
    stages = cut_model(config, recipe, info_of(data), example=example).stages
    _check_gpu_room(stages[own_stage], device)
    _pass(config, stages, own_stage, device, inputs)
    parameters = [(n, p) for n, p in stages[own_stage].named_parameters() if p.requires_grad]
    recipe.optimizer(parameters).step()


def samples_of(settled: int, memory: door.Memory | None) -> int:
    """Pure: samples of the step.

    A micro-batch, as what is loaded goes by its size; on a GPU only where as much memory is free as
    its rank and whoever else is there have taken. Else two: most of it is loaded for them, too.

    Args:
        settled: samples of a micro-batch; 0 where that is not known.
        memory: of a GPU.
    """
    has_room = memory is None or memory.free >= memory.capacity - memory.free
    return max(NUM_SAMPLES, settled if has_room else 0)


def _check_gpu_room(stage: nn.Module, device: torch.device) -> None:
    needed = _COPIES * sum(p.numel() * p.element_size() for p in stage.parameters())
    memory = door.memory(device)
    if memory is not None and (why := why_no_room(needed + _GPU_BYTES, memory.free)):
        raise BundleError(why)


def _pass(
    config: TrainConfig,
    stages: Sequence[nn.Module],
    own_stage: int,
    device: torch.device,
    inputs: tuple[Any, ...],
) -> None:
    """Forward up to the last chunk of the own stage; backward through the chunks of that stage."""
    chunks = Chunks(len(stages), config.chunks)
    own = [c for c in range(chunks.num_chunks) if chunks.stage_of(c) == own_stage]
    arithmetic = [_settled(config, stage, None) for stage in stages]
    arithmetic[own_stage] = _settled(config, stages[own_stage], device)
    forwards = [chunk_forwards(stage, config.chunks) for stage in stages]
    for chunk in range(own[-1] + 1):
        number = chunks.stage_of(chunk)
        forward, where = forwards[number][chunks.own_of(chunk)], arithmetic[number]
        given = mapped(partial(_received, arithmetic=where), inputs)
        with torch.set_grad_enabled(number == own_stage), where.autocast():
            result = forward(*given)
        if number == own_stage:
            _backward(result)
        inputs = tuple(result) if isinstance(result, (tuple, list)) else (result,)


def _settled(config: TrainConfig, stage: nn.Module, device: torch.device | None) -> Arithmetic:
    """Brings a stage to its device, as a trainer does; how it computes there.

    Args:
        config: of the run.
        stage: freshly made.
        device: of the own stage; None for others, which are on the CPU, in numbers that it has.
    """
    precision = config.precision if device or config.precision == "float64" else "float32"
    if precision == "float64":
        stage.double()
    where = device or torch.device("cpu")
    stage.to(where).train()
    memory_format = arrange(stage, config.memory_format, has_gpus=door.is_gpu(where))
    return Arithmetic(where, precision, memory_format)


def _received(value: Any, arithmetic: Arithmetic) -> Any:  # noqa: ANN401 - what crosses a cut
    return arithmetic.placed(value.detach()) if isinstance(value, Tensor) else value


def _backward(result: object) -> None:
    found = [leaf.value for leaf in leaves(result) if isinstance(leaf.value, Tensor)]
    sums = [t.float().sum() for t in found if t.requires_grad]
    if sums:
        torch.stack(sums).sum().backward()


@contextmanager
def _on_cores_of(rank: int) -> Iterator[None]:
    """On the cores of a process: threads that are made now stay there; this one goes back."""
    before = os.sched_getaffinity(0)
    with suppress(OSError):  # it has ended
        os.sched_setaffinity(0, os.sched_getaffinity(rank))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the lines that the ranks have told already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
