"""Which stage has which chunk of the model."""

from __future__ import annotations

import doctest

import pytest

from bundlerun.launcher.layout import chunks as chunks_module
from bundlerun.launcher.layout.chunks import Chunks


def test_the_example_of_the_docstring_is_true() -> None:
    found = doctest.testmod(chunks_module)
    assert (found.failed, found.attempted) == (0, 3)


@pytest.mark.parametrize(("num_stages", "per_stage"), [(1, 1), (2, 1), (2, 3), (4, 2)])
def test_every_chunk_is_on_one_stage_and_found_again(num_stages: int, per_stage: int) -> None:
    chunks = Chunks(num_stages, per_stage)
    held = [list(chunks.on_stage(stage)) for stage in range(num_stages)]
    assert sorted(chunk for own in held for chunk in own) == list(range(chunks.num_chunks))
    for chunk in range(chunks.num_chunks):
        stage, own = chunks.stage_of(chunk), chunks.own_of(chunk)
        assert held[stage][own] == chunk == chunks.number(stage, own)
