"""Areas under curves, accuracies and confusion against scikit-learn, with ties, absent classes and weights."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from vasomim_hf.evaluation.calibration import expected_calibration_error
from vasomim_hf.evaluation.classification_metrics import (
    ClassificationScores,
    auprc,
    auprc_statistic,
    auroc,
    auroc_statistic,
)
from vasomim_hf.evaluation.statistics import Resampling


QUICK = Resampling(num_resamples=100)
LABELS = ["left", "right", "other"]


def cases(seed: int = 0, count: int = 120, digits: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.random(count) < 0.3
    scores = rng.normal(0, 1, count) + targets
    return (scores if digits is None else np.round(scores, digits)), targets


def classes(num_labels: int, count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that lean to the right class in half of the cases."""
    rng = np.random.default_rng(2)
    targets = rng.integers(0, num_labels, count)
    chance = rng.dirichlet(np.ones(num_labels), count)
    right = np.eye(num_labels)[targets]
    return np.where(rng.random((count, 1)) < 0.5, 0.6 * chance + 0.4 * right, chance), targets


def scored(probabilities: np.ndarray, targets: np.ndarray, labels: list[str]) -> ClassificationScores:
    scores = ClassificationScores(labels)
    for part in np.array_split(np.arange(len(targets)), 4):
        scores.update(probabilities[part], targets[part], [str(i) for i in part])
    return scores


@pytest.mark.parametrize("digits", [None, 1, 0], ids=["distinct", "some ties", "many ties"])
@pytest.mark.parametrize("seed", range(3))
def test_areas_are_those_of_scikit_learn(seed, digits):
    scores, targets = cases(seed, digits=digits)
    assert auroc(scores, targets) == pytest.approx(sklearn_metrics.roc_auc_score(targets, scores))
    assert auprc(scores, targets) == pytest.approx(sklearn_metrics.average_precision_score(targets, scores))


def test_areas_with_weights_are_those_of_scikit_learn():
    scores, targets = cases(digits=1)
    weights = np.random.default_rng(1).integers(0, 4, (3, 120)).astype(float)
    areas = {auroc_statistic: sklearn_metrics.roc_auc_score, auprc_statistic: sklearn_metrics.average_precision_score}
    for statistic, outside in areas.items():
        expected = [outside(targets, scores, sample_weight=row) for row in weights]
        np.testing.assert_allclose(statistic(scores, targets).compute(weights), expected)


def test_areas_worked_by_hand():
    scores, targets = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert auroc(scores, targets) == 3 / 4
    assert auprc(scores, targets) == pytest.approx((1 + 2 / 3) / 2)
    assert auroc(np.zeros(4), targets) == auprc(np.zeros(4), targets) == 0.5


@pytest.mark.parametrize("targets", [np.ones(3, dtype=bool), np.zeros(3, dtype=bool)])
def test_areas_need_both_kinds_of_cases(targets):
    assert np.isnan(auroc(np.arange(3.0), targets)) and np.isnan(auprc(np.arange(3.0), targets))


def test_scores_that_are_no_scores_are_refused():
    with pytest.raises(ValueError, match="has NaN"):
        auroc(np.array([0.1, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="same shape"):
        auprc(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="same shape"):
        auroc(np.ones(0), np.ones(0))


def test_two_classes_are_scored_as_scikit_learn_does():
    probabilities, targets = classes(2)
    scores = scored(probabilities, targets, LABELS[:2])
    summary = scores.summary(QUICK)
    predicted = probabilities.argmax(axis=1)
    expected = {
        "auroc": sklearn_metrics.roc_auc_score(targets, probabilities[:, 1]),
        "auprc": sklearn_metrics.average_precision_score(targets, probabilities[:, 1]),
        "accuracy": sklearn_metrics.accuracy_score(targets, predicted),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(targets, predicted),
        "recall/left": sklearn_metrics.recall_score(targets, predicted, pos_label=0),
        "recall/right": sklearn_metrics.recall_score(targets, predicted),
        "ece": expected_calibration_error(probabilities.max(axis=1), predicted == targets),
    }
    assert {name: entry.value for name, entry in summary.items()} == pytest.approx(expected)
    for name, entry in summary.items():
        assert entry.low < entry.high, name
    np.testing.assert_array_equal(scores.confusion, sklearn_metrics.confusion_matrix(targets, predicted))
    assert scores.reliability().ece() == pytest.approx(expected["ece"])


def test_several_classes_are_each_held_against_all_others():
    probabilities, targets = classes(3)
    summary = scored(probabilities, targets, LABELS).summary(QUICK)
    assert summary["auroc"].value == pytest.approx(
        sklearn_metrics.roc_auc_score(targets, probabilities, multi_class="ovr", average="macro")
    )
    single = [sklearn_metrics.average_precision_score(targets == i, probabilities[:, i]) for i in range(3)]
    assert [summary[f"auprc/{name}"].value for name in LABELS] == pytest.approx(single)
    assert summary["auprc"].value == pytest.approx(np.mean(single))
    assert summary["balanced_accuracy"].value == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(targets, probabilities.argmax(axis=1))
    )


def test_a_class_that_is_absent_is_left_out_of_means():
    probabilities, targets = classes(3)
    kept = targets != 2
    summary = scored(probabilities[kept], targets[kept], LABELS).summary(QUICK)
    assert np.isnan(summary["auroc/other"].value) and np.isnan(summary["recall/other"].value)
    assert summary["recall/other"].n == 0
    two = np.mean([summary["auroc/left"].value, summary["auroc/right"].value])
    assert summary["auroc"].value == pytest.approx(two)
    recalls = [summary["recall/left"].value, summary["recall/right"].value]
    assert summary["balanced_accuracy"].value == pytest.approx(np.mean(recalls))


def test_of_equally_probable_classes_the_first_is_predicted():
    scores = scored(np.full((4, 2), 0.5), np.array([0, 0, 1, 1]), LABELS[:2])
    assert scores.confusion.tolist() == [[2, 0], [2, 0]]


@pytest.mark.parametrize(
    ("probabilities", "targets", "message"),
    [
        (np.full((2, 2), 0.5), np.array([0, 1]), r"shape \(batch_size, 3\)"),
        (np.full((2, 3), 0.3), np.array([0, 3]), r"class ids from 0 to 2, got \[0, 3\]"),
        (np.full((2, 3), 0.3), np.array([0.0, 1.0]), "class ids"),
        (np.full((2, 3), 3.0), np.array([0, 1]), "Apply the softmax"),
        (np.full((2, 3), np.nan), np.array([0, 1]), "Apply the softmax"),
    ],
)
def test_batches_that_do_not_fit_are_refused(probabilities, targets, message):
    scores = ClassificationScores(LABELS)
    with pytest.raises(ValueError, match=message):
        scores.update(probabilities, targets, ["a", "b"])
    assert scores.rows == [] and scores.confusion.sum() == 0


def test_images_are_counted_once_and_labels_have_names():
    scores = ClassificationScores(LABELS)
    with pytest.raises(ValueError, match="images: a"):
        scores.update(np.full((2, 3), 0.3), np.array([0, 1]), ["a", "a"])
    with pytest.raises(ValueError, match="two distinct names"):
        ClassificationScores(["only"])
