"""How commands of pages are run on one machine: what stands in for the user's, what is left out.

A command of a page is either run as it is typed, with tiny data in place of the user's, or has a
line in `LEFT_OUT` with the reason. One that is neither, as its program is unknown, is an error.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit.docs.pages import ROOT, blocks, inline, typed_lines, words_of

_NAMED = "named in a sentence, not to be typed as it is"
LEFT_OUT: tuple[tuple[str, str], ...] = (
    (r"\.\.\.|^docker run --shm-size\S*$", "a part of a command"),
    (r"^(bundlerun|srun|sky|accelerate|pip|mpirun)( -?-?[a-z-]+){1,2}(?<!--quick)$", _NAMED),
    (r"^torchrun( --\S+)+$|^PET_\S+ bundlerun run$|^bundlerun submit --nodes \S+$", _NAMED),
    (r"--model M$|^python -m bundlerun\S+$", _NAMED),
    (r"^make (?!help)", "takes minutes; CI types test, lint and type"),
    (r"^python -m (benchmarks|tests\.)", "takes minutes, and is about all of the house"),
    (r"^pip install|^git clone", "the network; tests/package.sh installs"),
    (r"^docker|^kubectl|^sky|^torchx|^helm", "a cluster or a program; tests/deploy.sh has them"),
    (r"^sbatch|^srun|^RUN_DIR=\S+ .*sbatch|JOB$", "a Slurm; tests/slurm has one"),
    (r"^mpirun|^accelerate", "another launcher; tests/launchers has them"),
    (r"--peers", "several machines; tests/e2e/test_doctor.py has them"),
    (r"--cluster ", "the user's file; tests/unit/launcher/planning/test_cluster_file.py has some"),
    (r"hf:FOLDER|\bvit\.safetensors", "files of a model; tests/ranks/training/test_initial.py"),
    (r"gpt\.py|tokens\.bin", "the user's file; tests/e2e/test_language_model.py has one"),
    (r"classifier\.py|train\.py", "the user's file; tests/unit/docs/test_code.py has the page's"),
    (
        r"--recipe (segmentation|detection)",
        "data of its own; tests/ranks/training/test_detection.py",
    ),
    (r"--tracker", "an extra; tests/unit/launcher/trackers has them"),
    (r"\.onnx|--format library", "an extra; tests/unit/launcher/commands/use/test_export.py"),
    (r"--ema\b", "a run that was trained with --ema; tests/ranks/state"),
    (r"--step 120", "a run of 120 steps; tests/e2e/test_use.py"),
    (r"^pkill", "ends what is not the test's; tests/e2e/test_faults.py kills ranks"),
    (r"completion", "an extra; tests/unit/launcher/commands/test_completion.py"),
    (
        r"--config (resnet50-v2|vit-b-16)",
        "minutes on a CPU; tests/ranks/training/test_references.py",
    ),
    (r"--compile", "a compiler; tests/ranks/training/test_variants.py"),
    (r"--rank 3|--node node1", "of a run on more nodes; tests/unit/launcher/commands/look"),
    (r"bundlerun (drain|track)\b", "a run that is on; tests/unit/launcher/commands"),
    (r"^\. \.venv|^\. ", "of the reader's shell"),
)
"""Patterns of commands that are not run, and why."""
PROGRAMS = re.compile(
    r"bundlerun|torchrun|python3?|make|pip|docker|sky|torchx|sbatch|srun|mpirun|accelerate|"
    r"kubectl|helm|git|tail|pkill|\."
)
"""What commands begin with. A line of a block that begins otherwise is output, or Python."""
_SHELLS = ("sh", "bash", "console")
_REPLACED: tuple[tuple[str, str], ...] = (
    (r"/data/imagenet\b|\bDATA\b", "photos"),
    (r"/shared/", "shared/"),
    (r"path/to/file\.py", "my_model.py"),
    (r"\bRUN_DIR\b|\bOTHER_DIR\b|\bRUN\b", "runs/ready"),
    (r"(?<=(?:us|rt|gs|hy|ct|te) )runs/\S+", "runs/ready"),  # status, export, logs, why, predict
    (r"--nnodes[ =]\S+", "--nnodes=1"),
    (r"--rdzv-endpoint[ =]\S+", "--rdzv-endpoint=127.0.0.1:PORT"),
    (r"--nproc-per-node=4", "--nproc-per-node=2"),
    (r"bundlerun submit", "bundlerun submit --dry-run"),
    (r"bundlerun classic", "bundlerun classic --dry-run"),
    (r"\bcat\.jpg pictures/|\b(image|cat)\.jpg", "photos/val/red/0.png"),
    (r"--batch-size (256|64)\b", "--batch-size 16"),
    (r"--image-size \d+", "--image-size 32"),
    (r"--epochs \d", "--epochs 1"),
)
"""What of a command is another one here: places, sizes, numbers of nodes."""


@dataclass(frozen=True, slots=True)
class Commands:
    """Those of a page, in order: to run, left out with the reason, and not known."""

    run: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def first_word(line: str) -> str:
    """The program of a line, after variables."""
    return re.sub(r"^([A-Z][A-Z_0-9]*=\S+\s+)+", "", line).partition(" ")[0]


def commands_of(page: Path) -> Commands:
    """What a page tells to type."""
    text = page.read_text(encoding="utf-8")
    found = Commands()
    lines = [line for line in typed_lines(text) if line]
    spoken = [code for code in inline(text) if " " in code]
    shells = "\n".join(body for language, body in blocks(text) if language in _SHELLS)
    for line in dict.fromkeys([*lines, *spoken]):
        reason = next((why for pattern, why in LEFT_OUT if re.search(pattern, line)), "")
        if not PROGRAMS.fullmatch(first_word(line)):
            # A block that says that it is for a shell has nothing else.
            if line in shells:
                found.unknown.append(line)
        elif reason:
            found.left[line] = reason
        else:
            found.run.append(line)
    return found


def in_place(line: str) -> str:
    """The command with what stands in for the user's; of a pipe the first part."""
    for pattern, text in _REPLACED:
        line = re.sub(pattern, text, line)
    line = line.replace("127.0.0.1:PORT", f"127.0.0.1:{_free_port()}")
    variables = re.match(r"(?:[A-Z][A-Z_0-9]*=\S+\s+)*", line)
    rest = line[variables.end() :] if variables else line
    return (variables[0] if variables else "") + shlex.join(
        words_of(re.split(r" (?:\||&&|>|2>) ?", rest)[0])
    )


