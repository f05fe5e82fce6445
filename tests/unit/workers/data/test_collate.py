"""Samples of any nesting become one micro-batch; what cannot is named."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.collate import Collate
from bundlerun.workers.recipe import DataSets


class Point(NamedTuple):
    x: Any
    y: Any


def join(*samples: Any, **how: Any) -> Any:
    return Collate(**how)(samples, range(10, 10 + len(samples)))


def test_tensors_and_numbers_are_stacked() -> None:
    inputs, target = join((torch.zeros(2), 1), (torch.ones(2), 4))
    assert torch.equal(inputs[0], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert target.tolist() == [1, 4]


def test_what_is_joined_may_be_mixed() -> None:
    samples = ((torch.zeros(2), 1), (torch.ones(2), 4))

    def rolled(inputs: tuple[Tensor, ...], target: Tensor) -> Any:
        return (*inputs, inputs[0].roll(1, 0)), {"own": target, "other": target.roll(1)}

    inputs, target = join(*samples, mix=rolled)
    assert [i[:, 0].tolist() for i in inputs] == [[0, 1], [1, 0]]
    assert {name: t.tolist() for name, t in target.items()} == {"own": [1, 4], "other": [4, 1]}
    inputs, target = join(*samples, mix=lambda inputs, target: [inputs[0] + 1, 0.5])
    assert (inputs[0][:, 0].tolist(), target.item()) == ([1, 2], 0.5)


@pytest.mark.parametrize(
    ("mix", "says"),
    [
        (lambda inputs, target: inputs, "gives a tuple, not \\(inputs, target\\)"),
        (lambda inputs, target: (inputs, "x"), "the target of what mix gives of the samples 10"),
    ],
)
def test_what_mix_may_not_give_is_said(mix: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        join((torch.zeros(2), 1), mix=mix)


def test_a_tuple_is_several_inputs_and_a_dict_is_one() -> None:
    inputs, _ = join(((1, [2, 3]), 0), ((4, [5, 6]), 0))
    assert [i.tolist() for i in inputs] == [[1, 4], [[2, 3], [5, 6]]]
    inputs, _ = join(({"a": 1}, 0), ({"a": 4}, 0))
    assert {k: v.tolist() for k, v in inputs[0].items()} == {"a": [1, 4]}
    assert len(inputs) == 1


def test_nesting_stays_and_a_list_of_numbers_is_a_vector() -> None:
    def sample(n: int) -> Any:
        box = Point(np.float32(n), [torch.tensor(n), {"deep": np.arange(2) + n}])
        return 0, {"box": box, "corners": [[n, 0.5], [1, 2]], "ok": n > 1}

    _, target = join(sample(1), sample(2))
    box = target["box"]
    assert type(box) is Point
    assert box.x.dtype == torch.float32
    assert box.y[0].tolist() == [1, 2]
    assert box.y[1]["deep"].tolist() == [[1, 2], [2, 3]]
    assert target["corners"].shape == (2, 2, 2)
    assert target["ok"].tolist() == [False, True]


@pytest.mark.parametrize("name", ["target", "targets", "label", "labels"])
def test_a_dict_names_its_target(name: str) -> None:
    inputs, target = join({"image": torch.ones(1), name: 3})
    assert isinstance(inputs[0], Tensor)
    assert target.tolist() == [3]
    inputs, _ = join({"a": 1, name: 3, "b": 2})
    assert list(inputs[0]) == ["a", "b"]


def test_split_says_what_is_what() -> None:
    inputs, target = join(
        OrderedDict(x=1, y=2, z=3), split=lambda sample: (sample["z"], sample["x"])
    )
    assert (inputs[0].tolist(), target.tolist()) == ([3], [1])


def test_a_collate_of_its_own_joins_the_micro_batch() -> None:
    def pad(samples: list[Any]) -> Any:
        values = torch.nn.utils.rnn.pad_sequence([s[0] for s in samples], batch_first=True)
        return {"values": values, "most": max(len(s[0]) for s in samples)}

    samples = [(torch.ones(n), n) for n in (1, 3)]
    inputs, target = join(*samples, own=pad, split=lambda batch: (batch["values"], batch["most"]))
    assert inputs[0].tolist() == [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    assert target.tolist() == 3


def test_the_recipes_collate_goes_before_the_data_sets() -> None:
    class Own(list[Any]):
        def collate_fn(self, samples: list[Any]) -> Any:
            return "the data set's"

    samples: Any = Own()
    data = DataSets(train=samples, val=None, num_outputs=1)
    own = Collate.of(data, samples).own
    assert own is not None
    assert own([]) == "the data set's"
    other = DataSets(train=samples, val=None, num_outputs=1, collate=lambda _: "the recipe's")
    own = Collate.of(other, samples).own
    assert own is not None
    assert own([]) == "the recipe's"


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([(1, "yes")], r"the target of sample 10 is of type str \('yes'\)"),
        (
            [({"a": [1, {"b": None}]}, 1)],
            r"the input\['a'\]\[1\]\['b'\] of sample 10 is .*NoneType",
        ),
        ([(1, 1), (object(), 1)], "the input of sample 11 is of type object"),
        ([(1, np.array(["a"]))], "the target of sample 10 is no tensor: can't convert np.ndarray"),
        ([(1, [[1, 2], [3]])], "the target of sample 10 is no tensor"),
        ([(1, 1 << 70)], "the target of sample 10 is no tensor"),
        ([(1, 2, 3)], r"sample 10 is a tuple of 3, not \(input, target\)"),
        ([torch.zeros(2)], r"sample 10 is a Tensor, not \(input, target\)"),
        ([{"image": 1, "class": 2}], "the keys 'image', 'class', not"),
        ([{"label": 1, "target": 2}], "the keys 'label', 'target', not"),
        ([(torch.zeros(2), 1), (torch.zeros(3), 1)], r"sample 11 has shape \[3\], .*10 \[2\]"),
        ([({"a": 1}, 1), ({"b": 1}, 1)], r"sample 11 has \['b'\], that of sample 10 \['a'\]"),
        ([((1, 2), 1), (1, 1)], "the input of sample 11 is of type int, that of sample 10 of"),
    ],
    # Not the samples: an object has another text in each process that collects.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_sent_is_named(samples: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        join(*samples)


def test_what_a_collate_gives_is_looked_at_too() -> None:
    with pytest.raises(ConfigError, match=r"the target of .* samples 10, 11, at \['name'\], is of"):
        join((1, 1), (2, 2), own=lambda _: (torch.zeros(2), {"name": ["a", "b"][0]}))
