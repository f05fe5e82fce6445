"""`bundlerun profile`: what each piece of a model costs, and with --links what is between nodes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bundlerun.launcher.choices import DeviceKind
from bundlerun.launcher.commands.run import check_work, read_configs
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import EXIT_DONE, ConfigError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.hardware import choose_devices, num_threads, read_hardware
from bundlerun.launcher.layout.machine.gpus import CPU_ONLY_VARIABLE
from bundlerun.launcher.options.declared import Resolved
from bundlerun.launcher.plan import WORKER_MODULE
from bundlerun.launcher.planning import profile_file
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.planning.profile_request import Peak, ProfileRequest
from bundlerun.launcher.planning.profile_table import profile_text
from bundlerun.launcher.run_folder.paths import RunPaths


def run(args: argparse.Namespace) -> int:
    """Prints the profile, or the links.

    Raises:
        ConfigError: an option is wrong, or the model or the data does not do for it.
    """
    if args.links:
        from bundlerun.launcher.commands.look.links import links

        return links(args, os.environ)
    for name, flag in (("peers", "--peers"), ("output", "--output")):
        if getattr(args, name):
            raise ConfigError(f"{flag} goes with --links, which measures what is between nodes")
    train, launch = read_configs(args, os.environ, default_data="synthetic")
    request = request_of(
        train.value,
        launch.value,
        os.environ,
        sizes=sizes_of(args.sizes, train.value),
        peak=_peak(args),
    )
    profile = made_profile(train.value, request)
    # Only where somebody has named it: a folder made for this alone would be of no run.
    if _is_given(train):
        path = RunPaths(Path(train.value.run_dir)).model_profile
        if why_not := profile_file.read(path, profile.key).why_not:
            _say(f"{why_not}: it is replaced")
        profile_file.write(path, profile)
    if args.json:
        print(json.dumps(profile_file.plain(profile), indent=2))
    else:
        print(profile_text(profile, top=args.top))
    return EXIT_DONE


def _is_given(train: Resolved[TrainConfig]) -> bool:
    return train.sources.get("run_dir", "default") != "default"


def sizes_of(text: str, config: TrainConfig) -> tuple[int, ...]:
    """The sizes of micro-batches to measure; several, where a run has none yet.

    Raises:
        ConfigError: one of them is no number above 0.
    """
    if text:
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ConfigError(f"--sizes {text!r} is not N[,N...], whole numbers above 0")
        return tuple(sorted({int(part) for part in parts}))
    if config.microbatch_size:
        return (config.microbatch_size,)
    usual = config.samples_per_microbatch
    return tuple(sorted({max(2, usual // 4), usual}))


def _peak(args: argparse.Namespace) -> Peak | None:
    """The device to estimate for.

    Raises:
        ConfigError: it is not said, or said wrongly.
    """
    given = args.tflops, args.memory_gb_s
    if not args.estimate and given == (0.0, 0.0):
        return None
    for flag, value in zip(("--tflops", "--memory-gb-s"), given, strict=True):
        if not 0 < value < float("inf"):
            raise ConfigError(
                f"an estimate needs {flag} of the device, above 0, and it is {value:g}; see its "
                "data sheet, and take what it does with this precision"
            )
    return Peak(flop_per_s=args.tflops * 1e12, bytes_per_s=args.memory_gb_s * 1e9)


def request_of(
    config: TrainConfig,
    launch: LaunchConfig,
    environ: Mapping[str, str],
    *,
    sizes: tuple[int, ...],
    peak: Peak | None = None,
) -> ProfileRequest:
    """How this node's ranks would compute, so that a profile is of the same.

    Args:
        config: of the run.
        launch: of this node.
        environ: of its ranks.
        sizes: of micro-batches.
        peak: of a device that is not here.

    Raises:
        ConfigError: there is no such device, and nothing is said of one.
    """
    hardware = read_hardware(environ)
    if launch.devices == "gpu" and not hardware.num_gpus:
        if peak is None:
            raise ConfigError(
                "--devices gpu, but this node shows no GPU; use --devices cpu, or estimate with "
                "--tflops and --memory-gb-s of one"
            )
        return ProfileRequest(sizes=sizes, kind="gpu", peak=peak)
    devices = choose_devices(hardware, config.shape, kind=launch.devices, slots=launch.slots)
    kind: DeviceKind = devices.kind
    threads, _ = num_threads(config.threads, environ, devices.count, hardware.cpus.num_cores)
    return ProfileRequest(sizes=sizes, kind=kind, threads=threads, peak=peak)


def made_profile(config: TrainConfig, request: ProfileRequest) -> Profile:
    """A new profile, by the program that the ranks run, in this process.

    Raises:
        BundleError: the data or the model does not do for it.
    """
    check_work(config)
    with _devices_as(request.kind):
        profile: Profile = importlib.import_module(WORKER_MODULE).profiled(config, request)
    return profile


@contextmanager
def _devices_as(kind: DeviceKind) -> Iterator[None]:
    """Lets this process see no GPU, where its ranks would use none."""
    before = os.environ.get(CPU_ONLY_VARIABLE)
    if kind == "cpu":
        os.environ[CPU_ONLY_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(CPU_ONLY_VARIABLE, None)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
