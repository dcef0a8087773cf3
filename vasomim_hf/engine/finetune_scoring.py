"""Scores of a model that is at hand, on rows of a run, at the size of the annotated frames; as `evaluation` defines them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.augmentation import Size
from ..data.reports import FaultReport
from ..evaluation.classification_metrics import ClassificationScores
from ..evaluation.comparison import Description, build_results
from ..evaluation.detection_metrics import Boxes, DetectionScores
from ..evaluation.results import EvaluationResults
from ..evaluation.segmentation_scores import SegmentationScores
from ..image_processing_vasomim import VasoMIMImageProcessor
from .finetune_config import CLASSIFICATION, DETECTION, SEGMENTATION, FinetuneRun
from .finetune_data import corner_boxes, grey_frame, label_map
from .finetune_rows import LabelledRows


_BATCH_SIZE = 8


def score_rows(
    run: FinetuneRun,
    model: nn.Module,
    image_processor: VasoMIMImageProcessor,
    rows: LabelledRows,
    labels: Sequence[str],
) -> EvaluationResults:
    """Score a model on rows.

    Args:
        run (`FinetuneRun`): Says what kind of task it is, and what the results are of.
        model (`nn.Module`): Gives `logits`, and a detector `pred_boxes`.
        image_processor (`VasoMIMImageProcessor`): Of the model.
        rows (`LabelledRows`): Frames with labels.
        labels (sequence of `str`): Names of the classes in the order of their ids.

    Returns:
        `EvaluationResults`: With a row for each frame.
    """
    makers = {SEGMENTATION: SegmentationScores, DETECTION: DetectionScores, CLASSIFICATION: ClassificationScores}
    scores: Any = makers[run.kind](labels)
    add: Any = {SEGMENTATION: _add_masks, DETECTION: _add_boxes, CLASSIFICATION: _add_classes}[run.kind]
    model.eval()
    device = next(model.parameters()).device
    for batch in _batches(rows):
        inputs = image_processor([frame for frame, *_ in batch], return_tensors="pt", do_check_input=False)
        with torch.no_grad():
            output = model(pixel_values=inputs["pixel_values"].to(device))
        add(scores, output, batch, image_processor)
    description = Description(
        task=run.task,
        model=run.output_dir,
        data=run.dataset,
        split=run.validation_split or "held out",
        settings={"image_size": run.image_size},
    )
    return build_results(scores, description)


Item = tuple[np.ndarray, Any, str, str | None]


def _batches(rows: LabelledRows) -> Iterator[list[Item]]:
    """Frame, label as the row has it, image and patient, some at a time."""
    ids, patients = rows.image_ids, rows.patient_ids
    for start in range(0, len(rows), _BATCH_SIZE):
        batch = []
        for number in range(start, min(start + _BATCH_SIZE, len(rows))):
            row = rows.dataset[number]
            frame = grey_frame(row[rows.image_column], ids[number])
            batch.append((frame, row[rows.label_column], ids[number], patients[number]))
        yield batch


def _add_masks(scores: SegmentationScores, output: Any, batch: list[Item], processor: VasoMIMImageProcessor) -> None:
    found = processor.post_process_semantic_segmentation(output, target_sizes=[item[0].shape for item in batch])
    # one by one, since frames may differ in size
    for prediction, (frame, mask, image_id, patient_id) in zip(found, batch, strict=True):
        size = Size(frame.shape[1], frame.shape[0])
        target = label_map(mask, len(scores.labels), size, image_id)
        scores.update(prediction.numpy(force=True)[None], target[None], [image_id], [patient_id])


def _add_boxes(scores: DetectionScores, output: Any, batch: list[Item], processor: VasoMIMImageProcessor) -> None:
    sizes = [item[0].shape for item in batch]
    found = processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
    predictions, targets = [], []
    for prediction, (frame, objects, image_id, _) in zip(found, batch, strict=True):
        size = Size(frame.shape[1], frame.shape[0])
        corners, labels, confidence = (prediction[name].numpy(force=True) for name in ("boxes", "labels", "scores"))
        predictions.append(Boxes(corners.astype(np.float64), labels, confidence.astype(np.float64)))
        true, true_labels = corner_boxes(objects, len(scores.labels), size, image_id, FaultReport())
        targets.append(Boxes(true.astype(np.float64) * [*size, *size], true_labels))
    scores.update(predictions, targets, [item[2] for item in batch], [item[3] for item in batch])


def _add_classes(
    scores: ClassificationScores, output: Any, batch: list[Item], processor: VasoMIMImageProcessor
) -> None:
    probabilities = output.logits.float().softmax(dim=1).numpy(force=True)
    scores.update(probabilities, np.array([item[1] for item in batch]), [i[2] for i in batch], [i[3] for i in batch])
