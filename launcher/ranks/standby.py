"""Standbys: warm processes of a node, each for one rank, of which another start of it is made.

[1] the fork server forks one    [2] it waits until the ranks of this start do their steps
[3] warms up: its device, libraries, one step for nobody      [4] tells that it is ready
[5] a rank of the next start     [6] its place is filled anew once that start does its steps
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, cast

from bundlerun.launcher.ranks.board import BOARD_VARIABLE, Board
from bundlerun.launcher.ranks.rank_signals import forget_pending

TAKEN_VARIABLE = "BUNDLERUN_TAKEN_S"
"""In a rank that was a standby: when it became one, seconds of the monotonic clock."""
READY = b"r"
MOST_FDS = 256
"""As many as Python's fork server takes with a request."""
_CALM_STEPS = 3
"""Steps of a start after which its ranks have all that they need first."""
_LOOK_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Standbys:
    """What a fork server is to keep: one standby for each rank of its node.

    Args:
        module: of the ranks; its `warm_up` is a `WarmUp`.
        argv: of the ranks.
        num_ranks: of this node.
        board: how to open the agent's page.
    """

    module: str
    argv: Sequence[str]
    num_ranks: int
    board: str


class WarmUp(Protocol):
    """Does what a rank of a module does first, and keeps what can be kept."""

    def __call__(
        self, argv: Sequence[str], local_rank: int, num_ranks: int, wait: Callable[[], int]
    ) -> bool:
        """Returns whether this process is of use; where not, it has told why.

        Args:
            argv: of the ranks.
            local_rank: whose place it may take.
            num_ranks: of this node.
            wait: returns when there is time for it, with the process of its rank; called once.
        """
        ...


def is_calm(board: Board, num_ranks: int) -> bool:
    """Whether the ranks of this start have all come, and do their steps."""
    rows = [row for _, row in board.rows()]
    if len(rows) < num_ranks or board.is_ending or board.is_told_to_stop:
        return False
    return all(row.is_spare or row.steps >= _CALM_STEPS for row in rows)


def warm(kept: Standbys, local_rank: int) -> bool:
    """Warms this process up, once there is time for it; whether it is of use."""
    board = Board.open({BOARD_VARIABLE: kept.board})
    if board is None:
        return False  # its agent is gone, and this process about to be

    def wait() -> int:
        while not is_calm(board, kept.num_ranks):
            time.sleep(_LOOK_S)
        row = board.row(local_rank)
        return row.pid if row else 0

    warm_up = cast(WarmUp, importlib.import_module(kept.module).warm_up)
    return warm_up(kept.argv, local_rank, kept.num_ranks, wait)


def wait_for_request(server: socket.socket) -> list[int]:
    """Tells the fork server that this process is ready; the file descriptors that make it a rank.

    Returns:
        As a forked rank has them; none where the server has ended.
    """
    with server, suppress(OSError):
        server.sendall(READY)
        _, fds, _, _ = socket.recv_fds(server, len(READY), MOST_FDS)
        forget_pending()
        os.environ[TAKEN_VARIABLE] = repr(time.monotonic())
        return list(fds)
    return []
