"""`bundlerun why`: why a run is slow, or stands, from the files of its folder."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime

from bundlerun.launcher.commands.run_folder import run_paths
from bundlerun.launcher.errors import EXIT_DONE
from bundlerun.launcher.why.hang_words import hang_text, stack_lines, standing_lines
from bundlerun.launcher.why.pace_words import pace_lines
from bundlerun.launcher.why.view import STILL_S, Present, Stood, View, view_of

_NUM_EPOCHS = 5


def run(args: argparse.Namespace) -> int:
    """Prints the verdict.

    Raises:
        ConfigError: there is no such run.
    """
    paths = run_paths(args.run_dir)
    now_s = time.time()
    view = view_of(paths, now_s=now_s)
    if args.json:
        print(json.dumps(asdict(view), indent=2, default=str))
    else:
        print("\n".join(lines_of(view, stacks=args.stacks)))
    return EXIT_DONE


def lines_of(view: View, *, stacks: bool = False) -> list[str]:
    """The verdict for people."""
    lines: list[str] = []
    if view.present is not None:
        lines += _present_lines(view.present)
    elif view.epochs:
        last = view.epochs[-1]
        lines.append(f"epoch {last.epoch + 1}")
        lines += pace_lines(last.pace, last.ranks)
    earlier = view.epochs if view.present is not None else view.epochs[:-1]
    lines += [f"epoch {each.epoch + 1:<7}{each.text}" for each in earlier[-_NUM_EPOCHS:]]
    if view.stood is not None:
        lines += _stood_lines(view.stood, stacks=stacks)
    lines += [f"failure      {text}" for text in view.failures]
    return lines or [
        "nothing to say yet: no epoch has ended, and no agent of bundlerun writes down what the "
        "ranks do"
    ]


def _present_lines(present: Present) -> Iterator[str]:
    step = max((stand.step for stand in present.stands), default=0)
    yield f"now          step {step}, {len(present.ranks)} ranks, {present.age_s:.0f} s ago"
    if present.hang is not None:
        yield f"stands       {hang_text(present.hang, present.stands)}"
    still = [stand for stand in present.stands if stand.age_s >= STILL_S]
    yield from (f"             {line}" for line in standing_lines(still))
    if present.pace is not None:
        yield from pace_lines(present.pace, present.ranks)
    elif not still:
        yield "bound        not known yet: a few seconds of an epoch tell"


def _stood_lines(stood: Stood, *, stacks: bool) -> Iterator[str]:
    when = datetime.fromtimestamp(stood.wall_s).astimezone().isoformat(timespec="seconds")
    yield f"stood        {when}: {hang_text(stood.hang, stood.stands)}"
    for stand, line in zip(stood.stands, standing_lines(stood.stands), strict=True):
        yield f"             {line}"
        if stacks:
            yield from (f"               {each}" for each in stack_lines(stand))
    yield from (f"NCCL         {missed.text}" for missed in stood.missed)
    if not stacks:
        yield f"stacks       {stood.files[0].parent} ... (--stacks shows them)"
