"""The whole of a launch, decided before anything starts: shown by `plan`, consumed by `run`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bundlerun.launcher.agreement.agreed import Terms, terms_of, terms_of_script
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.hardware import (
    THREADS_VARIABLE,
    Devices,
    Hardware,
    RankLayout,
    choose_devices,
    rank_layouts,
)
from bundlerun.launcher.layout.idle import Batch, warnings
from bundlerun.launcher.layout.loaders import num_loaders
from bundlerun.launcher.layout.machine.gpus import CPU_ONLY_VARIABLE
from bundlerun.launcher.layout.microbatch import BUNDLES_VARIABLE, default_samples
from bundlerun.launcher.layout.prospects import NO_CUT, Prospects
from bundlerun.launcher.layout.rounding import divided_up
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.timeline import Costs, Timeline, simulate
from bundlerun.launcher.layout.topology import NONE_FORESEEN, Topology
from bundlerun.launcher.meeting.addresses import nccl_interface
from bundlerun.launcher.meeting.network import Meeting
from bundlerun.launcher.one_device import for_one_device, in_one_stage
from bundlerun.launcher.options.declared import Resolved, argv_of
from bundlerun.launcher.run_folder.microbatch import kept_samples
from bundlerun.launcher.run_folder.paths import RunPaths

WORKER_MODULE = "bundlerun.workers.train"
SCRIPT_MODULE = "bundlerun.workers.own.script"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """What one node starts."""

    name: str
    devices: Devices
    layouts: tuple[RankLayout, ...]
    loaders: int
    """Loading processes of each rank that reads."""
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
    script: tuple[str, ...] = ()
    """A program of the user's own that ranks run in place of training, with its arguments."""
    kept_samples: int = 0
    """Samples of a micro-batch, where an earlier start of the run has settled that; else 0."""
    num_idle: int = 0
    """Devices that run no rank, on all nodes."""
    prospects: Prospects = NONE_FORESEEN
    """Of the shapes that will do, on the nodes that may be there."""

    def with_prospects(self, prospects: Prospects) -> LaunchPlan:
        """The same in the shape that is foreseen to be the fastest of those that will do."""
        train, devices = self.train.value, self.topology.devices_per_node
        topology = Topology.best(train.shape, devices, train.chunks, prospects)
        return replace(self, topology=topology, prospects=prospects)

    @property
    def config(self) -> TrainConfig:
        """The options of training in the shape of this plan, of those that will do."""
        train, shape = self.train.value, self.topology.shape
        if not train.shape.others:
            return train
        known = self.prospects.best([shape], self.topology.devices_per_node)
        # By the cutter as it is typed, which tells whose profile holds.
        cut = known.cut._replace(cutter=train.cutter) if known else NO_CUT
        return train.in_shape(shape, cut)

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
    def _has_gpus(self) -> bool:
        """Whether its ranks get some; of machines that are not there, only where that is said."""
        return (self.node.devices.kind if self.node else self.launch.value.devices) == "gpu"

    @property
    def batch(self) -> Batch:
        """A step's samples, and how they are cut."""
        train, num_bundles = self.train.value, self.topology.num_bundles
        settled = train.microbatch_size or self.kept_samples
        samples = settled or default_samples(
            train.batch_size, train.shape.num_stages, num_bundles, has_gpus=self._has_gpus
        )
        return Batch(size=train.batch_size, samples=samples)

    @property
    def bundle_microbatches(self) -> int:
        """Micro-batches of a full step that a bundle does, where all are equally fast."""
        return divided_up(self.batch.num_microbatches, self.topology.num_bundles)

    def warnings(self) -> list[str]:
        """What of the devices this plan does not use, with the way to use it."""
        found = []
        shape = self.topology.shape
        num_unused = self.num_idle + len(self.topology.spare_ranks)
        if num_unused:
            total = self.num_idle + self.topology.world_size
            found.append(
                f"devices that no bundle uses: {num_unused:,} of {total:,}, as a bundle of shape "
                f"{shape} takes {shape.size}; give another --shape, or nodes of "
                f"a multiple of {shape.size} devices"
            )
        return [*found, *warnings(self.pipeline, self.batch, self.topology.num_bundles)]

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
        if self.script:
            return [self.train.value.run_dir, *self.script]
        return self.train.value.to_argv()

    @property
    def terms(self) -> Terms:
        """What all nodes must have alike."""
        if self.script:
            return terms_of_script(Path(self.script[0]), self.script[1:])
        return terms_of(self.train.value)

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


def plan_elsewhere(
    nodes: tuple[int, ...], train: Resolved[TrainConfig], launch: Resolved[LaunchConfig]
) -> LaunchPlan:
    """The plan for machines that are not there.

    Args:
        nodes: devices of each node.

    Raises:
        ConfigError: they do not hold one bundle.
    """
    # As `for_one_device` decides on the machine itself.
    if nodes == (1,):
        train = in_one_stage(train)
    shape = train.value.shape
    used = tuple(shape.usable_devices(count) for count in nodes)
    return LaunchPlan(
        topology=Topology.best(shape, used, train.value.chunks),
        train=train,
        launch=launch,
        node=None,
        num_idle=sum(nodes) - sum(used),
    )


