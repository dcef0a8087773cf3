"""Detection metrics over a data set: COCO average precision, and sensitivity at fixed false-positive rates.

Boxes are matched by pycocotools, which also computes the reported average precision. Its accumulation is repeated here
with weights for intervals and comparisons; with unit weights both give the same value. Definitions are in
docs/metrics.md.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..import_utils import require
from .measures import Measure, Rows, summarise
from .results import ResultRow, RowCollector, SummaryValue
from .statistics import Resampling, Statistic, Weighing, mean_of_known, safe_ratio


IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100
FALSE_POSITIVES = (0.1, 0.5, 1.0, 2.0)

# Bits of `matches`: ten IoU thresholds, then the centre-in-box criterion.
_ALL = range(len(IOU_THRESHOLDS))
_IOU_50, _IOU_75, _CENTRE = 0, 5, len(IOU_THRESHOLDS)


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of an image.

    Args:
        corners (`np.ndarray` of shape `(num_boxes, 4)`): Left, top, right and bottom in pixels.
        labels (`np.ndarray` of shape `(num_boxes,)`): Category ids, from 0.
        scores (`np.ndarray` of shape `(num_boxes,)`, *optional*): Confidence of predicted boxes.
    """

    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None

    @classmethod
    def from_coco(cls, boxes: Sequence[Sequence[float]], labels: Sequence[int]) -> "Boxes":
        """Create annotated boxes from COCO format.

        Args:
            boxes (sequence of shape `(num_boxes, 4)`): Left, top, width and height in pixels.
            labels (sequence of `num_boxes` `int`): Category ids, from 0.

        Returns:
            `Boxes`: Without scores.
        """
        corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        return cls(corners, np.array(labels, dtype=np.int64))


