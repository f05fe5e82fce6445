"""Regions of a forward as the code of a graph has them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from bundlerun.splits.tracing.region import REGION, Autocast, Region, enter_regions


def test_an_autocast_is_a_with_statement_in_the_code_of_a_graph() -> None:
    outer = Autocast(device="cpu", dtype=torch.bfloat16, is_enabled=True, is_cached=True)
    inner = replace(outer, is_enabled=False)
    graph = fx.Graph()
    node = graph.placeholder("x")
    for name, region in (
        ("cos", None),
        ("matmul", Region(autocasts=(outer,))),
        ("sin", Region(grad=False, autocasts=(outer, inner))),
        ("tanh", None),
    ):
        node = graph.call_method(name, (node, node) if name == "matmul" else (node,))
        if region is not None:
            node.meta[REGION] = region
    graph.output(node)
    enter_regions(graph)
    made = fx.GraphModule({}, graph)
    lines = [line for line in made.code.splitlines() if line.strip()]
    depths = {
        name: (len(line) - len(line.lstrip())) // 4
        for line in lines
        for name in ("cos", "matmul", "sin", "tanh", "return")
        if f".{name}(" in line or line.strip().startswith(name)
    }
    assert depths == {"cos": 1, "matmul": 2, "sin": 3, "tanh": 1, "return": 1}
    assert not [line for line in lines if "_autocast(" in line]
    result = made(torch.ones(2, 2, requires_grad=True))
    assert result.dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