def plan_here(
    train: Resolved[TrainConfig],
    launch: Resolved[LaunchConfig],
    *,
    hardware: Hardware,
    meeting: Meeting,
    node_name: str,
    environ: Mapping[str, str] | None = None,
    prospects: Prospects = NONE_FORESEEN,
) -> LaunchPlan:
    """The plan for this node, and for others like it as far as `--nnodes` says.

    Raises:
        ConfigError, NodeError: the devices do not do for what is asked.
    """
    train = for_one_device(train, launch.value, hardware)
    shape = train.value.shape
    devices = choose_devices(hardware, shape, kind=launch.value.devices, slots=launch.value.slots)
    train.value.check_kind(devices.kind)
    num_procs = choose_num_procs(train.value, launch.value, devices)
    # The other nodes are not there yet: the plan takes them to be like this one.
    counts = (num_procs,) * launch.value.max_nodes
    topology = Topology.best(shape, counts, train.value.chunks, prospects)
    has_gpu = devices.kind == "gpu"
    layouts = rank_layouts(
        num_procs,
        hardware.cpus,
        threads=train.value.threads,
        affinity=train.value.affinity,
        environ=environ,
        gpu_nodes=hardware.gpu_nodes if has_gpu else (),
    )
    node = NodePlan(
        name=node_name,
        devices=devices,
        layouts=layouts,
        loaders=num_loaders(
            train.value.loader_workers,
            [place for place in topology.places if place.node == 0],
            hardware.cpus.num_cores,
            has_gpu=has_gpu,
        ),
        meeting=meeting,
        log_dir=launch.value.log_dir
        or str(RunPaths(Path(train.value.run_dir)).node_logs(node_name)),
        environment=worker_environment(
            devices,
            node_name,
            meeting.local_addr,
            threads=layouts[0].threads,
            num_bundles=topology.num_bundles,
        )
        | (nccl_interface(launch.value.local_addr, environ or {}) if has_gpu else {}),
    )
    # Devices that the user leaves out on purpose are nothing to warn of.
    is_asked = bool(launch.value.bundles or launch.value.num_procs)
    return LaunchPlan(
        topology=topology,
        train=train,
        launch=launch,
        node=node,
        kept_samples=kept_samples(train.value.run_dir, train.value.batch_size),
        num_idle=0 if is_asked else (devices.count - num_procs) * launch.value.max_nodes,
        prospects=prospects,
    )


def choose_num_procs(train: TrainConfig, launch: LaunchConfig, devices: Devices) -> int:
    """Ranks that this node starts.

    Raises:
        ConfigError: more are asked for than the devices can run.
        NodeError: the node does not hold one bundle and no other node is to join.
    """
    shape, size = train.shape, train.shape.size
    has = f"this node has {devices.count} {'CPU slots' if devices.kind == 'cpu' else 'GPUs'}"
    if launch.bundles:
        if launch.bundles * size > devices.count:
            fit = shape.num_bundles(devices.count)
            raise ConfigError(
                f"--bundles {launch.bundles} of shape {shape} need {launch.bundles * size} "
                f"devices, {has}; " + (f"use --bundles {fit} at most" if fit else "no bundle fits")
            )
        return launch.bundles * size
    num_procs = launch.num_procs or shape.usable_devices(devices.count)
    may_share = train.transport in ("cpu", "ipc")
    if num_procs > devices.count and devices.kind == "gpu" and not may_share:
        raise ConfigError(
            f"--nproc-per-node {num_procs}, but {has}; several ranks share one only with "
            "--transport cpu or ipc"
        )
    if launch.max_nodes == 1 and num_procs < min(one.size for one in shape.family):
        raise NodeError(
            f"{num_procs} devices do not hold one bundle of shape {shape} ({size} devices), and "
            f"{has}; give a smaller --shape, --nproc-per-node {size} --transport cpu to share "
            "devices, or more nodes with --nnodes"
        )
    return num_procs


def worker_environment(
    devices: Devices, node_name: str, local_addr: str, *, threads: int, num_bundles: int
) -> dict[str, str]:
    """What is set for the agent and its workers, in addition to torchrun's own variables."""
    environment = {
        "BUNDLERUN_NODE_NAME": node_name,
        # The first round may have fewer nodes than are to come.
        BUNDLES_VARIABLE: str(num_bundles),
        THREADS_VARIABLE: str(threads),
        # Else no restart of a job of several nodes recovers: stale addresses in a reused store.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        # Else an agent that ends after the store's node shows a C++ stack trace as a warning.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if local_addr:
        environment["BUNDLERUN_LOCAL_ADDR"] = local_addr
    # Ranks on CPU slots see no GPU, also where the node has some.
    if devices.kind == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", CPU_ONLY_VARIABLE: "1"}
    else:
        # Else a user's file that only looks for GPUs starts CUDA, before ranks have hidden others'.
        environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    return environment
