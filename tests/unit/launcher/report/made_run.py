"""Run folders as a run leaves them, made by hand: with failures, two nodes, and two epochs."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bundlerun.launcher.run_folder.measured import MeasuredRank, Span, write_measured
from bundlerun.launcher.run_folder.paths import RunPaths

BOUND = "bound by data, 71% of the time"
BEGIN_S = 1767225600.0
FAILURE = 'RuntimeError: <launch> & "device" failed'


def event(second: float, node: str, name: str, **details: Any) -> dict[str, Any]:
    wall = datetime.fromtimestamp(BEGIN_S + second, UTC).isoformat(timespec="milliseconds")
    return {"t_s": second, "boot": node, "wall": wall, "node": node, "event": name, **details}


def _events() -> list[dict[str, Any]]:
    found = []
    for number, at in enumerate((0.0, 120.0), 1):
        nodes = ["node-a", "node-b"]
        found.append(event(at, "node-a", "coordinator: round", round=number, nodes=nodes))
        for node in nodes:
            found += [event(at, node, "asks for a round"), event(at + 1, node, "in a round")]
            for name, after_s in (("starts", 2), ("met", 3), ("restored", 4), ("first step", 9)):
                found += [event(at + after_s, node, name, local_rank=rank) for rank in (0, 1)]
    failed = event(119.5, "node-b", "failed", local_rank=1, text=f"Traceback\n{FAILURE}")
    return sorted([*found, failed], key=lambda row: row["wall"])


def _history(num_steps: int) -> list[dict[str, Any]]:
    start = {"kind": "start", "shape": "1,1", "chunks": 1, "steps": num_steps, "unit": "images"}
    rows: list[dict[str, Any]] = [{"time": BEGIN_S, **start, "bundles": 2, "nodes": 2}]
    half = num_steps // 2
    for step in range(num_steps):
        at = BEGIN_S + 9 + step * 200 / num_steps + (14 if step >= half else 0)
        row = {"kind": "step", "step": step, "epoch": step // half, "lr": 0.1, "samples": 64}
        loss = 90.0 if step == num_steps // 3 else 3 * math.exp(-step / num_steps)
        rows.append(
            {"time": at, **row, "loss": loss, "metrics": {"top1": step / num_steps, "$odd_$": 1.0}}
        )
        if step + 1 in (half, num_steps):
            phases = {
                "forward": 30.0,
                "backward": 60.0,
                "sync_wait": 5.0,
                "collect": 9.0,
                "send": 0.0,
            }
            end = {"step": step + 1, "epoch": step // half}
            rows.append({"time": at, "kind": "epoch", **end, "phases": phases})
            rows[-1]["gpu_peak_bytes"] = {"stage0": 3 << 30, "stage1": 2 << 30}
            rows.append(
                {"time": at, "kind": "why", **end, "text": "bound by data, 71% of the time"}
            )
            rows.append({"time": at, "kind": "eval", **end, "loss": 2.0, "metrics": {"top1": 0.5}})
        if step + 1 == half:
            rows.append({"time": at + 14, "kind": "restart", "step": half, "source": "snapshot"})
    return rows


def _measured(paths: RunPaths, step: int) -> None:
    for number in range(4):
        bundle, stage = divmod(number, 2)
        begin = 50.0 + 0.05 * stage
        spans = [
            Span("forward", begin, begin + 0.1, "F0"),
            Span("backward", begin + 0.2 - 0.1 * stage, begin + 0.4, "B0"),
            Span("exchange", begin + 0.3, begin + 0.31),
            Span("exchange", begin + 0.4, begin + 0.5),
            Span("optimizer", begin + 0.5, begin + 0.55),
        ]
        rank = MeasuredRank(
            step=step, round="r", node=f"node-{'ab'[bundle]}", boot="ab"[bundle], rank=number,
            bundle=bundle, stage=stage, replica=0, chunks=1, wall_s=BEGIN_S, host_bytes=1 << 30,
            device_bytes=2 << 30, spans=tuple(spans),
        )  # fmt: skip
        write_measured(paths, rank)


def make_run(root: Path, *, num_steps: int = 600, is_done: bool = True) -> RunPaths:
    """Makes a folder of a run with a failure in its middle; its last line is cut short."""
    paths = RunPaths(root)
    paths.events.mkdir(parents=True)
    lines = [json.dumps(row) for row in _history(num_steps)]
    # As a crash and a full disk leave them.
    lines[5:5] = [
        '{"time": 1',
        "null",
        '{"kind": "step"}',
        '{"time": "x", "kind": "step", "step": 3}',
    ]
    paths.metrics.write_text("\n".join([*lines, '{"torn']))
    for node in ("node-a", "node-b"):
        rows = [json.dumps(row) for row in _events() if row["node"] == node]
        paths.node_events(node).write_text("\n".join([*rows, "", '{"t_s": 3, "ev']))
    options = {
        "train": {
            "data": {"value": "/data/<images>", "source": "option"},
            "lr": {"value": 0.1, "source": "default"},
            "shape": {"value": [1, 1], "source": "BUNDLERUN_SHAPE"},
        },
        "launch": {"nnodes": {"value": "2", "source": "run.toml"}},
    }
    paths.node_options("node-a").parent.mkdir()
    paths.node_options("node-a").write_text(json.dumps(options))
    for step in (2, num_steps // 2 + 2):
        _measured(paths, step)
    if is_done:
        outcome = {"state": "done", "exit_code": 0, "reason": "all", "step": num_steps}
        paths.outcome.write_text(json.dumps({**outcome, "first_error": None}))
    return paths
