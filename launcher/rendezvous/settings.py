"""What a user can set: `--rdzv-conf`, the environment; read once, checked here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.launcher.rendezvous.protocol.state import Rules

TOKEN_VARIABLE = "BUNDLERUN_TOKEN"
NAME_VARIABLE = "BUNDLERUN_NODE_NAME"
PASSED_OVER = ("timeout", "is_host", "rank", "store_type", "read_timeout")
"""Keys that torchrun adds by itself or that belong to other backends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conf:
    """The keys of `--rdzv-conf`; times in seconds.

    Attributes:
        heartbeat: between two signs of life, both ways.
        lease: silence after which a node, or the coordinator, counts as dead.
        grace: how long a node whose connection broke may take to come back.
        first_wait: how long the first round waits for MAX nodes once MIN are there.
        join_timeout: how long a node waits for a round.
        stop_timeout: how long a node may take to stop its workers and come for the next round.
        minority_wait: how long nodes without a majority wait before they try the fence.
        bundle_size: ranks of a bundle; nodes that would not make one more are spare.
        other_sizes: ranks of bundles of other shapes that will do, such as 3|2.
        rates: samples a second that nodes with so many workers each are foreseen to do, the most
            first: 2,1=31.5|2=20.
        fence_dir: a folder that all nodes share, which decides who goes on without a majority.
        events_dir: where each node writes what happened, NODE.jsonl.
        left_out_dir: where ranks say which nodes are to take no part any more.
        token_file: holds the secret that a node must know to take part.
        node_name: this node's stable name.
        num_workers: of this node; 0 learns it from torch in the first round.
        give_up_after: attempts in a row that finish no step, after which the job fails; 0: never.
        hand_over: 1: where a node joins, the ranks of the others go on in their processes.
        terms: what all nodes must have alike, JSON, as `bundlerun run` writes it; empty: not
            compared.
    """

    heartbeat: float = 0.3
    lease: float = 1.5
    grace: float = 0.25
    first_wait: float = 30.0
    join_timeout: float = 600.0
    stop_timeout: float = 60.0
    minority_wait: float = 4.0
    bundle_size: int = 1
    other_sizes: str = ""
    rates: str = ""
    fence_dir: str = ""
    events_dir: str = ""
    left_out_dir: str = ""
    token_file: str = ""
    node_name: str = ""
    num_workers: int = 0
    give_up_after: int = 3
    hand_over: int = 0
    terms: str = ""

    def __post_init__(self) -> None:
        for name in ("heartbeat", "lease", "join_timeout", "stop_timeout", "bundle_size"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--rdzv-conf {name}={getattr(self, name)} must be above 0")
        for name in (
            "grace",
            "first_wait",
            "minority_wait",
            "num_workers",
            "give_up_after",
            "hand_over",
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--rdzv-conf {name}={getattr(self, name)} must be 0 or more")
        if self.lease < 2 * self.heartbeat:
            raise ConfigError(
                f"--rdzv-conf lease={self.lease} must be at least twice heartbeat={self.heartbeat}"
            )
        if not all(size.isdecimal() and int(size) for size in self._other_sizes):
            raise ConfigError(
                f"--rdzv-conf other_sizes={self.other_sizes!r} is not N[|N...], whole numbers "
                "above 0"
            )
        self._rates()
        if "/" in self.node_name:
            raise ConfigError(f"--rdzv-conf node_name={self.node_name!r} names a folder; no /")

    def _rates(self) -> dict[tuple[int, ...], float]:
        found = {}
        for one in self.rates.split("|") if self.rates else ():
            counts, _, rate = one.partition("=")
            try:
                found[tuple(map(int, counts.split(",")))] = float(rate)
            except ValueError as exc:
                raise ConfigError(
                    f"--rdzv-conf rates={self.rates!r} is not N,...=RATE[|...]: {one!r}"
                ) from exc
        return found

    @property
    def _other_sizes(self) -> list[str]:
        return self.other_sizes.split("|") if self.other_sizes else []

    @classmethod
    def from_mapping(cls, config: Mapping[str, object]) -> Conf:
        """Reads what torchrun passes on: texts, or values that are typed already.

        Raises:
            ConfigError: a key is unknown or a value does not fit.
        """
        # By the defaults, as annotations are only texts here.
        kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(cls)}
        values: dict[str, object] = {}
        for key, raw in config.items():
            if key in PASSED_OVER:
                continue
            if key not in kinds:
                raise ConfigError(f"unknown key {key!r} in --rdzv-conf; {nearest(key, kinds)}")
            try:
                values[key] = kinds[key](raw)
            except (TypeError, ValueError) as exc:
                kind = {float: "a number", int: "a whole number"}[kinds[key]]
                raise ConfigError(f"--rdzv-conf {key}={raw!r} is not {kind}") from exc
        return cls(**values)  # type: ignore[arg-type]

    def rules(self, *, index: int, num_candidates: int, nodes: tuple[int, int]) -> Rules:
        """The same in the coordinator's words.

        Args:
            nodes: fewest and most.
        """
        return Rules(
            index=index,
            # A candidate that is started again forgets its terms, and must not take one twice.
            salt=int.from_bytes(os.urandom(3), "big"),
            num_candidates=num_candidates,
            min_nodes=nodes[0],
            max_nodes=nodes[1],
            bundle_sizes=(self.bundle_size, *map(int, self._other_sizes)),
            rates=self._rates(),
            # With one candidate nobody can go on elsewhere.
            has_fence=bool(self.fence_dir) and num_candidates > 1,
            lease_s=self.lease,
            grace_s=self.grace,
            first_wait_s=self.first_wait,
            stop_wait_s=self.stop_timeout,
            minority_wait_s=self.minority_wait,
            hands_over=bool(self.hand_over),
            move_wait_s=self.join_timeout,
        )


def read_token(conf: Conf, environ: Mapping[str, str], run_id: str) -> bytes:
    """The secret of the job: of the environment, else of the file, else the run id.

    Raises:
        ConfigError: the file cannot be read, is empty, or others can read it too.
    """
    if environ.get(TOKEN_VARIABLE):
        return environ[TOKEN_VARIABLE].encode()
    if not conf.token_file:
        # No secret: this keeps other jobs out, not other people.
        return run_id.encode()
    path = Path(conf.token_file)
    try:
        mode, token = path.stat().st_mode, path.read_bytes().strip()
    except OSError as exc:
        raise ConfigError(
            f"cannot read --rdzv-conf token_file={conf.token_file!r}: {exc.strerror}"
        ) from exc
    if mode & 0o077:
        raise ConfigError(
            f"--rdzv-conf token_file={conf.token_file!r} can be read by others; chmod 600 it"
        )
    if not token:
        raise ConfigError(f"--rdzv-conf token_file={conf.token_file!r} is empty")
    return token
