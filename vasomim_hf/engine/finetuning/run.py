"""Configuration of fine-tuning runs: one YAML file per run, with typed and documented keys.

Read, overridden by `--key value` and written by the functions of [`run_config`](run_config.py). Numbers that belong to a
checkpoint are in the model configuration, under `config`.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from ...configuration_vasomim import VasoMIMConfig
from ...data.augmentation import FLIP_PROBABILITY, AugmentationOptions
from ...data.published.registry import ARCADE, DATASETS, LABEL, MASK, OBJECTS, find_dataset
from ...inference.prediction import PRECISIONS
from ..run_config import RUN_FILE_NAME, RunConfigError, check_nested, load_run, make_run, save_run


SEGMENTATION, DETECTION, CLASSIFICATION = "segmentation", "detection", "classification"
SCRATCH, MAE = "scratch", "mae"
BEST, LAST = "best", "last"
# keys that do not affect the model, or are locations
_FREE = (
    *("data", "output_dir", "cache_dir", "resume", "num_workers", "num_threads"),
    *("log_every_steps", "tensorboard", "picture_every_epochs", "num_pictures"),
)

Kind = TypeVar("Kind", bound="FinetuneRun")


def key(default: object, text: str) -> Any:
    """A key of a run file with its default and help text."""
    if isinstance(default, dict | list):
        return field(default_factory=lambda: default.copy(), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class FinetuneRun:
    """Base class of fine-tuning runs. The help text of each key is in `metadata["help"]`, shown by `--help`."""

    kind: ClassVar[str] = ""
    # column of the annotations that such a run learns from
    column: ClassVar[str] = ""
    default_metric: ClassVar[str] = ""
    metrics: ClassVar[tuple[str, ...]] = ()

    data: str = key("", "folder of the data set; of a table also hf://datasets/OWNER/NAME")
    output_dir: str = key("", "folder for run.yaml, log, checkpoints and the final model")
    dataset: str = key(ARCADE, f"{', '.join(DATASETS)}; a table has the columns below")
    task: str = key("", "task of the data set; for a table, any name")
    train_split: str = key("train", "split to train on; several as train+val")
    validation_split: str | None = key("val", "split to select the best weights; null holds out part of train_split")
    validation_share: float = key(0.1, "fraction of train_split held out by patient if there is no validation_split")
    train_fraction: float = key(
        1.0, "fraction of the training frames to use, in (0, 1]; smaller ones are subsets of larger ones"
    )
    image_column: str = key("image", "column of the frames of a table; ids are in a column image_id, if it exists")
    labels: dict = key({}, "class names of a table by id, if not in its columns; background is 0 in masks")
    max_frames: int | None = key(None, "use only the first frames of each split")

    init: str = key(
        SCRATCH,
        "folder or Hub id of a pre-trained VasoMIM (or of a ViT-MAE), mae (facebook/vit-mae-base, natural images), or "
        "scratch (random weights)",
    )
    preset: str = key("tiny", "size of a model from scratch: tiny, small, base, large or huge")
    config: dict = key({}, "keys of VasoMIMConfig, e.g. {drop_path_rate: 0.1}")

    image_size: int = key(224, "input size in pixels")
    working_scale: float = key(1.25, "frames are stored up to this factor larger, so that augmentation can zoom in")
    augmentation: dict = key({}, "options of the augmentation, e.g. {rotation: 20}; {} uses the defaults")
    augment: bool = key(True, "whether training frames are augmented")
    cache_dir: str | None = key(None, "folder for decoded frames during the run; null uses output_dir")

    epochs: float = key(50.0, "number of epochs")
    min_steps: int = key(0, "minimum number of optimiser steps; adds epochs if there are few frames")
    batch_size: int = key(16, "frames per process and forward pass")
    gradient_accumulation_steps: int = key(1, "batches per optimiser step")
    learning_rate: float = key(1e-3, "peak learning rate of the head; scaled by layer_decay in the encoder")
    min_learning_rate_share: float = key(0.01, "final learning rate of the cosine, relative to the peak")
    layer_decay: float = key(0.75, "learning rate of a layer relative to the next one (BEiT), in (0, 1]")
    warmup_share: float = key(0.1, "fraction of the steps used for linear warm-up")
    weight_decay: float = key(0.05, "weight decay of AdamW; not applied to biases and norms")
    betas: list[float] = key([0.9, 0.999], "betas of AdamW")
    clip_grad_norm: float | None = key(1.0, "maximum gradient norm; null disables clipping")

    evaluations: int = key(20, "number of evaluations on the validation frames, evenly spaced")
    metric: str | None = key(
        None,
        "validation metric for selection; null uses pooled_dice (for many classes pooled_mean_class_dice), ap50 or "
        "balanced_accuracy",
    )
    keep: str = key(BEST, "weights of the final model: best, by the metric, or last")
    saves: int | None = key(None, "number of checkpoints with keep: last; null saves one at each evaluation")
    patience: int | None = key(
        None, "stop after this many evaluations without improvement; null disables early stopping"
    )

    mixed_precision: str = key("bf16", "no, bf16 or fp16")
    num_workers: int = key(0, "loader processes; 0 loads in the training process")
    num_threads: int | None = key(None, "CPU threads; null uses torch's default")
    seed: int = key(0, "random seed of weights, order, augmentation and train_fraction")
    resume: str = key("never", "never, auto (the newest complete checkpoint, if any) or a checkpoint folder")
    log_every_steps: int = key(10, "optimiser steps between log lines")
    tensorboard: bool = key(True, "also write a TensorBoard log to output_dir/tensorboard")
    picture_every_epochs: int = key(1, "epochs between pictures, made at evaluations; 0 disables them")
    num_pictures: int = key(4, "validation frames in a picture")

    @property
    def decisive_metric(self) -> str:
        """The validation metric used to select the best weights."""
        return self.metric or self.default_metric

    @property
    def metric_is_loss(self) -> bool:
        """Whether lower values are better."""
        return self.decisive_metric == "loss"

    def augmentation_options(self) -> AugmentationOptions | None:
        """Options of the augmentation, or `None`; flips depend on the task unless the run sets them."""
        if not self.augment:
            return None
        flip = FLIP_PROBABILITY.get(self.task, 0.0)
        return AugmentationOptions(**{"flip_probability": flip, **self.augmentation})

    def validate(self) -> None:
        """Raise an error for invalid settings.

        Raises:
            RunConfigError: If a required key is missing, a number is out of range or a choice is unknown.
        """
        for name in ("data", "output_dir"):
            if not getattr(self, name):
                raise RunConfigError(f"`{name}` is missing. Write `{name}: ...` in the run file, or give --{name} ...")
        self._check_choices()
        self._check_numbers()
        check_nested("config", self.config, VasoMIMConfig)
        check_nested("augmentation", self.augmentation, AugmentationOptions)
        try:
            self.augmentation_options()
        except ValueError as error:
            raise RunConfigError(f"`augmentation`: {error}") from error

    def _check_choices(self) -> None:
        try:
            entry = find_dataset(self.dataset)
            if not entry.is_table:
                entry.find_task(self.task, (self.column,))
        except ValueError as error:
            raise RunConfigError(f"{error} The run is for {self.kind}.") from error
        for name, known in (
            ("mixed_precision", tuple(PRECISIONS)),
            ("keep", (BEST, LAST)),
            ("metric", self.metrics),
        ):
            value = getattr(self, name)
            if value not in known and not (name == "metric" and value is None):
                raise RunConfigError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.")
        if self.saves is not None and self.keep == BEST:
            raise RunConfigError("`saves` goes with keep: last. The best weights can only be those of an evaluation.")
        if self.validation_split is not None and self.validation_split in self.train_split.split("+"):
            raise RunConfigError(
                f"`validation_split` {self.validation_split!r} is also learnt from. Write null to hold out a part of "
                "it."
            )

    def _check_numbers(self) -> None:
        self._require_within(1, None, "image_size", "batch_size", "gradient_accumulation_steps", "evaluations")
        self._require_within(
            1, None, "log_every_steps", "num_pictures", "num_threads", "max_frames", "patience", "saves"
        )
        self._require_within(1, None, "working_scale")
        self._require_within(0, None, "min_steps", "num_workers", "learning_rate", "weight_decay")
        self._require_within(0, None, "picture_every_epochs")
        self._require_within(0, 2**32 - 1, "seed")
        self._require_within(0, 1, "min_learning_rate_share", "warmup_share", "train_fraction", "validation_share")
        self._require_within(0, 1, "layer_decay")
        for name in ("train_fraction", "layer_decay", "epochs", "clip_grad_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RunConfigError(f"`{name}` must be above 0, got {value}.")
        if self.validation_split is None and not 0 < self.validation_share < 1:
            raise RunConfigError(
                f"`validation_share` must be in (0, 1) without a validation_split, got {self.validation_share}."
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise RunConfigError(f"`betas` must be two numbers in [0, 1), got {self.betas}.")

    def _require_within(self, least: float, most: float | None, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (value >= least and (most is None or value <= most)):
                limits = f"at least {least}" if most is None else f"from {least} to {most}"
                raise RunConfigError(f"`{name}` must be {limits}, got {value}.")


@dataclass
class SegmentationRun(FinetuneRun):
    """Fine-tuning of [`VasoMIMForSemanticSegmentation`]."""

    kind: ClassVar[str] = SEGMENTATION
    column: ClassVar[str] = MASK
    default_metric: ClassVar[str] = "pooled_dice"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "dice", "pooled_dice", "pooled_mean_class_dice")

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
        return self.metric or ("pooled_mean_class_dice" if self.task == "segments" else self.default_metric)


@dataclass
class DetectionRun(FinetuneRun):
    """Fine-tuning of [`VasoMIMForObjectDetection`]."""

    kind: ClassVar[str] = DETECTION
    column: ClassVar[str] = OBJECTS
    default_metric: ClassVar[str] = "ap50"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "ap50", "ap75", "ap", "recall50", "sensitivity_at_1_fp")

    task: str = key("stenosis_boxes", "stenosis_boxes or stenosis_severity_boxes; for a table, any name")
    objects_column: str = key("objects", "column of the boxes of a table: bbox (left, top, width, height), category")


@dataclass
class ClassificationRun(FinetuneRun):
    """Fine-tuning of [`VasoMIMForImageClassification`], or a linear probe of its frozen encoder."""

    kind: ClassVar[str] = CLASSIFICATION
    column: ClassVar[str] = LABEL
    default_metric: ClassVar[str] = "balanced_accuracy"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "balanced_accuracy", "auroc")

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


def make_finetune_run(kind: type[Kind], values: dict, where: str = "the run") -> Kind:
    """Create a run from a dictionary, validated like a run file.

    Args:
        kind (`type`): Class of the run configuration.
        values (`dict`): Keys and values.
        where (`str`): Name of the source in messages.

    Returns:
        The run.

    Raises:
        RunConfigError: If a key is unknown, a value has the wrong type or a number is out of range.
    """
    # `make_run` only needs a dataclass with `validate`
    return cast(Kind, make_run(cast(Any, kind), values, where))


def save_finetune_run(run: FinetuneRun) -> None:
    """Write a run to `run.yaml` in its `output_dir`, in the format of run files."""
    save_run(cast(Any, run), run.output_dir)


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
    before = load_run(cast(Any, type(run)), path)
    names = [item.name for item in fields(run) if item.name not in _FREE]
    changed = [name for name in names if getattr(run, name) != getattr(before, name)]
    if changed:
        told = "; ".join(f"`{name}` {getattr(before, name)!r}, now {getattr(run, name)!r}" for name in changed)
        raise RunConfigError(
            f"{path.parent} was begun with other settings: {told}. Use the same, remove the folder, or begin in "
            "another output_dir."
        )
