from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.rendezvous.settings import Conf, read_token
from bundlerun.launcher.rendezvous.token import TOKEN_BYTES, ensure_token
from bundlerun.launcher.run_folder.paths import RunPaths


def test_nodes_that_come_at_once_get_the_same_secret_which_others_cannot_read(
    tmp_path: Path,
) -> None:
    paths = RunPaths(tmp_path / "run")
    with ThreadPoolExecutor(8) as pool:
        files = set(pool.map(lambda _: ensure_token(paths), range(32)))
    assert files == {str(paths.token)}
    assert paths.token.stat().st_mode & 0o777 == 0o600
    token = read_token(Conf(token_file=str(paths.token)), {}, "id")
    assert len(bytes.fromhex(token.decode())) == TOKEN_BYTES
    assert [file.name for file in paths.token.parent.iterdir()] == ["token"]
    assert ensure_token(paths) == str(paths.token)
    assert read_token(Conf(token_file=str(paths.token)), {}, "id") == token


def test_two_runs_have_two_secrets(tmp_path: Path) -> None:
    one, two = RunPaths(tmp_path / "one"), RunPaths(tmp_path / "two")
    texts = {Path(ensure_token(paths)).read_text() for paths in (one, two)}
    assert len(texts) == 2


def test_the_environment_goes_first(tmp_path: Path) -> None:
    conf = Conf(token_file=ensure_token(RunPaths(tmp_path)))
    assert read_token(conf, {"BUNDLERUN_TOKEN": "mine"}, "id") == b"mine"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NodeError, match="BUNDLERUN_TOKEN"):
        ensure_token(RunPaths(tmp_path / "file"))
