"""Hosts on one machine: network namespaces, joined by a bridge, their links shaped.

    namespace 0      namespace 1      namespace 2
    eth0             eth0             eth0             tbf: what a host may send
      |                |                |
    port0            port1            port2            tbf: what a host may receive
      +------- bridge in a namespace of its own

The bridge has its own namespace because `bridge-nf-call-iptables` would send its frames through
the machine's firewall. No namespace has a name: each lives as long as an open descriptor of this
process or a process in it, so nothing is left even where the benchmark is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_CLONE_NEWNET = 0x40000000
_OWN_NAMESPACE = Path("/proc/thread-self/ns/net")
_DEVICE_COUNTERS = Path("/proc/thread-self/net/dev")
DEVICE = "eth0"
MTU = 9000
"""Jumbo frames, as clusters have them."""
HEADER_BYTES = 14 + 20 + 20 + 12
"""Of a frame: Ethernet, IPv4, TCP, its timestamps."""
_SEGMENT_BYTES = 2 * MTU
"""The largest piece that TCP hands down at once, in place of the usual 64 KiB: a link that was
idle lets a burst pass at once, so the burst must be small, and no smaller than a piece."""
_BURST_BYTES = 2 * _SEGMENT_BYTES
"""0.3 ms at 1 Gbit/s; with less, a timer that comes late costs bandwidth."""
_QUEUE_BYTES = 4 << 20
"""What waits in front of a link; enough that nothing was ever dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """The link of every host; 1 Mbit is 10**6 bits, headers included."""

    mbit_per_s: float
    mtu: int = MTU

    @property
    def payload_share(self) -> float:
        """Of the bytes of a full frame, those that TCP carries."""
        carried = self.mtu + 14 - HEADER_BYTES
        return carried / (self.mtu + 14)

    def seconds(self, num_bytes: float) -> float:
        """The least time in which a link carries that many bytes of payload."""
        return num_bytes * 8 / (self.mbit_per_s * 1e6 * self.payload_share)


class Counters(NamedTuple):
    """What one host has sent and received, counted by the kernel.

    `sent_bytes` and `received_bytes` are those of the device. TCP hands it pieces of two frames
    with one header, which a real card would cut. `wire_bytes` are those of the shaper, which
    counts, and makes time for, the header of every frame that the card would send.
    """

    sent_bytes: int
    sent_packets: int
    received_bytes: int
    received_packets: int
    wire_bytes: int
    num_dropped: int

    def since(self, before: Counters) -> Counters:
        """What was added."""
        return Counters(*(now - then for now, then in zip(self, before, strict=True)))


