"""Weights to begin with, typed as a user would: a file, then what became of it, then that run."""

from __future__ import annotations

from pathlib import Path

import torch

from bundlerun.launcher.run_folder.checkpoints import read_tensors, survey
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.e2e.test_runs import BIN, LIMIT_S, train_words
from tests.ranks.tiny_model import Tiny
from tests.warm import Warm


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    newest = survey(RunPaths(run_dir)).found[0]
    return read_tensors(newest, [n for n in newest.weight_map if n.startswith("model.")])


def told(warm: Warm, run_dir: Path, **options: object) -> str:
    words = [str(BIN / "bundlerun"), "run", "--nproc-per-node=2", "--no-validate"]
    done = warm.run([*words, *train_words(run_dir, **options)], timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return str(done.stderr)


def test_a_run_begins_with_a_file_goes_on_without_it_and_another_begins_with_that_run(
    warm: Warm, tmp_path: Path
) -> None:
    file, first, second = tmp_path / "w.pth", tmp_path / "first", tmp_path / "second"
    state = Tiny(3).state_dict()
    torch.save({"epoch": 4, "state_dict": {f"module.{n}": t for n, t in state.items()}}, file)
    frozen = {"freeze": "first", "init_from": file}
    said = told(warm, first, max_steps=2, **frozen)
    lines = said.splitlines()
    (at,) = [n for n, line in enumerate(lines) if line.startswith(f"weights from {file}: 15 of 17")]
    assert lines[at].endswith("; names without 'module.'")
    assert lines[at + 1] == (
        "not loaded: head.weight, head.bias begin anew (as 10 outputs, in the file 3)"
    )
    assert lines[at + 2].startswith("frozen: 1 of 11 parameters, ")
    assert torch.equal(weights_of(first)["model.first.weight"], state["first.weight"])
    # It goes on: the file is not needed any more.
    file.unlink()
    said = told(warm, first, max_steps=4, **frozen)
    assert said.count("the run goes on from its checkpoint: --init-from is not read") == 1
    assert "weights from" not in said
    # What is frozen has nothing to miss.
    assert "begin from nothing" not in said
    # Another run, of another division, begins with what became of it; its rate moves nothing.
    said = told(warm, second, max_steps=1, lr=0.0, cut="third", init_from=first)
    assert f"weights from {first}: 17 of 17 tensors" in said
    begun, before = weights_of(second), weights_of(first)
    for name, tensor in before.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(begun[name], tensor), name
    # And weights of another model are told before a rank starts.
    torch.save({"other.weight": torch.zeros(2)}, file)
    words = [str(BIN / "bundlerun"), "run", "--nproc-per-node=2"]
    third = train_words(tmp_path / "third", init_from=file)
    done = warm.run([*words, *third], timeout=LIMIT_S)
    assert done.returncode == 2
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert "it has none for 17 of the 17 tensors, such as 'first.weight'" in line
    assert not list((tmp_path / "third").glob("logs/*/*/attempt_0"))
