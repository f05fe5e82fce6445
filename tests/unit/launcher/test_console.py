"""Lines for people, on a terminal and into a file."""

from __future__ import annotations

import io
import logging

import pytest

from bundlerun.launcher.console import ConsoleHandler


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, term: str = "xterm") -> str:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", term)
    stream.write("epoch 1/2:  50%|####")
    record = logging.LogRecord("x", logging.INFO, "", 0, "node %s is lost", ("b",), None)
    ConsoleHandler().handle(record)
    return stream.getvalue()


def test_a_line_wipes_the_bar_that_stands_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said(Screen(), monkeypatch)
    assert text == "epoch 1/2:  50%|####\r\x1b[Knode b is lost\n"


def test_a_terminal_that_cannot_draw_gets_the_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(Screen(), monkeypatch, "dumb").endswith("####node b is lost\n")


def test_a_file_gets_the_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(io.StringIO(), monkeypatch).endswith("####node b is lost\n")
