"""Semantic segmentation of vessels, vessel segments or stenoses: a class id for each pixel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForSemanticSegmentation, EvalPrediction

from ...data.augmentation import Size, augment_label_map, augment_soft_mask
from ...data.reading.masks import MaskRule, to_label_map
from ...evaluation.mask_metrics import dice
from ...evaluation.results import ResultRow
from ...evaluation.segmentation_scores import SegmentationScores
from ...image_processing_vasomim import VasoMIMImageProcessor
from ...inference.prediction import InferenceOptions, predict_masks
from ...modeling_vasomim_segmentation import IGNORED_LABEL, VasoMIMForSemanticSegmentation
from .painting import FALSE, HIT, MISSED, LegendEntry, class_colours, grey_panel, paint_classes, paint_errors
from .task import SEGMENTATION, KeptLabel, LabelContext, ScoredFrame, Task, View, first_output, resize_plane, to_array


class Segmentation(Task):
    """A class for each pixel; 0 is the background."""

    kind = SEGMENTATION
    column = "mask"
    model_class = VasoMIMForSemanticSegmentation
    auto_class = AutoModelForSemanticSegmentation
    model_endings = ("ForSemanticSegmentation", "ForVesselSegmentation")
    metrics = ("loss", "dice", "pooled_dice", "pooled_mean_class_dice")
    default_metric = "pooled_dice"
    measures = "dice,cl_dice"
    labels_example = "{0: background, 1: vessel}"
    first_class = 1
    is_dense = True

    def complete_names(self, names: dict[int, str]) -> dict[int, str]:
        """With the background; see [`Task.complete_names`]."""
        return {0: "background", **names}

    def names_of_model(self, names: dict[int, str]) -> dict[int, str]:
        """With the background, for which a model with one logit has no class; see [`Task.names_of_model`]."""
        return {0: "background", 1: names[0]} if len(names) == 1 else names

    def fits_model(self, num_outputs: int, num_labels: int) -> bool:
        """Also if one logit is the foreground against the background; see [`Task.fits_model`]."""
        return num_outputs == num_labels or (num_outputs == 1 and num_labels == 2)

    def read(self, label: Any, context: LabelContext) -> np.ndarray:
        """Class ids of shape `(height, width)`, `uint8`; see [`Task.read`]."""
        size, rule = context.size, MaskRule(context.num_labels, context.ignore_white)
        return to_label_map(label, f"of {context.name}", (size.height, size.width), rule)

    def classes_in(self, label: np.ndarray) -> np.ndarray:
        """Ids of the pixels that are not ignored, of shape `(num_classes,)`; see [`Task.classes_in`]."""
        return np.unique(label[label != IGNORED_LABEL])

    def keep(self, label: np.ndarray, size: Size, num_labels: int, is_training: bool) -> KeptLabel:
        """Class ids of shape `(height, width)`, or a soft mask from 0 to 255 to train on two classes; see [`Task.keep`]."""
        # values between two of many ids, or between an id and an ignored pixel, have no meaning
        is_soft = is_training and num_labels == 2 and int(label.max()) <= 1
        if is_soft:
            return KeptLabel(resize_plane(label * np.uint8(255), size, Image.Resampling.BOX), True)
        return KeptLabel(resize_plane(label, size, Image.Resampling.NEAREST), False)

    def training_label(self, label: KeptLabel, view: View) -> torch.Tensor:
        """Class ids of shape `(height, width)`, int64; see [`Task.training_label`]."""
        augment = augment_soft_mask if label.value else augment_label_map
        return torch.from_numpy(augment(to_array(label.plane), view.augmentation, view.result).astype(np.int64))

    def make_meter(
        self, labels: Sequence[str], image_processor: VasoMIMImageProcessor, size: int
    ) -> "SegmentationMeter":
        """See [`Task.make_meter`]."""
        return SegmentationMeter(labels)

    def predict(
        self,
        model: nn.Module,
        image_processor: Any,
        pixel_values: torch.Tensor,
        sizes: list[tuple[int, int]],
        options: InferenceOptions,
    ) -> list[np.ndarray]:
        """Probabilities of shape `(num_labels, height, width)`; see [`Task.predict`]."""
        return [found.numpy(force=True) for found in predict_masks(model, pixel_values, sizes, options)]

    def make_scores(self, labels: Sequence[str]) -> SegmentationScores:
        """See [`Task.make_scores`]."""
        return SegmentationScores(labels)

    def add(self, scores: SegmentationScores, frame: ScoredFrame, patient_id: str | None) -> None:
        """See [`Task.add`]."""
        found = _found(frame)[None]
        scores.update(found, frame.target[None], [frame.image_id], [patient_id], frame.prediction[None])

    def rank(self, row: ResultRow) -> float:
        """Dice; see [`Task.rank`]."""
        return row.values["dice"]

    def describe(self, frame: ScoredFrame, row: ResultRow, labels: Sequence[str]) -> str:
        """See [`Task.describe`]."""
        return f"{_merged(labels)}Dice {row.values['dice']:.3f}, clDice {row.values['cl_dice']:.3f}"

    def caption(self, frame: ScoredFrame, labels: Sequence[str]) -> str:
        """See [`Task.caption`]."""
        counted = frame.target < len(labels)
        return f"{_merged(labels)}Dice {dice((_found(frame) > 0) & counted, (frame.target > 0) & counted):.3f}"

    def panels(self, frame: ScoredFrame, labels: Sequence[str]) -> list[Image.Image]:
        """The frame, and its errors; with many classes its annotation and its prediction; see [`Task.panels`]."""
        grey = grey_panel(frame.frame)
        if len(labels) == 2:
            return [grey, paint_errors(frame.frame, frame.target, _found(frame), len(labels))]
        return [grey, *(paint_classes(frame.frame, ids, len(labels)) for ids in (frame.target, _found(frame)))]

    def drawn_classes(self, frame: ScoredFrame, labels: Sequence[str]) -> set[int]:
        """Foreground classes that are annotated or predicted; see [`Task.drawn_classes`]."""
        ids = np.union1d(frame.target, _found(frame)).tolist()
        return {number for number in ids if 0 < number < len(labels)}

    def legend(self, labels: Sequence[str], present: set[int]) -> list[LegendEntry]:
        """See [`Task.legend`]."""
        if len(labels) == 2:
            return [(HIT, "true positive"), (MISSED, "missed"), (FALSE, "false positive")]
        colours = class_colours(len(labels)).tolist()
        named = [(tuple(colours[number]), labels[number]) for number in sorted(present)]
        return [(None, "left: the frame; middle: annotated; right: predicted"), *named]


def _found(frame: ScoredFrame) -> np.ndarray:
    return frame.prediction.argmax(axis=0)


def _merged(labels: Sequence[str]) -> str:
    return "all classes merged: " if len(labels) > 2 else ""


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
        return first_output(logits).argmax(dim=1).to(torch.uint8)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = False) -> dict[str, float]:
        """Add a batch of predicted ids and labels, both of shape `(batch_size, height, width)`."""
        found, true = (
            to_array(prediction.predictions).astype(np.int64),
            to_array(prediction.label_ids).astype(np.int64),
        )
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
