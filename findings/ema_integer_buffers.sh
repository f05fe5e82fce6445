#!/usr/bin/env bash
# torch's AveragedModel with use_buffers=True averages tables of whole numbers, and cuts them off.
#
# Expected: a moving average of a model whose weights never change is the model. torchvision's
# reference training keeps its average with use_buffers=True.
# True: buffers of integers are averaged like weights, in floating point, and copied back, which cuts
# off what is behind the point. decay * n + (1 - decay) * n may lie a hair below n, and becomes n - 1.
# Swin's `relative_position_index`, which picks the position bias of each pair of pixels, is such a
# buffer: with a decay of 0.99998 entries of it change although nothing is trained. No error and no
# warning is given, and the averaged model computes something else.
#
# Version: torch 2.14.1, torchvision 0.29.1, on the CPU.
# Source: `update_parameters` in torch/optim/swa_utils.py goes over parameters and buffers alike.
#
# Exits with 0 while this is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cat > "$folder/average.py" <<'PYTHON'
import torch
import torchvision
from torch.optim.swa_utils import AveragedModel

print("torch", torch.__version__, "torchvision", torchvision.__version__)
decay = 0.99998
torch.manual_seed(0)
model = torchvision.models.swin_t().eval()
average = AveragedModel(
    model, avg_fn=lambda mean, new, count: decay * mean + (1 - decay) * new, use_buffers=True
)
name = next(n for n, b in model.named_buffers() if n.endswith("relative_position_index"))
before = dict(model.named_buffers())[name]
wrong = 0
for update in range(1, 7):
    average.update_parameters(model)
    after = dict(average.module.named_buffers())[name]
    wrong = int((after != before).sum())
    print(f"after update {update}: {wrong} of {before.numel()} entries of {name} differ")
image = torch.rand(1, 3, 224, 224)
with torch.no_grad():
    apart = (average.module(image) - model(image)).abs().max()
print(f"largest difference of an output: {apart:.2e}")
raise SystemExit(wrong == 0)
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/average.py"
