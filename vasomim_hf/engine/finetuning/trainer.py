"""Fine-tuning with `transformers.Trainer`: from a run configuration to a folder for `from_pretrained`."""

import json
import logging
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

from ...folders import atomic_file, new_folder
from ...image_processing_vasomim import VasoMIMImageProcessor
from ...import_utils import require
from ..pretraining.loop import TrainingResult
from ..run_config import RunConfigError
from ..tasks.registry import find_task
from .callbacks import EpochCallback, LogCallback, LossGuard, StopCallback, ValidationPictures
from .decoded import Collator, DecodeOptions, FinetuneDataset, Samples, decode, private_folder
from .layer_decay import LayerWiseAdamW
from .rows import TaskData, load_task_data
from .run import BEST, FinetuneRun, check_stored_run
from .weights import build_finetune_model


logger = logging.getLogger(__name__)

CHECKPOINTS_NAME = "checkpoints"
METRICS_NAME = "metrics.json"
# the last file that Trainer writes to a checkpoint
_STATE_NAME = "trainer_state.json"


@dataclass(frozen=True, eq=False)
class FinetuneParts:
    """Components of a fine-tuning run.

    Args:
        model (`nn.Module`): Model with a head.
        image_processor (`VasoMIMImageProcessor`): Image processor with the image size of the run.
        training, validation (`FinetuneDataset`): Decoded frames.
        id2label (`dict[int, str]`): Class names.
    """

    model: nn.Module
    image_processor: VasoMIMImageProcessor
    training: FinetuneDataset
    validation: FinetuneDataset
    id2label: dict[int, str]


def finetune(run: FinetuneRun) -> TrainingResult:
    """Fine-tune a model. The model and its image processor are written to `output_dir`.

    Args:
        run (`FinetuneRun`): Run configuration.

    Returns:
        `TrainingResult`: Whether training is finished; `folder` is `output_dir`, or the last checkpoint.

    Raises:
        ValueError: If the run does not match its data, its initial weights or an earlier run in the same folder.
        TrainingDivergedError: If the loss is not finite.
    """
    checkpoint = checkpoint_to_resume(run)
    if checkpoint is None and is_finished(run):
        logger.info("%s already contains the finished run", run.output_dir)
        return TrainingResult(True, read_metrics(run)["step"], run.result_folder, True)
    prepare_process(run)
    logger.info("reading %s", run.data)
    data = load_task_data(run)
    model = build_finetune_model(run, data.id2label)
    return finetune_model(run, model, data, checkpoint)


def finetune_model(
    run: FinetuneRun, model: nn.Module, data: TaskData, checkpoint: Path | None = None
) -> TrainingResult:
    """Fine-tune an existing model.

    Args:
        run (`FinetuneRun`): Run configuration.
        model (`nn.Module`): Returns `loss` and `logits`, like the models of this package.
        data (`TaskData`): Training and validation rows.
        checkpoint (`Path`, *optional*): Checkpoint to resume from.

    Returns:
        `TrainingResult`: As for [`finetune`].
    """
    run.save()
    with private_folder(Path(run.cache_dir)) as folder:
        parts = make_parts(run, model, data, folder)
        _check_resumed(run, parts.training.samples, checkpoint)
        return _train(run, parts, checkpoint, ValidationPictures(run, model, parts.image_processor, data))


def prepare_process(run: FinetuneRun) -> None:
    """Set the number of threads of torch and OpenCV."""
    if run.num_threads is not None:
        torch.set_num_threads(run.num_threads)
    require("cv2", "data").setNumThreads(1)


def make_parts(run: FinetuneRun, model: nn.Module, data: TaskData, folder: Path) -> FinetuneParts:
    """Decode the frames for a training run and assemble its components.

    Args:
        run (`FinetuneRun`): Run configuration.
        model (`nn.Module`): Model with a head.
        data (`TaskData`): Training and validation rows.
        folder (`Path`): Folder for decoded frames.

    Returns:
        `FinetuneParts`: Components.
    """
    kind, count = run.kind, len(data.id2label)
    scale = run.working_scale if run.augment else None
    training = decode(data.training, DecodeOptions(kind, count, run.image_size, scale), folder / "training")
    validation = decode(data.validation, DecodeOptions(kind, count, run.image_size), folder / "validation")
    check_classes(training, validation, data.id2label)
    _check_choice(run, validation)
    return FinetuneParts(
        model=model,
        image_processor=make_image_processor(run),
        training=FinetuneDataset(training, run.image_size, run.seed, run.augmentation_options()),
        validation=FinetuneDataset(validation, run.image_size),
        id2label=data.id2label,
    )


