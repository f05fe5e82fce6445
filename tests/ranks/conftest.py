"""What the tests with real ranks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlerun.workers.snapshot import room as snapshot_folder


@pytest.fixture(autouse=True)
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the ranks of a test keep snapshots: killed ones leave theirs behind."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(snapshot_folder, "SHARED_MEMORY", folder)
    return folder
