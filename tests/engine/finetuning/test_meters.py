"""Validation in training: batch by batch, the numbers of the evaluation, and no logits kept."""

import pickle
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from miniatures.finetuning import SIZE, run_of, vessel_table
from transformers import EvalPrediction, Trainer

from vasomim_hf.engine.finetuning import trainer as finetuning
from vasomim_hf.engine.finetuning.run import (
    CLASSIFICATION,
    DETECTION,
    SEGMENTATION,
    ClassificationRun,
    DetectionRun,
    SegmentationRun,
)
from vasomim_hf.engine.finetuning.trainer import finetune
from vasomim_hf.engine.tasks.registry import find_task
from vasomim_hf.evaluation.mask_metrics import dice
from vasomim_hf.image_processing_vasomim import VasoMIMImageProcessor


pytest.importorskip("pycocotools", reason="needs the extra eval")
LABELS = {0: "background", 1: "vessel"}
BATCH = 4


def meter_of(kind: str):
    return find_task(kind).make_meter(list(LABELS.values()), VasoMIMImageProcessor(), SIZE)


def batch_of(kind: str, seed: int) -> EvalPrediction:
    """What `Trainer` hands to a meter: the model's output after `choose`, and the labels."""
    rng = torch.Generator().manual_seed(seed)
    if kind == SEGMENTATION:
        logits = torch.randn(BATCH, 2, SIZE, SIZE, generator=rng)
        labels = (torch.rand(BATCH, SIZE, SIZE, generator=rng) < 0.3).long()
    elif kind == DETECTION:
        boxes = torch.rand(BATCH, 500, 4, generator=rng) * 0.3 + 0.1
        logits = ({"class_loss": torch.zeros(())}, torch.randn(BATCH, 500, 2, generator=rng), boxes)
        labels = [{"class_labels": torch.tensor([1]), "boxes": boxes[i, :1]} for i in range(BATCH)]
    else:
        logits, labels = torch.randn(BATCH, 2, generator=rng), torch.arange(BATCH) % 2
    return EvalPrediction(predictions=meter_of(kind).choose(logits, labels), label_ids=labels)


@pytest.mark.parametrize("kind", [SEGMENTATION, DETECTION, CLASSIFICATION])
def test_memory_grows_by_a_few_numbers_of_each_image(kind):
    meter, sizes = meter_of(kind), []
    for seed in range(9):
        meter(batch_of(kind, seed), compute_result=False)
        state = {name: value for name, value in vars(meter).items() if name != "image_processor"}
        sizes.append(len(pickle.dumps(state)))
    # a hundred boxes of six numbers at most; a map has 4096 pixels, the logits of a detector 500 x 6 numbers
    grown = (sizes[-1] - sizes[0]) / (8 * BATCH)
    assert grown < (9000 if kind == DETECTION else 700)
    before = meter(batch_of(kind, 9), compute_result=True)
    again = [meter(batch_of(kind, seed), compute_result=seed == 9) for seed in range(10)][-1]
    assert before == again, "a meter does not begin anew"


def test_dice_is_that_of_all_images_whatever_the_batches():
    meter, batches = meter_of(SEGMENTATION), [batch_of(SEGMENTATION, seed) for seed in range(3)]
    found = np.concatenate([batch.predictions.numpy() for batch in batches]) == 1
    true = np.concatenate([batch.label_ids.numpy() for batch in batches]) == 1
    metrics = [meter(batch, compute_result=number == 2) for number, batch in enumerate(batches)][-1]
    pooled = 2 * (found & true).sum() / (found.sum() + true.sum())
    assert metrics["dice"] == pytest.approx(float(np.mean(dice(found, true))))
    # with a single class beside the background, the two are the same
    assert metrics["pooled_dice"] == metrics["pooled_mean_class_dice"] == pytest.approx(pooled)


def test_ignored_pixels_count_for_nothing():
    meter, batch = meter_of(SEGMENTATION), batch_of(SEGMENTATION, 0)
    half = torch.ones(BATCH, SIZE, SIZE, dtype=torch.bool)
    half[:, :, SIZE // 2 :] = False
    labels = torch.where(half, batch.label_ids, 255)
    metrics = meter(EvalPrediction(batch.predictions, labels), compute_result=True)
    part = (batch.predictions[half].view(BATCH, -1) == 1).numpy(), (batch.label_ids[half].view(BATCH, -1) == 1).numpy()
    assert metrics["pooled_dice"] == pytest.approx(2 * (part[0] & part[1]).sum() / (part[0].sum() + part[1].sum()))


@pytest.mark.parametrize(
    ("run", "kind"),
    [(SegmentationRun, SEGMENTATION), (DetectionRun, DETECTION), (ClassificationRun, CLASSIFICATION)],
)
def test_every_metric_that_a_run_may_name_is_given(run, kind):
    given = meter_of(kind)(batch_of(kind, 0), compute_result=True)
    assert {"loss", *given} == set(find_task(run.kind).metrics) and find_task(run.kind).default_metric in given


def test_no_logits_outlive_their_batch(tmp_path, monkeypatch):
    alive: list[weakref.ref] = []
    most = SimpleNamespace(value=0, batches=0)
    real = Trainer.prediction_step

    def watched(trainer, *args, **kwargs):
        loss, logits, labels = real(trainer, *args, **kwargs)
        most.value = max(most.value, sum(reference() is not None for reference in alive))
        most.batches += 1
        alive.append(weakref.ref(logits))
        return loss, logits, labels

    monkeypatch.setattr(finetuning.Trainer, "prediction_step", watched)
    table = vessel_table(tmp_path / "table", train=2, val=8)
    finetune(run_of(SegmentationRun, table, tmp_path / "run", epochs=1, num_evaluations=1, batch_size=1))
    assert most.batches >= 8 and most.value <= 1
