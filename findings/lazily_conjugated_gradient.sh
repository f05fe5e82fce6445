#!/usr/bin/env bash
# A complex parameter that is used through `.conj()` can't be trained by Adam, nor clipped.
#
# Expected: the gradient of a complex parameter is an ordinary tensor, and every optimizer and
# `clip_grad_norm_` takes it. Filters in the frequency domain are used conjugated all the time.
# True: autograd hands out the gradient as a lazy conjugate (`is_conj()` is true). SGD steps with
# it; Adam and AdamW raise RuntimeError in `view_as_real`, and `clip_grad_norm_` raises in
# `_foreach_mul_` once there is something to clip. `parameter.grad.resolve_conj()` before the step
# helps.
#
# Version: torch 2.14.1, on the CPU.
# Source: `_single_tensor_adam` in torch/optim/adam.py calls `torch.view_as_real(grad)`;
# `ConjugateFallback.cpp` refuses lists that are changed in place.
#
# Exits with 0 while this is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/conjugate.py" <<'PYTHON'
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_


def parameter_with_gradient(is_conjugated):
    weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    used = weight.conj() if is_conjugated else weight
    (used * torch.tensor(1 + 2j)).sum().abs().backward()
    return weight


def outcome(action):
    try:
        action()
    except RuntimeError as error:
        return f"RuntimeError: {str(error).strip().splitlines()[0][:90]}"
    return "works"


def answers(is_conjugated):
    weight = parameter_with_gradient(is_conjugated)
    print(f"used {'through conj()' if is_conjugated else 'as it is'}: "
          f"weight.grad.is_conj() = {weight.grad.is_conj()}")
    found = {"clip_grad_norm_": outcome(lambda: clip_grad_norm_([weight], 0.1))}
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        weight = parameter_with_gradient(is_conjugated)
        found[kind.__name__] = outcome(kind([weight], lr=0.1).step)
    for name, text in found.items():
        print(f"  {name}: {text}")
    return {name for name, text in found.items() if text != "works"}


print("torch", torch.__version__)
is_so = not answers(False) and answers(True) == {"clip_grad_norm_", "Adam", "AdamW"}
raise SystemExit(not is_so)
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/conjugate.py"
