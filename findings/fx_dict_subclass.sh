#!/usr/bin/env bash
# torch.fx makes a plain dict of a dict of a class of its own that a forward returns.
#
# Expected: a traced module returns what the module returns. transformers' models return such dicts,
# whose entries are attributes, too: `output.logits`.
# True: the entries of the dict are recorded and not its class. The graph module returns a plain
# dict, no error and no warning is given, and the first `output.logits` raises AttributeError.
#
# Version: torch 2.14.1, transformers 5.23.0, on the CPU.
# Source: `_create_arg` in torch/fx/proxy.py makes a plain dict of any instance of dict.
#
# Exits with 0 while this is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 transformers==5.23.0
cat > "$folder/classes.py" <<'PYTHON'
import torch
import transformers
from torch import fx, nn
from transformers.modeling_outputs import BaseModelOutput


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return BaseModelOutput(last_hidden_state=self.linear(x))


print("torch", torch.__version__, "transformers", transformers.__version__)
net, x = Net(), torch.ones(2, 4)
traced = fx.symbolic_trace(net)
plain, recorded = net(x), traced(x)
print("the module returns  ", type(plain).__name__)
print("its graph returns   ", type(recorded).__name__)
assert torch.equal(plain["last_hidden_state"], recorded["last_hidden_state"])
try:
    print("as an attribute      ", recorded.last_hidden_state.shape)
except AttributeError as error:
    print("as an attribute      AttributeError:", error)
raise SystemExit(type(plain) is not BaseModelOutput or type(recorded) is not dict)
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/classes.py"
