"""Scores of label maps over a data set: rows, pooled counts, classes, ignored pixels, calibration, refusals."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram
from vasomim_hf.evaluation import mask_metrics as metrics
from vasomim_hf.evaluation.calibration import expected_calibration_error
from vasomim_hf.evaluation.segmentation_scores import SegmentationScores
from vasomim_hf.evaluation.statistics import Resampling


LABELS = ["background", "a", "b", "c", "never"]
QUICK = Resampling(num_resamples=200)
IDS = ["0", "1", "2", "3", "4", "5"]


def vessel_maps() -> tuple[np.ndarray, np.ndarray]:
    targets = np.stack([synthetic_angiogram(seed, size=64).vessel_mask for seed in range(6)])
    predictions = np.roll(targets, 1, axis=2) ^ (np.random.default_rng(0).random(targets.shape) < 0.01)
    return predictions.astype(np.uint8), targets.astype(np.uint8)


def class_maps() -> tuple[np.ndarray, np.ndarray]:
    """Classes a to c; c only in the first two images, `never` in none of the targets."""
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 3, (6, 20, 30))
    targets[:2, :5] = 3
    predictions = np.where(rng.random(targets.shape) < 0.3, rng.integers(0, 5, targets.shape), targets)
    return predictions, targets


def scored(predictions: np.ndarray, targets: np.ndarray, labels: list[str] = LABELS, **options) -> SegmentationScores:
    scores = SegmentationScores(labels)
    for start in range(0, len(targets), 4):
        part = slice(start, start + 4)
        given = {name: value[part] for name, value in options.items()}
        scores.update(predictions[part], targets[part], IDS[part], **given)
    return scores


def test_rows_hold_the_measures_of_each_mask_and_the_summary_their_means():
    predictions, targets = vessel_maps()
    scores = scored(predictions, targets, ["background", "vessel"])
    summary = scores.summary(QUICK)
    for name in metrics.MASK_METRICS:
        expected = getattr(metrics, name)(predictions, targets)
        np.testing.assert_allclose([row.values[name] for row in scores.rows], expected)
        assert summary[name].value == pytest.approx(expected.mean())
        assert summary[name].low <= summary[name].value <= summary[name].high
        assert (summary[name].n, summary[name].undefined) == (6, 0)
    assert [row.image_id for row in scores.rows] == IDS


def test_pooled_numbers_are_those_of_all_pixels_together_as_in_scikit_learn():
    predictions, targets = vessel_maps()
    scores = scored(predictions, targets, ["background", "vessel"])
    summary = scores.summary(QUICK)
    flat = targets.ravel(), predictions.ravel()
    assert summary["pooled_dice"].value == pytest.approx(f1_score(*flat))
    assert summary["pooled_iou"].value == pytest.approx(jaccard_score(*flat))
    assert summary["pooled_sensitivity"].value == pytest.approx(targets[predictions > 0].sum() / targets.sum())
    assert summary["pooled_precision"].value == pytest.approx(targets[predictions > 0].mean())
    assert summary["pooled_dice"].value != pytest.approx(summary["dice"].value, abs=1e-4)
    np.testing.assert_array_equal(scores.confusion, confusion_matrix(*flat))


def test_classes_are_averaged_over_the_images_and_the_classes_in_which_they_occur():
    predictions, targets = class_maps()
    scores = scored(predictions, targets)
    summary = scores.summary(QUICK)
    flat = targets.ravel(), predictions.ravel()
    np.testing.assert_array_equal(scores.confusion, confusion_matrix(*flat, labels=range(5)))
    present = [1, 2, 3]
    pooled = f1_score(*flat, labels=present, average=None)
    means = [
        np.mean(
            [f1_score(t.ravel() == i, p.ravel() == i) for p, t in zip(predictions, targets, strict=True) if i in t]
        )
        for i in present
    ]
    for i, name in enumerate("abc"):
        assert summary[f"dice/{name}"].value == pytest.approx(means[i])
        assert summary[f"pooled_dice/{name}"].value == pytest.approx(pooled[i])
    assert (summary["dice/c"].n, summary["dice/c"].undefined) == (2, 4)
    assert summary["mean_class_dice"].value == pytest.approx(np.mean(means))
    assert summary["pooled_mean_class_dice"].value == pytest.approx(np.mean(pooled))
    jaccard = jaccard_score(*flat, labels=present, average=None)
    assert summary["pooled_mean_class_iou"].value == pytest.approx(np.mean(jaccard))
    assert summary["pooled_iou/b"].value == pytest.approx(jaccard[1])


def test_a_class_that_never_occurs_is_undefined_and_wrongly_found_counts_in_pooled_numbers_only():
    predictions, targets = class_maps()
    summary = scored(predictions, targets).summary(QUICK)
    assert (predictions == 4).any()
    assert np.isnan(summary["dice/never"].value) and summary["dice/never"].n == 0
    assert summary["pooled_dice/never"].value == 0
    # c wrongly found in an image without it: the mean of c stays, its pooled number falls
    worse = predictions.copy()
    worse[5] = 3
    after = scored(worse, targets).summary(QUICK)
    assert after["dice/c"].value == summary["dice/c"].value
    assert after["pooled_dice/c"].value < summary["pooled_dice/c"].value


def test_with_several_classes_the_masks_are_all_of_them_together():
    predictions, targets = class_maps()
    summary = scored(predictions, targets).summary(QUICK)
    assert summary["dice"].value == pytest.approx(metrics.dice(predictions > 0, targets > 0).mean())
    assert summary["cl_dice"].value == pytest.approx(metrics.cl_dice(predictions > 0, targets > 0).mean())


def test_ignored_pixels_count_nowhere():
    predictions, targets = class_maps()
    hidden = targets.copy()
    hidden[:, :, :7] = 255
    changed = predictions.copy()
    changed[:, :, :7] = 4
    first, second = scored(predictions, hidden), scored(changed, hidden)
    assert [row.values for row in first.rows] == [row.values for row in second.rows]
    np.testing.assert_array_equal(first.confusion, confusion_matrix(*cut(targets, predictions), labels=range(5)))
    row = first.rows[0].values
    without = metrics.mask_metrics(predictions[0, :, 7:] > 0, targets[0, :, 7:] > 0)
    for name in ("dice", "iou", "sensitivity", "precision", "specificity"):
        assert row[name] == pytest.approx(without[name])


def cut(*maps: np.ndarray) -> list[np.ndarray]:
    return [one[:, :, 7:].ravel() for one in maps]


def test_an_empty_image_is_left_out_and_counted():
    predictions, targets = vessel_maps()
    targets[0] = predictions[0] = 0
    targets[1] = 0
    predictions[2] = 0
    summary = scored(predictions, targets, ["background", "vessel"]).summary(QUICK)
    dices = metrics.dice(predictions, targets)
    assert np.isnan(dices[0]) and dices[1] == dices[2] == 0
    assert summary["dice"].value == pytest.approx(dices[1:].mean())
    undefined = {
        name: summary[name].undefined for name in ("dice", "hd95", "sensitivity", "precision", "betti0_error")
    }
    assert undefined == {"dice": 1, "hd95": 1, "sensitivity": 2, "precision": 2, "betti0_error": 0}


def test_calibration_is_scored_by_image_and_over_all_pixels():
    predictions, targets = vessel_maps()
    foreground = np.where(predictions, 0.8, 0.1) + np.random.default_rng(0).normal(0, 0.02, targets.shape)
    probabilities = np.stack([1 - foreground, foreground], axis=1).astype(np.float32)
    targets[:, :10] = 255
    scores = scored(predictions, targets, ["background", "vessel"], probabilities=probabilities)
    summary = scores.summary(QUICK)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    known = targets != 255
    expected = expected_calibration_error(confidence[known], right[known])
    assert summary["pooled_ece"].value == pytest.approx(expected) == pytest.approx(scores.reliability.ece())
    single = [expected_calibration_error(confidence[i][known[i]], right[i][known[i]]) for i in range(6)]
    assert summary["ece"].value == pytest.approx(np.mean(single))
    assert "ece" not in scored(predictions, targets, ["background", "vessel"]).summary(QUICK)


def test_intervals_are_by_patient_where_patients_are_known():
    predictions, targets = vessel_maps()
    patients = np.array(["x", "x", "x", "y", "y", "y"], dtype=object)
    labels = ["background", "vessel"]
    by_patient = scored(predictions, targets, labels, patient_ids=patients).summary(QUICK)["dice"]
    by_image = scored(predictions, targets, labels).summary(QUICK)["dice"]
    assert by_patient.value == by_image.value
    assert (by_patient.low, by_patient.high) != (by_image.low, by_image.high)


def test_memory_does_not_hold_the_maps():
    predictions, targets = vessel_maps()
    scores = scored(predictions, targets, ["background", "vessel"])
    kept = [value for row in scores.rows for value in row.values.values()]
    assert all(type(value) is float for value in kept)
    assert not any(isinstance(value, np.ndarray) and value.size > 15 for value in vars(scores).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, t: (p[:, :-1], t), "same shape"),
        (lambda p, t: (p + 0.0, t), "label ids .integers., got float64"),
        (lambda p, t: (p + 2, t), r"prediction of image '0' has label ids \[5, 6\]"),
        (lambda p, t: (p, t + 3), r"target of image '0' has label ids \[5, 6\]"),
        (lambda p, t: (p - 1, t), r"label ids \[-1\]"),
        (lambda p, t: (np.full_like(p, 255), t), r"prediction of image '0' has label ids \[255\]"),
    ],
)
def test_maps_that_do_not_fit_are_refused_before_anything_is_counted(change, message):
    scores = SegmentationScores(LABELS)
    with pytest.raises(ValueError, match=message):
        scores.update(*change(*class_maps()), IDS)
    assert scores.rows == [] and scores.confusion.sum() == 0


def test_ids_that_do_not_fit_are_refused():
    predictions, targets = class_maps()
    scores = scored(predictions, targets)
    with pytest.raises(ValueError, match="1. Pass unique"):
        scores.update(predictions[:1], targets[:1], ["1"])
    with pytest.raises(ValueError, match="images: z"):
        scores.update(predictions[:2], targets[:2], ["z", "z"])
    with pytest.raises(ValueError, match="2 images"):
        scores.update(predictions[:2], targets[:2], ["y"])
    with pytest.raises(ValueError, match="`patient_ids`"):
        scores.update(predictions[:1], targets[:1], ["y"], patient_ids=["p", "q"])
    assert len(scores.rows) == 6


def test_probabilities_come_with_all_batches_or_with_none_and_in_shape():
    predictions, targets = vessel_maps()
    probabilities = np.full((6, 2, 64, 64), 0.5)
    scores = SegmentationScores()
    with pytest.raises(ValueError, match=r"shape \(6, 2, 64, 64\), got \(6, 64, 64\)"):
        scores.update(predictions, targets, IDS, probabilities=probabilities[:, 0])
    with pytest.raises(ValueError, match="Apply the softmax"):
        scores.update(predictions, targets, IDS, probabilities=probabilities * np.nan)
    assert scores.rows == [] and scores.confusion.sum() == 0
    scores.update(predictions[:3], targets[:3], IDS[:3], probabilities=probabilities[:3])
    with pytest.raises(ValueError, match="all batches or with none"):
        scores.update(predictions[3:], targets[3:], IDS[3:])


def test_labels_that_cannot_be_told_apart_are_refused():
    for labels in (["vessel"], ["a", "a"]):
        with pytest.raises(ValueError, match="two distinct names"):
            SegmentationScores(labels)
    with pytest.raises(ValueError, match="`ignore_index` must not be a label id"):
        SegmentationScores(LABELS, ignore_index=3)
    with pytest.raises(ValueError, match="no images to summarise"):
        SegmentationScores(LABELS).summary()
