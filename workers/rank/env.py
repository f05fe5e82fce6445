"""What the agent told this rank, read once from the environment."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bundlerun.launcher.agent.entry import ERROR_FILE
from bundlerun.launcher.agreement.agreed import PROSPECTS_VARIABLE, TERMS_VARIABLE
from bundlerun.launcher.agreement.claim import CLAIM_VARIABLE
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.loaders import NodeCores
from bundlerun.launcher.layout.microbatch import BUNDLES_VARIABLE
from bundlerun.launcher.meeting.launchers import rank_variables


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnv:
    """The place of this rank in the round, as torchrun's variables give it."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node: int
    num_nodes: int
    attempt: int
    node_name: str
    local_addr: str
    master_addr: str
    master_port: int
    is_launched: bool
    cores: NodeCores = NodeCores()  # noqa: RUF009 (frozen)
    """The node's cores and its ranks' shares; worked out here, not told by the agent."""
    has_agents_store: bool = False
    """Whether the store at the master's address is one that an agent keeps over all restarts."""
    planned_bundles: int = 0
    """Bundles of the job once all its nodes have come; 0 where the agent does not tell."""
    log_folder: str = ""
    """What its agent keeps of this rank, as START/attempt_N/LOCAL_RANK; empty without an agent."""
    run_id: str = ""
    """The job's name if torch's agent started this rank; else empty."""
    claimed_job: str = ""
    """The job for which the agent holds the run folder; empty where it does not."""
    site: str = ""
    """What this node shares with others that fail with it: its switch, or the machine."""
    prospects: str = ""
    """What is foreseen of several shapes, as JSON; empty: nothing."""
    terms: str = ""
    """What this node must have like all others, as JSON; empty where the agent does not tell."""

    @property
    def is_claimed(self) -> bool:
        """Whether the agent holds the run folder."""
        return bool(self.claimed_job)

    @classmethod
    def from_mapping(cls, environ: Mapping[str, str]) -> RankEnv:
        """Reads torchrun's variables, or other launchers'; without RANK this is the only process.

        Raises:
            ConfigError: a variable is missing or no number, or this is one of several processes
                that do not know of each other.
        """
        environ = rank_variables(environ)
        name = environ.get("BUNDLERUN_NODE_NAME") or socket.gethostname()
        address = environ.get("BUNDLERUN_LOCAL_ADDR", "")
        # Started by hand: the smallest run that works, one process that is its own agent.
        if "RANK" not in environ:
            return cls(
                rank=0,
                world_size=1,
                local_rank=0,
                local_world_size=1,
                node=0,
                num_nodes=1,
                attempt=0,
                node_name=name,
                local_addr=address,
                master_addr="",
                master_port=0,
                is_launched=False,
            )
        local_rank = _true_local_rank(environ)
        return cls(
            rank=_number(environ, "RANK"),
            world_size=_number(environ, "WORLD_SIZE"),
            local_rank=local_rank,
            local_world_size=_number(environ, "LOCAL_WORLD_SIZE"),
            node=_number(environ, "GROUP_RANK"),
            num_nodes=_number(environ, "GROUP_WORLD_SIZE"),
            attempt=_number(environ, "TORCHELASTIC_RESTART_COUNT", "0"),
            node_name=name,
            local_addr=address,
            master_addr=environ.get("MASTER_ADDR", "localhost"),
            master_port=_number(environ, "MASTER_PORT"),
            is_launched=True,
            has_agents_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            log_folder="/".join(Path(environ.get(ERROR_FILE, "")).parts[-4:-1]),
            run_id=environ.get("TORCHELASTIC_RUN_ID", ""),
            claimed_job=environ.get(CLAIM_VARIABLE, ""),
            terms=environ.get(TERMS_VARIABLE, ""),
            prospects=environ.get(PROSPECTS_VARIABLE, ""),
            planned_bundles=_number(environ, BUNDLES_VARIABLE, "0"),
            site=_site(environ),
        )


def _true_local_rank(environ: Mapping[str, str]) -> int:
    """The index of this rank on its node.

    `torchrun --virtual-local-rank` gives all ranks LOCAL_RANK 0. The folder of a rank's error file
    still has the number by which torch's agent knows it.
    """
    local_rank = _number(environ, "LOCAL_RANK")
    # Only a 0 is in doubt: who has another number has its own.
    folder = Path(environ.get(ERROR_FILE, "")).parent.name
    return int(folder) if local_rank == 0 and folder.isdecimal() else local_rank


def _site(environ: Mapping[str, str]) -> str:
    """The switches above this node where Slurm knows them, as in s0.s3.node-a; else the machine."""
    switches, _, node = environ.get("SLURM_TOPOLOGY_ADDR", "").rpartition(".")
    is_known = environ.get("SLURM_TOPOLOGY_ADDR_PATTERN", "").startswith("switch.")
    return switches if is_known and node else socket.gethostname()


def _number(environ: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environ.get(name, default)
    if text is None:
        raise ConfigError(
            f"RANK is set but {name} is not; start the ranks with bundlerun run or torchrun"
        )
    try:
        return int(text)
    except ValueError as exc:
        raise ConfigError(f"{name}={text!r} in the environment is not a whole number") from exc
