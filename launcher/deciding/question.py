"""What a user leaves to the planner, as the planner is asked: a request, and the machines."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from bundlerun.launcher.agreement.planner_terms import wanted
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.console import noun_for
from bundlerun.launcher.deciding.decision import Question
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.hardware import Devices, Hardware, choose_devices
from bundlerun.launcher.layout.shape import AUTO
from bundlerun.launcher.options.declared import Resolved, text_of
from bundlerun.launcher.planning.candidate import Request
from bundlerun.launcher.planning.cluster import Cluster, Host, Link, NodeKind
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.run_folder.files import SHARED_MEMORY

_DEPENDS_ON = (
    *("data", "recipe", "model", "num_classes", "cut", "cutter", "freeze", "lora", "lora_targets"),
    *("shape", "batch_size", "microbatch_size", "chunks", "schedule", "sync", "recompute"),
    *("image_size", "seq_len", "optimizer", "precision", "compile", "memory_format", "snapshot"),
    *("exchange", "exchange_loss", "exchange_dtype", "bucket_mb", "threads"),
)
"""Options that the choice depends on."""
UNKNOWN_CARD = Link(bytes_per_s=125e6, latency_s=100e-6)
"""Between nodes, where neither a file nor a card says otherwise: 1 Gbit/s."""
_INSIDE = Link(bytes_per_s=4e9, latency_s=20e-6)
"""Inside a node, where no file says otherwise: a copy through memory of the CPU."""
_LATENCY_S = 100e-6
_MOST_SAMPLES = 512
"""Of a micro-batch that is looked at, on GPUs; on CPUs a quarter of it."""


def question_of(
    train: Resolved[TrainConfig], launch: LaunchConfig, kind: str, cluster_text: str
) -> Question:
    """The question that these options ask."""
    options = {
        name: text_of(getattr(train.value, name))
        for name in _DEPENDS_ON
        if hasattr(train.value, name)
    }
    return Question(
        options=options,
        num_nodes=launch.max_nodes,
        devices=kind,
        cluster=cluster_text,
        min_nodes=launch.min_nodes,
    )


def request_of(train: Resolved[TrainConfig], profile: Profile) -> Request:
    """What is wanted, and what the user has settled.

    Args:
        train: its sources tell what the user has said.
        profile: of the model.

    Raises:
        ConfigError: a cut is none of them.
    """
    value = train.value
    is_named = bool(value.cut) and AUTO not in value.cut
    return replace(
        wanted(value),
        shape=None if value.shape.is_auto else value.shape,
        cuts=profile.cut_numbers(value.cut, len(value.cut) + 1) if is_named else None,
        schedule=None if value.schedule == "auto" else value.schedule,
        # The options are refused together.
        without=frozenset() if value.compile == "off" else frozenset({"zero-bubble"}),
        sync=None if value.sync == "auto" else value.sync,
        samples=value.microbatch_size or None,
        recompute=_recomputed(train),
    )


def _recomputed(train: Resolved[TrainConfig]) -> frozenset[int] | None:
    """Stages that compute again; None: the planner may choose."""
    value = train.value
    if train.sources["recompute"] == "default" or value.recompute == "all":
        return None
    if value.recompute == "none":
        return frozenset()
    return frozenset(map(int, value.recompute.split(",")))


def sizes_to_profile(train: TrainConfig, kind: str) -> tuple[int, ...]:
    """Samples of the micro-batches that are measured: what is between is on a line."""
    if train.microbatch_size:
        return (train.microbatch_size,)
    most = _MOST_SAMPLES if kind == "gpu" else _MOST_SAMPLES // 4
    found = [d for d in range(1, min(most, train.batch_size) + 1) if train.batch_size % d == 0]
    large = [d for d in found if d >= 4] or found
    middle = min(large, key=lambda d: abs(math.log(d / 16)))
    return tuple(sorted({large[0], middle}))


def devices_of(train: TrainConfig, launch: LaunchConfig, hardware: Hardware) -> Devices:
    """What this node runs ranks on, before a shape is known.

    Raises:
        ConfigError: as `choose_devices`; or a number of bundles is asked for.
    """
    shape = train.shape
    if not shape.is_auto:
        found = choose_devices(hardware, shape, kind=launch.devices, slots=launch.slots)
        count = launch.bundles * shape.size or launch.num_procs or found.count
        return Devices(kind=found.kind, count=count)
    if launch.bundles:
        raise ConfigError(
            f"--bundles {launch.bundles} are of a shape that --shape auto is yet to choose; give "
            "--nproc-per-node, or a --shape"
        )
    slots = launch.slots or (hardware.cpus.num_cores if launch.devices == "cpu" else 0)
    has_gpus = hardware.num_gpus and not slots
    if not has_gpus and launch.devices != "gpu":
        slots = slots or hardware.cpus.num_cores
        return Devices(kind="cpu", count=launch.num_procs or slots)
    found = choose_devices(hardware, shape, kind=launch.devices, slots=launch.slots)
    return Devices(kind=found.kind, count=launch.num_procs or found.count)


def cluster_here(
    hardware: Hardware, devices: Devices, num_nodes: int, card: Link | None, nodes: Sequence[int]
) -> Cluster:
    """Nodes like this one.

    Args:
        hardware: of this node.
        devices: that ranks run on.
        num_nodes: that take part.
        card: what the card between the nodes says; None: not known.
        nodes: devices of each node, for machines that are not there; else empty.
    """
    memory = psutil.virtual_memory().total
    counts = tuple(nodes) or (devices.count,) * num_nodes
    kinds = []
    for count in dict.fromkeys(counts):
        # A machine that is not there has a core for each device.
        cores = count if nodes else hardware.cpus.num_cores
        kinds.append(
            NodeKind(
                name=f"{count} {noun_for(count, 'device')}",
                count=counts.count(count),
                devices=count,
                device_bytes=memory // count if devices.kind == "cpu" else 0,
                host_bytes=memory,
                shm_bytes=_shm_bytes(),
                inside=_INSIDE,
                host=Host.usual(cores) if devices.kind == "cpu" else Host(),
                loaders=hardware.cpus.num_cores,
            )
        )
    return Cluster(kinds=tuple(kinds), between=card or UNKNOWN_CARD)


def _shm_bytes() -> int:
    try:
        return shutil.disk_usage(SHARED_MEMORY).total
    except OSError:
        return 0


def card_of(address: str) -> Link | None:
    """The link that the network card of an address says it has; None: it does not say."""
    stats = psutil.net_if_stats()
    for name, found in psutil.net_if_addrs().items():
        if any(each.address.split("%")[0] == address for each in found):
            speed = stats[name].speed if name in stats else 0
            return Link(bytes_per_s=speed * 125e3, latency_s=_LATENCY_S) if speed else None
    return None


def cluster_text(path: str) -> str:
    """The text of `--cluster`.

    Raises:
        ConfigError: it cannot be read.
    """
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise ConfigError(f"cannot read --cluster {path!r}: {exc}; give a TOML file") from exc
