"""One cluster for all tests of this folder, repaired between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, open_cluster, why_not
from tests.slurm.harness import Jobs

GPUS = (2, 2, 3, 2)
"""Of each node; uneven, as a bundle of two leaves one of n3 idle."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = why_not()
    if reason:
        pytest.skip(f"no Slurm here: {reason}")
    with open_cluster(GPUS) as opened:
        yield opened


@pytest.fixture
def jobs(cluster: Cluster, tmp_path: Path) -> Iterator[Jobs]:
    yield Jobs(cluster, tmp_path)
    cluster.repair()
