"""A Slurm of small scripts on the PATH, which keep what they were asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.slurm.test_jobs import CONFIG, SHOWN


@dataclass(slots=True)
class FakeSlurm:
    """Answers `scontrol`, `squeue` and `sbatch`."""

    folder: Path
    environ: dict[str, str]

    def program(self, name: str, body: str) -> None:
        """A command that notes its arguments and then does `body`, sh."""
        file = self.folder / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'#!/bin/sh\necho "{name} $*" >> "{self.folder}/asked"\n{body}\n')
        file.chmod(0o755)

    def answer(self, name: str, text: str) -> None:
        """A command that prints `text`."""
        (self.folder / f"{name}.answer").write_text(text)
        self.program(name, f'cat "{self.folder}/{name}.answer"')

    def job(self, state: str, restarts: int = 0, requeue: str = ":") -> None:
        """`scontrol` shows job 7; `requeue` is what that does, sh."""
        shown = SHOWN.replace("PENDING", state).replace("Restarts=2", f"Restarts={restarts}")
        (self.folder / "job").write_text(shown)
        (self.folder / "config").write_text(CONFIG)
        self.program(
            "scontrol",
            f'case "$*" in *"show job"*) cat "{self.folder}/job";; '
            f'*config*) cat "{self.folder}/config";; requeue*) {requeue};; esac',
        )

    @property
    def asked(self) -> Sequence[str]:
        """All commands so far."""
        file = self.folder / "asked"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    folder = tmp_path / "slurm"
    folder.mkdir()
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    fake = FakeSlurm(folder, {**os.environ, "PATH": path})
    fake.job("RUNNING")
    fake.answer("squeue", "")
    fake.answer("sbatch", "12\n")
    return fake
