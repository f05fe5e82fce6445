"""The recipe for classes of texts: its files, padding, loss, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.data.collate import Collate
from bundlerun.workers.recipe import DataInfo, load_recipe
from tests.unit.workers.recipes.recipe_use import module_of, opened, refusal

MODEL = f"{Path(__file__).parents[3] / 'ranks' / 'tiny_reader.py'}:build"
CSV = 'text,label\nthe fox,animal\n"the, lazy dog jumps",animal\nthe brown\nlog,thing\n'


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    made = pytest.importorskip("tokenizers", reason="the extra text is not installed")
    words = ["[PAD]", "[START]", "the", "fox", "lazy", "dog", "jumps", "brown", "log", "?"]
    numbers = {word: n for n, word in enumerate(words)}
    found = made.Tokenizer(made.models.WordLevel(numbers, unk_token="?"))
    found.pre_tokenizer = made.pre_tokenizers.WhitespaceSplit()
    found.post_processor = made.processors.TemplateProcessing(
        single="[START] $A", special_tokens=[("[START]", 1)]
    )
    found.enable_padding(length=99)
    (tmp_path / "data").mkdir()
    found.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "data" / "train.csv").write_text(CSV.replace("brown\n", "brown "))
    (tmp_path / "data" / "val.jsonl").write_text('{"text": "a log", "label": "thing"}\n')
    return TrainConfig(
        data=str(tmp_path / "data"),
        recipe="sequence-classification",
        model=MODEL,
        tokenizer=str(tmp_path / "tokenizer.json"),
        seq_len=4,
        shape=Shape((1,)),
    )


def test_texts_become_tokens_with_special_ones_and_are_cut_and_padded(config: TrainConfig) -> None:
    data = opened(config)
    assert (data.num_outputs, data.about["classes"]) == (2, ["animal", "thing"])
    assert [data.train[n][0].tolist() for n in range(3)] == [[1, 2, 3], [1, 9, 4, 5], [1, 2, 7, 8]]
    assert [data.train[n][1] for n in range(3)] == [0, 0, 1]
    parts = Collate.of(data, data.train)([data.train[0], data.train[1]], [0, 1])
    tokens, mask = parts.inputs
    assert tokens.tolist() == [[1, 2, 3, 0, 0, 0, 0, 0], [1, 9, 4, 5, 0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]
    assert torch.equal(torch.as_tensor(parts.target), torch.tensor([0, 0]))
    # Across a cut all have one length.
    cut = opened(replace(config, shape=Shape((1, 1))))
    (tokens, _), _ = cut.collate([cut.train[0]])
    assert tokens.tolist() == [[1, 2, 3, 0]]
    assert opened(config).train.names_digest() != data.val.names_digest()


def test_the_same_classes_come_of_padding_of_any_length(config: TrainConfig) -> None:
    recipe, data = load_recipe(config), opened(config)
    model = module_of(recipe, DataInfo(num_train=3, num_val=1, num_outputs=2)).double()
    (tokens, mask), target = data.collate([data.train[n] for n in range(3)])
    logits = model(tokens, mask)
    shorter = model(tokens[:, :4], mask[:, :4])
    assert torch.allclose(logits, shorter, rtol=1e-12)
    assert recipe.loss(logits, target).ndim == 0
    right = recipe.metrics({"logits": torch.tensor([[1.0, 0.0]] * 3)}, target)
    assert right["top1"].item() == 2


def test_wrong_input_is_one_line(config: TrainConfig, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "val.jsonl").write_text(
        '{"text": "a", "label": "thing"}\n\n{"text": "b", "label": "ting"}'
    )
    said = refusal(config)
    assert "line 3 of DATA" in said
    assert "the label 'ting', which is none of the 2 classes; nearest: thing" in said
    (data / "val.jsonl").write_text('{"text": "a"}')
    assert "line 1 of DATA" in refusal(config)
    (data / "val.jsonl").write_text("")
    assert "has no texts" in refusal(config)
    (data / "val.csv").write_text(CSV)
    assert "has val.csv and val.jsonl" in refusal(config)
    one = replace(config, data=str(data / "train.csv"))
    assert "is one file, and validation needs another" in refusal(one)
    one = replace(one, validate=False)
    assert len(opened(one).train) == 3
    assert "--num-classes 1 is less than the 2 labels" in refusal(replace(one, num_classes=1))
    assert "needs a --tokenizer" in refusal(replace(one, tokenizer=""))
    assert "reads no text" in refusal(replace(one, model="resnet18"))
    (data / "train.csv").write_text("txt,label\na,b\n")
    assert "line 2 of DATA" in refusal(one)
    (tmp_path / "small.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Embedding(4, 4)\n"
    )
    small = replace(config, model=f"{tmp_path}/small.py:build")
    with pytest.raises(ConfigError, match=r"has 10 tokens, the largest embedding of .* 4; give"):
        load_recipe(small).model(DataInfo(num_train=1, num_val=1, num_outputs=2))


def test_parquet_files_are_texts_with_labels(config: TrainConfig, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    data = tmp_path / "shards"
    data.mkdir()
    names = {"label": {"_type": "ClassLabel", "names": ["thing", "animal", "none"]}}
    notes = {"huggingface": json.dumps({"info": {"features": names}})}
    for name, text, label in (
        ("train-0", "the fox", 1), ("train-1", "the log", 0), ("validation", "a log", 0)
    ):  # fmt: skip
        table = pa.table({"text": [text], "label": [label]}).replace_schema_metadata(notes)
        parquet.write_table(table, data / f"{name}.parquet")
    config = replace(config, data=str(data))
    found = opened(config)
    assert (found.num_outputs, found.about["classes"]) == (3, ["thing", "animal", "none"])
    assert [(t.tolist(), n) for t, n in (found.train[0], found.train[1])] == [
        ([1, 2, 3], 1),
        ([1, 2, 8], 0),
    ]
    assert len(found.val) == 1
    parquet.write_table(pa.table({"text": ["a"], "label": [3]}), data / "val.parquet")
    assert "has the label 3, which is none of the 3 classes" in refusal(config)
    parquet.write_table(pa.table({"text": ["a", None], "label": [1, 2]}), data / "val.parquet")
    assert "row 1 of DATA" in refusal(config)
    parquet.write_table(pa.table({"sentence": ["a"], "label": [3]}), data / "val.parquet")
    assert "has no column 'text', only 'sentence', 'label'; give it one" in refusal(config)
    (data / "train.csv").write_text(CSV)
    assert "has train.csv and train-0.parquet; give one kind" in refusal(config)


def test_models_of_transformers_get_tokens_and_mask(config: TrainConfig, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    bert = transformers.BertConfig(
        vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=8, pad_token_id=None,
    )  # fmt: skip
    bert.save_pretrained(tmp_path / "bert")
    found = replace(config, model=f"hf:{tmp_path}/bert")
    recipe, data = load_recipe(found), opened(found)
    model = module_of(recipe, DataInfo(num_train=3, num_val=1, num_outputs=2)).eval()
    (tokens, mask), target = data.collate([data.train[0]])
    assert recipe.loss(model(tokens, mask), target).isfinite()
    assert torch.allclose(model(tokens, mask).logits, model(tokens[:, :3]).logits, atol=1e-6)
    assert "--seq-len 9 is more than the 8 tokens" in refusal(replace(found, seq_len=9))
    gpt = transformers.GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1, n_positions=8)
    gpt.save_pretrained(tmp_path / "gpt")
    found = replace(config, model=f"hf:{tmp_path}/gpt")
    info = DataInfo(num_train=3, num_val=1, num_outputs=2)
    with pytest.raises(ConfigError, match="takes input_ids, past_key_values, "):
        load_recipe(found).model(info)
    vit = transformers.ViTConfig()
    vit.save_pretrained(tmp_path / "gpt")
    with pytest.raises(ConfigError, match=r"has no AutoModelForSequenceClassification; give"):
        load_recipe(found).model(info)
    vit.architectures = ["ViTForImageClassification"]
    vit.save_pretrained(tmp_path / "gpt")
    with pytest.raises(ConfigError, match=r"takes pixel_values, and this recipe has input_ids"):
        load_recipe(found).model(info)
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt99"}')
    with pytest.raises(ConfigError, match=r"no model of type 'gpt99'; nearest: gpt"):
        load_recipe(found).model(info)
