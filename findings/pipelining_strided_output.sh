#!/usr/bin/env bash
# torch.distributed.pipelining over gloo refuses a stage whose output is a transposed view.
#
# Expected: a pipeline stage may return any tensor, as a module may. Attention blocks and vision
# backbones end in `transpose` or `permute`, whose result is not contiguous.
# True: the schedule hands the output to the sending operation as it is, and gloo refuses it: the
# first step raises "input tensor has to be contiguous". With `.contiguous()` at the end of the
# stage the same model trains.
#
# Version: torch 2.14.1, gloo, on the CPU.
# Source: `_PipelineStageBase.get_fwd_send_ops` in torch/distributed/pipelining/stage.py;
# `ProcessGroupGloo::send` checks for one contiguous tensor.
#
# Exits with 0 while this is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/strided.py" <<'PYTHON'
import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe


class Front(nn.Module):
    def __init__(self, is_contiguous):
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.is_contiguous = is_contiguous

    def forward(self, x):
        y = self.linear(x).transpose(1, 2)
        return y.contiguous() if self.is_contiguous else y


def work(rank, store, is_contiguous, answers):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    module = nn.Linear(5, 2) if rank else Front(is_contiguous)
    stage = PipelineStage(module, rank, 2, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, 2, loss_fn=lambda found, wanted: (found - wanted).square().mean())
    try:
        if rank:
            schedule.step(target=torch.zeros(4, 6, 2))
        else:
            schedule.step(torch.ones(4, 5, 4))
        answers.put("trains")
    except RuntimeError as error:
        answers.put(f"RuntimeError: {str(error).splitlines()[0]}")
    os._exit(0)  # the other rank may be waiting for this one


def first_answer(is_contiguous):
    context = mp.get_context("spawn")
    answers = context.SimpleQueue()
    store = f"{sys.argv[1]}/store-{is_contiguous}"
    ranks = [
        context.Process(target=work, args=(rank, store, is_contiguous, answers)) for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    answer = answers.get()
    for rank in ranks:
        rank.join(5)
        rank.kill()
    return answer


if __name__ == "__main__":
    print("torch", torch.__version__)
    found = {name: first_answer(name == "contiguous") for name in ("contiguous", "transposed")}
    for name, text in found.items():
        print(f"output of the front {name}: {text}")
    is_so = found["contiguous"] == "trains" and "contiguous" in found["transposed"]
    raise SystemExit(not is_so)
PYTHON
OMP_NUM_THREADS=1 timeout 300 "$folder/venv/bin/python" "$folder/strided.py" "$folder"
