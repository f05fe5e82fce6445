"""`Cut`: how a model of a user's own loop is cut, and what runs where."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from bundlerun.launcher.choices import CutterChoice, ExchangeDtype, ScheduleChoice, SchemeChoice
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.microbatch import default_samples, divisors
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.rank.env import RankEnv


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How a model is cut, and what runs where; the options of `bundlerun run` with these names.

    Args:
        shape: devices of each stage of a bundle, such as (1, 1).
        at: where each stage after the first begins; none: by cost.
        cutter: graph, which cuts inside of modules, replay, or auto, see docs/splits.md.
        chunks: of the model on each stage.
        schedule: order of passes.
        microbatch_size: samples; 0: by default, see `bundlerun run --help`.
        recompute: none, all, or stages whose forwards are computed again in the backward.
        precision: float32, float64, or bfloat16 by autocast.
        sync: how gradients are summed between bundles.
        exchange_dtype: of gradients between nodes.
        seed: of dropout.
        timeout_s: longest wait for another rank, seconds.
    """

    shape: tuple[int, ...] = (1, 1)
    at: tuple[str, ...] = ()
    cutter: CutterChoice = "auto"
    chunks: int = 1
    schedule: ScheduleChoice = "auto"
    microbatch_size: int = 0
    recompute: str = "none"
    precision: str = "float32"
    sync: SchemeChoice = "auto"
    exchange_dtype: ExchangeDtype = "float32"
    seed: int = 0
    timeout_s: float = 300.0

    def config(self, env: RankEnv, batch_size: int) -> TrainConfig:
        """The same as options of a run.

        Args:
            env: of this rank.
            batch_size: of one bundle.

        Raises:
            ConfigError: a value is out of range, or the ranks are not whole bundles.
        """
        shape = Shape(self.shape)
        num_bundles, rest = divmod(env.world_size, shape.size)
        if rest or not num_bundles:
            raise ConfigError(
                f"{env.world_size} ranks are not a whole number of bundles of shape {shape} "
                f"({shape.size} ranks each); start a multiple of {shape.size}, or give another "
                "Cut(shape=...)"
            )
        if self.precision not in ("float32", "float64", "bfloat16"):
            raise ConfigError(
                f"Cut(precision={self.precision!r}) is not float32, float64 or bfloat16; float16 "
                "needs a loss scale, which bundlerun run has"
            )
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be 1 or more: samples of one bundle")
        samples = self.microbatch_size or default_samples(batch_size, shape.num_stages, 1)
        if batch_size % samples:
            raise ConfigError(
                f"batch_size={batch_size} is not a multiple of Cut(microbatch_size={samples}); "
                f"use one of {divisors(batch_size)}"
            )
        values = {name: value for name, value in asdict(self).items() if name != "at"}
        values |= {"shape": shape, "cut": self.at, "microbatch_size": samples}
        # What is not finite, the user's loop sees in the loss.
        return TrainConfig(
            **values, batch_size=batch_size * num_bundles, on_nan="ignore", snapshot="off",
            share="equal",
        )  # fmt: skip
