"""What a user gets wrong is one line, the right exit code, and no trace on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch.distributed import Store

from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.train import main as train_main
from tests.ranks.harness import outcomes

MODEL = f"{Path(__file__).parents[1] / 'tiny_model.py'}:build"


def end_of(argv: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and stderr of `python -m bundlerun.workers.train ARGV`, in a process of its own."""
    said, code = folder / "said.txt", folder / "code.txt"

    def main(env: RankEnv, store: Store) -> None:
        with said.open("w") as file:
            os.dup2(file.fileno(), 2)
            os.chdir(folder)  # what a run without a folder of its own leaves is left there
            sys.stderr = file
            try:
                found = train_main(argv)
            except SystemExit as exc:
                found = int(exc.code or 0)
            file.flush()
        code.write_text(str(found))

    failures = outcomes((1,), main, folder, 60)
    assert not failures, failures
    return int(code.read_text()), said.read_text()


def images(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (len(name), 100, 50)).save(path)
    return root


def test_weights_of_another_architecture_are_told_before_a_rank_starts(tmp_path: Path) -> None:
    model = torchvision.models.resnet34(num_classes=10)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    argv = ["--shape=1", "--model=resnet50", f"--init-from={tmp_path}/w.pth", "synthetic"]
    code, said = end_of(argv, tmp_path)
    assert (code, said.count("\n")) == (2, 1), said
    assert "w.pth' is of another model than --model resnet50: it has none for " in said
    assert "have another shape, such as 'layer1.0.conv1.weight': 64x64x1x1, in the file 64" in said
    assert "the nearest rule, names as they are, fits " in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model=resnet19", "synthetic"], "unknown --model 'resnet19'; nearest: resnet18"),
        (["--model=hf:.", "synthetic"], "the folder has no config.json; give the folder that"),
        (["--init-from=no.pth", "synthetic"], "--init-from 'no.pth': no such file or folder"),
        (["--new-head", "synthetic"], "--new-head last says what begins anew in spite of --init-f"),
        (["--lora-alpha=8", "synthetic"], "there are none; give their rank, such as --lora 8"),
        (["--freeze=layr3", "synthetic"], "--freeze 'layr3' names no parameters; nearest: layer3"),
        (["--cut=layr3", "synthetic"], "unknown cut 'layr3' of ResNet"),
        ([f"--model={MODEL}", "--cut=a,b,c", "synthetic"], "--cut a,b,c makes 4 stages"),
        (
            ["--shape=1", "--cut=layer3", "synthetic"],
            "--cut layer3 makes 2 stages, --shape 1 has 1",
        ),
        (["--cut=layer3", "--shape=1,1,1", "synthetic"], "give one cut less than stages"),
        (["--cut=99", f"--shape={','.join('1' * 99)}", "synthetic"], "more than the 68 boundaries"),
        (["--cut=3", "synthetic"], "--cut 3 makes 3 equal parts"),
        (["--model=/nowhere.py:build", "synthetic"], "--model '/nowhere.py': no such file"),
        ([f"--model={MODEL}er", "synthetic"], "has no function 'builder'; nearest: build"),
        (["--lr=nan", "synthetic"], "--lr nan must be 0 or more, and finite"),
        (["--timeout-s=0", "synthetic"], "--timeout-s 0.0 must be above 0"),
        (["--shape=1", "--transport=nccl", "synthetic"], "--transport nccl is for GPUs, and"),
        (["--shape=1", "--tf32", "synthetic"], "--tf32 is for GPUs, and this would run on"),
        (["--shape=1", "--precision=float16", "synthetic"], "--precision float16 is for GPUs"),
        (["--recipe=characters", __file__ + ".txt"], "give a text file"),
        (["--recipe=language-model", __file__], "torchvision, which reads no text; give hf:"),
        (
            ["--recipe=language-model", f"--model={MODEL}", __file__],
            "is text, and needs a --tokenizer",
        ),
        (["--recipe=segmentation", "/"], "DATA '/' has no folder 'train/images'; images and"),
        (["--recipe=detection", "/"], "DATA '/' has no annotations for"),
        (["--shape=0", "synthetic"], "--shape 0 has a stage without a device"),
        (["--shape=1,b", "synthetic"], "--shape '1,b' is not whole numbers"),
        (["--batch-size=20", "--microbatch-size=7", "synthetic"], "is not a multiple of"),
        (["--lr=fast", "synthetic"], "--lr 'fast' is not a number"),
        (["--optimizer=sgdd", "synthetic"], "is not one of: sgd, sgd-nesterov, rmsprop"),
        (["--recipe=charcters", "synthetic"], "nearest: characters"),
        (["/nowhere"], "'/nowhere'"),
        (["--config=/nowhere.toml", "synthetic"], "cannot read --config '/nowhere.toml'"),
        ([], "DATA is missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_one_line_and_leaves_nothing(
    argv: list[str], message: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    code, said = end_of([f"--run-dir={run_dir}", *argv], tmp_path)
    assert code == 2
    assert said.startswith("error: ")
    assert message in said
    assert len(said.splitlines()) == 1
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "DATA"),
        (["train/a/1.png"], "has no folder 'val'"),
        (["train/a/1.png", "val/b/1.png"], "are missing in"),
    ],
)
def test_a_data_folder_that_is_laid_out_otherwise_is_refused(
    names: list[str], message: str, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    run_dir = tmp_path / "run"
    code, said = end_of([f"--run-dir={run_dir}", str(images(root, *names))], tmp_path)
    assert (code, len(said.splitlines())) == (2, 1)
    assert message in said
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(:\n", "SyntaxError: invalid syntax"),
        ("import no_such_package\n", "no_such_package"),
    ],
    ids=["syntax", "import"],
)
def test_a_users_file_that_cannot_be_imported_is_one_line(
    text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    run_dir = tmp_path / "run"
    code, said = end_of([f"--run-dir={run_dir}", f"--model={file}:build", "synthetic"], tmp_path)
    assert (code, len(said.splitlines())) == (2, 1)
    assert said.startswith(f"error: --model {str(file)!r} cannot be imported: ")
    assert message in said
    assert not run_dir.exists()


def test_a_run_folder_that_nobody_can_make_is_one_line(tmp_path: Path) -> None:
    code, said = end_of(["--run-dir=/proc/run", "--shape=1", *SMALL, "synthetic"], tmp_path)
    assert code in (2, 3)
    assert said.startswith("error: ")
    assert "--run-dir '/proc/run'" in said
    assert len(said.splitlines()) == 1


def test_typed_as_a_user_would_the_error_is_one_line_too(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "bundlerun.workers.train",
        f"--run-dir={tmp_path / 'run'}",
        "/nowhere",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: DATA '/nowhere' does not exist")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def small_folder(tmp_path: Path) -> Path:
    names = [f"{part}/{c}/{i}.png" for part in ("train", "val") for c in "ab" for i in range(4)]
    root = images(tmp_path / "data", *names)
    (root / "train" / "b" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return root


SMALL = [f"--model={MODEL}", "--image-size=8", "--augment=none", "--batch-size=4", "--epochs=1"]


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    root = small_folder(tmp_path)
    code, said = end_of([f"--run-dir={tmp_path / 'run'}", *SMALL, str(root)], tmp_path)
    assert code == 2
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "b/2.png" in errors[0]
    assert "--skip-unreadable" in errors[0]
    assert "Traceback" not in said


def test_an_unreadable_image_is_passed_over_and_counted_when_asked(tmp_path: Path) -> None:
    root = small_folder(tmp_path)
    argv = [f"--run-dir={tmp_path / 'run'}", "--skip-unreadable", *SMALL, str(root)]
    code, said = end_of(argv, tmp_path)
    assert code == 0, said
    assert "unreadable   1 " in said


def test_an_unknown_toml_key_comes_with_the_nearest(tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text("batchsize = 3\n")
    code, said = end_of([f"--config={toml}", "synthetic"], tmp_path)
    assert code == 2
    assert "unknown key 'batchsize'" in said
    assert "nearest: batch-size" in said


def test_a_run_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, said = end_of([f"--run-dir={tmp_path / 'file' / 'run'}", *SMALL, "synthetic"], tmp_path)
    assert code == 3
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1


def test_a_first_step_without_memory_is_not_tried_again(tmp_path: Path) -> None:
    model = tmp_path / "hungry.py"
    model.write_text(
        "from torch import nn\n"
        "class Hungry(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(1, 10)\n"
        "    def forward(self, x):\n"
        "        if self.training and len(x) == 8:\n"
        "            raise MemoryError\n"
        "        return self.head(x.mean((1, 2, 3))[:, None])\n"
        "def build(n):\n"
        "    return Hungry()\n"
    )
    words = f"--model={model}:build --shape=1 --image-size=8 --batch-size=8 --microbatch-size=8"
    code, said = end_of([*words.split(), f"--run-dir={tmp_path / 'run'}", "synthetic"], tmp_path)
    assert code == 2, said
    assert "use --microbatch-size 4" in said


def test_a_model_that_cannot_be_cut_is_told_of_the_shape_that_does_not_cut(tmp_path: Path) -> None:
    model = tmp_path / "uncut.py"
    model.write_text(
        "from torch import nn\n"
        "class Branches(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(3, 10)\n"
        "    def forward(self, x):\n"
        "        x = self.head(x.mean((2, 3)))\n"
        "        return x if x.sum() > 0 else -x\n"
        "def build(n):\n"
        "    return Branches()\n"
    )
    words = f"--model={model}:build --cutter=graph --image-size=8 synthetic"
    code, said = end_of(words.split(), tmp_path)
    assert code == 2
    assert "or train the model uncut, with --shape 1" in said
