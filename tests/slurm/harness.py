"""What every job of these tests has to end in."""

from __future__ import annotations

import pytest

from benchmarks.cluster.slurm_jobs import NUM_STEPS, Submitted


def ended_well(job: Submitted, wanted_loss: float, num_steps: int = NUM_STEPS) -> None:
    """COMPLETED with 0, as a run without faults, no finished step lost, nothing left anywhere."""
    assert job.wait_over() == "COMPLETED", job.story()
    assert job.exit_code == "0:0"
    summary = job.summary()
    assert summary["steps"] == num_steps
    assert summary["validation"]["loss"] == pytest.approx(wanted_loss, abs=1e-3)
    assert not any(recovery.steps_lost for recovery in job.recoveries), job.story()
    job.leaves_nothing()
