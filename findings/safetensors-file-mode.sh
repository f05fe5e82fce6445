#!/usr/bin/env bash
# Expected: safetensors' save_file makes files with the mode that the umask gives, and an existing file that is written
#           again keeps its mode and stays the same file, as with open(path, "wb") and as in safetensors 0.7.0.
# True:     in safetensors 0.8.0 every file has mode 0600, whatever the umask; one of mode 0644 that is written again is
#           replaced by another file of mode 0600, so that who could read it cannot any more.
# Version:  safetensors 0.8.0 (0.4.5 to 0.7.0 are as expected), numpy 2.3.5, Linux.
# Source:   seen when an exported model could not be read by another user.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
: "${PYTHON:=python3}"

for version in 0.7.0 0.8.0; do
    "$PYTHON" -m pip install --quiet --target "$folder/$version" "safetensors==$version" "numpy==2.3.5"
    PYTHONPATH="$folder/$version" "$PYTHON" - "$folder" >"$folder/said-$version" <<'PROGRAM'
import os
import sys

import numpy
import safetensors
from safetensors.numpy import save_file

os.umask(0o022)
path = os.path.join(sys.argv[1], "model.safetensors")
save_file({"a": numpy.ones(2)}, path)
made = os.stat(path)
os.chmod(path, 0o644)
save_file({"a": numpy.ones(2)}, path)
again = os.stat(path)
kept = "the same file" if made.st_ino == again.st_ino else "another file"
print(f"safetensors {safetensors.__version__}: made {made.st_mode & 0o777:04o}, "
      f"0644 written again {again.st_mode & 0o777:04o}, {kept}")
os.unlink(path)
PROGRAM
    cat "$folder/said-$version"
done

grep -q "0.7.0: made 0644, 0644 written again 0644, the same file" "$folder/said-0.7.0"
grep -q "0.8.0: made 0600, 0644 written again 0600, another file" "$folder/said-0.8.0"
