"""The launch options, named as torchrun names them: how a node starts ranks and finds others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from bundlerun.launcher.choices import DeviceChoice
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.options.backend import BUNDLE, Backend, backend_of
from bundlerun.launcher.options.declared import Reader, flag_of, option, yes_or_no
from bundlerun.launcher.options.endpoints import Endpoint, parse_endpoints

_NODES = "nodes and devices"
_RDZV = "rendezvous"
_AGENT = "agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchConfig:
    """How one node takes part; every node of a job gives its own.

    num_nodes: fewest and most nodes.
    num_procs: ranks of this node; 0: as many as whole bundles use.
    backend: what the rendezvous backend of that name can do.
    rdzv_settings: --rdzv-conf as a mapping.
    endpoints: all candidates in order, of which one at a time keeps the rendezvous; none where
        the user names none.

    Raises:
        ConfigError: a value is out of range or two values contradict each other.
    """

    nnodes: str = option(
        "1",
        "number of nodes, or MIN:MAX",
        group=_NODES,
        parse=Reader(metavar="MIN:MAX"),
        common=True,
    )
    nproc_per_node: str = option(
        "auto",
        "ranks of this node (auto: as many as whole bundles use)",
        group=_NODES,
        parse=Reader(metavar="N"),
    )
    bundles: int = option(0, "bundles of this node (0: as many as fit)", group=_NODES, parse=int)
    devices: DeviceChoice = option(
        "auto",
        "what a rank runs on; auto: GPUs where there are any",
        group=_NODES,
        choices=get_args(DeviceChoice),
        common=True,
    )
    slots: int = option(
        0,
        "CPU slots of this node (0: one per core, at least one bundle's worth)",
        group=_NODES,
        parse=int,
    )
    node_name: str = option(
        "", "name of this node in logs; must be unique (default: the machine's name)",
        group=_NODES,
    )  # fmt: skip

    cluster: str = option(
        "",
        "TOML file that describes the nodes and links, as bundlerun profile --links writes it; for "
        "--shape auto, --cut auto and forecasts (default: nodes like this one, and links as fast "
        "as its network card says)",
        group=_NODES,
        parse=Reader(metavar="FILE"),
    )

    standalone: bool = option(
        False, "run on this node alone, with a free port", group=_RDZV, parse=yes_or_no
    )
    rdzv_backend: str = option(
        BUNDLE.name, "rendezvous backend: bundle, or one of torch's (c10d, static)", group=_RDZV
    )
    rdzv_endpoint: str = option(
        "",
        "where the nodes meet, the same for all; backend bundle takes several: if the first one "
        "dies, the next one takes over",
        group=_RDZV,
        parse=Reader(metavar="HOST[:PORT][,...]"),
        common=True,
    )
    rdzv_id: str = option("bundlerun", "name of the job, the same for all nodes", group=_RDZV)
    rdzv_conf: str = option(
        "",
        "settings of the rendezvous backend",
        group=_RDZV,
        parse=Reader(metavar="KEY=VALUE[,...]"),
    )
    local_addr: str = option(
        "",
        "address at which the other nodes reach this one (default: the address of the route to "
        "the endpoint)",
        group=_RDZV,
    )
    node_rank: int = option(
        0, "index of this node, for --rdzv-backend static", group=_RDZV, parse=int
    )

    max_restarts: int = option(
        -1,
        "times this node restarts its failed workers (-1: with backend bundle as often as "
        "--give-up-after allows, with others 0)",
        group=_AGENT,
        parse=int,
    )
    give_up_after: int = option(
        3,
        "the run fails after this many attempts in a row that finish no step (0: never); for "
        "backend bundle",
        group=_AGENT,
        parse=int,
    )
    standby: bool = option(
        False,
        "keep a warm process for each rank, of which another start of it is made",
        group=_AGENT,
        parse=yes_or_no,
    )
    monitor_interval: float = option(
        0.1, "seconds between checks of the workers", group=_AGENT, parse=float
    )
    report_every: float = option(
        60.0,
        "seconds between two writings of RUN_DIR/report.html, at least; needs the extra report "
        "(0: never)",
        group=_AGENT,
        parse=float,
    )
    log_dir: str = option(
        "", "folder of this node's logs (default: RUN_DIR/logs/NODE_NAME)", group=_AGENT
    )
    redirects: str = option(
        "",
        "write the workers' output to files only: 1 stdout, 2 stderr, 3 both, or per rank 0:3,1:1",
        group=_AGENT,
    )
    tee: str = option(
        "", "like --redirects, but also show it on the console, with a prefix", group=_AGENT
    )

    num_nodes: tuple[int, int] = field(init=False, repr=False, compare=False)
    num_procs: int = field(init=False, repr=False, compare=False)
    backend: Backend = field(init=False, repr=False, compare=False)
    rdzv_settings: Mapping[str, str] = field(init=False, repr=False, compare=False)
    endpoints: tuple[Endpoint, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._set("num_nodes", node_range(self.nnodes, "--nnodes"))
        self._set("num_procs", _num_procs(self.nproc_per_node))
        self._set("backend", backend_of(self.rdzv_backend))
        self._set("rdzv_settings", _settings(self.rdzv_conf))
        for name in ("bundles", "slots", "node_rank", "give_up_after"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{flag_of(name)} {getattr(self, name)} must be 0 or more")
        if self.max_restarts < -1:
            raise ConfigError(f"--max-restarts {self.max_restarts} must be -1 or more")
        if not 0 < self.monitor_interval < math.inf:
            raise ConfigError(f"--monitor-interval {self.monitor_interval} must be above 0")
        if not 0 <= self.report_every < math.inf:
            raise ConfigError(f"--report-every {self.report_every} must be 0 or more")
        for name in ("redirects", "tee"):
            _check_streams(flag_of(name), getattr(self, name))
        if "/" in self.node_name or self.node_name in (".", ".."):
            raise ConfigError(f"--node-name {self.node_name!r} names a folder; leave / out")
        if self.bundles and self.num_procs:
            raise ConfigError(
                f"--bundles {self.bundles} and --nproc-per-node {self.num_procs} both say how many "
                "ranks to start; give one of them"
            )
        if self.standby and self.backend is not BUNDLE:
            raise ConfigError(f"--standby needs --rdzv-backend {BUNDLE.name}")
        # Last: it needs the values that are read above.
        self._check_meeting()

    def _set(self, name: str, value: object) -> None:
        """Sets a field of this frozen value: the text of an option is parsed only once."""
        object.__setattr__(self, name, value)

    def _check_meeting(self) -> None:
        if self.max_nodes > 1 and self.standalone:
            raise ConfigError(
                f"--standalone is for one node, --nnodes is {self.nnodes}; give --rdzv-endpoint"
            )
        if self.max_nodes > 1 and not self.rdzv_endpoint:
            raise ConfigError(
                f"--nnodes {self.nnodes} needs --rdzv-endpoint HOST:PORT, the same on every node"
            )
        backend = self.backend
        if backend.has_fixed_nodes and self.min_nodes != self.max_nodes:
            raise ConfigError(
                f"--rdzv-backend {backend.name} takes a fixed number of nodes, not {self.nnodes}"
            )
        if backend.has_fixed_nodes and self.node_rank >= self.max_nodes:
            raise ConfigError(
                f"--node-rank {self.node_rank} of {self.max_nodes} nodes; give 0 to "
                f"{self.max_nodes - 1}"
            )
        self._set("endpoints", parse_endpoints(self.rdzv_endpoint) if self.rdzv_endpoint else ())
        if len(self.endpoints) > 1 and not backend.takes_over:
            raise ConfigError(
                f"--rdzv-endpoint {self.rdzv_endpoint!r} names {len(self.endpoints)} endpoints, "
                f"--rdzv-backend {backend.name} takes one; use --rdzv-backend {BUNDLE.name}"
            )

    @property
    def min_nodes(self) -> int:
        """Fewest nodes that the job runs with."""
        return self.num_nodes[0]

    @property
    def max_nodes(self) -> int:
        """Most nodes that the job takes."""
        return self.num_nodes[1]

    @property
    def num_restarts(self) -> int:
        """Times this node starts its failed workers again, as torch's agent counts them."""
        if self.max_restarts >= 0:
            return self.max_restarts
        return self.backend.default_restarts

    @property
    def is_alone(self) -> bool:
        """Whether the node needs no other and makes up its own endpoint."""
        return self.standalone or (self.max_nodes == 1 and not self.rdzv_endpoint)


