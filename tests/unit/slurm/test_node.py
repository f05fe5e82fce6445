"""One node's part of a step, with a shell in the agent's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.options.endpoints import parse_endpoints
from bundlerun.launcher.run_folder.events import read_events
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.slurm import node
from bundlerun.slurm.jobs import Slurm
from bundlerun.slurm.node import NodeTask, lookout_of
from bundlerun.slurm.task import SlurmTask
from bundlerun.slurm.watch.lookout import Lookout
from tests.unit.slurm.conftest import FakeSlurm
from tests.unit.slurm.test_task import STEP

ENDPOINTS = parse_endpoints("10.0.0.11:5,10.0.0.12:5,10.0.0.13:5")


def task(name: str = "n2") -> SlurmTask:
    found = SlurmTask.from_environ(STEP | {"SLURMD_NODENAME": name})
    assert found is not None
    return found


@dataclass
class World:
    """The first node as the others see it."""

    lives: bool = True

    def lookout(self) -> Lookout:
        clock = time.monotonic
        return Lookout(
            first="a",
            others=(),
            port=1,
            probe=lambda address, port: self.lives,
            clock=lambda: clock() * 100,  # a hundredth of the usual patience
        )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (("POLL_S", 0.02), ("DRAIN_S", 2.0), ("TURN_S", 0.01), ("ASK_S", 2.0)):
        monkeypatch.setattr(node, name, value)
    before = {number: signal.getsignal(number) for number in node.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(run_dir: Path, script: str, lookout: Lookout | None = None) -> int:
    return NodeTask(task(), RunPaths(run_dir), lookout, Slurm()).run(["sh", "-c", script])


@pytest.mark.usefixtures("quick", "slurm")
def test_the_agents_exit_code_is_the_tasks(tmp_path: Path) -> None:
    assert run(tmp_path, "exit 75", World().lookout()) == 75


@pytest.mark.usefixtures("quick")
def test_survivors_of_the_first_node_stop_and_requeue(slurm: FakeSlurm, tmp_path: Path) -> None:
    wait = f'while [ ! -e "{tmp_path}/drain.json" ]; do sleep 0.02; done; touch "{tmp_path}/end"'
    run(tmp_path, wait, _lost())
    assert (tmp_path / "end").exists()
    assert "scontrol requeue 7" in slurm.asked
    events = [row["event"] for row in read_events(RunPaths(tmp_path).events)]
    assert events == ["slurm: first node lost", "slurm: requeues"]


@pytest.mark.usefixtures("quick")
def test_a_run_that_ends_with_the_first_node_leaves_no_zombie(
    slurm: FakeSlurm, tmp_path: Path
) -> None:
    """The agent has ended before the silence was long enough."""
    assert run(tmp_path, "exit 0", _lost()) == 0
    assert "scontrol requeue 7" in slurm.asked


@pytest.mark.usefixtures("quick")
def test_a_survivor_does_not_requeue_the_next_start(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.job("RUNNING", restarts=1)
    run(tmp_path, "exit 1", _lost())
    assert "scontrol requeue 7" not in slurm.asked


def _lost() -> Lookout:
    world = World()
    lookout = world.lookout()
    lookout.look()
    world.lives = False
    time.sleep(0.02)  # a period and more, on this clock
    lookout.look()
    assert lookout.is_silent
    return lookout


@pytest.mark.usefixtures("quick", "slurm")
def test_slurms_signal_becomes_a_request_to_stop(tmp_path: Path) -> None:
    """Slurm signals every process of a task; the agent has to be out of its reach."""
    script = f"""
        trap 'touch "{tmp_path}/hit"' TERM
        kill -TERM {os.getpid()}
        while [ ! -e "{tmp_path}/drain.json" ]; do sleep 0.02; done
    """
    assert run(tmp_path, script) == 0
    assert not (tmp_path / "hit").exists()


def test_the_agent_ends_with_its_task(tmp_path: Path) -> None:
    code = (
        "import sys; from bundlerun.slurm.node import NodeTask\n"
        "from bundlerun.slurm.jobs import Slurm\n"
        "from bundlerun.launcher.run_folder.paths import RunPaths; from pathlib import Path\n"
        "from tests.unit.slurm.test_node import task\n"
        f"root = Path({str(tmp_path)!r})\n"
        "command = ['sh', '-c', f'echo $$ > {root}/pid; exec sleep 600']\n"
        "NodeTask(task(), RunPaths(root), None, Slurm()).run(command)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3]) as started:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        agent = int((tmp_path / "pid").read_text())
        started.kill()
    while _lives(agent):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_who_watches_whom(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    assert lookout_of(task("n1"), ENDPOINTS, paths) is None
    second = lookout_of(task("n2"), ENDPOINTS, paths)
    assert second is not None
    assert (second.first, list(second.others)) == ("10.0.0.11", ["10.0.0.13"])
    fourth = lookout_of(task("n4"), ENDPOINTS, paths)
    assert fourth is not None
    assert list(fourth.others) == ["10.0.0.12", "10.0.0.13"]


def test_outside_a_step_nothing_starts() -> None:
    with pytest.raises(ConfigError, match="start it with srun"):
        node.start(["synthetic"], {})
