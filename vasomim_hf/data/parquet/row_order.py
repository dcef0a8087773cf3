"""Random order of the rows of Parquet files that still reads whole row groups.

The order is a pure function of its arguments, so reading can resume anywhere without reading earlier rows.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


# last word of the seeds, next to those of the frame cache (see `engine.step_plan`)
GROUP_STREAM, ROW_STREAM = 4, 5
# lanes per rank; each batch comes from one lane, so up to this many loader processes share no row group
NUM_LANES = 4
# maximum delay of a row, in row groups
BUFFER_ROW_GROUPS = 4


@dataclass(frozen=True)
class StreamOptions:
    """Options of the reading order of a process.

    Args:
        seed (`int`, defaults to 0): Seed of the order and of the crops.
        rank (`int`, defaults to 0): Rank of this training process.
        world_size (`int`, defaults to 1): Number of training processes.
        batch_size (`int`, defaults to 1): Rows per batch of a loader process: the `DataLoader`'s `batch_size`. With it, the
            sequence does not depend on the number of loader processes.
        num_lanes (`int`, defaults to 4): Positions in the data that a rank reads alternately. Memory use is about
            `num_lanes * buffer_row_groups` row groups per rank, for any number of loader processes: 0.7 GB for groups of
            100 frames of 512×512. If the number of loader processes divides `num_lanes`, each group is read once.
        buffer_row_groups (`int`, defaults to 4): Row groups over which the rows of a lane are shuffled.
        drop_last (`bool`, defaults to `False`): Whether to drop rows that cannot be distributed evenly over ranks in whole
            batches. Otherwise each row occurs exactly once, the first ranks may have one row more than the others, and
            the last batch may be smaller.

    Raises:
        ValueError: If a number is out of range.
    """

    seed: int = 0
    rank: int = 0
    world_size: int = 1
    batch_size: int = 1
    num_lanes: int = NUM_LANES
    buffer_row_groups: int = BUFFER_ROW_GROUPS
    drop_last: bool = False

    def __post_init__(self):
        for name in ("world_size", "batch_size", "num_lanes", "buffer_row_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"`rank` must be at least 0 and below world_size={self.world_size}, got {self.rank}. Ranks count "
                "from 0."
            )


@lru_cache(maxsize=4)
def stream_order(row_groups: tuple[int, ...], options: StreamOptions, epoch: int) -> np.ndarray:
    """Order in which a rank reads the rows in an epoch.

    Row groups are shuffled and their rows split into equal ranges: one per rank, and within a rank one per lane. A lane
    shuffles its rows by delaying each one by a random part of `buffer_row_groups` groups. Batches are taken from the
    lanes in turn; rows that do not fill a batch in each lane come last.

    Args:
        row_groups (`tuple[int, ...]`): Number of rows of each group, in the order of the data.
        options (`StreamOptions`): Rank, batch size and shuffling.
        epoch (`int`): Epoch; each has its own order.

    Returns:
        `np.ndarray` of shape `(num_rows,)`: `int64`, read-only row indices. Those of all ranks together are all rows,
        each once; with `drop_last`, all but fewer than `world_size * batch_size`.

    Example:
        >>> ranks = [stream_order((3, 3, 3), StreamOptions(rank=rank, world_size=2), epoch=0) for rank in range(2)]
        >>> sorted(np.concatenate(ranks).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """
    rows, places = _rows_in_group_order(row_groups, options.seed, epoch)
    shuffling, delays = np.random.default_rng([options.seed, epoch, 0, ROW_STREAM]).random((2, len(rows)))
    # shuffled before splitting: otherwise the rows of a single group would meet the same rows in every epoch
    rows = rows[np.lexsort((shuffling, places))]
    keys = places + options.buffer_row_groups * delays
    start, stop = _stretch(len(rows), options.rank, options.world_size)
    if options.drop_last:
        per_rank = len(rows) // options.world_size
        stop = start + per_rank - per_rank % options.batch_size
    lanes = []
    for lane in range(options.num_lanes):
        first, last = (start + bound for bound in _stretch(stop - start, lane, options.num_lanes))
        lanes.append(rows[first:last][np.argsort(keys[first:last], kind="stable")])
    order = _in_turn(lanes, options.batch_size)
    order.flags.writeable = False
    return order


def _rows_in_group_order(row_groups: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Row indices with groups in random order, and the position of each row's group in that order."""
    sizes = np.asarray(row_groups, dtype=np.int64)
    drawn = np.random.default_rng([seed, epoch, 0, GROUP_STREAM]).permutation(len(sizes))
    firsts = np.cumsum(sizes) - sizes
    places = np.repeat(np.arange(len(sizes)), sizes[drawn])
    within = np.arange(len(places)) - np.repeat(np.cumsum(sizes[drawn]) - sizes[drawn], sizes[drawn])
    return firsts[drawn][places] + within, places


def _stretch(total: int, number: int, count: int) -> tuple[int, int]:
    """Bounds of one of `count` ranges; the first ranges have one more if `total` is not divisible."""
    size, rest = divmod(total, count)
    start = number * size + min(number, rest)
    return start, start + size + (number < rest)


def _in_turn(lanes: list[np.ndarray], batch_size: int) -> np.ndarray:
    num_batches = min(len(lane) for lane in lanes) // batch_size
    whole = num_batches * batch_size
    turns = np.stack([lane[:whole].reshape(num_batches, batch_size) for lane in lanes], axis=1)
    return np.concatenate([turns.reshape(-1), *(lane[whole:] for lane in lanes)])
