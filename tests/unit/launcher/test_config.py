import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.train_argv import read_train_argv


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--shape=1,a", "--shape '1,a' is not whole numbers separated by commas"),
        ("--shape=", "--shape '' is not whole numbers"),
        ("--recompute=0,2", "--recompute '0,2' is not none, all, or some of 0,1"),
        ("--recompute=,", "--recompute ',' is not none, all, or some of 0,1"),
        ("--recompute=all --shape=1", "with --shape 1 there is one at a time"),
        ("--recompute=0 --schedule=zero-bubble", "would compute a stage again for each of the two"),
        ("--shape=1,0", "--shape 1,0 has a stage without a device"),
        ("--shape=-1", "--shape -1 has a stage without a device"),
        ("--batch-size=0", "--batch-size 0 must be 1 or more"),
        ("--batch-size=1.5", "--batch-size '1.5' is not a whole number"),
        ("--lr=nan", "--lr nan must be 0 or more, and finite"),
        ("--lr=inf", "--lr inf must be 0 or more, and finite"),
        ("--lr=fast", "--lr 'fast' is not a number"),
        ("--bucket-mb=nan", "--bucket-mb nan must be 0 or more, and finite"),
        ("--sync=flat --exchange-dtype=bfloat16", "--sync flat has no step of its own for that"),
        ("--precision=float64 --exchange-dtype=int4", "a form of float32 gradients, and those of"),
        ("--precision=float64 --exchange-dtype=int8", "leave one of the two out"),
        ("--sync=ring", "--sync 'ring' is not one of: auto, local-master, sharded, flat"),
        ("--timeout-s=0", "--timeout-s 0.0 must be above 0, and finite"),
        ("--snapshot=no", "--snapshot 'no' is not one of: on, off"),
        ("--snapshot-steps=-1", "--snapshot-steps -1 must be 0 or more"),
        ("--label-smoothing=1.5", "--label-smoothing 1.5 must be 1 or less"),
        ("--threads=-1", "--threads -1 must be 0 or more"),
        ("--loader-workers=-2", "--loader-workers -2 must be -1 or more"),
        ("--optimizer=lion", "--optimizer 'lion' is not one of: sgd, sgd-nesterov, rms"),
        ("--optimizer=sgd-nesterov --momentum=0", "and --momentum is 0; use --momentum 0.9"),
        ("--lr-min=0.2", "--lr-min 0.2 is above --lr 0.1, the highest learning rate"),
        ("--lr-min=0.01 --lr-schedule=step", "is where a cosine ends, and --lr-schedule is step"),
        ("--warmup-decay=1.5", "--warmup-decay 1.5 must be 1 or less"),
        ("--warmup-decay=-0.5", "--warmup-decay -0.5 must be 0 or more"),
        ("--lr-by=epoch --lr-schedule=one-cycle", "--lr-by epoch is not for --lr-schedule one-cyc"),
        ("--embedding-weight-decay=-2", "--embedding-weight-decay -2.0 must be 0 or more"),
        ("--auto-augment=rand", "--auto-augment 'rand' is not one of: none, ra, ta-wide, augmix"),
        ("--ra-magnitude=31", "--ra-magnitude 31 must be 30 or less"),
        ("--augmix-severity=0", "--augmix-severity 0 must be 1 to 10"),
        ("--random-erase=2", "--random-erase 2.0 must be 1 or less"),
        ("--mixup-alpha=nan", "--mixup-alpha nan must be 0 or more, and finite"),
        ("--cutmix-alpha=1 --microbatch-size=1", "mix the images of a micro-batch, and with"),
        ("--mixup-alpha=1 --recipe=segmentation", "--mixup-alpha is for --recipe image-classif"),
        ("--cut=a,b", "--cut a,b makes 3 stages, --shape 1,1 has 2"),
        ("--cut=3", "--cut 3 makes 3 equal parts, --shape 1,1 has 2 stages"),
        ("--chunks=0", "--chunks 0 must be 1 or more"),
        ("--schedule=2f2b", "--schedule '2f2b' is not one of: auto, gpipe, 1f1b"),
        ("--schedule=cosine", "--schedule 'cosine' is not one of: auto, gpipe, 1f1b"),
        ("--schedule=interleaved", "--schedule interleaved needs --chunks 2 or more"),
        ("--chunks=2 --schedule=gpipe", "--schedule gpipe has no order for --chunks 2"),
        ("--chunks=2 --shape=3", "--chunks 2 of one stage follow each other on the same device"),
        ("--schedule=zero-bubble --compile", "--schedule zero-bubble takes each backward apart"),
        ("--compile=fast", "--compile 'fast' is not one of: off, default, reduce-overhead, max-"),
        ("--compile=reduce-overhead", "may still be read by a link; use --compile=default"),
        ("--compile=max-autotune --deterministic", "--compile=max-autotune takes the kernels"),
        ("--tf32=no-thanks", "--tf32 'no-thanks' is not one of: auto, on, off"),
        ("--norm-weight-decay=-0.5", "--norm-weight-decay -0.5 must be 0 or more"),
        ("--bias-weight-decay=-2", "--bias-weight-decay -2.0 must be 0 or more"),
        ("--chunks=2 --cut=a", "--cut a makes 2 chunks, --shape 1,1 with --chunks 2 has 4"),
        ("--chunks=2 --cut=2", "--shape 1,1 with --chunks 2 has 4 chunks; give the same number"),
    ],
)
def test_a_wrong_value_is_named_with_its_option(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_train_argv([*word.split(" "), "synthetic"], {})
    assert message in str(error.value)


def test_stages_that_links_read_are_compiled_without_graphs() -> None:
    alone = TrainConfig(data="d", shape=Shape((2,)), compile="max-autotune")
    assert (alone.compile_mode, alone.has_graphs) == ("max-autotune", True)
    cut = TrainConfig(data="d", compile="max-autotune")
    assert (cut.compile_mode, cut.has_graphs) == ("max-autotune-no-cudagraphs", False)
    plain = TrainConfig(data="d", shape=Shape((1,)), compile="default")
    assert (plain.compile_mode, plain.has_graphs) == ("default", False)


def test_what_only_gpus_do_is_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match="--tf32 is for GPUs"):
        TrainConfig(data="d", tf32="on").check_kind("cpu")
    with pytest.raises(ConfigError, match="--precision float16 is for GPUs"):
        TrainConfig(data="d", precision="float16").check_kind("cpu")
    with pytest.raises(ConfigError, match="--transport ipc is for GPUs"):
        TrainConfig(data="d", transport="ipc").check_kind("cpu")
    with pytest.raises(ConfigError, match="--transport nccl is for GPUs"):
        TrainConfig(data="d", transport="nccl").check_kind("cpu")
    TrainConfig(data="d", transport="ipc").check_kind("gpu")
    TrainConfig(data="d", transport="nccl").check_kind("gpu")
    TrainConfig(data="d", precision="float16").check_kind("gpu")
    TrainConfig(data="d", tf32="on").check_kind("gpu")
    TrainConfig(data="d", tf32="off").check_kind("cpu")


