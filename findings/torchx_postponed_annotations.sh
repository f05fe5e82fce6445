#!/usr/bin/env bash
# torchx refuses a component whose file postpones its annotations.
#
# Expected: `from __future__ import annotations` changes when annotations are evaluated, and nothing
# else: a component with it is run like one without it.
# True: torchx takes the annotations of the component as they stand in its signature. Postponed ones
# are strings there, none of which is a type that it knows, so the component cannot be run.
#
# Version: torchx 0.7.0.
# Source: torchx/specs/builders.py, which makes the component's command line from the annotations of
# `inspect.signature`.
#
# Exits with 0 while this is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torchx==0.7.0 "setuptools<81"
cd "$folder"
cat > plain.py <<'PYTHON'
import torchx.specs as specs


def hello(num: int = 1) -> specs.AppDef:
    """Says hello.

    Args:
        num: how often
    """
    role = specs.Role(name="hello", image="", entrypoint="echo", args=["hello"] * num)
    return specs.AppDef(name="hello", roles=[role])
PYTHON
{ echo "from __future__ import annotations"; echo; cat plain.py; } > postponed.py
venv/bin/python -c 'from importlib.metadata import version; print("torchx", version("torchx"))'
show() {
    local rc=0
    venv/bin/torchx run --dryrun --scheduler local_cwd "$1.py:hello" --num 2 >"$1.out" 2>&1 || rc=$?
    echo "$1: exit code $rc: $(grep -vE '^\s*$' "$1.out" | tail -1)"
    return "$rc"
}
show plain
if show postponed; then exit 1; fi
