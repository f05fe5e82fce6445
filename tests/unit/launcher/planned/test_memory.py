"""The memory of a plan, as `bundlerun plan --memory` shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bundlerun.launcher.agreement.profile_key import profile_key
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.options.declared import Resolved
from bundlerun.launcher.plan import LaunchPlan, plan_elsewhere
from bundlerun.launcher.planned import memory as plan_memory
from bundlerun.launcher.planned.memory import (
    PlanMemory,
    kept_profile,
    known_shortfalls,
    typed_cuts,
)
from bundlerun.launcher.planning import profile_file
from bundlerun.launcher.planning.cluster import Cluster, Link, NodeKind
from bundlerun.launcher.planning.model_costs import (
    Boundary,
    ModelCosts,
    Piece,
    Profile,
    UpdateCosts,
)
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.train_argv import read_train_argv
from tests.unit.launcher.test_plan import resolved_launch

MIB = 1 << 20
WORDS = ("--shape=1,1", "--batch-size=32", "--microbatch-size=8", "--cut=b", "--threads=1")


def plan_of(folder: Path, *words: str) -> LaunchPlan:
    train = read_train_argv([f"--run-dir={folder}", *WORDS, *words, "synthetic"], {})
    return plan_elsewhere((2,), train, resolved_launch())


def profile_of(plan: LaunchPlan) -> Profile:
    piece = Piece(kept_bytes=8 * MIB, parameter_bytes=MIB, trained_bytes=MIB)
    costs = ModelCosts(
        samples=8,
        pieces=(piece,) * 3,
        boundaries=tuple(
            Boundary(name=name, forward_bytes=MIB, backward_bytes=MIB) for name in "ab"
        ),
    )
    key = profile_key(plan.train.value, kind="cpu", threads=1)
    update = UpdateCosts(state_share=1.0)
    return Profile(key=key, by_samples=(costs,), update=update, program_bytes=300 * MIB)


def kept(folder: Path, *words: str) -> LaunchPlan:
    plan = plan_of(folder, *words)
    folder.mkdir(exist_ok=True)
    profile_file.write(RunPaths(folder).model_profile, profile_of(plan))
    return plan


def test_a_kept_profile_and_cuts_by_name_need_no_torch(tmp_path: Path) -> None:
    kept(tmp_path / "run")
    words = ["plan", "--nodes=2", "--memory", "--json", f"--run-dir={tmp_path / 'run'}", *WORDS]
    program = (
        "import sys; from bundlerun.launcher.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, *words, "synthetic"], capture_output=True, check=True
    )
    memory = json.loads(found.stdout)["memory"]
    assert memory["source"] == "by the profile in the run folder"
    front, rear = memory["ranks"]
    # Two micro-batches of two pieces are in flight in front; messages count half.
    assert front["activations"] == 2 * 2 * 8 * MIB
    assert rear["activations"] == 8 * MIB
    assert front["snapshot"] == 2 * 2 * 2 * MIB
    assert memory["too_little"] == []


def test_what_does_not_fit_is_one_line_with_what_would(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    kind = NodeKind(name="a", count=1, devices=3, device_bytes=30 * MIB)
    where = Cluster(kinds=(kind,), between=Link(bytes_per_s=1e9))
    found = PlanMemory.of(plan, profile_of(plan), (1,), where)
    (line,) = found.warnings()
    assert line == (
        "stage 0 needs 41.0 MiB of a device, 11,534,336 bytes over the 30.0 MiB that it has; "
        "--microbatch-size 4, --recompute 0 or --shape 1,1,1 would fit"
    )
    assert found.lines()[-1] == f"! {line}"
    assert found.document()["would_fit"] == [
        "--microbatch-size 4", "--recompute 0", "--shape 1,1,1"
    ]  # fmt: skip


def test_default_cuts_are_for_the_model_to_say(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    profile = profile_of(plan)
    assert typed_cuts(plan, profile) == (1,)
    assert typed_cuts(with_values(plan, cut=("elsewhere",)), profile) is None
    assert typed_cuts(with_values(plan, cut=()), profile) is None
    assert typed_cuts(with_values(plan, cut=(), shape=Shape((1,))), profile) == ()


def with_values(plan: LaunchPlan, **values: object) -> LaunchPlan:
    train = plan.train
    config = replace(train.value, **values)  # type: ignore[arg-type]
    return replace(plan, train=Resolved(config, train.sources))


def test_a_profile_of_other_options_is_ignored(tmp_path: Path) -> None:
    kept(tmp_path / "run")
    assert kept_profile(plan_of(tmp_path / "run")).profile is not None
    found = kept_profile(plan_of(tmp_path / "run", "--image-size=32"))
    assert found.profile is None
    assert "is ignored" in found.why_not


def test_a_run_is_told_what_its_kept_profile_says_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path / "run")
    assert known_shortfalls(plan) == []
    kept(tmp_path / "run")
    assert known_shortfalls(plan) == []
    kind = NodeKind(name="a", count=1, devices=2, device_bytes=30 * MIB)
    small = Cluster(kinds=(kind,), between=Link(bytes_per_s=1e9))
    monkeypatch.setattr(plan_memory, "cluster_of", lambda _: small)
    (line,) = known_shortfalls(plan)
    assert line.startswith("stage 0 needs 41.0 MiB")
    assert known_shortfalls(with_values(plan, cut=())) == []
