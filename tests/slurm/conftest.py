"""One cluster for all tests of this folder, repaired between them, and a table at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cluster.slurm_cluster import Cluster, open_cluster, why_not
from benchmarks.cluster.slurm_jobs import Jobs, Recovery, train_words

GPUS = (2, 2, 3, 2)
"""Of each node; uneven, as a bundle of two leaves one of n3 idle."""
ALL_VARIABLE = "BUNDLERUN_TEST_SLURM"
RECOVERIES: list[Recovery] = []
"""Of all tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones run where they are asked for."""
    if os.environ.get(ALL_VARIABLE) == "all":
        return
    skip = pytest.mark.skip(reason="slow: make test-slurm runs it")
    for item in items:
        if item.get_closest_marker("slow") and item.get_closest_marker("slurm"):
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints how long each fault took; nothing asserts it."""
    if RECOVERIES:
        terminalreporter.section("Slurm: from the fault to the next finished step")
    for recovery in RECOVERIES:
        terminalreporter.line(str(recovery))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = why_not()
    if reason:
        pytest.skip(f"no Slurm here: {reason}")
    with open_cluster(GPUS) as opened:
        yield opened


@pytest.fixture
def jobs(cluster: Cluster, tmp_path: Path) -> Iterator[Jobs]:
    opened = Jobs(cluster, tmp_path)
    yield opened
    RECOVERIES.extend(opened.recoveries)
    cluster.repair()


@pytest.fixture(scope="session")
def wanted_loss(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> float:
    """What the same run comes to in one process, unsplit, with nothing in its way."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    words = train_words(run_dir=run_dir, snapshot="off")
    subprocess.run(
        [sys.executable, "-m", "bundlerun.workers.train", *words],
        env=cluster.environ | {"SLOW_MODEL_PAUSE_S": "0"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    summary = json.loads((run_dir / "summary.json").read_text())
    return float(summary["validation"]["loss"])
