from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.workers.snapshot.piece import Layout, Spec, split_by_bytes

SIZES = st.dictionaries(st.text(max_size=8), st.integers(0, 1 << 20), max_size=30)


@given(SIZES, st.integers(1, 9))
def test_shares_are_even_and_a_function_of_names_and_sizes(
    sizes: dict[str, int], num_shares: int
) -> None:
    shares = split_by_bytes(sizes, num_shares)
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    filled = [sum(sizes[name] for name in share) for share in shares]
    assert max(filled) - min(filled) <= max(sizes.values(), default=0)
    assert split_by_bytes(dict(reversed(sizes.items())), num_shares) == shares


def test_more_replicas_than_tensors_leave_some_without_a_share() -> None:
    assert split_by_bytes({"a": 1, "b": 3}, 3) == [["b"], ["a"], []]


def test_tensors_of_a_layout_do_not_overlap() -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.tensor(7),
        "c": torch.randn(2, 2).to(torch.bfloat16),
        "d": torch.empty(0, 4),
        "e": torch.tensor([True, False, True]),
    }
    layout = Layout.of({name: Spec.of(tensor) for name, tensor in tensors.items()})
    data = torch.zeros(layout.num_bytes, dtype=torch.uint8)
    for name, tensor in tensors.items():
        layout.view(data, name).copy_(tensor)
    for name, tensor in tensors.items():
        found = layout.view(data, name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
        assert layout.begins[name] % 64 == 0
