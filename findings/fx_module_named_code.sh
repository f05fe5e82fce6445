#!/usr/bin/env bash
# A graph module of torch.fx with a submodule called `code` calls a text instead of it.
#
# Expected: the names of submodules are the user's; torch.fx.symbolic_trace takes any of them, as
# nn.Module does.
# True: a graph module has a property `code` of its own, the text of its forward. Tracing succeeds
# without a word, and the first call fails with "'str' object is not callable": the submodule is
# there, but its name finds the property first.
#
# Version: torch 2.14.1, on the CPU.
# Source: the property `code` of GraphModule in torch/fx/graph_module.py; submodules are found only
# where the class has nothing of that name.
#
# Exits with 0 while this is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/names.py" <<'PYTHON'
import torch
from torch import fx, nn


class Coder(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name
        self.add_module(name, nn.Linear(4, 4))

    def forward(self, x):
        return getattr(self, self.name)(x)


print("torch", torch.__version__)
x = torch.ones(2, 4)
fails = {}
for name in ("coder", "code"):
    traced = fx.symbolic_trace(Coder(name))
    print(f"a submodule {name!r}: traced;", end=" ")
    try:
        print("its output is", tuple(traced(x).shape))
        fails[name] = False
    except TypeError as error:
        print("its call:", error)
        fails[name] = True
raise SystemExit(fails != {"coder": False, "code": True})
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/names.py" 2>/dev/null  # torch writes a traceback, too
