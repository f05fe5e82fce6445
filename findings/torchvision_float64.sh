#!/usr/bin/env bash
# RAFT and Keypoint R-CNN of torchvision do not compute in float64.
#
# Expected: `model.double()` makes a model of torchvision compute in float64, with images and targets
# of that type, as Mask R-CNN does: its check of targets takes boxes of float16, float32 and float64.
# True: the same check wants key points in float32 alone, and says of float64 ones that they "must of
# float type, instead got torch.float64". RAFT makes float32 coordinates in its forward, which meet
# features in float64: a RuntimeError. Both can only be compared with other code in float32.
#
# Version: torchvision 0.29.1 with torch 2.14.1, on the CPU.
# Source: `check_targets` in torchvision/models/detection/roi_heads.py; `make_coords_grid` in
# torchvision/models/optical_flow/_utils.py, which ends with `.float()`.
#
# Exits with 0 while this is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cat > "$folder/double.py" <<'PYTHON'
import torch
import torchvision
from torchvision.models import detection, optical_flow

torch.manual_seed(0)
SMALL = {"weights": None, "weights_backbone": None, "min_size": 64, "max_size": 64}


def outcome(build, call, dtype):
    try:
        call(build().to(dtype), dtype)
    except (TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "works"


def detect(model, dtype):
    target = {
        "boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]], dtype=dtype),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
        "keypoints": torch.tensor([[[5.0, 5.0, 1.0], [9.0, 9.0, 1.0]]], dtype=dtype),
    }
    sum(model.train()([torch.rand(3, 64, 64, dtype=dtype)], [target]).values()).backward()


def flow(model, dtype):
    frame = torch.rand(1, 3, 128, 128, dtype=dtype)
    model(frame, frame, num_flow_updates=1)[0].sum().backward()


MODELS = {
    "Mask R-CNN": (lambda: detection.maskrcnn_resnet50_fpn(**SMALL), detect),
    "Keypoint R-CNN": (
        lambda: detection.keypointrcnn_resnet50_fpn(num_keypoints=2, **SMALL),
        detect,
    ),
    "RAFT": (lambda: optical_flow.raft_small(), flow),
}
print("torch", torch.__version__, "torchvision", torchvision.__version__)
found = {
    (name, dtype): outcome(build, call, dtype)
    for name, (build, call) in MODELS.items()
    for dtype in (torch.float32, torch.float64)
}
for (name, dtype), text in found.items():
    print(f"{name}, {dtype}: {text}")
fails = [key for key, text in found.items() if text != "works"]
raise SystemExit(fails != [("Keypoint R-CNN", torch.float64), ("RAFT", torch.float64)])
PYTHON
"$folder/venv/bin/python" "$folder/double.py"
