"""Who trains, and where."""

from __future__ import annotations

from benchmarks.errors.case import Case, Chapter
from benchmarks.errors.catalogue.options import NET

_WORKER = f"python -m bundlerun.workers.train {NET} pictures"
_ONE = f"bundlerun run {NET} --epochs 1 --run-dir one"
_NODE = (
    "bundlerun run --nnodes 2 --rdzv-endpoint 127.0.0.1:{port} --local-addr 127.0.0.%d "
    f"--node-name %s {NET} --run-dir two --snapshot-dir memory %s pictures"
)

LAUNCHERS = Chapter(
    "Launchers",
    (
        Case(
            name="one of several, without a rank",
            line=_WORKER,
            told="RANK is not set: each would train alone",
            environ={"WORLD_SIZE": "2"},
        ),
        Case(
            name="a rank, and nothing about the node",
            line=_WORKER,
            told="RANK is set but LOCAL_RANK is not",
            environ={"RANK": "0", "WORLD_SIZE": "2"},
        ),
        Case(
            name="mpirun that says nowhere to meet",
            line=_WORKER,
            told="this is process 0 of 2 that Open MPI started",
            environ={"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
        ),
        Case(
            name="a pod of Kubeflow's, without torchrun",
            line=_WORKER,
            told="PET_NNODES=2 says that several nodes train together",
            environ={"PET_NNODES": "2"},
        ),
        Case(
            name="an address that nobody knows",
            line=f"{_WORKER} --run-dir one",
            told="nowhere.invalid",
            code=3,
            environ={
                "RANK": "1",
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "nowhere.invalid",
                "MASTER_PORT": "29500",
            },
        ),
    ),
)

NODES = Chapter(
    "Nodes that differ",
    (
        Case(
            name="another learning rate on one node",
            line=_NODE % (1, "a", "--lr 0.1"),
            beside=_NODE % (2, "b", "--lr 0.2"),
            told="--lr",
        ),
        Case(
            name="another model on one node",
            line=_NODE % (1, "a", "--cut 1"),
            beside=(_NODE % (2, "b", "--cut 1")).replace("models.py:net", "models.py:wide"),
            told="--model",
        ),
        Case(
            name="a node's name twice",
            line=_NODE % (1, "a", "--cut 1"),
            beside=_NODE % (2, "a", "--cut 1"),
            told="--node-name",
        ),
    ),
)

FOLDERS = Chapter(
    "Run folders",
    (
        Case(
            name="a run folder of another optimizer",
            line=f"{_ONE} --optimizer adamw pictures",
            before=(f"{_ONE} pictures",),
            told="--optimizer was sgd, is adamw",
        ),
        Case(
            name="a run folder of another model",
            line=f"{_ONE} pictures".replace("models.py:net", "models.py:wide"),
            before=(f"{_ONE} pictures",),
            told="--model was models.py:net, is models.py:wide",
        ),
        Case(
            name="a run folder that is in use",
            line=f"bundlerun run {NET} --run-dir used pictures",
            beside=f"bundlerun run {NET} --epochs 100000 --run-dir used pictures",
            until="step ",
            told="in use",
        ),
        Case(
            name="weights of a run that is none",
            line=f"bundlerun run {NET} --init-from empty pictures",
            told="'empty'",
        ),
        Case(
            name="the status of no run",
            line="bundlerun status nowhere",
            told="'nowhere'",
        ),
        Case(
            name="why, of no run",
            line="bundlerun why nowhere",
            told="'nowhere'",
        ),
        Case(
            name="the model of no run",
            line="bundlerun export nowhere -o model.safetensors",
            told="'nowhere'",
        ),
        Case(
            name="the report of no run",
            line="bundlerun report nowhere",
            told="there is no run folder 'nowhere'",
        ),
        Case(
            name="the logs of no run",
            line="bundlerun logs nowhere",
            told="there is no run folder 'nowhere'",
        ),
        Case(
            name="what no run has learnt",
            line="bundlerun evaluate nowhere",
            told="there is no run folder 'nowhere'",
        ),
        Case(
            name="what no run sees in an image",
            line="bundlerun predict nowhere pictures/val/a/0.png",
            told="there is no run folder 'nowhere'",
        ),
        Case(
            name="the end of no run",
            line="bundlerun drain nowhere",
            told="'nowhere'",
        ),
        Case(
            name="a run like no run",
            line="bundlerun run --like nowhere",
            told="'nowhere'",
        ),
        Case(
            name="a shell that has no completion",
            line="bundlerun completion csh",
            told="csh",
        ),
    ),
)

TRAINING = Chapter(
    "What only training shows",
    (
        Case(
            name="a loss that is no number",
            line=f"bundlerun run --recipe recipes.py {NET} any",
            environ={"KIND": "nan"},
            told="nan",
            code=1,
            may_train=True,
        ),
        Case(
            name="the same error at the same step twice",
            line=f"bundlerun run --recipe recipes.py {NET} --snapshot off any",
            environ={"KIND": "corrupt"},
            told="the same error at the same place and step again",
            code=1,
            may_train=True,
            shows_code=True,
        ),
        Case(
            name="an optimizer that keeps what no checkpoint can",
            line=f"bundlerun run --recipe recipes.py {NET} any",
            environ={"KIND": "keeps"},
            told="cannot keep 'made_by' of SGD for '0.weight'",
            may_train=True,
        ),
    ),
)
