#!/usr/bin/env bash
# `dlrover-run` 0.6.1 starts nothing on torch 2.14: its master can't be started.
#
# Expected: dlrover with its extra "torch", which names no upper bound for torch, starts a script
# that prints one line. (grpcio, which it imports, is installed beside it: that extra leaves it out.)
# True: `dlrover-run --standalone` ends with "TypeError: SubprocessHandler.__init__() missing 1
# required positional argument: 'numa_options'" before the script runs; torch's class has asked
# for that argument since it can bind ranks to NUMA nodes. torchrun runs the same script.
#
# Version: dlrover 0.6.1, torch 2.14.1, on the CPU.
# Source: `_launch_dlrover_local_master` in dlrover/trainer/torch/elastic_run.py;
# torch/distributed/elastic/multiprocessing/subprocess_handler/subprocess_handler.py.
#
# Exits with 0 while this is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 "dlrover[torch]==0.6.1" \
   grpcio==1.85.3
echo 'print("the script ran")' > "$folder/script.py"
"$folder/venv/bin/pip" list 2> /dev/null | grep -E '^(dlrover|torch) '
export OMP_NUM_THREADS=1
run() {
    local program=$1
    echo "$program:"
    timeout 120 "$folder/venv/bin/$program" --standalone --nnodes 1 --nproc-per-node 1 \
        "$folder/script.py" > "$folder/$program.txt" 2>&1 || true
    grep -hE '^TypeError|^the script ran' "$folder/$program.txt" | sed 's/^/  /'
}
run torchrun
run dlrover-run
grep -q '^the script ran' "$folder/torchrun.txt"
grep -q "^TypeError: .*missing.*'numa_options'" "$folder/dlrover-run.txt"
! grep -q '^the script ran' "$folder/dlrover-run.txt"
