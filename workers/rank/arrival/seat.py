"""Says which rank this process is, for who looks on."""

from __future__ import annotations

import time

from bundlerun.launcher.layout.topology import Place
from bundlerun.launcher.why.sheet import Seat, Sheet


def take_seat(sheet: Sheet, place: Place, *, world_size: int, limit_s: float, token: str) -> None:
    """Says it from now on.

    Args:
        sheet: of this rank.
        place: in the round.
        world_size: of it.
        limit_s: longest wait inside one collective, seconds.
        token: of the round.
    """
    seat = Seat(
        rank=place.rank,
        world_size=world_size,
        node=place.node,
        bundle=place.bundle,
        stage=place.stage,
        replica=place.replica,
        limit_s=limit_s,
        token=int(token, 16),
    )
    sheet.enter(seat, time.perf_counter())
