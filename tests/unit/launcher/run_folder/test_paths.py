from dataclasses import replace
from pathlib import Path

from bundlerun.launcher.run_folder.paths import RunPaths, SnapshotPaths


def test_every_path_lies_in_the_run_folder() -> None:
    run = RunPaths(Path("runs/a b"))
    paths = [run.config, run.metrics, run.summary, run.checkpoints, run.tensorboard, run.logs]
    assert {path.parent for path in paths} == {Path("runs/a b")}
    assert len(set(paths)) == len(paths)


def test_checkpoints_sort_by_step_and_logs_by_node() -> None:
    run = RunPaths(Path("r"))
    assert sorted([run.checkpoint(10), run.checkpoint(9)])[0] == run.checkpoint(9)
    assert run.node_logs("n1").parent == run.logs


def test_snapshots_of_runs_nodes_and_users_lie_apart() -> None:
    paths = SnapshotPaths(root=Path("/m"), uid=7, run="id /a b", node_name="a/../b c")
    others = [
        replace(paths, run="id /a"),
        replace(paths, node_name="a"),
        replace(paths, uid=8),
        replace(paths, root=Path("/n")),
    ]
    assert len({p.folder for p in [paths, *others]}) == 5
    assert paths.folder.parent == Path("/m")
    assert len(replace(paths, node_name="x" * 1000).folder.name) < 255
    assert paths.piece("token", "role").parent == paths.folder == paths.lock(paths.folder).parent
