from __future__ import annotations

import os
from pathlib import Path

import pytest

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.holder import process_tag
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank import run_start
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.run_start import claimed_folder, holder_of_rank, with_run_folder


def env(num_nodes: int = 1, run_id: str = "none", **more: str) -> RankEnv:
    """The first of two ranks per node, as torchrun starts it."""
    environ = {
        "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "WORLD_SIZE": str(2 * num_nodes), "GROUP_WORLD_SIZE": str(num_nodes),
        "MASTER_ADDR": "a", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": run_id, **more,
    }  # fmt: skip
    return RankEnv.from_mapping({k: v for k, v in environ.items() if v})


ALONE = RankEnv.from_mapping({})
CONFIG = TrainConfig(data="synthetic")


def test_a_process_alone_has_a_new_folder_each_time() -> None:
    assert (
        with_run_folder(CONFIG, ALONE, None).run_dir != with_run_folder(CONFIG, ALONE, None).run_dir
    )


def test_all_ranks_and_attempts_of_a_job_have_one_folder() -> None:
    tag = process_tag(os.getppid())
    assert with_run_folder(CONFIG, env(), None).run_dir == f"runs/torchrun-{tag}"
    for num_nodes in (1, 2):
        assert with_run_folder(CONFIG, env(num_nodes, "job"), None).run_dir == "runs/job"


@pytest.mark.parametrize("run_id", ["none", ""])
def test_nodes_that_would_not_agree_on_a_folder_need_one(run_id: str) -> None:
    with pytest.raises(ConfigError, match="give all of them the same --run-dir"):
        with_run_folder(CONFIG, env(2, run_id), None)


def test_the_link_to_the_newest_run_is_entered_once_by_an_agents_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/mine", "runs/other"):
        Path(name).mkdir(parents=True)
    Path("runs/latest").symlink_to("mine")
    config = TrainConfig(data="synthetic", run_dir="runs/latest")
    first = with_run_folder(config, env(), "").run_dir
    assert first == with_run_folder(config, ALONE, None).run_dir == "runs/mine"
    Path("runs/latest").unlink()
    Path("runs/latest").symlink_to("other")  # a run that was started meanwhile
    assert with_run_folder(config, env(), first).run_dir == "runs/mine"
    with pytest.raises(ConfigError, match="give the folder itself: --run-dir runs/other"):
        with_run_folder(config, env(), None)
    Path("own").symlink_to("runs/mine")  # nobody else moves it
    own = TrainConfig(data="synthetic", run_dir="own")
    assert with_run_folder(own, env(), None).run_dir == "runs/mine"


def test_the_claim_of_torchrun_is_its_agents_on_whatever_node_the_first_rank_is() -> None:
    assert holder_of_rank(env()).pid == os.getppid()
    assert process_tag(os.getppid()) in holder_of_rank(env()).job
    assert holder_of_rank(env(2)).job == "torchrun none"
    assert holder_of_rank(env(2, "job")).job == "torchrun job"
    assert holder_of_rank(env(2, "")).pid == os.getpid()


@pytest.mark.parametrize(
    ("address", "is_one"), [("127.0.0.1", False), ("localhost", False), ("10.0.0.1", True)]
)
def test_ranks_that_meet_at_loopback_on_two_machines_are_two_jobs(
    address: str, is_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = set()
    for machine in ("a", "b"):
        monkeypatch.setattr(run_start, "this_machine", lambda name=machine: name)
        jobs.add(holder_of_rank(env(1, "", MASTER_ADDR=address)).job)
    assert (len(jobs) == 1) == is_one


def test_only_the_first_rank_claims_and_none_where_the_agent_does(tmp_path: Path) -> None:
    config = TrainConfig(data="synthetic", run_dir=str(tmp_path / "run"))
    for other in (env(RANK="1"), env(BUNDLERUN_CLAIMED="1")):
        with claimed_folder(config, other):
            assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("started", "suffix"), [(ALONE, ".over"), (env(), ".json")])
def test_after_an_error_the_claim_stays_with_an_agent_that_may_start_again(
    started: RankEnv, suffix: str, tmp_path: Path
) -> None:
    config = TrainConfig(data="synthetic", run_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="an error"), claimed_folder(config, started):
        raise ConfigError("an error")
    assert [path.suffix for path in RunPaths(tmp_path).claims.iterdir()] == [suffix]
    with claimed_folder(config, started):
        pass
    assert [path.suffix for path in RunPaths(tmp_path).claims.iterdir()] == [".over"]
