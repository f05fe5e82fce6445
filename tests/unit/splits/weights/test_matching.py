"""Which tensor of a file is which of the model, what begins anew, and what is another model."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torchvision
from torch import nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.weights.matching import Match, Outline, lines_of, match
from bundlerun.splits.weights.reading import Shape

OWN: dict[str, Shape] = {
    "stem.weight": (8, 3, 3, 3),
    "norm.weight": (8,),
    "norm.running_mean": (8,),
    "body.weight": (8, 8),
    "head.weight": (7, 8),
    "head.bias": (7,),
}


def outline(shapes: Mapping[str, Shape] = OWN, num_outputs: int = 7) -> Outline:
    return Outline(name="mine", shapes=shapes, num_outputs=num_outputs)


def matched(given: Mapping[str, Shape], new_head: str = "auto") -> Match:
    return match(outline(), given, new_head, "w.pth")


def renamed(old: str, new: str) -> dict[str, Shape]:
    return {(new + n[len(old) :] if n.startswith(old) else n): s for n, s in OWN.items()}


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (OWN, "names as they are"),
        (renamed("", "module."), "names without 'module.'"),
        (renamed("", "model.backbone.net."), "names without 'model.backbone.net.'"),
        ({f"module.{n}" if "head" not in n else n: s for n, s in OWN.items()}, "names without"),
    ],
)
def test_a_module_around_a_model_is_taken_off(given: dict[str, Shape], rule: str) -> None:
    found = matched(given, "off")
    assert found.rule.startswith(rule)
    assert list(found.sources) == list(OWN)
    assert not found.fresh
    assert not found.left


def test_a_module_in_the_model_is_put_on() -> None:
    own = {f"backbone.body.{n}": s for n, s in OWN.items() if "head" not in n}
    own |= {"neck.weight": (3, 3)}
    given = {n: s for n, s in OWN.items() if n != "head.bias"}
    found = match(outline(own), given, "auto", "w.pth")
    assert found.rule == "names with 'backbone.body.'"
    assert (found.fresh, found.left) == (["neck.weight"], ["head.weight"])


BLOCKS: dict[str, Shape] = {
    **{f"blocks.{i}.{part}": (8,) for i in range(2) for part in ("conv.weight", "conv.bias")},
    "head.weight": (7, 8),
}


@pytest.mark.parametrize("part", ["se.fc.weight", "scale.gamma", "norm.0.weight"])
def test_a_file_whose_blocks_have_more_parts_is_of_another_model(part: str) -> None:
    given = {f"module.{name}": shape for name, shape in BLOCKS.items()}
    given |= {f"module.blocks.{i}.{part}": (8,) for i in range(2)}
    with pytest.raises(ConfigError, match=rf"parts that the model.*, module.blocks.0.{part}, "):
        match(outline(BLOCKS), given, "auto", "w.pth")


def test_more_blocks_masks_and_other_heads_are_left_out() -> None:
    more = {
        "blocks.2.conv.weight": (8,), "blocks.2.conv.bias": (8,),
        "blocks.0.mask.bias": (1, 1, 9, 9), "blocks.1.mask.bias": (1, 1, 9, 9),
        "decoder.0.conv.weight": (8,), "decoder.1.conv.weight": (8,), "blocks.1.last.weight": (8,),
    }  # fmt: skip
    assert match(outline(BLOCKS), BLOCKS | more, "auto", "w.pth").left == list(more)


def test_a_head_of_another_number_of_outputs_begins_anew() -> None:
    found = matched({**OWN, "head.weight": (1000, 8), "head.bias": (1000,), "old.bias": (3,)})
    assert found.fresh == ["head.weight", "head.bias"]
    first, second = lines_of(found, outline(), "w.pth")
    assert first == (
        "weights from w.pth: 4 of 6 tensors, 0.000296 of 0.000359 million numbers; names as they "
        "are"
    )
    assert second == (
        "not loaded: head.weight, head.bias begin anew (as 7 outputs, in the file 1000); old.bias "
        "of the file has no place in the model"
    )


def test_a_head_of_several_layers_per_output_begins_anew() -> None:
    own = {**OWN, "boxes.weight": (28, 8)}
    given = {**OWN, "head.weight": (91, 8), "head.bias": (91,), "boxes.weight": (364, 8)}
    found = match(outline(own), given, "auto", "w.pth")
    assert found.fresh == ["head.weight", "head.bias", "boxes.weight"]


@pytest.mark.parametrize(
    ("new_head", "fresh"),
    [
        ("auto", []),
        ("off", []),
        ("last", ["head.weight", "head.bias"]),
        ("head", ["head.weight", "head.bias"]),
        ("bod*,head.bias", ["body.weight", "head.bias"]),
    ],
)
def test_a_new_head_of_the_same_size_is_asked_for(new_head: str, fresh: list[str]) -> None:
    found = matched(OWN, new_head)
    assert found.fresh == fresh
    if fresh:
        assert "(--new-head)" in lines_of(found, outline(), "w.pth")[1]


@pytest.mark.parametrize(
    ("given", "new_head", "message"),
    [
        (
            {**OWN, "body.weight": (8, 9)},
            "auto",
            r"1 have another shape, such as 'body.weight': 8x8, in the file 8x9; the nearest rule, "
            r"names as they are, fits 5 of them",
        ),
        (
            {n: s for n, s in OWN.items() if n != "body.weight"} | {"bode.weight": (8, 8)},
            "auto",
            r"it has none for 1 of the 6 tensors, such as 'body.weight' \(nearest: bode.weight\)",
        ),
        ({**OWN, "stem.weight": (16, 3, 3, 3)}, "auto", "1 have another shape, such as 'stem.wei"),
        ({**OWN, "head.weight": (9, 8), "head.bias": (9,)}, "off", "2 have another shape"),
        # Parts of it fit, as of any model; they are too few.
        ({"stem.weight": (8, 3, 3, 3), "norm.weight": (8,)}, "auto", "it has none for 4 of the 6"),
        ({"a": (1,), "b": (2,)}, "auto", "it has none for 6 of the 6 tensors"),
        (OWN, "haed", r"--new-head 'haed' names nothing of mine; nearest: head"),
    ],
)
def test_weights_of_another_model_are_refused(
    given: dict[str, Shape], new_head: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        matched(given, new_head)


def test_weights_of_one_resnet_are_not_those_of_another() -> None:
    models = {n: getattr(torchvision.models, n)(num_classes=10) for n in ("resnet18", "resnet34")}
    outlines = {n: Outline.of(model, n, 10) for n, model in models.items()}
    wide = Outline.of(torchvision.models.wide_resnet50_2(num_classes=10), "wide", 10)
    plain = Outline.of(torchvision.models.resnet50(num_classes=10), "plain", 10)
    for one, other in ((outlines["resnet18"], outlines["resnet34"]), (wide, plain)):
        for own, given in ((one, other), (other, one)):
            if own is outlines["resnet18"]:
                continue  # all of it is in the larger one, under the same names
            with pytest.raises(ConfigError, match="is of another model than"):
                match(own, given.shapes, "auto", "w.pth")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("places", nn.Parameter().new_zeros(4))
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_a_twin_and_what_a_model_computes_are_not_missing() -> None:
    own = Outline.of(Tied(), "tied", 0)
    given = {n: s for n, s in own.shapes.items() if n.startswith(("embedding", "norm"))}
    del given["norm.num_batches_tracked"]
    found = match(own, given, "off", "w.pth")
    assert found.sources["head.weight"] == found.sources["embedding.weight"]
    assert not found.fresh
    del given["norm.running_var"]
    with pytest.raises(ConfigError, match=r"such as 'norm.running_var'"):
        match(own, given, "off", "w.pth")
