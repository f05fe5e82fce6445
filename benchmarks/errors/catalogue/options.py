"""What is typed."""

from __future__ import annotations

from benchmarks.errors.case import Case, Chapter

NET = "--model models.py:net --shape 1 --image-size 32 --batch-size 4"
_NO_SLOTS = {"BUNDLERUN_SLOTS": ""}

OPTIONS = Chapter(
    "Options",
    (
        Case(
            name="a misspelt command",
            line="bundlerun rum synthetic",
            told="run",
        ),
        Case(
            name="a misspelt option",
            line="bundlerun run --batchsize 64 synthetic",
            told="--batch-size",
        ),
        Case(
            name="a misspelt variable",
            line="bundlerun run synthetic",
            told="BUNDLERUN_BATCH_SIZE",
            environ={"BUNDLERUN_BATCHSIZE": "64"},
        ),
        Case(
            name="a misspelt key in a file",
            line="bundlerun run --config typo.toml",
            told="batch-size",
        ),
        Case(
            name="a file of options that is none",
            line="bundlerun run --config broken.toml",
            told="broken.toml",
        ),
        Case(
            name="a file of options that is not there",
            line="bundlerun run --config nowhere.toml synthetic",
            told="nowhere.toml",
        ),
        Case(
            name="a value of another type",
            line="bundlerun run --batch-size many synthetic",
            told="'many'",
        ),
        Case(
            name="a value that is none of the choices",
            line="bundlerun run --schedule fast synthetic",
            told="zero-bubble",
        ),
        Case(
            name="a shape that is none",
            line="bundlerun run --shape 1,x synthetic",
            told="'1,x'",
        ),
        Case(
            name="a shape that needs more devices",
            line="bundlerun run --shape 2,2 synthetic",
            told="2 devices do not hold one bundle of shape 2,2 (4 devices)",
            code=3,
        ),
        Case(
            name="micro-batches that do not fill a batch",
            line="bundlerun run --batch-size 7 --microbatch-size 3 synthetic",
            told="--batch-size 7 is not a multiple of --microbatch-size 3",
        ),
        Case(
            name="chunks without a schedule for them",
            line="bundlerun run --shape 1,1 --chunks 2 --schedule gpipe synthetic",
            told="--chunks",
        ),
        Case(
            name="several nodes and nowhere to meet",
            line="bundlerun run --nnodes 2 synthetic",
            told="--rdzv-endpoint",
        ),
        Case(
            name="an unknown recipe",
            line="bundlerun run --recipe languagemodel book.txt",
            told="language-model",
        ),
        Case(
            name="a recipe's file that is not there",
            line="bundlerun run --recipe nowhere.py synthetic",
            told="nowhere.py",
        ),
        Case(
            name="no data named",
            line="bundlerun run",
            told="DATA is missing",
        ),
    ),
)

DEVICES = Chapter(
    "Devices and precision",
    (
        Case(
            name="GPUs where there are none",
            line="bundlerun run --devices gpu synthetic",
            told="--devices gpu",
            environ=_NO_SLOTS,
        ),
        Case(
            name="float16 on a CPU",
            line="bundlerun run --precision float16 --model resnet18 synthetic",
            told="--precision float16",
        ),
        Case(
            name="a layout of images for a model without any",
            line="bundlerun run --recipe language-model --model models.py:words --shape 1 "
            "--memory-format channels_last --seq-len 16 --batch-size 4 tokens.bin",
            told="--memory-format",
        ),
        Case(
            name="standbys under a rendezvous that has none",
            line=f"bundlerun run --standby --rdzv-backend c10d {NET} pictures",
            told="--standby needs --rdzv-backend bundle",
        ),
    ),
)
