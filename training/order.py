"""Which sample comes when: a function of seed, step and rank, one order for any number of ranks.

A global batch is cut into micro-steps and each micro-step into ranks:

    global batch   | micro-step 0                | micro-step 1                |
                   | rank 0       | rank 1       | rank 0       | rank 1       |

so batch norm, which sees one micro-step of all ranks, sees the same frames whether two ranks take
two frames each or one rank takes four.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from perception.data.nuscenes_dataset import SampleKey
from perception.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SampleOrder:
    """Order of the samples of one rank."""

    indices: Int64[np.ndarray, " n"]
    """Keyframes of an epoch; one may appear several times."""
    batch_size: int
    """Frames per step, over all ranks."""
    micro_batch: int
    """Frames per forward pass of one rank; 0 takes a rank's whole share at once."""
    seed: int
    rank: int = 0
    world_size: int = 1
    """Number of ranks."""

    def __post_init__(self) -> None:
        """Refuse a batch that cannot be cut.

        Raises:
            InputError: The batch is larger than the epoch, or does not split evenly.
        """
        if len(self.indices) < self.batch_size:
            raise InputError(
                f"An epoch has {len(self.indices)} keyframes, fewer than the batch of "
                f"{self.batch_size}: lower --optim.batch-size or choose a larger split."
            )
        if self.batch_size % self.world_size:
            raise InputError(
                f"The batch of {self.batch_size} frames does not split over {self.world_size} "
                "processes: make --optim.batch-size a multiple of their number."
            )
        share = self.batch_size // self.world_size
        if self.micro_batch and share % self.micro_batch:
            raise InputError(
                f"A process's share of {share} frames does not split into micro-batches of "
                f"{self.micro_batch}: choose --optim.micro-batch so that it does."
            )

    @property
    def frames_per_pass(self) -> int:
        """Frames of one forward pass of one rank."""
        return self.micro_batch or self.batch_size // self.world_size

    @property
    def num_micro(self) -> int:
        """Forward passes per step."""
        return self.batch_size // (self.world_size * self.frames_per_pass)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which no keyframe of `indices` is taken twice; the rest is left out."""
        return len(self.indices) // self.batch_size

    def step(self, step: int) -> list[list[SampleKey]]:
        """Samples of a step (counted from 0), one list per micro-step."""
        return self.cut(self.shuffled(step // self.steps_per_epoch), step)

    def micro_batches(self, first_step: int, num_steps: int) -> "MicroBatches":
        """Samples of the steps `first_step` to `num_steps`, as a `DataLoader`'s batch sampler."""
        return MicroBatches(self, first_step, num_steps)

    def shuffled(self, epoch: int) -> Int64[np.ndarray, " n"]:
        """Keyframes of an epoch in their order."""
        permutation = np.random.default_rng([self.seed, epoch]).permutation(len(self.indices))
        return self.indices[permutation]

    def cut(self, shuffled: Int64[np.ndarray, " n"], step: int) -> list[list[SampleKey]]:
        """This rank's samples of a step, of the epoch's keyframes in their order."""
        first = step % self.steps_per_epoch * self.batch_size
        keys = []
        for micro in range(self.num_micro):
            start = (micro * self.world_size + self.rank) * self.frames_per_pass
            places = range(start, start + self.frames_per_pass)
            keys.append(
                [
                    SampleKey(int(shuffled[first + place]), step * self.batch_size + place)
                    for place in places
                ]
            )
        return keys


@dataclass(frozen=True)
class MicroBatches:
    """All micro-batches of a range of steps, one after the other."""

    order: SampleOrder
    first_step: int
    num_steps: int

    def __len__(self) -> int:
        return max(0, self.num_steps - self.first_step) * self.order.num_micro

    def __iter__(self) -> Iterator[list[SampleKey]]:
        steps = range(self.first_step, self.num_steps)
        for epoch, group in itertools.groupby(steps, lambda s: s // self.order.steps_per_epoch):
            shuffled = self.order.shuffled(epoch)
            for step in group:
                yield from self.order.cut(shuffled, step)
