"""Intervals and p-values against scipy.stats, on clusters, and on data of which the truth is known."""

import numpy as np
import pytest
from scipy import stats

from vasomim_hf.evaluation.statistics import (
    Pair,
    Resampling,
    Statistic,
    bootstrap_interval,
    bootstrap_intervals,
    groups_of,
    mean_of,
    paired_test,
    safe_ratio,
    weighted_mean,
    wilcoxon_p,
)


def skewed(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1.0, 0.2, count)


def pair_of(first: np.ndarray, second: np.ndarray, clusters=None) -> Pair:
    both = weighted_mean(np.concatenate([first, second]))
    return Pair(weighted_mean(first), weighted_mean(second), both.compute, len(first), clusters)


@pytest.mark.parametrize("method", ["bca", "percentile"])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_interval_of_a_mean_is_that_of_scipy(method, level):
    values = skewed(40)
    found = bootstrap_interval(weighted_mean(values), 40, None, Resampling(level, 3000, method=method, seed=3))
    # scipy draws the same numbers
    expected = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=3000,
        confidence_level=level,
        method={"bca": "BCa", "percentile": "percentile"}[method],
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.value == pytest.approx(values.mean())


def test_interval_of_a_ratio_is_that_of_scipy():
    part, whole = skewed(30), 1 + skewed(30, seed=1)
    ratio = Statistic(lambda weights: safe_ratio(weights @ part, weights @ whole), n=30)
    found = bootstrap_interval(ratio, 30, None, Resampling(num_resamples=2000, seed=5))
    expected = stats.bootstrap(
        (part, whole),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        n_resamples=2000,
        paired=True,
        method="BCa",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_bca_moves_the_interval_of_skewed_data():
    statistic = weighted_mean(skewed(30))
    plain = bootstrap_interval(statistic, 30, None, Resampling(method="percentile"))
    corrected = bootstrap_interval(statistic, 30)
    assert corrected.low > plain.low and corrected.high > plain.high


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(method):
    hits = 0
    for seed in range(300):
        values = np.random.default_rng(seed).normal(0.7, 0.1, 40)
        found = bootstrap_interval(weighted_mean(values), 40, None, Resampling(0.9, 400, method=method, seed=seed))
        hits += found.low <= 0.7 <= found.high
    assert 0.84 <= hits / 300 <= 0.95


def test_the_same_seed_gives_the_same_interval_and_many_small_blocks_too(monkeypatch):
    statistic = weighted_mean(skewed(25))
    first = bootstrap_interval(statistic, 25, None, Resampling(seed=1))
    assert first == bootstrap_interval(statistic, 25, None, Resampling(seed=1))
    assert first != bootstrap_interval(statistic, 25, None, Resampling(seed=2))
    monkeypatch.setattr("vasomim_hf.evaluation.statistics._BLOCK", 100)
    blocks = bootstrap_interval(statistic, 25, None, Resampling(seed=1))
    assert (blocks.low, blocks.high) == pytest.approx((first.low, first.high), abs=0.01)


def test_several_numbers_share_the_draws():
    one, two = weighted_mean(skewed(20)), weighted_mean(skewed(20, seed=1))
    both = bootstrap_intervals([one, two], 20)
    assert both == [bootstrap_interval(one, 20), bootstrap_interval(two, 20)]


def test_patients_are_drawn_with_all_of_their_images():
    means = skewed(12)
    patients = np.repeat(np.arange(12), 5)
    copies = means[patients]
    by_patient = bootstrap_interval(weighted_mean(copies), 60, [f"p{i}" for i in patients], Resampling(seed=2))
    of_means = bootstrap_interval(weighted_mean(means), 12, None, Resampling(seed=2))
    by_image = bootstrap_interval(weighted_mean(copies), 60, None, Resampling(seed=2))
    assert (by_patient.low, by_patient.high) == pytest.approx((of_means.low, of_means.high))
    assert by_image.high - by_image.low < 0.6 * (by_patient.high - by_patient.low)


def test_images_without_a_patient_are_groups_of_their_own():
    assert groups_of(["a", None, "b", None, "a"], 5).tolist() == [0, 1, 2, 3, 0]
    assert groups_of(None, 3).tolist() == [0, 1, 2]
    # a patient may be called like the number of an image
    assert groups_of([1, None], 2).tolist() == [0, 1]
    with pytest.raises(ValueError, match="3 items, got 2"):
        groups_of(["a", "b"], 3)


def test_images_without_a_value_are_left_out_and_counted():
    values = np.array([0.2, np.nan, 0.6, np.nan])
    statistic = weighted_mean(values)
    assert (statistic.value(4), statistic.n, statistic.undefined) == (pytest.approx(0.4), 2, 2)
    # resamples without any value are left out
    found = bootstrap_interval(statistic, 4, None, Resampling(method="percentile"))
    assert (found.low, found.high) == (0.2, 0.6)


def test_no_interval_is_given_where_none_can_be():
    for values, clusters in (([0.5], None), ([0.5, 0.7], ["a", "a"])):
        found = bootstrap_interval(weighted_mean(np.array(values)), len(values), clusters)
        assert found.value == pytest.approx(np.mean(values)) and np.isnan([found.low, found.high]).all()
    undefined = bootstrap_interval(weighted_mean(np.full(5, np.nan)), 5)
    assert np.isnan([undefined.value, undefined.low, undefined.high]).all()
    assert np.isnan(bootstrap_interval(weighted_mean(np.array([])), 0).value)


def test_equal_values_give_an_interval_without_width():
    found = bootstrap_interval(weighted_mean(np.full(9, 0.7)), 9)
    assert (found.value, found.low, found.high) == pytest.approx((0.7, 0.7, 0.7))


@pytest.mark.parametrize("count", [8, 40])
def test_permutation_test_of_means_is_that_of_scipy(count):
    rng = np.random.default_rng(4)
    first, second = rng.normal(0.72, 0.1, count), rng.normal(0.68, 0.1, count)
    found = paired_test(pair_of(first, second), Resampling(num_permutations=20_000))
    expected = stats.permutation_test(
        (first, second),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    # all exchanges of 8 images are taken, of 40 a sample
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-12 if count == 8 else 0.01)
    assert found.difference.value == pytest.approx(expected.statistic)
    assert (found.first, found.second) == pytest.approx((first.mean(), second.mean()))


def test_permutation_p_worked_out_by_hand():
    # 4 differences of the same sign: 2 of 16 exchanges are as far from 0
    found = paired_test(pair_of(np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.5, 0.5, 0.5, 0.5])))
    assert found.p_value == 2 / 16
    assert found.difference.value == pytest.approx(0.25)


