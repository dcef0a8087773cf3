"""Calibration against MONAI and scikit-learn, and uncertainty against scipy's entropy."""

import numpy as np
import pytest
import torch
from monai.metrics.calibration import calibration_binning
from scipy.stats import entropy
from sklearn.calibration import calibration_curve

from vasomim_hf.evaluation.calibration import (
    ReliabilityTable,
    ece_statistic,
    expected_calibration_error,
    predictive_entropy,
    top_label,
)


def cases(count: int = 5000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = rng.beta(4, 2, count)
    return confidence, rng.random(count) < confidence**1.5


def test_bins_are_those_of_scikit_learn():
    confidence, correct = cases()
    table = ReliabilityTable(num_bins=10)
    table.update(confidence, correct)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10)
    filled = [entry for entry in table.bins() if entry.num_cases]
    np.testing.assert_allclose([entry.accuracy for entry in filled], accuracy)
    np.testing.assert_allclose([entry.confidence for entry in filled], mean)


def test_expected_calibration_error_is_that_of_the_bins_of_monai():
    confidence, correct = cases()
    mean, accuracy, counts = (
        part[0, 0].numpy()
        for part in calibration_binning(
            torch.from_numpy(confidence)[None, None], torch.from_numpy(correct)[None, None], num_bins=15
        )
    )
    gaps = np.where(counts > 0, np.abs(mean - accuracy), 0)
    assert expected_calibration_error(confidence, correct) == pytest.approx((gaps * counts).sum() / 5000, abs=1e-6)
    table = ReliabilityTable()
    table.update(confidence, correct)
    assert table.mce() == pytest.approx(gaps.max(), abs=1e-6)


def test_bins_are_closed_on_the_right_and_the_first_has_zero():
    table = ReliabilityTable(num_bins=4)
    table.update(np.array([0.0, 0.25, 0.2500001, 0.5, 1.0]), np.ones(5, dtype=bool))
    assert [entry.num_cases for entry in table.bins()] == [2, 2, 0, 1]
    assert [(entry.low, entry.high) for entry in table.bins()][:2] == [(0, 0.25), (0.25, 0.5)]
    assert np.isnan(table.bins()[2].accuracy)


def test_error_worked_out_by_hand():
    # four cases of 0.9 of which three are right: 0.15 off; one of 0.6 that is wrong: 0.6 off
    confidence, correct = np.array([0.9] * 4 + [0.6]), np.array([True, True, True, False, False])
    assert expected_calibration_error(confidence, correct) == pytest.approx((4 * 0.15 + 0.6) / 5)


def test_sure_and_right_is_perfect_and_nothing_is_undefined():
    assert expected_calibration_error(np.ones(9), np.ones(9, dtype=bool)) == 0
    assert np.isnan(expected_calibration_error(np.zeros(0), np.zeros(0, dtype=bool)))
    assert np.isnan(ReliabilityTable().mce())


def test_batches_add_up():
    confidence, correct = cases()
    table = ReliabilityTable()
    for part in np.array_split(np.arange(5000), 7):
        table.update(confidence[part].astype(np.float64), correct[part])
    assert table.ece() == pytest.approx(expected_calibration_error(confidence, correct))
    sums = [np.array([numbers]) for numbers in table.lists().values()]
    assert ece_statistic(*sums).value(1) == pytest.approx(table.ece())


def test_what_is_no_probability_is_refused():
    for wrong in (1.2, -0.1, np.nan):
        with pytest.raises(ValueError, match="Apply the softmax"):
            expected_calibration_error(np.array([wrong]), np.array([True]))
    with pytest.raises(ValueError, match="3 cases but `correct` has 2"):
        expected_calibration_error(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="`num_bins` must be positive"):
        ReliabilityTable(0)


def test_top_label_takes_the_surest_class_and_leaves_ignored_places_out():
    probabilities = np.array([[[0.7, 0.2, 0.1]], [[0.3, 0.8, 0.9]]])
    confidence, correct = top_label(probabilities, np.array([[0, 0, 255]]), ignore_index=255)
    assert confidence.tolist() == [0.7, 0.8] and correct.tolist() == [True, False]
    with pytest.raises(ValueError, match="match `targets`"):
        top_label(probabilities, np.zeros((3, 1)))


def test_uncertainty_is_the_entropy_of_the_mean_over_that_of_all_alike():
    rng = np.random.default_rng(0)
    samples = rng.dirichlet([0.5, 1, 2], (4, 6, 7)).transpose(0, 3, 1, 2)
    expected = entropy(samples.mean(axis=0), axis=0) / np.log(3)
    np.testing.assert_allclose(predictive_entropy(samples), expected)
    assert predictive_entropy(samples).shape == (6, 7)


def test_uncertainty_is_0_where_all_agree_for_sure_and_1_where_nothing_is_known():
    sure = np.zeros((3, 2, 2, 2))
    sure[:, 1] = 1
    assert (predictive_entropy(sure) == 0).all()
    np.testing.assert_allclose(predictive_entropy(np.full((1, 4, 3), 0.25)), 1)
    # each is sure, but not of the same
    torn = np.stack([sure[0], sure[0][::-1]])
    np.testing.assert_allclose(predictive_entropy(torn), 1)


def test_uncertainty_of_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="at least two labels"):
        predictive_entropy(np.full((3, 1, 4), 0.5))
    for wrong in (np.full((3, 2, 4), 0.7), np.full((3, 2, 4), np.nan)):
        with pytest.raises(ValueError, match="sum to 1"):
            predictive_entropy(wrong)
