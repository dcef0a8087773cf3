"""Run files: one YAML file describes one run; each key is known, typed and documented, and `--key value` changes it.

Numbers that belong to a checkpoint (sizes, mask ratio, guidance, loss weights) are not here: they are the model's
configuration, set under `model`. What all runs share stands in [`TrainingRun`], once.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from ..configuration_unext import UNeXtConfig
from ..configuration_vasomim import VasoMIMConfig
from ..data.vesselness import VesselnessOptions
from ..folders import FINAL_NAME, atomic_file
from ..import_utils import require
from ..inference.prediction import AUTO, PRECISIONS, resolve_precision
from ..optimization import absolute_learning_rate
from .keys import key


RUN_FILE_NAME = "run.yaml"
# `init` of a model with random weights
SCRATCH = "scratch"

Run = TypeVar("Run", bound="RunFile")


class RunConfigError(ValueError):
    """A run file or an argument is invalid; the message states how to fix it."""


@dataclass
class RunFile:
    """Keys of every run file."""

    # Configuration class of each key that holds a dictionary, whose keys are checked
    nested: ClassVar[dict[str, type]] = {}
    # Pairs of keys of which one replaces the default of the other
    alternatives: ClassVar[tuple[tuple[str, str], ...]] = ()
    required: ClassVar[tuple[str, ...]] = ("output_dir",)

    output_dir: str = key("", "folder of run.yaml, the log, pictures, checkpoints, and the result in `final`")

    def validate(self) -> None:
        """Check the values.

        Raises:
            RunConfigError: If a required key is missing or a value is out of range.
        """
        for name in self.required:
            if not getattr(self, name):
                raise RunConfigError(f"`{name}` is missing. Write `{name}: ...` in the run file, or pass --{name} ...")
        for name, kind in self.nested.items():
            check_nested(name, getattr(self, name), kind)
        for first, second in self.alternatives:
            values = getattr(self, first), getattr(self, second)
            if (values[0] is None) == (values[1] is None):
                raise RunConfigError(
                    f"Set exactly one of `{first}` and `{second}`, got {values[0]!r} and {values[1]!r}."
                )

    @property
    def result_folder(self) -> Path:
        """Folder of the result."""
        return Path(self.output_dir) / FINAL_NAME

    def save(self) -> None:
        """Write the run to `run.yaml` in its `output_dir`, so that it can be passed to the script again."""
        yaml = require("yaml", "training")
        folder = Path(self.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / RUN_FILE_NAME) as temporary:
            temporary.write_text(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False), encoding="utf-8")

    def require_range(self, minimum: float, maximum: float | None, *names: str) -> None:
        """Check that numbers are in a range; `None` is allowed where a key allows it.

        Raises:
            RunConfigError: If one is not.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and not (value >= minimum and (maximum is None or value <= maximum)):
                limits = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
                raise RunConfigError(f"`{name}` must be {limits}, got {value}.")

    def require_choice(self, name: str, choices: tuple[str, ...]) -> None:
        """Check that a value is one of the allowed choices.

        Raises:
            RunConfigError: If it has another one; the message names the nearest.
        """
        value = getattr(self, name)
        if value not in choices:
            close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.6)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise RunConfigError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.{hint}")


