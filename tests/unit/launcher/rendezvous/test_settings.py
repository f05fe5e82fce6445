from pathlib import Path

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.rendezvous.settings import Conf, read_token


def test_settings_come_as_text_and_torchruns_own_are_passed_over() -> None:
    conf = Conf.from_mapping({"lease": "3", "timeout": 900, "bundle_size": "4", "fence_dir": "/f"})
    assert (conf.lease, conf.bundle_size, conf.fence_dir) == (3.0, 4, "/f")
    rules = conf.rules(index=1, num_candidates=2, nodes=(1, 3))
    assert (rules.lease_s, rules.min_nodes, rules.has_fence) == (3.0, 1, True)
    assert not conf.rules(index=0, num_candidates=1, nodes=(1, 3)).has_fence


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"leese": "3"}, "unknown key 'leese' in --rdzv-conf; nearest: lease"),
        ({"lease": "long"}, "lease='long' is not a number"),
        ({"lease": "nan"}, "lease=nan must be above 0"),
        ({"lease": "0.5"}, "lease=0.5 must be at least twice heartbeat=0.3"),
        ({"bundle_size": "0"}, "bundle_size=0 must be above 0"),
        ({"grace": "-1"}, "grace=-1.0 must be 0 or more"),
        ({"node_name": "a/b"}, "names a folder"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(config: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Conf.from_mapping(config)
    assert message in str(caught.value)


def test_the_token_is_the_environments_else_the_files_else_the_run_id(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret\n")
    file.chmod(0o600)
    conf = Conf(token_file=str(file))
    assert read_token(conf, {"BUNDLERUN_TOKEN": "x"}, "job") == b"x"
    assert read_token(conf, {}, "job") == b"secret"
    assert read_token(Conf(), {}, "job") == b"job"


def test_a_token_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(Conf(token_file=str(file)), {}, "job")
    file.write_text("")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="is empty"):
        read_token(Conf(token_file=str(file)), {}, "job")
    with pytest.raises(ConfigError, match="cannot read"):
        read_token(Conf(token_file=str(tmp_path / "none")), {}, "job")


@pytest.mark.parametrize(
    ("text", "rates"),
    [("", {}), ("2,1=31.5|2=20", {(2, 1): 31.5, (2,): 20.0})],
)
def test_rates_are_read(text: str, rates: dict[tuple[int, ...], float]) -> None:
    rules = Conf(rates=text).rules(index=0, num_candidates=1, nodes=(1, 2))
    assert rules.rates == rates


@pytest.mark.parametrize("text", ["1", "1=", "=2", "a=2", "1=2|"])
def test_rates_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="rates="):
        Conf(rates=text)
