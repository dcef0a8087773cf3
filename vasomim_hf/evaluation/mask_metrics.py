"""Metrics of one mask against another. Definitions, including undefined cases, are in docs/metrics.md.

All take boolean arrays, prediction first, of shape `(height, width)` or `(batch_size, height, width)`; the first
returns a `float`, the second one value per mask. 0 / 0 is NaN, so the caller decides how undefined values enter a
mean.
"""

from collections.abc import Callable

import numpy as np

from ..import_utils import require


__all__ = [
    "MASK_METRICS",
    "betti0_error",
    "cl_dice",
    "dice",
    "hd95",
    "iou",
    "mask_metrics",
    "precision",
    "sensitivity",
    "specificity",
]


def dice(prediction: np.ndarray, target: np.ndarray) -> float | np.ndarray:
    """Dice coefficient: twice the intersection over the sum of both areas.

    Args:
        prediction (`np.ndarray` of shape `(height, width)` or `(batch_size, height, width)`): `bool`.
        target (`np.ndarray` of the shape of `prediction`): `bool`.

    Returns:
        `float` in [0, 1], or `np.ndarray` of shape `(batch_size,)`: NaN if both masks are empty, 0 if one is.

    Raises:
        ValueError: If the shapes differ, or an array is not a mask.

    Example:
        >>> dice(np.array([[True, True, False]]), np.array([[False, True, False]]))
        0.6666666666666666
    """
    return _for_each(_dice, prediction, target)


def iou(prediction: np.ndarray, target: np.ndarray) -> float | np.ndarray:
    """Intersection over union (Jaccard index).

    Args:
        prediction (`np.ndarray` of shape `(height, width)` or `(batch_size, height, width)`): `bool`.
        target (`np.ndarray` of the shape of `prediction`): `bool`.

    Returns:
        `float` in [0, 1], or `np.ndarray` of shape `(batch_size,)`: NaN if both masks are empty, 0 if one is.

    Raises:
        ValueError: If the shapes differ, or an array is not a mask.

    Example:
        >>> iou(np.array([[True, True, False]]), np.array([[False, True, False]]))
        0.5
    """
    return _for_each(_iou, prediction, target)


def sensitivity(prediction: np.ndarray, target: np.ndarray) -> float | np.ndarray:
    """Fraction of the target that is predicted (recall).

    Args:
        prediction (`np.ndarray` of shape `(height, width)` or `(batch_size, height, width)`): `bool`.
        target (`np.ndarray` of the shape of `prediction`): `bool`.

    Returns:
        `float` in [0, 1], or `np.ndarray` of shape `(batch_size,)`: NaN if the target is empty.

    Raises:
        ValueError: If the shapes differ, or an array is not a mask.
    """
    return _for_each(_sensitivity, prediction, target)


def precision(prediction: np.ndarray, target: np.ndarray) -> float | np.ndarray:
    """Fraction of the prediction that is correct (positive predictive value).

    Args:
        prediction (`np.ndarray` of shape `(height, width)` or `(batch_size, height, width)`): `bool`.
        target (`np.ndarray` of the shape of `prediction`): `bool`.

    Returns:
        `float` in [0, 1], or `np.ndarray` of shape `(batch_size,)`: NaN if the prediction is empty.

    Raises:
        ValueError: If the shapes differ, or an array is not a mask.
    """
    return _for_each(_precision, prediction, target)


def specificity(prediction: np.ndarray, target: np.ndarray) -> float | np.ndarray:
    """Fraction of the background that is predicted as background.

    Args:
        prediction (`np.ndarray` of shape `(height, width)` or `(batch_size, height, width)`): `bool`.
        target (`np.ndarray` of the shape of `prediction`): `bool`.

    Returns:
        `float` in [0, 1], or `np.ndarray` of shape `(batch_size,)`: NaN if the target fills the frame.

    Raises:
        ValueError: If the shapes differ, or an array is not a mask.
    """
    return _for_each(_specificity, prediction, target)


