"""Slurm as a site: the launch options that follow from what it says, and the jobs that runs have.

SLURM_STEP_NODELIST=n[1-4]   ->  --nnodes 1:4, --rdzv-endpoint n1's,n2's,n3's address:port
SLURM_JOB_ID, _STEP_ID, _RESTART_COUNT   ->  --rdzv-id slurm-7.0-r2, and the port
SLURMD_NODENAME              ->  --node-name
SLURM_GPUS_ON_NODE           ->  --slots, with --devices cpu: each stands for one

So `srun bundlerun run` needs no options for any of these.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.launcher.layout.machine.gpus import count_gpus
from bundlerun.launcher.meeting.addresses import is_loopback, resolve, route_to
from bundlerun.launcher.meeting.site import SiteJob, SitePeers
from bundlerun.launcher.options.backend import BUNDLE, backend_of
from bundlerun.launcher.options.endpoints import Endpoint, text_of_endpoints
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.slurm.report import report, run_dir_of_job
from bundlerun.slurm.task import SlurmTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """How names of nodes become addresses; a test brings its own.

    Args:
        resolve: name to address; raises ConfigError.
        known_address: what Slurm itself connects to, by node; empty where it cannot say.
        route_to: this node's address towards another; raises NodeError.
    """

    resolve: Callable[[str], str] = resolve
    known_address: Callable[[str], str] = lambda node: ""
    route_to: Callable[[str, int], str] = route_to


def candidate_addresses(task: SlurmTask, names: Names | None = None) -> tuple[str, ...]:
    """The addresses of the candidates, which all nodes can reach.

    Many systems have a node's own name stand for 127.0.1.1; then Slurm is asked, or the route to
    another node shows which address the others see.

    Raises:
        ConfigError: a node has no address that others could reach.
    """
    names = names or Names()
    return tuple(_address(task, node, names) for node in task.candidates)


def _address(task: SlurmTask, node: str, names: Names) -> str:
    # The name first: asking Slurm starts a process and bothers slurmctld.
    for look_up in (names.resolve, names.known_address):
        address = _routable(look_up, node, names)
        if address:
            return address
    # Only this node's own address shows in a route; of others there is no further source.
    if node == task.node:
        for other in (each for each in task.nodes if each != node):
            address = _routable(names.resolve, other, names)
            if address:
                try:
                    return names.route_to(address, task.port)
                except NodeError:
                    continue
    raise ConfigError(
        f"node {node!r} has no address that other nodes reach: its name stands for nothing, or for "
        f"this machine alone, on {task.node!r}; give --rdzv-endpoint ADDRESS:{task.port}"
    )


def _routable(look_up: Callable[[str], str], node: str, names: Names) -> str:
    """An address that is not loopback; `look_up` may answer with a name."""
    try:
        found = look_up(node)
        address = names.resolve(found) if found else ""
    except ConfigError:
        return ""
    return "" if not address or is_loopback(address) else address


def slurm_defaults(
    environ: Mapping[str, str], said: Callable[[str], str], names: Names | None = None
) -> dict[str, str]:
    """Launch options by name, as this node's Slurm has it; none outside a job step.

    Args:
        said: what the user says about an option, empty where nothing.

    Raises:
        ConfigError: Slurm started several tasks here, or a node has no address for others.
        NodeError: Slurm gave the node GPUs that nobody sees.
    """
    task = SlurmTask.from_environ(environ)
    if task is None:
        return {}
    names = names or Names(known_address=node_address)
    needs_endpoint = len(task.nodes) > 1 and not (said("rdzv_endpoint") or said("standalone"))
    found = launch_defaults(
        task,
        candidate_addresses(task, names) if needs_endpoint else (),
        num_visible_gpus=count_gpus(environ),
        devices=said("devices"),
        slots=said("slots"),
    )
    # A run of one node, within a step of several: the step's nodes are not the run's.
    if said("standalone"):
        found.pop("nnodes", None)
    backend = backend_of(said("rdzv_backend") or BUNDLE.name)
    # torch's own backends cannot move to another candidate: one endpoint, and all nodes.
    if needs_endpoint and not backend.takes_over:
        found["rdzv_endpoint"] = found["rdzv_endpoint"].split(",")[0]
        found["nnodes"] = str(len(task.nodes))
    return found


def rank_meeting(environ: Mapping[str, str], names: Names | None = None) -> tuple[str, str] | None:
    """Address and port where the tasks of a step meet that are ranks themselves; None: no step.

    Raises:
        ConfigError: the first node has no address that others reach.
    """
    task = SlurmTask.from_environ(environ)
    if task is None:
        return None
    if len(task.nodes) == 1:
        return "127.0.0.1", str(task.port)
    return _address(task, task.nodes[0], names or Names(known_address=node_address)), str(task.port)


def peers_of(environ: Mapping[str, str], names: Names | None = None) -> SitePeers | None:
    """All nodes of this process's step, with their addresses; None for one, or outside of a step.

    Raises:
        ConfigError: a node has no address that others reach.
    """
    task = SlurmTask.from_environ(environ)
    if task is None or len(task.nodes) < 2:
        return None
    names = names or Names(known_address=node_address)
    hosts = [_address(task, node, names) for node in task.nodes]
    return SitePeers(
        name=task.node,
        index=task.nodes.index(task.node),
        endpoints=tuple(Endpoint(host=host, port=task.port) for host in hosts),
    )


def everywhere(environ: Mapping[str, str], words: Sequence[str]) -> list[str]:
    """The srun that starts `words` once on each node of this process's allocation.

    Empty outside of one, in one of a single node, and in a task of such an srun.
    """
    nodes = environ.get("SLURM_JOB_NUM_NODES", environ.get("SLURM_NNODES", ""))
    task = SlurmTask.from_environ(environ)
    # A shell that `srun --pty` started is the only task of its step, and may start others.
    is_task = task is not None and not task.is_one_task
    if "SLURM_JOB_ID" not in environ or is_task or not nodes.isdecimal() or int(nodes) < 2:
        return []
    # It shares the cores with the batch script, or with the shell, that waits for it.
    shape = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--overlap"]
    return ["srun", *shape, "--cpu-bind=none", "--kill-on-bad-exit=0", *words]


def node_address(node: str) -> str:
    """What Slurm itself connects to, an address or a name; empty where it does not say."""
    words = ["scontrol", "--oneliner", "show", "node", node]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    match = re.search(r"\bNodeAddr=(\S+)", done.stdout)
    return match[1] if match else ""


def launch_defaults(
    task: SlurmTask,
    addresses: Sequence[str],
    *,
    num_visible_gpus: int,
    devices: str = "",
    slots: str = "",
) -> dict[str, str]:
    """The options that follow from a task.

    Args:
        addresses: of the candidates; none where the endpoint is known.
        devices: what the user says about this option, empty where nothing; slots: the same.

    Raises:
        ConfigError: Slurm started more than one task here.
        NodeError: Slurm gave the node GPUs that nobody sees.
    """
    # All tasks but the first would start an agent of their own for the same devices.
    if task.local_id:
        raise ConfigError(
            f"srun starts several tasks on node {task.node!r}; bundlerun starts the ranks itself: "
            "srun --ntasks-per-node=1"
        )
    found = {"rdzv_id": task.rdzv_id, "node_name": task.node}
    # From 1 on: a run that loses nodes continues with what is left.
    if len(task.nodes) > 1:
        found["nnodes"] = f"1:{len(task.nodes)}"
    if addresses:
        found["rdzv_endpoint"] = text_of_endpoints(
            Endpoint(host=each, port=task.port) for each in addresses
        )
    # GPUs that were asked for and cannot be seen: better an error than a slow run on the CPU.
    if task.num_gpus and not num_visible_gpus and not slots:
        if devices != "cpu":
            raise NodeError(
                f"Slurm gave node {task.node!r} {task.num_gpus} GPUs, and none can be seen: no "
                "device file that CUDA_VISIBLE_DEVICES lets through; check the driver there, or "
                "train on the CPU with --devices cpu, a slot for each"
            )
        found["slots"] = str(task.num_gpus)
    return found


class SlurmSite:
    """What the launcher asks of a site."""

    name = "Slurm"

    def job(self, environ: Mapping[str, str]) -> SiteJob | None:
        """The job step that started this process."""
        task = SlurmTask.from_environ(environ)
        if task is None:
            return None
        return SiteJob(
            site=self.name,
            id=f"{task.job_id}.{task.step_id}",
            rdzv_id=task.rdzv_id,
            may_be_shell=task.is_one_task,
        )

    def defaults(self, environ: Mapping[str, str], said: Callable[[str], str]) -> Mapping[str, str]:
        """See `slurm_defaults`."""
        return slurm_defaults(environ, said)

    def meeting(self, environ: Mapping[str, str]) -> tuple[str, str] | None:
        """See `rank_meeting`."""
        return rank_meeting(environ)

    def peers(self, environ: Mapping[str, str]) -> SitePeers | None:
        """See `peers_of`."""
        return peers_of(environ)

    def everywhere(self, environ: Mapping[str, str], words: Sequence[str]) -> list[str]:
        """See `everywhere`."""
        return everywhere(environ, words)

    def run_dir_of_job(self, number: int) -> Path:
        """See `report.run_dir_of_job`."""
        return run_dir_of_job(number)

    def report(self, paths: RunPaths) -> Mapping[str, object] | None:
        """See `report.report`."""
        return report(paths.root)


SITE = SlurmSite()
