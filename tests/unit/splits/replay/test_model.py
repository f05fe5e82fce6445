from __future__ import annotations

import dataclasses
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.cutter import NoExample
from bundlerun.splits.models import choose, make_stages
from bundlerun.splits.replay.model import ReplayedModel
from bundlerun.splits.replay.stage import ReplayStage
from bundlerun.workers.model.fidelity import check_fidelity
from bundlerun.workers.model.trial import Subject
from tests.unit.splits.replay.chain import Layers, assert_same, example, layers, subject_of


def cut_of(forward: Callable[[Layers, Tensor], Any], cut: str = "third") -> None:
    ReplayedModel(layers(forward), (example().to("meta"),)).cut([cut])


def reads_before(m: Layers, x: Tensor) -> Tensor:
    y = m.first(x)
    if y.sum() > 0:
        y = y * 2
    return m.third(m.second(y))


def test_a_value_that_is_read_before_the_cut_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        cut_of(reads_before)
    assert "'third' comes after the model reads the numbers of a tensor at" in str(caught.value)
    line = reads_before.__code__.co_firstlineno + 2
    assert f"test_model.py:{line}, which" in str(caught.value)


def test_a_value_that_is_read_behind_the_cut_does_no_harm() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        y = m.first(x)
        z = m.third(m.second(y))
        return z * 2 if z.sum() > 0 else z + y

    model = layers(forward)
    subject = subject_of(model, (example().to("meta"),), ("second",))
    assert_same(subject, (example(),))
    assert_same(subject, (-example(),))


def test_what_small_inputs_decide_is_looked_at_each_time() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        y = m.first(x)
        if (x[:, 0] > 9).any():
            raise ValueError("too large")
        return m.third(m.second(y))

    subject = subject_of(layers(forward), (example(),), ("third",))
    assert_same(subject, (example(),))
    front, _ = subject.stages
    with pytest.raises(ConfigError, match=r"test_model.py:\d+ it goes by True, and went by False"):
        front(example() * 100)


def drops_layers(m: Layers, x: Tensor) -> Tensor:
    for layer in (m.first, m.second):
        if torch.rand([]) >= 0.5:
            x = layer(x)
    return m.third(x)


def drops_by_python(m: Layers, x: Tensor) -> Tensor:
    for layer in (m.first, m.second, m.first, m.second):
        if random.random() >= 0.5:
            x = layer(x)
    return m.third(x)


@pytest.mark.parametrize("forward", [drops_layers, drops_by_python])
def test_a_path_that_random_numbers_decide_is_refused(forward: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot cut Layers by replay: its forward .*random"):
        cut_of(forward)


def test_a_random_number_as_a_plain_one_may_not_be_used_across_the_cut() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        scale = torch.rand([]).item()
        return m.third(m.second(m.first(x) * scale)) * scale

    with pytest.raises(ConfigError, match=r"'third' comes between a random number and its use"):
        cut_of(forward)


def test_views_that_are_written_to_behind_the_cut_are_refused() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        y = m.first(x)
        z = y[:, :2]
        h = m.third(m.second(y + 0))
        z.add_(1)
        return y + h

    with pytest.raises(ConfigError, match=r"'third' sends tensors apart that share memory"):
        cut_of(forward)


def test_a_module_inside_a_function_is_no_cut() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        made: Tensor = m.third(torch.vmap(m.second)(m.first(x)))
        return made

    with pytest.raises(ConfigError, match=r"'second' is inside an autograd function or torch.vmap"):
        cut_of(forward, "second")
    cut_of(forward)


def test_unknown_names_and_names_twice_are_refused_with_the_nearest() -> None:
    model = ReplayedModel(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double(), (example(),))
    with pytest.raises(ConfigError, match=r"unknown cut '3' of Sequential; .*1"):
        model.cut(["3"])
    with pytest.raises(ConfigError, match=r"'0' leaves a stage without an operation"):
        model.cut(["0"])
    with pytest.raises(ConfigError, match=r"cuts '1' and '1' are the same boundary"):
        model.cut(["1", "1"])
    with pytest.raises(ConfigError, match=r"2 cuts are more than the 1 boundaries of Sequential"):
        model.equal_cuts(3)


def test_a_module_of_a_sequence_has_the_name_that_it_has_in_a_graph() -> None:
    # `--cut 1` would make one part.
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).double()
    assert_same(subject_of(model, (example(),), ("_1",)), (example(),))
    assert ReplayedModel(model, (example(),)).find("_2").names == ("2",)
    with pytest.raises(ConfigError, match="unknown cut '_3' of Sequential; nearest: _2, _1"):
        ReplayedModel(model, (example(),)).cut(["_3"])