def make_image_processor(run: FinetuneRun) -> VasoMIMImageProcessor:
    """Image processor with the image size of a run."""
    return VasoMIMImageProcessor(size={"height": run.image_size, "width": run.image_size})


def check_classes(training: Samples, validation: Samples, id2label: dict[int, str]) -> None:
    """Warn about classes that do not occur, and raise an error if there is nothing to train on.

    Args:
        training, validation (`Samples`): Decoded frames.
        id2label (`dict[int, str]`): Class names.

    Raises:
        RunConfigError: If nothing is annotated, or a class is missing in the training frames of a classifier.
    """
    task = training.task
    first = task.first_class
    missing = {
        what: [id2label[number] for number in range(first, len(id2label)) if samples.counts[number] == 0]
        for what, samples in (("training", training), ("validation", validation))
    }
    if len(missing["training"]) == len(id2label) - first:
        raise RunConfigError(
            f"None of the {len(training)} training frames has {', '.join(missing['training'])}: there is nothing to "
            "learn. Use more frames, or other columns."
        )
    if task.needs_every_class and missing["training"]:
        raise RunConfigError(
            f"None of the {len(training)} training frames is {', '.join(missing['training'])}. Raise train_fraction "
            "or max_frames, or change the seed."
        )
    for what, names in missing.items():
        if names:
            logger.warning("no %s frame has %s: predictions and scores for it are meaningless", what, ", ".join(names))


def _check_choice(run: FinetuneRun, validation: Samples) -> None:
    """Reject a metric that would always be 0: the first evaluated weights would be selected as best."""
    first = validation.task.first_class
    needed = 2 if run.decisive_metric == "auroc" else 1
    chooses = run.final_weights == BEST or run.patience is not None
    if chooses and not run.metric_is_loss and (validation.counts[first:] > 0).sum() < needed:
        raise RunConfigError(
            f"The {len(validation)} validation frames have fewer than {needed} of the classes, so "
            f"{run.decisive_metric} cannot select the best weights. Use other frames, metric: loss, or final_weights: last "
            "without patience."
        )


def _train(
    run: FinetuneRun, parts: FinetuneParts, checkpoint: Path | None, draw: ValidationPictures
) -> TrainingResult:
    arguments = training_arguments(run, len(parts.training))
    log = LogCallback(Path(run.output_dir), run.tensorboard, _frames_per_step(run), draw)
    guard = LossGuard(Path(run.output_dir), parts.training.samples.image_ids)
    guard.attach(parts.model)
    stop = StopCallback()
    early = [] if run.patience is None else [EarlyStoppingCallback(early_stopping_patience=run.patience)]
    epochs = EpochCallback(parts.training, steps_per_epoch(run, len(parts.training)))
    trainer = make_trainer(run, parts, arguments, [guard, log, epochs, stop, *early])
    logger.info("%d training and %d validation frames", len(parts.training), len(parts.validation))
    with log.open():
        with stop.signal.listening():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return _finish(run, parts, trainer, log, stop)


def _finish(
    run: FinetuneRun, parts: FinetuneParts, trainer: Trainer, log: LogCallback, stop: StopCallback
) -> TrainingResult:
    """After the last step: save a checkpoint to resume from, or the final model and its score."""
    step, is_main = trainer.state.global_step, trainer.is_world_process_zero()
    if stop.signal.came and step < trainer.state.max_steps and not _gave_up(trainer):
        folder = newest_checkpoint(Path(run.output_dir)) or Path(run.output_dir)
        return TrainingResult(False, step, folder, is_main)
    log.kind = "final"
    metrics = trainer.evaluate()
    if is_main:
        about = {
            "step": step,
            "best_step": trainer.state.best_global_step if run.final_weights == BEST else step,
            "chosen_by": run.decisive_metric if run.final_weights == BEST else None,
            "metrics": _plain(metrics),
            "frames_per_second": round(log.frames_per_second, 2),
            "num_training_frames": len(parts.training),
        }
        write_model(run, parts.model, parts.image_processor, about)
    return TrainingResult(True, step, run.result_folder, is_main)


