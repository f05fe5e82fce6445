import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.meeting import node_name
from bundlerun.launcher.meeting.node_name import claimed_name


def test_agents_of_one_job_on_one_machine_get_different_names(tmp_path: Path) -> None:
    host = socket.gethostname()
    with claimed_name("job", folder=tmp_path) as one, claimed_name("job", folder=tmp_path) as two:
        assert (one, two) == (host, f"{host}-2")


def test_another_job_or_a_later_agent_gets_the_same_name_again(tmp_path: Path) -> None:
    with claimed_name("job", folder=tmp_path) as one, claimed_name("else", folder=tmp_path) as two:
        assert one == two
    with claimed_name("job", folder=tmp_path) as again:
        assert again == one


def test_a_name_that_another_agent_has_is_refused(tmp_path: Path) -> None:
    with claimed_name("job", "n1", folder=tmp_path):
        with (
            pytest.raises(ConfigError, match="'n1' is taken"),
            claimed_name("job", "n1", folder=tmp_path),
        ):
            pass
        with claimed_name("job", "n2", folder=tmp_path) as other:
            assert other == "n2"


@contextmanager
def killed_agent(folder: Path, orphan_s: float) -> Iterator[None]:
    """An agent that was killed, and what it had forked, which lives on for some seconds."""
    up, tell = os.pipe()
    agent = os.fork()
    if not agent:
        with claimed_name("job", "n1", folder=folder):
            parent = os.getpid()
            if os.fork():
                os.kill(parent, signal.SIGKILL)
            while os.getppid() == parent:
                time.sleep(0.001)
            os.write(tell, os.getpid().to_bytes(4, "little"))
            time.sleep(orphan_s)
            os._exit(0)
    orphan = int.from_bytes(os.read(up, 4), "little")
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)
        os.waitpid(agent, 0)


def test_a_node_that_is_killed_and_started_again_at_once_keeps_its_name(tmp_path: Path) -> None:
    with killed_agent(tmp_path, 0.3), claimed_name("job", "n1", folder=tmp_path) as name:
        assert name == "n1"


def test_what_a_dead_agent_left_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_name, "ORPHANS_S", 0.1)
    with (
        killed_agent(tmp_path, 60),
        pytest.raises(ConfigError, match=r"what its dead agent left still runs after 0\.1 s"),
        claimed_name("job", "n1", folder=tmp_path),
    ):
        pass


def test_no_lock_is_left_behind(tmp_path: Path) -> None:
    with claimed_name("job", folder=tmp_path), claimed_name("job", folder=tmp_path):
        assert len(list(tmp_path.iterdir())) == 2
    assert not list(tmp_path.iterdir())


def test_what_a_killed_agent_left_goes_and_what_is_held_stays(tmp_path: Path) -> None:
    left = tmp_path / f"bundlerun-{os.getuid()}-0123456789abcdef.lock"
    left.touch()
    with claimed_name("held", folder=tmp_path):
        (held,) = set(tmp_path.iterdir()) - {left}
        for path in (left, held):
            os.utime(path, (0, 0))
        with claimed_name("job", folder=tmp_path):
            assert not left.exists()
            assert held.exists()


def test_a_name_is_never_given_twice_however_quickly_it_comes_and_goes(tmp_path: Path) -> None:
    holders: list[str] = []

    def claim_often(worker: int) -> None:
        for _ in range(200):
            with claimed_name("job", folder=tmp_path) as name:
                assert name not in holders
                holders.append(name)
                holders.remove(name)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(claim_often, range(6)))
    assert not list(tmp_path.iterdir())
