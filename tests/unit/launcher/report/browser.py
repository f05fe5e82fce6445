"""A headless Chromium, spoken to through two pipes, in the words of its DevTools protocol."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FOUND = next((path for name in PROGRAMS if (path := shutil.which(name))), "")
_LONGEST_S = 60.0


class Browser:
    """One tab. Its pipes take and give JSON, each message ended by a zero byte."""

    def __init__(self, to: int, of: int) -> None:
        self._to = to
        self._of = of
        self._data = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Does something and returns the answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        ends_at = time.monotonic() + _LONGEST_S
        while b"\0" not in self._data:
            ready, _, _ = select.select([self._of], [], [], max(0.0, ends_at - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._of, 1 << 20)
            assert data, "the browser has ended"
            self._data += data
        message, _, self._data = self._data.partition(b"\0")
        return dict(json.loads(message))

    def open(self, file: Path) -> None:
        """Shows a file, and returns when it is there with all its parts."""
        if not self._session:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            found = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = str(found["sessionId"])
            for domain in ("Page", "Network", "Log", "Runtime"):
                self.call(f"{domain}.enable")
        self.events = []
        self.call("Page.navigate", url=file.as_uri())
        while not any(each.get("method") == "Page.loadEventFired" for each in self.events):
            self.events.append(self._next())

    def look(self, *, width: int, scheme: str) -> None:
        """Shows pages `width` pixels wide, in light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 700,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def value(self, expression: str) -> Any:
        """What a piece of JavaScript says."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[object]:
        """What the console would show, and each request but the one for the file itself."""
        found: list[object] = []
        for event in self.events:
            params = event.get("params", {})
            match event.get("method"):
                case "Log.entryAdded" | "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                    found.append(params)
                case "Network.requestWillBeSent":
                    url = params["request"]["url"]
                    if not url.startswith(("file://", "data:")):
                        found.append(url)
        return found


def _pipe() -> tuple[int, int]:
    """One whose numbers are none of those that the browser has for its own two."""
    ends = os.pipe()
    try:
        first, last = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    finally:
        for end in ends:
            os.close(end)
    return first, last


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser that keeps its things in `folder`."""
    of_us, to_it = _pipe()
    of_it, to_us = _pipe()
    # It reads commands from 3 and answers on 4, whatever these are here.
    script = f'exec 3<&{of_us} 4>&{to_us} {of_us}<&- {to_us}>&-; exec "$@"'
    program = [
        FOUND, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", f"--user-data-dir={folder}",
        "--remote-debugging-pipe", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *program],
        pass_fds=(of_us, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(of_us)
    os.close(to_us)
    try:
        yield Browser(to_it, of_it)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to_it)
        os.close(of_it)
