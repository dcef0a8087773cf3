"""Run files of fine-tuning: one YAML file per run, with typed and documented keys.

Read, changed by `--key value` and written by the functions of [`run_config`](run_config.py). Numbers that belong to a
checkpoint are the model's configuration, set under `model`.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from ...configuration_vasomim import VasoMIMConfig
from ...data.augmentation import FLIP_PROBABILITY, AugmentationOptions
from ...data.published.registry import ARCADE, DATASETS, find_dataset
from ..run_config import RUN_FILE_NAME, SCRATCH, AdamWRun, RunConfigError, key, load_run
from ..tasks.registry import find_task
from ..tasks.task import CLASSIFICATION, DETECTION, SEGMENTATION


MAE = "mae"
BEST, LAST = "best", "last"
# Keys that do not affect the resulting model, such as paths
_FREE = (
    *("data", "output_dir", "cache_dir", "resume", "num_workers", "num_threads"),
    *("log_every_steps", "tensorboard", "picture_every_epochs", "num_pictures"),
)


@dataclass
class FinetuneRun(AdamWRun):
    """Keys of every fine-tuning run."""

    kind: ClassVar[str] = ""
    nested: ClassVar[dict[str, type]] = {"model": VasoMIMConfig, "augmentation": AugmentationOptions}

    dataset: str = key(ARCADE, f"{', '.join(DATASETS)}; a table has the columns below")
    task: str = key("", "task of the data set; for a table, any name")
    validation_split: str | None = key(
        "val", "split that chooses the best weights; null holds out part of train_split"
    )
    validation_fraction: float = key(0.1, "fraction of train_split to hold out without a validation_split, by patient")
    train_fraction: float = key(
        1.0, "fraction of the training frames to use, in (0, 1]; drawn by `seed`, smaller ones are part of larger ones"
    )
    labels: dict = key({}, "id: name of each class of a table whose columns have none; background is 0 in masks")

    init: str = key(
        SCRATCH,
        "folder or Hub id of a pre-trained VasoMIM (or ViT-MAE), mae (facebook/vit-mae-base, natural images), or scratch "
        "(random weights)",
    )
    preset: str = key("tiny", "size of a model from scratch: tiny, small, base, large or huge")

    image_size: int = key(224, "side in pixels that frames are resized to")
    working_scale: float = key(1.25, "frames are kept at most this many times larger, for augmentation to zoom in")
    augmentation: dict = key({}, "options of the augmentation, e.g. {rotation: 20}; {} takes its defaults")
    augment: bool = key(True, "whether to augment training frames")

    epochs: float = key(50.0, "passes over the training frames")
    min_steps: int = key(0, "smallest number of optimiser steps; raises the epochs where there are few frames")
    batch_size: int = key(16, "frames in a batch of one process")
    learning_rate: float | None = key(1e-3, "peak learning rate of the head; the encoder's is scaled by layer_decay")
    layer_decay: float = key(0.75, "learning rate of a layer relative to the next one (BEiT), in (0, 1]")
    warmup_ratio: float = key(0.1, "fraction of training with a linear warm-up")
    min_learning_rate_ratio: float = key(0.01, "fraction of the peak learning rate that the cosine ends at")
    betas: list[float] = key([0.9, 0.999], "betas of AdamW")
    clip_grad_norm: float | None = key(1.0, "maximum gradient norm; null disables clipping")

    num_evaluations: int = key(20, "evaluations on the validation frames, evenly spread over training")
    metric: str | None = key(
        None,
        "validation metric that chooses; null takes pooled_dice (of many classes pooled_mean_class_dice), ap50 or "
        "balanced_accuracy",
    )
    final_weights: str = key(BEST, "weights of the result: best, by the metric, or last")
    num_checkpoints: int | None = key(None, "checkpoints, for final_weights: last; null saves one at each evaluation")
    patience: int | None = key(None, "stop after this many evaluations without improvement; null trains to the end")

    @property
    def decisive_metric(self) -> str:
        """The validation metric that chooses the best weights."""
        return self.metric or find_task(self.kind).default_metric

    @property
    def metric_is_loss(self) -> bool:
        """Whether smaller is better."""
        return self.decisive_metric == "loss"

    def augmentation_options(self) -> AugmentationOptions | None:
        """Augmentation of training frames, or `None`; the flip probability depends on the task unless the run sets it."""
        if not self.augment:
            return None
        flip = FLIP_PROBABILITY.get(self.task, 0.0)
        return AugmentationOptions(**{"flip_probability": flip, **self.augmentation})

    def validate(self) -> None:
        """Raise an error for invalid settings.

        Raises:
            RunConfigError: If a required key is missing, a number out of range or a choice unknown.
        """
        super().validate()
        self._check_choices()
        self._check_numbers()
        try:
            self.augmentation_options()
        except ValueError as error:
            raise RunConfigError(f"`augmentation`: {error}") from error

    def _check_choices(self) -> None:
        try:
            entry = find_dataset(self.dataset)
            if not entry.is_table:
                entry.find_task(self.task, (find_task(self.kind).column,))
        except ValueError as error:
            raise RunConfigError(f"{error} The run is for {self.kind}.") from error
        self.require_choice("final_weights", (BEST, LAST))
        if self.metric is not None:
            self.require_choice("metric", find_task(self.kind).metrics)
        if self.num_checkpoints is not None and self.final_weights == BEST:
            raise RunConfigError(
                "`num_checkpoints` needs final_weights: last. The best weights are those of an evaluation."
            )
        if self.validation_split is not None and self.validation_split in self.train_split.split("+"):
            raise RunConfigError(
                f"`validation_split` {self.validation_split!r} is also used for training. Use null to hold out a part of it."
            )

    def _check_numbers(self) -> None:
        self.require_range(1, None, "image_size", "num_evaluations", "patience", "num_checkpoints", "working_scale")
        self.require_range(0, None, "min_steps")
        self.require_range(0, 1, "train_fraction", "validation_fraction", "layer_decay")
        for name in ("train_fraction", "layer_decay", "epochs"):
            if not getattr(self, name) > 0:
                raise RunConfigError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        if self.validation_split is None and not 0 < self.validation_fraction < 1:
            raise RunConfigError(
                f"`validation_fraction` must be in (0, 1) without a validation_split, got {self.validation_fraction}."
            )


@dataclass
class SegmentationRun(FinetuneRun):
    """Fine-tuning of [`VasoMIMForSemanticSegmentation`]."""

    kind: ClassVar[str] = SEGMENTATION

    task: str = key("vessel", "vessel, segments or stenosis; for a table, any name")
    mask_column: str = key(
        "mask",
        "column of the masks of a table: two classes as 0 and 255 or as 0 and 1, more as class ids where 255 is "
        "ignored",
    )
    ignore_white: bool = key(
        False, "whether 255 in masks of two classes marks pixels to ignore, instead of foreground"
    )

    @property
    def decisive_metric(self) -> str:
        """The validation metric used to select the best weights: for many classes their mean Dice."""
        return self.metric or (
            "pooled_mean_class_dice" if self.task == "segments" else find_task(self.kind).default_metric
        )


@dataclass
class DetectionRun(FinetuneRun):
    """Fine-tuning of [`VasoMIMForObjectDetection`]."""

    kind: ClassVar[str] = DETECTION

    task: str = key("stenosis_boxes", "stenosis_boxes or stenosis_severity_boxes; for a table, any name")
    objects_column: str = key("objects", "column of the boxes of a table: bbox (left, top, width, height), category")


@dataclass
class ClassificationRun(FinetuneRun):
    """Fine-tuning of [`VasoMIMForImageClassification`], or a linear probe of its frozen encoder."""

    kind: ClassVar[str] = CLASSIFICATION

    task: str = key("side", "side; for a table, any name")
    label_column: str = key("label", "column of the class ids of a table")
    linear_probe: bool = key(
        False, "freeze the encoder, compute features once and fit logistic regression until convergence"
    )
    probe_weight_decays: list[float] = key(
        [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0], "candidates, selected on a fifth of the training frames"
    )

    def validate(self) -> None:
        """Raise an error for invalid settings; see [`FinetuneRun.validate`]."""
        super().validate()
        if not self.probe_weight_decays or not all(value >= 0 for value in self.probe_weight_decays):
            raise RunConfigError(f"`probe_weight_decays` must be numbers >= 0, got {self.probe_weight_decays}.")


RUNS: dict[str, type[FinetuneRun]] = {
    SEGMENTATION: SegmentationRun,
    DETECTION: DetectionRun,
    CLASSIFICATION: ClassificationRun,
}


def check_stored_run(run: FinetuneRun, folder: str | Path) -> None:
    """Raise an error if a run is resumed with settings that change its result.

    Args:
        run (`FinetuneRun`): Current run configuration.
        folder (`str` or `Path`): Folder with the original `run.yaml`; without one nothing is compared.

    Raises:
        RunConfigError: If a setting that affects the result has changed.
    """
    path = Path(folder) / RUN_FILE_NAME
    if not path.is_file():
        return
    before = load_run(type(run), path)
    names = [item.name for item in fields(run) if item.name not in _FREE]
    changed = [name for name in names if getattr(run, name) != getattr(before, name)]
    if changed:
        told = "; ".join(f"`{name}` {getattr(before, name)!r}, now {getattr(run, name)!r}" for name in changed)
        raise RunConfigError(
            f"{path.parent} was begun with other settings: {told}. Use the same, remove the folder, or begin in "
            "another output_dir."
        )
