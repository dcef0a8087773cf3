"""Measures of masks against MONAI, scikit-image, scipy, hand-worked cases, and stated rules for empty masks."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou
from monai.metrics.confusion_matrix import compute_confusion_matrix_metric, get_confusion_matrix
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import skeletonize

from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram
from vasomim_hf.evaluation import mask_metrics as metrics
from vasomim_hf.evaluation.mask_metrics import (
    betti0_error,
    cl_dice,
    dice,
    hd95,
    iou,
    precision,
    sensitivity,
    specificity,
)


RATIOS = (dice, iou, sensitivity, precision, specificity, cl_dice)
ALL = (*RATIOS, betti0_error, hd95)
SHAPE = (96, 128)


def vessels(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return synthetic_angiogram(seed, size=shape).vessel_mask


def draw(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[rows, columns] = True
    return mask


def shifted(mask: np.ndarray, down: int, right: int) -> np.ndarray:
    return ndimage.shift(mask, (down, right), order=0)


def pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of masks that are not empty: vessels, and what is odd about single ones."""
    rng = np.random.default_rng(0)
    found = {f"vessels {seed}": (vessels(seed), vessels(seed + 1)) for seed in range(3)}
    tree = vessels(7)
    found["the same"] = tree, tree
    found["one pixel right"] = shifted(tree, 0, 1), tree
    found["one pixel up"] = shifted(tree, -1, 0), tree
    found["speckled"] = tree ^ (rng.random(SHAPE) < 0.02), tree
    found["broken"] = tree & ~draw(slice(None), slice(40, 44)), tree
    found["thick"] = ndimage.binary_dilation(tree, iterations=2), tree
    full = np.ones(SHAPE, dtype=bool)
    found["all of the frame"] = full, tree
    found["single pixels"] = draw(slice(3, 4), slice(5, 6)), draw(slice(90, 91), slice(120, 121))
    found["corner pixel"] = draw(slice(0, 1), slice(0, 1)), draw(slice(0, 3), slice(0, 3))
    found["along the border"] = draw(slice(0, 2), slice(None)), draw(slice(None), slice(-2, None))
    found["noise"] = rng.random(SHAPE) < 0.5, rng.random(SHAPE) < 0.5
    return found


PAIRS = pairs()
named = pytest.mark.parametrize("name", PAIRS)
EMPTY = np.zeros(SHAPE, dtype=bool)


def channels(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None].float()


def by_monai(function, prediction: np.ndarray, target: np.ndarray, **options) -> float:
    return function(channels(prediction), channels(target), include_background=True, **options).item()


@named
def test_dice_and_iou_are_those_of_monai(name):
    assert dice(*PAIRS[name]) == pytest.approx(by_monai(compute_dice, *PAIRS[name]), abs=1e-6)
    assert iou(*PAIRS[name]) == pytest.approx(by_monai(compute_iou, *PAIRS[name]), abs=1e-6)


@named
@pytest.mark.parametrize("metric", [sensitivity, precision, specificity])
def test_shares_are_those_of_monai(name, metric):
    prediction, target = PAIRS[name]
    confusion = get_confusion_matrix(channels(prediction), channels(target))
    expected = compute_confusion_matrix_metric(metric.__name__, confusion).item()
    assert metric(prediction, target) == pytest.approx(expected, abs=1e-6, nan_ok=True)


