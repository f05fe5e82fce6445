"""What NCCL and torch's watch over it find in the environment."""

from __future__ import annotations

import os
from pathlib import Path

from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.nccl_settings import missing_settings, prepare_nccl


def test_what_the_user_has_set_stays_also_by_an_older_name() -> None:
    file = Path("logs/nccl/process-1-")
    wanted = missing_settings({}, file)
    assert wanted["TORCH_FR_DUMP_TEMP_FILE"] == str(file)
    assert missing_settings(wanted, file) == {}
    older = {"TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "mine", "TORCH_NCCL_TRACE_BUFFER_SIZE": "7"}
    left = missing_settings(older, file)
    names = {"TORCH_FR_DUMP_TEMP_FILE", "TORCH_FR_BUFFER_SIZE"}
    assert wanted.keys() - left.keys() == names


def test_a_record_is_this_process_s_and_no_older_one(tmp_path: Path) -> None:
    paths, environ = RunPaths(tmp_path), dict[str, str]()
    own = paths.flight_record("a", os.getpid())
    own.parent.mkdir(parents=True)
    old, other = (paths.flight_record("a", pid) for pid in (os.getpid(), 10**9))
    for path in (old, other):
        path.with_name(f"{path.name}0").touch()
    prepare_nccl(paths, "a", environ)
    assert environ["TORCH_FR_DUMP_TEMP_FILE"] == str(own)
    assert [path.name for path in own.parent.iterdir()] == [f"{other.name}0"]


def test_a_run_folder_that_takes_no_file_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    environ = dict[str, str]()
    prepare_nccl(RunPaths(tmp_path), "a", environ)
    assert "TORCH_NCCL_DUMP_ON_TIMEOUT" in environ
