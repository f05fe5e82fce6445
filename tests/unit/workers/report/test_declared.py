"""What a recipe says of its metrics, and what it may not say."""

from __future__ import annotations

from typing import Any

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.report.best import Best
from bundlerun.workers.report.declared import Declared


class Plain:
    """A recipe of before: declares nothing."""

    def metrics(self, output: object, target: object) -> dict[str, Any]:
        return {}


class Shipped(Plain):
    metric_names: object = ("top1", "top5")
    shares: object = ("top1", "top5")

    def metrics(self, output: object, target: object) -> dict[str, Any]:
        return {}


class OtherMetrics(Shipped):
    shares: object = ("seen",)

    def metrics(self, output: object, target: object) -> dict[str, Any]:
        return {}


class OtherNames(OtherMetrics):
    metric_names: object = ["seen", "mae"]
    best: object = ("mae", "min")


class OtherLoss(Shipped):
    def loss(self, output: object, target: object) -> None:
        """Has the metrics of before."""


def declared(recipe: Any, **attributes: object) -> Declared:
    for name, value in attributes.items():
        setattr(recipe, name, value)
    return Declared.of(recipe)


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        (Plain(), None),
        (Shipped(), ("top1", "top5")),
        (OtherLoss(), ("top1", "top5")),
        (OtherMetrics(), None),
        (OtherNames(), ("seen", "mae")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_names_hold_for_the_metrics_that_they_were_written_for(
    recipe: Any, names: tuple[str, ...] | None
) -> None:
    assert declared(recipe).names == names


def test_a_recipe_may_find_out_its_names_when_it_is_made() -> None:
    assert declared(OtherMetrics(), metric_names=("seen",)).names == ("seen",)
    assert declared(Plain(), metric_names=()).names == ()


def test_all_that_is_said_is_in_one_place() -> None:
    found = declared(OtherNames())
    assert found == Declared(names=("seen", "mae"), best=Best("mae", False), shares=("seen",))
    assert declared(Plain(), shares="top1").shares == ("top1",)
    assert declared(OtherNames(), best=("loss", "min")).best == Best("loss", False)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"metric_names": "top1"}, "metric_names is 'top1'; give a tuple of names, such as"),
        ({"metric_names": {"top1"}}, "metric_names is {'top1'}; give a tuple"),
        ({"metric_names": ("top1", 5)}, r"metric_names is \('top1', 5\); give a tuple"),
        ({"metric_names": ("top1", "top1")}, "metric_names has 'top1' twice; name it once"),
        ({"metric_names": ("top1", "loss")}, r"'loss', which is what loss\(\) gives; leave it out"),
        (
            {"best": ("mea", "min")},
            "best names 'mea', which is not in its metric_names; nearest: mae",
        ),
        (
            {"shares": ("sene",)},
            "shares names 'sene', which is not in its metric_names; nearest: see",
        ),
        ({"shares": ("loss",)}, "shares names 'loss', which is not in"),
    ],
    ids=str,
)
def test_what_cannot_be_is_named_before_any_step(
    attributes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        declared(OtherNames(), **attributes)


@pytest.mark.parametrize(
    "best",
    [
        (("mae", "min"), ("seen", "max")),
        [["mae", "min"], ["seen", "max"]],
        {"mae": "min", "seen": "max"},
        (("mae", "min"), ("seen", "max"), ("loss", "min")),
    ],
    ids=str,
)
def test_only_one_metric_decides(best: object) -> None:
    with pytest.raises(
        ConfigError,
        match=r"best names 'mae' and 'seen'.*, but one metric decides; give one of them, such as "
        r"best = \('mae', 'min'\)",
    ):
        declared(OtherNames(), best=best)


def test_what_is_told_may_be_made_of_loss_and_means() -> None:
    said = declared(
        Shipped(), best=("ratio", "max"), final_metrics=lambda loss, m: {"ratio": m["top1"] / loss}
    )
    assert said.told(4.0, {"top1": 2.0, "top5": 1.0}) == {"ratio": 0.5}
    assert declared(Plain()).told(4.0, {"any": 2.0}) == {"any": 2.0}
    wrong = declared(Plain(), final_metrics=lambda loss, means: {"none": None})
    with pytest.raises(ConfigError, match=r"final_metrics\(\) of the recipe failed"):
        wrong.told(1.0, {})
