import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launcher.errors import ConfigError
from launcher.node_name import claimed_name


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