@dataclass
class TrainingRun(RunFile):
    """Keys of every training run: pre-training, segmentor and fine-tuning."""

    required: ClassVar[tuple[str, ...]] = ("data", "output_dir")
    nested: ClassVar[dict[str, type]] = {"model": VasoMIMConfig}

    data: str = key("", "folder of frames, of a data set or of Parquet files, or hf://datasets/OWNER/NAME")
    train_split: str = key("train", "split to train on")
    image_column: str = key("image", "column of the frames of a data set")
    max_frames: int | None = key(None, "use only the first frames of each split, for a quick test")
    cache_dir: str = key("runs/cache", "folder for decoded frames")

    model: dict = key({}, "keys of the model's configuration, e.g. {mask_ratio: 0.75} or {drop_path_rate: 0.1}")

    batch_size: int = key(256, "frames in a batch of one process")
    gradient_accumulation_steps: int = key(1, "batches in one optimiser step")
    clip_grad_norm: float | None = key(None, "maximum gradient norm; null disables clipping")

    mixed_precision: str = key(AUTO, "auto (bf16 where the device is fast at it), no, bf16 or fp16")
    num_workers: int = key(0, "loader processes of each training process; 0 loads in the training process")
    num_threads: int | None = key(None, "CPU threads of each process; null uses torch's default")
    seed: int = key(0, "seed of weights, order, augmentation and masks")

    resume: str = key("never", "never, auto (the newest complete checkpoint, if any) or a checkpoint folder")
    log_every_steps: int = key(10, "optimiser steps between log lines")
    tensorboard: bool = key(True, "whether to write TensorBoard files to output_dir/tensorboard")
    picture_every_epochs: int = key(1, "epochs between pictures; 0 makes none")
    num_pictures: int = key(4, "frames in a picture")

    def validate(self) -> None:
        """Check the values; see [`RunFile.validate`]."""
        super().validate()
        self.require_choice("mixed_precision", (AUTO, *PRECISIONS))
        self.require_range(1, None, "batch_size", "gradient_accumulation_steps", "log_every_steps", "num_pictures")
        self.require_range(1, None, "num_threads", "max_frames")
        self.require_range(0, None, "num_workers", "picture_every_epochs")
        self.require_range(0, 2**32 - 1, "seed")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise RunConfigError(
                f"`clip_grad_norm` must be > 0, got {self.clip_grad_norm}. Use null to disable clipping."
            )

    @property
    def precision(self) -> str:
        """`mixed_precision` resolved for this machine: no, bf16 or fp16."""
        return resolve_precision(self.mixed_precision)


@dataclass
class AdamWRun(TrainingRun):
    """Keys of the runs that train with AdamW and a cosine schedule: pre-training and fine-tuning."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = (("learning_rate", "base_learning_rate"),)

    learning_rate: float | None = key(None, "peak learning rate; null takes base_learning_rate")
    base_learning_rate: float | None = key(
        None, "peak learning rate for 256 frames a step, scaled linearly to the frames of a step (MAE)"
    )
    weight_decay: float = key(0.05, "weight decay of AdamW; not on biases and norms")
    warmup_ratio: float = key(0.05, "fraction of training with a linear warm-up")
    min_learning_rate_ratio: float = key(0.0, "fraction of the peak learning rate that the cosine ends at")
    betas: list[float] = key([0.9, 0.95], "betas of AdamW")

    def validate(self) -> None:
        """Check the values; see [`RunFile.validate`]."""
        super().validate()
        self.require_range(0, None, "learning_rate", "base_learning_rate", "weight_decay")
        self.require_range(0, 1, "warmup_ratio", "min_learning_rate_ratio")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise RunConfigError(f"`betas` must be two numbers in [0, 1), got {self.betas}.")

    def peak_learning_rate(self, frames_per_step: int) -> float:
        """Peak learning rate of a run.

        Args:
            frames_per_step (`int`): Frames in an optimiser step, of all processes.

        Returns:
            `float`: `learning_rate`, or `base_learning_rate * frames_per_step / 256`.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        return absolute_learning_rate(cast(float, self.base_learning_rate), frames_per_step)


