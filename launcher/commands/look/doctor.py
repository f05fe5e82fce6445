"""`bundlerun doctor`: whether machines, network and folders are fit for a run, and the mend."""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundlerun.launcher.doctor.document import document, text
from bundlerun.launcher.doctor.findings import Finding, exit_code_of
from bundlerun.launcher.doctor.local import Wanted, examine
from bundlerun.launcher.doctor.peers.lead import NodeReport, Together
from bundlerun.launcher.doctor.peers.places import Places, parse_peers, places_of
from bundlerun.launcher.doctor.peers.together import Group, Outcome, examine_together
from bundlerun.launcher.doctor.peers.wire import Secret
from bundlerun.launcher.errors import EXIT_DONE, EXIT_NODE, ConfigError
from bundlerun.launcher.meeting.site import SitePeers, site_everywhere, site_peers
from bundlerun.launcher.rendezvous.settings import TOKEN_VARIABLE
from bundlerun.launcher.run_folder.latest import RUNS


def run(args: argparse.Namespace) -> int:
    """Prints the findings; returns 3 where one of them is an error.

    Raises:
        ConfigError: an option is wrong.
        NodeError: the port of this node is taken.
    """
    if not 0 < args.wait_s < math.inf:
        raise ConfigError(f"--wait-s {args.wait_s} must be above 0")
    start = time.monotonic()
    wanted = Wanted(
        run_dir=Path(args.run_dir or RUNS),
        data=args.data,
        devices=args.devices,
        is_quick=args.quick,
    )
    # Quick is for this node; `--peers` is what asks for more.
    site = None if args.quick or args.peers else site_peers(os.environ)
    everywhere = [] if args.quick or args.peers or site else _everywhere(args, os.environ)
    if everywhere:
        _say("on each node of the allocation: " + " ".join(everywhere[:4]))
        return subprocess.run(everywhere, env=_with_secret(os.environ)).returncode
    if args.peers or site:
        group = _group(args, site, os.environ)
        outcome = examine_together(group, wanted, os.environ, _say)
        return _show_together(outcome, time.monotonic() - start, is_json=args.json)
    found = examine(wanted, os.environ)
    return _show(_alone(found), time.monotonic() - start, is_json=args.json)


def _everywhere(args: argparse.Namespace, environ: Mapping[str, str]) -> list[str]:
    """The command that starts this one on all nodes that a batch system has given; else empty."""
    words = [sys.executable, "-m", "bundlerun", "doctor", f"--devices={args.devices}"]
    words += [f"--wait-s={args.wait_s}", *(["--json"] if args.json else [])]
    words += [f"--run-dir={args.run_dir}"] if args.run_dir else []
    return site_everywhere(environ, [*words, *([args.data] if args.data else [])])


def _with_secret(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for all nodes, with a secret that only they have."""
    return {TOKEN_VARIABLE: secrets.token_hex(32), **environ}


def _group(args: argparse.Namespace, site: SitePeers | None, environ: Mapping[str, str]) -> Group:
    if site is None:
        places, name = places_of(parse_peers(args.peers), args.local_addr), socket.gethostname()
    else:
        places, name = Places(endpoints=site.endpoints, kept=(site.index,)), site.name
    return Group(
        places=places,
        # Without a secret this keeps other examinations out, not other people.
        secret=Secret((environ.get(TOKEN_VARIABLE) or "bundlerun").encode()),
        wait_s=args.wait_s,
        shared=Path(args.run_dir) if args.run_dir else None,
        name=name,
    )


def _alone(found: Sequence[Finding]) -> Together:
    """The same report, of one node."""
    node = NodeReport(name=socket.gethostname(), endpoint="", findings=tuple(found))
    return Together(nodes=(node,), between=(), links=(), names={})


def _show_together(outcome: Outcome, seconds: float, *, is_json: bool) -> int:
    """The first node prints all of it; the others what they are told, on stderr."""
    if outcome.together is None and outcome.verdict:
        errors, warnings = outcome.verdict.get("errors"), outcome.verdict.get("warnings")
        _say(f"errors: {errors}, warnings: {warnings}; the report is on the first node")
        return EXIT_NODE if errors else EXIT_DONE
    return _show(outcome.together or _alone(outcome.own), seconds, is_json=is_json)


def _show(together: Together, seconds: float, *, is_json: bool) -> int:
    shown = document(together, seconds)
    print(json.dumps(shown, indent=2) if is_json else text(together, seconds))
    return exit_code_of(together.findings)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
