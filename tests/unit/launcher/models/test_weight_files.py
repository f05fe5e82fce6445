"""What `--init-from` names, told before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from bundlerun.launcher.choices import Reading
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.weight_files import find_weights, how_read, source_of


def written(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"content of {name}")
    return folder


def indexed(folder: Path, *shards: str) -> Path:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"w{n}": s for n, s in enumerate(shards)}}))
    return index


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "other.pth"], "model.safetensors"),
        (["pytorch_model.bin", "training_args.bin"], "pytorch_model.bin"),
        (["resnet50-0676ba61.pth", "README.md"], "resnet50-0676ba61.pth"),
    ],
)
def test_a_folder_has_its_weights_under_known_names(
    names: list[str], chosen: str, tmp_path: Path
) -> None:
    found = find_weights(str(written(tmp_path, *names)))
    assert found.files == (tmp_path / chosen,)
    assert found.kind == ("safetensors" if chosen.endswith(".safetensors") else "torch")


def test_an_index_names_the_files_next_to_it(tmp_path: Path) -> None:
    folder = written(tmp_path, "b.safetensors", "a.safetensors")
    index = indexed(folder, "b.safetensors", "../../a.safetensors")
    for given in (index, tmp_path):
        found = find_weights(str(given))
        assert found.files == (folder / "a.safetensors", folder / "b.safetensors")
    (tmp_path / "b.safetensors").unlink()
    message = r"1 of the 2 files that model.safetensors.index.json names are missing, such as 'b.s"
    with pytest.raises(ConfigError, match=message):
        find_weights(str(index))
    index.write_text("[]")
    with pytest.raises(ConfigError, match=r"is no index of weights \(TypeError: .*a weight_map"):
        find_weights(str(index))


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        ([], "none.pth", r"no such file or folder; nothing is downloaded"),
        (["w.h5"], "w.h5", r"a file of weights ends in one of: .safetensors, .pth"),
        ([], "", r"the folder has no weights, as model.safetensors.index.json, .* nor checkpoints"),
        (
            ["a.pth", "b.pth"],
            "",
            r"the folder has 2 files of weights, none of them .*name the file",
        ),
        (["checkpoints/step-000000001/x"], "", r"the run has no checkpoint that is whole"),
        (["manifest.json"], "", r"the checkpoint is damaged: manifest.json cannot be read"),
    ],
)
def test_what_has_no_weights_is_refused(
    names: list[str], given: str, message: str, tmp_path: Path
) -> None:
    for name in names:
        written((tmp_path / name).parent, (tmp_path / name).name)
    with pytest.raises(ConfigError, match=message):
        find_weights(str(tmp_path / given))


def test_files_that_differ_have_another_identity(tmp_path: Path) -> None:
    found = find_weights(str(written(tmp_path / "a", "model.safetensors")))
    same = find_weights(str(written(tmp_path / "b", "model.safetensors")))
    assert found.identity() == same.identity()
    (tmp_path / "b" / "model.safetensors").write_text("content of Model.safetensors")
    assert found.identity() != same.identity()
    # Of a large file much is looked at, though not all.
    large = bytearray(1 << 20)
    (tmp_path / "a" / "model.safetensors").write_bytes(large)
    before = found.identity()
    large[len(large) // 2 : len(large) // 2 + 40000] = b"x" * 40000
    (tmp_path / "a" / "model.safetensors").write_bytes(large)
    assert found.identity() != before


def test_a_folder_of_transformers_brings_its_own_weights(tmp_path: Path) -> None:
    model = f"hf:{tmp_path}"
    ours, users = "image-classification", "mine.py"
    assert source_of("", model, ours) == ""
    written(tmp_path, "model.safetensors")
    assert source_of("", model, ours) == str(tmp_path)
    assert source_of("none", model, ours) == source_of("", model, users) == ""
    assert source_of("w.pth", model, users) == source_of("w.pth", "resnet18", ours) == "w.pth"


def test_torch_is_not_imported_for_it(tmp_path: Path) -> None:
    code = (
        "import sys; from bundlerun.launcher.cli import main; "
        f"assert main(['run', '--init-from=none.pth', '--run-dir={tmp_path}', 'synthetic']) == 2; "
        "assert not {'torch', 'torchvision', 'safetensors'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("--init-from")) == (0, 1), done.stderr


def test_only_old_files_of_torch_are_read_whole(tmp_path: Path) -> None:
    written(tmp_path, "model.safetensors", "old.pth")
    with ZipFile(tmp_path / "new.pth", "w") as opened:
        opened.writestr("archive/data.pkl", "numbers")
    found = {name: how_read(str(tmp_path / name)) for name in ("model.safetensors", "new.pth")}
    assert set(found.values()) == {Reading.BY_TENSOR}
    assert how_read(str(tmp_path / "old.pth")) is Reading.WHOLE
    # A plan may be for machines that have it.
    assert how_read(str(tmp_path / "missing.pth")) is Reading.BY_TENSOR
    assert how_read("") is Reading.NOTHING
