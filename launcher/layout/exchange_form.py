"""What travels between nodes in place of the sum of a node's float32 gradients.

float32        each number
bfloat16       each number, rounded
int8, int4     blocks of whole numbers, each with a step of its own
topk:K         of each block of 256 numbers the K largest, rounded to bfloat16
powersgd:R     of each matrix two of rank R, whose product is near to it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from bundlerun.launcher.choices import BLOCK_NUMBERS, EXCHANGE_SHARE, ExchangeDtype
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import AUTO

ALL: Final = "all"
"""Each number travels, in whatever form."""
TOP_BLOCK = 256
"""Numbers of which the largest travel; the place of one in its block takes a byte."""
_TOP_BYTES = 3
"""Of a number that travels, and its place."""
_RANK_SHARE = 0.004
"""Bytes of matrices of rank one over those of a model: ResNet-18 and -50 0.003, DenseNet-121 0.014,
ViT-B/16 0.002; what no smaller matrices stand for comes on top."""


@dataclass(frozen=True, slots=True)
class ExchangeForm:
    """One of them.

    Args:
        dtype: of the numbers that travel, of all or of factors.
        top: numbers of each block that travel; 0: all.
        rank: of the matrices that travel; 0: the gradients themselves do.
    """

    dtype: ExchangeDtype = "float32"
    top: int = 0
    rank: int = 0

    @classmethod
    def parse(cls, exchange: str, dtype: ExchangeDtype) -> ExchangeForm:
        """What `--exchange` and `--exchange-dtype` say together; before auto is decided, all.

        Raises:
            ConfigError: it is none; or they contradict each other.
        """
        if exchange == ALL or (exchange == AUTO and dtype == "float32"):
            return cls(dtype)
        kind, _, number = exchange.partition(":")
        if exchange == AUTO:
            raise ConfigError(
                f"--exchange auto chooses a form, and --exchange-dtype {dtype} is one; leave one "
                "of them out"
            )
        most: int | None = {"topk": TOP_BLOCK // 4, "powersgd": 64}.get(kind)
        if most is None or not number.isdecimal() or not 1 <= int(number) <= most:
            raise ConfigError(
                f"--exchange {exchange!r} is no way to send less; give all, auto, topk:K with the "
                f"number K of {TOP_BLOCK} that travel (1 to {TOP_BLOCK // 4}), or powersgd:RANK (1 "
                "to 64)"
            )
        if dtype != "float32":
            raise ConfigError(
                f"--exchange {exchange} and --exchange-dtype {dtype} are two ways to send less; "
                "leave one of them out"
            )
        return cls(top=int(number)) if kind == "topk" else cls(rank=int(number))

    @property
    def kind(self) -> Literal["all", "topk", "powersgd"]:
        """As `--exchange` begins."""
        if self.top:
            return "topk"
        return "powersgd" if self.rank else "all"

    @property
    def is_exact(self) -> bool:
        """Whether the sums arrive as they are."""
        return self == EXACT

    @property
    def can_add(self) -> bool:
        """Whether an all-reduce can add up what travels."""
        return not self.top and self.dtype not in BLOCK_NUMBERS

    @property
    def share(self) -> float:
        """Bytes between nodes over those of float32; of matrices a rough one."""
        if self.top:
            return self.top * _TOP_BYTES / (4 * TOP_BLOCK)
        return min(1.0, _RANK_SHARE * self.rank) if self.rank else EXCHANGE_SHARE[self.dtype]

    def __str__(self) -> str:
        """As typed."""
        number = self.top or self.rank
        return f"{self.kind}:{number}" if number else self.dtype


EXACT: Final = ExchangeForm()
SHORTER: Final = (ExchangeForm("bfloat16"), ExchangeForm("int8"), ExchangeForm("int4"))
"""Those that a choice may take where it may lose something: their losses are those of rounding."""
