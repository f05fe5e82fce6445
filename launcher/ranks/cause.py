"""Why a round has ended: what a coordinator says, and the budget of restarts goes by."""

from __future__ import annotations

from enum import StrEnum


class EndCause(StrEnum):
    """Why a node has to leave its round.

    LOST: another node is gone. ASKS: the ranks of another node have ended. JOINS: a node has come
    that makes a better round. LEFT_OUT: others went on without it. CUT_OFF: nobody leads.
    """

    LOST = "lost"
    ASKS = "asks"
    JOINS = "joins"
    LEFT_OUT = "left out"
    CUT_OFF = "cut off"
