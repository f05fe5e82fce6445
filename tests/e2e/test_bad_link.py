"""A link that loses is told with its two nodes, in a real run between hosts."""

from __future__ import annotations

import pytest

from benchmarks.bad_link import BAD, CASES, MBIT_PER_S, told
from benchmarks.cluster.hosts import Wire, open_hosts, why_not

_LIMIT_S = 90.0


@pytest.mark.netns
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "hosts can be made")
@pytest.mark.timeout(400)
def test_a_link_that_loses_is_told_and_no_other() -> None:
    case = next(case for case in CASES if case.name == "loses")
    with open_hosts(3, Wire(mbit_per_s=MBIT_PER_S)) as hosts:
        found = told(case, hosts, _LIMIT_S, until_told=True)
    assert found.is_right(case), found
    assert {source for source, _ in found.pairs} == {BAD}