def cl_dice(prediction: np.ndarray, target: np.ndarray) -> float | np.ndarray:
    """Centreline Dice (Shit et al., "clDice", CVPR 2021): overlap of the centreline of each mask with the other mask.

    The harmonic mean of two fractions: of the prediction's skeleton inside the target, and of the target's skeleton
    inside the prediction. Skeletons are computed by `skimage.morphology.skeletonize` in two dimensions (Zhang and
    Suen, 1984), with background around the frame and without pruning. Needs the extra `eval`.

    Args:
        prediction (`np.ndarray` of shape `(height, width)` or `(batch_size, height, width)`): `bool`.
        target (`np.ndarray` of the shape of `prediction`): `bool`.

    Returns:
        `float` in [0, 1], or `np.ndarray` of shape `(batch_size,)`: NaN if both masks are empty, 0 if one is.

    Raises:
        ValueError: If the shapes differ, or an array is not a mask.
    """
    return _for_each(_cl_dice, prediction, target)


def betti0_error(prediction: np.ndarray, target: np.ndarray) -> float | np.ndarray:
    """Absolute difference in the number of connected components (8-connectivity).

    Needs the extra `eval`.

    Args:
        prediction (`np.ndarray` of shape `(height, width)` or `(batch_size, height, width)`): `bool`.
        target (`np.ndarray` of the shape of `prediction`): `bool`.

    Returns:
        `float`, an integer >= 0, or `np.ndarray` of shape `(batch_size,)`: defined for all masks; an empty mask has no
        components.

    Raises:
        ValueError: If the shapes differ, or an array is not a mask.
    """
    return _for_each(_betti0_error, prediction, target)


def hd95(prediction: np.ndarray, target: np.ndarray) -> float | np.ndarray:
    """95th percentile of the distances between the contours, in pixels (robust Hausdorff distance).

    Same as MONAI's `compute_hausdorff_distance(percentile=95)`: the contour of a mask consists of its pixels with at
    least one of their four neighbours in the background or outside the frame. For each contour, distances are measured
    from each pixel centre to the nearest one of the other contour. The result is the larger of the two percentiles,
    with linear interpolation. Needs the extra `eval`.

    Args:
        prediction (`np.ndarray` of shape `(height, width)` or `(batch_size, height, width)`): `bool`.
        target (`np.ndarray` of the shape of `prediction`): `bool`.

    Returns:
        `float` >= 0, or `np.ndarray` of shape `(batch_size,)`: NaN if both masks are empty. If one is, the diagonal of
        the frame, which exceeds any possible distance, so an empty prediction is never an advantage (MONAI returns
        NaN).

    Raises:
        ValueError: If the shapes differ, or an array is not a mask.
    """
    return _for_each(_hd95, prediction, target)


def mask_metrics(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Compute all metrics of one mask.

    Args:
        prediction (`np.ndarray` of shape `(height, width)`): `bool`.
        target (`np.ndarray` of shape `(height, width)`): `bool`.

    Returns:
        `dict[str, float]`: Named like the functions of this module.

    Raises:
        ValueError: If the shapes differ, or an array is not a mask.
    """
    prediction, target = as_masks(prediction, target)
    return {name: metric(prediction, target) for name, metric in MASK_METRICS.items()}


def as_masks(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check two masks and convert them to boolean.

    Args:
        prediction (`np.ndarray` of shape `(height, width)` or `(batch_size, height, width)`): `bool`, or 0 and 1.
        target (`np.ndarray` of the shape of `prediction`): `bool`, or 0 and 1.

    Returns:
        Two `np.ndarray` of the same shapes: `bool`.

    Raises:
        ValueError: If the shapes differ, or an array is not a mask.
    """
    masks = _as_mask(prediction, "prediction"), _as_mask(target, "target")
    if masks[0].shape != masks[1].shape:
        raise ValueError(
            f"`prediction` and `target` must have the same shape, got {masks[0].shape} and {masks[1].shape}. "
            "Resize the prediction to the annotated frame."
        )
    return masks


def _as_mask(mask: np.ndarray, name: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim not in (2, 3) or 0 in mask.shape[-2:]:
        raise ValueError(f"`{name}` must have shape (height, width) or (batch_size, height, width), got {mask.shape}.")
    if mask.dtype == bool:
        return mask
    if not np.issubdtype(mask.dtype, np.integer) or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"`{name}` must be a boolean mask or contain only 0 and 1, got {mask.dtype} with other values. Compare "
            "it with a threshold or a label id first."
        )
    return mask.astype(bool)


def _for_each(metric: Callable, prediction: np.ndarray, target: np.ndarray) -> float | np.ndarray:
    prediction, target = as_masks(prediction, target)
    if prediction.ndim == 2:
        return float(metric(prediction, target))
    return np.array([metric(*pair) for pair in zip(prediction, target, strict=True)], dtype=np.float64)


# Metrics of one mask of shape (H, W)
# ----------------------------------------------------------------------------------


def ratio(part: float, whole: float) -> float:
    """Quotient of two counts; NaN for 0 / 0."""
    return part / whole if whole else float("nan")


def _count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))


