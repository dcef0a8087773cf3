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

from ...data.faults import FaultReport
from ...inference.prediction import InferenceOptions
from ...progress import Progress
from ..finetuning.decoded import read_named_frame, size_of
from ..finetuning.rows import LabelledRows
from ..tasks.registry import find_task
from ..tasks.task import LabelContext, ScoredFrame, Task


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
        scores = self.task.make_scores(self.labels)
        patients = dict(zip(rows.image_ids, rows.patient_ids, strict=True))
        for frame in Progress(self.frames(rows), what="evaluating", total=len(rows)):
            self.task.add(scores, frame, patients[frame.image_id])
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
                self._target(
                    rows, number, LabelContext(name, size_of(frame), len(self.labels), faults, rows.ignore_white)
                )
                for (number, name), frame in zip(numbered, frames, strict=True)
            ]
            for item in zip(names, frames, targets, self._predict(frames), strict=True):
                yield ScoredFrame(*item)
        faults.log("frames with boxes", len(rows))

    @property
    def task(self) -> Task:
        """The task."""
        return find_task(self.kind)

    def _target(self, rows: LabelledRows, number: int, context: LabelContext) -> Any:
        return self.task.target(self.task.read(rows.label(number), context), context.size)

    @property
    def seen_size(self) -> tuple[int, int] | None:
        """Input height and width of the model; `None` if it varies between frames."""
        size: Any = self.image_processor.size
        height, width = getattr(size, "height", None), getattr(size, "width", None)
        if height is None or width is None or not self.image_processor.do_resize:
            return None
        return (int(height), int(width)) if self.options.inference.window is None else None

    def _predict(self, frames: list[np.ndarray]) -> list[Any]:
        sizes = [(frame.shape[0], frame.shape[1]) for frame in frames]
        pixel_values = self._pixel_values(frames).to(next(self.model.parameters()).device)
        return self.task.predict(self.model, self.image_processor, pixel_values, sizes, self.options.inference)

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
            f"{len(twice)} frame ids occur more than once, such as {', '.join(twice[:5])}. Make `image_id` "
            "unique, or remove the column."
        )