class DetectionScores:
    """Accumulates predicted and annotated boxes; keeps the 100 highest-scoring predictions per category and image.

    Args:
        labels (sequence of `str`): Category names in the order of their ids, without background.

    Example:
        >>> scores = DetectionScores(["stenosis"])
        >>> target = Boxes.from_coco([[10, 10, 20, 20]], [0])
        >>> found = Boxes(np.array([[10.0, 10.0, 30.0, 29.0]]), np.array([0]), np.array([0.9]))
        >>> scores.update([found], [target], image_ids=["a"])
        >>> round(scores.summary()["ap75"].value, 3)
        1.0
    """

    kind = "detection"

    def __init__(self, labels: Sequence[str]):
        if not labels or len(set(labels)) != len(labels):
            raise ValueError(f"`labels` must be distinct category names, at least one, got {list(labels)}.")
        self.labels = list(labels)
        self._collector = RowCollector()
        self._annotations: list[dict[str, Any]] = []
        self._detections: list[dict[str, Any]] = []
        self._centre_hits: list[dict[int, list[bool]]] = []
        self._rows: list[ResultRow] | None = None
        self._official: dict[str, float] = {}

    @property
    def rows(self) -> list[ResultRow]:
        """Values of each image so far; boxes are matched on access."""
        if self._rows is None:
            self._rows = self._matched_rows()
        return self._rows

    def update(
        self,
        predictions: Sequence[Boxes],
        targets: Sequence[Boxes],
        image_ids: Sequence[str],
        patient_ids: Sequence[str | None] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            predictions (sequence of `Boxes`): With scores; may be empty.
            targets (sequence of `Boxes`): Annotated boxes; may be empty.
            image_ids (sequence of `str`): Unique over the data set.
            patient_ids (sequence of `str` or `None`, *optional*): Patients, if known.

        Raises:
            ValueError: If lengths do not match, a box is invalid, or an image occurs twice.
        """
        if len(predictions) != len(targets):
            raise ValueError(f"Each image needs predictions and targets, got {len(predictions)} and {len(targets)}.")
        self._collector.check(image_ids, patient_ids, len(targets))
        for image_id, prediction, target in zip(image_ids, predictions, targets, strict=True):
            _check_boxes(prediction, len(self.labels), f"The prediction of image {image_id!r}", is_target=False)
            _check_boxes(target, len(self.labels), f"The target of image {image_id!r}", is_target=True)
        self._rows = None
        for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
            best = _best(prediction, len(self.labels))
            patient = None if patient_ids is None else patient_ids[i]
            self._collector.add(ResultRow(str(image_ids[i]), patient, {}))
            number = len(self._collector.rows)
            self._annotations += _annotations(target, number, len(self._annotations))
            self._detections += _annotations(best, number, len(self._detections))
            self._centre_hits.append(_centre_hits(best, target, len(self.labels)))

    def summary(self, resampling: Resampling | None = None) -> dict[str, SummaryValue]:
        """Compute all summary values with confidence intervals.

        Args:
            resampling (`Resampling`, *optional*): Options of the intervals.

        Returns:
            `dict[str, SummaryValue]`: By name; see docs/metrics.md.
        """
        rows = self.rows
        summary = summarise(rows, detection_measures(self.labels), resampling)
        return {name: replace(entry, value=self._official.get(name, entry.value)) for name, entry in summary.items()}

    def _matched_rows(self) -> list[ResultRow]:
        kept = self._collector.rows
        if not kept:
            return []
        images = self._evaluate(len(kept))
        rows = []
        for number, row in enumerate(kept, start=1):
            lists: dict[str, list[float]] = {"scores": [], "labels": [], "matches": [], "target_labels": []}
            for label in range(len(self.labels)):
                _extend(lists, images.get((number, label)), label, self._centre_hits[number - 1][label])
            rows.append(replace(row, values=_image_values(lists), lists=lists))
        return rows

    def _evaluate(self, num_images: int) -> dict[tuple[int, int], dict[str, Any]]:
        """Results of pycocotools by image index and category id."""
        evaluator = require("pycocotools.cocoeval", extra="eval").COCOeval
        categories = [{"id": i, "name": name} for i, name in enumerate(self.labels)]
        content = {"images": [{"id": i + 1} for i in range(num_images)], "categories": categories}
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = evaluator(
                _as_coco(content | {"annotations": self._annotations}),
                _as_coco(content | {"annotations": self._detections}),
                "bbox",
            )
            evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
            evaluation.params.maxDets = [MAX_DETECTIONS]
            evaluation.evaluate()
            evaluation.accumulate()
        precisions, recalls = evaluation.eval["precision"], evaluation.eval["recall"]
        self._official = {
            "ap": _mean_of_defined(precisions),
            "ap50": _mean_of_defined(precisions[_IOU_50]),
            "ap75": _mean_of_defined(precisions[_IOU_75]),
            "recall": _mean_of_defined(recalls),
            "recall50": _mean_of_defined(recalls[_IOU_50]),
        }
        return {(found["image_id"], found["category_id"]): found for found in evaluation.evalImgs if found}


def _check_boxes(boxes: Boxes, num_labels: int, what: str, is_target: bool) -> None:
    corners, labels = np.asarray(boxes.corners, dtype=np.float64), np.asarray(boxes.labels)
    if corners.size and (corners.ndim != 2 or corners.shape[1] != 4):
        raise ValueError(f"{what} must have corners of shape (num_boxes, 4), got {corners.shape}.")
    if len(labels) != len(corners):
        raise ValueError(f"{what} has {len(corners)} boxes and {len(labels)} labels. Each box needs one.")
    if not np.isfinite(corners).all():
        raise ValueError(f"{what} has corners that are not finite. Check for NaN losses in training.")
    if len(labels) and (labels.min() < 0 or labels.max() >= num_labels):
        raise ValueError(
            f"{what} has labels {sorted(set(labels.tolist()))[:5]}; expected ids from 0 to {num_labels - 1}."
        )
    sizes = corners[:, 2:] - corners[:, :2] if len(corners) else np.ones((0, 2))
    if (sizes < 0).any() or (is_target and (sizes == 0).any()):
        raise ValueError(
            f"{what} has a box with zero area or swapped corners, such as "
            f"{corners[(sizes <= 0).any(axis=1)][0].tolist()}. Corners are left, top, right, bottom."
        )
    if is_target:
        return
    if boxes.scores is None or np.shape(boxes.scores) != (len(corners),) or not np.isfinite(boxes.scores).all():
        raise ValueError(f"{what} must have one finite score per box for its {len(corners)} boxes.")


def _best(boxes: Boxes, num_labels: int) -> Boxes:
    """The 100 highest-scoring boxes of each category, by descending score; ties keep their order."""
    scores = np.asarray(boxes.scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    labels = np.asarray(boxes.labels)[order]
    kept = [order[labels == label][:MAX_DETECTIONS] for label in range(num_labels)]
    chosen = np.concatenate(kept).astype(np.int64)
    corners = np.asarray(boxes.corners, dtype=np.float64).reshape(-1, 4)
    return Boxes(corners[chosen], np.asarray(boxes.labels)[chosen], scores[chosen])


def _annotations(boxes: Boxes, image: int, known: int) -> list[dict[str, Any]]:
    """Convert to COCO annotations; ids start at 1, because pycocotools reads a match with id 0 as no match."""
    corners = np.asarray(boxes.corners, dtype=np.float64).reshape(-1, 4)
    sizes = corners[:, 2:] - corners[:, :2]
    scores = np.zeros(len(corners)) if boxes.scores is None else boxes.scores
    return [
        {
            "id": known + 1 + i,
            "image_id": image,
            "category_id": int(boxes.labels[i]),
            "bbox": [*corners[i, :2].tolist(), *sizes[i].tolist()],
            "area": float(sizes[i].prod()),
            "iscrowd": 0,
            "score": float(scores[i]),
        }
        for i in range(len(corners))
    ]


def _as_coco(content: dict[str, Any]) -> Any:
    coco = require("pycocotools.coco", extra="eval").COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _mean_of_defined(values: np.ndarray) -> float:
    """Mean without -1, which pycocotools uses for undefined values."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")