# MONAI warns of an argument that it gives itself
@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")
@named
def test_hd95_is_that_of_monai(name):
    expected = by_monai(compute_hausdorff_distance, *PAIRS[name], percentile=95)
    assert hd95(*PAIRS[name]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@named
def test_betti0_error_counts_the_parts_that_scikit_image_counts(name):
    first, second = (label(mask, connectivity=2).max() for mask in PAIRS[name])
    assert betti0_error(*PAIRS[name]) == abs(int(first) - int(second))


@named
def test_cl_dice_follows_its_definition_on_whole_frames(name):
    """The definition of Shit et al. as it reads, without the crop."""
    prediction, target = PAIRS[name]
    thin, true = skeletonize(prediction), skeletonize(target)
    topology_precision, topology_sensitivity = target[thin].mean(), prediction[true].mean()
    total = topology_precision + topology_sensitivity
    expected = 2 * topology_precision * topology_sensitivity / total if total else 0.0
    assert cl_dice(prediction, target) == pytest.approx(expected, abs=1e-12)


def test_values_worked_out_by_hand():
    target, prediction = draw(slice(10, 14), slice(10, 20)), draw(slice(12, 16), slice(10, 20))
    assert dice(prediction, target) == 0.5
    assert iou(prediction, target) == pytest.approx(20 / 60)
    assert sensitivity(prediction, target) == precision(prediction, target) == 0.5
    assert specificity(prediction, target) == pytest.approx(1 - 20 / (SHAPE[0] * SHAPE[1] - 40))
    assert betti0_error(prediction, target) == 0
    assert hd95(prediction, target) == 2
    # a line of 20 pixels, of which 15 are found, and 5 more at the end
    line, other = draw(slice(30, 31), slice(10, 30)), draw(slice(30, 31), slice(15, 35))
    assert cl_dice(other, line) == 0.75
    # the same line 3 pixels lower
    assert hd95(draw(slice(30, 31), slice(10, 20)), draw(slice(33, 34), slice(10, 20))) == 3


def test_hd95_takes_the_larger_of_the_two_directions_and_leaves_five_percent_out():
    line = draw(slice(50, 51), slice(10, 110))
    far = line | draw(slice(10, 11), slice(10, 13))
    assert hd95(far, line) == hd95(line, far) == 0
    farther = line | draw(slice(10, 11), slice(10, 30))
    assert hd95(farther, line) == hd95(line, farther) == 40


def test_hd95_interpolates_between_distances():
    # distances 0, 1, ..., 9 of one direction: the percentile lies at place 8.55
    point = draw(slice(50, 51), slice(20, 21))
    assert hd95(draw(slice(50, 51), slice(20, 30)), point) == pytest.approx(8.55)


def test_pixels_that_touch_at_a_corner_are_one_part():
    steps = np.eye(*SHAPE, dtype=bool)
    assert betti0_error(steps, EMPTY) == 1
    assert betti0_error(steps & ~draw(slice(40, 41), slice(None)), EMPTY) == 2


def test_a_line_that_is_broken_costs_parts_and_little_dice():
    line = draw(slice(30, 33), slice(10, 110))
    broken = line & ~draw(slice(None), slice(60, 61))
    assert betti0_error(broken, line) == 1
    assert dice(broken, line) > 0.99


def test_cl_dice_does_not_mind_width_and_dice_does():
    line = draw(slice(30, 33), slice(10, 110))
    thick = draw(slice(28, 35), slice(8, 112))
    assert cl_dice(thick, line) > 0.95
    assert dice(thick, line) < 0.65


def test_nothing_against_nothing_is_undefined_but_for_parts_and_background():
    defined = {betti0_error: 0.0, specificity: 1.0}
    for metric in ALL:
        assert metric(EMPTY, EMPTY) == pytest.approx(defined.get(metric, np.nan), nan_ok=True), metric.__name__


def test_nothing_against_something_is_as_bad_as_can_be():
    tree = vessels(0)
    for metric in (dice, iou, cl_dice):
        assert metric(EMPTY, tree) == metric(tree, EMPTY) == 0
    assert hd95(EMPTY, tree) == hd95(tree, EMPTY) == np.hypot(*SHAPE)
    assert sensitivity(EMPTY, tree) == 0
    assert np.isnan(precision(EMPTY, tree))
    assert np.isnan(sensitivity(tree, EMPTY))
    assert precision(tree, EMPTY) == 0
    assert np.isnan(specificity(tree, np.ones(SHAPE, dtype=bool)))


def test_no_distance_reaches_that_of_an_empty_mask():
    corners = draw(slice(0, 1), slice(0, 1)), draw(slice(-1, None), slice(-1, None))
    assert hd95(*corners) == np.hypot(SHAPE[0] - 1, SHAPE[1] - 1) < hd95(corners[0], EMPTY)


@pytest.mark.parametrize("metric", ALL)
def test_a_batch_gives_the_values_of_its_masks(metric):
    chosen = [*PAIRS.values(), (EMPTY, EMPTY), (EMPTY, vessels(0))]
    predictions, targets = (np.stack(masks) for masks in zip(*chosen, strict=True))
    batch = metric(predictions, targets)
    single = [metric(*pair) for pair in chosen]
    assert all(type(value) is float for value in single)
    assert batch.shape == (len(chosen),) and batch.dtype == np.float64
    np.testing.assert_array_equal(batch, single)
    assert metric(predictions[:0], targets[:0]).shape == (0,)


# not the centre-line Dice: thinning has a direction
@pytest.mark.parametrize("metric", [metric for metric in ALL if metric is not cl_dice])
def test_turning_both_masks_changes_nothing(metric):
    for prediction, target in PAIRS.values():
        turned = metric(np.rot90(prediction).copy(), np.rot90(target).copy())
        assert turned == pytest.approx(metric(prediction, target), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("metric", [*RATIOS[:2], cl_dice, betti0_error, hd95])
def test_symmetric_measures_do_not_mind_the_order(metric):
    for prediction, target in PAIRS.values():
        assert metric(prediction, target) == pytest.approx(metric(target, prediction), abs=1e-12)


def test_measures_leave_their_inputs_alone_and_take_masks_of_0_and_1():
    prediction, target = (mask.copy() for mask in PAIRS["speckled"])
    for metric in ALL:
        assert metric(prediction.astype(np.uint8), target.astype(np.int64)) == metric(prediction, target)
    np.testing.assert_array_equal(prediction, PAIRS["speckled"][0])
    np.testing.assert_array_equal(target, PAIRS["speckled"][1])


def test_one_row_or_column_is_a_frame_too():
    line, other = np.array([[True, True, False, False]]), np.array([[False, True, True, False]])
    assert hd95(line, other) == hd95(line.T.copy(), other.T.copy()) == pytest.approx(0.95)
    assert cl_dice(line, line) == 1


@pytest.mark.parametrize("metric", ALL)
def test_what_is_no_mask_is_refused(metric):
    mask = vessels(0)
    with pytest.raises(ValueError, match="same shape"):
        metric(mask[:-1], mask)
    with pytest.raises(ValueError, match="`prediction` must be .*float"):
        metric(mask * 0.7, mask)
    with pytest.raises(ValueError, match="`target` must be .*uint8"):
        metric(mask, mask.astype(np.uint8) * 255)
    with pytest.raises(ValueError, match=r"shape \(height, width\)"):
        metric(mask[None, None], mask[None, None])
    with pytest.raises(ValueError, match=r"shape \(height, width\)"):
        metric(mask[:0], mask[:0])


def test_all_measures_of_a_mask_are_named_like_their_functions():
    values = metrics.mask_metrics(*PAIRS["speckled"])
    assert values == {name: getattr(metrics, name)(*PAIRS["speckled"]) for name in values}
    assert {function.__name__ for function in ALL} == set(values)
