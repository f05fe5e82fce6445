"""What several stages share, on the stand-in: the sums are right, and no order is another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bundlerun.launcher.choices import SchemeName
from bundlerun.launcher.layout.shape import Shape
from tests.ranks.reference import Reference, train_unsplit
from tests.ranks.standin.test_training import NUM_STEPS, SHORT, assert_like, trained
from tests.ranks.tied_model import CUTS
from tests.ranks.training.test_shared import TIED

TIED_SHORT = replace(
    SHORT, model=TIED.model, weight_decay=TIED.weight_decay, clip_norm=TIED.clip_norm
)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return train_unsplit(TIED_SHORT, NUM_STEPS)


@pytest.mark.parametrize(
    ("shape", "nodes", "scheme", "kind", "transport"),
    [
        ((1, 1), (2,), "flat", ("1f1b", 1), "nccl"),
        ((1, 1), (2, 2), "local-master", ("interleaved", 2), "nccl"),
        ((2, 1), (3,), "sharded", ("zero-bubble", 1), "nccl"),
        ((1, 1, 1), (3,), "flat", ("eager-1f1b", 1), "cpu"),
    ],
    ids=str,
)
def test_stages_that_share_train_like_the_unsplit_model(
    shape: tuple[int, ...],
    nodes: tuple[int, ...],
    scheme: SchemeName,
    kind: tuple[str, int],
    transport: str,
    reference: Reference,
    tmp_path: Path,
) -> None:
    schedule, chunks = kind
    config = replace(
        TIED_SHORT,
        shape=Shape(shape),
        cut=CUTS[len(shape) * chunks],
        chunks=chunks,
        sync=scheme,
        schedule=schedule,
        transport=transport,
    )
    assert_like(reference, trained(config, nodes, tmp_path, seed=3), tmp_path)
