"""A trained model in use, typed as a user would: one small run, shared by all tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from bundlerun.launcher.run_folder.adapters import model_state
from bundlerun.launcher.run_folder.checkpoints import RAW, survey
from bundlerun.launcher.run_folder.history import read_rows
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.data.views import MiddleView
from bundlerun.workers.recipes.pixels_scale import Scale
from tests.e2e.test_runs import BIN, LIMIT_S
from tests.ranks.tiny_model import Tiny
from tests.warm import Warm

MODEL = f"{Path(__file__).parents[1] / 'ranks' / 'tiny_model.py'}:build"
CLASSES = ("ape", "bat", "cat")


def image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 120, (20, 24, 3), generator=noise, dtype=torch.uint8)
    pixels[..., number % 3] += 100
    Image.fromarray(pixels.numpy()).save(path)


class Trained:
    """The folder of a run of two stages on two ranks, with its data."""

    def __init__(self, warm: Warm, root: Path) -> None:
        self._warm = warm
        self.root = root
        self.paths = RunPaths(root / "run")
        self.data = root / "data"
        for part, count in (("train", 12), ("val", 9)):
            for number in range(count):
                image(self.data / part / CLASSES[number % 3] / f"{number}.png", number)
        done = self.call(
            "run", "--devices=cpu", "--slots=2", "--shape=1,1", "--cut=second", f"--model={MODEL}",
            "--image-size=16", "--batch-size=6", "--microbatch-size=3", "--epochs=2", "--lr=0.05",
            "--precision=float64", "--model-ema", "--model-ema-steps=1",
            "--run-dir", str(self.paths.root), str(self.data),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def call(self, *words: str) -> Any:
        return self._warm.run([str(BIN / "bundlerun"), *words], timeout=LIMIT_S)

    def json(self, *words: str) -> Any:
        done = self.call(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def trained(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(warm, tmp_path_factory.mktemp("trained"))


def test_the_runs_own_validation_comes_out_to_the_bit_and_alike_in_one_process(
    trained: Trained,
) -> None:
    told = [row for row in read_rows(trained.paths.metrics) if row["kind"] == "eval"][-1]
    run = str(trained.paths.root)
    split = trained.json("evaluate", run, "--shape=1,1", "--devices=cpu", "--slots=2")
    assert (split["loss"], split["metrics"]) == (told["loss"], told["metrics"])
    assert (split["step"], split["num_samples"]) == (told["step"], 9)
    alone = trained.json("evaluate", run, str(trained.data), "--devices=cpu")
    assert alone["loss"] == pytest.approx(told["loss"], rel=1e-12)
    assert alone["metrics"] == told["metrics"]
    # With --model-ema, those of the weights themselves stand beside those of their average.
    assert any(name.startswith(RAW) for name in told["metrics"])
    # Nothing of it is in the run folder, which may be that of a run that goes on.
    assert not trained.paths.evaluation.exists()


def model_of(trained: Trained) -> Tiny:
    model = Tiny(3).double()
    model.load_state_dict(model_state(survey(trained.paths).found[0], average=True))
    return model.eval()


def seen(file: str | Path) -> torch.Tensor:
    """An image as the model gets it in validation."""
    pixels = MiddleView(18, 16)(Image.open(file).convert("RGB"))
    return Scale()(pixels[None]).double()


def test_class_folders_alone_will_do_and_have_the_numbers_that_were_learnt(
    trained: Trained, tmp_path: Path
) -> None:
    run, whole = str(trained.paths.root), trained.data / "val"
    # Without the first class, the folders' own numbers would be others.
    for name in CLASSES[1:]:
        shutil.copytree(whole / name, tmp_path / "two" / name)
    found = trained.json("evaluate", run, str(tmp_path / "two"), "--devices=cpu")
    model = model_of(trained)
    losses = [
        cross_entropy(model(seen(file)), torch.tensor([number])).item()
        for number, name in enumerate(CLASSES[1:], start=1)
        for file in (whole / name).iterdir()
    ]
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    shutil.move(tmp_path / "two" / "bat", tmp_path / "two" / "bats")
    done = trained.call("evaluate", run, str(tmp_path / "two"), "--devices=cpu")
    assert done.returncode == 2
    assert "1 of the 2 classes of DATA are none of the model's 3: 'bats'" in done.stderr


def test_images_are_named_as_the_model_sees_them_in_validation(
    trained: Trained, tmp_path: Path
) -> None:
    folder = trained.data / "val" / "bat"
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    run = str(trained.paths.root)
    done = trained.call("predict", run, str(folder), str(bad), "--devices=cpu", "--json")
    assert done.returncode == 2
    assert f"cannot read the image '{bad}'" in done.stderr
    *answers, last = json.loads(done.stdout)["images"]
    assert last["file"] == str(bad)
    assert "cannot identify" in last["unreadable"]

    model = model_of(trained)
    assert [answer["file"] for answer in answers] == sorted(map(str, folder.iterdir()))
    for answer in answers:
        wanted = model(seen(answer["file"]))[0].softmax(0)
        found = {each["class"]: each["probability"] for each in answer["classes"]}
        assert found == pytest.approx(dict(zip(CLASSES, wanted.tolist(), strict=True)), rel=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_for_people_there_is_a_line_for_each_class(trained: Trained) -> None:
    file = trained.data / "val" / "cat" / "2.png"
    done = trained.call(
        "predict", str(trained.paths.root), str(file), "--top=2", "--checkpoint=best",
        "--devices=cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *rows = done.stdout.splitlines()
    assert first == str(file)
    assert len(rows) == 2
    assert all(row.split()[0] in CLASSES and row.endswith("%") for row in rows)


def test_what_cannot_be_is_one_line(trained: Trained) -> None:
    run = str(trained.paths.root)
    for words, message in (
        (("evaluate", run, "--checkpoint=7"), "no checkpoint of step 7; there are: 2, 4"),
        (("evaluate", run, "--checkpoint=bset"), "is none of: best, newest, a step's number"),
        (("evaluate", run, "--precision=half"), "--precision 'half' is not one of: float32"),
        (("evaluate", run, "/nowhere"), "no data at '/nowhere'"),
        (("predict", run, run), "no image in the folder"),
    ):
        done = trained.call(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith("error: ")
        assert message in done.stderr


def test_the_run_is_repeated_with_the_options_of_its_nodes(trained: Trained) -> None:
    found = trained.json("run", f"--like={trained.paths.root}", "--lr=0.5", "--dry-run")
    like = f"--like {trained.paths.root}"
    assert found["launch"]["slots"] == {"value": 2, "source": like}
    assert found["config"]["model"] == {"value": MODEL, "source": like}
    assert found["config"]["lr"] == {"value": 0.5, "source": "option"}
    assert found["config"]["run_dir"]["source"] == "default"
