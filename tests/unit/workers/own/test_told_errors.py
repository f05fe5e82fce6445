"""What a user's program ends with where an error of ours is caught by nobody."""

from __future__ import annotations

import sys
from types import TracebackType

import pytest

from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.workers.own.process.told_errors import tell_errors


def test_an_error_of_ours_is_one_line_and_its_exit_code_others_are_as_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[BaseException] = []

    def before(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
        seen.append(error)

    monkeypatch.setattr(sys, "excepthook", before)
    tell_errors()
    hook = sys.excepthook
    tell_errors()  # each door calls it
    assert sys.excepthook is hook
    for error, code in ((ConfigError("this is wrong"), 2), (NodeError("that is not there"), 3)):
        with pytest.raises(SystemExit) as end:
            hook(type(error), error, None)
        assert end.value.code == code
        assert capsys.readouterr().err == f"error: {error}\n"
    other = ValueError("theirs")
    hook(ValueError, other, None)
    assert seen == [other]
