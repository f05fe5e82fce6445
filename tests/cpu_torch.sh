#!/usr/bin/env bash
# Runs tests with ranks on a torch without NCCL, in an environment that is thrown away.
# CPU_TORCH says what to install; where pip finds a build with NCCL, there is nothing to try.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${PYTHON:=python3}"
: "${CPU_TORCH:=torch==2.13.0}"
: "${TORCHVISION:=torchvision==0.28.0}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
run="$folder/venv/bin/python"
"$run" -m pip install --quiet "$CPU_TORCH" numpy psutil safetensors tqdm pillow hypothesis pytest \
    pytest-timeout
"$run" -m pip install --quiet --no-deps "$TORCHVISION"
if "$run" -c 'import torch.distributed as d; raise SystemExit(not d.is_nccl_available())'; then
    echo "skipped: $CPU_TORCH as pip finds it here has NCCL; set CPU_TORCH to a build for the CPU"
    exit 0
fi
plugin=()
"$run" -c 'import torchvision' 2>/dev/null || plugin=(-p tests.without_nms)
"$run" -m pytest "${plugin[@]}" tests/ranks/training/test_parity.py tests/ranks/sync/test_sync.py \
    tests/ranks/pipeline/test_links.py \
    tests/ranks/rank/test_nccl_stand_in.py::test_json_and_legs_go_to_nccl_as_it_wants_them "$@"
