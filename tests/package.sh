#!/usr/bin/env bash
# Builds the sdist and the wheel, and uses the wheel where there is no checkout, in an environment that
# is thrown away: what somebody has after `pip install bundlerun`. PYTHON says which Python.
#
# SITE=FOLDER takes torch and all else from there instead of installing it (some gigabytes): a
# site-packages folder of the same Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${PYTHON:=python3}"
: "${SITE:=}"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
say() { printf '\n== %s\n' "$*"; }

say "build with $("$PYTHON" --version)"
# A copy: building leaves files where it builds.
mkdir "$scratch/source"
git ls-files -z | tar --null --files-from=- --create | tar --extract --directory "$scratch/source"
"$PYTHON" -m venv "$scratch/build"
"$scratch/build/bin/python" -m pip install --quiet build
"$scratch/build/bin/python" -m build --outdir "$scratch/dist" "$scratch/source" >"$scratch/build.log" ||
    { tail -n 30 "$scratch/build.log"; exit 1; }
"$scratch/build/bin/python" -m build --wheel --outdir "$scratch/direct" "$scratch/source" >/dev/null
ls -l "$scratch/dist"

# `build` makes the wheel from the sdist: it has to be the one that the checkout gives.
"$PYTHON" - "$scratch"/dist/*.whl "$scratch"/direct/*.whl "$scratch/source" <<'CHECK'
import pathlib, sys, zipfile

def files(path):
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("RECORD")}

from_sdist, direct = map(files, sys.argv[1:3])
assert from_sdist == direct, from_sdist.keys() ^ direct.keys() or "contents differ"
source = pathlib.Path(sys.argv[3])
tree = set()
for top in ("launcher", "slurm", "splits", "workers"):
    tree |= {f"bundlerun/{top}/{path.relative_to(source / top)}" for path in (source / top).rglob("*") if path.is_file()}
tree |= {f"bundlerun/{path.name}" for path in (source / "bundlerun").iterdir() if path.is_file()}
ours = {name for name in direct if name.startswith("bundlerun/")}
assert ours == tree, ours ^ tree
rest = {name.partition("/")[0] for name in direct if name not in ours}
assert len(rest) == 1 and all(name.endswith(".dist-info") for name in rest), rest
print(f"{len(direct)} files, the same from the sdist and from the checkout")
CHECK

say "install"
"$PYTHON" -m venv "$scratch/venv"
run="$scratch/venv/bin/python"
if [[ -n "$SITE" ]]; then
    "$run" -m pip install --quiet --no-deps "$scratch"/dist/*.whl
    own=$("$run" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$SITE" >"$own/others.pth"
else
    "$run" -m pip install --quiet -c constraints.txt "$scratch"/dist/*.whl
    "$run" -m pip check
fi
mkdir "$scratch/empty"
cd "$scratch/empty"
export PATH="$scratch/venv/bin:$PATH" OMP_NUM_THREADS=1
unset PYTHONPATH
"$run" -c 'import bundlerun, torch, torchvision
assert "venv" in bundlerun.__file__, bundlerun.__file__
print("torch", torch.__version__, "torchvision", torchvision.__version__)'

say "use"
bundlerun --version
bundlerun --help >help.txt
bundlerun run --help >>help.txt
bundlerun plan --nodes 4x8,2x4 --shape 1,1 --batch-size 1280 data >plan.txt
small=(--devices=cpu --image-size=32 --augment=none --batch-size=8 --microbatch-size=4
    --synthetic-samples=16 --num-classes=4 --epochs=1 --no-affinity)
bundlerun run "${small[@]}" --slots=2 --shape=1,1 --model=resnet18 --run-dir=runs/two synthetic
bundlerun status runs/two
bundlerun export runs/two -o model.safetensors
python -m bundlerun.workers.train --shape=1 --image-size=32 --augment=none --batch-size=8 \
    --microbatch-size=4 --synthetic-samples=16 --num-classes=4 --epochs=1 --model=resnet18 \
    --run-dir=runs/one synthetic
python -m torch.distributed.run --nproc-per-node=2 --rdzv-backend=bundle -m bundlerun.workers.train \
    --shape=1 --image-size=32 --augment=none --batch-size=8 --microbatch-size=4 --synthetic-samples=16 \
    --num-classes=4 --epochs=1 --model=resnet18 --run-dir=runs/torchrun synthetic
python - <<'CHECK'
from pathlib import Path
from safetensors.torch import load_file
from torchvision.models import resnet18

resnet18(num_classes=4).load_state_dict(load_file("model.safetensors"), strict=True)
made = sorted(path.name for path in Path().iterdir())
assert made == ["help.txt", "model.safetensors", "model.safetensors.json", "plan.txt", "runs"], made
CHECK
say "the wheel works on $(python --version)"
