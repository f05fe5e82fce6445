"""Classes by name: data that has them in another order, or not all of them."""

from __future__ import annotations

from collections.abc import Sequence

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.workers.data.readers import is_indexed
from bundlerun.workers.recipe import Sample, SampleSet, Stream

_NUM_SHOWN = 3


class Renumbered:
    """Samples whose targets are numbers of classes, with the numbers that a model has learnt.

    Args:
        samples: (image, number of its class).
        numbers: the new number of each class.
    """

    def __init__(self, samples: SampleSet, numbers: Sequence[int]) -> None:
        self._samples = samples
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int, /) -> Sample:
        """The sample of that number."""
        image, target = self._samples[index]
        return image, self._numbers[int(target)]


def in_order_of(
    known: Sequence[str], found: Sequence[str], samples: SampleSet | Stream
) -> Renumbered:
    """The samples of data with the classes `found`, for a model with the classes `known`.

    Raises:
        ConfigError: the model does not know some of them, or the samples have no numbers.
    """
    numbers = {name: number for number, name in enumerate(known)}
    unknown = [name for name in found if name not in numbers]
    if unknown:
        shown = ", ".join(map(repr, unknown[:_NUM_SHOWN])) + (", ..." if unknown[3:] else "")
        raise ConfigError(
            f"{len(unknown)} of the {len(found)} classes of DATA are none of the model's "
            f"{len(known)}: {shown}; {nearest(unknown[0], known)}"
        )
    if not is_indexed(samples):
        raise ConfigError(
            "DATA is a stream, and its classes are not in the order of the model's; give it with "
            "the same classes"
        )
    return Renumbered(samples, [numbers[name] for name in found])
