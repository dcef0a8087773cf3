"""Detection, for example of stenoses: boxes with classes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForObjectDetection, EvalPrediction
from transformers.utils import ModelOutput

from ...data.augmentation import Size, augment_boxes
from ...evaluation.detection_metrics import Boxes, DetectionScores
from ...evaluation.results import ResultRow
from ...image_processing_vasomim import VasoMIMImageProcessor
from ...inference.prediction import InferenceOptions, predict_boxes
from ...modeling_vasomim_detection import VasoMIMForObjectDetection
from .painting import DRAWN_SCORE, FALSE, MISSED, LegendEntry, draw_boxes, grey_panel
from .task import DETECTION, NO_INTERVALS, KeptLabel, LabelContext, ScoredFrame, Task, View, to_array


# Boxes with a shorter side than this, in pixels of the model's input, are not learned
SHORTEST_SIDE = 1.0


class RelativeBoxes(NamedTuple):
    """Boxes relative to their frame.

    Args:
        corners (`np.ndarray` of shape `(num_boxes, 4)`): Left, top, right and bottom in [0, 1], float32.
        labels (`np.ndarray` of shape `(num_boxes,)`): Class ids, int64.
    """

    corners: np.ndarray
    labels: np.ndarray


class Detection(Task):
    """Boxes with classes; a frame without boxes is one without a finding."""

    kind = DETECTION
    column = "objects"
    model_class = VasoMIMForObjectDetection
    auto_class = AutoModelForObjectDetection
    model_endings = ("ForObjectDetection",)
    metrics = ("loss", "ap50", "ap75", "ap", "recall50", "sensitivity_at_1_fp")
    default_metric = "ap50"
    measures = "ap50"
    labels_example = "{0: stenosis}"

    def class_feature(self, feature: Any) -> Any:
        """The feature of the categories; see [`Task.class_feature`]."""
        return feature["category"]

    def read(self, label: Any, context: LabelContext) -> RelativeBoxes:
        """Boxes of a row's `objects`, clipped to the frame; see [`Task.read`]."""
        return corner_boxes(label, context)

    def classes_in(self, label: RelativeBoxes) -> np.ndarray:
        """Classes of the boxes, of shape `(num_classes,)`; see [`Task.classes_in`]."""
        return np.unique(label.labels)

    def keep(self, label: RelativeBoxes, size: Size, num_labels: int, is_training: bool) -> KeptLabel:
        """The boxes; see [`Task.keep`]."""
        return KeptLabel(None, label)

    def training_label(self, label: KeptLabel, view: View) -> dict[str, torch.Tensor]:
        """`class_labels` and `boxes` of the boxes that stay in the frame; see [`Task.training_label`]."""
        corners, labels = label.value
        boxes, kept = augment_boxes(corners, view.augmentation, view.frame, view.kept_box_share)
        is_box = ((boxes[:, 2:] - boxes[:, :2]) * view.result >= SHORTEST_SIDE).all(axis=1)
        return box_labels(boxes[is_box], labels[kept][is_box])

    def make_meter(self, labels: Sequence[str], image_processor: VasoMIMImageProcessor, size: int) -> "DetectionMeter":
        """See [`Task.make_meter`]."""
        return DetectionMeter(labels, image_processor, size)

    def target(self, label: RelativeBoxes, size: Size) -> Boxes:
        """Boxes in pixels; see [`Task.target`]."""
        return Boxes(label.corners.astype(np.float64) * [*size, *size], label.labels)

    def predict(
        self,
        model: nn.Module,
        image_processor: Any,
        pixel_values: torch.Tensor,
        sizes: list[tuple[int, int]],
        options: InferenceOptions,
    ) -> list[Boxes]:
        """Boxes in pixels, from frames of shape `(batch_size, num_channels, height, width)`; see [`Task.predict`]."""
        output = predict_boxes(model, pixel_values, options)
        found = image_processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
        return [_found_boxes(item) for item in found]

    def make_scores(self, labels: Sequence[str]) -> DetectionScores:
        """See [`Task.make_scores`]."""
        return DetectionScores(labels)

    def add(self, scores: DetectionScores, frame: ScoredFrame, patient_id: str | None) -> None:
        """See [`Task.add`]."""
        scores.update([frame.prediction], [frame.target], [frame.image_id], [patient_id])

    def rank(self, row: ResultRow) -> float:
        """Scores of true positives, minus those of false positives and the number of missed boxes; see [`Task.rank`]."""
        found = zip(row.lists["scores"], row.lists["matches"], strict=True)
        # the lowest bit is set if IoU with a target is at least 0.5
        signed = [score if int(bits) & 1 else -score for score, bits in found]
        return sum(signed) - (row.values["num_targets"] - row.values["num_found"])

    def describe(self, frame: ScoredFrame, row: ResultRow, labels: Sequence[str]) -> str:
        """See [`Task.describe`]."""
        return _counts(int(row.values["num_targets"]), frame)

    def caption(self, frame: ScoredFrame, labels: Sequence[str]) -> str:
        """See [`Task.caption`]."""
        return _counts(len(frame.target.labels), frame)

    def panels(self, frame: ScoredFrame, labels: Sequence[str]) -> list[Image.Image]:
        """The frame, and the frame with boxes; see [`Task.panels`]."""
        grey = grey_panel(frame.frame)
        return [grey, draw_boxes(grey, max(frame.frame.shape), frame.target, frame.prediction, labels)]

    def legend(self, labels: Sequence[str], present: set[int]) -> list[LegendEntry]:
        """See [`Task.legend`]."""
        return [(MISSED, "annotated"), (FALSE, f"predicted, with score, if at least {DRAWN_SCORE}")]


