"""The default shape in a job that has only one device: one stage instead of two.

All nodes of a job decide alike: with several nodes the default shape stays, as a bundle may span
nodes.
"""

from __future__ import annotations

from dataclasses import replace

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.hardware import Hardware
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.options.declared import Resolved


def for_one_device(
    train: Resolved[TrainConfig], launch: LaunchConfig, hardware: Hardware
) -> Resolved[TrainConfig]:
    """The same, in one stage where this is the only node and has one device."""
    num_gpus = hardware.num_gpus if launch.devices != "cpu" and not launch.slots else 0
    num_devices = launch.num_procs or launch.slots or num_gpus
    return in_one_stage(train) if launch.max_nodes == 1 and num_devices == 1 else train


def in_one_stage(train: Resolved[TrainConfig]) -> Resolved[TrainConfig]:
    """The same in one stage, unless the user says how the model is cut."""
    value, sources = train.value, train.sources
    if sources["shape"] != "default" or value.cut or value.chunks > 1:
        return train
    changed = ["shape"]
    if value.recompute == "all":
        # Of all stages with several micro-batches in flight, and one stage has one.
        value, changed = replace(value, recompute="none"), [*changed, "recompute"]
    return Resolved(
        replace(value, shape=Shape((1,))),
        {**sources, **dict.fromkeys(changed, "default for one device")},
    )