@dataclass
class CachedFramesRun(TrainingRun):
    """Keys of the runs that train on crops of unlabelled frames: pre-training and segmentor."""

    nested: ClassVar[dict[str, type]] = {"model": VasoMIMConfig, "vesselness": VesselnessOptions}

    bits_stored: int | None = key(None, "bit depth of frames above 8 bits, e.g. 10 for 10 bits in 16; null infers it")
    vesselness_column: str = key("vesselness", "column of vessel masks in a data set; computed where it is missing")
    frame_list: str | None = key(None, "text or JSON file with the paths of the frames to use, below the data folder")
    frame_list_key: str | None = key(None, "key of the list, if the JSON file is an object")
    masks: str | None = key(None, "folder of vessel masks (PNG, 0 and 255), instead of the vesselness filter")
    vesselness: dict = key({}, "options of the vesselness filter, e.g. {border: 20}")
    crop_scale: list[float] = key([0.2, 1.0], "smallest and largest fraction of the frame's area in a random crop")
    flip_probability: float = key(0.5, "probability of a horizontal flip")
    save_every_epochs: int = key(20, "epochs between checkpoints")
    keep_checkpoints: int = key(2, "checkpoints to keep, the newest ones; 0 keeps all")

    def validate(self) -> None:
        """Check the values; see [`RunFile.validate`]."""
        super().validate()
        self.require_range(1, None, "save_every_epochs")
        self.require_range(0, None, "keep_checkpoints")
        self.require_range(0, 1, "flip_probability")
        self.require_range(8, 16, "bits_stored")
        if not (len(self.crop_scale) == 2 and 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1):
            raise RunConfigError(
                f"`crop_scale` must be two fractions, 0 < first <= second <= 1, got {self.crop_scale}."
            )
        if self.masks is not None and self.vesselness:
            raise RunConfigError(
                "`vesselness` sets options of the filter, and `masks` replaces it. Remove one of them."
            )


@dataclass
class PretrainRun(AdamWRun, CachedFramesRun):
    """A pre-training run; the defaults are the paper's recipe."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = (*AdamWRun.alternatives, ("preset", "model_config"))

    streaming: bool = key(
        False,
        "read Parquet (a folder, or hf://) a few row groups at a time, without a cache; needs vessel masks in it",
    )
    preset: str | None = key("base", "size of the model: tiny, small, base, large or huge")
    model_config: str | None = key(None, "JSON file of a model configuration, instead of a preset")
    segmentor: str | None = key(None, "folder of a trained segmentor (training/train_segmentor.py makes one)")
    init: str = key(SCRATCH, "folder of a pre-trained VasoMIM to start from, or scratch (random weights)")

    epochs: int = key(800, "passes over the training frames")
    base_learning_rate: float | None = key(
        1.5e-4, "peak learning rate for 256 frames a step, scaled linearly to the frames of a step (MAE)"
    )
    num_workers: int = key(4, "loader processes of each training process; 0 loads in the training process")
    gradient_checkpointing: bool = key(False, "recompute activations in the backward pass to save memory")
    picture_every_epochs: int = key(20, "epochs between pictures; 0 makes none")
    probe_frames: int = key(32, "frames whose losses under fixed masks are logged each epoch; 0 logs none")

    def validate(self) -> None:
        """Check the values; see [`RunFile.validate`]."""
        super().validate()
        self.require_range(1, None, "epochs")
        self.require_range(0, None, "probe_frames")
        if self.streaming and (self.frame_list is not None or self.masks is not None or self.vesselness):
            raise RunConfigError(
                "`frame_list`, `masks` and `vesselness` need a frame cache; `streaming` takes every row of the Parquet files "
                "and its mask in `vesselness_column`. Remove them, or remove `streaming`."
            )


@dataclass
class SegmentorRun(CachedFramesRun):
    """A run that trains the UNeXt segmentor on vesselness; the defaults are the authors' recipe."""

    nested: ClassVar[dict[str, type]] = {"model": UNeXtConfig, "vesselness": VesselnessOptions}

    image_size: int = key(224, "side of the crops in pixels")
    epochs: int = key(200, "passes over the training frames")
    learning_rate: float = key(1e-3, "learning rate of Adam in the first epoch; then × (1 - epoch / epochs) ** 0.9")
    validation_fraction: float = key(0.05, "fraction of the frames held out to measure Dice against their vesselness")
    num_workers: int = key(4, "loader processes of each training process; 0 loads in the training process")
    mixed_precision: str = key("no", "auto (bf16 where the device is fast at it), no, bf16 or fp16")
    picture_every_epochs: int = key(20, "epochs between pictures; 0 makes none")

    def validate(self) -> None:
        """Check the values; see [`RunFile.validate`]."""
        super().validate()
        self.require_range(1, None, "epochs", "image_size")
        self.require_range(0, None, "learning_rate")
        if not 0 <= self.validation_fraction < 1:
            raise RunConfigError(f"`validation_fraction` must be in [0, 1), got {self.validation_fraction}.")


