from __future__ import annotations

import pytest

from bundlerun.launcher.errors import NodeError
from bundlerun.workers.rank.arrival.hello import Hello, choose_backend, for_all


def hello(has_nccl: bool, gpus: tuple[str, ...] = ()) -> Hello:
    return Hello(name="n", num_ranks=2, has_nccl=has_nccl, gpus=gpus, terms={"--lr": "0.1"})


TWO = hello(True, ("gpu-a", "gpu-b"))
OTHER_TWO = hello(True, ("gpu-c", "gpu-d"))
SHARED = hello(True, ("gpu-a", "gpu-a"))
ON_CPU = hello(True)
WITHOUT_NCCL = hello(False, ("gpu-e", "gpu-f"))


def choice(transport: str, *nodes: Hello, num_stages: int = 1) -> tuple[str, str]:
    has_gpus = bool(nodes[0].gpus)
    found = for_all(nodes)
    assert not any(node.gpus or node.terms for node in found)
    return choose_backend(transport, found, num_stages=num_stages, has_gpus=has_gpus)


def test_replicas_with_gpus_of_their_own_use_nccl() -> None:
    assert choice("auto", TWO, OTHER_TWO) == ("nccl", "")


def test_pipelines_take_the_careful_way_and_say_so() -> None:
    backend, note = choice("auto", TWO, num_stages=2)
    assert backend == "gloo"
    assert "--transport nccl" in note
    assert choice("nccl", TWO, num_stages=2) == ("nccl", "")
    assert choice("cpu", TWO, num_stages=2) == ("gloo", "")


def test_stages_that_talk_from_gpu_to_gpu_need_gpus_which_they_may_share() -> None:
    assert choice("ipc", TWO, SHARED, num_stages=2) == ("gloo", "")
    for nodes in ((TWO, ON_CPU), (ON_CPU,)):
        with pytest.raises(NodeError, match="--transport ipc needs GPUs on every node"):
            choice("ipc", *nodes)


def test_two_agents_of_one_machine_share_its_gpus() -> None:
    backend, note = choice("auto", TWO, TWO)
    assert backend == "gloo"
    assert "share a GPU" in note
    with pytest.raises(NodeError, match="several ranks share a GPU"):
        choice("nccl", TWO, TWO)


@pytest.mark.parametrize("nodes", [(SHARED,), (TWO, ON_CPU), (TWO, WITHOUT_NCCL), (ON_CPU,)])
def test_nccl_needs_a_gpu_for_every_rank_and_a_torch_that_has_it(
    nodes: tuple[Hello, ...],
) -> None:
    assert choice("auto", *nodes)[0] == "gloo"
    with pytest.raises(NodeError, match="use --transport auto or cpu"):
        choice("nccl", *nodes)
