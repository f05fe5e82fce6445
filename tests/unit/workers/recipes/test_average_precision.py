"""Average precision: by hand, and as pycocotools has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from bundlerun.workers.recipes.average_precision import average_precision, matches, means

Box = Sequence[float]


def image(
    number: int,
    found: Sequence[tuple[Box, int, float]],
    truths: Sequence[tuple[Box, int, bool]],
) -> dict[str, Tensor]:
    boxes, labels, scores = zip(*found, strict=True) if found else ((), (), ())
    real, real_labels, crowds = zip(*truths, strict=True) if truths else ((), (), ())
    return matches(
        {
            "boxes": torch.tensor(boxes).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.tensor(scores),
        },
        {
            "boxes": torch.tensor(real).reshape(-1, 4),
            "labels": torch.tensor(real_labels, dtype=torch.int64),
            "crowds": torch.tensor(crowds, dtype=torch.bool),
            "image": torch.tensor([number]),
        },
    )


def together(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def test_two_of_three_things_are_found_between_wrong_ones() -> None:
    # Right at 0.9, wrong at 0.8 (found twice) and 0.7 (elsewhere), right at 0.6: the precisions at
    # a third and two thirds are 1 and 2/4, and nothing comes after.
    found = average_precision(
        together(
            [
                image(
                    0,
                    [((0, 0, 10, 10), 1, 0.9), ((0, 0, 10, 10), 1, 0.8), ((50, 0, 60, 10), 1, 0.7)],
                    [((0, 0, 10, 10), 1, False), ((80, 0, 90, 10), 1, False)],
                ),
                image(1, [((0, 0, 10, 8), 1, 0.6)], [((0, 0, 10, 10), 1, False)]),
            ]
        )
    )
    # 34 of the 101 recalls are at most 1/3, 33 more at most 2/3. The last overlap is 0.8.
    assert found.keys() == {1}
    near, far = (34 + 33 / 2) / 101, 34 / 101
    assert found[1] == pytest.approx([near] * 7 + [far] * 3)
    assert means(found) == pytest.approx(
        {"map": 0.7 * near + 0.3 * far, "map_50": near, "map_75": near}
    )


def test_a_crowd_is_neither_right_nor_wrong_and_a_class_that_is_not_there_is_left_out() -> None:
    truths = [((0, 0, 10, 10), 1, False), ((20, 0, 60, 40), 1, True)]
    in_crowd = [((22, 2, 30, 10), 1, 0.9), ((25, 2, 32, 10), 1, 0.8)]
    found = average_precision(
        image(0, [*in_crowd, ((0, 0, 10, 10), 1, 0.5), ((0, 0, 10, 10), 2, 0.9)], truths)
    )
    assert found.keys() == {1}
    assert found[1] == pytest.approx(1.0)
    nothing = average_precision(image(0, [], []))
    assert means(nothing) == {"map": 0.0, "map_50": 0.0, "map_75": 0.0}
    assert means(average_precision(image(0, [], truths)))["map"] == 0.0


def test_numbers_are_those_of_pycocotools_in_any_order_of_the_images() -> None:
    rng = np.random.default_rng(7)
    parts = []
    for number in range(4):
        real = np.round(rng.uniform(0, 60, (5, 4)))
        real[:, 2:] += 4
        real_labels, crowds = rng.integers(1, 4, 5), rng.random(5) < 0.2
        boxes = real[rng.integers(0, 5, 40)] + np.round(rng.normal(0, 2, (40, 4)))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
        labels, scores = rng.integers(1, 5, 40), np.round(rng.random(40), 1)
        for each in (real, boxes):  # they were widths and heights
            each[:, 2:] += each[:, :2]
        parts.append(
            image(
                number,
                list(zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True)),
                list(zip(real.tolist(), real_labels.tolist(), crowds.tolist(), strict=True)),
            )
        )
    # What COCOeval of pycocotools 2.0.11 has for these boxes, with many equal scores and crowds.
    wanted = {"map": 0.1629445571734197, "map_50": 0.2346972406899452, "map_75": 0.1786479399819681}
    for order in (parts, parts[::-1]):
        assert means(average_precision(together(order))) == pytest.approx(wanted, abs=1e-12)
