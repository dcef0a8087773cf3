"""Schedules against reference values, parameter groups, the clock of the guidance."""

import numpy as np
import pytest
import torch
from torch import nn

from vasomim_hf.optimization import (
    absolute_learning_rate,
    cosine_learning_rate,
    learning_rate_scheduler,
    parameter_groups,
    polynomial_learning_rate,
    training_progress,
)


RECIPE = {"steps_per_epoch": 10, "num_epochs": 800, "warmup_epochs": 40}


def test_cosine_schedule_equals_the_original_to_the_last_digits(shared_reference):
    expected = np.load(shared_reference / "lr_schedule.npz")["lr"]
    peak = absolute_learning_rate(1.5e-4, 2048)
    rates = [cosine_learning_rate(step, peak=peak, **RECIPE) for step in range(expected.size)]
    np.testing.assert_allclose(np.reshape(rates, expected.shape), expected, rtol=0, atol=1e-12)


def test_cosine_schedule_passes_through_its_known_points():
    rate = {s: cosine_learning_rate(s, peak=2.0, minimum=1.0, **RECIPE) for s in (0, 200, 400, 4200, 8000, 9999)}
    assert rate[0] == 0.0 and rate[200] == 1.0 and rate[400] == 2.0
    assert rate[4200] == pytest.approx(1.5)
    assert rate[8000] == rate[9999] == pytest.approx(1.0)


def test_cosine_schedule_without_warmup_starts_at_the_peak_and_all_warmup_ends_there():
    assert cosine_learning_rate(0, steps_per_epoch=3, num_epochs=2, warmup_epochs=0, peak=0.5) == 0.5
    assert cosine_learning_rate(6, steps_per_epoch=3, num_epochs=2, warmup_epochs=2, peak=0.5) == 0.5


def test_a_warmup_longer_than_training_is_refused():
    with pytest.raises(ValueError, match="warmup_epochs=40 of num_epochs=20"):
        cosine_learning_rate(0, steps_per_epoch=1, num_epochs=20, warmup_epochs=40, peak=1.0)


def test_absolute_learning_rate_refuses_an_empty_batch():
    with pytest.raises(ValueError, match="got 0.1 and 0"):
        absolute_learning_rate(0.1, 0)


def test_polynomial_schedule_is_constant_inside_an_epoch_and_ends_at_zero():
    rates = [polynomial_learning_rate(s, steps_per_epoch=2, num_epochs=4, peak=1e-3) for s in range(9)]
    assert rates[0] == rates[1] == 1e-3
    assert rates[2] == rates[3] == pytest.approx(1e-3 * 0.75**0.9)
    assert rates[8] == 0.0


def test_scheduler_sets_the_rate_of_every_step():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.4)
    scheduler = learning_rate_scheduler(
        optimizer, lambda s: cosine_learning_rate(s, steps_per_epoch=1, num_epochs=6, warmup_epochs=2, peak=1.0)
    )
    seen = []
    for _ in range(5):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen[:3] == [0.0, 0.2, 0.4] and seen[4] == pytest.approx(0.2)


def test_a_resumed_scheduler_begins_where_the_first_one_stopped():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    scheduler = learning_rate_scheduler(optimizer, lambda step: step / 10, first_step=5)
    assert scheduler.get_last_lr() == [1.0]
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [1.2]


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.proj = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.table_bias = nn.Parameter(torch.zeros(2, 2))
        self.segmentor = nn.Linear(4, 1).requires_grad_(False)


def test_biases_and_norms_are_not_decayed_but_tokens_are_and_frozen_weights_are_left_out():
    model = Toy()
    plain, decayed = parameter_groups(model, 0.05)
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    ids = {id(p): name for name, p in model.named_parameters()}
    assert {ids[id(p)] for p in plain["params"]} == {"proj.bias", "norm.weight", "norm.bias"}
    assert {ids[id(p)] for p in decayed["params"]} == {"cls_token", "proj.weight", "table_bias"}


def test_an_optimiser_without_anything_to_train_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.05)


def test_progress_equals_the_papers_epoch_share_at_the_start_of_each_epoch():
    assert [training_progress(epoch * 7, 4 * 7) for epoch in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert training_progress(3, 28) > 0 and training_progress(30, 28) == 1.0
