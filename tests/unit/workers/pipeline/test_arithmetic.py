from __future__ import annotations

import pytest
import torch

from bundlerun.launcher.choices import Precision
from bundlerun.workers.pipeline.arithmetic import Arithmetic

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "wide"),
    [("float32", torch.float32), ("bfloat16", torch.float32), ("float64", torch.float64)],
)
def test_what_the_data_gives_is_widened_where_the_stage_is(
    precision: Precision, wide: torch.dtype
) -> None:
    arithmetic = Arithmetic(CPU, precision)
    assert arithmetic.placed(torch.zeros(2)).dtype == wide
    assert arithmetic.placed(torch.zeros(2, dtype=torch.long)).dtype == torch.long


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("float32", None),
        ("float64", None),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_half_precisions_are_cast_to_by_torch(
    precision: Precision, dtype: torch.dtype | None
) -> None:
    with Arithmetic(CPU, precision).autocast():
        assert torch.is_autocast_enabled("cpu") == (dtype is not None)
        assert dtype in (None, torch.get_autocast_dtype("cpu"))
