from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from bundlerun.launcher.agreement.agreed import (
    CODE,
    DATA,
    changes,
    difference,
    kept_terms,
    terms_of,
)
from bundlerun.launcher.agreement.data_card import data_card
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.options.declared import flag_of


def config(**values: object) -> TrainConfig:
    return TrainConfig(**{"data": "synthetic", **values})  # type: ignore[arg-type]


def images(root: Path, *classes: str) -> str:
    for name in classes:
        (root / "train" / name).mkdir(parents=True)
        (root / "val" / name).mkdir(parents=True)
    return str(root)


def test_nodes_with_the_same_command_agree() -> None:
    assert difference({"a": terms_of(config()), "b": terms_of(config())}) == ""


def test_the_difference_names_option_values_and_nodes() -> None:
    by_node = {"a": terms_of(config()), "b": terms_of(config(lr=0.2)), "c": terms_of(config())}
    text = difference(by_node)
    assert text.startswith("--lr is 0.1 on a, c and 0.2 on b; give all nodes the same")


def test_many_nodes_and_many_differences_stay_one_line() -> None:
    by_node = {f"n{i}": {"--a": "1", "--b": "1", "--c": "1", "--d": "1"} for i in range(9)}
    by_node["n9"] = {"--a": "2", "--b": "2", "--c": "2", "--d": "2"}
    text = difference(by_node)
    assert "--a is 1 on n0, n1, n2 and 6 more and 2 on n9" in text
    assert "; and 1 more differ;" in text


def test_each_option_either_must_agree_or_is_a_nodes_own() -> None:
    own = {"loader_workers", "prefetch", "snapshot_dir", "threads", "affinity", "run_dir"}
    own |= {"log_steps", "tracker", "profile", "tensorboard", "timeout_s", "rack"}
    compared = {name for name in terms_of(config()) if name.startswith("--")}
    names = {flag_of(f.name) for f in fields(TrainConfig) if f.name != "data"}
    assert names - compared == {flag_of(name) for name in own}


def test_a_nodes_own_options_and_where_its_files_lie_are_no_difference(tmp_path: Path) -> None:
    found = []
    for node in ("a", "b"):
        (tmp_path / node).mkdir()
        (tmp_path / node / "mine.py").write_text("import helper\n")
        (tmp_path / node / "helper.py").write_text("RATE = 1\n")
        recipe = str(tmp_path / node / "mine.py")
        model = str(tmp_path / node / "mine.py:build")
        data = images(tmp_path / node / "data", "ape", "bat")
        found.append(config(recipe=recipe, model=model, threads=len(found), data=data))
    a, b = map(terms_of, found)
    assert difference({"a": a, "b": b}) == ""


def test_a_file_that_the_recipe_imports_is_compared_too(tmp_path: Path) -> None:
    recipe, helper = tmp_path / "mine.py", tmp_path / "helper.py"
    recipe.write_text("from helper import RATE\n")
    helper.write_text("RATE = 1\n")
    before = terms_of(config(recipe=str(recipe)))
    helper.write_text("RATE = 2\n")
    after = terms_of(config(recipe=str(recipe)))
    text = difference({"a": before, "b": after})
    assert text.startswith("content of --recipe is ")
    assert "--model" not in text


def test_a_tokenizer_is_compared_by_what_it_holds(tmp_path: Path) -> None:
    found = {}
    for node, text in (("a", "{}"), ("b", "{}"), ("c", "[]")):
        (tmp_path / node / "words").mkdir(parents=True)
        (tmp_path / node / "words" / "tokenizer.json").write_text(text)
        (tmp_path / node / "words" / "model.safetensors").write_text(node)
        found[node] = terms_of(config(tokenizer=str(tmp_path / node / "words")))
    assert difference({"a": found["a"], "b": found["b"]}) == ""
    assert difference(found).startswith("content of --tokenizer is ")


def test_other_classes_are_other_data(tmp_path: Path) -> None:
    one = terms_of(config(data=images(tmp_path / "one", "ape", "bat")))
    two = terms_of(config(data=images(tmp_path / "two", "ape", "cat")))
    assert difference({"a": one, "b": two}).startswith("DATA is 2 classes: ape, bat, ... (")


def test_a_text_is_told_from_another_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("a" * 5000)
    two.write_text("a" * 4999 + "b")
    assert data_card(str(one)) != data_card(str(two))


