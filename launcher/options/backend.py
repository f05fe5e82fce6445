"""Pure: what differs between rendezvous backends, each known by its name in --rdzv-backend."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import ClassVar

NO_LIMIT = 1_000_000
"""Restarts of workers, more than any run reaches: --give-up-after is the limit that counts."""


class Keeps(Enum):
    """What an agent keeps at the endpoint."""

    COORDINATOR = "coordinator"
    """Our rendezvous: it decides who is in a round, and another takes over from it."""
    STORE = "store"
    """A store of torch's: the job ends with it."""


class Backend:
    """A backend of torch's that we know nothing more about; known ones override what differs.

    Attributes:
        keeps: what an agent keeps at the endpoint; None: unknown, so the endpoint is not checked.
        takes_over: whether there may be several endpoints, of which the next takes over from a
            lost one.
        has_fixed_nodes: whether it takes a fixed number of nodes, distinguished by --node-rank.
        default_restarts: times a node restarts its failed workers if the user does not say.
    """

    keeps: ClassVar[Keeps | None] = None
    takes_over: ClassVar[bool] = False
    has_fixed_nodes: ClassVar[bool] = False
    default_restarts: ClassVar[int] = 0

    def __init__(self, name: str) -> None:
        self.name = name

    def keeps_first(self, node_rank: int, settings: Mapping[str, str]) -> bool | None:
        """Whether the user has this node keep the first endpoint; None: its address decides.

        Args:
            settings: --rdzv-conf.
        """
        is_host = settings.get("is_host")
        return None if is_host is None else is_host.lower() in ("1", "true", "t", "yes", "y")

    def settings(self, *, node_rank: int, keeps_endpoint: bool) -> Mapping[str, object]:
        """Settings that the backend needs in addition to --rdzv-conf.

        Args:
            keeps_endpoint: whether this agent keeps the endpoint.
        """
        return {}


class _Bundle(Backend):
    """Ours."""

    keeps = Keeps.COORDINATOR
    takes_over = True
    default_restarts = NO_LIMIT


class _C10d(Backend):
    """torch's elastic one."""

    keeps = Keeps.STORE

    def settings(self, *, node_rank: int, keeps_endpoint: bool) -> Mapping[str, object]:
        """Says who is host: torch decides by the machine's name, which often means 127.0.1.1."""
        return {"is_host": keeps_endpoint}


class _Static(Backend):
    """torch's for a job whose nodes are all known in advance."""

    keeps = Keeps.STORE
    has_fixed_nodes = True

    def keeps_first(self, node_rank: int, settings: Mapping[str, str]) -> bool | None:
        """The node of rank 0 keeps it."""
        return node_rank == 0

    def settings(self, *, node_rank: int, keeps_endpoint: bool) -> Mapping[str, object]:
        """The rank of this node."""
        return {"rank": node_rank}


BUNDLE = _Bundle("bundle")
_KNOWN = {each.name: each for each in (BUNDLE, _C10d("c10d"), _Static("static"))}


def backend_of(name: str) -> Backend:
    """The backend with this name; for one that we do not know, torch says whether it exists."""
    return _KNOWN.get(name) or Backend(name)
