"""What `--exchange` and `--exchange-dtype` say together."""

from __future__ import annotations

from typing import Any

import pytest

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.exchange_form import EXACT, ExchangeForm
from bundlerun.launcher.layout.shape import Shape


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(data="synthetic", **changes)


@pytest.mark.parametrize(
    ("typed", "form"),
    [
        ({}, EXACT),
        ({"exchange_dtype": "int4"}, ExchangeForm("int4")),
        ({"exchange": "topk:8"}, ExchangeForm(top=8)),
        ({"exchange": "powersgd:4"}, ExchangeForm(rank=4)),
    ],
)
def test_what_is_typed_is_what_travels(typed: dict[str, Any], form: ExchangeForm) -> None:
    found = config(**typed).exchange_form
    assert found == form
    assert str(found) == next(iter(typed.values()), "float32")
    assert (found.share < 1) != found.is_exact


@pytest.mark.parametrize(
    "typed", ["topk", "topk:0", "topk:65", "topk:x", "powersgd:0", "powersgd:-1", "half", ""]
)
def test_what_is_no_form_is_refused_with_those_that_are(typed: str) -> None:
    with pytest.raises(
        ConfigError, match=r"give all, auto, topk:K .* \(1 to 64\), or powersgd:RANK"
    ):
        config(exchange=typed)


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ({"exchange": "topk:8", "exchange_dtype": "int4"}, "are two ways to send less"),
        ({"exchange": "powersgd:4", "sync": "sharded"}, "needs whole matrices"),
        ({"exchange": "powersgd:4", "sync": "flat"}, "has no step of its own"),
        ({"exchange": "auto", "exchange_dtype": "int4"}, "chooses a form"),
        ({"exchange": "auto", "cut": ("2",), "shape": Shape((1, 1))}, "with the plan of one shape"),
        ({"exchange": "topk:4", "precision": "float64"}, "is a form of float32 gradients"),
        ({"exchange_dtype": "int8", "precision": "float64"}, "is a form of float32 gradients"),
    ],
)
def test_options_that_contradict_each_other_are_refused(typed: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as raised:
        config(**typed)
    shown = [value[0] if isinstance(value, tuple) else str(value) for value in typed.values()]
    assert all(value in str(raised.value) for value in shown)