def node_range(text: str, flag: str, *, separators: str = ":") -> tuple[int, int]:
    """Reads `2:4`, or `3`, as fewest and most nodes.

    Args:
        flag: the option that says it.
        separators: what may stand between the two numbers.

    Raises:
        ConfigError: it is written otherwise.
    """
    match = re.fullmatch(rf"(\d+)(?:[{re.escape(separators)}](\d+))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise ConfigError(f"{flag} {text!r} is neither a number of nodes nor MIN:MAX")
    return least, most


def _num_procs(nproc_per_node: str) -> int:
    if nproc_per_node == "auto":
        return 0
    if nproc_per_node.isdecimal() and int(nproc_per_node) > 0:
        return int(nproc_per_node)
    raise ConfigError(
        f"--nproc-per-node {nproc_per_node!r} is neither a number of ranks nor auto; "
        "--devices says what they run on"
    )


def _settings(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(key.strip() and sign for key, sign, _ in pairs):
        raise ConfigError(f"--rdzv-conf {text!r} is not KEY=VALUE[,KEY=VALUE...]")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _check_streams(flag: str, text: str) -> None:
    if text and not re.fullmatch(r"[0123]|\d+:[0123](,\d+:[0123])*", text):
        raise ConfigError(f"{flag} {text!r} is none of 0, 1, 2, 3, nor per rank such as 0:3,1:1")
