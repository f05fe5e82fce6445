"""The machines that a plan is for: nodes, their devices, the links inside and between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MOST_DEVICES = 1_000_000
"""That a plan is made for; each rank has a line of its own in some of what is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A way between two devices, or two nodes.

    Args:
        bytes_per_s: in one direction; inf: not limited.
        latency_s: of a message without bytes.
    """

    bytes_per_s: float
    latency_s: float = 0.0

    def seconds(self, num_bytes: float) -> float:
        """Time of a message."""
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The processor of a node, as far as a step's time depends on it.

    Args:
        cores: that passes, sums and messages share, where devices are CPU slots; 0: passes have
            devices of their own, and the processor has time for all else.
        copy_s_per_byte: seconds of a core to copy a byte in memory, or to add it to another.
        send_s_per_byte: to send a byte to another node, or to receive it.
        message_s: of a message, whatever its length, on the rank that sends it.
        passes_apart: whether passes take none of the cores, though sums and messages do: those of
            a device whose gradients are summed in the node's memory.
    """

    cores: int = 0
    copy_s_per_byte: float = 0.0
    send_s_per_byte: float = 0.0
    message_s: float = 0.0
    passes_apart: bool = False

    @classmethod
    def usual(cls, cores: int) -> Host:
        """Of a CPU on which nothing was measured; with gloo between nodes."""
        return cls(cores=cores, copy_s_per_byte=0.25e-9, send_s_per_byte=0.6e-9, message_s=100e-6)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKind:
    """Nodes that are alike.

    Args:
        name: of the kind.
        count: of nodes.
        devices: of each node.
        speed: of a device, over that of the device that was profiled; where devices share cores
            that the profile had for itself, below 1.
        device_bytes: memory of a device; where devices are CPU slots, their share of the node's.
        host_bytes: memory of the node.
        shm_bytes: of /dev/shm.
        inside: the link between two devices of the node.
        loaders: loading processes of a node that decode at the same time.
        host: its processor.
    """

    name: str
    count: int
    devices: int
    speed: float = 1.0
    device_bytes: int = 0
    host_bytes: int = 0
    shm_bytes: int = 0
    inside: Link = field(default_factory=lambda: Link(bytes_per_s=float("inf")))
    loaders: int = 0
    host: Host = field(default_factory=Host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """All nodes.

    Args:
        kinds: in the order of the nodes.
        between: the link of a node to the others; what it sends at once shares it.
        pairs: ways between two kinds of nodes that are other ones, by their names in order.
        is_one_machine: whether the nodes are parts of one machine, such as network namespaces: all
            of them together have the cores that each says it has.
    """

    kinds: tuple[NodeKind, ...]
    between: Link
    pairs: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    is_one_machine: bool = False

    @property
    def num_nodes(self) -> int:
        """Of all kinds."""
        return sum(kind.count for kind in self.kinds)

    @property
    def devices_per_node(self) -> tuple[int, ...]:
        """In the order of the nodes."""
        return tuple(kind.devices for kind in self.kinds for _ in range(kind.count))

    def link(self, one: NodeKind, other: NodeKind) -> Link:
        """The way between two nodes of these kinds."""
        pair = (one.name, other.name)
        return self.pairs.get(pair) or self.pairs.get(pair[::-1]) or self.between
