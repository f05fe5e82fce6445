"""Which stage has which chunk of the model, said in this one place.

3 stages, 2 chunks per stage     stage 0   stage 1   stage 2
the stage's own chunk 0           0         1         2        chunks of the model,
the stage's own chunk 1           3         4         5        in its order
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of a model: chunk c is on stage c modulo the number of stages.

        >>> chunks = Chunks(num_stages=3, per_stage=2)
        >>> chunks.num_chunks, list(chunks.on_stage(1))
        (6, [1, 4])
        >>> chunks.stage_of(4), chunks.own_of(4), chunks.number(1, 1)
        (1, 1, 4)

    Args:
        num_stages: of a bundle.
        per_stage: chunks of each stage.
    """

    num_stages: int
    per_stage: int = 1

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole model."""
        return self.num_stages * self.per_stage

    def stage_of(self, chunk: int) -> int:
        """The stage that a chunk of the model is on."""
        return chunk % self.num_stages

    def own_of(self, chunk: int) -> int:
        """Which of its stage's own chunks a chunk of the model is."""
        return chunk // self.num_stages

    def number(self, stage: int, own: int) -> int:
        """The chunk of the model that is a stage's own chunk `own`."""
        return own * self.num_stages + stage

    def on_stage(self, stage: int) -> range:
        """The chunks of the model that are on one stage, in the order of the model."""
        return range(stage, self.num_chunks, self.num_stages)