def _counts(num_targets: int, frame: ScoredFrame) -> str:
    count = int((frame.prediction.scores >= DRAWN_SCORE).sum())
    return f"{num_targets} annotated, {count} predicted (score >= {DRAWN_SCORE})"


def corner_boxes(objects: Any, context: LabelContext) -> RelativeBoxes:
    """Boxes as corners relative to the frame.

    Args:
        objects (`dict`): `bbox`, left, top, width and height in pixels of each, and `category`.
        context (`LabelContext`): The frame; its report collects boxes without an area inside the frame, which are skipped.

    Returns:
        `RelativeBoxes`: The other boxes, clipped to the frame.

    Raises:
        ValueError: If there are not as many categories as boxes, or a category is no class.
    """
    given, categories = (objects or {}).get("bbox") or [], (objects or {}).get("category") or []
    if len(given) != len(categories) or any(len(box) != 4 for box in given):
        raise ValueError(
            f"{context.name}: {len(given)} boxes of four numbers need as many categories, got {len(categories)}."
        )
    boxes = np.array(given, dtype=np.float64).reshape(-1, 4)
    labels = np.array(categories, dtype=np.int64)
    if len(labels) and not (labels.min() >= 0 and labels.max() < context.num_labels):
        raise ValueError(
            f"{context.name}: categories must be ids from 0 to {context.num_labels - 1}, got "
            f"{sorted(set(labels.tolist()))[:5]}. Correct them, or name all classes in `labels`."
        )
    sides = np.array([*context.size, *context.size], dtype=np.float64)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    cut = (corners / sides).clip(0, 1)
    has_area = (boxes[:, 2:] > 0).all(axis=1) & ((cut[:, 2:] - cut[:, :2]) * sides[:2] > 1e-3).all(axis=1)
    is_box = np.isfinite(boxes).all(axis=1) & has_area
    for box in boxes[~is_box]:
        context.faults.add(context.name, f"box {np.round(box, 2).tolist()} has no area inside the frame; skipped")
    return RelativeBoxes(cut[is_box].astype(np.float32), labels[is_box])


def box_labels(corners: np.ndarray, labels: np.ndarray) -> dict[str, torch.Tensor]:
    """Labels of one frame for a detector.

    Args:
        corners (`np.ndarray` of shape `(num_boxes, 4)`): Left, top, right and bottom relative to the frame.
        labels (`np.ndarray` of shape `(num_boxes,)`): Class ids.

    Returns:
        `dict`: `class_labels` of shape `(num_boxes,)`, int64, and `boxes` of shape `(num_boxes, 4)`, float32: centre x,
        centre y, width and height.
    """
    centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    boxes = np.concatenate([centres, sizes], axis=1).astype(np.float32)
    return {"class_labels": torch.from_numpy(labels.astype(np.int64)), "boxes": torch.from_numpy(boxes)}


def _found_boxes(item: dict[str, torch.Tensor]) -> Boxes:
    """Boxes of one frame from `post_process_object_detection`."""
    corners, labels, scores = (item[name].numpy(force=True) for name in ("boxes", "labels", "scores"))
    return Boxes(corners.astype(np.float64), labels, scores.astype(np.float64))


class DetectionMeter:
    """COCO average precision at the input size of the model.

    Args:
        labels (sequence of `str`): Class names.
        image_processor (`VasoMIMImageProcessor`): Converts outputs to boxes.
        size (`int`): Input size in pixels.
    """

    def __init__(self, labels: Sequence[str], image_processor: VasoMIMImageProcessor, size: int):
        self.labels = list(labels)
        self.image_processor = image_processor
        self.size = size
        self._reset()

    def _reset(self) -> None:
        self.scores = DetectionScores(self.labels)
        self.count = 0

    def choose(self, logits: Any, labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of shape `(batch_size, num_queries, num_labels)` and boxes of shape `(batch_size, num_queries, 4)`."""
        found = [part for part in logits if isinstance(part, torch.Tensor) and part.ndim == 3]
        return found[0], found[1]

    def __call__(self, prediction: EvalPrediction, compute_result: bool = False) -> dict[str, float]:
        """Add a batch of logits and boxes, and of labels as for `forward`."""
        logits, boxes = (torch.as_tensor(part) for part in prediction.predictions)
        output = ModelOutput(logits=logits, pred_boxes=boxes)
        targets = list(prediction.label_ids)
        sizes = [(self.size, self.size)] * len(targets)
        found = self.image_processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
        ids = [str(self.count + number) for number in range(len(targets))]
        self.count += len(targets)
        self.scores.update([_found_boxes(item) for item in found], [self._true_boxes(item) for item in targets], ids)
        if not compute_result:
            return {}
        summary = self.scores.summary(NO_INTERVALS)
        names = ("ap50", "ap75", "ap", "recall50", "sensitivity_at_1_fp")
        metrics = {name: float(np.nan_to_num(summary[name].value)) for name in names}
        self._reset()
        return metrics

    def _true_boxes(self, item: Any) -> Boxes:
        boxes = to_array(item["boxes"]).astype(np.float64).reshape(-1, 4) * self.size
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        return Boxes(corners, to_array(item["class_labels"]))
