#!/usr/bin/env bash
# Runs tests on a version of torch that is not the pinned one, in an environment that is thrown away.
# VERSION says which; pip finds the torchvision that belongs to it. Arguments are for pytest; without,
# the quick tests and those with ranks run. ENVIRONMENT keeps the environment, for another try.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${PYTHON:=python3}"
: "${VERSION:?which torch? for example: make test-torch VERSION=2.11.0}"
: "${EXTRAS:=demo,tensorboard,fast,report,timm,hf,lora,text,parquet,completion,dev}"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
: "${ENVIRONMENT:=$scratch/venv}"
"$PYTHON" -m venv "$ENVIRONMENT"
run="$ENVIRONMENT/bin/python"
# All else is as it is pinned, so that what fails fails because of torch; 2.11 wants an older setuptools.
grep -vE '^(torch|torchvision|setuptools)==' constraints.txt >"$scratch/constraints.txt"
"$run" -m pip install --quiet -c "$scratch/constraints.txt" "torch==$VERSION" torchvision -e ".[$EXTRAS]"
"$run" -c 'import torch, torchvision; print("torch", torch.__version__, "torchvision", torchvision.__version__)'
tests=("$@")
((${#tests[@]})) || tests=(tests/unit tests/ranks)
PATH="$ENVIRONMENT/bin:$PATH" "$run" -m pytest --numprocesses 2 --dist loadscope "${tests[@]}"
