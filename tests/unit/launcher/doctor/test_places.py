"""Names, run folder and data: by facts, and by what is read on this machine."""

from __future__ import annotations

import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bundlerun.launcher.doctor.data import DataFacts, check_data
from bundlerun.launcher.doctor.findings import Level
from bundlerun.launcher.doctor.folder import FolderFacts, SharedFacts, check_folder, check_shared
from bundlerun.launcher.doctor.machine import GIB
from bundlerun.launcher.doctor.network import Card, NetworkFacts, check_network
from bundlerun.launcher.doctor.read.ask_torch import Question
from bundlerun.launcher.doctor.read.data import is_read, read_data, some_files
from bundlerun.launcher.doctor.read.folder import OLD_S, nearest_folder, trial, try_folder
from bundlerun.launcher.doctor.read.network import read_network

NOBODY: Question = None  # type: ignore[assignment] # where no image is to be decoded
LOOPBACK = Card(name="lo", addresses=("127.0.0.1",), mtu=65536)
CARD = Card(name="eth0", addresses=("10.0.0.3",), mbit_per_s=10_000, mtu=9000)
NETWORK = NetworkFacts(name="node-c", named="10.0.0.3", cards=(LOOPBACK, CARD))
FOLDER = FolderFacts(path="/shared/run", kind="nfs4", write_s=0.003, free=100 * GIB)
SHARED = SharedFacts(
    path="/shared",
    lead="a",
    seen_s=(("b", 0.01), ("c", 0.02)),
    back_s=(("b", 0.01), ("c", 0.0)),
    firsts=("b",),
    wait_s=5.0,
)
DATA = DataFacts(path="/data", num_files=400, num_bytes=40 << 20, seconds=0.1)


@pytest.mark.parametrize(
    ("changes", "subject", "level"),
    [
        ({}, "name", Level.OK),
        ({"named": "127.0.1.1"}, "name", Level.OK),
        ({"named": ""}, "name", Level.WARNING),
        ({"named": "", "address": "10.0.0.3"}, "name", Level.OK),
        ({"cards": (LOOPBACK, replace(CARD, mbit_per_s=100))}, "network", Level.WARNING),
        ({"chosen": (("NCCL_SOCKET_IFNAME", "eth"),)}, "network", Level.OK),
        ({"chosen": (("NCCL_SOCKET_IFNAME", "=eth"),)}, "interface", Level.ERROR),
        ({"chosen": (("GLOO_SOCKET_IFNAME", "ib0"),)}, "interface", Level.ERROR),
    ],
)
def test_how_a_node_stands_in_the_network(
    changes: dict[str, object], subject: str, level: Level
) -> None:
    facts = replace(NETWORK, **changes)  # type: ignore[arg-type]
    found = {each.subject: each.level for each in check_network(facts)}
    assert found[subject] is level
    assert ("interface" in found) is (subject == "interface")


def test_the_network_of_this_machine_is_read() -> None:
    facts = read_network({"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": ""})
    assert "127.0.0.1" in [address for card in facts.cards for address in card.addresses]
    assert facts.chosen == (("NCCL_SOCKET_IFNAME", "lo"),)


@pytest.mark.parametrize(
    ("changes", "subject", "level"),
    [
        ({}, "run folder", Level.OK),
        ({"why_not": "permission denied"}, "run folder", Level.ERROR),
        ({"write_s": 0.4}, "run folder", Level.WARNING),
        ({"free": GIB}, "room", Level.WARNING),
        ({"free_files": 12}, "room", Level.WARNING),
        ({"links": False}, "hard links", Level.WARNING),
        ({"locks": False}, "locks", Level.OK),
    ],
)
def test_what_a_folder_does(changes: dict[str, object], subject: str, level: Level) -> None:
    facts = replace(FOLDER, **changes)  # type: ignore[arg-type]
    assert {each.subject: each.level for each in check_folder(facts)}[subject] is level