def _free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


def environment(line: str) -> dict[str, str]:
    """What makes a run small: all that the command does not say itself."""
    match = re.search(r"--shape ([\d,]+)", line)
    slots = sum(map(int, match[1].split(","))) if match else 2
    side = "224" if "vit_b_16" in line else "32"
    bin_ = str(Path(sys.executable).parent)
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("BUNDLERUN_")},
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "BUNDLERUN_DEVICES": "cpu",
        "BUNDLERUN_SLOTS": str(slots),
        "BUNDLERUN_MAX_STEPS": "1",
        "BUNDLERUN_BATCH_SIZE": "16",
        "BUNDLERUN_MICROBATCH_SIZE": "4",
        "BUNDLERUN_IMAGE_SIZE": side,
        "BUNDLERUN_AUGMENT": "none",
    }


def run(line: str, folder: Path, timeout_s: float = 600.0) -> str:
    """Runs a command in `folder`; returns what went wrong, or nothing."""
    done = subprocess.run(
        ["bash", "-c", in_place(line)],
        cwd=folder,
        env=environment(line),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode == 0:
        return ""
    return f"{in_place(line)}: {done.returncode}\n{(done.stderr or done.stdout)[-800:]}"


def furnish(folder: Path, ready: Path | None, texts: Mapping[str, str]) -> None:
    """Puts data, files and a finished run into a folder that pages are tried in."""
    from PIL import Image

    for part in ("train", "val"):
        for number, name in enumerate(("green", "red")):
            place = folder / "photos" / part / name
            place.mkdir(parents=True)
            for index in range(8):
                Image.new("RGB", (40, 36), (200 * number, 120, 20 * index)).save(
                    place / f"{index}.png"
                )
    for name in ("my_recipe.py", "my_model.py"):
        shutil.copy(ROOT / "examples" / name, folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "Makefile").symlink_to(ROOT / "Makefile")
    (folder / "book.txt").write_text("to be or not to be, " * 400, encoding="utf-8")
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    if ready is not None:
        shutil.copytree(ready, folder / "runs" / "ready", symlinks=True)


def weights(folder: Path, lines: Sequence[str]) -> None:
    """The file of weights that commands begin with, where one does."""
    if any("resnet50.pth" in line for line in lines):
        import torch
        from torchvision.models import resnet50

        torch.save(resnet50().state_dict(), folder / "resnet50.pth")