def _centre_hits(prediction: Boxes, target: Boxes, num_labels: int) -> dict[int, list[bool]]:
    """For each category and each of its predictions by descending score: is its centre inside an unmatched box?

    If inside several boxes, it is matched to the one with the nearest centre.
    """
    hits: dict[int, list[bool]] = {}
    for label in range(num_labels):
        boxes = np.asarray(target.corners, dtype=np.float64).reshape(-1, 4)[np.asarray(target.labels) == label]
        free = np.ones(len(boxes), dtype=bool)
        hits[label] = []
        for corners in prediction.corners[prediction.labels == label]:
            centre = (corners[:2] + corners[2:]) / 2
            inside = free & (centre >= boxes[:, :2]).all(axis=1) & (centre <= boxes[:, 2:]).all(axis=1)
            hits[label].append(bool(inside.any()))
            if inside.any():
                away = ((boxes[:, :2] + boxes[:, 2:]) / 2 - centre) ** 2
                free[np.where(inside, away.sum(axis=1), np.inf).argmin()] = False
    return hits


def _extend(lists: dict[str, list[float]], found: dict[str, Any] | None, label: int, centre: list[bool]) -> None:
    """Append a category to the lists of an image; each bit of `matches` is one criterion."""
    if found is None:
        return
    bits = np.concatenate([found["dtMatches"] > 0, np.array(centre, dtype=bool)[None]])
    lists["scores"] += found["dtScores"]
    lists["labels"] += [label] * bits.shape[1]
    lists["matches"] += (bits * (1 << np.arange(len(bits)))[:, None]).sum(axis=0).tolist()
    lists["target_labels"] += [label] * len(found["gtIds"])


def _image_values(lists: dict[str, list[float]]) -> dict[str, float]:
    return {
        "num_targets": float(len(lists["target_labels"])),
        "num_predictions": float(len(lists["scores"])),
        "num_found": float(sum(int(bits) & 1 for bits in lists["matches"])),
    }


# Summary metrics
# ------------------------------------------------------------------------------------------------------


def detection_measures(labels: Sequence[str]) -> dict[str, Measure]:
    """Metrics that can be computed from detection rows.

    Args:
        labels (sequence of `str`): Category names.

    Returns:
        `dict[str, Measure]`: By name.
    """
    count = len(labels)
    measures = {
        "ap": Measure(_over_categories(_average_precision, _ALL, count)),
        "ap50": Measure(_over_categories(_average_precision, [_IOU_50], count)),
        "ap75": Measure(_over_categories(_average_precision, [_IOU_75], count)),
        "recall": Measure(_over_categories(_recall, _ALL, count)),
        "recall50": Measure(_over_categories(_recall, [_IOU_50], count)),
    }
    for rate in FALSE_POSITIVES:
        measures[f"sensitivity_at_{rate:g}_fp"] = Measure(_sensitivity_at(rate, _IOU_50))
    for rate in FALSE_POSITIVES:
        measures[f"centre_sensitivity_at_{rate:g}_fp"] = Measure(_sensitivity_at(rate, _CENTRE))
    return measures