def read_counters() -> Counters:
    """The counters of the host that the calling thread is on."""
    # /proc/thread-self, not /proc/self: the namespace is the thread's.
    line = next(t for t in _DEVICE_COUNTERS.read_text().splitlines() if f"{DEVICE}:" in t)
    numbers = [int(word) for word in line.partition(":")[2].split()]
    show = ["tc", "-s", "-j", "qdisc", "show", "dev", DEVICE]
    # The shaper of the host's own end, which is what the host sends.
    shaper = json.loads(subprocess.run(show, check=True, capture_output=True).stdout)[0]
    return Counters(
        sent_bytes=numbers[8],
        sent_packets=numbers[9],
        received_bytes=numbers[0],
        received_packets=numbers[1],
        wire_bytes=shaper["bytes"],
        num_dropped=shaper["drops"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """Some hosts; every process of this one can enter them."""

    wire: Wire
    namespaces: tuple[int, ...]

    @property
    def num_hosts(self) -> int:
        """How many."""
        return len(self.namespaces)

    def address(self, host: int) -> str:
        """The address of one host."""
        return f"10.77.0.{host + 1}"

    def enter(self, host: int) -> None:
        """Moves the calling thread, and what it starts from here on, onto a host."""
        _setns(self.namespaces[host])


@contextmanager
def open_hosts(num_hosts: int, wire: Wire) -> Iterator[Hosts]:
    """Makes hosts that live inside the `with`.

    Raises:
        OSError, subprocess.CalledProcessError: the machine does not allow it; see `why_not`.
    """
    with ExitStack() as made:

        def new() -> int:
            descriptor = _new_namespace()
            made.callback(os.close, descriptor)  # at once: the next one may fail
            return descriptor

        bridge = new()
        _batch("ip", bridge, ["link add bridge type bridge", f"link set bridge mtu {wire.mtu} up"])
        hosts = Hosts(wire=wire, namespaces=tuple(new() for _ in range(num_hosts)))
        for host, namespace in enumerate(hosts.namespaces):
            _plug_in(hosts, host, namespace, bridge)
        yield hosts


def why_not() -> str:
    """Why this machine cannot make hosts; empty if it can."""
    missing = [name for name in ("ip", "tc", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found; on Debian install iproute2 and util-linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        # Tried rather than asked: what is allowed depends on kernel, container and modules.
        with open_hosts(1, Wire(mbit_per_s=1000)):
            return ""
    except OSError as exc:
        return f"no network namespace: {exc.strerror}"
    except subprocess.CalledProcessError as exc:
        return f"{exc.cmd[-3]} refused: {exc.stderr.decode().strip()}"


def _plug_in(hosts: Hosts, host: int, namespace: int, bridge: int) -> None:
    """Joins one host to the bridge."""
    port, mtu = f"port{host}", hosts.wire.mtu
    peer = f"peer name {port} mtu {mtu} netns {_path(bridge)}"
    _batch(
        "ip",
        namespace,
        [
            "link set lo up",
            f"link add {DEVICE} mtu {mtu} type veth {peer}",
            # Small pieces, so that a small burst is enough; see _SEGMENT_BYTES.
            f"link set {DEVICE} gso_max_size {_SEGMENT_BYTES}",
            f"addr add {hosts.address(host)}/24 dev {DEVICE}",
            f"link set {DEVICE} up",
        ],
    )
    _batch("ip", bridge, [f"link set {port} master bridge up"])
    # Both ends are shaped: one is what the host sends, the other what it receives.
    for where, device in ((namespace, DEVICE), (bridge, port)):
        _batch("tc", where, [_shaper(device, hosts.wire)])


def _shaper(device: str, wire: Wire) -> str:
    rate = f"rate {wire.mbit_per_s * 1e6:.0f}bit"
    return f"qdisc add dev {device} root tbf {rate} burst {_BURST_BYTES} limit {_QUEUE_BYTES}"


def _batch(program: str, namespace: int, lines: Sequence[str]) -> None:
    """Runs lines of `ip` or `tc` in a namespace."""
    subprocess.run(
        ["nsenter", f"--net={_path(namespace)}", program, "-batch", "-"],
        input="\n".join(lines).encode(),
        check=True,
        capture_output=True,
    )


def _path(namespace: int) -> str:
    return f"/proc/{os.getpid()}/fd/{namespace}"


def _new_namespace() -> int:
    """A descriptor of a new namespace; the calling thread stays where it is."""
    # unshare moves the thread into the new namespace: this leads it back.
    own = os.open(_OWN_NAMESPACE, os.O_RDONLY)
    try:
        _check(_libc().unshare(_CLONE_NEWNET))
        try:
            return os.open(_OWN_NAMESPACE, os.O_RDONLY)
        finally:
            _setns(own)
    finally:
        os.close(own)


def enter_network(path: Path) -> None:
    """Moves the calling thread, and what it starts from here on, into the network at `path`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _setns(descriptor)
    finally:
        os.close(descriptor)


def _setns(descriptor: int) -> None:
    _check(_libc().setns(descriptor, _CLONE_NEWNET))


def _libc() -> ctypes.CDLL:
    # Python has os.setns and os.unshare from 3.12 on.
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
