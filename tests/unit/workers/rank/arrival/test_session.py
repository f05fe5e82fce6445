from __future__ import annotations

from torch._C._distributed_c10d import HashStore

from bundlerun.workers.rank.arrival import session
from bundlerun.workers.rank.env import RankEnv


def test_one_rank_of_a_node_tells_the_gpus_of_all_as_each_sees_its_own() -> None:
    store = HashStore()
    for rank, gpu in enumerate(["a", "b", "c", "d"]):
        store.set(f"gpu/{rank}", gpu)
    second = [node_rank(local_rank, first=2) for local_rank in range(2)]
    assert [session._gpus_of_node(env, store) for env in second] == [(), ("c", "d")]


def node_rank(local_rank: int, first: int) -> RankEnv:
    return RankEnv.from_mapping(
        {
            "RANK": str(first + local_rank),
            "WORLD_SIZE": "4",
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "1",
            "GROUP_WORLD_SIZE": "2",
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": "1",
        }
    )
