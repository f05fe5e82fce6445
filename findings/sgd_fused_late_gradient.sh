#!/usr/bin/env bash
# SGD(fused=True) with momentum ends with a TypeError where a parameter gets its first gradient late.
#
# Expected: `fused=True` changes the speed of torch.optim.SGD, not what it accepts. A parameter that
# has no gradient in the first steps, such as one of a branch that is used later or that is unfrozen
# on the way, begins its momentum with its first gradient, as without `fused`.
# True: a step in which some parameters have a momentum and some have none raises a TypeError about
# an element that is None. With `fused=False` the same steps work. Parameters whose momentum is made
# beforehand (zeros give the same numbers without dampening) are no problem.
#
# Version: torch 2.11.0 and 2.14.1, on the CPU.
# Source: `_fused_sgd` in torch/optim/sgd.py: only the momenta of a group that has none at all are
# made.
#
# Exits with 0 while this is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/late.py" <<'PYTHON'
import torch


def outcome(fused):
    early, late = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.SGD([early, late], lr=0.1, momentum=0.9, fused=fused)
    early.grad = torch.ones(3)
    optimizer.step()
    late.grad = torch.ones(3)
    try:
        optimizer.step()
    except TypeError as error:
        return f"TypeError: {error}"
    return "works"


print("torch", torch.__version__)
found = {fused: outcome(fused) for fused in (False, True)}
for fused, text in found.items():
    print(f"fused={fused}: {text}")
raise SystemExit(found[False] != "works" or not found[True].startswith("TypeError"))
PYTHON
"$folder/venv/bin/python" "$folder/late.py"
