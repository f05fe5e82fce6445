"""A real Slurm of several nodes on this machine, for as long as a `with` lasts; root only.

Each node is a PID 1 in namespaces of its own (network, host name, mounts, processes): killing it
ends all of the node at once, and nothing can be left of it. The controller's node holds a bridge,
and one link leads to this machine, where sbatch and srun are typed.

    this machine .1 -- bridge (ctl, .254) -- n1 .11, n2 .12, ...

A node resolves its own name to 127.0.1.1, as Debian has it. GPUs are character devices that stand
for some. DIR/local is a disk of the node; everything else is shared.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cluster.namespaces import Namespaces, free_subnet
from benchmarks.cluster.slurm_conf import CONF, INIT
from benchmarks.cluster.waiting import wait_for
from bundlerun.launcher.process import follow_parent

TOOLS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")
PACKAGES = "slurmctld slurmd slurm-client munge iproute2 util-linux procps"
BOOT_S = 30.0
CTL = "ctl"
CPUS_PER_NODE = 8


def why_not() -> str:
    """Why there can be no cluster on this machine; empty where there can."""
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"not installed: {', '.join(missing)}; apt-get install {PACKAGES}"
    done = subprocess.run(
        ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "true"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""


@dataclass(slots=True, kw_only=True)
class Cluster:
    """The running cluster; nodes are n1, n2, ...

    Args:
        folder: of everything; at most 60 characters, unix sockets are in it.
        gpus: of each node.
        subnet: A.B.C.
    """

    folder: Path
    gpus: Sequence[int]
    subnet: str
    proctrack: str = "cgroup"
    times_s: Mapping[str, int] = field(
        default_factory=lambda: {"slurmd_timeout": 10, "kill_wait": 15, "grace": 20}
    )
    _booted: dict[str, Namespaces] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The nodes."""
        return [f"n{i}" for i in range(1, len(self.gpus) + 1)]

    @property
    def link(self) -> str:
        """The link to this machine, and the prefix of control groups."""
        return f"bs{zlib.crc32(str(self.folder).encode()):08x}"

    @property
    def environ(self) -> dict[str, str]:
        """For commands on this machine, without what an outer job or tool has set."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "SBATCH", "BUNDLERUN", "PYTEST"))
        }
        # Its GPUs are devices of other kinds: CPU slots stand for them.
        conf = str(self.folder / "etc/slurm.conf")
        return kept | {"SLURM_CONF": conf, "BUNDLERUN_DEVICES": "cpu"}

    def address(self, node: str) -> str:
        """Of a node, or of the controller."""
        return f"{self.subnet}.{254 if node == CTL else 10 + int(node[1:])}"

    # -- commands

    def run(self, *words: str, limit_s: float = 30.0, check: bool = True) -> str:
        """One of Slurm's commands on this machine; returns what it prints."""
        done = subprocess.run(
            words, env=self.environ, capture_output=True, text=True, timeout=limit_s
        )
        if check and done.returncode:
            raise RuntimeError(f"{words}: {done.stdout}{done.stderr}")
        return done.stdout

    def inside(self, node: str, *words: str, check: bool = True) -> str:
        """A command on a node."""
        done = subprocess.run(
            self._booted[node].enter(words),
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=30,
        )
        if check and done.returncode:
            raise RuntimeError(f"{node}: {words}: {done.stdout}{done.stderr}")
        return done.stdout

    def _net(self, node: str, script: str) -> None:
        words = self._booted[node].enter(["sh", "-ec", script], only_network=True)
        subprocess.run(words, check=True, capture_output=True, text=True, timeout=30)

    # -- life of the cluster

    def start(self) -> None:
        """Boots all and starts the daemons."""
        for name in ("etc", "run", "log", "state", "spool", "nodes", "local", "dev", "cg/freezer"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        # Then Slurm follows the processes of a step by their parents only.
        if not self._has_freezer():
            self.proctrack = "linuxproc"
        self._configure()
        key = self.folder / "run/munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        run = self.folder / "run"
        words = [
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={run}/munge.sock", f"--pid-file={run}/munged.pid"),
            *(f"--log-file={self.folder}/log/munged.log", f"--seed-file={run}/munged.seed"),
        ]
        munged = self._spawn(words, "munged")
        self._booted["munge"] = Namespaces(munged, munged.pid)
        # The controller's node first: it has the bridge that the others are plugged into.
        self._boot(CTL)
        self.start_controller("-c")
        for name in self.names:
            self._boot(name)
        wait_for("slurmctld", self._controller_answers, BOOT_S)
        for name in self.names:
            self.start_slurmd(name)
        self.wait_until_idle()

    def stop(self) -> None:
        """Ends all processes and removes all files."""
        for booted in self._booted.values():
            booted.holder.kill()
        for booted in self._booted.values():
            booted.holder.wait(timeout=BOOT_S)
        subprocess.run(["ip", "link", "del", self.link], capture_output=True, timeout=30)
        script = (
            'mount -t cgroup -o freezer none "$1" && '
            'for g in "$1/$2".*; do find "$g" -depth -type d -exec rmdir {} \\; ; done'
        )
        where = str(self.folder / "cg/freezer")
        words = ["unshare", "--mount", "sh", "-c", script, "sh", where, self.link]
        subprocess.run(words, capture_output=True, timeout=30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _has_freezer(self) -> bool:
        script = 'mount -t cgroup -o freezer none "$1"; mkdir "$1/$2.probe"; rmdir "$1/$2.probe"'
        words = ["unshare", "--mount", "sh", "-ec", script, "sh"]
        done = subprocess.run(
            [*words, str(self.folder / "cg/freezer"), self.link], capture_output=True, timeout=30
        )
        return done.returncode == 0

    def _configure(self) -> None:
        etc, nodes, gres = self.folder / "etc", [], []
        most = max(self.gpus)
        for i in range(most):
            os.mknod(self.folder / f"dev/gpu{i}", 0o666 | 0o020000, os.makedev(1, 3))
        for name, count in zip(self.names, self.gpus, strict=True):
            nodes.append(
                f"NodeName={name} NodeAddr={self.address(name)} CPUs={CPUS_PER_NODE} "
                f"RealMemory=4000 Gres=gpu:{count} State=UNKNOWN"
            )
            gres.append(f"NodeName={name} Name=gpu File={self.folder}/dev/gpu[0-{count - 1}]")
        times = {f"{name}_s": value for name, value in self.times_s.items()}
        (etc / "slurm.conf").write_text(
            CONF.format(
                dir=self.folder,
                ctl=self.address(CTL),
                proctrack=self.proctrack,
                nodes="\n".join(nodes),
                **times,
            )
        )
        (etc / "gres.conf").write_text("\n".join(gres) + "\n")
        (etc / "cgroup.conf").write_text(
            f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={self.folder}/cg\n"
        )
        found = Path("/etc/nsswitch.conf")
        switches = found.read_text() if found.exists() else ""
        # Names come from the files of this cluster only, never from the machine's resolver.
        kept = [line for line in switches.splitlines() if not line.startswith("hosts:")]
        (etc / "nsswitch.conf").write_text("\n".join([*kept, "hosts: files", ""]))

    def _hosts(self, node: str) -> str:
        lines = ["127.0.0.1 localhost", f"{self.subnet}.1 {socket.gethostname()}"]
        lines += [
            f"{'127.0.1.1' if name == node else self.address(name)} {name}"
            for name in [CTL, *self.names]
        ]
        return "\n".join(lines) + "\n"

    def _spawn(self, words: Sequence[str], log: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"log/boot.{log}.log").open("ab") as file:
            return subprocess.Popen(
                words,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=follow_parent,
            )

    def _boot(self, node: str) -> None:
        home = self.folder / "nodes" / node
        home.mkdir(exist_ok=True)
        (home / "hosts").write_text(self._hosts(node))
        (home / "booted").unlink(missing_ok=True)
        group = self.link if self.proctrack == "cgroup" else ""
        holder = self._spawn(
            [
                *("unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork"),
                *("--kill-child", "--mount-proc", "--", "bash", "-c", INIT),
                *("init", node, str(self.folder), group),
            ],
            node,
        )
        log = self.folder / f"log/boot.{node}.log"
        try:
            wait_for(f"{node} to boot", (home / "booted").exists, BOOT_S)
        except TimeoutError as exc:
            raise RuntimeError(f"{node} did not boot: {log.read_text()[-500:]}") from exc
        # `unshare --fork` stays outside; its child is PID 1 of the new namespaces.
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        self._booted[node] = Namespaces(holder, int(children[0]))
        self._plug(node)

    def _plug(self, node: str) -> None:
        pid, address = self._booted[node].init, self.address(node)

        def ip(*words: str) -> None:
            subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)

        if node == CTL:
            self._net(node, f"ip link add br0 type bridge; ip addr add {address}/24 dev br0")
            self._net(node, "ip link set br0 up")
            ip(*f"link add {self.link} type veth peer name p-host netns {pid}".split())
            ip(*f"addr add {self.subnet}.1/24 dev {self.link}".split())
            ip(*f"link set {self.link} up".split())
            self._net(node, "ip link set p-host master br0 up")
            return
        controller = self._booted[CTL].init
        # The port of an earlier boot may not have gone yet.
        self._net(CTL, f"ip link del p-{node} 2>/dev/null || :")
        ip(*f"link add eth0 netns {pid} type veth peer name p-{node} netns {controller}".split())
        self._net(node, f"ip addr add {address}/24 dev eth0; ip link set eth0 up")
        self._net(CTL, f"ip link set p-{node} master br0 up")

    def start_controller(self, *flags: str) -> None:
        """Starts slurmctld."""
        self._daemon(CTL, "slurmctld", *flags)

    def start_slurmd(self, node: str) -> None:
        """Starts the daemon of a node."""
        self._daemon(node, "slurmd", "-N", node)

    def _daemon(self, node: str, *words: str) -> None:
        conf = str(self.folder / "etc/slurm.conf")
        clean = {"PATH": os.environ["PATH"], "HOME": "/root", "SLURM_CONF": conf}
        file = self.folder / f"log/boot.{node}.log"
        with file.open("ab") as log:
            done = subprocess.run(
                self._booted[node].enter([*words, "-f", conf]),
                env=clean,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=BOOT_S,
            )
        if done.returncode:
            raise RuntimeError(f"{words[0]} on {node} did not start: {file.read_text()[-2000:]}")

    def _controller_answers(self) -> bool:
        return "UP" in self.run("scontrol", "ping", check=False)

    def node_states(self) -> dict[str, str]:
        """What sinfo says of each node."""
        lines = self.run("sinfo", "-h", "-N", "-p", "high", "-o", "%N %T").splitlines()
        return dict(line.split(maxsplit=1) for line in lines if " " in line)

    def wait_until_idle(self) -> None:
        """Waits until no node has a job."""

        def idle() -> bool:
            return set(self.node_states().values()) == {"idle"}

        try:
            wait_for("idle nodes", idle, BOOT_S)
        except TimeoutError as exc:
            raise RuntimeError(self.run("sinfo", "-N", "-o", "%N %T %E")) from exc

    def repair(self) -> None:
        """Makes all as it was at the start: no job, all nodes up and idle."""
        if not self._controller_answers():
            self.start_controller()
            wait_for("slurmctld", self._controller_answers, BOOT_S)
        # With SIGKILL first: a job of ours takes time for its checkpoint.
        self.run("scancel", "-u", "root", "--signal=KILL", check=False)
        self.run("scancel", "-u", "root", check=False)
        for node in self.names:
            if node not in self._booted:
                self.power_on(node)
            self.heal(node)
            if not self.has_slurmd(node):
                self.start_slurmd(node)
        for node, state in self.node_states().items():
            if "down" in state or "drain" in state:
                self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self.wait_until_idle()

    # -- faults

    def crash(self, node: str) -> None:
        """All processes end at once."""
        booted = self._booted.pop(node)
        booted.holder.kill()
        booted.holder.wait(timeout=BOOT_S)
        wait_for(f"{node} to end", lambda: not Path(f"/proc/{booted.init}").exists(), BOOT_S)

    def power_off(self, node: str) -> None:
        """Silence first: no packet of the dying node gets out."""
        self.cut(node)
        self.crash(node)

    def power_on(self, node: str) -> None:
        """Boots a node again, with the name and address that it had."""
        self._boot(node)
        self.start_slurmd(node)

    def cut(self, node: str) -> None:
        """Pulls a node's cable."""
        self._net(CTL, f"ip link set p-{node} down")

    def heal(self, node: str) -> None:
        """Plugs it in again."""
        self._net(CTL, f"ip link set p-{node} up")

    def has_slurmd(self, node: str) -> bool:
        """Whether a node's daemon runs."""
        return bool(self.inside(node, "pgrep", "-x", "slurmd", check=False).strip())

    def kill_slurmd(self, node: str) -> None:
        """Ends the daemon only; steps keep running."""
        self.inside(node, "pkill", "-KILL", "-x", "slurmd")

    def kill_controller(self) -> None:
        """Ends slurmctld only."""
        self.inside(CTL, "pkill", "-KILL", "-x", "slurmctld")

    def processes(self, node: str) -> list[str]:
        """What runs on a node, without the system's own; nothing on one that is off."""
        if node not in self._booted:
            return []
        text = self.inside(node, "ps", "-eo", "pid=,args=")
        own = re.compile(r"^\s*1 |slurmd|slurmstepd|sleep 3600|ps -eo")
        return [line for line in text.splitlines() if not own.search(line)]


@contextmanager
def open_cluster(gpus: Sequence[int]) -> Iterator[Cluster]:
    """A running cluster with as many nodes as `gpus` has numbers."""
    folder = Path(tempfile.mkdtemp(prefix="bs-", dir="/tmp")) / "c"
    cluster = Cluster(folder=folder, gpus=gpus, subnet=free_subnet())
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder.parent, ignore_errors=True)
