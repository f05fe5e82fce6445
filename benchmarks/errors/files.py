"""The folder in which the cases run: data, models and weights, most of them with a fault."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

_PROGRAMS = Path(__file__).parent / "programs"
_SIDE = 32


def make_files(root: Path) -> None:
    """Makes it; needs no package that is an extra."""
    (root / "hiding").mkdir(parents=True)
    for name, place in (("models.py", "."), ("recipes.py", "."), ("sitecustomize.py", "hiding")):
        shutil.copy(_PROGRAMS / name, root / place)
    _options(root)
    _class_folders(root)
    _shards(root)
    _masks(root)
    _boxes(root)
    _texts(root)
    _models(root)


def _options(root: Path) -> None:
    (root / "typo.toml").write_text('data = "synthetic"\nbatchsize = 64\n')
    (root / "broken.toml").write_text("batch-size = = 64\n")


def _image(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((_SIDE, _SIDE, 3), shade, np.uint8)).save(path)


def _class_folders(root: Path) -> None:
    for part in ("train", "val"):
        for number, name in enumerate("abc"):
            for index in range(4):
                _image(root / "pictures" / part / name / f"{index}.png", 80 * number + index)
        for data in ("hollow", "stranger", "white", "damaged"):
            for name in "ab":
                _image(root / data / part / name / "0.png")
        (root / "empty" / part).mkdir(parents=True)
    for part in ("train", "val"):
        (root / "hollow" / part / "none").mkdir()
    _image(root / "stranger" / "val" / "zebra" / "0.png")
    (root / "white" / "train" / "a" / "0.png").unlink()
    Image.fromarray(np.full((_SIDE, _SIDE), 70_000, np.int32)).save(
        root / "white" / "train" / "a" / "0.tif"
    )
    bad = root / "damaged" / "train" / "a"
    (bad / "0.png").rename(bad / "0.jpg")
    (bad / "0.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")


def _shards(root: Path) -> None:
    _tar(root / "shards-hole", [0, 1, 2, 5])
    _tar(root / "shards-below", [0, 1, -2])
    _tar(root / "shards-short", [0, 1, 2])
    shard = root / "shards-short" / "train" / "0.tar"
    shard.write_bytes(shard.read_bytes()[:700])


def _tar(root: Path, labels: Sequence[int]) -> None:
    for part in ("train", "val"):
        (root / part).mkdir(parents=True)
        with tarfile.open(root / part / "0.tar", "w") as tar:
            for index, label in enumerate(labels):
                pixels = BytesIO()
                Image.fromarray(np.full((_SIDE, _SIDE, 3), index, np.uint8)).save(pixels, "PNG")
                for ending, content in (("png", pixels.getvalue()), ("cls", b"%d" % label)):
                    info = tarfile.TarInfo(f"{index}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, BytesIO(content))


def _masks(root: Path) -> None:
    for data in ("masks", "unmasked"):
        for part in ("train", "val"):
            for index in range(4):
                _image(root / data / part / "images" / f"{index}.png")
                mask = np.zeros((_SIDE, _SIDE), np.uint8)
                mask[0, 0] = 7 if index == 3 else 1
                path = root / data / part / "masks" / f"{index}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(mask).save(path)
    (root / "unmasked" / "train" / "masks" / "0.png").unlink()


def _boxes(root: Path) -> None:
    for data in ("label", "box", "image"):
        for part in ("train", "val"):
            for index in range(4):
                _image(root / data / f"{part}2017" / f"{index}.png")
            found = [
                {"id": i, "file_name": f"{i}.png", "height": _SIDE, "width": _SIDE}
                for i in range(4)
            ]
            boxes = [
                {"id": i, "image_id": i, "category_id": 3 if i % 2 else 8, "bbox": [2, 3, 9, 9]}
                for i in range(4)
            ]
            if data == "label":
                boxes[0]["category_id"] = 5
            if data == "box":
                boxes[0]["bbox"] = [1, 2, 3]
            if data == "image":
                found[0]["file_name"] = "gone.jpg"
            text = {
                "images": found,
                "annotations": [{**box, "iscrowd": 0, "area": 81} for box in boxes],
                "categories": [{"id": 3, "name": "cup"}, {"id": 8, "name": "tree"}],
            }
            path = root / data / "annotations" / f"instances_{part}2017.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(text))


def _texts(root: Path) -> None:
    (np.arange(4000) % 50).astype(np.uint16).tofile(root / "tokens.bin")
    (root / "odd.bin").write_bytes(b"abc")
    (root / "book.txt").write_text("a word and a word and no end of words " * 200)
    (root / "empty.txt").touch()
    rows = "text,label\na word,even\nno end,{0}\n"
    for data, other in (("labels", "odd"), ("texts", "uneven")):
        (root / data).mkdir()
        (root / data / "train.csv").write_text(rows.format("uneven"))
        (root / data / "val.csv").write_text(rows.format(other))


def _models(root: Path) -> None:
    bert = {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    future = {"model_type": "gpt99", "architectures": ["Gpt99Model"]}
    for name, text in (
        ("bert", json.dumps(bert)),
        ("future", json.dumps(future)),
        ("broken", "{no"),
    ):
        (root / name).mkdir()
        (root / name / "config.json").write_text(text)
    words = ["[UNK]", "[PAD]", "a", "word", "and", "no", "end", "of", "words"]
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": "[UNK]",
        },
    }
    (root / "bert" / "tokenizer.json").write_text(json.dumps(tokenizer))
    _weights(root / "other.safetensors", {"stem.weight": [4, 3], "stem.bias": [4]})
    net = {"a": [4, 3, 3, 3], "b": [4, 4, 3, 3], "c": [3, 4]}
    names = {f"{n}.weight": shape for n, shape in net.items()}
    _weights(root / "net.safetensors", names | {f"{n}.bias": s[:1] for n, s in net.items()})
    whole = (root / "net.safetensors").read_bytes()
    (root / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (root / "pickled.pth").write_bytes(pickle.dumps({"a.weight": _Calls()}, protocol=2))


class _Calls:
    """Unpickling it would call a function."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this must not be seen",)


def _weights(path: Path, shapes: dict[str, list[int]]) -> None:
    # safetensors' own form: a length, JSON, numbers.
    head: dict[str, object] = {}
    place = 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(place))
