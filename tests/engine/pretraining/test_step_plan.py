"""The division of frames into steps: nothing seen twice, nothing lost, the same from any step on and for any split."""

import numpy as np
import pytest

from vasomim_hf.engine.pretraining.step_plan import StepPlan, StepSampler


def make_plan(**changes):
    values = {"num_frames": 26, "batch_size": 2, "accumulation": 3, "num_processes": 2, "num_epochs": 4, "seed": 0}
    return StepPlan(**{**values, **changes})


def frames_of_step(plan, step):
    return [
        key
        for part in range(plan.accumulation)
        for process in range(plan.num_processes)
        for key in plan.batch(step, part, process)
    ]


def test_an_epoch_shows_each_frame_at_most_once_and_leaves_out_less_than_a_step():
    plan = make_plan()
    assert (plan.frames_per_step, plan.steps_per_epoch, plan.num_steps) == (12, 2, 8)
    left_out = set()
    for epoch in range(4):
        keys = [key for step in range(2 * epoch, 2 * epoch + 2) for key in frames_of_step(plan, step)]
        assert {e for e, _ in keys} == {epoch}
        seen = {index for _, index in keys}
        assert len(keys) == len(seen) == 24
        left_out |= set(range(26)) - seen
    assert len(left_out) > 2


def test_processes_and_accumulated_batches_divide_the_same_frames():
    together = make_plan(batch_size=12, accumulation=1, num_processes=1)
    for changes in ({}, {"accumulation": 6, "num_processes": 1}, {"accumulation": 1, "num_processes": 6}):
        plan = make_plan(**changes)
        assert [frames_of_step(plan, step) for step in range(8)] == [
            frames_of_step(together, step) for step in range(8)
        ]


def test_two_processes_see_what_two_accumulated_batches_of_one_see():
    two, one = make_plan(accumulation=1), make_plan(accumulation=2, num_processes=1)
    assert two.batch(3, 0, 1) == one.batch(3, 1, 0) and two.step_seed(3, 0, 1) == one.step_seed(3, 1, 0)


def test_order_changes_with_epoch_and_seed():
    plan = make_plan(batch_size=26, accumulation=1, num_processes=1)
    orders = [[index for _, index in plan.batch(epoch, 0, 0)] for epoch in range(4)]
    orders.append(
        [index for _, index in make_plan(batch_size=26, accumulation=1, num_processes=1, seed=1).batch(0, 0, 0)]
    )
    assert len({tuple(order) for order in orders}) == 5


@pytest.mark.parametrize(
    "changes", [{}, {"num_processes": 1}, {"accumulation": 1, "num_processes": 3}, {"batch_size": 1}]
)
def test_row_groups_are_divided_without_overlap_too(changes):
    plan = make_plan(row_groups=(5, 5, 5, 5, 5, 1), **changes)
    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        keys = [key for step in steps for key in frames_of_step(plan, step)]
        assert {e for e, _ in keys} == {epoch} and len(keys) == plan.steps_per_epoch * plan.frames_per_step
        assert len({index for _, index in keys}) == len(keys)


def test_each_process_reads_row_groups_of_its_own():
    plan = make_plan(
        num_frames=400, row_groups=(20,) * 20, num_processes=4, accumulation=1, batch_size=10, num_epochs=1
    )
    groups = [{i // 20 for step in range(10) for _, i in plan.batch(step, 0, process)} for process in range(4)]
    assert all(len(own) == 5 for own in groups) and len(set.union(*groups)) == 20


def test_a_sampler_that_begins_later_gives_the_rest():
    plan = make_plan()
    whole = list(StepSampler(plan, process=1))
    rest = StepSampler(plan, process=1, first_step=5)
    assert len(whole) == 24 and len(rest) == 9 and list(rest) == whole[15:]


def test_every_forward_pass_has_a_seed_of_its_own():
    plan = make_plan()
    seeds = [plan.step_seed(step, part, process) for step in range(50) for part in range(3) for process in range(2)]
    assert len(set(seeds)) == 300 and min(seeds) >= 0 and max(seeds) < 2**63
    assert make_plan(seed=1).step_seed(0, 0, 0) != plan.step_seed(0, 0, 0)


def test_the_order_is_not_the_stream_of_a_crop():
    plan = make_plan(batch_size=26, accumulation=1, num_processes=1)
    order = [index for _, index in plan.batch(0, 0, 0)]
    assert all(order != np.random.default_rng([0, 0, index]).permutation(26).tolist() for index in range(26))


def test_fewer_frames_than_a_step_takes_are_refused():
    with pytest.raises(ValueError, match=r"12 frames \(batch_size=2 .* there are only 11. Lower batch_size"):
        make_plan(num_frames=11)
