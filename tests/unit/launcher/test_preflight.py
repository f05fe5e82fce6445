"""What is refused before anything starts."""

from __future__ import annotations

import os
import socket
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from launcher.errors import ConfigError, NodeError
from launcher.launch_config import LaunchConfig
from launcher.network import Meeting, check_port, resolve_meeting, wait_for_meeting
from launcher.node_name import claimed_name
from launcher.preflight import check_data, check_torch, check_writable


@pytest.mark.parametrize("version", ["2.10.1", "1.13.0+cpu", "nightly"])
def test_an_old_torch_is_refused_with_its_version(version: str) -> None:
    with pytest.raises(NodeError, match=f"torch {version.replace('+', '.')} is too old"):
        check_torch(lambda _: version)


@pytest.mark.parametrize("version", ["2.11.0", "2.15.0+cu130", "3.0.0a1"])
def test_a_newer_torch_is_taken(version: str) -> None:
    check_torch(lambda _: version)


def test_no_torch_says_how_to_get_it() -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    with pytest.raises(NodeError, match="pip install"):
        check_torch(missing)


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NodeError, match=r"--run-dir .*file' is a file; give a folder"):
        check_writable(tmp_path / "file" / "run", "--run-dir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(NodeError, match="no permission"):
        check_writable(tmp_path / "run", "--run-dir")


def test_the_check_makes_no_folder(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "--run-dir")
    assert not list(tmp_path.iterdir())


def test_missing_data_is_named_and_synthetic_needs_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data at '/nowhere'"):
        check_data("/nowhere", "image-classification")
    check_data("synthetic", "image-classification")
    check_data(str(tmp_path), "image-classification")
    check_data("whatever it likes", "own.py")


def endpoint(**values: str) -> LaunchConfig:
    return LaunchConfig(nnodes="2", **values)  # type: ignore[arg-type]


def test_a_loopback_endpoint_is_no_place_to_meet_other_nodes() -> None:
    with pytest.raises(ConfigError, match="which other nodes cannot reach"):
        resolve_meeting(endpoint(rdzv_endpoint="localhost:29400"))


def test_a_loopback_endpoint_is_right_where_all_nodes_are_on_this_machine() -> None:
    launch = endpoint(rdzv_endpoint="127.0.0.1:29400", local_addr="127.0.0.1")
    assert resolve_meeting(launch).is_here


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(ConfigError, match="cannot be resolved"):
        resolve_meeting(endpoint(rdzv_endpoint="no-such-node.invalid:29400"))


def test_a_port_in_use_is_refused_unless_a_store_answers_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        meeting = Meeting(
            address="127.0.0.1", port=taken.getsockname()[1], is_here=True, local_addr="127.0.0.1"
        )
        with pytest.raises(NodeError, match="give another port"):
            check_port(meeting, is_store=lambda *_: False)
        check_port(meeting, is_store=lambda *_: True)
    check_port(meeting, is_store=lambda *_: False)


def test_waiting_for_the_meeting_ends_with_an_error_in_time() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = Meeting(address="127.0.0.1", port=port, is_here=False, local_addr="127.0.0.1")
    now, said = [0.0], list[str]()

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with pytest.raises(NodeError, match="cannot reach --rdzv-endpoint"):
        wait_for_meeting(
            meeting, say=said.append, wait_s=3.0, poll_s=1.0, clock=lambda: now[0], sleep=sleep
        )
    assert len(said) == 1
    assert now[0] == 3.0


def test_two_agents_of_a_job_have_different_names(tmp_path: Path) -> None:
    with claimed_name("job", folder=tmp_path) as first:
        with claimed_name("job", folder=tmp_path) as second:
            assert second == f"{first}-2"
        with (
            pytest.raises(ConfigError, match="is taken by another agent"),
            claimed_name("job", first, folder=tmp_path),
        ):
            raise AssertionError("the name was given twice")
    with claimed_name("job", folder=tmp_path) as again:
        assert again == first