def test_a_module_that_only_training_calls_is_no_cut() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        y = m.first(x)
        return m.third(m.second(y) if m.training else y)

    with pytest.raises(
        ConfigError, match=r"'second' is a module that the forward does not call in"
    ):
        cut_of(forward, "second")


class Tables(nn.Module):
    """Uses a buffer in two layers."""

    def __init__(self, *, persistent: bool, writes: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0), persistent=persistent)
        self.writes = writes

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) + self.table
        if self.writes:
            self.table.add_(1)
        made: Tensor = self.second(y) * self.table
        return made


def test_a_table_that_is_only_read_is_held_by_both_stages() -> None:
    model = Tables(persistent=False, writes=False)
    subject = subject_of(model, (torch.ones(2, 4),), ("second",))
    assert [name for s in subject.stages for name, _ in s.named_buffers()] == ["table"] * 2
    assert_same(subject, (torch.ones(2, 4),))


@pytest.mark.parametrize(("persistent", "writes"), [(True, False), (False, True)])
def test_a_table_that_has_to_be_kept_equal_is_refused(persistent: bool, writes: bool) -> None:
    model = Tables(persistent=persistent, writes=writes)
    with pytest.raises(ConfigError, match=r"puts table into two stages"):
        ReplayedModel(model, (torch.ones(2, 4),)).cut(["second"])


# --- which way


class Branches(nn.Module):
    """Does not trace: its own forward asks for the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if x.sum(0).shape[0] == 4:
                x = block(x)
        return x


def test_auto_takes_the_graph_where_the_model_traces_and_says_so() -> None:
    model, told = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), list[str]()
    stages = make_stages(model, cut=(), num_stages=2, inputs=(torch.ones(2, 4),), tell=told.append)
    assert not isinstance(stages[0], ReplayStage)
    assert told == ["cut by graph at 2: the model traces"]


def test_auto_replays_what_does_not_trace_and_says_why() -> None:
    told: list[str] = []
    inputs = (torch.ones(2, 4, device="meta"),)
    stages = make_stages(Branches(), cut=(), num_stages=2, inputs=inputs, tell=told.append)
    assert isinstance(stages[0], ReplayStage)
    assert told[0].startswith("cut by replay at blocks.2: by graph, cannot cut Branches: its own")
    names = make_stages(Branches(), cut=("blocks.1",), num_stages=2, inputs=inputs)
    assert [len(list(stage.parameters())) for stage in names] == [2, 6]


def test_auto_replays_what_a_graph_divides_badly() -> None:
    class Whole(nn.Module):
        """One operation of a graph, as it does not trace."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = Branches(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.head(self.net(x))
            return made

    found = choose(Whole(), "auto", cut=(), shares=[1, 1], inputs=(torch.ones(2, 4),))
    assert (found.name, found.cuts) == ("replay", ("net.blocks.2",))
    assert "the most loaded device would do 1.6 times the work of the mean one, so 1.2" in found.why
    named = choose(Whole(), "auto", cut=("head",), shares=[1, 1], inputs=(torch.ones(2, 4),))
    assert named.name == "graph"


