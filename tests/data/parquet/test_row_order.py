"""The order of a stream: each row once, shared out evenly, mixed, and reading each row group once."""

import itertools
from collections import OrderedDict

import numpy as np
import pytest

from vasomim_hf.data.parquet.row_order import StreamOptions, stream_order


GROUPS = (100, 100, 37, 100, 100, 1, 100, 64)
NUM_ROWS = sum(GROUPS)


def orders(world_size, epoch=0, groups=GROUPS, **options):
    return [
        stream_order(groups, StreamOptions(rank=rank, world_size=world_size, **options), epoch)
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size, batch_size", list(itertools.product((1, 2, 3, 7, 16), (1, 8, 50, 1000))))
def test_all_ranks_together_read_each_row_once_and_share_evenly(world_size, batch_size):
    parts = orders(world_size, batch_size=batch_size)
    assert sorted(np.concatenate(parts).tolist()) == list(range(NUM_ROWS))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("world_size, batch_size", list(itertools.product((1, 2, 3, 7), (1, 8, 50))))
def test_with_drop_last_all_ranks_have_the_same_whole_batches_and_little_is_left_out(world_size, batch_size):
    parts = orders(world_size, batch_size=batch_size, drop_last=True)
    lengths = {len(part) for part in parts}
    assert len(lengths) == 1 and lengths.pop() % batch_size == 0
    seen = np.concatenate(parts)
    assert len(np.unique(seen)) == len(seen) > NUM_ROWS - world_size * batch_size


def test_what_is_left_out_changes_from_epoch_to_epoch():
    seen = [set(np.concatenate(orders(3, epoch, batch_size=50, drop_last=True)).tolist()) for epoch in range(12)]
    assert set.union(*seen) == set(range(NUM_ROWS)) and len(seen[0]) < NUM_ROWS


def test_the_order_is_a_function_of_seed_epoch_and_world_size():
    def first(**options):
        epoch = options.pop("epoch", 0)
        return tuple(stream_order(GROUPS, StreamOptions(**options), epoch).tolist())

    assert first(seed=3) == first(seed=3)
    assert len({first(), first(seed=1), first(epoch=1), first(world_size=2)}) == 4


def test_rows_are_mixed_over_row_groups_and_the_groups_over_the_data():
    groups = (100,) * 400
    order = stream_order(groups, StreamOptions(batch_size=64), 0)
    batches = order[: len(order) // 64 * 64].reshape(-1, 64) // 100
    in_batch = [len(np.unique(batch)) for batch in batches]
    # Rows of a batch lie within about five row groups, from all over the data
    assert np.mean(in_batch) > 4 and np.mean(np.ptp(batches, axis=1)) > 200
    # Where in the epoch a row comes says nothing about where in the data it lies
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.15
    neighbours = np.abs(np.diff(order)) == 1
    assert neighbours.mean() < 0.01


def test_rows_of_a_single_row_group_meet_others_in_each_epoch():
    batches = [stream_order((32,), StreamOptions(batch_size=4), epoch).reshape(-1, 4) for epoch in range(60)]
    mates = {int(row) for epoch in batches for batch in epoch if 0 in batch for row in batch}
    assert mates == set(range(32))


def loads(groups, options, num_workers, worker, kept):
    """Row groups that a loader process reads, with so many kept in memory, and the most it holds at once."""
    order = stream_order(groups, options, 0)
    order = order[np.arange(len(order)) // options.batch_size % num_workers == worker]
    left, held, count, most = dict(enumerate(groups)), OrderedDict(), 0, 0
    for group in np.repeat(np.arange(len(groups)), groups)[order].tolist():
        count += group not in held
        held[group] = None
        held.move_to_end(group)
        most = max(most, len(held))
        while len(held) > kept:
            held.popitem(last=False)
        left[group] -= 1
        if left[group] == 0:
            held.pop(group)
    return count, most


@pytest.mark.parametrize("num_workers, kept", [(1, 24), (2, 12), (4, 6)])
def test_row_groups_are_read_once_by_one_loader_process_and_few_are_held(num_workers, kept):
    groups = (100,) * 200
    options = StreamOptions(batch_size=16)
    found = [loads(groups, options, num_workers, worker, kept) for worker in range(num_workers)]
    # A group on the border of two lanes is read twice, and so are some in the last batches
    assert sum(count for count, _ in found) <= 200 + 20
    assert max(most for _, most in found) <= kept


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": 2, "world_size": 2}, "`rank` must be at least 0 and below world_size=2, got 2"),
        ({"rank": -1}, "got -1. Ranks count from 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num_lanes": 0}, "`num_lanes`"),
        ({"buffer_row_groups": 0}, "`buffer_row_groups`"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StreamOptions(**options)
