"""Classification of whole frames: a class id for each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageClassification, EvalPrediction

from ...data.augmentation import Size
from ...evaluation.classification_metrics import ClassificationScores
from ...evaluation.results import ResultRow
from ...image_processing_vasomim import VasoMIMImageProcessor
from ...inference.prediction import InferenceOptions, predict_classes
from ...modeling_vasomim_classification import VasoMIMForImageClassification
from .painting import grey_panel
from .task import (
    CLASSIFICATION,
    NO_INTERVALS,
    KeptLabel,
    LabelContext,
    ScoredFrame,
    Task,
    View,
    first_output,
    to_array,
)


class Classification(Task):
    """A class for each frame."""

    kind = CLASSIFICATION
    column = "label"
    model_class = VasoMIMForImageClassification
    auto_class = AutoModelForImageClassification
    model_endings = ("ForImageClassification",)
    metrics = ("loss", "accuracy", "balanced_accuracy", "auroc")
    default_metric = "balanced_accuracy"
    measures = "accuracy,auroc"
    labels_example = "{0: left, 1: right}"
    needs_every_class = True
    allows_names = True
    has_positions = False

    def read(self, label: Any, context: LabelContext) -> int:
        """A class id; see [`Task.read`]."""
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < context.num_labels:
            raise ValueError(
                f"{context.name}: the label must be a class id from 0 to {context.num_labels - 1}, got {label!r}. Correct "
                "it or remove the row."
            )
        return label

    def classes_in(self, label: int) -> np.ndarray:
        """The class, of shape `(1,)`; see [`Task.classes_in`]."""
        return np.array([label])

    def keep(self, label: int, size: Size, num_labels: int, is_training: bool) -> KeptLabel:
        """The class id; see [`Task.keep`]."""
        return KeptLabel(None, label)

    def training_label(self, label: KeptLabel, view: View) -> torch.Tensor:
        """The class id, an int64 scalar; see [`Task.training_label`]."""
        return torch.tensor(label.value)

    def make_meter(
        self, labels: Sequence[str], image_processor: VasoMIMImageProcessor, size: int
    ) -> "ClassificationMeter":
        """See [`Task.make_meter`]."""
        return ClassificationMeter(labels)

    def predict(
        self,
        model: nn.Module,
        image_processor: Any,
        pixel_values: torch.Tensor,
        sizes: list[tuple[int, int]],
        options: InferenceOptions,
    ) -> list[np.ndarray]:
        """Probabilities of shape `(num_labels,)`; see [`Task.predict`]."""
        return list(predict_classes(model, pixel_values, options).numpy(force=True))

    def make_scores(self, labels: Sequence[str]) -> ClassificationScores:
        """See [`Task.make_scores`]."""
        return ClassificationScores(labels)

    def add(self, scores: ClassificationScores, frame: ScoredFrame, patient_id: str | None) -> None:
        """See [`Task.add`]."""
        scores.update(frame.prediction[None], np.array([frame.target]), [frame.image_id], [patient_id])

    def rank(self, row: ResultRow) -> float:
        """Probability of the true class, or minus that of a wrong one; see [`Task.rank`]."""
        confidence = row.values["confidence"]
        return confidence if row.values["accuracy"] else -confidence

    def describe(self, frame: ScoredFrame, row: ResultRow, labels: Sequence[str]) -> str:
        """See [`Task.describe`]."""
        values = row.values
        return _names(int(values["predicted"]), int(values["target"]), values["confidence"], labels)

    def caption(self, frame: ScoredFrame, labels: Sequence[str]) -> str:
        """See [`Task.caption`]."""
        return _names(int(frame.prediction.argmax()), frame.target, frame.prediction.max(), labels)

    def panels(self, frame: ScoredFrame, labels: Sequence[str]) -> list[Image.Image]:
        """The frame alone; see [`Task.panels`]."""
        return [grey_panel(frame.frame)]


def _names(found: int, true: int, confidence: float, labels: Sequence[str]) -> str:
    return f"predicted {labels[found]} ({confidence:.2f}), annotated {labels[true]}"


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
        return first_output(logits)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = False) -> dict[str, float]:
        """Add a batch of logits of shape `(batch_size, num_labels)` and class ids of shape `(batch_size,)`."""
        logits = torch.as_tensor(prediction.predictions).float()
        targets = to_array(prediction.label_ids)
        ids = [str(self.count + number) for number in range(len(targets))]
        self.count += len(targets)
        self.scores.update(logits.softmax(dim=1).numpy(force=True), targets, ids)
        if not compute_result:
            return {}
        summary = self.scores.summary(NO_INTERVALS)
        names = ("accuracy", "balanced_accuracy", "auroc")
        metrics = {name: float(np.nan_to_num(summary[name].value)) for name in names}
        self._reset()
        return metrics
