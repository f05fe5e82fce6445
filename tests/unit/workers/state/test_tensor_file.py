import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bundlerun.launcher.errors import CheckpointError
from bundlerun.workers.state.tensor_file import write_tensors

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@settings(max_examples=60, deadline=None)
@given(specs=st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4))))
def test_the_library_reads_back_what_was_written(
    specs: list[tuple[torch.dtype, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("file") / "part.safetensors"
    tensors = {
        f"t.{i} \u00e4": torch.randint(0, 2, shape).to(dtype)
        for i, (dtype, shape) in enumerate(specs)
    }

    written = write_tensors(path, tensors)

    found = load_file(path)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert written.size_bytes == path.stat().st_size
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_data_is_laid_out_as_the_library_does_it(tmp_path: Path) -> None:
    tensors = {
        "half": torch.arange(5).to(torch.bfloat16),
        "flag": torch.tensor(True),
        "wide": torch.randn(3, 3, dtype=torch.float64),
        "count": torch.tensor(7),
    }

    write_tensors(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})

    assert data_of(tmp_path / "ours") == data_of(tmp_path / "theirs")


def data_of(path: Path) -> bytes:
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_any_memory_layout_is_written_in_row_major_order(tmp_path: Path) -> None:
    tensors = {
        "nhwc": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 4).t(),
        "slice": torch.randn(6, 6)[::2, 1:4],
        "expanded": torch.randn(1, 3).expand(4, 3),
    }

    write_tensors(tmp_path / "part", tensors)

    found = load_file(tmp_path / "part")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_an_unsupported_dtype_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    strange = torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointError, match=r"'z'.*qint8"):
        write_tensors(tmp_path / "part", {"z": strange})
    with pytest.raises(CheckpointError, match=r"'z'.*sparse_coo"):
        write_tensors(tmp_path / "part", {"z": torch.eye(2).to_sparse()})

    assert not list(tmp_path.iterdir())
