"""What reads the samples of each data set: by number, or in passes of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeGuard

from torch.utils.data import IterableDataset

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.paths import run_paths
from bundlerun.workers.data.collate import Collate
from bundlerun.workers.data.samples import Answer, Reader, Request
from bundlerun.workers.data.streams.places import Places
from bundlerun.workers.data.streams.reader import StreamReader
from bundlerun.workers.recipe import DataSets, SampleSet, Stream


class Source(NamedTuple):
    """Samples, and how those of a micro-batch are joined."""

    samples: SampleSet | Stream
    collate: Collate = Collate()
    num_samples: int | None = None
    """What the recipe says of a stream's length."""

    @classmethod
    def train(cls, data: DataSets) -> Source:
        """What is trained on."""
        return cls(data.train, Collate.of(data, data.train), data.num_train)

    @classmethod
    def val(cls, data: DataSets) -> Source | None:
        """What is validated on."""
        if data.val is None:
            return None
        return cls(data.val, Collate.of(data, data.val), data.num_val)


class _MicrobatchReader(Protocol):
    """Reads the samples of a request."""

    def __getitem__(self, request: Request, /) -> Answer: ...


class Readers:
    """A map-style data set of whole micro-batches from several sources.

    Args:
        sources: in the order in which requests count them.
        config: seed, --skip-unreadable.
    """

    def __init__(self, sources: Sequence[Source], config: TrainConfig) -> None:
        self._readers = [_reader(source, config, number) for number, source in enumerate(sources)]

    def __getitem__(self, request: Request) -> Answer:
        """What the reader of the request's source answers."""
        return self._readers[request.source][request]


def _reader(source: Source, config: TrainConfig, number: int) -> _MicrobatchReader:
    if is_stream(source.samples):
        paths = run_paths(config.run_dir)
        return StreamReader(
            source.samples,
            num_samples=source.num_samples,
            seed=config.seed,
            collate=source.collate,
            places=Places(paths.stream_places, number, num_samples_of(source)) if paths else None,
        )
    assert is_indexed(source.samples)
    return Reader(
        source.samples,
        seed=config.seed,
        skip_unreadable=config.skip_unreadable,
        collate=source.collate,
    )


def read_first(data: DataSets, config: TrainConfig, num_samples: int) -> Answer:
    """The first training samples as a micro-batch, or as many as there are."""
    count = min(num_samples, num_samples_of(Source.train(data)))
    return Readers([Source.train(data)], config)[Request(0, range(count))]


def is_indexed(samples: object) -> TypeGuard[SampleSet]:
    """Whether samples have numbers."""
    has_both = hasattr(samples, "__getitem__") and hasattr(samples, "__len__")
    return has_both and not isinstance(samples, IterableDataset)


def is_stream(samples: object) -> TypeGuard[Stream]:
    """Whether samples come one after the other, pass by pass."""
    # An iterator has one pass only.
    is_iterable = hasattr(samples, "__iter__") and not hasattr(samples, "__next__")
    return is_iterable and not is_indexed(samples)


def num_samples_of(source: Source) -> int:
    """Samples of an epoch; of samples that `check_samples` has let through."""
    if is_stream(source.samples) and source.num_samples is not None:
        return source.num_samples
    return len(source.samples)  # type: ignore[arg-type] # of a stream that has one


def check_samples(data: DataSets) -> None:
    """Raises ConfigError for what gives samples neither by number nor in passes of known length."""
    for name, source in (("train", Source.train(data)), ("val", Source.val(data))):
        if source is not None:
            _check(name, source)


def _check(name: str, source: Source) -> None:
    samples, kind = source.samples, type(source.samples).__name__
    if is_indexed(samples):
        if source.num_samples is not None:
            raise ConfigError(
                f"DataSets(num_{name}=...) is for streams, and {name}=... is a {kind} of "
                f"{len(samples)} samples; leave it out"
            )
        return
    if not is_stream(samples):
        raise ConfigError(
            f"DataSets({name}=...) is a {kind}, which gives no samples by number, and not one "
            "after the other in each epoch; give an object with len() and samples[i], or an "
            "iterable such as an IterableDataset"
        )
    if source.num_samples is None:
        try:
            len(samples)  # type: ignore[arg-type] # not all have one
        except TypeError as exc:
            raise ConfigError(
                f"DataSets({name}=...) is a {kind}, which does not say how many samples it has; "
                f"say it with DataSets(num_{name}=...)"
            ) from exc
    elif source.num_samples < 1:
        raise ConfigError(f"DataSets(num_{name}={source.num_samples}) must be 1 or more")
