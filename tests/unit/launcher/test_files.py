from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.files import write_text


def test_two_processes_of_one_id_in_two_containers_may_write_a_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, sync, others = tmp_path / "file", os.fsync, ["the other's"]

    def sync_while_another_writes(descriptor: int) -> None:
        sync(descriptor)
        if others:
            write_text(file, others.pop())

    monkeypatch.setattr("os.fsync", sync_while_another_writes)
    write_text(file, "the first's")
    assert file.read_text() == "the first's"
    assert list(tmp_path.iterdir()) == [file]
