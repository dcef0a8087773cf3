"""Classification metrics over a data set. Definitions are in docs/metrics.md.

The areas under the curves are computed here rather than by scikit-learn, because bootstrap and permutation tests need
them for thousands of weightings at once; the tests compare them with scikit-learn.
"""

from collections.abc import Callable, Sequence

import numpy as np

from .calibration import NUM_BINS, ReliabilityTable, ece_statistic
from .measures import Measure, Rows, column, mean_measure, summarise
from .results import ResultRow, RowCollector, SummaryValue
from .statistics import Resampling, Statistic, mean_of_known, safe_ratio


Curve = Callable[[np.ndarray, np.ndarray], Statistic]


def auroc(scores: np.ndarray, targets: np.ndarray) -> float:
    """Area under the ROC curve: probability that a positive case scores higher than a negative one.

    Args:
        scores (`np.ndarray` of shape `(num_cases,)`): Float; higher means more likely positive. Ties count one half.
        targets (`np.ndarray` of shape `(num_cases,)`): `bool`.

    Returns:
        `float` in [0, 1]; NaN unless there are both positive and negative cases.

    Example:
        >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
        0.75
    """
    return auroc_statistic(scores, targets).value(len(scores))


def auprc(scores: np.ndarray, targets: np.ndarray) -> float:
    """Area under the precision-recall curve as average precision: precisions weighted by the increase in recall.

    Args:
        scores (`np.ndarray` of shape `(num_cases,)`): Float; higher means more likely positive.
        targets (`np.ndarray` of shape `(num_cases,)`): `bool`.

    Returns:
        `float` in [0, 1]; NaN unless there are both positive and negative cases.

    Example:
        >>> round(auprc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])), 4)
        0.8333
    """
    return auprc_statistic(scores, targets).value(len(scores))


def auroc_statistic(scores: np.ndarray, targets: np.ndarray) -> Statistic:
    """`auroc` for weighted cases.

    Args:
        scores (`np.ndarray` of shape `(num_cases,)`): Float.
        targets (`np.ndarray` of shape `(num_cases,)`): `bool`.

    Returns:
        `Statistic`: NaN if the positive or the negative cases have no weight.
    """
    order, targets, starts = _sorted_cases(scores, targets)

    def compute(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, order]
        positive = np.add.reduceat(weights * targets, starts, axis=1)
        negative = np.add.reduceat(weights * ~targets, starts, axis=1)
        higher = np.cumsum(positive, axis=1) - positive / 2
        return safe_ratio((higher * negative).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))

    return Statistic(compute, n=len(order))


def auprc_statistic(scores: np.ndarray, targets: np.ndarray) -> Statistic:
    """`auprc` for weighted cases.

    Args:
        scores (`np.ndarray` of shape `(num_cases,)`): Float.
        targets (`np.ndarray` of shape `(num_cases,)`): `bool`.

    Returns:
        `Statistic`: NaN if the positive or the negative cases have no weight.
    """
    order, targets, starts = _sorted_cases(scores, targets)

    def compute(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, order]
        positive = np.add.reduceat(weights * targets, starts, axis=1)
        everyone = np.add.reduceat(weights, starts, axis=1)
        precision = safe_ratio(np.cumsum(positive, axis=1), np.cumsum(everyone, axis=1))
        area = np.where(positive > 0, precision * positive, 0.0).sum(axis=1)
        totals = positive.sum(axis=1)
        return np.where(everyone.sum(axis=1) > totals, safe_ratio(area, totals), np.nan)

    return Statistic(compute, n=len(order))


