from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest

from bundlerun.launcher.agent.limits import check_shared_memory, files_to_ask_for, raise_open_files
from bundlerun.launcher.errors import NodeError


@pytest.mark.parametrize(
    ("soft", "hard", "wanted"),
    [
        (1024, 4096, 4096),
        (1024, 1 << 20, 65536),
        (1 << 17, 1 << 20, 1 << 17),
        (1024, -1, 65536),
        (-1, -1, -1),
        (64, 64, 64),
    ],
)
def test_files_are_asked_for_as_far_as_is_of_use(soft: int, hard: int, wanted: int) -> None:
    assert files_to_ask_for(soft, hard) == wanted


def test_the_limit_of_open_files_is_raised_and_a_low_one_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = (256, 4096)
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, values: asked.append(values))
    assert raise_open_files() == ""
    assert asked == [(4096, 4096)]
    limits = (64, 300)
    assert raise_open_files().startswith("a process may open 300 files here")
    assert asked[1:] == [(300, 300)]


def test_shared_memory_that_is_full_is_a_line_with_the_way_on(tmp_path: Path) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    check_shared_memory(2, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(NodeError, match=r"No space left on device; it needs 64 KB for 2 ranks"):
        check_shared_memory(2, folder=tmp_path, allocate=full)
    with pytest.raises(NodeError, match="No such file or directory"):
        check_shared_memory(2, folder=tmp_path / "none")
