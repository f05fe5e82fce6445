import argparse
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import resnet18
from torchvision.transforms import InterpolationMode, v2

from bundlerun.launcher.commands.arguments.use.export import add_arguments
from bundlerun.launcher.commands.use import export
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import BundleError, CheckpointError, ConfigError, NodeError
from bundlerun.launcher.run_folder.checkpoints import Checkpoint, Progress
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.model.stage import checked_about
from bundlerun.workers.recipe import load_recipe, model_inputs
from bundlerun.workers.state.checkpoint import Checkpoints
from bundlerun.workers.state.named import state_tensors


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return parser.parse_args(argv)


def write(paths: RunPaths, step: int, *parts: dict[str, torch.Tensor], top1: float) -> None:
    checkpoints = Checkpoints(paths, keep=9)
    written = [checkpoints.write_part(step, f"stage-{i}", p) for i, p in enumerate(parts)]
    progress = Progress(
        step=step, epoch=1, step_in_epoch=0, samples_seen=0, metrics={"top1": top1}, score=top1
    )
    checkpoints.commit(step, written, progress)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Three checkpoints of a small model; the middle one is the best."""
    folder = tmp_path / "run"
    for step, top1 in ((1, 0.1), (2, 0.9), (3, 0.5)):
        part = {
            "model.a": torch.tensor([float(step)]),
            "optimizer.a.momentum_buffer": torch.ones(1),
            **({"ema.a": torch.tensor([step + 0.5])} if step > 1 else {}),
        }
        write(RunPaths(folder), step, part, top1=top1)
    return folder


def test_torchvision_loads_the_export_strictly_and_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images = torch.randn(4, 3, 64, 64)
    model(images).sum().backward()
    optimizer.step()
    state = state_tensors(model, optimizer)
    parts = [
        {n: t for n, t in state.items() if (".layer3" in n or ".layer4" in n or ".fc" in n) is rear}
        for rear in (False, True)
    ]
    write(RunPaths(tmp_path / "run"), 1, *parts, top1=0.5)

    for name in ("model.safetensors", "model.pt"):
        output = tmp_path / name
        assert export.run(parse(str(tmp_path / "run"), "-o", str(output))) == 0
        found = load_file(output) if name.endswith("rs") else torch.load(output, weights_only=True)
        plain = resnet18(num_classes=10)
        plain.load_state_dict(found, strict=True)
        assert torch.equal(plain.eval()(images), model.eval()(images))
        assert int(found["bn1.num_batches_tracked"]) == 1


@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize("suffix", export.SUFFIXES)
def test_files_have_the_mode_that_the_umask_gives(
    run_folder: Path, suffix: str, umask: int
) -> None:
    before = os.umask(umask)
    try:
        export.run(parse(str(run_folder), "-o", str(run_folder / f"m{suffix}")))
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in run_folder.glob(f"m{suffix}*")}
    assert modes == {0o666 & ~umask}


@pytest.mark.parametrize("augment", ["none", "imagenet"])
def test_the_exports_json_has_the_classes_and_rebuilds_the_preprocessing(
    tmp_path: Path, augment: str
) -> None:
    """Compared with what validation does, through an image folder and a real checkpoint."""
    for name in ("train/cat", "train/ape", "val/cat", "val/ape"):
        (tmp_path / "data" / name).mkdir(parents=True)
        noise = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(tmp_path / "data" / name / "a.png")
    config = TrainConfig(
        data=str(tmp_path / "data"), run_dir=str(tmp_path), image_size=32, augment=augment
    )
    recipe = load_recipe(config)
    data = recipe.open_data()
    paths = RunPaths(tmp_path)
    checkpoints = Checkpoints(paths, keep=9, config=config, about=checked_about(data.about))
    part = checkpoints.write_part(1, "stage-0", {"model.a": torch.ones(1)})
    checkpoints.commit(1, [part], Progress(step=1, epoch=1, step_in_epoch=0, samples_seen=2))
    export.run(parse(str(tmp_path), "-o", str(tmp_path / "m.safetensors")))

    about = json.loads((tmp_path / "m.safetensors.json").read_text())
    assert (about["model"], about["classes"]) == ("resnet18", ["ape", "cat"])
    known = about["preprocessing"]
    transform = v2.Compose(  # as in docs/checkpoints.md
        [
            v2.Resize(known["resize"], InterpolationMode(known["interpolation"])),
            v2.CenterCrop(known["center_crop"]),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(known["mean"], known["std"]),
        ]
    )
    image = Image.open(tmp_path / "data" / "val" / "ape" / "a.png").convert(known["color"])
    assert data.val is not None
    assert torch.equal(transform(image), model_inputs(recipe, data.val[0][:1])[0])


@pytest.mark.parametrize(
    ("options", "step"),
    [((), 3), (("--best",), 2), (("--step", "1"), 1), (("--ema",), 3), (("--best", "--ema"), 2)],
    ids=str,
)
def test_the_checkpoint_can_be_chosen(
    run_folder: Path, options: tuple[str, ...], step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run_folder / "out.safetensors"

    export.run(parse(str(run_folder), "-o", str(output), *options))

    assert load_file(output)["a"].item() == step + ("--ema" in options) / 2
    assert capsys.readouterr().out.startswith(f"{output}: 1 tensors of step {step};")


def test_metrics_are_those_of_what_is_exported() -> None:
    both = {"top1": 0.9, "raw_top1": 0.8, "raw_loss": 0.7}
    progress = Progress(step=1, epoch=1, step_in_epoch=0, samples_seen=0, metrics=both)
    checkpoint = Checkpoint(folder=Path("x"), progress=progress, parts=(), config={}, versions={})
    assert export.about_model(checkpoint)["metrics"] == {"top1": 0.8, "loss": 0.7}
    assert export.about_model(checkpoint, average=True)["metrics"] == {"top1": 0.9}


def test_a_damaged_newest_one_is_passed_over_but_not_one_asked_for(run_folder: Path) -> None:
    path = RunPaths(run_folder).checkpoint(3) / "stage-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    output = run_folder / "out.pt"

    export.run(parse(str(run_folder), "-o", str(output)))

    assert torch.load(output)["a"].item() == 2
    with pytest.raises(CheckpointError, match=r"is damaged: stage-0\.safetensors does not match"):
        export.run(parse(str(run_folder), "-o", str(output), "--step", "3"))


@pytest.mark.parametrize(
    ("argv", "kind", "says"),
    [
        (("{run}", "-o", "{run}/m.bin"), ConfigError, "must end in one of: .safetensors, .pt"),
        (("{run}", "-o", "{run}/no/m.pt"), ConfigError, "/no' of --output does not exist"),
        (("{run}/no", "-o", "{run}/m.pt"), ConfigError, "run folder .* does not exist"),
        (("{run}/..", "-o", "{run}/m.pt"), CheckpointError, "there is no checkpoint in"),
        (("{run}", "-o", "{run}/m.pt", "--step", "7"), ConfigError, "there are: 1, 2, 3"),
        (("{run}", "-o", "{run}/m.pt", "--step=1", "--ema"), ConfigError, "no average of the w"),
    ],
    ids=["suffix", "output folder", "run folder", "no checkpoint", "step", "average"],
)
def test_what_cannot_be_exported_is_said(
    run_folder: Path, argv: tuple[str, ...], kind: type[BundleError], says: str
) -> None:
    before = sorted(run_folder.rglob("*"))

    with pytest.raises(kind, match=says):
        export.run(parse(*(word.format(run=run_folder) for word in argv)))

    assert sorted(run_folder.rglob("*")) == before


@pytest.mark.parametrize("suffix", export.SUFFIXES)
def test_a_failed_write_leaves_the_old_file_and_no_other(
    run_folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = run_folder / f"model{suffix}"
    output.write_text("the old one")
    before = sorted(run_folder.rglob("*"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(NodeError, match=r"cannot write --output .*No space left"):
        export.run(parse(str(run_folder), "-o", str(output)))

    assert output.read_text() == "the old one"
    assert sorted(run_folder.rglob("*")) == before


@pytest.mark.parametrize("num_replaced", [0, 1])
def test_a_kill_leaves_no_words_about_other_weights(
    run_folder: Path, num_replaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = run_folder / "model.safetensors"
    beside = run_folder / "model.safetensors.json"
    export.run(parse(str(run_folder), "-o", str(output), "--step", "1"))
    replace, left = Path.replace, [num_replaced]

    def killed(self: Path, target: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export.run(parse(str(run_folder), "-o", str(output), "--step", "3"))

    assert load_file(output)["a"].item() == (3 if num_replaced else 1)
    assert not beside.exists()
    monkeypatch.undo()
    export.run(parse(str(run_folder), "-o", str(output), "--step", "3"))
    assert json.loads(beside.read_text())["step"] == 3


def test_best_needs_metrics(tmp_path: Path) -> None:
    write(RunPaths(tmp_path), 1, {"model.a": torch.zeros(1)}, top1=float("nan"))

    with pytest.raises(ConfigError, match="--best needs a checkpoint with a validation"):
        export.run(parse(str(tmp_path), "-o", str(tmp_path / "m.pt"), "--best"))


def test_a_step_that_is_broken_is_not_said_to_be_missing(run_folder: Path) -> None:
    (RunPaths(run_folder).checkpoint(3) / "stage-0.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"step-000000003.*stage-0\.safetensors is missing"):
        export.run(parse(str(run_folder), "-o", str(run_folder / "m.pt"), "--step", "3"))


def test_the_arguments_leave_room_for_the_command_lines_own(run_folder: Path) -> None:
    assert not hasattr(parse(str(run_folder), "-o", "m.pt"), "run")
