"""Average precision against pycocotools and faster-coco-eval, sensitivities against MONAI, and cases worked by hand."""

import contextlib
import io

import numpy as np
import pytest
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from monai.metrics.froc import compute_froc_curve_data
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vasomim_hf.evaluation.detection_metrics import Boxes, DetectionScores, detection_measures
from vasomim_hf.evaluation.measures import summarise
from vasomim_hf.evaluation.statistics import Resampling


QUICK = Resampling(num_resamples=50)
LABELS = ["stenosis", "occlusion"]


def scene(seed: int, num_images: int = 30, num_labels: int = 2, ties: bool = False) -> tuple[list[Boxes], list[Boxes]]:
    """Predictions that are near the targets, beside them, double, missing, of the wrong category."""
    rng = np.random.default_rng(seed)
    predictions, targets = [], []
    for _ in range(num_images):
        count = rng.integers(0, 4)
        corners = rng.uniform(0, 400, (count, 2))
        corners = np.concatenate([corners, corners + rng.uniform(15, 90, (count, 2))], axis=1)
        labels = rng.integers(0, num_labels, count)
        targets.append(Boxes(corners, labels))
        near = corners + rng.normal(0, 5, corners.shape)
        stray = rng.uniform(0, 400, (rng.integers(0, 6), 2))
        stray = np.concatenate([stray, stray + rng.uniform(15, 90, stray.shape)], axis=1)
        found = np.concatenate([near, near + 3, stray])
        kinds = np.concatenate([labels, labels, rng.integers(0, num_labels, len(stray))])
        scores = rng.random(len(found))
        keep = rng.random(len(found)) < 0.8
        scores = np.round(scores, 1) if ties else scores
        predictions.append(Boxes(found[keep], kinds[keep], scores[keep]))
    return predictions, targets


def scored(predictions: list[Boxes], targets: list[Boxes], labels: list[str] = LABELS, **options) -> DetectionScores:
    scores = DetectionScores(labels)
    for start in range(0, len(targets), 7):
        part = slice(start, start + 7)
        ids = [str(i) for i in range(len(targets))][part]
        given = {name: value[part] for name, value in options.items()}
        scores.update(predictions[part], targets[part], ids, **given)
    return scores


def values(predictions: list[Boxes], targets: list[Boxes], labels: list[str] = LABELS) -> dict[str, float]:
    summary = scored(predictions, targets, labels).summary(QUICK)
    return {name: entry.value for name, entry in summary.items()}


def content(boxes: list[Boxes], labels: list[str]) -> dict:
    annotations = []
    for image, one in enumerate(boxes, start=1):
        for j, (x0, y0, x1, y1) in enumerate(one.corners.tolist()):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            score = 0.0 if one.scores is None else float(one.scores[j])
            known = {"id": len(annotations) + 1, "image_id": image, "category_id": int(one.labels[j])}
            annotations.append(known | box | {"score": score})
    images = [{"id": i + 1, "width": 512, "height": 512} for i in range(len(boxes))]
    categories = [{"id": i, "name": name} for i, name in enumerate(labels)]
    return {"images": images, "categories": categories, "annotations": annotations}


