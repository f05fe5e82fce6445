"""What is foreseen of a run on the nodes that may be there: which shape is the fastest. Pure.

    nodes of    shape 1,1,1,1   1,1,1    1,1       1
    1,1,1,1     231 samples/s    200      154      93
    1,1,1                        200      142      90
    1,1                                   142  does not fit

Made before a run begins, by one node for all, so that all decide alike. Of nodes that are not in it
the shape that uses the most devices is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from bundlerun.launcher.choices import CutterChoice
from bundlerun.launcher.layout.shape import Shape


class Cut(NamedTuple):
    """Where a model is cut."""

    names: tuple[str, ...] = ()
    """None: as the options say."""
    cutter: CutterChoice = "auto"


NO_CUT = Cut()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """One shape on some nodes.

    Args:
        devices: of each node, the most first.
        shape: of a bundle; one, not several.
        samples_per_s: foreseen; 0: it does not fit into memory.
        cut: of the model then.
    """

    devices: tuple[int, ...]
    shape: Shape
    samples_per_s: float
    cut: Cut = NO_CUT


@dataclass(frozen=True)
class Prospects:
    """All that is foreseen; nothing, where no profile or no links are known."""

    rows: tuple[Prospect, ...] = ()

    @cached_property
    def _by_nodes(self) -> Mapping[tuple[int, ...], Mapping[tuple[int, ...], Prospect]]:
        found: dict[tuple[int, ...], dict[tuple[int, ...], Prospect]] = {}
        for row in self.rows:
            found.setdefault(row.devices, {})[row.shape.widths] = row
        return found

    def best(self, shapes: Iterable[Shape], devices: Sequence[int]) -> Prospect | None:
        """The fastest of some shapes on nodes with these devices, of equals the first.

        Args:
            shapes: of which the nodes hold a bundle.
            devices: of each node, in any order.

        Returns:
            None where one of them is not foreseen, or none fits.
        """
        known = self._by_nodes.get(_sorted(devices), {})
        rows = [known.get(one.widths) for one in shapes]
        fit = [row for row in rows if row is not None and row.samples_per_s > 0]
        if None in rows or not fit:
            return None
        return max(fit, key=lambda row: row.samples_per_s)

    def rates_text(self, shape: Shape) -> str:
        """Samples a second of the best shape of a family on each set of nodes, as `--rdzv-conf`."""
        found = []
        for devices, rows in self._by_nodes.items():
            best = self.best([one for one in shape.family if one.widths in rows], devices)
            if best is not None:
                found.append(f"{','.join(map(str, devices))}={best.samples_per_s:.6g}")
        return "|".join(found)

    def to_text(self) -> str:
        """As JSON; empty where there is nothing."""
        import json  # `--help` needs none of it

        return json.dumps(list(self._plain())) if self.rows else ""

    def _plain(self) -> Iterator[list[object]]:
        for row in self.rows:
            shape = list(row.shape.widths)
            yield [list(row.devices), shape, row.samples_per_s, list(row.cut.names), row.cut.cutter]

    @classmethod
    def parse(cls, text: str) -> Prospects:
        """Reads what `to_text` has made.

        Raises:
            ValueError: it is something else.
        """
        import json

        if not text:
            return cls()
        try:
            return cls(
                tuple(
                    Prospect(
                        devices=tuple(devices),
                        shape=Shape(tuple(widths)),
                        samples_per_s=float(rate),
                        cut=Cut(tuple(names), cutter),
                    )
                    for devices, widths, rate, names, cutter in json.loads(text)
                )
            )
        except TypeError as exc:
            raise ValueError(f"no prospects: {text[:40]!r}") from exc


def _sorted(devices: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(devices, reverse=True))
