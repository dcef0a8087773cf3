"""Frames, labels and answers of models with known answers come together at the size of the annotated frame."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput, SemanticSegmenterOutput
from transformers.utils import ModelOutput

from vasomim_hf import VasoMIMImageProcessor
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram
from vasomim_hf.engine.evaluating.scoring import FrameScorer, ScoringOptions
from vasomim_hf.engine.finetuning.rows import LabelledRows
from vasomim_hf.engine.finetuning.run import CLASSIFICATION, DETECTION, SEGMENTATION


# height, width: not square, and of several sizes
SIZES = [(48, 80), (64, 40), (48, 80)]


class Answer(nn.Module):
    """Says what it is told to, and keeps what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, pixel_values):
        assert not self.training, "dropout and the like must be off"
        self.seen.append(tuple(pixel_values.shape))
        return self.answer(pixel_values)


def rows_of(column, labels, **columns):
    images = [Image.fromarray(synthetic_angiogram(seed, size=80).image[:h, :w]) for seed, (h, w) in enumerate(SIZES)]
    return LabelledRows(datasets.Dataset.from_dict({"image": images, column: labels, **columns}), column, "image")


def scorer_of(kind, answer, labels, **options):
    processor = VasoMIMImageProcessor(size={"height": 32, "width": 32})
    return FrameScorer(kind, Answer(answer), processor, labels, ScoringOptions(**options))


def test_boxes_are_compared_in_pixels_of_the_annotated_frame():
    # the right half of the frame, and the left upper quarter
    def answer(pixel_values):
        boxes = torch.tensor([[0.75, 0.5, 0.5, 1.0], [0.25, 0.25, 0.5, 0.5]]).repeat(len(pixel_values), 1, 1)
        logits = torch.tensor([[4.0, -9.0], [-9.0, 3.0]]).repeat(len(pixel_values), 1, 1)
        return ModelOutput(logits=logits, pred_boxes=boxes)

    objects = [{"bbox": [[w / 2, 0, w / 2, h], [0, 0, w / 2, h / 2]], "category": [0, 1]} for h, w in SIZES]
    rows = rows_of("objects", objects)
    scorer = scorer_of(DETECTION, answer, ["a", "b"], batch_size=2)
    for (height, width), frame in zip(SIZES, scorer.frames(rows), strict=True):
        expected = [[width / 2, 0, width, height], [0, 0, width / 2, height / 2]]
        np.testing.assert_allclose(frame.target.corners, expected, atol=1e-4)
        np.testing.assert_allclose(frame.prediction.corners[:2], expected, atol=1e-4)
        assert frame.prediction.labels[:2].tolist() == frame.target.labels.tolist() == [0, 1]
    assert scorer.model.seen == [(2, 3, 32, 32), (1, 3, 32, 32)]
    assert scorer.score(rows).summary()["ap"].value == pytest.approx(1.0)


def halves(pixel_values):
    """Class 1 in the left half, class 2 in the right, the background nowhere."""
    logits = torch.full((len(pixel_values), 3, 32, 32), -3.0)
    logits[:, 1, :, :16], logits[:, 2, :, 16:] = 3.0, 3.0
    return SemanticSegmenterOutput(logits=logits)


def test_masks_are_compared_by_class_and_pixels_to_ignore_count_nowhere():
    masks = [np.ones((h, w), dtype=np.uint8) for h, w in SIZES]
    for mask in masks:
        mask[:, mask.shape[1] // 2 :] = 2
    # half of the right class is not known in the first frame, and wrong in the second
    masks[0][:24, 40:], masks[1][:32, 20:] = 255, 1
    patients = ["p", None, ""]
    rows = rows_of("mask", [Image.fromarray(mask) for mask in masks], patient_id=patients)
    scores = scorer_of(SEGMENTATION, halves, ["background", "a", "b"], batch_size=3).score(rows)
    assert [row.patient_id for row in scores.rows] == ["p", None, None]
    assert [row.image_id for row in scores.rows] == ["0", "1", "2"]
    summary = scores.summary()
    # a: 40 columns of 48 rows twice, 20 of 64 with as much again missed; b: 20 × 32 found where a is
    a, b = 2 * 40 * 48 + 20 * 64, 40 * 24 + 20 * 32 + 40 * 48
    assert summary["pooled_dice/a"].value == pytest.approx(2 * a / (2 * a + 20 * 32))
    assert summary["pooled_dice/b"].value == pytest.approx(2 * b / (2 * b + 20 * 32))
    assert summary["pooled_dice"].value == 1.0, "which of the classes it is does not matter here"
    assert 0 < summary["ece"].value < 1, "what is sure and right is known"


def test_classes_and_patients_come_together():
    def answer(pixel_values):
        return ImageClassifierOutput(logits=torch.tensor([0.0, 1.0]).repeat(len(pixel_values), 1))

    rows = rows_of("label", [1, 0, 1], patient_id=["p", "q", "p"], image_id=["x", "y", "z"])
    scores = scorer_of(CLASSIFICATION, answer, ["left", "right"], batch_size=2).score(rows)
    assert scores.summary()["accuracy"].value == pytest.approx(2 / 3)
    assert [(row.image_id, row.patient_id) for row in scores.rows] == [("x", "p"), ("y", "q"), ("z", "p")]
    assert scores.rows[0].values["confidence"] == pytest.approx(torch.tensor([0.0, 1.0]).softmax(0)[1].item())
