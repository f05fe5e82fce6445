"""The quick part that every start asks: what could make it fail, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from bundlerun.launcher.doctor.findings import Finding, Level
from bundlerun.launcher.doctor.machine import (
    MachineFacts,
    check_memory,
    check_shared_memory,
    check_tasks,
    check_temporary,
)
from bundlerun.launcher.doctor.read.machine import read_machine
from bundlerun.launcher.doctor.read.versions import read_versions
from bundlerun.launcher.doctor.versions import VersionFacts, check_versions
from bundlerun.launcher.errors import NodeError

Say = Callable[[str], None]


def check_start(environ: Mapping[str, str], num_gpus: int, say: Say) -> None:
    """Tells warnings about this node, a line each.

    Args:
        environ: of the ranks.
        num_gpus: that they run on; 0 for the CPU.
        say: shows a line to the user.

    Raises:
        NodeError: a start would fail here.
    """
    versions = read_versions(environ, num_gpus=num_gpus)
    judge(findings_of(versions, read_machine()), say)


def check_installed(environ: Mapping[str, str], say: Say) -> None:
    """The same about what is installed only: the start is on another node.

    Raises:
        NodeError: what is installed does not go together.
    """
    judge(check_versions(_without_gpus(read_versions(environ, num_gpus=0))), say)


def findings_of(versions: VersionFacts, machine: MachineFacts) -> Iterator[Finding]:
    """What a start asks."""
    yield from check_versions(versions if versions.num_gpus else _without_gpus(versions))
    yield check_memory(machine)
    yield check_shared_memory(machine)
    yield from check_tasks(machine)
    yield check_temporary(machine)


def _without_gpus(versions: VersionFacts) -> VersionFacts:
    # The devices of a node that uses none of them do not matter.
    return replace(versions, num_gpus=0, num_nvidia=0)


def judge(findings: Iterator[Finding] | list[Finding], say: Say) -> None:
    """Tells what is not ok.

    Raises:
        NodeError: a finding is an error; with all that are.
    """
    found = [each for each in findings if each.level is not Level.OK]
    lines = [f"{each.subject}: {each.text}; {each.mend}" for each in found]
    for each, line in zip(found, lines, strict=True):
        if each.level is Level.WARNING:
            say(f"warning: {line}")
    errors = [line for each, line in zip(found, lines, strict=True) if each.level is Level.ERROR]
    if errors:
        raise NodeError("; ".join([*errors, "bundlerun doctor tells more"]))
