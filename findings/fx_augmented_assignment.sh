#!/usr/bin/env bash
# torch.fx records an augmented assignment to a tensor as one that makes a new tensor.
#
# Expected: a model that torch.fx.symbolic_trace accepts without an error gives what the model gives.
# True: `y += 1` on a traced value is recorded as `add = y + 1`, as torch.fx.Proxy has `__add__` and no
# `__iadd__`, and Python then falls back to it. In eager mode the same line changes the tensor in
# place, and every other name for that tensor sees it. So where a forward keeps a second name
# (a shortcut, a list of features, a view), the graph gives other numbers, without a word.
# `y.add_(1)` is recorded as it is.
#
# Versions: torch 2.14.1, Python 3.11 and newer.
# Source: torch/fx/proxy.py, where the magic methods of Proxy are made from torch.fx.graph's lists
# `magic_methods` and `reflectable_magic_methods`, which have no in-place ones.
#
# Exits with 0 while this is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/traced.py" <<'PYTHON'
import sys

import torch
from torch import fx, nn


class Kept(nn.Module):
    def forward(self, x):
        y = x * 2
        shortcut = y
        y += 1
        return shortcut


class Called(nn.Module):
    def forward(self, x):
        y = x * 2
        shortcut = y
        y.add_(1)
        return shortcut


x = torch.ones(2)
print("torch", torch.__version__)
found = {}
for model in (Kept(), Called()):
    graph = fx.symbolic_trace(model)
    found[type(model).__name__] = model(x).tolist(), graph(x).tolist()
    print(type(model).__name__, "eager, traced:", *found[type(model).__name__])
    print(graph.code.strip())
expected = {"Kept": ([3.0, 3.0], [2.0, 2.0]), "Called": ([3.0, 3.0], [3.0, 3.0])}
sys.exit(found != expected)
PYTHON
"$folder/venv/bin/python" "$folder/traced.py"
