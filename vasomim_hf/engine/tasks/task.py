"""The protocol of a task: how labels are read, augmented, learned, scored and drawn."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import EvalPrediction

from ...data.augmentation import Augmentation, Size
from ...data.faults import FaultReport
from ...evaluation.results import ResultRow
from ...evaluation.statistics import Resampling
from ...image_processing_vasomim import VasoMIMImageProcessor
from ...inference.prediction import InferenceOptions
from ...modeling_vasomim import VasoMIMPreTrainedModel
from .painting import LegendEntry


SEGMENTATION, DETECTION, CLASSIFICATION = "segmentation", "detection", "classification"
# no confidence intervals during training
NO_INTERVALS = Resampling(num_resamples=1, method="percentile")


@dataclass(frozen=True)
class LabelContext:
    """What is known about a frame when its label is read.

    Args:
        name (`str`): Id of the frame, for messages.
        size (`Size`): Size of the frame.
        num_labels (`int`): Number of classes.
        faults (`FaultReport`): Collects parts of the label that are skipped.
        ignore_white (`bool`): See [`~data.reading.masks.MaskRule`].
    """

    name: str
    size: Size
    num_labels: int
    faults: FaultReport
    ignore_white: bool = False


class KeptLabel(NamedTuple):
    """A label in the form in which it is stored during training.

    Args:
        plane (`np.ndarray` of shape `(height, width)`, *optional*): `uint8`, of the size of the kept frame; on disk.
        value: What else is needed; in memory.
    """

    plane: np.ndarray | None
    value: Any


class View(NamedTuple):
    """How a kept frame is shown to the model.

    Args:
        augmentation (`Augmentation`): Sampled parameters.
        frame (`Size`): Size of the kept frame.
        result (`Size`): Input size of the model.
        kept_box_share (`float`): Minimum fraction of a box that must stay in the frame.
    """

    augmentation: Augmentation
    frame: Size
    result: Size
    kept_box_share: float


@dataclass(frozen=True, eq=False)
class ScoredFrame:
    """A frame with its label and the prediction of a model.

    Args:
        image_id (`str`): Id of the frame.
        frame (`np.ndarray` of shape `(height, width)`): 8-bit grey levels.
        target: Class ids of shape `(height, width)`, `Boxes`, or a class id.
        prediction: Probabilities of shape `(num_labels, height, width)`, `Boxes` with scores, or probabilities of shape
            `(num_labels,)`.
    """

    image_id: str
    frame: np.ndarray
    target: Any
    prediction: Any


class Meter(Protocol):
    """Accumulates batches and returns metrics if `compute_result` is true (`batch_eval_metrics` of `Trainer`)."""

    def choose(self, logits: Any, labels: Any) -> Any:
        """Part of the model output to score; called on the device, before gathering."""
        ...

    def __call__(self, prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        """Add a batch; at the end returns the metrics and resets."""
        ...


class Task(ABC):
    """Interface of a task for training, evaluation and pictures.

    Attributes:
        kind (`str`): Name of the task.
        column (`str`): Column of the labels in published data sets.
        model_class (`type`): Model with the head of the task.
        auto_class: Auto class of transformers that loads such models.
        model_endings (`tuple[str, ...]`): Suffixes of the class names of such models.
        metrics (`tuple[str, ...]`): Validation metrics that the task's meter reports, and `loss`.
        default_metric (`str`): The metric that selects the best weights.
        measures (`str`): Comma-separated metrics drawn by default in a label-efficiency comparison.
        labels_example (`str`): Example value of `labels` in a run file.
        first_class (`int`): Id of the first class to learn; 1 if 0 is the background.
        needs_every_class (`bool`): Whether each class must occur in the training frames.
        allows_names (`bool`): Whether labels in a table may be names instead of ids.
        is_dense (`bool`): Whether there is a prediction for each pixel, for sliding windows and maps.
        has_positions (`bool`): Whether predictions have positions in the frame, so that it must not be cropped.
    """

    kind: ClassVar[str]
    column: ClassVar[str]
    model_class: ClassVar[type[VasoMIMPreTrainedModel]]
    auto_class: ClassVar[Any]
    model_endings: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[str, ...]]
    default_metric: ClassVar[str]
    measures: ClassVar[str]
    labels_example: ClassVar[str]
    first_class: ClassVar[int] = 0
    needs_every_class: ClassVar[bool] = False
    allows_names: ClassVar[bool] = False
    is_dense: ClassVar[bool] = False
    has_positions: ClassVar[bool] = True

    # Classes

    def class_feature(self, feature: Any) -> Any:
        """Part of the feature of a label column that may hold the names of the classes."""
        return feature

    def complete_names(self, names: dict[int, str]) -> dict[int, str]:
        """Class names, with the implicit ones (such as background) added."""
        return names

    def names_of_model(self, names: dict[int, str]) -> dict[int, str]:
        """Class names of a model, in the form used for data."""
        return names

    def fits_model(self, num_outputs: int, num_labels: int) -> bool:
        """Whether a model with a number of outputs can be evaluated on data with a number of classes."""
        return num_outputs == num_labels

    # Labels

    @abstractmethod
    def read(self, label: Any, context: LabelContext) -> Any:
        """Read and check the label of a frame.

        Args:
            label: As in the data set.
            context (`LabelContext`): The frame.

        Returns:
            Label for the other methods.

        Raises:
            ValueError: If it does not fit the frame or the classes.
        """

    @abstractmethod
    def classes_in(self, label: Any) -> np.ndarray:
        """Class ids in a label that was read, each once, of shape `(num_classes,)`."""

    @abstractmethod
    def keep(self, label: Any, size: Size, num_labels: int, is_training: bool) -> KeptLabel:
        """Reduce a label that was read to what training needs, at the size at which the frame is kept."""

    @abstractmethod
    def training_label(self, label: KeptLabel, view: View) -> Any:
        """Label of one frame as the model's `forward` takes it, transformed like the frame."""

    @abstractmethod
    def make_meter(self, labels: Sequence[str], image_processor: VasoMIMImageProcessor, size: int) -> Meter:
        """Validation metrics during training, for class names and an input size."""

    # Evaluation

    def target(self, label: Any, size: Size) -> Any:
        """Convert a label to the form that the scores accept, in pixels of a frame of this size."""
        return label

    @abstractmethod
    def predict(
        self,
        model: nn.Module,
        image_processor: Any,
        pixel_values: torch.Tensor,
        sizes: list[tuple[int, int]],
        options: InferenceOptions,
    ) -> list[Any]:
        """Predict a batch.

        Args:
            model (`nn.Module`): Model with a head.
            image_processor: Image processor of the model.
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalised frames.
            sizes (`list[tuple[int, int]]`): Height and width of each annotated frame.
            options (`InferenceOptions`): Views, windows, precision.

        Returns:
            `list`: Predictions as in [`ScoredFrame`], at the size of the annotated frames.
        """

    @abstractmethod
    def make_scores(self, labels: Sequence[str]) -> Any:
        """Create an empty score accumulator."""

    @abstractmethod
    def add(self, scores: Any, frame: ScoredFrame, patient_id: str | None) -> None:
        """Add a frame to scores of [`make_scores`]."""

    # Pictures

    @abstractmethod
    def rank(self, row: ResultRow) -> float:
        """Quality of a row, used to select the best, median and worst frames; NaN excludes it."""

    @abstractmethod
    def describe(self, frame: ScoredFrame, row: ResultRow, labels: Sequence[str]) -> str:
        """Metrics of a frame, for the line below it."""

    @abstractmethod
    def caption(self, frame: ScoredFrame, labels: Sequence[str]) -> str:
        """As [`describe`], without a row and without metrics from optional packages."""

    @abstractmethod
    def panels(self, frame: ScoredFrame, labels: Sequence[str]) -> list[Image.Image]:
        """A frame, its annotation and its prediction, each with a longer side of 320 pixels."""

    def drawn_classes(self, frame: ScoredFrame, labels: Sequence[str]) -> set[int]:
        """Class ids that need a colour in the legend."""
        return set()

    def legend(self, labels: Sequence[str], present: set[int]) -> list[LegendEntry]:
        """Colours and their meaning, for the classes that are drawn."""
        return []


def to_array(value: Any) -> np.ndarray:
    """A tensor or array as an array of the same shape on the CPU."""
    return value.numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value)


def first_output(logits: Any) -> Any:
    """Logits of an output that may have other parts behind them."""
    return logits[0] if isinstance(logits, tuple | list) else logits


def resize_plane(plane: np.ndarray, size: Size, resample: int) -> np.ndarray:
    """Resize an 8-bit plane of shape (height, width)."""
    plane = np.ascontiguousarray(plane)
    if plane.shape == (size.height, size.width):
        return plane
    return np.asarray(Image.fromarray(plane).resize((size.width, size.height), resample))
