"""A fault that waits for one process at one place, and strikes once.

[1] FOLDER/armed/PLACE@NODE.WHO        {"kind": "die", "step": 7}; WHO: a local rank, or "agent"
[2]     |  the process comes by, at step 7 or later: the rename is its ticket
        v
[3] FOLDER/fired/PLACE@NODE.WHO        the same with "t_s", the monotonic clock as it struck

Faults can be armed before a run or during it. A process that was started again finds the
file gone. What wraps the places is in `places`; the product itself knows nothing of faults.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["die", "freeze", "cut", "raise"]
AGENT = "agent"
ANY = "any"
"""As node and as who: the process that comes by first, and no other."""
FOLDER_VARIABLE = "BUNDLERUN_FAULTS"
NODE_VARIABLE = "BUNDLERUN_FAULTS_NODE"
FREE_STAYS_VARIABLE = "BUNDLERUN_FAULTS_FREE_STAYS"
"""Short stays of a node in a row before it waits, see `launcher.rendezvous.protocol.growth`."""
LINK = "eth0"
"""The device of a node's network namespace, which `cut` takes down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What strikes whom, where and when.

    who: a local rank as text, or "agent"; node and who may be "any" together.
    step: finished steps from which on it may strike.
    """

    kind: Kind
    node: str
    who: str
    place: str
    step: int = 0

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.place.replace(' ', '-')}@{self.node}.{self.who}"


class Folder:
    """Where faults are armed, and where those go that have struck."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._armed = root / "armed"
        self._fired = root / "fired"
        self._armed.mkdir(parents=True, exist_ok=True)
        self._fired.mkdir(exist_ok=True)

    def arm(self, fault: Fault) -> None:
        """From now on the fault waits for its process."""
        # [1] Written elsewhere first, so that nobody takes half a fault.
        beside = self.root / fault.name
        beside.write_text(json.dumps(asdict(fault)), encoding="utf-8")
        beside.replace(self._armed / fault.name)

    def struck_at(self, fault: Fault) -> float | None:
        """The monotonic clock as the fault struck, seconds; None: it has not."""
        try:
            text = (self._fired / fault.name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        values = json.loads(text)
        return float(values["t_s"]) if "t_s" in values else None

    def forget(self, fault: Fault) -> None:
        """Lets the same fault be armed again."""
        (self._fired / fault.name).unlink(missing_ok=True)

    def take(self, place: str, node: str, who: str, step: int) -> Fault | None:
        """The fault that waits here for this process, which is its alone from now on."""
        place = place.replace(" ", "-")
        # A fault meant for this process goes before one that anybody may take.
        own = self._take(f"{place}@{node}.{who}", step)
        return own or self._take(f"{place}@{ANY}.{ANY}", step)

    def _take(self, name: str, step: int) -> Fault | None:
        armed = self._armed / name
        try:
            values = json.loads(armed.read_text(encoding="utf-8"))
            if step < values["step"]:
                return None
            fired = self._fired / name
            # [2] Only one process can rename it: who comes second finds no file, and is spared.
            armed.rename(self.root / f"{name}.struck")
        except FileNotFoundError:
            return None
        # [3] Complete under its last name at once: who looks on reads the time from it.
        (self.root / f"{name}.struck").write_text(
            json.dumps({**values, "t_s": time.monotonic()}), encoding="utf-8"
        )
        (self.root / f"{name}.struck").replace(fired)
        return Fault(**values)


class Injector:
    """What this process does where it comes by a named place.

    Args:
        environ: names the folder and the node, and LOCAL_RANK in a rank; read at each place, as a
            rank is forked from the agent's process.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._folder = Folder(Path(environ[FOLDER_VARIABLE]))
        self.step = 0
        """Finished steps, as this process knows."""

    def pass_by(self, place: str) -> None:
        """Lets the fault strike that waits here, if one does."""
        # Read each time: a rank has its LOCAL_RANK only after the fork.
        node, who = self._environ[NODE_VARIABLE], self._environ.get("LOCAL_RANK", AGENT)
        fault = self._folder.take(place, node, who, self.step)
        if fault is not None:
            strike(fault.kind)


def strike(kind: Kind) -> None:
    """Does it to this process, or to the link of its node.

    Raises:
        RuntimeError: the kind is "raise".
    """
    match kind:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "cut":
            subprocess.run(["ip", "link", "set", LINK, "down"], check=True)
        case "raise":
            raise RuntimeError("an injected fault")
