"""What the launcher asks of a batch system, and that it finds each."""

from __future__ import annotations

from pathlib import Path

from bundlerun.launcher.meeting.site import SITES, site_defaults, site_job, site_reports, sites
from bundlerun.launcher.run_folder.paths import RunPaths

STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "3",
    "SLURM_RESTART_COUNT": "2",
    "SLURM_STEP_NODELIST": "n1",
    "SLURM_PROCID": "0",
}


def test_a_site_has_the_name_that_it_is_listed_by() -> None:
    assert [site.name for site in sites()] == list(SITES)


def test_a_job_names_the_folder_the_holder_and_this_start() -> None:
    job = site_job(STEP)
    assert job is not None
    assert (job.folder_name, job.holder, job.rdzv_id) == ("slurm-7.3", "slurm 7.3", "slurm-7.3-r2")
    assert job.may_be_shell
    assert site_job({}) is None


def test_defaults_say_who_gives_them() -> None:
    found = site_defaults(STEP, lambda name: "")
    assert found["rdzv_id"] == ("Slurm", "slurm-7.3-r2")
    assert site_defaults({}, lambda name: "") == {}


def test_a_run_without_a_job_has_a_report_of_none(tmp_path: Path) -> None:
    assert site_reports(RunPaths(tmp_path)) == {"slurm": None}