@pytest.mark.parametrize("words", ["--chunks=2", "--chunks=2 --schedule=interleaved --cut=4"])
def test_chunks_are_interleaved(words: str) -> None:
    assert read_train_argv([*words.split(), "synthetic"], {}).value.num_chunks == 4


def test_a_batch_that_is_no_multiple_of_the_microbatch_names_the_sizes_that_do() -> None:
    with pytest.raises(ConfigError, match=r"not a multiple .* \[1, 2, 5, 10\]"):
        TrainConfig(batch_size=10, microbatch_size=4)


@given(st.integers(1, 5000))
def test_the_default_microbatch_divides_the_batch_and_never_exceeds_32(batch_size: int) -> None:
    config = TrainConfig(batch_size=batch_size)
    assert batch_size % config.samples_per_microbatch == 0
    assert config.samples_per_microbatch <= 32
    assert config.num_microbatches * config.samples_per_microbatch == batch_size


def test_in_a_shape_of_several_stages_all_that_is_said_of_stages_stays() -> None:
    config = TrainConfig(shape=Shape((1, 1)), cut=("layer3",), schedule="gpipe", recompute="all")
    found = config.in_shape(Shape((2, 1)))
    assert (found.shape, found.cut) == (Shape((2, 1)), ("layer3",))
    assert (found.schedule, found.recompute) == ("gpipe", "all")


def test_the_json_form_has_every_field() -> None:
    document = json.loads(TrainConfig(data="d", shape=Shape((2, 1))).to_json())
    assert (document["data"], document["shape"]) == ("d", [2, 1])
