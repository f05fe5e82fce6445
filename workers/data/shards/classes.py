"""The numbers of classes in shards, and whether they are those of the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.shards.records import Labels

FILE = "classes.txt"
"""A name per line, in order of their numbers."""
_SORTED = 0.9
"""Share of images whose neighbour is of their class, above which they lie in order of classes."""


def names_of(root: Path) -> list[str]:
    """The names of the classes, where a file in DATA has them.

    Raises:
        ConfigError: it cannot be read.
    """
    path = root / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read {str(path)!r}: {exc}") from exc
    return [line.strip() for line in text.splitlines() if line.strip()]


def count_classes(
    labels: Labels, place: Callable[[int], str], names: Sequence[str], given: int
) -> int:
    """The number of classes.

    Args:
        labels: of the training images.
        place: where an image is, for messages.
        names: of the classes; none: nothing says them.
        given: what --num-classes says; 0: nothing.

    Raises:
        ConfigError: a number is no class, or there are none of a class that nobody has named.
    """
    if names and 0 < given < len(names):
        raise ConfigError(
            f"--num-classes {given} is less than the {len(names)} names of classes; leave it out, "
            f"or give {len(names)} or more"
        )
    count = given or len(names) or int(labels.max()) + 1
    check_classes(labels, place, count)
    if not given and not names:
        there = np.bincount(labels, minlength=count)
        gaps = np.flatnonzero(there == 0)
        if len(gaps):
            raise ConfigError(
                f"no training image has the class {int(gaps[0])}, and the highest is {count - 1}; "
                f"are they numbered from 0 on? if so, say it with --num-classes {count}, or with "
                f"a file {FILE} in DATA that has a name per line"
            )
    return count


def check_classes(labels: Labels, place: Callable[[int], str], count: int) -> None:
    """Raises ConfigError for the first number that is none of so many classes."""
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if len(wrong):
        first = int(wrong[0])
        raise ConfigError(
            f"the image {place(first)} has the class {int(labels[first])}; classes are 0 to "
            f"{count - 1}, as the names of classes, --num-classes or the training images say"
        )


def is_sorted(labels: Labels) -> bool:
    """Whether images lie in order of their classes, so that neighbours are alike."""
    if len(labels) < 2 or labels.min() == labels.max():
        return False
    return bool(np.mean(labels[1:] == labels[:-1]) > _SORTED)
