"""Evaluation of a model in memory on rows of a data set, at the size of the annotated frames, with `evaluation` metrics.

Probabilities are kept for one frame at a time, so memory does not grow with the data.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ...data.augmentation import Size
from ...data.faults import FaultReport
from ...data.reading.masks import MaskRule, to_label_map
from ...evaluation.classification_metrics import ClassificationScores
from ...evaluation.detection_metrics import Boxes, DetectionScores
from ...evaluation.segmentation_scores import SegmentationScores
from ...inference.prediction import InferenceOptions, predict_boxes, predict_classes, predict_masks
from ...progress import Progress
from ..finetuning.decoded import class_id, corner_boxes, read_named_frame
from ..finetuning.rows import LabelledRows
from ..finetuning.run import CLASSIFICATION, DETECTION, SEGMENTATION


@dataclass(frozen=True, eq=False)
class ScoredFrame:
    """A frame with its label and the prediction of the model.

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


@dataclass(frozen=True)
class ScoringOptions:
    """Options of a [`FrameScorer`].

    Args:
        inference (`InferenceOptions`): Views, windows, precision.
        batch_size (`int`): Frames per batch; with a sliding window, frames are processed one at a time.
        frame_size (`int`, *optional*): With a sliding window: longer side in pixels to which frames are resized; `None`
            keeps their size.
    """

    inference: InferenceOptions = field(default_factory=InferenceOptions)
    batch_size: int = 4
    frame_size: int | None = None


@dataclass(frozen=True, eq=False)
class FrameScorer:
    """Predicts and scores every frame of a data set.

    Args:
        kind (`str`): Segmentation, detection or classification.
        model (`nn.Module`): Returns `logits` and, for detection, `pred_boxes`.
        image_processor: Of the model: a `VasoMIMImageProcessor`, or another one of transformers that resizes and normalises.
        labels (sequence of `str`): Class names in the order of their ids.
        options (`ScoringOptions`): Options.
    """

    kind: str
    model: nn.Module
    image_processor: Any
    labels: Sequence[str]
    options: ScoringOptions = field(default_factory=ScoringOptions)

    def score(self, rows: LabelledRows, watch: Callable[[ScoredFrame], None] | None = None) -> Any:
        """Score all rows.

        Args:
            rows (`LabelledRows`): Frames with labels.
            watch (`Callable`, *optional*): Called with each frame.

        Returns:
            `SegmentationScores`, `DetectionScores` or `ClassificationScores`: With a row for each frame.

        Raises:
            ValueError: If a label does not match its frame or the classes, an id occurs twice, or the model returns
            NaN.
        """
        _check_ids(rows.image_ids)
        scores = make_scores(self.kind, self.labels)
        patients = dict(zip(rows.image_ids, rows.patient_ids, strict=True))
        for frame in Progress(self.frames(rows), what="evaluating", total=len(rows)):
            _add(scores, frame, patients[frame.image_id])
            if watch is not None:
                watch(frame)
        return scores

    def frames(self, rows: LabelledRows) -> Iterator[ScoredFrame]:
        """Predict rows one after the other.

        Args:
            rows (`LabelledRows`): Frames with labels.

        Yields:
            `ScoredFrame`: One per row, in order.
        """
        self.model.eval()
        ids = rows.image_ids
        # frames of different sizes cannot be stacked
        size = self.options.batch_size if self.seen_size is not None else 1
        faults = FaultReport()
        for start in range(0, len(rows), size):
            names = ids[start : start + size]
            numbered = list(enumerate(names, start))
            frames = [read_named_frame(rows, number, name) for number, name in numbered]
            targets = [
                self._target(rows.label(number), frame, name, rows.ignore_white, faults)
                for (number, name), frame in zip(numbered, frames, strict=True)
            ]
            for item in zip(names, frames, targets, self._predict(frames), strict=True):
                yield ScoredFrame(*item)
        faults.log("frames with boxes", len(rows))

    @property
    def seen_size(self) -> tuple[int, int] | None:
        """Input height and width of the model; `None` if it varies between frames."""
        size: Any = self.image_processor.size
        height, width = getattr(size, "height", None), getattr(size, "width", None)
        if height is None or width is None or not self.image_processor.do_resize:
            return None
        return (int(height), int(width)) if self.options.inference.window is None else None

    def _target(self, label: Any, frame: np.ndarray, name: str, ignore_white: bool, faults: FaultReport) -> Any:
        size = Size(frame.shape[1], frame.shape[0])
        if self.kind == SEGMENTATION:
            return to_label_map(label, f"of {name}", frame.shape, MaskRule(len(self.labels), ignore_white))
        if self.kind == DETECTION:
            corners, labels = corner_boxes(label, len(self.labels), size, name, faults)
            return Boxes(corners.astype(np.float64) * [*size, *size], labels)
        return class_id(label, len(self.labels), name)

    def _predict(self, frames: list[np.ndarray]) -> list[Any]:
        sizes = [(frame.shape[0], frame.shape[1]) for frame in frames]
        pixel_values = self._pixel_values(frames).to(next(self.model.parameters()).device)
        options = self.options.inference
        if self.kind == SEGMENTATION:
            return [found.numpy(force=True) for found in predict_masks(self.model, pixel_values, sizes, options)]
        if self.kind == CLASSIFICATION:
            return list(predict_classes(self.model, pixel_values, options).numpy(force=True))
        output = predict_boxes(self.model, pixel_values, options)
        found = self.image_processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
        return [found_boxes(item) for item in found]

    def _pixel_values(self, frames: list[np.ndarray]) -> torch.Tensor:
        """Input of the model: resized by its image processor or, for windows, at the original size."""
        options: dict[str, Any] = {}
        if self.options.inference.window is not None:
            longest = self.options.frame_size
            share = 1.0 if longest is None else longest / max(frames[0].shape)
            height, width = (max(1, round(side * share)) for side in frames[0].shape)
            options = {"size": {"height": height, "width": width}, "do_resize": True}
        if hasattr(self.image_processor, "do_check_input"):
            options["do_check_input"] = False
        else:
            # image processors of transformers do not accept grey frames
            frames = [np.repeat(frame[:, :, None], 3, axis=2) for frame in frames]
        return self.image_processor(frames, return_tensors="pt", **options)["pixel_values"]


