"""The wheel, installed where a project has folders of our packages' names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
FOLDERS = ("bundlerun", "launcher", "workers", "splits", "slurm")
FILES = ("pyproject.toml", "README.md", "LICENSE")
LIMIT_S = 200
PROJECT = {
    "launcher/__init__.py": "raise RuntimeError('this launcher is the project's own')",
    "splits/__init__.py": "",
    "slurm/__init__.py": "",
    "workers/__init__.py": "",
    "workers/blocks.py": "from torch import nn\nhead = lambda n: nn.Linear(64, n)",
    "model.py": (
        "from torch import nn\n"
        "from workers.blocks import head\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, n):\n"
        "        super().__init__()\n"
        "        self.flat, self.front, self.rear = nn.Flatten(), nn.LazyLinear(64), head(n)\n"
        "    def forward(self, x):\n"
        "        return self.rear(self.front(self.flat(x)))\n"
        "def build(n):\n"
        "    net = Net(n)\n"
        "    net.front = nn.Linear(3 * 8 * 8, 64)\n"
        "    return net\n"
    ),
}


def ran(words: Sequence[str], cwd: Path) -> str:
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, and everything else of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in FOLDERS:  # a build in the checkout would leave files there
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    ran([*pip, *build, str(source)], folder)
    ran([sys.executable, "-m", "venv", "--without-pip", "venv"], folder)
    python = folder / "venv/bin/python"
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    (packages / "others.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    (wheel,) = folder.glob("*.whl")
    ran([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], folder)
    return python.parent


@pytest.mark.parametrize(
    "start",
    [
        ("python", "-m", "bundlerun.workers.train", "--shape=1"),
        ("bundlerun", "run", "--shape=1,1", "--nproc-per-node=2"),
        ("python", "-m", "bundlerun", "run", "--shape=1"),
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_a_project_with_folders_of_our_names_trains_its_own_model(
    installed: Path, start: Sequence[str], tmp_path: Path
) -> None:
    for name, text in PROJECT.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    model = ["--model=model.py:build", "--image-size=8", "--augment=none"]
    size = ["--batch-size=8", "--synthetic-samples=16", "--epochs=1"]
    program = [str(installed / start[0]), *start[1:]]
    told = ran([*program, *model, *size, "--run-dir=run", "synthetic"], tmp_path)
    assert "2 steps" in told
    assert (tmp_path / "run/metrics.jsonl").is_file()