@pytest.mark.parametrize(
    ("changes", "level", "named"),
    [
        ({}, Level.OK, "3 nodes see"),
        ({"seen_s": (("b", None), ("c", 0.1))}, Level.ERROR, "b does not see"),
        ({"back_s": (("b", 0.1), ("c", None))}, Level.ERROR, "what c wrote"),
        ({"firsts": ("a", "c")}, Level.ERROR, "2 nodes made one file in '/shared': a, c"),
        ({"firsts": ()}, Level.ERROR, "0 nodes made one file in '/shared': none"),
        ({"seen_s": (("b", 3.5),)}, Level.WARNING, "within 3500 ms"),
    ],
)
def test_whether_nodes_share_a_folder(changes: dict[str, object], level: Level, named: str) -> None:
    (finding,) = check_shared(replace(SHARED, **changes))  # type: ignore[arg-type]
    assert finding.level is level
    assert named in finding.text


def test_a_trial_leaves_nothing_and_makes_no_run_folder(tmp_path: Path) -> None:
    left = tmp_path / ".bundlerun-doctor-0011"
    left.mkdir()
    os.utime(left, (1, 1 + OLD_S))
    facts = try_folder(tmp_path / "runs" / "new")
    assert facts.why_not == ""
    assert facts.links
    assert facts.locks
    assert facts.write_s > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert try_folder(tmp_path / "file").why_not == "it is a file"
    with trial(tmp_path, "abc"), pytest.raises(FileExistsError), trial(tmp_path, "abc"):
        pass
    assert nearest_folder(tmp_path / "file" / "x" / "y") == tmp_path


@pytest.mark.parametrize(
    ("facts", "levels"),
    [
        (DATA, ["ok"]),
        (replace(DATA, is_there=False), ["error"]),
        (replace(DATA, why_not="'/data/x': permission denied"), ["error"]),
        (replace(DATA, num_files=0), ["warning"]),
        (replace(DATA, is_images=True, decoded=100, decode_s=1.0, cores=8), ["ok", "ok"]),
        (replace(DATA, is_images=True, decoded=9000, decode_s=1.0), ["ok", "warning"]),
        (replace(DATA, is_images=True, why_not_decoded="cannot read x"), ["ok", "warning"]),
    ],
)
def test_how_fast_data_comes(facts: DataFacts, levels: list[str]) -> None:
    assert [str(each.level) for each in check_data(facts)] == levels


def test_some_files_of_a_data_set_are_read(tmp_path: Path) -> None:
    for name in ("a", "b", ".hidden"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{number}.txt").write_text("x" * 100)
    facts = read_data(str(tmp_path), NOBODY)
    assert (facts.num_files, facts.num_bytes, facts.is_images) == (6, 600, False)
    one = list(some_files(tmp_path, random.Random(1)))
    assert one == list(some_files(tmp_path, random.Random(1)))
    assert not read_data(str(tmp_path / "nothing"), NOBODY).is_there
    assert [is_read(data) for data in ("", "synthetic", "x")] == [False, False, True]


def program(text: str) -> Question:
    return Question(words=[sys.executable, "-c", text])


def test_images_are_decoded_by_the_process_that_has_torch(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("x")
    answer = {"gpus": [], "built_for": [], "nccl": "", "has_nms": True, "apart": []}
    text = f"print('noise'); print(json.dumps({answer!r}), flush=True); line = input()\n"
    text += "print(json.dumps(dict(images=len(json.loads(line)), seconds=2.0, why_not='')))"
    with program(f"import json\n{text}") as question:
        assert question.answer().why_not == ""
        facts = read_data(str(tmp_path), question)
        assert (facts.decoded, facts.decode_s, facts.why_not_decoded) == (1, 2.0, "")
        again = read_data(str(tmp_path), question)
        assert again.why_not_decoded == "decoding: it ends with 0: no reason given"


def test_why_torch_says_nothing_is_its_last_line() -> None:
    with program("raise ImportError('libcudart.so.13')") as question:
        assert question.answer().why_not == "it ends with 1: ImportError: libcudart.so.13"
    with program("input()") as question:
        assert question.answer(0.01).why_not == "no answer within 0 s"