@dataclass(frozen=True, eq=False)
class _Found:
    """Predictions of all images by descending score, (D,): scores, image indices, bits; and targets per image,
    (N,)."""

    scores: np.ndarray
    images: np.ndarray
    bits: np.ndarray
    targets: np.ndarray

    @classmethod
    def gather(cls, rows: Rows, label: int | None = None) -> "_Found":
        chosen = [np.array(row.lists["labels"]) == label if label is not None else ... for row in rows]
        scores = [np.array(row.lists["scores"])[one] for row, one in zip(rows, chosen, strict=True)]
        bits = [np.array(row.lists["matches"])[one] for row, one in zip(rows, chosen, strict=True)]
        images = np.repeat(np.arange(len(rows)), [len(one) for one in scores])
        joined = np.concatenate(scores)
        order = np.argsort(-joined, kind="stable")
        kinds = [row.lists["target_labels"] for row in rows]
        targets = np.array([len(kind) if label is None else kind.count(label) for kind in kinds], dtype=np.float64)
        return cls(joined[order], images[order], np.concatenate(bits)[order].astype(np.int64), targets)

    def is_right(self, place: int) -> np.ndarray:
        """(D,) bool: which predictions are true positives by a criterion."""
        return (self.bits >> place & 1).astype(bool)

    def counted(self, chosen: np.ndarray, stops: np.ndarray) -> Weighing:
        """Number of chosen predictions (D,) up to each stop (S,): weights (R, N) -> (R, S)."""
        where = np.flatnonzero(chosen)
        segments = np.searchsorted(stops, where, side="left")
        inside = segments < len(stops)
        content = np.ones(int(inside.sum())), (segments[inside], self.images[where[inside]])
        # sparse: few images have a box between two stops
        matrix = require("scipy.sparse", extra="eval").csr_array(content, shape=(len(stops), len(self.targets)))
        return lambda weights: np.cumsum((matrix @ weights.T).T, axis=1)


def _over_categories(
    curve: Callable[[_Found, Sequence[int]], Weighing], places: Sequence[int], num_labels: int
) -> Callable[[Rows], Statistic]:
    """Mean over the categories with targets."""

    def build(rows: Rows) -> Statistic:
        curves = [curve(_Found.gather(rows, label), places) for label in range(num_labels)]

        def compute(weights: np.ndarray) -> np.ndarray:
            # in blocks: a data set has many more boxes than images
            parts = np.array_split(weights, max(1, len(weights) // 64))
            return np.concatenate([mean_of_known(np.stack([one(part) for one in curves], axis=1)) for part in parts])

        return Statistic(compute, n=len(rows))

    return build


def _average_precision(found: _Found, places: Sequence[int]) -> Weighing:
    """Mean over 101 recalls of the highest precision at that recall or above, as in `COCOeval.accumulate`.

    Precision only falls at false positives, so it is evaluated at true positives only.
    """
    right_somewhere = np.any([found.is_right(place) for place in places], axis=0)
    stops = np.flatnonzero(right_somewhere)
    everything = found.counted(np.ones(len(found.scores), dtype=bool), stops)
    right = [found.is_right(place)[stops] for place in places]
    images = found.images[stops]

    def compute(weights: np.ndarray) -> np.ndarray:
        counts, totals = everything(weights), weights @ found.targets
        of_stops = weights[:, images]
        areas = [_areas(np.cumsum(of_stops[:, one], axis=1), counts[:, one], totals) for one in right]
        return np.mean(areas, axis=0)

    return compute


def _areas(right: np.ndarray, counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """True positives and predictions (R, S) up to each true positive, and targets (R,) -> (R,)."""
    precision = right / (counts + np.spacing(1))
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.full(len(totals), np.nan)
    for i in np.flatnonzero(totals > 0):
        reached = np.searchsorted(right[i] / totals[i], RECALLS, side="left")
        result[i] = highest[i, reached[reached < right.shape[1]]].sum() / len(RECALLS)
    return result


def _recall(found: _Found, places: Sequence[int]) -> Weighing:
    """Fraction of the targets found at any score, averaged over the IoU thresholds."""
    size = len(found.targets)
    hits = np.mean([np.bincount(found.images[found.is_right(place)], minlength=size) for place in places], axis=0)
    return lambda weights: safe_ratio(weights @ hits, weights @ found.targets)


def _sensitivity_at(rate: float, place: int) -> Callable[[Rows], Statistic]:
    """Highest sensitivity at a score threshold with on average at most `rate` false positives per image."""

    def build(rows: Rows) -> Statistic:
        found = _Found.gather(rows)
        right = found.is_right(place)
        # a threshold cannot separate boxes with equal scores
        stops = np.unique(np.searchsorted(-found.scores, -found.scores[right], side="right") - 1)
        counted = found.counted(right, stops), found.counted(~right, stops)

        def compute(weights: np.ndarray) -> np.ndarray:
            hits, wrong = counted[0](weights), counted[1](weights)
            allowed = wrong <= rate * weights.sum(axis=1, keepdims=True) + 1e-9
            most = np.max(np.where(allowed, hits, 0.0), axis=1, initial=0.0)
            return safe_ratio(most, weights @ found.targets)

        return Statistic(compute, n=len(rows))

    return build