def _gave_up(trainer: Trainer) -> bool:
    """Whether early stopping ended training; in a resumed run, its callback is not the one that was passed."""
    found = (one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback))
    return any(one.early_stopping_patience_counter >= one.early_stopping_patience for one in found)


def make_trainer(run: FinetuneRun, parts: FinetuneParts, arguments: TrainingArguments, callbacks: list) -> Trainer:
    """Create the `Trainer` of a run.

    Args:
        run (`FinetuneRun`): Run configuration.
        parts (`FinetuneParts`): Components.
        arguments (`TrainingArguments`): From [`training_arguments`].
        callbacks (`list`): Callbacks.

    Returns:
        `Trainer`: Ready to train.
    """
    labels = [parts.id2label[number] for number in sorted(parts.id2label)]
    meter = find_task(run.kind).make_meter(labels, parts.image_processor, run.image_size)
    factors = {
        "lr": run.peak_learning_rate(_frames_per_step(run)),
        "layer_decay": run.layer_decay,
        "weight_decay": run.weight_decay,
        "betas": (run.betas[0], run.betas[1]),
    }
    trainer = Trainer(
        model=parts.model,
        args=arguments,
        data_collator=Collator(tuple(parts.image_processor.image_mean), tuple(parts.image_processor.image_std)),
        train_dataset=parts.training,
        eval_dataset=parts.validation,
        compute_metrics=meter,
        preprocess_logits_for_metrics=meter.choose,
        optimizer_cls_and_kwargs=(LayerWiseAdamW, factors),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(run: FinetuneRun, num_frames: int) -> TrainingArguments:
    """Arguments of `Trainer` for a run.

    Args:
        run (`FinetuneRun`): Run configuration.
        num_frames (`int`): Number of training frames.

    Returns:
        `TrainingArguments`: For [`make_trainer`].
    """
    require("accelerate", "training")
    steps = num_steps(run, num_frames)
    every = max(1, math.ceil(steps / run.num_evaluations))
    has_accelerator = torch.accelerator.is_available()
    precision = run.precision
    return TrainingArguments(
        output_dir=str(Path(run.output_dir) / CHECKPOINTS_NAME),
        max_steps=steps,
        per_device_train_batch_size=run.batch_size,
        per_device_eval_batch_size=run.batch_size,
        gradient_accumulation_steps=run.gradient_accumulation_steps,
        learning_rate=run.peak_learning_rate(_frames_per_step(run)),
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": run.min_learning_rate_ratio},
        warmup_steps=min(int(run.warmup_ratio * steps), steps - 1),
        max_grad_norm=run.clip_grad_norm or 0.0,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not has_accelerator,
        dataloader_num_workers=run.num_workers,
        dataloader_pin_memory=has_accelerator,
        seed=run.seed,
        data_seed=run.seed,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every if run.num_checkpoints is None else max(1, math.ceil(steps / run.num_checkpoints)),
        save_total_limit=2,
        # early stopping needs the best metric too
        load_best_model_at_end=run.final_weights == BEST,
        metric_for_best_model=run.decisive_metric,
        greater_is_better=not run.metric_is_loss,
        batch_eval_metrics=True,
        remove_unused_columns=False,
        label_names=["labels"],
        logging_steps=run.log_every_steps,
        # a non-finite loss is an error here and must not be filtered from means
        logging_nan_inf_filter=False,
        restore_callback_states_from_checkpoint=True,
        disable_tqdm=True,
        report_to="none",
    )


def num_steps(run: FinetuneRun, num_frames: int) -> int:
    """Number of optimiser steps of a run.

    Args:
        run (`FinetuneRun`): Run configuration.
        num_frames (`int`): Number of training frames.

    Returns:
        `int`: At least one, and at least `min_steps`.
    """
    return max(1, math.ceil(run.epochs * steps_per_epoch(run, num_frames)), run.min_steps)


def steps_per_epoch(run: FinetuneRun, num_frames: int) -> int:
    """Optimiser steps per epoch; the last one may be smaller."""
    return math.ceil(num_frames / _frames_per_step(run))


def _frames_per_step(run: FinetuneRun) -> int:
    return run.batch_size * run.gradient_accumulation_steps * int(os.environ.get("WORLD_SIZE", "1"))


# Folders
# --------------------------------------------------------------------------------------------------------------


def write_model(run: FinetuneRun, model: Any, image_processor: VasoMIMImageProcessor, about: dict[str, Any]) -> None:
    """Write the model, its image processor and its metrics to the result folder.

    Args:
        run (`FinetuneRun`): Run configuration.
        model (`PreTrainedModel`): Trained model; anything with `save_pretrained`.
        image_processor (`VasoMIMImageProcessor`): Image processor with the image size of the run.
        about (`dict[str, Any]`): Contents of `metrics.json`.
    """
    with new_folder(run.result_folder, overwrite=True) as temporary:
        model.save_pretrained(temporary)
        image_processor.save_pretrained(temporary)
        (temporary / METRICS_NAME).write_text(json.dumps(about, indent=1), encoding="utf-8")
        for path in temporary.iterdir():
            open_to_others(path)


def open_to_others(path: Path) -> None:
    """Apply the umask to a file: safetensors creates its files for the owner only."""
    example = path.with_name(f".{path.name}.mode")
    example.touch()
    path.chmod(stat.S_IMODE(example.stat().st_mode))
    example.unlink()


def read_metrics(run: FinetuneRun) -> dict[str, Any]:
    """Contents of `metrics.json` of a finished run."""
    return json.loads((run.result_folder / METRICS_NAME).read_text(encoding="utf-8"))


def is_finished(run: FinetuneRun) -> bool:
    """Whether `output_dir` contains a finished run."""
    return (run.result_folder / METRICS_NAME).is_file()


def newest_checkpoint(folder: Path) -> Path | None:
    """Complete checkpoint of a run with the highest step, or `None`."""
    found = [path for path in (folder / CHECKPOINTS_NAME).glob("checkpoint-*") if _is_complete(path)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_complete(checkpoint: Path) -> bool:
    """Whether the last file of a checkpoint exists and is complete; a process may be killed while writing."""
    try:
        json.loads((checkpoint / _STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def checkpoint_to_resume(run: FinetuneRun) -> Path | None:
    """Checkpoint that `resume` refers to, or `None` to start from scratch.

    Args:
        run (`FinetuneRun`): Run configuration.

    Returns:
        `Path` or `None`: A complete checkpoint; also `None` if the run is finished.

    Raises:
        FileNotFoundError: If a named checkpoint is missing or incomplete.
        ValueError: If training would start in a folder that already has a run, or resume with other settings.
    """
    newest = newest_checkpoint(Path(run.output_dir))
    if run.resume == "auto":
        # a run without a checkpoint can be started again with other settings
        if newest is not None or is_finished(run):
            check_stored_run(run, run.output_dir)
        return None if is_finished(run) else newest
    if run.resume != "never":
        if not _is_complete(Path(run.resume)):
            raise FileNotFoundError(
                f"{run.resume} is not a complete checkpoint. Use --resume auto to find the newest."
            )
        check_stored_run(run, Path(run.resume).resolve().parents[1])
        return Path(run.resume)
    if newest is not None or is_finished(run):
        raise RunConfigError(
            f"{run.output_dir} already has a run. Resume it with --resume auto, or choose another output_dir."
        )
    return None


def _check_resumed(run: FinetuneRun, samples: Samples, checkpoint: Path | None) -> None:
    """Check that a resumed run uses the same frames, by the settings saved with the checkpoints."""
    path = Path(run.output_dir) / CHECKPOINTS_NAME / "data.json"
    now = {"image_ids": samples.image_ids, "frames_per_step": _frames_per_step(run), "seed": run.seed}
    if checkpoint is not None and path.is_file() and json.loads(path.read_text(encoding="utf-8")) != now:
        raise RunConfigError(
            f"{checkpoint} was created with other frames, another seed or another number of frames per step. Use the "
            "same, or start in another output_dir."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(now), encoding="utf-8")


def _plain(metrics: dict[str, Any]) -> dict[str, float]:
    """Validation metrics without the timings that `Trainer` adds."""
    return {
        name.removeprefix("eval_"): float(value)
        for name, value in metrics.items()
        if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))
    }
