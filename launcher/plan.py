"""The whole of a launch, decided before anything starts: shown by `plan`, consumed by `run`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launcher.config import TrainConfig
from launcher.errors import ConfigError, NodeError
from launcher.hardware import (
    THREADS_VARIABLE,
    Devices,
    Hardware,
    RankLayout,
    choose_devices,
    rank_layout,
)
from launcher.launch_config import LaunchConfig
from launcher.network import Meeting
from launcher.options import Resolved, argv_of
from launcher.paths import RunPaths
from launcher.schedule import Pipeline
from launcher.timeline import Costs, Timeline, simulate
from launcher.topology import Place, Topology, bundle_size, usable_devices

WORKER_MODULE = "workers.train"
CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
"""Queues of a GPU: with the usual 8, streams that have nothing to do with each other share one, and
what waits for another rank holds up what that rank waits for. The user's own number counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """What one node starts."""

    name: str
    devices: Devices
    layouts: tuple[RankLayout, ...]
    meeting: Meeting
    log_dir: str
    environment: Mapping[str, str]

    @property
    def num_procs(self) -> int:
        """Ranks that this node starts."""
        return len(self.layouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """A job, and where it is to start here, this node's part of it (else None)."""

    topology: Topology
    train: Resolved[TrainConfig]
    launch: Resolved[LaunchConfig]
    node: NodePlan | None
    module: str = field(default=WORKER_MODULE)

    @property
    def here(self) -> NodePlan:
        """What is to start here, for a plan that says so."""
        assert self.node is not None
        return self.node

    @property
    def pipeline(self) -> Pipeline:
        """The order of passes in every bundle."""
        return Pipeline.of(self.topology, self.train.value.schedule)

    @property
    def bundle_microbatches(self) -> int:
        """Micro-batches of a full step that a bundle does, where all are equally fast."""
        return -(-self.train.value.num_microbatches // self.topology.num_bundles)

    @property
    def timeline(self) -> Timeline:
        """A step of one bundle where a forward takes 1, a backward 2, a transfer nothing."""
        costs = Costs.equal(self.pipeline.num_chunks)
        timeline = simulate(self.pipeline.bundle(self.bundle_microbatches), costs)
        assert timeline is not None
        return timeline

    @property
    def argv(self) -> list[str]:
        """The workers' command line, without the program."""
        return self.train.value.to_argv()

    def commands(self) -> list[str]:
        """What starts this job, one command for each kind of node."""
        return [
            shlex.join(["bundlerun", "run", *self._launch_words(count), *self.argv])
            for count in self._kinds_of_node()
        ]

    def torchrun_commands(self) -> list[str]:
        """The same without our launcher."""
        return [
            shlex.join(["torchrun", *self._torchrun_words(count), "-m", self.module, *self.argv])
            for count in self._kinds_of_node()
        ]

    def _kinds_of_node(self) -> list[int]:
        return sorted(set(self.topology.devices_per_node), reverse=True)

    def _launch_words(self, count: int) -> list[str]:
        if self.node:
            return argv_of(self.launch.value)
        return [*self._nodes_words(), f"--nproc-per-node={count}"]

    def _torchrun_words(self, count: int) -> list[str]:
        launch = self.launch.value
        if launch.is_alone and self.topology.num_nodes == 1:
            return ["--standalone", f"--nproc-per-node={count}"]
        words = [*self._nodes_words(), f"--nproc-per-node={count}"]
        words += [f"--rdzv-backend={launch.rdzv_backend}", f"--rdzv-id={launch.rdzv_id}"]
        if launch.num_restarts:
            words.append(f"--max-restarts={launch.num_restarts}")
        return words

    def _nodes_words(self) -> list[str]:
        launch = self.launch.value
        nodes = launch.nnodes if self.node else str(self.topology.num_nodes)
        alone = self.topology.num_nodes == 1
        endpoint = launch.rdzv_endpoint or ("" if alone else "HOST:29400")
        return [f"--nnodes={nodes}", *([f"--rdzv-endpoint={endpoint}"] if endpoint else [])]

    def to_json(self) -> str:
        """The plan as one JSON document."""
        return json.dumps(plan_document(self), indent=2)


def plan_document(plan: LaunchPlan) -> dict[str, object]:
    """The plan as plain values."""
    topology = plan.topology
    return {
        "shape": list(topology.shape),
        "devices_per_node": list(topology.devices_per_node),
        "num_bundles": topology.num_bundles,
        "ranks": [_place(place) for place in topology.places],
        "collect": [asdict(group) for group in topology.sync_groups],
        "distribute": [asdict(group) for group in topology.sync_groups],
        "exchange": [
            {"stage": stage, "ranks": list(ranks)}
            for stage, ranks in enumerate(topology.exchange_groups)
        ],
        "links": [{**link._asdict(), "kind": link.kind.value} for link in topology.links],
        "schedule": _schedule(plan),
        "node": asdict(plan.node) if plan.node else None,
        "module": plan.module,
        "argv": plan.argv,
        "commands": plan.commands(),
        "torchrun": plan.torchrun_commands(),
        "config": _values(plan.train),
        "launch": _values(plan.launch),
    }


def _schedule(plan: LaunchPlan) -> dict[str, object]:
    pipeline, timeline = plan.pipeline, plan.timeline
    return {
        "name": pipeline.schedule,
        "chunks": pipeline.chunks,
        "microbatches_per_bundle": plan.bundle_microbatches,
        "bubble": timeline.bubble,
        "ranks": [
            {
                "stage": stage,
                "replica": replica,
                "in_flight": timeline.in_flight[stage, replica],
                "order": [str(span.action) for span in spans],
            }
            for (stage, replica), spans in timeline.spans.items()
        ],
    }


def _place(place: Place) -> dict[str, object]:
    return {**place._asdict(), "is_spare": place.is_spare}


def _values(resolved: Resolved[TrainConfig] | Resolved[LaunchConfig]) -> dict[str, object]:
    value = resolved.value
    return {
        name: {"value": getattr(value, name), "source": source}
        for name, source in resolved.sources.items()
    }


def plan_elsewhere(
    nodes: tuple[int, ...], train: Resolved[TrainConfig], launch: Resolved[LaunchConfig]
) -> LaunchPlan:
    """The plan for machines that are not there.

    Args:
        nodes: devices of each node.

    Raises:
        ConfigError: they do not hold one bundle.
    """
    shape = train.value.shape
    used = tuple(usable_devices(shape, count) for count in nodes)
    return LaunchPlan(
        topology=Topology(shape, used, train.value.chunks), train=train, launch=launch, node=None
    )


def plan_here(
    train: Resolved[TrainConfig],
    launch: Resolved[LaunchConfig],
    *,
    hardware: Hardware,
    meeting: Meeting,
    node_name: str,
    environ: Mapping[str, str] | None = None,
) -> LaunchPlan:
    """The plan for this node, and for others like it as far as `--nnodes` says.

    Raises:
        ConfigError, NodeError: the devices do not do for what is asked.
    """
    shape = train.value.shape
    devices = choose_devices(hardware, shape, kind=launch.value.devices, slots=launch.value.slots)
    num_procs = choose_num_procs(train.value, launch.value, devices)
    topology = Topology(shape, (num_procs,) * launch.value.max_nodes, train.value.chunks)
    layouts = tuple(
        rank_layout(
            local_rank,
            num_procs,
            hardware.cpus,
            threads=train.value.threads,
            affinity=train.value.affinity,
            environ=environ,
        )
        for local_rank in range(num_procs)
    )
    node = NodePlan(
        name=node_name,
        devices=devices,
        layouts=layouts,
        meeting=meeting,
        log_dir=launch.value.log_dir
        or str(RunPaths(Path(train.value.run_dir)).node_logs(node_name)),
        environment=worker_environment(
            devices, node_name, meeting.local_addr, threads=layouts[0].threads
        ),
    )
    return LaunchPlan(topology=topology, train=train, launch=launch, node=node)


def choose_num_procs(train: TrainConfig, launch: LaunchConfig, devices: Devices) -> int:
    """Ranks that this node starts.

    Raises:
        ConfigError: more are asked for than the devices can run.
        NodeError: the node does not hold one bundle and no other node is to join.
    """
    size = bundle_size(train.shape)
    shape = ",".join(map(str, train.shape))
    has = f"this node has {devices.count} {'CPU slots' if devices.kind == 'cpu' else 'GPUs'}"
    if launch.bundles:
        if launch.bundles * size > devices.count:
            fit = devices.count // size
            raise ConfigError(
                f"--bundles {launch.bundles} of shape {shape} need {launch.bundles * size} "
                f"devices, {has}; " + (f"use --bundles {fit} at most" if fit else "no bundle fits")
            )
        return launch.bundles * size
    num_procs = launch.num_procs or usable_devices(train.shape, devices.count)
    if num_procs > devices.count and devices.kind == "gpu" and train.transport != "cpu":
        raise ConfigError(
            f"--nproc-per-node {num_procs}, but {has}; several ranks share one only with "
            "--transport cpu"
        )
    if num_procs < size and launch.max_nodes == 1:
        raise NodeError(
            f"{num_procs} devices do not hold one bundle of shape {shape} ({size} devices), and "
            f"{has}; give a smaller --shape, or more nodes with --nnodes"
        )
    return num_procs


def worker_environment(
    devices: Devices, node_name: str, local_addr: str, *, threads: int
) -> dict[str, str]:
    """What is set for the agent and its workers, in addition to torchrun's own variables."""
    environment = {
        "BUNDLERUN_NODE_NAME": node_name,
        THREADS_VARIABLE: str(threads),
        # Else no restart of a job of several nodes recovers: stale addresses in a reused store.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        # Else an agent that ends after the store's node shows a C++ stack trace as a warning.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if local_addr:
        environment["BUNDLERUN_LOCAL_ADDR"] = local_addr
    if devices.kind == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    else:
        environment[CONNECTIONS] = "32"
    return environment
