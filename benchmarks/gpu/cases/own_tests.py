"""The project's own tests for GPUs; also where asking torch for GPUs starts CUDA."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.runner import ROOT

_LIMIT_S = 60.0
_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
_END = re.compile(r"^=*\s*(.*\d+.* in [\d.]+s.*?)\s*=*$", re.MULTILINE)


def run(bench: Bench) -> None:
    """All of them; one more where looking for a GPU starts CUDA, which forks cannot use then."""
    # Only these: collecting all tests takes longer than running those for GPUs.
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    files = [str(path) for path in tests if "mark.gpu" in path.read_text(encoding="utf-8")]
    if not bench.is_gpu:
        done = _pytest([files[-1], "--collect-only"], {})
        bench.said.holds("tests for GPUs are found", done[0] == 0, done[1], "code 0")
        bench.on_gpu.cannot("tests for GPUs", "all pass")
        return
    environ = {"BUNDLERUN_TEST_GPU": "1"}
    code, text = _pytest(files, environ)
    bench.said.holds("tests for GPUs", code == 0, text, "all pass")
    code, text = _pytest([files[-1]], {**environ, _CHECK: "0"})
    bench.said.holds("one file, where looking starts CUDA", code == 0, text, "all pass")


def _pytest(words: list[str], environ: dict[str, str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *words]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LIMIT_S,
    )
    print(done.stdout, flush=True)
    found = _END.findall(done.stdout)
    return done.returncode, found[-1] if found else f"code {done.returncode}"
