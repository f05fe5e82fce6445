from pathlib import Path

from launcher.paths import RunPaths


def test_every_path_lies_in_the_run_folder() -> None:
    run = RunPaths(Path("runs/a b"))
    paths = [run.config, run.metrics, run.summary, run.checkpoints, run.tensorboard, run.logs]
    assert {path.parent for path in paths} == {Path("runs/a b")}
    assert len(set(paths)) == len(paths)


def test_checkpoints_sort_by_step_and_logs_by_node() -> None:
    run = RunPaths(Path("r"))
    assert sorted([run.checkpoint(10), run.checkpoint(9)])[0] == run.checkpoint(9)
    assert run.node_logs("n1").parent == run.logs