def test_shards_are_told_from_others_by_their_sizes_wherever_they_are(tmp_path: Path) -> None:
    cards = []
    for number, size in enumerate((3, 3, 4)):
        folder = tmp_path / str(number) / "train"
        folder.mkdir(parents=True)
        (folder / "0.tar").write_bytes(b"x" * size)
        cards.append(data_card(str(folder.parent)))
    assert cards[0].startswith("1 shards: 0.tar, ... (")
    assert cards[0] == cards[1] != cards[2]


def test_data_of_which_nothing_is_known_differs_from_none(tmp_path: Path) -> None:
    assert DATA not in terms_of(config(data=str(tmp_path)))
    known, unknown = {DATA: "2 classes"}, {"--lr": "0.1"}
    assert difference({"a": known, "b": unknown}) == ""


def test_code_and_versions_are_compared() -> None:
    terms = terms_of(config())
    for name in (CODE, "torch", "torchvision", "numpy", "python"):
        other = {**terms, name: "another"}
        assert difference({"a": terms, "b": other}).startswith(f"{name} is ")


def test_builds_of_one_version_and_what_an_installation_says_of_our_code_are_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for build in ("", "+cu130"):
        monkeypatch.setattr("importlib.metadata.version", lambda name, b=build: f"2.14.1{b}")
        found.append(terms_of(config()))
    assert found[0]["torch"] == "2.14.1"
    assert difference({"a": found[0], "b": found[1]}) == ""


def test_a_run_that_goes_on_needs_its_data_model_optimizer_and_order_of_samples() -> None:
    assert kept_terms() == {
        DATA, "--model", "--num-classes", "--batch-size", "--optimizer", "--synthetic-samples",
        "--seed", "--lora", "--lora-alpha", "--lora-targets", "--seq-len", "--ignore-index",
        "--shuffle-window", "--ra-reps",
    }  # fmt: skip


def test_what_has_changed_since_the_last_start_is_a_line_each() -> None:
    old, new = terms_of(config()), terms_of(config(lr=0.2, cut=("layer3",)))
    assert changes(old, new) == {
        "--lr": "--lr was 0.1, is 0.2",
        "--cut": "--cut was not given, is layer3",
    }


def test_terms_need_no_torch() -> None:
    words = (
        "import sys; from bundlerun.launcher.agreement.agreed import terms_of; "
        "from bundlerun.launcher.config import TrainConfig; "
        "terms_of(TrainConfig(data='synthetic')); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", words], timeout=60).returncode == 0


def test_what_a_file_imports_from_the_current_folder_is_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "net.py").write_text("from nets.small import build\n")
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "__init__.py").touch()
    (tmp_path / "nets" / "small.py").write_text("A = 1\n")
    monkeypatch.chdir(tmp_path)
    models = ("deep/net.py", "nets.small:build")
    before = [terms_of(config(model=model)) for model in models]
    (tmp_path / "nets" / "small.py").write_text("A = 2\n")
    for model, was in zip(models, before, strict=True):
        text = difference({"a": was, "b": terms_of(config(model=model))})
        assert text.startswith("content of --model is ")


def test_the_configuration_and_the_package_of_a_model_are_compared(tmp_path: Path) -> None:
    found = []
    for node in ("a", "b"):
        (tmp_path / node / "net").mkdir(parents=True)
        (tmp_path / node / "net" / "config.json").write_text("{}")
        found.append(terms_of(config(model=f"hf:{tmp_path / node / 'net'}")))
    assert difference({"a": found[0], "b": found[1]}) == ""
    assert "transformers" in found[0]
    assert "transformers" not in terms_of(config())
    (tmp_path / "a" / "net" / "config.json").write_text('{"hidden_size": 1}')
    changed = terms_of(config(model=f"hf:{tmp_path / 'a' / 'net'}"))
    assert difference({"a": changed, "b": found[1]}).startswith("content of --model is ")


def test_weights_to_begin_with_are_compared_by_name_and_content(tmp_path: Path) -> None:
    found = []
    for node in ("a", "b"):
        (tmp_path / node).mkdir()
        (tmp_path / node / "w.pth").write_text("weights")
        found.append(terms_of(config(init_from=str(tmp_path / node / "w.pth"))))
    assert difference({"a": found[0], "b": found[1]}) == ""
    (tmp_path / "a" / "w.pth").write_text("Weights")
    changed = terms_of(config(init_from=str(tmp_path / "a" / "w.pth")))
    text = difference({"a": changed, "b": found[1]})
    assert text.startswith("content of --init-from is ")
    # A run that goes on does without.
    (tmp_path / "a" / "w.pth").unlink()
    assert difference({"a": terms_of(config(init_from="w.pth")), "b": found[1]}) == ""
