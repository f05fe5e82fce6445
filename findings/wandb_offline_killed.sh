#!/usr/bin/env bash
# W&B offline has none of the rows that a process has logged in its last second, if it is killed.
#
# Expected: "wandb.log writes a line to a local file", and another process than the script's, which a
# kill of the script spares, has that file: rows that `log` has returned from are in it.
# True: wandb-core holds what it was given in memory, and writes some seconds later. When the script
# is gone, it ends at once, without writing: the file has a header of 7 bytes and no row.
#
# Version: wandb 0.31.0.
# Source: `exitWhenParentIsGone` in core/pkg/server/server.go, which ends with os.Exit, and the writer
# of core/internal/transactionlog, whose Write does not flush.
#
# Exits with 0 while this is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet wandb==0.31.0
"$folder/venv/bin/python" -c 'import wandb; print("wandb", wandb.__version__)'
cat > "$folder/train.py" <<'PYTHON'
import os, signal, sys, time
import wandb

settings = wandb.Settings(mode="offline", console="off", silent=True, x_disable_stats=True)
run = wandb.init(project="p", dir=sys.argv[1], settings=settings)
for step in range(10):
    run.log({"the_loss": 1 / (1 + step)})
if sys.argv[2] == "killed":
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
run.finish()
PYTHON
# How often the run's file names the metric.
count() {
    local where="$folder/$1" core
    mkdir "$where"
    "$folder/venv/bin/python" "$folder/train.py" "$where" "$2" &>/dev/null &
    local script=$!
    wait "$script" || true
    # Until W&B's own process is gone, too: it is named after the script's.
    for _ in $(seq 600); do
        core=$(pgrep -f "wandb-core.*--pid $script( |$)" || true)
        [[ -n "$core" ]] || break
        sleep 0.1
    done
    { grep -ao the_loss "$where"/wandb/offline-run-*/run-*.wandb || true; } | wc -l
}
finished=$(count finished finished)
echo "ended by finish(): its file names the metric $finished times"
# On a slow machine a second may be longer than what W&B waits.
for try in 1 2 3; do
    killed=$(count "killed$try" killed)
    echo "killed a second after its last log(): $killed times"
    ((finished == 0 || killed > 0)) || exit 0
done
exit 1