def outside(predictions: list[Boxes], targets: list[Boxes], labels: list[str], faster: bool) -> dict[str, float]:
    """The usual summary with all of its sizes and numbers of boxes."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = FasterCOCO(content(targets, labels)) if faster else COCO()
        if not faster:
            truth.dataset = content(targets, labels)
            truth.createIndex()
        found = truth.loadRes(content(predictions, labels)["annotations"])
        evaluation = COCOeval_faster(truth, found, "bbox") if faster else COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = {"ap": 0, "ap50": 1, "ap75": 2, "recall": 8}
    return {name: float(evaluation.stats[place]) for name, place in names.items()}


@pytest.mark.parametrize("faster", [False, True], ids=["pycocotools", "faster-coco-eval"])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("num_labels", [1, 2])
def test_average_precision_and_recall_are_those_of_other_evaluators(num_labels, ties, faster):
    boxes = scene(num_labels, num_labels=num_labels, ties=ties)
    expected = outside(*boxes, LABELS[:num_labels], faster)
    found = values(*boxes, LABELS[:num_labels])
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert 0.1 < found["ap"] < found["ap50"] < 1


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_accumulation_with_weights_is_the_official_one(ties):
    scores = scored(*scene(5, ties=ties))
    official = {name: entry.value for name, entry in scores.summary(QUICK).items()}
    again = summarise(scores.rows, detection_measures(LABELS), QUICK)
    assert {name: entry.value for name, entry in again.items()} == pytest.approx(official, abs=1e-12)


def test_weights_do_what_repeating_images_does():
    predictions, targets = scene(6, num_images=12)
    rows = scored(predictions, targets).rows
    times = np.random.default_rng(0).integers(0, 4, 12)
    repeated = np.repeat(np.arange(12), times)
    expected = values([predictions[i] for i in repeated], [targets[i] for i in repeated])
    for name, measure in detection_measures(LABELS).items():
        found = measure.build(rows).compute(times[None].astype(float))[0]
        assert found == pytest.approx(expected[name], abs=1e-12), name


def test_sensitivities_follow_the_curve_of_monai():
    predictions, targets = scene(8, num_labels=1)
    scores = scored(predictions, targets, LABELS[:1])
    lists = [row.lists for row in scores.rows]
    boxes = [(p, int(bits) & 1) for one in lists for p, bits in zip(one["scores"], one["matches"], strict=True)]
    wrong, right = (np.array([score for score, hit in boxes if hit == kind]) for kind in (0, 1))
    num_targets = sum(len(target.labels) for target in targets)
    rates, sensitivities = compute_froc_curve_data(wrong, right, num_targets, len(targets))
    summary = scores.summary(QUICK)
    for rate in (0.1, 0.5, 1, 2):
        # MONAI leaves out the lowest threshold, which lets everything pass
        everything = [len(right) / num_targets] if len(wrong) / len(targets) <= rate else []
        expected = max([*sensitivities[rates <= rate], *everything])
        assert summary[f"sensitivity_at_{rate:g}_fp"].value == pytest.approx(expected)
    assert 0 < summary["sensitivity_at_0.1_fp"].value < summary["sensitivity_at_2_fp"].value


def box(*corners: float) -> np.ndarray:
    return np.array([corners], dtype=float)


def one(corners: np.ndarray, scores: list[float] | None = None) -> Boxes:
    return Boxes(corners, np.zeros(len(corners), dtype=int), None if scores is None else np.array(scores))


NOTHING = one(np.zeros((0, 4)), [])
TARGET = one(box(10, 10, 30, 30))


def test_a_hit_and_a_surer_miss_worked_by_hand():
    found = one(np.concatenate([box(100, 100, 120, 120), box(10, 10, 30, 28)]), [0.9, 0.8])
    numbers = values([found], [TARGET], LABELS[:1])
    # precision 1/2 at all recalls; an overlap of 0.9 passes thresholds up to 0.9
    assert numbers["ap50"] == numbers["ap75"] == pytest.approx(0.5)
    assert numbers["ap"] == pytest.approx(0.5 * 9 / 10)
    assert numbers["recall50"] == 1 and numbers["recall"] == pytest.approx(0.9)
    # to see the hit, one wrong box in one image must be let through
    assert numbers["sensitivity_at_0.5_fp"] == 0 and numbers["sensitivity_at_1_fp"] == 1


def test_a_second_box_on_the_same_target_is_wrong():
    found = one(np.concatenate([box(10, 10, 30, 30)] * 2), [0.9, 0.8])
    scores = scored([found], [TARGET], LABELS[:1])
    row = scores.rows[0]
    assert [int(bits) & 1 for bits in row.lists["matches"]] == [1, 0]
    assert row.values == {"num_targets": 1, "num_predictions": 2, "num_found": 1}


def test_boxes_of_the_same_score_pass_a_threshold_together():
    found = one(np.concatenate([box(10, 10, 30, 30), box(100, 100, 120, 120)]), [0.9, 0.9])
    numbers = values([found], [TARGET], LABELS[:1])
    assert numbers["sensitivity_at_0.5_fp"] == 0 and numbers["sensitivity_at_1_fp"] == 1


def test_a_centre_in_the_target_is_a_hit_of_the_looser_criterion_only():
    small = one(box(18, 18, 24, 24), [0.9])
    numbers = values([small], [TARGET], LABELS[:1])
    assert numbers["sensitivity_at_1_fp"] == 0 and numbers["centre_sensitivity_at_0.1_fp"] == 1
    beside = one(box(28, 28, 60, 60), [0.9])
    assert values([beside], [TARGET], LABELS[:1])["centre_sensitivity_at_2_fp"] == 0


def test_a_centre_in_two_targets_takes_the_nearer_one_and_each_target_once():
    both = one(np.concatenate([box(0, 0, 40, 40), box(20, 20, 60, 60)]))
    # the first centre (32, 32) is nearer to that of the second target; the next one lies in the first only
    found = one(np.concatenate([box(30, 30, 34, 34), box(8, 8, 12, 12), box(30, 30, 34, 34)]), [0.9, 0.8, 0.7])
    scores = scored([found], [both], LABELS[:1])
    assert [int(bits) >> 10 for bits in scores.rows[0].lists["matches"]] == [1, 1, 0]


def test_no_predictions_are_a_zero_and_no_targets_are_undefined():
    nothing = values([NOTHING, NOTHING], [TARGET, NOTHING], LABELS[:1])
    assert set(nothing.values()) == {0.0}
    undefined = values([one(box(1, 1, 9, 9), [0.5])], [NOTHING], LABELS[:1])
    assert np.isnan(list(undefined.values())).all()
    assert np.isnan(list(values([NOTHING], [NOTHING]).values())).all()


def test_a_category_without_targets_does_not_count_in_the_mean():
    found = [one(box(10, 10, 30, 30), [0.9])]
    assert values(found, [TARGET], LABELS)["ap"] == pytest.approx(1)


def test_only_the_hundred_surest_boxes_of_an_image_count():
    many = np.concatenate([np.tile(box(100, 100, 120, 120), (100, 1)), box(10, 10, 30, 30)])
    found = [one(many, [0.9] * 100 + [0.1])]
    assert values(found, [TARGET], LABELS[:1])["recall50"] == 0
    assert len(scored(found, [TARGET], LABELS[:1]).rows[0].lists["scores"]) == 100


def test_rows_can_be_asked_for_between_batches():
    predictions, targets = scene(2)
    scores = DetectionScores(LABELS)
    assert scores.rows == []
    scores.update(predictions[:5], targets[:5], list("abcde"))
    assert len(scores.rows) == 5
    scores.update(predictions[5:6], targets[5:6], ["f"], patient_ids=["p"])
    assert [row.image_id for row in scores.rows] == list("abcdef") and scores.rows[5].patient_id == "p"
    assert scores.summary(QUICK)["ap"].value == pytest.approx(values(predictions[:6], targets[:6])["ap"])


def test_intervals_are_by_patient_and_hold_the_value():
    boxes = scene(3)
    by_image = scored(*boxes).summary(Resampling(num_resamples=300))
    by_patient = scored(*boxes, patient_ids=[str(i // 6) for i in range(30)]).summary(Resampling(num_resamples=300))
    for name, entry in by_image.items():
        assert entry.low <= entry.value <= entry.high, name
    assert by_image["ap50"].value == by_patient["ap50"].value
    assert by_image["ap50"].low != by_patient["ap50"].low


def test_boxes_of_coco_become_corners():
    boxes = Boxes.from_coco([[10, 20, 5, 6]], [1])
    assert boxes.corners.tolist() == [[10, 20, 15, 26]] and boxes.labels.tolist() == [1]
    assert Boxes.from_coco([], []).corners.shape == (0, 4)


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (one(box(1, 1, 5, 5)), TARGET, "prediction of image 'a' must have one finite score"),
        (one(box(1, 1, 5, 5), [np.nan]), TARGET, "one finite score"),
        (one(box(1, 1, np.inf, 5), [0.5]), TARGET, "not finite"),
        (one(box(9, 1, 5, 5), [0.5]), TARGET, "swapped corners"),
        (NOTHING, one(box(1, 1, 1, 5)), r"zero area.*\[1.0, 1.0, 1.0, 5.0\]"),
        (NOTHING, Boxes(box(1, 1, 5, 5), np.array([2])), r"labels \[2\].*from 0 to 1"),
        (NOTHING, Boxes(box(1, 1, 5, 5), np.array([0, 1])), "1 boxes and 2 labels"),
        (NOTHING, Boxes(np.ones((2, 3)), np.array([0, 1])), r"shape \(num_boxes, 4\), got \(2, 3\)"),
    ],
)
def test_odd_boxes_are_refused_before_anything_is_counted(prediction, target, message):
    scores = DetectionScores(LABELS)
    with pytest.raises(ValueError, match=message):
        scores.update([prediction], [target], ["a"])
    assert scores.rows == []


def test_numbers_that_do_not_fit_are_refused():
    scores = scored([NOTHING], [TARGET])
    with pytest.raises(ValueError, match="images: 0"):
        scores.update([NOTHING], [TARGET], ["0"])
    with pytest.raises(ValueError, match="predictions and targets, got 2 and 1"):
        scores.update([NOTHING, NOTHING], [TARGET], ["b"])
    with pytest.raises(ValueError, match="category names"):
        DetectionScores([])


def test_the_command_stays_silent(capsys):
    values(*scene(1))
    assert capsys.readouterr().out == ""
