"""What is left to the planner is chosen together, and kept; what the user has said stays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.deciding import apart, decide
from bundlerun.launcher.deciding.decision import (
    SOURCE,
    Chosen,
    Question,
    is_asked,
    keep_decision,
    kept_decision,
    with_kept_decision,
)
from bundlerun.launcher.deciding.question import (
    cluster_here,
    devices_of,
    question_of,
    request_of,
    sizes_to_profile,
)
from bundlerun.launcher.deciding.shown import chosen_line, seconds, table
from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.exchange_form import ExchangeForm
from bundlerun.launcher.layout.hardware import Cpus, Devices, Hardware
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.options.declared import Resolved, resolve
from bundlerun.launcher.planning.candidate import Candidate
from bundlerun.launcher.planning.cluster import Cluster
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.planning.outlook import Outlook
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.unit.launcher.planning.models import GBIT, MB, nodes, profile_of

CORES = Hardware(num_gpus=0, cpus=Cpus(numa_nodes=(((0,), (1,), (2,), (3,)),)))
QUESTION = Question(options={}, num_nodes=1, devices="cpu", cluster="")


def asked(**options: str) -> Resolved[TrainConfig]:
    return resolve(TrainConfig, options, environ={}, toml={}, toml_name="")


def test_kinds_of_nodes_are_named_by_their_devices() -> None:
    devices = Devices(kind="gpu", count=8)
    found = cluster_here(CORES, devices, 3, None, nodes=(8, 1, 8))
    assert [(kind.name, kind.count) for kind in found.kinds] == [("8 devices", 2), ("1 device", 1)]


def uneven(cutter: str | None = "graph") -> Profile:
    """Four pieces, of which the first takes as long as the others together."""
    found = profile_of([0.3, 0.1, 0.1, 0.1], message_bytes=1000)
    return replace(found, cutter=cutter)  # type: ignore[arg-type]


def chosen(
    train: Resolved[TrainConfig], profile: Profile, cluster: Cluster
) -> tuple[Chosen, dict[str, Any]]:
    document = decide.choose(train, profile, cluster, QUESTION)
    assert json.loads(json.dumps(document)) == document
    return Chosen.from_plain(document["chosen"]), document


def test_cuts_are_by_time() -> None:
    found, _ = chosen(asked(shape="1,1", cut="auto"), uneven(), nodes(1, 2))
    assert (found.cut, found.cutter, str(found.shape)) == (("b0",), "graph", "1,1")


def test_one_stage_needs_no_cut_where_sums_are_cheap() -> None:
    found, document = chosen(asked(shape="auto"), uneven(), nodes(1, 2))
    assert (str(found.shape), found.cut, found.schedule) == ("1", (), "auto")
    assert document["plans"][0]["step_s"] >= document["bound_s"] > 0


def test_a_slow_link_and_large_parameters_make_stages() -> None:
    large = replace(
        profile_of([0.1] * 4, trained_bytes=500 * MB, message_bytes=1000), cutter="graph"
    )
    found, _ = chosen(asked(shape="auto"), large, nodes(2, 1, bytes_per_s=GBIT / 10))
    assert str(found.shape) == "1,1"
    assert found.cut == ("b1",)


@pytest.mark.parametrize(("split_s", "is_taken"), [(0.0, True), (0.2, False)])
def test_zero_bubble_is_taken_where_it_is_faster(split_s: float, is_taken: bool) -> None:
    even = profile_of([0.1] * 4, message_bytes=1000)
    costs = even.by_samples[0]
    pieces = tuple(replace(piece, split_s=split_s) for piece in costs.pieces)
    profile = replace(even, by_samples=(replace(costs, pieces=pieces),), cutter="graph")
    found, _ = chosen(asked(shape="1,1", cut="auto"), profile, nodes(1, 2))
    assert (found.schedule == "zero-bubble") == is_taken


def test_what_no_cut_balances_is_said_where_it_is_cut() -> None:
    lump = replace(profile_of([0.1, 0.9, 0.1], message_bytes=1000), cutter="graph")
    _, document = chosen(asked(shape="1,1", cut="auto"), lump, nodes(1, 2))
    (note,) = document["notes"]
    assert note.startswith("the piece from b0 to b1 has 82% of the model's work")
    assert not chosen(asked(shape="1", cut="auto"), lump, nodes(1, 2))[1]["notes"]
    assert not chosen(asked(shape="1,1", cut="auto"), uneven(), nodes(1, 2))[1]["notes"]


def test_compiled_stages_have_no_zero_bubble() -> None:
    even = replace(profile_of([0.1] * 4, message_bytes=1000), cutter="graph")
    found, _ = chosen(asked(shape="1,1", cut="auto", compile="default"), even, nodes(1, 2))
    assert found.schedule != "zero-bubble"
    assert not found.applied(asked(shape="1,1", cut="auto", compile="default")).value.is_for_planner


SLOW = nodes(2, 1, bytes_per_s=GBIT / 10)


def heavy() -> Profile:
    """Sums take longer than passes where the link is slow."""
    return replace(profile_of([0.05] * 4, trained_bytes=20 * MB), cutter="graph")


@pytest.mark.parametrize(
    ("options", "cluster", "dtype", "told"),
    [
        ({}, SLOW, "float32", "int4 would be faster"),
        ({"exchange_loss": "ok"}, SLOW, "int4", "--exchange auto: int4: "),
        ({"exchange_loss": "ok", "precision": "float64"}, SLOW, "float32", "no shorter form"),
        ({"exchange_loss": "ok"}, nodes(2, 1, bytes_per_s=1e12), "float32", "saves nothing"),
        ({"exchange_loss": "ok"}, nodes(1, 2), "float32", "saves nothing"),
    ],
)
def test_the_exchange_is_exact_unless_a_loss_is_allowed_and_pays(
    options: dict[str, str], cluster: Cluster, dtype: str, told: str
) -> None:
    train = asked(shape="1", exchange="auto", **options)
    assert is_asked(train)
    found, document = chosen(train, heavy(), cluster)
    assert (found.exchange, found.exchange_dtype) == ("all", dtype)
    assert told in document["notes"][-1]
    settled = found.applied(train).value
    assert settled.exchange_form == ExchangeForm(found.exchange_dtype)
    assert not is_asked(found.applied(train))


def test_over_nccl_no_blocks_are_chosen() -> None:
    train = asked(shape="1", exchange="auto", exchange_loss="ok")
    document = decide.choose(train, heavy(), SLOW, replace(QUESTION, devices="gpu"))
    assert document["chosen"]["exchange_dtype"] == "bfloat16"


def test_a_form_that_is_named_stays() -> None:
    for options in ({"exchange": "topk:8"}, {"exchange_dtype": "int8"}):
        found, document = chosen(asked(shape="auto", **options), heavy(), SLOW)
        assert {"exchange": found.exchange, "exchange_dtype": found.exchange_dtype} == {
            "exchange": "all", "exchange_dtype": "float32", **options,
        }  # fmt: skip
        assert not any("--exchange" in note for note in document["notes"])


def test_what_the_user_says_stays() -> None:
    said = asked(shape="1,1", cut="auto", schedule="gpipe", microbatch_size="64")
    found, document = chosen(said, uneven(), nodes(1, 2))
    assert (found.schedule, found.microbatch_size) == ("gpipe", 64)
    assert {row["schedule"] for row in document["plans"]} == {"gpipe"}


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        ({}, False),
        ({"shape": "auto"}, True),
        ({"cut": "auto"}, True),
        ({"schedule": "auto"}, True),
        ({"microbatch_size": "0"}, True),
        ({"shape": "1", "microbatch_size": "0"}, True),
        ({"schedule": "gpipe", "microbatch_size": "16"}, False),
        ({"sync": "auto"}, False),
        ({"schedule": "auto", "cut": "2"}, False),
        ({"schedule": "auto", "shape": "1,1|1"}, False),
    ],
)
def test_the_planner_is_asked_by_what_is_said(options: dict[str, str], asks: bool) -> None:
    assert is_asked(asked(**options)) == asks


def test_a_file_of_options_says_auto_as_well() -> None:
    for toml in ({"schedule": "auto"}, {"microbatch-size": 0}):
        assert is_asked(resolve(TrainConfig, {}, environ={}, toml=toml, toml_name="t.toml"))


def test_micro_batches_of_0_are_the_size_with_the_shortest_step() -> None:
    # Twice as many samples take less than twice as long; but few of them leave a stage idle.
    small, large = uneven().by_samples[0], profile_of([0.5, 0.15, 0.15, 0.15]).by_samples[0]
    profile = replace(uneven(), by_samples=(small, replace(large, samples=16)))
    train = asked(shape="1,1", cut="b0", schedule="1f1b", microbatch_size="0", batch_size="64")
    found, _ = chosen(train, profile, nodes(1, 2))
    assert (found.cut, found.schedule) == (("b0",), "1f1b")
    outlook = Outlook(profile=profile, cluster=nodes(1, 2), request=request_of(train, profile))
    plan = Candidate(
        shape=Shape((1, 1)), cuts=(0,), schedule="1f1b", sync="local-master", samples=1
    )
    steps = {n: outlook.forecast(replace(plan, samples=n)).step_s for n in (8, 16, 32, 64)}
    assert found.microbatch_size == min(steps, key=steps.__getitem__) == 16


def test_named_cuts_stay_while_the_widths_are_chosen() -> None:
    pieces = uneven().by_samples[0]
    named = tuple(replace(each, name=f"layer{each.name}") for each in pieces.boundaries)
    profile = replace(uneven(), by_samples=(replace(pieces, boundaries=named),))
    found, _ = chosen(asked(shape="auto", cut="layerb1"), profile, nodes(1, 3))
    assert found.cut == ("layerb1",)
    assert found.shape.widths == (2, 1)


def test_a_cut_that_is_no_place_is_named() -> None:
    with pytest.raises(ConfigError, match="--cut layer9 is no place that was profiled"):
        request_of(asked(shape="auto", cut="layer9"), uneven())


def test_a_model_that_is_cut_already_runs_in_these_stages_or_in_one() -> None:
    _, document = chosen(asked(shape="auto"), uneven(cutter=None), nodes(1, 4))
    assert {len(row["cut"]) for row in document["plans"]} <= {0, 3}
    found, _ = chosen(asked(shape="1,1,1,1", cut="auto"), uneven(cutter=None), nodes(1, 4))
    assert (found.cut, found.cutter) == ((), "auto")


def test_what_is_chosen_is_in_the_options_with_its_source() -> None:
    train = asked(shape="auto", lr="0.5")
    found = chosen(train, uneven(), nodes(1, 2))[0].applied(train)
    assert not found.value.is_for_planner
    assert found.sources["shape"] == SOURCE
    assert found.sources["lr"] == "option"
    assert found.value.to_argv().count("--shape=auto") == 0


class TestKept:
    def test_the_first_of_several_nodes_decides(self, tmp_path: Path) -> None:
        first, second = ({"chosen": self._plain(shape)} for shape in ("1,1", "1"))
        path = tmp_path / "decisions" / "a.json"
        assert keep_decision(path, first) == first
        assert keep_decision(path, second) == first

    def test_a_file_that_nobody_can_read_is_written_anew(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text("{")
        document = {"chosen": self._plain("1,1")}
        assert keep_decision(path, document) == document == kept_decision(path)

    def test_a_rank_without_our_launcher_takes_it(self, tmp_path: Path) -> None:
        train = asked(shape="auto", run_dir=str(tmp_path))
        with pytest.raises(ConfigError, match="--shape auto is decided before ranks start"):
            with_kept_decision(train)
        keep_decision(RunPaths(tmp_path).decision("a"), {"chosen": self._plain("2,1")})
        assert with_kept_decision(train).value.shape.widths == (2, 1)

    def test_it_is_not_chosen_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        train = asked(shape="auto", run_dir=str(tmp_path))
        monkeypatch.setattr(decide, "_profile", lambda *_: uneven())
        first, again = (self._decided(train) for _ in range(2))
        assert first.document == again.document
        assert RunPaths(tmp_path).model_profile.exists()
        monkeypatch.setattr(decide, "_profile", lambda *_: pytest.fail("measured again"))
        assert self._decided(train).train.value == first.train.value
        other = asked(shape="auto", run_dir=str(tmp_path), batch_size="128")
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            self._decided(other)

    def test_machines_that_are_not_there_leave_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decide, "_profile", lambda *_: uneven())
        self._decided(asked(shape="auto", run_dir=str(tmp_path)), nodes=(8, 8))
        assert not RunPaths(tmp_path).all_decisions()

    @staticmethod
    def _plain(shape: str) -> Mapping[str, object]:
        return chosen(asked(shape="auto"), uneven(), nodes(1, 2))[0].to_plain() | {"shape": shape}

    @staticmethod
    def _decided(train: Resolved[TrainConfig], nodes: tuple[int, ...] = ()) -> decide.Decided:
        return decide.decided(
            train, LaunchConfig(), hardware=CORES, environ={}, nodes=nodes, tell=lambda _: None
        )


class TestQuestion:
    def test_what_counts_makes_another_one(self) -> None:
        def digest(cluster: str = "", **options: str) -> str:
            return question_of(asked(**options), LaunchConfig(), "cpu", cluster).digest

        assert digest(shape="auto") == digest(shape="auto", lr="1", epochs="3")
        others = [{"shape": "auto"}, {"shape": "auto", "batch_size": "8"}, {"cut": "auto"}]
        assert len({digest(**each) for each in others} | {digest("[[nodes]]")}) == 4

    @pytest.mark.parametrize(
        ("options", "kind", "sizes"),
        [
            ({"microbatch_size": "4"}, "cpu", (4,)),
            ({}, "cpu", (4, 16)),
            ({"batch_size": "7"}, "cpu", (7,)),
            ({"batch_size": "2"}, "cpu", (1, 2)),
        ],
    )
    def test_sizes_are_divisors(
        self, options: dict[str, str], kind: str, sizes: tuple[int, ...]
    ) -> None:
        assert sizes_to_profile(asked(**options).value, kind) == sizes

    @pytest.mark.parametrize(
        ("launch", "count"),
        [({}, 4), ({"slots": 2}, 2), ({"nproc_per_node": "3"}, 3), ({"devices": "cpu"}, 4)],
    )
    def test_devices_before_a_shape_is_known(self, launch: dict[str, Any], count: int) -> None:
        found = devices_of(asked(shape="auto").value, LaunchConfig(**launch), CORES)
        assert (found.kind, found.count) == ("cpu", count)

    def test_bundles_of_no_shape_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="--bundles 2 are of a shape that --shape auto"):
            devices_of(asked(shape="auto").value, LaunchConfig(bundles=2), CORES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cut": "auto,layer3"}, "has names beside auto"),
        ({"shape": "auto", "cut": "3"}, "--cut 3 asks for equal parts, and --shape auto chooses"),
        ({"shape": "auto", "chunks": "2"}, "--shape auto chooses stages of one chunk"),
        ({"shape": "auto", "recompute": "1"}, "numbers stages that --shape auto is yet to choose"),
    ],
)
def test_what_contradicts_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(**options)


class TestApart:
    def _profile(self, script: str, monkeypatch: pytest.MonkeyPatch, out: Path) -> Profile:
        run = apart.subprocess.run
        monkeypatch.setattr(
            apart.subprocess,
            "run",
            lambda words, **rest: run([words[0], "-c", script], **rest),
        )
        return apart.profile_apart(asked(data="x").value, (1,), "cpu", out, {})

    def test_its_error_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script = """print('{"error": "no such model; give another"}')"""
        with pytest.raises(ConfigError, match="no such model; give another"):
            self._profile(script, monkeypatch, tmp_path / "out")

    def test_its_death_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(NodeError, match="ended with code -9"):
            self._profile("import os; os.kill(os.getpid(), 9)", monkeypatch, tmp_path / "out")

    def test_it_has_a_limit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(apart, "LIMIT_S", 0.2)
        with pytest.raises(NodeError, match="took longer than"):
            self._profile("import time; time.sleep(60)", monkeypatch, tmp_path / "out")


def test_a_decision_is_told_in_words() -> None:
    _, document = chosen(asked(shape="1,1", cut="auto"), uneven(), nodes(1, 2))
    line = chosen_line(document)
    assert "shape 1,1 cut at b0, " in line
    assert "of the best possible" in line
    header, *rows, note = table(document)
    assert len(rows) == len(document["plans"])
    assert note.startswith("(over:")
    assert "layer" not in header


@pytest.mark.parametrize(
    ("value", "text"), [(1.234, "1.23 s"), (0.0123, "12.3 ms"), (4e-6, "4 us"), (0.0, "0 us")]
)
def test_times_are_short(value: float, text: str) -> None:
    assert seconds(value) == text
