"""A folder that a loop saves to is its own: another program's is refused, with who has it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bundlerun.launcher.agreement.claim import Claim, holder_now
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.holder import Holder
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.own.saved_folders import SavedFolders
from bundlerun.workers.rank.env import RankEnv


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which lives until it is killed."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def claimed(folder: Path, other: subprocess.Popen[bytes], job: str = "other") -> Path:
    Claim(RunPaths(folder), Holder.of_process(job, "a test", pid=other.pid), print).take()
    return folder


def test_a_folder_of_another_process_is_refused_until_that_is_gone(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    with ExitStack() as keeps:
        own = SavedFolders(RankEnv.from_mapping({}), keeps)
        folder = claimed(tmp_path / "kept", other)
        refusal = own.refusal(folder)
        assert isinstance(refusal, ConfigError)
        assert f"kept': process {other.pid} on node" in str(refusal)
        assert "start them with bundlerun or torchrun" in str(refusal)
        other.kill()
        other.wait()
        assert own.refusal(folder) is None
        assert own.refusal(folder) is None  # as often as it saves
        assert "a loop of its own" in holder_now(RunPaths(folder))
    assert not holder_now(RunPaths(folder))


def test_the_folder_that_the_agent_holds_is_its_ranks_too(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    told = {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "MASTER_PORT": "1",
    }  # fmt: skip
    folder = claimed(tmp_path / "run", other, "mine")
    with ExitStack() as keeps:
        env = RankEnv.from_mapping({**told, "BUNDLERUN_CLAIMED": "mine"})
        assert SavedFolders(env, keeps).refusal(folder) is None
    assert f"process {other.pid} " in holder_now(RunPaths(folder))
    with ExitStack() as keeps:
        refusal = SavedFolders(RankEnv.from_mapping(told), keeps).refusal(folder)
        assert "cannot save to" in str(refusal)
        assert "nobody has told" not in str(refusal)


def test_what_a_run_has_left_of_its_end_stays(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.outcome.parent.mkdir(parents=True, exist_ok=True)
    paths.outcome.write_text("{}")
    with ExitStack() as keeps:
        assert SavedFolders(RankEnv.from_mapping({}), keeps).refusal(tmp_path) is None
        assert paths.outcome.exists()
    assert paths.outcome.exists()
