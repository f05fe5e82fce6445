"""What becomes of a job whose step has ended."""

from __future__ import annotations

import pytest

from bundlerun.slurm.verdict import MOST_STARTS, End, RunState, judge, refuse


def end(state: RunState, srun_code: int = 1, **changes: object) -> End:
    return End(state=state, srun_code=srun_code, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("srun_code", [0, 1, 137])
def test_a_finished_run_is_completed_whatever_srun_says(srun_code: int) -> None:
    verdict = judge(end(RunState.DONE, srun_code), restarts=0, budget=0, starts=[0])
    assert (verdict.requeue, verdict.exit_code) == (False, 0)


def test_a_run_that_failed_is_not_requeued() -> None:
    failed = end(RunState.FAILED, code=2, reason="no such file", was_signalled=True)
    verdict = judge(failed, restarts=0, budget=20, starts=[0])
    assert (verdict.requeue, verdict.exit_code) == (False, 2)
    assert "no such file" in verdict.text


def test_a_failure_without_a_code_is_no_success() -> None:
    assert judge(end(RunState.FAILED, code=0), restarts=0, budget=20, starts=[0]).exit_code == 1


def test_a_run_that_slurm_stopped_comes_back() -> None:
    stopped = end(RunState.STOPPED, 75, was_signalled=True)
    verdict = judge(stopped, restarts=1, budget=20, starts=[0, 5])
    assert verdict.requeue
    assert "requeue 2 of 20" in verdict.text


def test_a_run_that_a_person_stopped_stays_stopped() -> None:
    verdict = judge(end(RunState.STOPPED, 75), restarts=0, budget=20, starts=[0])
    assert (verdict.requeue, verdict.exit_code) == (False, 75)


def test_a_run_that_was_cut_short_comes_back() -> None:
    assert judge(end(RunState.UNKNOWN, 137), restarts=0, budget=20, starts=[0]).requeue


@pytest.mark.parametrize("code", [2, 3])
def test_a_step_that_could_not_begin_is_not_tried_again(code: int) -> None:
    verdict = judge(end(RunState.UNKNOWN, code), restarts=0, budget=20, starts=[0])
    assert (verdict.requeue, verdict.exit_code) == (False, code)


@pytest.mark.parametrize("code", [2, 3])
def test_a_node_that_went_bad_on_the_way_is_no_wrong_start(code: int) -> None:
    gone = end(RunState.UNKNOWN, code, has_stepped=True)
    assert judge(gone, restarts=0, budget=20, starts=[0]).requeue


def test_the_budget_ends() -> None:
    verdict = judge(end(RunState.UNKNOWN, 137), restarts=20, budget=20, starts=[0, 9])
    assert (verdict.requeue, verdict.exit_code) == (False, 1)
    assert "budget of 20" in verdict.text


def test_starts_without_progress_end() -> None:
    starts = [0, 4, *[7] * MOST_STARTS]
    assert "no step beyond 7" in refuse(restarts=5, budget=20, starts=starts)
    assert not refuse(restarts=5, budget=20, starts=starts[:-1])
    assert not refuse(restarts=5, budget=20, starts=[7, 7, 8])


def test_stops_on_request_are_no_sign_of_a_fault() -> None:
    stopped = end(RunState.STOPPED, 75, was_signalled=True)
    assert judge(stopped, restarts=5, budget=20, starts=[7] * 9).requeue
