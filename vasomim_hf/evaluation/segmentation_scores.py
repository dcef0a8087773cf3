"""Segmentation metrics over a data set. Definitions are in docs/metrics.md."""

from collections.abc import Callable, Sequence

import numpy as np

from .calibration import ReliabilityTable, ece_statistic, top_label
from .mask_metrics import MASK_METRICS, mask_metrics, ratio
from .measures import Measure, Rows, column, list_columns, mean_measure, summarise
from .results import ResultRow, RowCollector, SummaryValue
from .statistics import Resampling, Statistic, mean_of_known, safe_ratio


IGNORE_INDEX = 255

# ratios of summed true positives, false positives and false negatives
_POOLED: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "dice": lambda tp, fp, fn: safe_ratio(2 * tp, 2 * tp + fp + fn),
    "iou": lambda tp, fp, fn: safe_ratio(tp, tp + fp + fn),
    "sensitivity": lambda tp, fp, fn: safe_ratio(tp, tp + fn),
    "precision": lambda tp, fp, fn: safe_ratio(tp, tp + fp),
}


class SegmentationScores:
    """Accumulates segmentation metrics over batches; keeps a few numbers per image.

    Label 0 is background. Mask metrics treat all other labels as one foreground; with more than two labels there are
    also Dice and IoU per class.

    Args:
        labels (sequence of `str`): Label names in the order of their ids, background first.
        ignore_index (`int`): Target pixels with this id are excluded: they count as background in both maps.

    Example:
        >>> scores = SegmentationScores(["background", "vessel"])
        >>> target = np.zeros((1, 4, 4), dtype=np.uint8)
        >>> target[0, 1] = 1
        >>> scores.update(target, target, image_ids=["a"])
        >>> scores.summary()["dice"].value
        1.0
    """

    kind = "segmentation"

    def __init__(self, labels: Sequence[str] = ("background", "vessel"), ignore_index: int = IGNORE_INDEX):
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise ValueError(f"`labels` must be at least two distinct names, background first, got {list(labels)}.")
        if 0 <= ignore_index < len(labels):
            raise ValueError(f"`ignore_index` must not be a label id (0 to {len(labels) - 1}), got {ignore_index}.")
        self.labels = list(labels)
        self.ignore_index = ignore_index
        self.confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
        self.reliability = ReliabilityTable()
        self._collector = RowCollector()

    @property
    def rows(self) -> list[ResultRow]:
        """Values of each image so far."""
        return self._collector.rows

    def update(
        self,
        predictions: np.ndarray,
        targets: np.ndarray,
        image_ids: Sequence[str],
        patient_ids: Sequence[str | None] | None = None,
        probabilities: np.ndarray | None = None,
    ) -> None:
        """Add a batch.

        Args:
            predictions (`np.ndarray` of shape `(batch_size, height, width)`): Label ids.
            targets (`np.ndarray` of shape `(batch_size, height, width)`): Label ids, or `ignore_index`.
            image_ids (sequence of `batch_size` `str`): Unique over the data set.
            patient_ids (sequence of `batch_size` `str` or `None`, *optional*): Patients, if known.
            probabilities (`np.ndarray` of shape `(batch_size, num_labels, height, width)`, *optional*):
                Float in [0, 1], to score calibration; pass it in all batches or in none.

        Raises:
            ValueError: If shapes do not match, a label id is out of range, or an image occurs twice.
        """
        predictions, targets = np.asarray(predictions), np.asarray(targets)
        self._check(predictions, targets, probabilities)
        self._collector.check(image_ids, patient_ids, len(targets))
        for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
            self._check_labels(prediction, target, image_ids[i])
        for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
            values = self._values(prediction, target)
            table = None if probabilities is None else self._reliability(probabilities[i], target)
            if table is not None:
                values["ece"] = table.ece()
            patient = None if patient_ids is None else patient_ids[i]
            lists = {} if table is None else table.lists()
            self._collector.add(ResultRow(str(image_ids[i]), patient, values, lists))

    def summary(self, resampling: Resampling | None = None) -> dict[str, SummaryValue]:
        """Compute all summary values with confidence intervals.

        Args:
            resampling (`Resampling`, *optional*): Options of the intervals.

        Returns:
            `dict[str, SummaryValue]`: By name; see docs/metrics.md.
        """
        return summarise(self.rows, segmentation_measures(self.labels, self.rows), resampling)

    def _check(self, predictions: np.ndarray, targets: np.ndarray, probabilities: np.ndarray | None) -> None:
        if predictions.ndim != 3 or predictions.shape != targets.shape:
            raise ValueError(
                "`predictions` and `targets` must have the same shape (batch_size, height, width), got "
                f"{predictions.shape} and {targets.shape}. Resize the predictions to the annotated frame."
            )
        for name, maps in (("predictions", predictions), ("targets", targets)):
            if maps.dtype != bool and not np.issubdtype(maps.dtype, np.integer):
                raise ValueError(
                    f"`{name}` must be label ids (integers), got {maps.dtype}. Take the argmax of the logits."
                )
        expected = (len(targets), len(self.labels), *targets.shape[1:])
        if probabilities is not None and probabilities.shape != expected:
            raise ValueError(f"`probabilities` must have shape {expected}, got {probabilities.shape}.")
        # phrased so that NaN is rejected too
        if probabilities is not None and not ((probabilities >= 0) & (probabilities <= 1 + 1e-6)).all():
            raise ValueError("`probabilities` must be in [0, 1]. Apply the softmax to the logits first.")
        if self.rows and ("ece" in self.rows[0].values) != (probabilities is not None):
            raise ValueError("`probabilities` must be passed with all batches or with none.")

    def _check_labels(self, prediction: np.ndarray, target: np.ndarray, image_id: str) -> None:
        for name, ids in (("prediction", prediction), ("target", target[target != self.ignore_index])):
            if ids.size and (ids.min() < 0 or ids.max() >= len(self.labels)):
                wrong = sorted({int(i) for i in np.unique(ids) if not 0 <= i < len(self.labels)})
                raise ValueError(
                    f"The {name} of image {image_id!r} has label ids {wrong[:5]}; expected 0 to "
                    f"{len(self.labels) - 1} for {len(self.labels)} labels. Remap the ids, or mark pixels to ignore "
                    f"with {self.ignore_index}."
                )

    def _values(self, prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
        counted = target != self.ignore_index
        size = len(self.labels)
        pairs = target[counted].astype(np.int64) * size + prediction[counted]
        confusion = np.bincount(pairs, minlength=size**2).reshape(size, size)
        self.confusion += confusion
        found = (prediction > 0) & counted
        values = mask_metrics(found, (target > 0) & counted)
        # ignored pixels must not count as true negatives
        inside = int(confusion[1:, 1:].sum())
        outside = int(confusion[0, 0])
        counts = {"tp": inside, "fp": int(confusion[0, 1:].sum()), "fn": int(confusion[1:, 0].sum()), "tn": outside}
        values["specificity"] = ratio(outside, outside + counts["fp"])
        values |= {name: float(count) for name, count in counts.items()}
        return values | (_class_values(self.labels, confusion) if size > 2 else {})

    def _reliability(self, probabilities: np.ndarray, target: np.ndarray) -> ReliabilityTable:
        table = ReliabilityTable()
        confidence, correct = top_label(probabilities, target, self.ignore_index)
        table.update(confidence, correct)
        self.reliability.counts += table.counts
        self.reliability.confidences += table.confidences
        self.reliability.correct += table.correct
        return table


def _class_values(labels: Sequence[str], confusion: np.ndarray) -> dict[str, float]:
    """Per foreground label: counts if it occurs, ratios if it occurs in the target."""
    values: dict[str, float] = {}
    for i, name in enumerate(labels[1:], start=1):
        tp = float(confusion[i, i])
        fp, fn = float(confusion[:, i].sum()) - tp, float(confusion[i].sum()) - tp
        if tp + fp + fn:
            values |= {f"tp/{name}": tp, f"fp/{name}": fp, f"fn/{name}": fn}
        if tp + fn:
            values |= {f"dice/{name}": ratio(2 * tp, 2 * tp + fp + fn), f"iou/{name}": ratio(tp, tp + fp + fn)}
    return values


# Summary metrics
# ------------------------------------------------------------------------------------------------------


def segmentation_measures(labels: Sequence[str], rows: Rows) -> dict[str, Measure]:
    """Metrics that can be computed from segmentation rows.

    Args:
        labels (sequence of `str`): Label names, background first.
        rows (sequence of `ResultRow`): Rows; the first one shows whether calibration was scored.

    Returns:
        `dict[str, Measure]`: By name.
    """
    measures = {name: mean_measure(name) for name in MASK_METRICS}
    measures |= {f"pooled_{name}": _pooled(name) for name in _POOLED}
    if len(labels) > 2:
        for name in ("dice", "iou"):
            measures |= {f"mean_class_{name}": _mean_over_classes(name, labels[1:])}
            measures |= {f"pooled_mean_class_{name}": _pooled_mean_over_classes(name, labels[1:])}
        for label in labels[1:]:
            measures |= {f"{name}/{label}": mean_measure(f"{name}/{label}") for name in ("dice", "iou")}
            measures |= {f"pooled_{name}/{label}": _pooled(name, label) for name in ("dice", "iou")}
    if rows and "ece" in rows[0].values:
        measures |= {"ece": mean_measure("ece"), "pooled_ece": Measure(_pooled_ece)}
    return measures


def _counts(rows: Rows, label: str | None) -> list[np.ndarray]:
    names = [name if label is None else f"{name}/{label}" for name in ("tp", "fp", "fn")]
    return [column(rows, name, missing=0.0) for name in names]


def _pooled(name: str, label: str | None = None) -> Measure:
    def build(rows: Rows) -> Statistic:
        counts = _counts(rows, label)
        return Statistic(lambda weights: _POOLED[name](*(weights @ count for count in counts)), n=len(rows))

    return Measure(build)


def _mean_over_classes(name: str, labels: Sequence[str]) -> Measure:
    def build(rows: Rows) -> Statistic:
        values = np.stack([column(rows, f"{name}/{label}") for label in labels], axis=1)
        known = ~np.isnan(values)
        filled = np.where(known, values, 0.0)
        any_class = int(known.any(axis=1).sum())

        def compute(weights: np.ndarray) -> np.ndarray:
            return mean_of_known(safe_ratio(weights @ filled, weights @ known.astype(np.float64)))

        return Statistic(compute, n=any_class, undefined=len(rows) - any_class)

    return Measure(build)


def _pooled_mean_over_classes(name: str, labels: Sequence[str]) -> Measure:
    def build(rows: Rows) -> Statistic:
        tp, fp, fn = (np.stack(c, axis=1) for c in zip(*(_counts(rows, label) for label in labels), strict=True))

        def compute(weights: np.ndarray) -> np.ndarray:
            sums = weights @ tp, weights @ fp, weights @ fn
            return mean_of_known(np.where(sums[0] + sums[2] > 0, _POOLED[name](*sums), np.nan))

        return Statistic(compute, n=len(rows))

    return Measure(build)


def _pooled_ece(rows: Rows) -> Statistic:
    return ece_statistic(*(list_columns(rows, name) for name in ("bin_counts", "bin_confidences", "bin_correct")))
