import socket
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
