"""The same training under stock torchrun: a rendezvous of c10d, resuming from checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.inject import FOLDER_VARIABLE
from benchmarks.faults.job import JOB, RUN, Job, words_of

TUNED = "keep_alive_interval=1,keep_alive_max_attempt=3,last_call_timeout=1"
GROUP_TIMEOUT_S = 10
"""Without it, a frozen rank is noticed after half an hour."""


@dataclass
class StockJob(Job):
    """A job whose agents are torchrun's own, tuned as well as its options allow.

    A checkpoint each step: nothing is lost that is on disk, so that only time is compared.
    """

    def start(self, name: str) -> None:
        """Starts torchrun on a node; the first one keeps the store."""
        node = self._node(name)
        options = {
            **RUN, **JOB, **self.options, "snapshot": "off", "checkpoint-steps": 1,
            "timeout-s": GROUP_TIMEOUT_S, "run-dir": self.run_dir,
        }  # fmt: skip
        is_first = str(node is self.nodes[0]).lower()
        words = [
            *self._on(node), str(Path(sys.executable).with_name("torchrun")),
            f"--nnodes=1:{len(self.nodes)}", f"--nproc-per-node={node.slots}",
            "--rdzv-backend=c10d", f"--rdzv-endpoint={self.nodes[0].address}:{self.port}",
            "--rdzv-id=stock", f"--rdzv-conf={TUNED},is_host={is_first}",
            f"--local-addr={node.address}", "--max-restarts=1000", "--monitor-interval=0.1",
            "-m", "bundlerun.workers.train", *words_of(options),
        ]  # fmt: skip
        environ = os.environ | {
            FOLDER_VARIABLE: str(self.faults.root),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "BUNDLERUN_NODE_NAME": name,
            "BUNDLERUN_LOCAL_ADDR": node.address,
            "OMP_NUM_THREADS": "1",
        }
        with self._log.open("ab") as log:
            self.agents[name] = subprocess.Popen(
                words, stdout=log, stderr=log, env=environ, start_new_session=True
            )