class Output(OrderedDict[str, Any]):
    """Its items are attributes, too, as those of an output of transformers."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@dataclasses.dataclass
class Record:
    """What torch knows nothing of."""

    hidden: Tensor


class Inner(nn.Module):
    """Recorded whole, as it asks for a shape; gives an object.

    Args:
        kind: makes it.
        reads: numbers that come of no input, which no tensor without numbers has.
    """

    def __init__(self, kind: Callable[..., Any], *, reads: bool) -> None:
        super().__init__()
        self.net = Branches()
        self.kind = kind
        self.reads = reads

    def forward(self, x: Tensor) -> Any:
        if x.shape[0] < 1 or (self.reads and (torch.arange(4, device=x.device) < 0).any()):
            raise ValueError("never")
        return self.kind(hidden=self.net(x))


class Around(nn.Module):
    """Takes the tensor out of what a module gives: a graph has a boundary in between."""

    def __init__(self, kind: Callable[..., Any] = Output, *, reads: bool = False) -> None:
        super().__init__()
        self.inner, self.head = Inner(kind, reads=reads), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x)
        made: Tensor = self.head(found.hidden)
        return made


@pytest.mark.parametrize("cut", [(), ("head",)])
@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("kind", [Output, Record])
def test_auto_replays_where_an_object_would_cross(
    kind: Callable[..., Any], reads: bool, cut: tuple[str, ...]
) -> None:
    class Later(Around):
        def forward(self, x: Tensor) -> Tensor:
            found = self.inner(x)
            made: Tensor = self.head(found.hidden) + found.hidden
            return made

    x = torch.ones(2, 4)
    model = Later(kind, reads=reads)
    found = choose(model, "auto", cut=cut, shares=[1, 1], inputs=(x,))
    assert found.name == "replay"
    what = "what that is shows only" if reads else f"is no tensor but {kind.__name__}"
    assert found.why.startswith("by graph, 'inner' crosses")
    assert what in found.why
    assert_same(Subject(whole=model, stages=found.way.cut(found.cuts)), (x,))
    assert found.cuts == (cut or ("inner.net.blocks.2",))


@pytest.mark.parametrize(
    ("kind", "refusal"),
    [
        (Output, "raises AttributeError: 'dict' object has no attribute 'hidden'"),
        (Record, "raises ConfigError: the cut sends 'inner' on, which is no tensor but Record"),
    ],
)
def test_such_a_graph_is_refused_at_the_check_with_the_way_out(
    kind: Callable[..., Any], refusal: str
) -> None:
    x, model = torch.ones(2, 4), Around(kind)
    stages = choose(model, "graph", cut=("head",), shares=[1, 1], inputs=(x,))
    subject = Subject(whole=model, stages=stages.way.cut(stages.cuts))
    with pytest.raises(ConfigError, match=rf"{refusal}.*; use --cutter replay"):
        check_fidelity(subject, lambda: (x,), 1e9)


def test_a_graph_is_kept_where_replay_cannot_cut_so() -> None:
    class Draws(Around):
        def forward(self, x: Tensor) -> Tensor:
            # Another path each time, which replay refuses; a graph has this module whole.
            return super().forward(x)

    def either(hidden: Tensor) -> Any:
        return Output(hidden=hidden + 1 if torch.rand([]) > 0.5 else hidden)

    found = choose(Draws(either), "auto", cut=("head",), shares=[1, 1], inputs=(torch.ones(2, 4),))
    assert found.name == "graph"


def test_a_forward_that_gives_a_dict_of_its_own_class_is_no_graph() -> None:
    class Gives(Around):
        def forward(self, x: Tensor) -> Any:
            return Output(out=super().forward(x))

    told: list[str] = []
    x, model = torch.ones(2, 4), Gives()
    with pytest.raises(ConfigError, match=r"forward makes a Output, of which .*--cutter replay"):
        make_stages(model, cut=(), num_stages=2, inputs=(x,), cutter="graph")
    stages = make_stages(model, cut=(), num_stages=2, inputs=(x,), tell=told.append)
    assert "forward makes a Output" in told[0]
    result: Any = (x,)
    for stage in stages:
        result = stage(*result)
    assert type(result) is Output


def test_what_needs_inputs_says_so_where_there_are_none() -> None:
    with pytest.raises(NoExample, match=r"needs an example of its inputs"):
        make_stages(Branches(), cut=(), num_stages=2)
    with pytest.raises(NoExample):
        make_stages(nn.Sequential(nn.ReLU()), cut=(), num_stages=2, cutter="replay")


def test_places_have_what_is_before_them_and_what_crosses() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4, bias=False))
    places = ReplayedModel(model, (torch.ones(2, 4),)).places()
    assert [place.names for place in places.places] == [("1",), ("2",)]
    assert [place.operations for place in places.places] == [128, 128]
    assert [place.parameter_bytes for place in places.places] == [160, 160]
    assert [place.crossing_bytes for place in places.places] == [64, 64]
    assert (places.operations, places.parameter_bytes) == (256, 288)
