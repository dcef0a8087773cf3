"""Calibration of probabilities: reliability tables, expected calibration error, and uncertainty maps."""

from typing import NamedTuple

import numpy as np

from .statistics import Statistic, safe_ratio


NUM_BINS = 15


class ReliabilityBin(NamedTuple):
    """A confidence bin `(low, high]`: number of cases, mean confidence and accuracy."""

    low: float
    high: float
    num_cases: int
    confidence: float
    accuracy: float


class ReliabilityTable:
    """Accumulates confidences and correctness in bins of equal width, closed on the right.

    The first bin includes 0. Memory use does not depend on the number of cases.

    Args:
        num_bins (`int`): Number of bins in [0, 1]; 15 as in Guo et al., "On Calibration of Modern Neural Networks",
        2017.

    Example:
        >>> table = ReliabilityTable(num_bins=2)
        >>> table.update(np.array([0.4, 0.9, 0.9]), np.array([False, True, False]))
        >>> round(table.ece(), 4)
        0.4
    """

    def __init__(self, num_bins: int = NUM_BINS):
        if num_bins < 1:
            raise ValueError(f"`num_bins` must be positive, got {num_bins}.")
        self.num_bins = num_bins
        self.counts = np.zeros(num_bins)
        self.confidences = np.zeros(num_bins)
        self.correct = np.zeros(num_bins)

    def update(self, confidence: np.ndarray, correct: np.ndarray) -> None:
        """Add cases.

        Args:
            confidence (`np.ndarray` of any shape): Float in [0, 1].
            correct (`np.ndarray` of the shape of `confidence`): `bool`.

        Raises:
            ValueError: If the shapes differ or a confidence is outside [0, 1].
        """
        confidence, correct = np.asarray(confidence, dtype=np.float64).ravel(), np.asarray(correct).ravel()
        if confidence.shape != correct.shape:
            raise ValueError(f"`confidence` has {confidence.size} cases but `correct` has {correct.size}.")
        # phrased so that NaN is rejected too
        if not ((confidence >= 0) & (confidence <= 1 + 1e-6)).all():
            raise ValueError("`confidence` must be in [0, 1]. Apply the softmax or the sigmoid to the logits first.")
        place = np.searchsorted(np.linspace(0, 1, self.num_bins + 1)[1:-1], confidence, side="left")
        self.counts += np.bincount(place, minlength=self.num_bins)
        self.confidences += np.bincount(place, weights=confidence, minlength=self.num_bins)
        self.correct += np.bincount(place, weights=correct, minlength=self.num_bins)

    def ece(self) -> float:
        """Expected calibration error: mean over the cases of |confidence - accuracy| of their bin."""
        return float(_ece(self.counts[None], self.confidences[None], self.correct[None])[0])

    def mce(self) -> float:
        """Maximum calibration error: largest |confidence - accuracy| of a non-empty bin; NaN without cases."""
        gaps = np.abs(safe_ratio(self.confidences - self.correct, self.counts))
        return float(np.nanmax(gaps)) if self.counts.any() else float("nan")

    def bins(self) -> list[ReliabilityBin]:
        """Bins of a reliability diagram; the means of empty bins are NaN."""
        edges = np.linspace(0, 1, self.num_bins + 1)
        confidence, accuracy = safe_ratio(self.confidences, self.counts), safe_ratio(self.correct, self.counts)
        columns = (edges[:-1], edges[1:], self.counts.astype(int), confidence, accuracy)
        return [ReliabilityBin(*line) for line in zip(*(column.tolist() for column in columns), strict=True)]

    def lists(self) -> dict[str, list[float]]:
        """Counts and sums to store in a result row."""
        sums = {"bin_counts": self.counts, "bin_confidences": self.confidences, "bin_correct": self.correct}
        return {name: numbers.tolist() for name, numbers in sums.items()}


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error of arrays.

    Args:
        confidence (`np.ndarray` of any shape): Float in [0, 1].
        correct (`np.ndarray` of the shape of `confidence`): `bool`.
        num_bins (`int`): Number of bins of equal width.

    Returns:
        `float` in [0, 1]; NaN without cases.
    """
    table = ReliabilityTable(num_bins)
    table.update(confidence, correct)
    return table.ece()


def ece_statistic(counts: np.ndarray, confidences: np.ndarray, correct: np.ndarray) -> Statistic:
    """Expected calibration error over all cases of the items.

    Args:
        counts (`np.ndarray` of shape `(num_items, num_bins)`): Number of cases per item and bin.
        confidences (`np.ndarray` of shape `(num_items, num_bins)`): Sums of their confidences.
        correct (`np.ndarray` of shape `(num_items, num_bins)`): Number of correct cases.

    Returns:
        `Statistic`: NaN if no case has weight.
    """

    def compute(weights: np.ndarray) -> np.ndarray:
        return _ece(weights @ counts, weights @ confidences, weights @ correct)

    return Statistic(compute, n=len(counts))


def _ece(counts: np.ndarray, confidences: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Arrays (R, M) -> (R,)."""
    return safe_ratio(np.abs(confidences - correct).sum(axis=1), counts.sum(axis=1))


def top_label(
    probabilities: np.ndarray, targets: np.ndarray, ignore_index: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence in the most probable class, and whether it is correct.

    Args:
        probabilities (`np.ndarray` of shape `(num_labels, ...)`): Float in [0, 1].
        targets (`np.ndarray` of shape `(...)`): Label ids.
        ignore_index (`int`, *optional*): Targets with this id are excluded.

    Returns:
        Two `np.ndarray` of shape `(num_cases,)`: float confidences and `bool`.
    """
    probabilities, targets = np.asarray(probabilities), np.asarray(targets)
    if probabilities.shape[1:] != targets.shape:
        raise ValueError(
            f"`probabilities` must have shape (num_labels, *{targets.shape}) to match `targets`, got "
            f"{probabilities.shape}."
        )
    counted = np.ones(targets.shape, dtype=bool) if ignore_index is None else targets != ignore_index
    return probabilities.max(axis=0)[counted], (probabilities.argmax(axis=0) == targets)[counted]


def predictive_entropy(samples: np.ndarray) -> np.ndarray:
    """Uncertainty of several predictions for the same frame: entropy of the mean probabilities.

    Args:
        samples (`np.ndarray` of shape `(num_samples, num_labels, ...)`): Probabilities that sum to 1 over the labels, for
            example from test-time augmentation (mapped back to the frame) or from several seeds.

    Returns:
        `np.ndarray` of shape `(...)`: `float64` in [0, 1]: 0 is certain, 1 is uniform over the labels.

    Raises:
        ValueError: If there are fewer than two labels, or probabilities do not sum to 1.

    Example:
        >>> predictive_entropy(np.array([[[1.0], [0.0]], [[0.0], [1.0]]]))
        array([1.])
    """
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim < 2 or samples.shape[1] < 2 or not len(samples):
        raise ValueError(
            f"`samples` must have shape (num_samples, num_labels, ...) with at least two labels, got {samples.shape}. "
            "Stack a foreground probability p as (1 - p, p)."
        )
    # phrased so that NaN is rejected too
    if not (samples >= 0).all() or not np.allclose(samples.sum(axis=1), 1, atol=1e-3):
        raise ValueError("`samples` must be probabilities that sum to 1 over axis 1. Apply the softmax first.")
    mean = samples.mean(axis=0)
    # p log p -> 0 for p -> 0
    logarithm = np.log(mean, out=np.zeros_like(mean), where=mean > 0)
    return np.clip(-(mean * logarithm).sum(axis=0) / np.log(len(mean)), 0.0, 1.0)
