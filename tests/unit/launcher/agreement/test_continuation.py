from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundlerun.launcher.agreement.agreed import terms_of
from bundlerun.launcher.agreement.continuation import changed_lines, has_begun, keep_terms, why_done
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.meeting.default_folder import default_folder, entered, point_latest
from bundlerun.launcher.options.declared import Resolved
from bundlerun.launcher.run_folder.checkpoints import MANIFEST, Progress, manifest_text
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.outcome import Outcome, write_outcome
from bundlerun.launcher.run_folder.paths import RunPaths


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """A run that has done a step."""
    found = RunPaths(tmp_path)
    keep_terms(found, terms_of(config()))
    write_text(found.metrics, json.dumps({"kind": "step", "step": 4}) + "\n")
    return found


def config(**values: object) -> TrainConfig:
    return TrainConfig(**{"data": "synthetic", **values})  # type: ignore[arg-type]


def test_the_same_again_is_nothing_to_tell(paths: RunPaths) -> None:
    assert changed_lines(paths, terms_of(config())) == []


def test_what_may_change_is_told_in_a_line_each(paths: RunPaths) -> None:
    changed = config(lr=0.2, epochs=3, shape=Shape((1,)), threads=3)
    assert changed_lines(paths, terms_of(changed)) == [
        "--shape was 1,1, is 1",
        "--epochs was 90, is 3",
        "--lr was 0.1, is 0.2",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"model": "vgg11"},
        {"num_classes": 7},
        {"optimizer": "adamw"},
        {"batch_size": 128},
        {"seed": 1},
        {"synthetic_samples": 2048},
    ],
    ids=str,
)
def test_what_a_run_cannot_go_on_with_is_refused(
    paths: RunPaths, values: dict[str, object]
) -> None:
    (name, value), *_ = values.items()
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError, match=rf"cannot go on so: {flag} was \S+, is {value}; give"):
        changed_lines(paths, terms_of(config(**values)))


def test_other_data_is_refused_wherever_it_lies(paths: RunPaths, tmp_path: Path) -> None:
    one, copy, other = (tmp_path / name for name in ("one.txt", "copy.txt", "other.txt"))
    for file, text in ((one, "a"), (copy, "a"), (other, "b")):
        file.write_text(text * 2000)
    keep_terms(paths, terms_of(config(data=str(one))))
    assert changed_lines(paths, terms_of(config(data=str(copy)))) == []
    with pytest.raises(ConfigError, match=r"DATA was a file of 2000 bytes .*, is a file of 2000"):
        changed_lines(paths, terms_of(config(data=str(other))))


def test_a_model_file_may_change_and_is_told_but_not_give_way_to_another(
    paths: RunPaths, tmp_path: Path
) -> None:
    file, other = tmp_path / "m.py", tmp_path / "n.py"
    for each in (file, other):
        each.write_text("def build(): ...\n")
    keep_terms(paths, terms_of(config(model=f"{file}:build")))
    file.write_text("def build(): ...  # a comment\n")
    (line,) = changed_lines(paths, terms_of(config(model=f"{file}:build")))
    assert line.startswith("content of --model was ")
    with pytest.raises(ConfigError, match=r"--model was m.py:build, is n.py:build; give"):
        changed_lines(paths, terms_of(config(model=f"{other}:build")))


def test_a_folder_without_a_step_binds_nobody(paths: RunPaths) -> None:
    write_text(paths.metrics, json.dumps({"kind": "start"}) + "\n")
    assert not has_begun(paths)
    assert changed_lines(paths, terms_of(config(seed=1))) == []


def test_a_start_that_was_refused_leaves_the_terms_as_they_were(paths: RunPaths) -> None:
    before = paths.terms.read_text()
    with pytest.raises(ConfigError):
        changed_lines(paths, terms_of(config(seed=1)))
    assert paths.terms.read_text() == before


def test_an_outcome_without_its_checkpoint_is_no_reason_to_do_nothing(paths: RunPaths) -> None:
    write_outcome(paths, Outcome(state="done", exit_code=0, reason="", step=4))
    assert why_done(paths, config(max_steps=4)) == ""


def test_a_run_that_is_done_says_so_and_goes_on_where_more_is_asked_for(paths: RunPaths) -> None:
    progress = Progress(step=4, epoch=2, step_in_epoch=0, samples_seen=64)
    write_text(paths.checkpoint(4) / MANIFEST, manifest_text(progress, [], {}, {}))
    write_outcome(paths, Outcome(state="done", exit_code=0, reason="", step=4))
    assert "is done already, after step 4; give --epochs above 2" in why_done(
        paths, config(epochs=2)
    )
    assert "give --max-steps above 4" in why_done(paths, config(max_steps=4))
    assert why_done(paths, config(epochs=3)) == ""
    write_outcome(paths, Outcome(state="stopped", exit_code=75, reason="", step=4))
    assert why_done(paths, config(epochs=2)) == ""


def launch(**values: object) -> Resolved[LaunchConfig]:
    sources = {name: "option" for name in values}
    return Resolved(LaunchConfig(**values), sources)  # type: ignore[arg-type]


def folder_of(
    launch: Resolved[LaunchConfig], environ: dict[str, str], *, is_typed: bool = False
) -> Path | None:
    return default_folder(launch, environ, is_typed=is_typed)


def test_a_node_alone_has_a_new_folder_each_time() -> None:
    first, second = folder_of(launch(), {}), folder_of(launch(), {})
    assert first is not None
    assert second is not None
    assert first != second
    assert first.parent == Path("runs")


def test_nodes_of_a_named_job_have_one_folder() -> None:
    nodes = {"nnodes": "2", "rdzv_endpoint": "a:1"}
    assert folder_of(launch(**nodes, rdzv_id="job 7/b"), {}) == Path("runs/job 7%2Fb")
    assert folder_of(launch(**nodes), {}) is None


def test_all_starts_of_a_slurm_job_have_one_folder() -> None:
    environ = {"SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
    assert folder_of(launch(), environ) == Path("runs/slurm-7.0")
    again = environ | {"SLURM_RESTART_COUNT": "2"}
    assert folder_of(launch(), again) == Path("runs/slurm-7.0")


def test_runs_that_are_typed_in_a_shell_of_slurm_have_a_new_folder_each() -> None:
    environ = {
        "SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7",
        "SLURM_STEP_NUM_TASKS": "1",
    }  # fmt: skip
    first, second = (folder_of(launch(), environ, is_typed=True) for _ in range(2))
    assert first != second
    assert not {first, second} & {Path("runs/slurm-7.0")}
    assert folder_of(launch(), environ) == Path("runs/slurm-7.0")
    for more in ({"SLURM_STEP_NODELIST": "n[1-2]"}, {"SLURM_STEP_NUM_TASKS": "2"}):
        assert folder_of(launch(), environ | more, is_typed=True) == Path("runs/slurm-7.0")


def test_latest_leads_to_the_newest_and_is_entered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path("runs", name).mkdir(parents=True)
        point_latest(Path("runs", name))
    assert entered(Path("runs/latest")) == Path("runs/b")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["a", "b", "latest"]
    point_latest(tmp_path / "elsewhere")
    point_latest(tmp_path / "runs" / "b")
    assert entered(Path("runs/latest")) == Path("runs/b")


def test_a_folder_named_latest_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs", "latest").mkdir(parents=True)
    point_latest(Path("runs", "a"))
    assert not Path("runs", "latest").is_symlink()
