"""The loader: micro-batches of samples, read ahead by processes of their own."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.launcher.process import die_with_parent
from bundlerun.launcher.ranks.rank_signals import keep_from_here
from bundlerun.workers.data.collate import Collate
from bundlerun.workers.data.readers import Readers, Source
from bundlerun.workers.data.samples import Answer, Batch, Request
from bundlerun.workers.recipe import SampleSet, Stream

log = logging.getLogger(__name__)


class MicrobatchLoader:
    """Reads micro-batches in the order asked for; its processes live until `close`.

    Args:
        samples: the single samples.
        config: seed, prefetch, timeout, --skip-unreadable.
        collate: joins the samples of a micro-batch.
        num_samples: of an epoch of a stream; None: as it says itself.
        others: more samples that the same processes read, in turn with the first.
        num_workers: loading processes; 0 reads in this one when a batch is asked for.
        cpus: that these may run on; empty: as this one.
        pin_memory: batches in pinned memory, for a faster way to the GPU.
    """

    def __init__(
        self,
        samples: SampleSet | Stream,
        *,
        config: TrainConfig,
        collate: Collate = Collate(),  # noqa: B008 (frozen)
        num_samples: int | None = None,
        others: Sequence[Source] = (),
        num_workers: int = 0,
        cpus: Sequence[int] = (),
        pin_memory: bool = False,
    ) -> None:
        self._requests = _Requests()
        self._warned: set[str] = set()
        self._timeout_s = config.timeout_s
        readers = Readers((Source(samples, collate, num_samples), *others), config)
        self._loader: DataLoader[Answer] | None = DataLoader(
            readers,  # type: ignore[arg-type] # torch asks for its own base class
            # A request is a whole micro-batch already: torch must not group them again.
            batch_size=None,
            sampler=self._requests,
            num_workers=num_workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type] # typed for lists only
            pin_memory=pin_memory,
            # The processes' own seeds; without it, torch draws them from the training's generator.
            generator=torch.Generator(),
            **(_process_options(config, tuple(cpus)) if num_workers else {}),
        )
        self._answers: Iterator[Answer] = iter(())

    def batches(
        self, microbatches: Iterable[Sequence[int]], *, epoch: int, source: int = 0
    ) -> Iterator[Batch]:
        """One batch per list of sample indices, in order; reading ahead starts with this call.

        What is left of an earlier call is dropped.

        Args:
            microbatches: indices into the samples of the source; each is asked for as late as
                reading ahead allows.
            epoch: decides, with the index, what is random about a sample.
            source: 0 for the samples that the loader is made for, then the others in order.

        Raises:
            ConfigError: while iterating: a sample is unreadable.
            NodeError: while iterating: a loading process is dead or does not answer.
        """
        assert self._loader is not None, "the loader is closed"
        # The sampler is asked when iteration begins: new requests, the same processes.
        self._requests.wanted = (Request(epoch, indices, source) for indices in microbatches)
        self._answers = iter(self._loader)
        return self._read(self._answers)

    def close(self) -> None:
        """Ends the loading processes."""
        shut_down = getattr(self._answers, "_shutdown_workers", None)  # torch has no public way
        processes = getattr(self._answers, "_workers", ())
        if shut_down:
            try:
                shut_down()
            except RuntimeError as exc:
                if not _is_death(exc):  # raised from SIGCHLD; it was to end anyway
                    raise
        for process in processes:
            if process.is_alive():  # it reads and does not answer, and keeps SIGTERM from itself
                process.kill()
        self._answers = iter(())
        self._loader = None

    def _read(self, answers: Iterator[Answer]) -> Iterator[Batch]:
        while (batch := self._next(answers)) is not None:
            yield batch

    def _next(self, answers: Iterator[Answer]) -> Batch | None:
        """The next one; None after the last."""
        try:
            answer = next(answers, None)
        except RuntimeError as exc:
            if not _is_death(exc):
                raise
            raise NodeError(_death_message(str(exc), self._timeout_s)) from exc
        if answer is None:
            return None
        batch, messages = answer
        if batch is None:
            # Raised here, as torch would put the other process's traceback into its text.
            raise ConfigError(messages[0])
        for message in messages:
            # Each file once, not once per epoch.
            if message not in self._warned:
                self._warned.add(message)
                log.warning("%s; the next readable sample stands in for it", message)
        return batch


class _Requests(Sampler[Request]):
    """What the loader asks for next; each call of `batches` sets it."""

    def __init__(self) -> None:
        self.wanted: Iterator[Request] = iter(())

    def __iter__(self) -> Iterator[Request]:
        return self.wanted


def _process_options(config: TrainConfig, cpus: tuple[int, ...]) -> dict[str, Any]:
    return {
        # The samples are shared, not sent: a user's data set need not be picklable, and starting
        # takes milliseconds. The child computes on one thread of its own, so what threads of the
        # parent (gloo, CUDA) held when it was forked does not matter to it.
        "multiprocessing_context": "fork",
        "persistent_workers": True,
        "prefetch_factor": config.prefetch,
        "timeout": config.timeout_s,
        "worker_init_fn": functools.partial(_start_process, os.getpid(), cpus),
    }


def _start_process(parent: int, cpus: tuple[int, ...], worker: int) -> None:
    if cpus:
        # Some may have been taken from the node's jobs meanwhile: then they stay where they are.
        with suppress(OSError):
            os.sched_setaffinity(0, cpus)
    # It holds copies of the rank's sockets: peers would see a dead rank as alive while it lives.
    die_with_parent(parent)
    keep_from_here()


def _as_it_is(answer: Answer) -> Answer:
    return answer


def _is_death(exc: RuntimeError) -> bool:
    """Whether torch says that a process is gone; it does so from the queue or from SIGCHLD."""
    return str(exc).startswith(("DataLoader ", "Pin memory thread"))


def _death_message(reason: str, timeout_s: float) -> str:
    if "timed out" in reason:
        return (
            f"no loading process answered for {timeout_s:g} s; is the folder of the data "
            "reachable? --timeout-s allows more"
        )
    first_line = reason.splitlines()[0].rstrip(". ")
    return (
        f"a loading process died ({first_line}); is memory or /dev/shm full? "
        "use fewer --loader-workers, or 0"
    )