def _sorted_cases(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order of the cases by descending score, their sorted targets, and the first index of each group of ties."""
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets).astype(bool)
    if scores.ndim != 1 or scores.shape != targets.shape or not len(scores):
        raise ValueError(
            f"`scores` and `targets` must have the same shape (num_cases,), got {scores.shape} and {targets.shape}."
        )
    if np.isnan(scores).any():
        raise ValueError("`scores` has NaN. Check for NaN losses in training.")
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    return order, targets[order], np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))


class ClassificationScores:
    """Accumulates probabilities and classes over batches.

    Args:
        labels (sequence of `str`): Class names in the order of their ids. With two classes, AUROC and AUPRC take the
            second as positive.

    Example:
        >>> scores = ClassificationScores(["left", "right"])
        >>> scores.update(np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0, 1]), image_ids=["a", "b"])
        >>> scores.summary()["accuracy"].value
        1.0
    """

    kind = "classification"

    def __init__(self, labels: Sequence[str]):
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise ValueError(f"`labels` must be at least two distinct names, got {list(labels)}.")
        self.labels = list(labels)
        self.confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
        self._collector = RowCollector()

    @property
    def rows(self) -> list[ResultRow]:
        """Values of each image so far."""
        return self._collector.rows

    def update(
        self,
        probabilities: np.ndarray,
        targets: np.ndarray,
        image_ids: Sequence[str],
        patient_ids: Sequence[str | None] | None = None,
    ) -> None:
        """Add a batch. The predicted class is the most probable one, the first in case of ties.

        Args:
            probabilities (`np.ndarray` of shape `(batch_size, num_labels)`): Float in [0, 1].
            targets (`np.ndarray` of shape `(batch_size,)`): Class ids.
            image_ids (sequence of `batch_size` `str`): Unique over the data set.
            patient_ids (sequence of `batch_size` `str` or `None`, *optional*): Patients, if known.

        Raises:
            ValueError: If shapes do not match, a class id or probability is out of range, or an image occurs twice.
        """
        probabilities, targets = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
        self._check(probabilities, targets)
        self._collector.check(image_ids, patient_ids, len(targets))
        for i, (chances, target) in enumerate(zip(probabilities, targets.tolist(), strict=True)):
            predicted = int(chances.argmax())
            self.confusion[target, predicted] += 1
            values = {
                "target": float(target),
                "predicted": float(predicted),
                "accuracy": float(target == predicted),
                "confidence": float(chances[predicted]),
            }
            values |= {f"probability/{name}": float(p) for name, p in zip(self.labels, chances, strict=True)}
            patient = None if patient_ids is None else patient_ids[i]
            self._collector.add(ResultRow(str(image_ids[i]), patient, values))

    def summary(self, resampling: Resampling | None = None) -> dict[str, SummaryValue]:
        """Compute all summary values with confidence intervals.

        Args:
            resampling (`Resampling`, *optional*): Options of the intervals.

        Returns:
            `dict[str, SummaryValue]`: By name; see docs/metrics.md.
        """
        return summarise(self.rows, classification_measures(self.labels), resampling)

    def reliability(self) -> ReliabilityTable:
        """Reliability of the confidence in the predicted class."""
        table = ReliabilityTable()
        table.update(column(self.rows, "confidence"), column(self.rows, "accuracy"))
        return table

    def _check(self, probabilities: np.ndarray, targets: np.ndarray) -> None:
        if targets.ndim != 1 or probabilities.shape != (len(targets), len(self.labels)):
            raise ValueError(
                f"`probabilities` must have shape (batch_size, {len(self.labels)}) and `targets` (batch_size,), got "
                f"{probabilities.shape} and {targets.shape}."
            )
        # phrased so that NaN is rejected too
        if not ((probabilities >= 0) & (probabilities <= 1 + 1e-6)).all():
            raise ValueError("`probabilities` must be in [0, 1]. Apply the softmax to the logits first.")
        if not np.issubdtype(targets.dtype, np.integer) or not np.isin(targets, np.arange(len(self.labels))).all():
            raise ValueError(
                f"`targets` must be class ids from 0 to {len(self.labels) - 1}, got {np.unique(targets)[:5].tolist()}."
            )


# Summary metrics
# ------------------------------------------------------------------------------------------------------


def classification_measures(labels: Sequence[str]) -> dict[str, Measure]:
    """Metrics that can be computed from classification rows.

    Args:
        labels (sequence of `str`): Class names.

    Returns:
        `dict[str, Measure]`: By name.
    """
    curves = {"auroc": auroc_statistic, "auprc": auprc_statistic}
    chosen = range(1, 2) if len(labels) == 2 else range(len(labels))
    measures = {name: Measure(_over_classes(curve, labels, chosen)) for name, curve in curves.items()}
    measures |= {"accuracy": mean_measure("accuracy"), "balanced_accuracy": Measure(_balanced_accuracy(len(labels)))}
    measures |= {f"recall/{name}": Measure(_recall_of(i)) for i, name in enumerate(labels)}
    if len(labels) > 2:
        for name, curve in curves.items():
            measures |= {f"{name}/{labels[i]}": Measure(_over_classes(curve, labels, [i])) for i in chosen}
    return measures | {"ece": Measure(_ece)}


def _over_classes(curve: Curve, labels: Sequence[str], classes: Sequence[int]) -> Callable[[Rows], Statistic]:
    """One-vs-rest mean over the classes that have both positive and negative cases."""

    def build(rows: Rows) -> Statistic:
        targets = column(rows, "target")
        parts = [curve(column(rows, f"probability/{labels[i]}"), targets == i) for i in classes]

        def compute(weights: np.ndarray) -> np.ndarray:
            return mean_of_known(np.stack([part.compute(weights) for part in parts], axis=1))

        return Statistic(compute, n=len(rows))

    return build


def _recall_of(label: int) -> Callable[[Rows], Statistic]:
    def build(rows: Rows) -> Statistic:
        of_class = (column(rows, "target") == label).astype(np.float64)
        right = of_class * column(rows, "accuracy")
        count = int(of_class.sum())
        return Statistic(lambda weights: safe_ratio(weights @ right, weights @ of_class), count)

    return build


def _balanced_accuracy(num_labels: int) -> Callable[[Rows], Statistic]:
    """Mean recall over the classes that occur."""

    def build(rows: Rows) -> Statistic:
        parts = [_recall_of(label)(rows) for label in range(num_labels)]

        def compute(weights: np.ndarray) -> np.ndarray:
            return mean_of_known(np.stack([part.compute(weights) for part in parts], axis=1))

        return Statistic(compute, n=len(rows))

    return build


def _ece(rows: Rows) -> Statistic:
    sums: dict[str, list[list[float]]] = {}
    for confidence, accuracy in zip(column(rows, "confidence"), column(rows, "accuracy"), strict=True):
        table = ReliabilityTable(NUM_BINS)
        table.update(confidence, accuracy)
        for name, numbers in table.lists().items():
            sums.setdefault(name, []).append(numbers)
    return ece_statistic(*(np.array(sums[name]) for name in ("bin_counts", "bin_confidences", "bin_correct")))
