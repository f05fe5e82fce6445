"""What is trained on."""

from __future__ import annotations

from benchmarks.errors.case import Case, Chapter
from benchmarks.errors.catalogue.options import NET

_WORDS = "--recipe language-model --model models.py:words --shape 1 --seq-len 16 --batch-size 4"
_BERT = "--recipe sequence-classification --model hf:bert --shape 1 --seq-len 16 --batch-size 4"
_SEGMENT = (
    "--recipe segmentation --model models.py:pixels --num-classes 3 --shape 1 --image-size 32 "
    "--batch-size 4"
)
_DETECT = "--recipe detection --model models.py:boxes --shape 1 --batch-size 4"
_OWN = "--model models.py:net --shape 1 --batch-size 4"

DATA = Chapter(
    "Data",
    (
        Case(
            name="data that is not there",
            line="bundlerun run nowhere",
            told="no data at 'nowhere'",
        ),
        Case(
            name="a folder without classes",
            line=f"bundlerun run {NET} empty",
            told="'empty/train' has no class folders",
        ),
        Case(
            name="a class without an image",
            line=f"bundlerun run {NET} hollow",
            told="there is no valid file for the classes none",
        ),
        Case(
            name="a class that training does not have",
            line=f"bundlerun run {NET} stranger",
            told="zebra",
        ),
        Case(
            name="fewer outputs than classes",
            line=f"bundlerun run {NET} --num-classes 2 pictures",
            told="--num-classes 2 is less than the 3 class folders",
        ),
        Case(
            name="an image of which nobody knows what is white",
            line=f"bundlerun run {NET} white",
            told="white/train/a/0.tif",
        ),
        Case(
            name="a damaged image",
            line=f"bundlerun run {NET} damaged",
            told="damaged/train/a/0.jpg",
        ),
        Case(
            name="labels of shards that leave a class out",
            line=f"bundlerun run {NET} shards-hole",
            told="3",
        ),
        Case(
            name="a label below 0 in a shard",
            line=f"bundlerun run {NET} shards-below",
            told="-2",
        ),
        Case(
            name="a shard that is cut off",
            line=f"bundlerun run {NET} --no-validate shards-short",
            told="shards-short/train/0.tar",
        ),
        Case(
            name="a mask with a label that is no class",
            line=f"bundlerun run {_SEGMENT} masks",
            told="has the label 7 at row 0, column 0",
        ),
        Case(
            name="an image without a mask",
            line=f"bundlerun run {_SEGMENT} unmasked",
            told="unmasked/train",
        ),
        Case(
            name="a box of no category",
            line=f"bundlerun run {_DETECT} label",
            told="has the label 5; the categories of the training data are 3, 8",
        ),
        Case(
            name="a box of three numbers",
            line=f"bundlerun run {_DETECT} box",
            told="has the box [1, 2, 3]",
        ),
        Case(
            name="boxes of an image that is not there",
            line=f"bundlerun run {_DETECT} image",
            told="'gone.jpg'",
        ),
        Case(
            name="a token outside of the vocabulary",
            line=f"bundlerun run {_WORDS} --num-classes 20 tokens.bin",
            told="outside the vocabulary of 20",
        ),
        Case(
            name="tokens of no whole number of bytes",
            line=f"bundlerun run {_WORDS} odd.bin",
            told="has 3 bytes",
        ),
        Case(
            name="a text without a tokenizer",
            line=f"bundlerun run {_WORDS} book.txt",
            told="needs a --tokenizer",
        ),
        Case(
            name="a tokenizer that is not there",
            line=f"bundlerun run {_WORDS} --tokenizer nowhere.json book.txt",
            told="--tokenizer 'nowhere.json'",
            needs=("tokenizers",),
        ),
        Case(
            name="a tokenizer that is none",
            line=f"bundlerun run {_WORDS} --tokenizer typo.toml book.txt",
            told="cannot read --tokenizer 'typo.toml'",
            needs=("tokenizers",),
        ),
        Case(
            name="a text without a word",
            line=f"bundlerun run {_WORDS} --tokenizer bert empty.txt",
            told="has 0 tokens for training",
            needs=("tokenizers",),
        ),
        Case(
            name="a label that only the validation has",
            line=f"bundlerun run {_BERT} labels",
            told="has the label 'odd', which is none of the 2 classes",
            needs=("tokenizers", "transformers"),
        ),
        Case(
            name="texts longer than the model sees",
            line=f"bundlerun run {_BERT} --seq-len 512 texts",
            told="--seq-len 512 is more than the 64 tokens",
            needs=("tokenizers", "transformers"),
        ),
        Case(
            name="a sample of one's own that is a text",
            line=f"bundlerun run --recipe recipes.py {_OWN} any",
            environ={"KIND": "texts"},
            told="is of type str",
        ),
        Case(
            name="a stream of one's own that does not say how long it is",
            line=f"bundlerun run --recipe recipes.py {_OWN} any",
            environ={"KIND": "stream"},
            told="DataSets(num_train=...)",
        ),
        Case(
            name="a stream that is shorter than it says",
            line=f"bundlerun run --recipe recipes.py {_OWN} any",
            environ={"KIND": "short"},
            told="samples",
            may_train=True,
        ),
    ),
)