def _dice(prediction: np.ndarray, target: np.ndarray) -> float:
    return ratio(2 * _count(prediction & target), _count(prediction) + _count(target))


def _iou(prediction: np.ndarray, target: np.ndarray) -> float:
    return ratio(_count(prediction & target), _count(prediction | target))


def _sensitivity(prediction: np.ndarray, target: np.ndarray) -> float:
    return ratio(_count(prediction & target), _count(target))


def _precision(prediction: np.ndarray, target: np.ndarray) -> float:
    return ratio(_count(prediction & target), _count(prediction))


def _specificity(prediction: np.ndarray, target: np.ndarray) -> float:
    return ratio(_count(~prediction & ~target), _count(~target))


def _cl_dice(prediction: np.ndarray, target: np.ndarray) -> float:
    skeletonize = require("skimage.morphology", extra="eval").skeletonize
    if not prediction.any() or not target.any():
        return float("nan") if prediction.any() == target.any() else 0.0
    prediction, target = _cropped(prediction, target)
    found, true = skeletonize(prediction), skeletonize(target)
    of_prediction = ratio(_count(found & target), _count(found))
    of_target = ratio(_count(true & prediction), _count(true))
    together = of_prediction + of_target
    return 2 * of_prediction * of_target / together if together else 0.0


def _betti0_error(prediction: np.ndarray, target: np.ndarray) -> float:
    label = require("scipy.ndimage", extra="eval").label
    corners_too = np.ones((3, 3), dtype=bool)
    prediction, target = _cropped(prediction, target)
    return float(abs(label(prediction, corners_too)[1] - label(target, corners_too)[1]))


def _hd95(prediction: np.ndarray, target: np.ndarray) -> float:
    if not prediction.any() or not target.any():
        return float("nan") if prediction.any() == target.any() else float(np.hypot(*target.shape))
    outlines = [np.argwhere(_contour(mask)) for mask in _cropped(prediction, target)]
    return max(_percentile_of_distances(*outlines), _percentile_of_distances(*reversed(outlines)))


def _percentile_of_distances(points: np.ndarray, others: np.ndarray) -> float:
    """Percentile of the distances from each of (M, 2) points to the nearest of (N, 2) others."""
    # Contours of thin vessels have few pixels, so a tree is faster than a distance transform of the frame; built with
    # fast settings because it is queried once.
    kd_tree = require("scipy.spatial", extra="eval").KDTree
    tree = kd_tree(others, leafsize=32, compact_nodes=False, balanced_tree=False)
    return float(np.percentile(tree.query(points)[0], 95))


def _contour(mask: np.ndarray) -> np.ndarray:
    around = np.pad(mask, 1)
    return mask & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])


def _cropped(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crop both masks to their common bounding box; callers treat the outside as background."""
    either = prediction | target
    rows, columns = np.flatnonzero(either.any(axis=1)), np.flatnonzero(either.any(axis=0))
    if not len(rows):
        return prediction[:1, :1], target[:1, :1]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return prediction[box], target[box]


MASK_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "dice": _dice,
    "iou": _iou,
    "sensitivity": _sensitivity,
    "precision": _precision,
    "specificity": _specificity,
    "cl_dice": _cl_dice,
    "betti0_error": _betti0_error,
    "hd95": _hd95,
}
