import argparse
import shlex

import pytest

from bundlerun.launcher.cli import main
from bundlerun.launcher.commands.arguments.classic import add_arguments as add_classic_arguments
from bundlerun.launcher.commands.arguments.run import add_arguments
from bundlerun.launcher.commands.classic import microbatch_size, plain_model, run_argv
from bundlerun.launcher.commands.run import read_configs
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.options.endpoints import Endpoint


def words_of(text: str) -> list[str]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_classic_arguments(parser)
    return run_argv(parser.parse_args(shlex.split(text)))


def run_configs(text: str):  # type: ignore[no-untyped-def]  # noqa: ANN201
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    train, launch = read_configs(parser.parse_args(words_of(text)), {})
    return train.value, launch.value


def test_the_batch_size_of_a_bundle_becomes_that_of_the_job() -> None:
    train, launch = run_configs(
        "--batch-size 32 --rank 1 --num-hp 2 --IP 10.0.0.1 --world-size 2 DATA"
    )
    assert (train.batch_size, train.samples_per_microbatch, train.shape) == (128, 8, Shape((1, 1)))
    assert (train.data, train.share, launch.bundles) == ("DATA", "equal", 2)


def test_the_rank_of_a_node_is_fixed() -> None:
    _, launch = run_configs("--rank 1 --IP 10.0.0.1 --portNum 9998 --world-size 2 DATA")
    assert (launch.rdzv_backend, launch.node_rank, launch.nnodes) == ("static", 1, "2")
    assert launch.endpoints == (Endpoint(host="10.0.0.1", port=9998),)


def test_data_parallel_only_is_a_bundle_of_one_device() -> None:
    train, launch = run_configs("--batch-size 32 --num-hp 3 --DP-ONLY --modela resnet101 DATA")
    assert (train.shape, train.batch_size, train.samples_per_microbatch) == (Shape((1,)), 96, 32)
    assert (train.model, launch.bundles, launch.is_alone) == ("resnet101", 3, True)


def test_the_later_names_mean_the_same() -> None:
    old = words_of("--num-hp 2 --rank 1 --world-size 2 --modela vgg16 DATA")
    assert words_of("--num-bundle 2 --node-rank 1 --world-size 2 --model vgg16 DATA") == old


def test_a_shape_and_the_optimizer_are_passed_on() -> None:
    train, _ = run_configs("--bundle-shape 4,2 --itr 7 --lr 0.5 --wd 0.1 --momentum 0.8 DATA")
    assert (train.shape, train.max_steps) == (Shape((4, 2)), 7)
    assert (train.lr, train.weight_decay, train.momentum) == (0.5, 0.1, 0.8)


def test_the_authors_own_cuts_become_the_familys() -> None:
    assert [plain_model("resnet101_trial4"), plain_model("vgg16")] == ["resnet101", "vgg16"]


@pytest.mark.parametrize(
    ("batch_size", "num_stages", "size"), [(32, 2, 8), (31, 2, 1), (2, 2, 1), (31, 1, 31)]
)
def test_a_bundle_of_stages_gets_four_microbatches_at_least(
    batch_size: int, num_stages: int, size: int
) -> None:
    assert microbatch_size(batch_size, num_stages) == size


@pytest.mark.parametrize(
    "text", ["--batch-size 0 D", "--num-hp 0 D", "--world-size 0 D", "--bundle-shape 1,x D",
             "--bundle-shape 0,1 D"],
)  # fmt: skip
def test_wrong_numbers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        words_of(text)


def test_a_dry_run_prints_the_command_and_starts_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["classic", "--dry-run", "--num-hp", "2", "my photos"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("bundlerun run --model=resnet101 ")
    assert shlex.split(out)[-1] == "my photos"
