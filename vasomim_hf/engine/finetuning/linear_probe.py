"""Linear probe: logistic regression on features of a frozen encoder, which are computed once.

Features are standardised, and the regression is fitted until convergence with L-BFGS (its minimum is unique, so
learning rate and epochs do not matter). The weight decay is selected on a fifth of the training frames.
Standardisation and regression are merged into one linear layer, the classifier of the model.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction

from ...folders import atomic_file
from ...progress import Progress
from ..pretraining.loop import TrainingResult
from ..tasks.classification import ClassificationMeter
from .decoded import Collator, FinetuneDataset, private_folder
from .logistic_regression import Features, fit_logistic_regression
from .rows import LabelledRows, hold_out, load_task_data
from .run import ClassificationRun
from .trainer import (
    FinetuneParts,
    checkpoint_to_resume,
    finetune,
    is_finished,
    make_parts,
    open_to_others,
    prepare_process,
    read_metrics,
    write_model,
)
from .weights import build_finetune_model


logger = logging.getLogger(__name__)

FEATURES_NAME = "features.safetensors"
CHOOSING_SHARE = 0.2
# keys of a run that only apply to iterative training
_UNUSED = (
    *("epochs", "min_steps", "gradient_accumulation_steps", "learning_rate", "min_learning_rate_ratio", "layer_decay"),
    *(
        "warmup_ratio",
        "weight_decay",
        "betas",
        "clip_grad_norm",
        "num_evaluations",
        "metric",
        "final_weights",
        "num_checkpoints",
        "patience",
    ),
    *("augmentation", "mixed_precision", "log_every_steps", "tensorboard", "picture_every_epochs"),
    *("num_pictures",),
)


def finetune_classification(run: ClassificationRun) -> TrainingResult:
    """Fine-tune a classifier or fit a linear probe, depending on the run.

    Args:
        run (`ClassificationRun`): Run configuration.

    Returns:
        `TrainingResult`: As for [`~finetuning.finetune`].

    Raises:
        ValueError: If the run does not match its data, its initial weights or an earlier run in the same folder.
    """
    return fit_linear_probe(run) if run.linear_probe else finetune(run)


def fit_linear_probe(run: ClassificationRun) -> TrainingResult:
    """Fit a linear probe. The classifier is written to `output_dir`, with `freeze_encoder` in its configuration.

    Args:
        run (`ClassificationRun`): Run configuration; epochs, learning rates and augmentation are ignored.

    Returns:
        `TrainingResult`: Finished.

    Raises:
        ValueError: If the run does not match its data or its initial weights.
    """
    checkpoint_to_resume(run)
    if is_finished(run):
        return TrainingResult(True, read_metrics(run)["step"], run.result_folder, True)
    prepare_process(run)
    _log_unused_keys(run)
    data = load_task_data(run)
    model: Any = build_finetune_model(run, data.id2label)
    model.freeze_encoder()
    run.save()
    with private_folder(Path(run.cache_dir)) as folder:
        # without a margin for augmentation, training frames are resized once, as by the image processor
        parts = make_parts(dataclasses.replace(run, augment=False), model, data, folder)
        training, validation = (_features(run, parts, dataset) for dataset in (parts.training, parts.validation))
    with atomic_file(Path(run.output_dir) / FEATURES_NAME) as temporary:
        tensors = {"training": training.values, "training_labels": training.labels}
        save_file({**tensors, "validation": validation.values, "validation_labels": validation.labels}, temporary)
        open_to_others(temporary)
    weight_decay, scores = choose_weight_decay(training, data.training, run)
    layer = fit_logistic_regression(training, len(data.id2label), weight_decay)
    model.classifier.load_state_dict(layer.state_dict())
    metrics = _scores(layer, validation, list(data.id2label.values()))
    logger.info("weight decay %g, validation %s", weight_decay, metrics)
    about = {
        "step": 0,
        "metrics": metrics,
        "weight_decay": weight_decay,
        "scores_of_weight_decays": scores,
        "num_training_frames": len(training.labels),
    }
    write_model(run, model.eval(), parts.image_processor, about)
    return TrainingResult(True, 0, run.result_folder, True)


def _log_unused_keys(run: ClassificationRun) -> None:
    default = ClassificationRun()
    given = [name for name in _UNUSED if getattr(run, name) != getattr(default, name)]
    if given:
        logger.info("a linear probe is fitted until convergence, in float32; it ignores %s", ", ".join(given))


@torch.no_grad()
def _features(run: ClassificationRun, parts: FinetuneParts, dataset: FinetuneDataset) -> Features:
    """Features of frames without augmentation, in float32."""
    model: Any = parts.model.eval()
    device = "cpu" if not torch.accelerator.is_available() else str(torch.accelerator.current_accelerator())
    model.to(device)
    plain = FinetuneDataset(dataset.samples, run.image_size)
    collator = Collator(tuple(parts.image_processor.image_mean), tuple(parts.image_processor.image_std))
    values, labels = [], []
    loader = DataLoader(plain, batch_size=run.batch_size, collate_fn=collator, num_workers=run.num_workers)
    for batch in Progress(loader, what="computing features", unit="batches"):
        values.append(model.pooled_features(batch["pixel_values"].to(device)).float().cpu())
        labels.append(batch["labels"])
    model.to("cpu")
    return Features(torch.cat(values), torch.cat(labels))


def choose_weight_decay(
    features: Features, rows: LabelledRows, run: ClassificationRun
) -> tuple[float, dict[str, float]]:
    """Select the weight decay with the best score on training frames held out by patient.

    Args:
        features (`Features`): Features of all training frames.
        rows (`LabelledRows`): Rows of the same frames.
        run (`ClassificationRun`): Run configuration with candidates and seed.

    Returns:
        `tuple`: The weight decay with the smallest cross entropy on the held-out frames, and the cross entropy of each
        candidate. With a single candidate, or if the frames cannot be split with all classes in both parts, the middle
        candidate.
    """
    candidates = sorted(run.probe_weight_decays)
    middle = candidates[len(candidates) // 2]
    num_labels = int(features.labels.max()) + 1
    try:
        training, validation = (features.select(part) for part in hold_out(rows, CHOOSING_SHARE, run.seed))
    except ValueError:
        return middle, {}
    if len(candidates) == 1 or any(len(part.labels.unique()) < num_labels for part in (training, validation)):
        return middle, {}
    scores = {
        value: float(nn.functional.cross_entropy(_logits(training, num_labels, value, validation), validation.labels))
        for value in candidates
    }
    best = min(scores, key=lambda value: scores[value])
    return best, {f"{value:g}": round(score, 5) for value, score in scores.items()}


def _logits(training: Features, num_labels: int, weight_decay: float, validation: Features) -> torch.Tensor:
    with torch.no_grad():
        return fit_logistic_regression(training, num_labels, weight_decay)(validation.values)


@torch.no_grad()
def _scores(layer: nn.Linear, features: Features, labels: Sequence[str]) -> dict[str, float]:
    prediction = EvalPrediction(predictions=layer(features.values), label_ids=features.labels)
    return ClassificationMeter(labels)(prediction, compute_result=True)