def _check_ids(image_ids: Sequence[str]) -> None:
    """Check for duplicate ids before running the model."""
    twice = [name for name, count in Counter(image_ids).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} ids of frames come more than once, such as {', '.join(twice[:5])}. Make `image_id` "
            "unique, or leave the column out."
        )


def make_scores(kind: str, labels: Sequence[str]) -> SegmentationScores | DetectionScores | ClassificationScores:
    """Create the accumulator of scores for a kind of task.

    Args:
        kind (`str`): Segmentation, detection or classification.
        labels (sequence of `str`): Class names in the order of their ids.

    Returns:
        One of the three.
    """
    if kind == DETECTION:
        return DetectionScores(labels)
    return SegmentationScores(labels) if kind == SEGMENTATION else ClassificationScores(labels)


def found_boxes(item: dict[str, torch.Tensor]) -> Boxes:
    """Boxes of one frame from the result of `post_process_object_detection`."""
    corners, labels, scores = (item[name].numpy(force=True) for name in ("boxes", "labels", "scores"))
    return Boxes(corners.astype(np.float64), labels, scores.astype(np.float64))


def _add(scores: Any, frame: ScoredFrame, patient_id: str | None) -> None:
    ids, patients = [frame.image_id], [patient_id]
    if isinstance(scores, SegmentationScores):
        found = frame.prediction.argmax(axis=0)
        scores.update(found[None], frame.target[None], ids, patients, frame.prediction[None])
    elif isinstance(scores, DetectionScores):
        scores.update([frame.prediction], [frame.target], ids, patients)
    else:
        scores.update(frame.prediction[None], np.array([frame.target]), ids, patients)
