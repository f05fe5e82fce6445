"""The recipe for language models: its files, tokenizer, sequences, loss and refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.texts import tokenizer as tokenizer_module
from bundlerun.workers.recipe import DataInfo, load_recipe
from bundlerun.workers.recipes.language_model import LanguageModel
from tests.unit.workers.recipes.recipe_use import info_of, module_of, opened, refusal, tensors

MODEL = f"{Path(__file__).parents[3] / 'ranks' / 'tiny_gpt.py'}:build"
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]


def config_of(tmp_path: Path, data: Path, **changes: Any) -> TrainConfig:
    own = TrainConfig(
        data=str(data),
        recipe="language-model",
        model=MODEL,
        seq_len=8,
        run_dir=str(tmp_path / "run"),
    )
    return replace(own, **changes)


@pytest.fixture
def words_file(tmp_path: Path) -> Path:
    """A tokenizer of a word each, numbered from 0."""
    made = pytest.importorskip("tokenizers", reason="the extra text is not installed")
    numbers = {word: n for n, word in enumerate(dict.fromkeys([*WORDS, "<end>"]))}
    model = made.models.WordLevel(numbers, unk_token="<end>")
    found = made.Tokenizer(model)
    found.pre_tokenizer = made.pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "words"
    folder.mkdir()
    found.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def numbers_from(count: int, kind: str = "uint16") -> np.ndarray[Any, Any]:
    return (np.arange(count) * 7 % 1000).astype(kind)


@pytest.mark.parametrize("name", ["t.bin", "long.bin", "t.npy", "t.pt"])
def test_all_kinds_of_token_files_give_the_same_sequences(tmp_path: Path, name: str) -> None:
    path, numbers = tmp_path / name, numbers_from(1000)
    if name == "t.npy":
        np.save(path, numbers)
    elif name == "t.pt":
        torch.save(torch.from_numpy(numbers.astype("int32")), path)
    else:
        numbers.astype("uint32" if name == "long.bin" else "uint16").tofile(path)
    data = opened(config_of(tmp_path, path))
    assert data.num_outputs == 1000
    assert (len(data.train), len(data.val)) == ((900 - 1) // 8, (100 - 1) // 8)
    tokens, following = tensors(data.train, 3)
    assert tokens.dtype == following.dtype == torch.int64
    assert tokens.tolist() == numbers[24:32].tolist()
    assert following.tolist() == numbers[25:33].tolist()
    first, _ = tensors(data.val, 0)
    assert first.tolist() == numbers[900:908].tolist()
    with pytest.raises(IndexError):
        data.train[len(data.train)]


def test_bytes_in_16_bits_are_not_taken_for_halves_of_32(tmp_path: Path) -> None:
    # Two kinds of file whose odd numbers are all small.
    (np.arange(400) % 4).astype("uint16").tofile(tmp_path / "dna.bin")
    assert opened(config_of(tmp_path, tmp_path / "dna.bin")).num_outputs == 4
    (np.arange(400) % 256).astype("uint16").tofile(tmp_path / "bytes.bin")
    assert opened(config_of(tmp_path, tmp_path / "bytes.bin")).num_outputs == 256


def test_files_of_a_folder_follow_each_other_and_no_sequence_crosses(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number, name in enumerate(("train-0.bin", "train-1.bin", "val.npy")):
        part = numbers_from(30 + number, "uint16") + 1000 * np.uint16(number)
        np.save(folder / name, part) if name.endswith("npy") else part.tofile(folder / name)
    data = opened(config_of(tmp_path, folder))
    assert (len(data.train), len(data.val)) == (6, 3)
    assert [tensors(data.train, n)[0][0].item() // 1000 for n in range(6)] == [0, 0, 0, 1, 1, 1]
    digest = data.train.names_digest()
    (numbers_from(30) + np.uint16(1)).tofile(folder / "train-0.bin")
    assert opened(config_of(tmp_path, folder)).train.names_digest() != digest
    (folder / "val.npy").unlink()
    assert "no file that begins with 'val'" in refusal(config_of(tmp_path, folder))
    assert opened(config_of(tmp_path, folder, validate=False)).val is None
    (folder / "train.txt").write_text("a text")
    mixed = refusal(config_of(tmp_path, folder, validate=False))
    assert "has text (train.txt) and tokens (train-1.bin)" in mixed


def test_texts_become_tokens_once(
    tmp_path: Path, words_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "book.txt"
    text.write_text(" ".join(WORDS * 30))
    config = config_of(tmp_path, text, tokenizer=str(words_file))
    data = opened(config)
    assert data.num_outputs == 9
    expected = [list(dict.fromkeys(WORDS)).index(word) for word in (WORDS * 2)[:9]]
    assert tensors(data.train, 0)[0].tolist() == expected[:8]
    assert tensors(data.train, 0)[1].tolist() == expected[1:]
    # The next start reads what this one has kept; another text or tokenizer has its own.
    made = tokenizer_module.Tokenizer
    calls: list[str] = []
    real = made.encode
    monkeypatch.setattr(made, "encode", lambda self, text: calls.append(text) or real(self, text))
    assert torch.equal(tensors(opened(config).train, 1)[0], tensors(data.train, 1)[0])
    assert calls == []
    text.write_text(" ".join(WORDS * 31))
    opened(config)
    assert len(calls) == 1


def test_without_a_run_folder_no_tokens_are_kept(
    tmp_path: Path, words_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, here = tmp_path / "book.txt", tmp_path / "here"
    text.write_text(" ".join(WORDS * 30))
    here.mkdir()
    monkeypatch.chdir(here)
    opened(config_of(tmp_path, text, tokenizer=str(words_file), run_dir=""))
    assert not list(here.iterdir())


def test_documents_end_with_the_token_that_the_folder_says(
    tmp_path: Path, words_file: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [json.dumps({"text": " ".join(WORDS)})] * 4
    (folder / "train.jsonl").write_text("\n".join(lines))
    config = config_of(tmp_path, folder, tokenizer=str(words_file.parent), validate=False)
    assert 8 not in tensors(opened(config).train, 1)[0].tolist()
    settings = {"eos_token": {"content": "<end>"}}
    (words_file.parent / "tokenizer_config.json").write_text(json.dumps(settings))
    assert tensors(opened(config).train, 1)[0].tolist()[1] == 8
    (folder / "train.jsonl").write_text(lines[0] + '\n{"txt": 3}')
    assert "line 2 of DATA" in refusal(config)


def test_parquet_files_have_a_document_in_each_row(tmp_path: Path, words_file: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts, folder = [" ".join(WORDS)] * 4, tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    config = config_of(tmp_path, folder, tokenizer=str(words_file.parent), validate=False)
    wanted = opened(config).train
    (folder / "train.jsonl").unlink()
    parquet.write_table(pa.table({"text": texts[:1]}), folder / "train-0.parquet")
    parquet.write_table(pa.table({"text": texts[1:], "id": [1, 2, 3]}), folder / "train-1.parquet")
    found = opened(config).train
    assert found.names_digest() == wanted.names_digest()
    parquet.write_table(pa.table({"text": ["a", None]}), folder / "train-1.parquet")
    assert "row 1 of DATA" in refusal(config)
    parquet.write_table(pa.table({"content": ["a"]}), folder / "train-1.parquet")
    assert "has no column 'text', only 'content'; give it one" in refusal(config)


def test_the_loss_says_its_tokens_and_the_perplexity_is_of_them(tmp_path: Path) -> None:
    numbers_from(1000).tofile(tmp_path / "t.bin")
    config = config_of(tmp_path, tmp_path / "t.bin")
    recipe = LanguageModel(config)
    data = recipe.open_data()
    model = module_of(recipe, info_of(data))
    inputs, target = (torch.stack(c) for c in zip(*(data.train[i] for i in range(3)), strict=True))
    target = target.clone()
    target[0, 2:] = -100
    output = model(inputs)
    total, weight = recipe.loss(output, target)
    kept = target != -100
    wanted = cross_entropy(output["logits"][kept], target[kept])
    assert weight.item() == 18
    assert (total / weight).item() == pytest.approx(wanted.item(), rel=1e-6)
    assert recipe.metrics(output, target) == {}
    assert recipe.final_metrics(2.0, {}) == {"perplexity": math.exp(2.0)}
    assert math.isfinite(recipe.final_metrics(1e9, {})["perplexity"])
    with pytest.raises(ConfigError, match=r"returns Tensor with a tensor \[3, 8\]"):
        recipe.loss(torch.zeros(3, 8), target)


def test_a_token_outside_the_vocabulary_is_named_with_its_place(tmp_path: Path) -> None:
    numbers = numbers_from(1000)
    numbers.tofile(tmp_path / "t.bin")
    at = int(np.argmax(numbers[:900] == 999))
    said = refusal(config_of(tmp_path, tmp_path / "t.bin", num_classes=999))
    assert said.startswith(f"token 999 at place {at} of file 1 of DATA is outside the vocabulary")
    np.save(tmp_path / "t.npy", np.where(np.arange(100) == 40, -1, 3))
    said = refusal(config_of(tmp_path, tmp_path / "t.npy"))
    assert said.startswith("token -1 at place 40 of file 1 of DATA")
    # And a model that has no row for it.
    recipe = load_recipe(config_of(tmp_path, tmp_path / "t.bin", model=f"{small(tmp_path)}:build"))
    with pytest.raises(ConfigError, match=r"has 1000 tokens, the largest embedding of .* 12;"):
        recipe.model(DataInfo(num_train=1, num_val=1, num_outputs=1000))


def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text("from torch import nn\ndef build():\n    return nn.Embedding(12, 12)\n")
    return path


def test_wrong_input_is_one_line(
    tmp_path: Path, words_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "book.txt"
    text.write_text("the fox " * 6)
    numbers_from(1000).tofile(tmp_path / "t.bin")
    (tmp_path / "odd.bin").write_bytes(b"123")
    (tmp_path / "bad.npy").write_bytes(b"no numpy file")
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 20)
    np.save(tmp_path / "real.npy", np.zeros(100))
    own = str(words_file)

    def said(data: str, **changes: Any) -> str:
        return refusal(config_of(tmp_path, tmp_path / data, **changes))

    assert "is text, and needs a --tokenizer" in said("book.txt")
    assert "no such file or folder; give a tokenizers" in said("book.txt", tokenizer="none.json")
    assert "the folder has no tokenizer" in said("book.txt", tokenizer=str(tmp_path / "empty"))
    assert "cannot read --tokenizer" in said("book.txt", tokenizer=str(tmp_path / "bad.json"))
    assert "has 10 tokens for training, less than a sequence of --seq-len 32" in said(
        "book.txt", tokenizer=own, seq_len=32
    )
    assert "2 tokens for validation" in said("book.txt", tokenizer=own)
    assert "no UTF-8 text (byte 3)" in said("latin.txt", tokenizer=own)
    assert "has 3 bytes" in said("odd.bin")
    assert "cannot read DATA" in said("bad.npy")
    assert "shape [100] of type float64" in said("real.npy")
    assert "no such file or folder" in said("none.bin")
    assert "no file that begins with 'train'" in said("empty")
    assert "'resnet18' is a model of torchvision, which reads no text" in said(
        "t.bin", model="resnet18"
    )
    monkeypatch.setattr(tokenizer_module.importlib.util, "find_spec", lambda name: None)
    assert "needs the package tokenizers, which is not installed; pip install" in said(
        "book.txt", tokenizer=own
    )


def test_a_model_of_transformers_brings_its_vocabulary_and_its_tokenizer(
    tmp_path: Path, words_file: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    settings = transformers.GPT2Config(
        vocab_size=20,
        n_embd=8,
        n_layer=1,
        n_head=1,
        n_positions=16,
        architectures=["GPT2LMHeadModel"],
    )
    folder = words_file.parent
    settings.save_pretrained(folder)
    text = tmp_path / "book.txt"
    text.write_text(" ".join(WORDS * 30))
    config = config_of(tmp_path, text, model=f"hf:{folder}")
    data = opened(config)
    assert data.num_outputs == 20
    recipe = load_recipe(config)
    model = module_of(recipe, info_of(data))
    assert isinstance(model, nn.Module)
    tokens, target = (column[None] for column in tensors(data.train, 0))
    output = model(tokens)
    assert "past_key_values" not in output
    total, weight = recipe.loss(output, target)
    assert (total / weight).item() == pytest.approx(
        model(tokens, labels=tokens).loss.item(), rel=0.2
    )
    assert "--seq-len 32 is more than the 16 tokens" in refusal(replace(config, seq_len=32))
    settings.vocab_size = 5
    settings.save_pretrained(folder)
    assert "is outside the vocabulary of 5" in refusal(config)