def test_random_exchanges_never_give_a_p_of_zero():
    first = np.linspace(0.8, 0.9, 50)
    assert paired_test(pair_of(first, first - 0.1), Resampling(num_permutations=999)).p_value == 1 / 1000


def test_equal_models_have_a_p_of_one_and_no_difference():
    values = skewed(30)
    found = paired_test(pair_of(values, values.copy()))
    assert found.p_value == 1
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)


def test_patients_are_exchanged_as_a_whole():
    first, second = np.array([0.9, 0.8, 0.85, 0.7]), np.array([0.5, 0.5, 0.5, 0.5])
    # 4 images of 2 patients: 2 of 4 exchanges
    assert paired_test(pair_of(first, second, ["a", "a", "b", "b"])).p_value == 2 / 4
    # each patient is better by 0.1, of the images one is worse: exchanged in other pairs, all would be as extreme
    first = second + np.array([0.3, -0.2, 0.1, 0.0])
    assert paired_test(pair_of(first, second, ["a", "a", "b", "b"])).p_value == 2 / 4
    assert paired_test(pair_of(first, second, ["a", "b", "a", "b"])).p_value == 1


def test_p_values_of_alike_models_are_spread_evenly():
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        level = rng.normal(0.7, 0.1, 20)
        pair = pair_of(level + rng.normal(0, 0.02, 20), level + rng.normal(0, 0.02, 20))
        found.append(paired_test(pair, Resampling(num_resamples=10, num_permutations=400, seed=seed)).p_value)
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_pairing_finds_what_unpaired_intervals_hide():
    rng = np.random.default_rng(0)
    level = rng.normal(0.6, 0.2, 60)
    first, second = level + 0.01 + rng.normal(0, 0.01, 60), level
    found = paired_test(pair_of(first, second))
    assert found.difference.low > 0 and found.p_value < 0.001
    alone = [bootstrap_interval(weighted_mean(values), 60) for values in (first, second)]
    assert alone[0].low < alone[1].high


def test_wilcoxon_is_that_of_scipy_and_leaves_unknown_images_out():
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.7, 0.1, 30), rng.normal(0.67, 0.1, 30)
    assert wilcoxon_p(first, second) == stats.wilcoxon(first, second).pvalue
    first[3] = np.nan
    kept = np.arange(30) != 3
    assert wilcoxon_p(first, second) == stats.wilcoxon(first[kept], second[kept]).pvalue
    assert wilcoxon_p(first, first) == 1
    assert np.isnan(wilcoxon_p(np.full(3, np.nan), second[:3]))


def test_wilcoxon_ranks_the_mean_difference_of_each_patient():
    rng = np.random.default_rng(1)
    first, second = rng.random(30), rng.random(30)
    means = (first - second).reshape(10, 3).mean(axis=1)
    found = wilcoxon_p(first, second, [i // 3 for i in range(30)])
    assert found == pytest.approx(stats.wilcoxon(means).pvalue)


def test_mean_of_seeds_averages_the_numbers():
    seeds = [skewed(15, seed) for seed in range(3)]
    joint = mean_of([weighted_mean(values) for values in seeds])
    assert joint.value(15) == pytest.approx(np.mean(seeds))
    found = bootstrap_interval(joint, 15, None, Resampling(seed=8))
    expected = bootstrap_interval(weighted_mean(np.mean(seeds, axis=0)), 15, None, Resampling(seed=8))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 95}, "between 0 and 1, got 95"),
        ({"method": "normal"}, "'bca' or 'percentile', got 'normal'"),
        ({"num_resamples": 0}, "must be positive, got 0"),
    ],
)
def test_odd_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Resampling(**options)
