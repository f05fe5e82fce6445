"""The training configuration: every option of `bundlerun.workers.train`, checked once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import get_args

from bundlerun.launcher.choices import (
    BY_TIMING,
    WITH_GRAPHS,
    WITHOUT_EXCHANGE,
    CompileMode,
    DeviceKind,
    ExchangeDtype,
    ExchangeLoss,
    MemoryFormatChoice,
    Precision,
    SchemeChoice,
    TF32Choice,
    TransportChoice,
)
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.exchange_form import ALL, ExchangeForm
from bundlerun.launcher.layout.prospects import NO_CUT, Cut
from bundlerun.launcher.layout.shape import AUTO, Shape
from bundlerun.launcher.options.bounds import at_least, finite_above_0
from bundlerun.launcher.options.declared import Reader, argv_of, option, text_list, yes_or_no
from bundlerun.launcher.options.step_range import profile_steps
from bundlerun.launcher.training.snapshots import SnapshotConfig

_DATA = "data"
_RUN = "run"
_TUNE = "execution"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(SnapshotConfig):
    """What a training run does, the same on every rank.

    Raises:
        ConfigError: a value is out of range or two values contradict each other.
    """

    seq_len: int = option(
        512, "tokens of a sequence; the most of a text", group=_DATA, parse=int, kept=True
    )
    tokenizer: str = option(
        "",
        "what makes tokens of texts: a file of the package tokenizers, or a folder of "
        "save_pretrained (default: that of --model hf:FOLDER)",
        group=_DATA,
        parse=Reader(metavar="FILE|FOLDER"),
    )
    ignore_index: int = option(
        255, "label of pixels that are not learnt (segmentation)", group=_DATA, parse=int, kept=True
    )
    loader_workers: int = option(
        -1,
        "loading processes per rank that reads data (-1: by free cores)",
        group=_DATA,
        parse=int,
        per_node=True,
    )
    prefetch: int = option(
        2, "micro-batches that each of them reads ahead", group=_DATA, parse=int, per_node=True
    )
    shuffle_window: int = option(
        -1,
        "samples of shards that are shuffled together (0: all; -1: all of .tar, of .parquet what "
        "fits 256 MB)",
        group=_DATA,
        parse=int,
        kept=True,
    )
    skip_unreadable: bool = option(
        False, "skip unreadable images and count them", group=_DATA, parse=yes_or_no
    )
    synthetic_samples: int = option(
        1024, "training samples of the data set `synthetic`", group=_DATA, parse=int, kept=True
    )

    run_dir: str = option(
        "",
        "run folder; a run that is in it is resumed (default: a new folder in runs/, linked as "
        "runs/latest)",
        group=_RUN,
        per_node=True,
        common=True,
    )
    seed: int = option(0, "seed of everything random", group=_RUN, parse=int, kept=True)
    log_steps: int = option(
        10, "steps between progress lines", group=_RUN, parse=int, per_node=True
    )
    checkpoint_steps: int = option(
        0, "steps between checkpoints (0: only at each epoch's end)", group=_RUN, parse=int
    )
    keep: int = option(3, "newest checkpoints to keep; the best is kept too", group=_RUN, parse=int)
    validate: bool = option(True, "validate after each epoch", group=_RUN, parse=yes_or_no)
    tracker: tuple[str, ...] = option(
        (),
        "where else each step is told: tensorboard, wandb, mlflow, trackio, or one that another "
        "package adds; may be repeated",
        group=_RUN,
        parse=Reader(text_list, metavar="NAME[,NAME...]", repeats=True),
        per_node=True,
    )
    profile: str = option(
        "",
        "steps that torch's profiler sees, as 10:13, or a count of steps after the first two: a "
        "trace per rank and one timeline of all in RUN_DIR/profile",
        group=_RUN,
        parse=Reader(
            profile_steps, kind="a count of steps or from:to, 100 steps at most", metavar="FROM:TO"
        ),
        per_node=True,
    )
    tensorboard: bool = option(
        False, "short for --tracker tensorboard", group=_RUN, parse=yes_or_no, per_node=True
    )

    precision: Precision = option(
        "float32",
        "float32, float64, or by autocast bfloat16, or float16 with a loss scale (GPUs)",
        group=_TUNE,
        choices=get_args(Precision),
        common=True,
    )
    tf32: TF32Choice = option(
        "auto",
        "TensorFloat-32 for float32 arithmetic on GPUs: --tf32 everywhere, --no-tf32 nowhere, "
        "auto: in convolutions, as torch does",
        group=_TUNE,
        choices=get_args(TF32Choice),
        bare="on",
    )
    compile: CompileMode = option(
        "off",
        "torch.compile each stage, in a mode of torch's; --compile alone: default",
        group=_TUNE,
        choices=get_args(CompileMode),
        bare="default",
    )
    deterministic: bool = option(
        False,
        "the same bits whenever the same run is started on the same devices; slower on GPUs",
        group=_TUNE,
        parse=yes_or_no,
    )
    memory_format: MemoryFormatChoice = option(
        "auto",
        "order of images and convolutions' weights in memory: contiguous, channels_last, or auto: "
        "channels_last on GPUs, as the model has it on the CPU",
        group=_TUNE,
        choices=get_args(MemoryFormatChoice),
    )
    recompute: str = option(
        "none",
        "stages that keep the inputs of micro-batches in flight only, and compute the rest again "
        "in the backward: none, all (that have several in flight), or numbers from 0 on",
        group=_TUNE,
        parse=Reader(metavar="none|all|STAGE[,...]"),
    )
    transport: TransportChoice = option(
        "auto",
        "how ranks communicate: nccl, cpu (through its memory), ipc (as cpu, but stages of a node "
        "through memory of their GPUs), or auto: nccl where known to work",
        group=_TUNE,
        choices=get_args(TransportChoice),
    )
    sync: SchemeChoice = option(
        "auto",
        "how gradients are summed: local-master, sharded (several leaders per node), flat (one "
        "all-reduce), or auto: the fastest by measurement",
        group=_TUNE,
        choices=get_args(SchemeChoice),
    )
    exchange_dtype: ExchangeDtype = option(
        "float32",
        "float32 gradients between nodes: bfloat16, int8 and int4 (blocks with a scale) are "
        "a half, a quarter and an eighth of the bytes, with error feedback",
        group=_TUNE,
        choices=get_args(ExchangeDtype),
    )
    exchange: str = option(
        ALL,
        "what of float32 gradients travels between nodes: all, topk:K (the K largest of each 256) "
        "or powersgd:RANK (of each matrix two of that rank), with error feedback; or auto: the "
        "fastest as foreseen, of what --exchange-loss allows",
        group=_TUNE,
        parse=Reader(str, metavar="FORM"),
    )
    exchange_loss: ExchangeLoss = option(
        "none",
        "whether --exchange auto may round gradients (ok), or only sends them as they are (none)",
        group=_TUNE,
        choices=get_args(ExchangeLoss),
    )
    exchange_from: int = option(
        0,
        "steps of the run before which all gradients travel as they are between nodes",
        group=_TUNE,
        parse=int,
    )
    bucket_mb: float = option(
        0.0,
        "size of a sync bucket, MB (0: by the number of nodes; 25 over NCCL)",
        group=_TUNE,
        parse=float,
    )
    overlap_forward: bool = option(
        False,
        "let the next forward begin while gradients are still being exchanged, front layers first: "
        "each parameter is waited for where it is read; the same numbers (CPU)",
        group=_TUNE,
        parse=yes_or_no,
    )
    timeout_s: float = option(
        300.0, "longest wait for another rank, seconds", group=_TUNE, parse=float, per_node=True
    )
    threads: int = option(
        0,
        "compute threads per rank (0: OMP_NUM_THREADS if set, else 1, or all cores if the node "
        "has one rank)",
        group=_TUNE,
        parse=int,
        per_node=True,
    )
    affinity: bool = option(
        True,
        "pin each rank to its share of the cores, unless another job of yours is pinned there",
        group=_TUNE,
        parse=yes_or_no,
        per_node=True,
    )
    verify_steps: int = option(
        0, "steps in which replicas compare all state (0: 40; -1: never)", group=_TUNE, parse=int
    )
    quarantine: bool = option(
        False, "leave nodes out whose replica was found wrong", group=_TUNE, parse=yes_or_no
    )
    verify_replicas: bool = option(
        False, "check after each step that all replicas are bit-equal", group=_TUNE, parse=yes_or_no
    )

    def __post_init__(self) -> None:
        SnapshotConfig.__post_init__(self)  # not super(): slots make a class anew
        at_least(1, self, "keep", "log_steps", "seq_len", "synthetic_samples", "prefetch")
        at_least(0, self, "checkpoint_steps", "exchange_from", "threads", "seed", "bucket_mb")
        at_least(-1, self, "loader_workers", "ignore_index", "shuffle_window", "verify_steps")
        finite_above_0(self, "timeout_s")
        self._check_exchange()
        self._check_compile()
        self._check_recompute()

    @property
    def exchange_form(self) -> ExchangeForm:
        """What travels between nodes."""
        return ExchangeForm.parse(self.exchange, self.exchange_dtype)

    def _check_exchange(self) -> None:
        form = self.exchange_form
        if self.exchange == AUTO and (self.shape.others or any(c.isdecimal() for c in self.cut)):
            raise ConfigError(
                "--exchange auto is chosen with the plan of one shape, which there is none of with "
                f"--shape {self.shape} --cut {','.join(self.cut) or 'none'}; name what is to travel"
            )
        typed = f"--exchange{'-dtype' if form.kind == 'all' else ''} {form}"
        if self.sync in WITHOUT_EXCHANGE and not form.is_exact:
            raise ConfigError(
                f"{typed} changes what travels between nodes, and --sync {self.sync} has no step "
                "of its own for that; use --sync local-master or auto"
            )
        if self.sync == "sharded" and form.rank:
            raise ConfigError(
                f"{typed} needs whole matrices, and with --sync sharded each leader has a part of "
                "them; use --sync local-master or auto"
            )
        if self.precision == "float64" and form.dtype != "bfloat16" and not form.is_exact:
            raise ConfigError(
                f"{typed} is a form of float32 gradients, and those of --precision float64 are "
                "not; leave one of the two out"
            )

    def _check_compile(self) -> None:
        if self.schedule == "zero-bubble" and self.compile != "off":
            raise ConfigError(
                "--schedule zero-bubble takes each backward apart, which --compile makes one "
                "piece; use --schedule 1f1b, or --no-compile"
            )
        if self.deterministic and self.compile in BY_TIMING:
            raise ConfigError(
                f"--compile={self.compile} takes the kernels that are the fastest when it tries, "
                "and --deterministic wants the same ones always; use --compile=default"
            )
        if self.compile == "reduce-overhead" and self.num_chunks > 1:
            raise ConfigError(
                "--compile=reduce-overhead writes what a stage computes where the last micro-batch "
                "may still be read by a link; use --compile=default, or --shape 1"
            )

    def _check_recompute(self) -> None:
        if self.recompute == "none":
            return
        if self.num_chunks == 1:
            raise ConfigError(
                f"--recompute {self.recompute} saves what micro-batches in flight keep, and with "
                "--shape 1 there is one at a time; use a smaller --microbatch-size, or "
                "torch.utils.checkpoint(..., use_reentrant=False) in the model"
            )
        if self.schedule == "zero-bubble":
            raise ConfigError(
                f"--recompute {self.recompute} would compute a stage again for each of the two "
                "passes that --schedule zero-bubble makes of a backward; use --schedule 1f1b"
            )
        if self.shape.others and self.recompute != "all":
            raise ConfigError(
                f"--recompute {self.recompute} numbers stages of one shape, and --shape "
                f"{self.shape} has {len(self.shape.family)}; use none or all"
            )
        if self.shape.is_auto:
            if self.recompute != "all":
                raise ConfigError(
                    f"--recompute {self.recompute} numbers stages that --shape auto is yet to "
                    "choose; use none, all, or a --shape"
                )
            return
        stages = tuple(map(str, self._stages))
        if not self._recomputed or not set(self._recomputed) <= set(stages):
            raise ConfigError(
                f"--recompute {self.recompute!r} is not none, all, or some of {','.join(stages)}"
            )

    def in_shape(self, shape: Shape, cut: Cut = NO_CUT) -> TrainConfig:
        """The same in another shape: one of those that will do, as a round has it, or unsplit.

        Args:
            shape: it.
            cut: where it is cut, as the planner says; empty: as the options say.
        """
        if shape.num_stages > 1 and cut.names:
            return replace(self, shape=shape, cut=cut.names, cutter=cut.cutter)
        if shape.num_stages > 1:
            return replace(self, shape=shape)
        # What is said of stages has no meaning where there is one.
        return replace(self, shape=shape, cut=(), chunks=1, schedule="auto", recompute="none")

    @property
    def trackers(self) -> tuple[str, ...]:
        """Where else each step is told, each once."""
        short = ("tensorboard",) if self.tensorboard else ()
        return tuple(dict.fromkeys((*short, *self.tracker)))

    @property
    def _stages(self) -> range:
        return range(self.shape.num_stages)

    @property
    def _recomputed(self) -> tuple[str, ...]:
        return (
            tuple(map(str, self._stages)) if self.recompute == "all" else text_list(self.recompute)
        )

    def recomputes(self, stage: int, num_in_flight: int) -> bool:
        """Whether a stage computes its activations again in the backward.

        Args:
            stage: its number.
            num_in_flight: the most micro-batches, times chunks, that it holds at once. With one it
                would hold as much, in the backward.
        """
        if self.recompute == "none" or (self.recompute == "all" and num_in_flight < 2):
            return False
        return str(stage) in self._recomputed

    def check_kind(self, kind: DeviceKind) -> None:
        """Raises ConfigError for what no device of this kind does."""
        if kind == "cpu" and self.tf32 == "on":
            raise ConfigError("--tf32 is for GPUs, and this would run on the CPU; leave it out")
        if kind == "cpu" and self.transport in ("nccl", "ipc"):
            raise ConfigError(
                f"--transport {self.transport} is for GPUs, and this would run on the CPU; use "
                "--transport auto"
            )
        if kind == "cpu" and self.precision == "float16":
            raise ConfigError(
                "--precision float16 is for GPUs, and this would run on the CPU; use bfloat16 or "
                "float32"
            )

    @property
    def compile_mode(self) -> CompileMode:
        """How stages are compiled: without CUDA graphs where links read what they write."""
        if self.compile in WITH_GRAPHS and self.num_chunks > 1:
            return "max-autotune-no-cudagraphs"
        return self.compile

    @property
    def has_graphs(self) -> bool:
        """Whether stages replay CUDA graphs, on a GPU."""
        return self.compile_mode in WITH_GRAPHS

    def to_argv(self) -> list[str]:
        """The command line of `bundlerun.workers.train` that stands for this configuration."""
        return [*argv_of(self), *([self.data] if self.data else [])]

    def to_plain(self) -> dict[str, object]:
        """The configuration as plain values, by field; what files have of it."""
        shape = str(self.shape) if self.shape.others else self.shape.widths
        return {**asdict(self), "shape": shape}

    def to_json(self) -> str:
        """The configuration as a JSON document."""
        import json  # `--help` writes none

        return json.dumps(self.to_plain(), indent=2)
