"""Chooses how to sum by trying: all schemes on the real groups and buckets, alternately.

    [1] one bucket, not counted    [2] two buckets, to see how many fit into the budget
    [3] local-master  sharded  flat | local-master  sharded  flat | ...     round after round

Every replica measures; what counts is the slowest one's time, so all choose alike.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import get_args

import torch

from bundlerun.launcher.choices import SchemeName
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.legs import Chain
from bundlerun.workers.sync.scheme import Scheme

log = logging.getLogger(__name__)

BUDGET_S = 1.5
"""Time that a calibration may take; it stops before the round that would go beyond."""
_MOST_ROUNDS = 5
_FEWEST_ROUNDS = 3
_MOST_BUCKETS = 12
"""Enough for all legs to be busy at one time; more would only take longer."""
_AS_GOOD = 1.01
"""The first candidate within this factor of the best is chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The scheme that a stage uses, and why.

    Args:
        scheme: how to sum.
        milliseconds: for what was measured, median over rounds of the slowest replica's.
        num_bytes: what was summed in each measurement.
        situation: what the measurement holds for: ranks per node, sizes of buckets.
    """

    scheme: SchemeName
    milliseconds: dict[str, float]
    num_bytes: int
    situation: str

    def __post_init__(self) -> None:
        if self.scheme not in get_args(SchemeName):
            raise ValueError(f"no scheme {self.scheme!r}")

    def __str__(self) -> str:
        times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in self.milliseconds.items())
        return f"{self.scheme} ({times} for {self.num_bytes / 1e6:.1f} MB)"


def read_choice(path: Path) -> Choice | None:
    """The choice that `write_choice` has written; None where it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Choice(**values)
    except (OSError, ValueError, TypeError):
        return None


def write_choice(path: Path, choice: Choice) -> None:
    """Keeps a choice for the next start; if the disk is full, that start measures again."""
    try:
        write_text(path, json.dumps(asdict(choice), indent=2) + "\n")
    except OSError as exc:
        log.warning("%s could not be written: %s", path, exc)


class Calibration:
    """Measures with the buckets of one stage, which are zero meanwhile.

    Args:
        group: all replicas of the stage, over gloo; NCCL leaves nothing to choose.
        buckets: of this rank; the same sizes on every replica.
        situation: what the choice holds for, in addition to the sizes of the buckets.
    """

    def __init__(self, group: Group, buckets: Sequence[Bucket], situation: str) -> None:
        self._group = group
        self._buckets = buckets
        sizes = [bucket.num_bytes for bucket in buckets]
        self._situation = f"{situation}, {group.backend}, buckets of {sizes} bytes"

    def choose(
        self,
        candidates: Sequence[Scheme],
        start: Callable[[Scheme], Chain | None],
        known: Choice | None,
    ) -> Choice:
        """The fastest candidate; an earlier choice that fits is taken without measuring.

        Collective: the group.

        Args:
            candidates: schemes; the earlier is preferred among equals.
            start: makes the legs of one.
            known: an earlier choice; the first replica's counts, if it fits the situation.
        """
        # One replica's file counts: else some would measure, and wait for those that do not.
        first = self._group.all_gather_json(None if known is None else asdict(known))[0]
        names = [scheme.name for scheme in candidates]
        if first is not None and first["situation"] == self._situation and first["scheme"] in names:
            return Choice(**first)
        chains = {s.name: chain for s in candidates if (chain := start(s)) is not None}
        rounds, num_buckets = self._measure(chains)
        for chain in chains.values():
            chain.close()
        times = {name: median(each[name] for each in rounds) for name in chains}
        best = min(times.values())
        return Choice(
            scheme=next(name for name, seconds in times.items() if seconds <= best * _AS_GOOD),
            milliseconds={name: round(seconds * 1e3, 2) for name, seconds in times.items()},
            num_bytes=sum(b.num_bytes for b in self._buckets[:num_buckets]),
            situation=self._situation,
        )

    def _measure(
        self, chains: dict[SchemeName, Chain]
    ) -> tuple[list[dict[SchemeName, float]], int]:
        """Rounds of measurements, and the number of buckets in each of them."""
        # [1] It opens connections, which may take longer than all the rest.
        self._round(chains, 1)
        started = time.monotonic()
        # [2]
        probe = sum(self._round(chains, self._num_for_probe()).values())
        probe_bytes = sum(b.num_bytes for b in self._buckets[: self._num_for_probe()])
        # Each replica has its own clock; all have to measure the same buckets as often.
        left = self._agreed(BUDGET_S - (time.monotonic() - started))
        num_buckets = self._num_within(probe_bytes * left / (_FEWEST_ROUNDS * probe))
        # [3] Alternately, so that a disturbance meets all schemes alike.
        rounds: list[dict[SchemeName, float]] = []
        while len(rounds) < _MOST_ROUNDS:
            rounds.append(self._round(chains, num_buckets))
            spent = self._agreed(time.monotonic() - started)
            if spent + spent / (len(rounds) + 1) > BUDGET_S:
                break
        return rounds, num_buckets

    def _num_for_probe(self) -> int:
        return min(2, len(self._buckets))

    def _num_within(self, num_bytes: float) -> int:
        """How many buckets, from the first on, have at most that many bytes; at least two."""
        total = 0
        for number, bucket in enumerate(self._buckets[:_MOST_BUCKETS]):
            total += bucket.num_bytes
            if total > num_bytes:
                return max(number, self._num_for_probe())
        return min(len(self._buckets), _MOST_BUCKETS)

    def _round(self, chains: dict[SchemeName, Chain], num_buckets: int) -> dict[SchemeName, float]:
        """Seconds that each scheme takes for the first buckets, the slowest replica's."""
        own = []
        for chain in chains.values():
            # All begin together, so that no time counts in which one waits for another to arrive.
            self._group.all_reduce(torch.zeros(1, device=self._device)).wait()
            start = time.perf_counter()
            for bucket in self._buckets[:num_buckets]:
                bucket.close()
                chain.launch(bucket)
            for _ in range(num_buckets):
                chain.take().wait_ready()
            door.finish(self._buckets[0].flat.device)
            own.append(time.perf_counter() - start)
        # A sync is over when the slowest has it.
        of_all = torch.stack(self._group.all_gather(self._tensor(own)))
        return dict(zip(chains, of_all.max(0).values.tolist(), strict=True))

    def _agreed(self, seconds: float) -> float:
        """The first replica's number."""
        value = self._tensor([seconds])
        self._group.broadcast(value).wait()
        return float(value)

    @property
    def _device(self) -> torch.device:
        return self._buckets[0].wire.device

    def _tensor(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._device)
