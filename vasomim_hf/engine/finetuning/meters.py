"""Validation metrics during training, accumulated over batches without keeping logits.

Definitions are those of [`evaluation`](../evaluation/metrics.py), at the input size of the model; final metrics are computed
at the size of the annotated frames by `vasomim evaluate`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import EvalPrediction
from transformers.utils import ModelOutput

from ...evaluation.classification_metrics import ClassificationScores
from ...evaluation.detection_metrics import Boxes, DetectionScores
from ...evaluation.mask_metrics import dice
from ...evaluation.statistics import Resampling
from ...image_processing_vasomim import VasoMIMImageProcessor
from ...modeling_vasomim_segmentation import IGNORED_LABEL
from ..evaluating.scoring import found_boxes
from .run import DETECTION, SEGMENTATION


# no confidence intervals during training
_NO_INTERVALS = Resampling(num_resamples=1, method="percentile")


class Meter(Protocol):
    """Accumulates batches and returns metrics if `compute_result` is true (`batch_eval_metrics` of `Trainer`)."""

    def choose(self, logits: Any, labels: Any) -> Any:
        """Part of the model output to score; called on the device, before gathering."""
        ...

    def __call__(self, prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        """Add a batch; at the end returns the metrics and resets."""
        ...


class SegmentationMeter:
    """Dice of label maps: over the foreground, and per class over the pixels of all images.

    Args:
        labels (sequence of `str`): Class names, background first.
    """

    def __init__(self, labels: Sequence[str]):
        self.labels = list(labels)
        self._reset()

    def _reset(self) -> None:
        self.confusion = np.zeros((len(self.labels), len(self.labels)), dtype=np.int64)
        self.dice: list[np.ndarray] = []

    def choose(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Most probable class of each pixel, from logits of shape `(batch_size, num_labels, height, width)`."""
        logits = logits[0] if isinstance(logits, tuple | list) else logits
        return logits.argmax(dim=1).to(torch.uint8)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = False) -> dict[str, float]:
        """Add a batch of predicted ids and labels, both of shape `(batch_size, height, width)`."""
        found, true = _array(prediction.predictions).astype(np.int64), _array(prediction.label_ids).astype(np.int64)
        counted, size = true != IGNORED_LABEL, len(self.labels)
        pairs = true[counted] * size + found[counted]
        self.confusion += np.bincount(pairs, minlength=size**2).reshape(size, size)
        self.dice.append(np.asarray(dice((found > 0) & counted, (true > 0) & counted)))
        if not compute_result:
            return {}
        metrics = self._metrics()
        self._reset()
        return metrics

    def _metrics(self) -> dict[str, float]:
        values = np.concatenate(self.dice)
        foreground = self.confusion[1:, 1:].sum()
        total = 2 * foreground + self.confusion[0, 1:].sum() + self.confusion[1:, 0].sum()
        metrics = {
            "dice": float(np.nanmean(values)) if not np.isnan(values).all() else 0.0,
            "pooled_dice": float(2 * foreground / total) if total else 0.0,
        }
        occurs = self.confusion[1:].sum(axis=1) > 0
        of_class = 2 * self.confusion.diagonal()[1:]
        sizes = self.confusion.sum(axis=0)[1:] + self.confusion.sum(axis=1)[1:]
        metrics["pooled_mean_class_dice"] = float((of_class[occurs] / sizes[occurs]).mean()) if occurs.any() else 0.0
        return metrics


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
        self.scores.update([found_boxes(item) for item in found], [self._true_boxes(item) for item in targets], ids)
        if not compute_result:
            return {}
        summary = self.scores.summary(_NO_INTERVALS)
        names = ("ap50", "ap75", "ap", "recall50", "sensitivity_at_1_fp")
        metrics = {name: float(np.nan_to_num(summary[name].value)) for name in names}
        self._reset()
        return metrics

    def _true_boxes(self, item: Any) -> Boxes:
        boxes = _array(item["boxes"]).astype(np.float64).reshape(-1, 4) * self.size
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        return Boxes(corners, _array(item["class_labels"]))


class ClassificationMeter:
    """Accuracy, balanced accuracy and area under the ROC curve for image classification.

    Args:
        labels (sequence of `str`): Class names.
    """

    def __init__(self, labels: Sequence[str]):
        self.labels = list(labels)
        self._reset()

    def _reset(self) -> None:
        self.scores = ClassificationScores(self.labels)
        self.count = 0

    def choose(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Logits of shape `(batch_size, num_labels)`."""
        return logits[0] if isinstance(logits, tuple | list) else logits

    def __call__(self, prediction: EvalPrediction, compute_result: bool = False) -> dict[str, float]:
        """Add a batch of logits of shape `(batch_size, num_labels)` and class ids of shape `(batch_size,)`."""
        logits = torch.as_tensor(prediction.predictions).float()
        targets = _array(prediction.label_ids)
        ids = [str(self.count + number) for number in range(len(targets))]
        self.count += len(targets)
        self.scores.update(logits.softmax(dim=1).numpy(force=True), targets, ids)
        if not compute_result:
            return {}
        summary = self.scores.summary(_NO_INTERVALS)
        names = ("accuracy", "balanced_accuracy", "auroc")
        metrics = {name: float(np.nan_to_num(summary[name].value)) for name in names}
        self._reset()
        return metrics


def make_meter(
    kind: str, id2label: dict[int, str], image_processor: VasoMIMImageProcessor, size: int
) -> SegmentationMeter | DetectionMeter | ClassificationMeter:
    """Create the meter for a kind of task.

    Args:
        kind (`str`): Segmentation, detection or classification.
        id2label (`dict[int, str]`): Class names.
        image_processor (`VasoMIMImageProcessor`): Image processor of the model.
        size (`int`): Input size in pixels.

    Returns:
        One of the meters.
    """
    labels = [id2label[number] for number in sorted(id2label)]
    if kind == DETECTION:
        return DetectionMeter(labels, image_processor, size)
    return SegmentationMeter(labels) if kind == SEGMENTATION else ClassificationMeter(labels)


def _array(value: Any) -> np.ndarray:
    return value.numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value)