def load_run(kind: type[Run], path: str | Path, arguments: list[str] | None = None) -> Run:
    """Read a run file and override its keys with arguments.

    Args:
        kind (`type`): Class of the run, such as `PretrainRun`.
        path (`str` or `Path`): YAML file. Paths in it are relative to the working directory.
        arguments (`list[str]`, *optional*): Such as `["--epochs", "20", "--model.mask_ratio=0.75"]`.

    Returns:
        The run, checked.

    Raises:
        FileNotFoundError: If there is no such file.
        RunConfigError: If a key is unknown, a value has the wrong type or a number is out of range.
    """
    values = read_run_file(path)
    for name, text in parse_arguments(arguments or []):
        _override(values, name, text)
    return make_run(kind, values, str(path))


def read_run_file(path: str | Path) -> dict[str, Any]:
    """Keys and values of a run file, not checked yet.

    Args:
        path (`str` or `Path`): YAML file.

    Returns:
        `dict`: Its content.

    Raises:
        FileNotFoundError: If there is no such file.
        RunConfigError: If it is not YAML of the form `key: value`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no run file {path}. The project's are in training/configs.")
    values = _from_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    if not isinstance(values, dict):
        raise RunConfigError(f"{path} must consist of `key: value` lines, got {type(values).__name__}.")
    return values


def _from_yaml(text: str, where: str) -> Any:
    """Parse YAML with OmegaConf, which reads 1e-3 as a number; YAML 1.1 reads it as text."""
    omegaconf, yaml = require("omegaconf", "training"), require("yaml", "training")
    try:
        return omegaconf.OmegaConf.to_container(omegaconf.OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, omegaconf.errors.OmegaConfBaseException, ValueError) as error:
        raise RunConfigError(f"{where} is not valid YAML: {error}") from error


def make_run(kind: type[Run], values: dict, where: str = "the run") -> Run:
    """Create a run from a dictionary, as in [`load_run`]; `where` is its name in messages."""
    omegaconf = require("omegaconf", "training")
    known = [item.name for item in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            raise RunConfigError(_unknown(str(name), known, where))
    run = kind()
    for name, value in values.items():
        try:
            merged = omegaconf.OmegaConf.merge(omegaconf.OmegaConf.structured(kind), {name: _plain(name, value, kind)})
            value = getattr(omegaconf.OmegaConf.to_object(merged), name)
        except omegaconf.errors.OmegaConfBaseException as error:
            raise RunConfigError(f"`{name}` in {where}: {str(error).splitlines()[0]} Got {value!r}.") from error
        if any(isinstance(number, float) and not math.isfinite(number) for number in _as_list(value)):
            raise RunConfigError(f"`{name}` in {where} must be finite, got {value}.")
        setattr(run, name, value)
    for pair in kind.alternatives:
        given = [name for name in pair if values.get(name) is not None]
        if len(given) == 1:
            setattr(run, next(name for name in pair if name not in given), None)
    run.validate()
    return run


def parse_arguments(arguments: list[str]) -> list[tuple[str, str]]:
    """Split `--key value` and `--key=value` into pairs.

    Raises:
        RunConfigError: If an argument is no key, or a key has no value.

    Example:
        >>> parse_arguments(["--epochs", "20", "--model.mask_ratio=0.75"])
        [('epochs', '20'), ('model.mask_ratio', '0.75')]
    """
    pairs, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or argument == "--":
            raise RunConfigError(
                f"Expected --key value, got {argument!r}. A list is one argument: --betas '[0.9, 0.95]'"
            )
        name, has_value, value = argument[2:].partition("=")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise RunConfigError(
                    f"--{name} has no value. Write --{name} VALUE; for a switch, --{name} true or false."
                )
            value = rest.pop(0)
        # names below a key may be anything, such as the name of a curve
        first, dot, below = name.partition(".")
        pairs.append((first.replace("-", "_") + dot + below, value))
    return pairs


def describe_keys(kind: type[RunFile]) -> str:
    """One line for each key of a run file: name, meaning, default; for `--help`."""
    default = kind()
    return "\n".join(
        f"  {item.name:<29}{item.metadata['help']} [{shown_default(getattr(default, item.name))}]"
        for item in dataclasses.fields(kind)
    )


def shown_default(value: object) -> str:
    """A default as a run file would have it; `required` for an empty text."""
    if value == "":
        return "required"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _unknown(name: str, known: list[str], where: str) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    in_model = "model" in known and name in _own_keys(VasoMIMConfig)
    hint = f" It is a key of the model: write it under `model`, or pass --model.{name}" if in_model else ""
    hint = hint or (f" Did you mean `{close[0]}`?" if close else f" Known keys: {', '.join(known)}.")
    return f"{where} has an unknown key `{name}`.{hint}"


def _own_keys(kind: type) -> list[str]:
    # without the fields that transformers adds to every configuration
    return [name for name in kind.__annotations__ if not name.startswith("_")]


def check_nested(name: str, values: dict, kind: type) -> None:
    """Reject keys that a dictionary in a run must not have; dashes in keys become underscores, in place.

    Args:
        name (`str`): Key of the run that holds the dictionary.
        values (`dict`): Its content.
        kind (`type`): Class that the keys are fields of.

    Raises:
        RunConfigError: If a key is unknown.
    """
    known = _own_keys(kind)
    for given in list(values):
        if str(given).replace("-", "_") not in known:
            raise RunConfigError(_unknown(str(given), known, f"`{name}`"))
        values[str(given).replace("-", "_")] = values.pop(given)


def _override(values: dict, name: str, text: str) -> None:
    """Set a key, such as `model.mask_ratio` inside `model`; the value is parsed by the type of the key."""
    name, is_nested, below = name.partition(".")
    (value,) = _from_yaml(f"- {text}", f"--{name} {text!r}")
    if not is_nested:
        # a path may look like a number, such as a folder 2024
        values[name] = value if value is None or isinstance(value, list | dict) else text
        return
    nested = values.setdefault(name, {})
    while isinstance(nested, dict) and _begins_with_a_key(below, nested):
        name, _, below = below.partition(".")
        nested = nested.setdefault(name, {})
    if not isinstance(nested, dict):
        raise RunConfigError(f"--{name}.{below} needs `{name}` to hold keys, got {nested!r}.")
    nested[below] = value


def _begins_with_a_key(below: str, nested: dict) -> bool:
    """Whether the text before the first dot is a key name; a fraction such as 0.5 is a single key."""
    first, dot, _ = below.partition(".")
    return bool(dot) and (first in nested or first.replace("-", "_").isidentifier())


def _as_list(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _plain(name: str, value: object, kind: type) -> object:
    """Convert what OmegaConf rejects or misreads: null for a dictionary, `no` in YAML 1.1, integers written as 20.0."""
    default = getattr(kind(), name)
    if isinstance(default, dict) and value is None:
        return {}
    if isinstance(default, str) and value is False:
        return "no"
    hint = next(item.type for item in dataclasses.fields(kind) if item.name == name)
    is_whole = "int" in str(hint) and isinstance(value, float | str) and not isinstance(value, bool)
    if is_whole and str(value).removesuffix(".0").lstrip("+-").isdigit():
        return int(str(value).removesuffix(".0"))
    return value
