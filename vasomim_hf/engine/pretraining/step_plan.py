"""Frames of each optimiser step as a function of the step, which makes training resumable.

The order of an epoch, the crops (see `FrameCacheDataset`) and the masks have separate random streams, seeded by the
run and the position in training. No random state is carried from step to step, so nothing has to be restored, and
neither the number of loader processes nor an interruption within an epoch changes the frames that follow.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from ...data.parquet.row_order import StreamOptions, stream_order


# last word of each stream's seed; crops use (seed, epoch, index), which is equivalent to a last word of 0
ORDER_STREAM, STEP_STREAM = 1, 2


@dataclass(frozen=True)
class StepPlan:
    """Assignment of frames to epochs, steps, batches and processes.

    A step takes the next `frames_per_step` frames of the epoch: the first batch of process 0, then the first batch of
    process 1, and so on. Frames that do not fill a step are dropped in that epoch (as by the authors); the next epoch
    has another order.

    Args:
        num_frames (`int`): Number of frames in the data.
        batch_size (`int`): Frames per forward pass of a process.
        accumulation (`int`): Batches per process and optimiser step.
        num_processes (`int`): Number of training processes.
        num_epochs (`int`): Length of training.
        seed (`int`): Seed of the order.
        row_groups (`tuple[int, ...]`, *optional*): Rows per row group, if frames are read from Parquet during training. Each
            process then reads separate row groups, in the order of [`stream_order`].

    Raises:
        ValueError: If there are fewer frames than one step needs.

    Example:
        >>> plan = StepPlan(num_frames=10, batch_size=2, accumulation=1, num_processes=2, num_epochs=3, seed=0)
        >>> plan.steps_per_epoch, plan.num_steps
        (2, 6)
    """

    num_frames: int
    batch_size: int
    accumulation: int
    num_processes: int
    num_epochs: int
    seed: int
    row_groups: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.num_frames < self.frames_per_step:
            raise ValueError(
                f"One step needs {self.frames_per_step} frames (batch_size={self.batch_size} × "
                f"gradient_accumulation_steps={self.accumulation} × {self.num_processes} processes), but there are "
                f"only {self.num_frames}. Lower batch_size."
            )

    @property
    def frames_per_step(self) -> int:
        """Frames per optimiser step, over all processes."""
        return self.batch_size * self.accumulation * self.num_processes

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch."""
        return self.num_frames // self.frames_per_step

    @property
    def num_steps(self) -> int:
        """Total number of optimiser steps."""
        return self.steps_per_epoch * self.num_epochs

    def batch(self, step: int, part: int, process: int) -> list[tuple[int, int]]:
        """Epoch and index of each frame of a batch: the `part`-th of a step, for one process."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        if self.row_groups is not None:
            place = (step_in_epoch * self.accumulation + part) * self.batch_size
            order = stream_order(self.row_groups, self._stream_options(process), epoch)
        else:
            place = step_in_epoch * self.frames_per_step + (part * self.num_processes + process) * self.batch_size
            order = _order(self.num_frames, self.seed, epoch)
        return [(epoch, int(index)) for index in order[place : place + self.batch_size]]

    def _stream_options(self, process: int) -> StreamOptions:
        return StreamOptions(
            self.seed, rank=process, world_size=self.num_processes, batch_size=self.batch_size, drop_last=True
        )

    def step_seed(self, step: int, part: int, process: int) -> int:
        """Seed for all randomness of one forward pass."""
        words = [self.seed, step, part * self.num_processes + process, STEP_STREAM]
        return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


@lru_cache(maxsize=2)
def _order(num_frames: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 0, ORDER_STREAM]).permutation(num_frames)


class StepSampler(torch.utils.data.Sampler):
    """Batch sampler of one process from a given step to the end of training.

    Args:
        plan (`StepPlan`): Assignment of frames.
        process (`int`): Index of this process.
        first_step (`int`, defaults to 0): Step to start from.
    """

    def __init__(self, plan: StepPlan, process: int, first_step: int = 0):
        self.plan = plan
        self.process = process
        self.first_step = first_step

    def __len__(self) -> int:
        return (self.plan.num_steps - self.first_step) * self.plan.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.plan.num_steps):
            for part in range(self.plan.accumulation):
                yield self.plan.batch(step, part, self.process)
