"""`bundlerun goodput`: the share of time that is left for training where nodes fail."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from bundlerun.launcher.errors import EXIT_DONE, ConfigError, NodeError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.options.spans import read_counts, read_share, read_span
from bundlerun.launcher.planning.goodput import measured
from bundlerun.launcher.planning.goodput.estimate import Goodput, estimate
from bundlerun.launcher.planning.goodput.fleet import Absence, Fleet
from bundlerun.launcher.planning.goodput.way import Keeps, Way, with_best_interval
from bundlerun.launcher.planning.goodput.words import document, lines
from bundlerun.launcher.report.figures.drawing import check_drawing
from bundlerun.launcher.run_folder.files import write_bytes

MOST_NODES = 1_000_000
_BEST = "best"
_MOST_FAULTS = 5e6
"""Of one run: more would take minutes."""


def run(args: argparse.Namespace) -> int:
    """Simulates, prints, and draws if told to.

    Raises:
        ConfigError: an option is wrong, or matplotlib is not installed.
        NodeError: a picture cannot be written.
    """
    counts = read_counts("--nodes", args.nodes, most=MOST_NODES)
    fleets = [fleet for nodes in counts for fleet in _fleets(args, nodes)]
    ways = _ways(args)
    seconds = read_span("--for", args.duration, may_be_zero=False)
    if args.runs < 0:
        raise ConfigError(f"--runs {args.runs} is negative; give 0 for as many as are enough")
    for fleet in fleets:
        _check(fleet, args, seconds)
    pictures = _pictures(args)
    found = [
        estimate(fleet, way, seconds=seconds, seed=args.seed, runs=args.runs)
        for fleet in fleets
        for way in (_fitted(each, fleet) for each in ways)
    ]
    if args.json:
        print(json.dumps({"for_s": seconds, "rows": [document(each) for each in found]}, indent=2))
    else:
        print(*lines(found), sep="\n")
    for path in pictures:
        _draw(found, path, is_quiet=args.json)
    return EXIT_DONE


def _fleets(args: argparse.Namespace, nodes: int) -> list[Fleet]:
    """One for each number of spares, each number once."""
    if "|" in args.shape:
        raise ConfigError(f"--shape {args.shape!r} has several; the simulation takes one of them")
    try:
        shape = Shape.parse(args.shape)
    except ValueError as exc:
        raise ConfigError(
            f"--shape {args.shape!r} is not whole numbers separated by commas"
        ) from exc
    if shape.is_auto:
        raise ConfigError("--shape auto needs a model; give the devices per stage, such as 1,1")
    for flag, value, least in (
        ("--devices-per-node", args.devices_per_node, 1),
        ("--min-nodes", args.min_nodes, 1),
        ("--rack-nodes", args.rack_nodes, 0),
    ):
        if value < least:
            raise ConfigError(f"{flag} {value} must be {least} or more")
    fleets = {}
    for text in args.spares.split(","):
        fleet = Fleet(
            nodes=nodes,
            spares=_spares(text, nodes),
            devices=args.devices_per_node,
            bundle=shape.size,
            failure=_absence("--mtbf", args.mtbf, "--repair", args.repair),
            crash=_absence("--crash-every", args.crash_every),
            drain=_absence("--drain-every", args.drain_every, "--drain-for", args.drain_for),
            rack_nodes=args.rack_nodes,
            rack=_absence("--rack-mtbf", args.rack_mtbf, "--rack-repair", args.rack_repair),
        )
        fleets[fleet.spares] = fleet
    return list(fleets.values())


def _absence(flag: str, every: str, away_flag: str = "", away: str = "") -> Absence:
    every_s = read_span(flag, every, may_be_zero=False, may_be_never=True)
    return Absence(every_s=every_s, away_s=read_span(away_flag, away) if away else 0.0)


def _spares(text: str, nodes: int) -> int:
    text = text.strip()
    if text.isdecimal():
        if int(text) > MOST_NODES:
            raise ConfigError(f"--spares {text} is more than {MOST_NODES:,}")
        return int(text)
    if not text.endswith("%"):
        raise ConfigError(f"--spares {text!r} is neither a number nor a percentage, such as 1%")
    return math.ceil(nodes * read_share("--spares", text))


def _check(fleet: Fleet, args: argparse.Namespace, seconds: float) -> None:
    """What only the values together show."""
    if not fleet.bundles(fleet.nodes):
        raise ConfigError(
            f"{fleet.nodes} nodes of {fleet.devices} devices do not hold a bundle of "
            f"{fleet.bundle}; give --nodes {-(-fleet.bundle // fleet.devices)} or more"
        )
    if args.min_nodes > fleet.nodes:
        raise ConfigError(f"--min-nodes {args.min_nodes} is more than the {fleet.nodes} of --nodes")
    if math.isfinite(fleet.rack.every_s) and not fleet.rack_nodes:
        raise ConfigError("--rack-mtbf needs --rack-nodes, the nodes that share a rack")
    alone = fleet.failure.rate + fleet.crash.rate + fleet.drain.rate
    faults = seconds * (fleet.size * alone + fleet.num_racks * fleet.rack.rate)
    if faults > _MOST_FAULTS:
        raise ConfigError(
            f"--for {args.duration} has {faults:.2g} failures of {fleet.size:,} nodes, more than a "
            f"simulation takes; {_MOST_FAULTS:.0g} at most"
        )


def _ways(args: argparse.Namespace) -> list[Way]:
    def seconds(flag: str, text: str | None, default: float) -> float:
        return default if text is None else read_span(flag, text)

    if args.snapshot_steps < 1:
        raise ConfigError(f"--snapshot-steps {args.snapshot_steps} must be 1 or more")
    step_s = read_span("--step", args.step, may_be_zero=False)
    checkpoint_s = read_span("--checkpoint-cost", args.checkpoint_cost)
    every_s = _every("--checkpoint-every", args.checkpoint_every)
    cost = args.snapshot_cost
    ours = Way(
        name="bundlerun",
        keeps=Keeps.MEMORY,
        recovery_s=seconds("--recovery", args.recovery, measured.RECOVERY_S),
        join_s=seconds("--join", args.join, measured.JOIN_S),
        restart_s=seconds("--restart", args.restart, measured.RESTART_S),
        per_node_s=seconds(
            "--recovery-per-node", args.recovery_per_node, measured.RECOVERY_PER_NODE_S
        ),
        step_s=step_s,
        snapshot_steps=args.snapshot_steps,
        snapshot_cost=(
            measured.SNAPSHOT_COST if cost is None else read_share("--snapshot-cost", cost)
        ),
        checkpoint_s=checkpoint_s,
        checkpoint_every_s=every_s,
        min_nodes=args.min_nodes,
    )
    is_best = args.torchrun_checkpoint_every == _BEST
    recovery_s = seconds(
        "--torchrun-recovery", args.torchrun_recovery, measured.TORCHRUN_RECOVERY_S
    )
    torchrun = Way(
        name="torchrun",
        keeps=Keeps.DISK,
        recovery_s=recovery_s,
        join_s=seconds("--torchrun-join", args.torchrun_join, measured.TORCHRUN_JOIN_S),
        restart_s=recovery_s,
        step_s=step_s,
        checkpoint_s=checkpoint_s,
        # 0: to be fitted to each fleet.
        checkpoint_every_s=0.0
        if is_best
        else _every("--torchrun-checkpoint-every", args.torchrun_checkpoint_every),
        min_nodes=args.min_nodes,
    )
    return [ours] if args.no_torchrun else [ours, torchrun]


def _every(flag: str, text: str) -> float:
    return read_span(flag, text, may_be_zero=False, may_be_never=True)


def _fitted(way: Way, fleet: Fleet) -> Way:
    return way if way.checkpoint_every_s else with_best_interval(way, fleet)


def _pictures(args: argparse.Namespace) -> list[Path]:
    """Where to draw; before the work, so that what cannot be done is said at once."""
    found = []
    for flag, text in (("--png", args.png), ("--svg", args.svg)):
        if text is None:
            continue
        path = Path(text)
        if path.suffix.lower() != flag.replace("--", "."):
            raise ConfigError(f"{flag} {text!r} does not end in {flag.replace('--', '.')}")
        if path.is_dir():
            raise ConfigError(f"{flag} {text!r} is a folder; give a file")
        found.append(path)
    if found:
        check_drawing("a picture")
    return found


def _draw(found: list[Goodput], path: Path, *, is_quiet: bool) -> None:
    # Late: it takes most of a second.
    from bundlerun.launcher.report.figures.goodput import picture

    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, picture(found, path.suffix.lower().lstrip(".")), is_lasting=False)
    except OSError as exc:
        raise NodeError(f"cannot write {str(path)!r}: {exc.strerror}; give another file") from exc
    if not is_quiet:
        print(path)
