#!/usr/bin/env bash
# peft's adapter of a convolution with padding_mode "circular" is another model once it is merged.
#
# Expected: `merge_and_unload` gives a model that computes what the adapted one computed.
# True: the adapter beside a `Conv2d` is made without the layer's `padding_mode`, so it pads with
# zeros while the layer pads in a circle, or by reflection. Merged, its weights become the layer's
# and are padded as the layer is: the outputs differ by as much as they are large. With zeros as
# padding the two are equal to rounding. No error and no warning is given.
#
# Version: peft 0.21.2, torch 2.14.1, on the CPU.
# Source: `_ConvNd.update_layer` in peft/tuners/lora/layer.py.
#
# Exits with 0 while this is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 peft==0.21.2
cat > "$folder/padding.py" <<'PYTHON'
import peft
import torch
from torch import nn


@torch.no_grad()
def difference(padding_mode):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode=padding_mode))
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    adapted = peft.get_peft_model(net, config).double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = adapted(images)
    return float((adapted.merge_and_unload()(images) - before).abs().max())


print("peft", peft.__version__, "torch", torch.__version__)
found = {mode: difference(mode) for mode in ("zeros", "circular", "reflect")}
for mode, value in found.items():
    print(f"padding_mode {mode!r}: merged and not merged differ by {value:.1e}")
is_so = found["zeros"] < 1e-12 and min(found["circular"], found["reflect"]) > 0.1
raise SystemExit(not is_so)
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/padding.py"
