"""Run files: one YAML file per run, with typed and documented keys; `--key value` overrides them.

Numbers that belong to a checkpoint (sizes, mask ratio, guidance, loss weights) are in the model configuration instead,
under `model` (in fine-tuning under `config`).
"""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..configuration_unext import UNeXtConfig
from ..configuration_vasomim import VasoMIMConfig
from ..data.vesselness import VesselnessOptions
from ..folders import atomic_file
from ..import_utils import require
from ..inference.prediction import PRECISIONS


RUN_FILE_NAME = "run.yaml"

Run = TypeVar("Run", bound="TrainingRun")


class RunConfigError(ValueError):
    """Invalid run file or argument; the message states how to correct it."""


def _key(default: object, text: str) -> typing.Any:
    if isinstance(default, dict | list):
        return field(default_factory=lambda: default.copy(), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class TrainingRun:
    """Base class of both kinds of runs. The help text of each key is in `metadata["help"]`, shown by `--help`."""

    data: str = _key("", "folder of frames, folder of a saved dataset or Parquet files, or hf://datasets/OWNER/NAME")
    output_dir: str = _key("", "folder for run.yaml, log, pictures, checkpoints and the final model")
    data_split: str = _key("train", "split of a data set")
    image_column: str = _key("image", "column of the frames in a dataset")
    vesselness_column: str = _key("vesselness", "column of existing vessel masks in a data set; optional")
    frame_list: str | None = _key(
        None, "text or JSON file with the frames to use, as paths relative to the data folder"
    )
    frame_list_key: str | None = _key(None, "key of the list, if the JSON file is an object")
    masks: str | None = _key(None, "folder of existing vessel masks (PNG, 0/255), instead of the filter")
    bits_stored: int | None = _key(
        None, "bit depth of frames with more than 8 bits, e.g. 10 for 10 bits in 16; null infers it"
    )
    vesselness: dict = _key({}, "options of the vesselness filter, e.g. {border: 20}")
    cache_dir: str = _key("runs/cache", "folder for decoded frames and their vesselness, reused by later runs")
    crop_scale: list[float] = _key([0.2, 1.0], "minimum and maximum fraction of the frame's area in a random crop")
    flip_probability: float = _key(0.5, "probability of a horizontal flip")

    batch_size: int = _key(256, "frames per process and forward pass")
    gradient_accumulation_steps: int = _key(1, "batches per optimiser step")
    clip_grad_norm: float | None = _key(None, "maximum gradient norm; null disables clipping")
    mixed_precision: str = _key("bf16", "no, bf16 or fp16")
    num_workers: int = _key(4, "loader processes per training process; 0 loads in the training process")
    num_threads: int | None = _key(None, "CPU threads per process; null uses torch's default")
    seed: int = _key(0, "random seed of weights, crops, order and masks")

    resume: str = _key(
        "never", "never, auto (the newest complete checkpoint in output_dir, if any) or a checkpoint folder"
    )
    save_every_epochs: int = _key(20, "epochs between checkpoints")
    keep_checkpoints: int = _key(2, "number of checkpoints to keep; 0 keeps all")
    log_every_steps: int = _key(20, "optimiser steps between log lines")
    tensorboard: bool = _key(True, "also write a TensorBoard log to output_dir/tensorboard")
    picture_every_epochs: int = _key(20, "epochs between pictures; 0 disables them")
    num_pictures: int = _key(6, "frames in a picture")
    max_frames: int | None = _key(None, "use only the first frames")

    def validate(self) -> None:
        """Raise an error for invalid settings.

        Raises:
            RunConfigError: If a required key is missing or a number is out of range.
        """
        for name in ("data", "output_dir"):
            if not getattr(self, name):
                raise RunConfigError(f"`{name}` is missing. Write `{name}: ...` in the run file, or give --{name} ...")
        if self.mixed_precision not in PRECISIONS:
            raise RunConfigError(
                f"`mixed_precision` must be one of {', '.join(PRECISIONS)}, got {self.mixed_precision!r}."
            )
        counts = ("batch_size", "gradient_accumulation_steps", "save_every_epochs", "log_every_steps")
        self._require_at_least(1, *counts, "num_threads", "max_frames", "num_pictures")
        self._require_at_least(
            0, "picture_every_epochs", "num_workers", "keep_checkpoints", "seed", "flip_probability"
        )
        if self.flip_probability > 1:
            raise RunConfigError(f"`flip_probability` must be in [0, 1], got {self.flip_probability}.")
        if not (len(self.crop_scale) == 2 and 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1):
            raise RunConfigError(f"`crop_scale` must be two fractions, 0 < from <= to <= 1, got {self.crop_scale}.")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise RunConfigError(f"`clip_grad_norm` must be > 0, got {self.clip_grad_norm}. Write null to not clip.")
        if self.seed >= 2**32:
            raise RunConfigError(f"`seed` must be below 2**32, got {self.seed}.")
        if self.masks is not None and self.vesselness:
            raise RunConfigError("`vesselness` sets options of the filter, and `masks` replaces it. Leave one out.")

    def _require_at_least(self, minimum: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not value >= minimum:
                raise RunConfigError(f"`{name}` must be at least {minimum}, got {value}.")


@dataclass
class PretrainRun(TrainingRun):
    """A pre-training run; defaults are those of the paper."""

    streaming: bool = _key(
        False,
        "read Parquet (a folder, or hf://) a few row groups at a time, without a cache; needs a column of vessel "
        "masks",
    )

    preset: str | None = _key("base", "tiny, small, base, large or huge")
    model_config: str | None = _key(None, "JSON file of a model configuration, instead of a preset")
    model: dict = _key({}, "keys of VasoMIMConfig that override the preset, e.g. {mask_ratio: 0.75}")
    segmentor: str | None = _key(None, "folder of a trained segmentor (see training/train_segmentor.py)")
    init: str | None = _key(None, "folder of a pre-trained VasoMIM to start from")

    epochs: int = _key(800, "number of epochs")
    warmup_epochs: float = _key(40.0, "epochs of linear warm-up")
    base_learning_rate: float = _key(1.5e-4, "peak learning rate per 256 frames; the absolute rate is logged")
    min_learning_rate: float = _key(0.0, "final learning rate of the cosine, absolute")
    weight_decay: float = _key(0.05, "weight decay of AdamW; not applied to biases and norms")
    betas: list[float] = _key([0.9, 0.95], "betas of AdamW")
    gradient_checkpointing: bool = _key(False, "recompute activations in the backward pass, to save memory")
    probe_frames: int = _key(32, "frames whose losses with fixed masks are logged each epoch; 0 disables it")

    def validate(self) -> None:
        """Raise an error for invalid settings; see [`TrainingRun.validate`]."""
        super().validate()
        self._require_at_least(1, "epochs")
        self._require_at_least(0, "warmup_epochs", "base_learning_rate", "min_learning_rate", "weight_decay")
        self._require_at_least(0, "probe_frames")
        if self.streaming and (self.frame_list is not None or self.masks is not None or self.vesselness):
            raise RunConfigError(
                "`frame_list`, `masks` and `vesselness` go with a frame cache; `streaming` takes every row of the "
                "Parquet files and its mask in `vesselness_column`. Leave them out, or leave out `streaming`."
            )
        if self.warmup_epochs > self.epochs:
            raise RunConfigError(
                f"The warm-up of {self.warmup_epochs:g} epochs is longer than the {self.epochs} epochs of training. "
                f"The paper's share is a twentieth: --warmup_epochs {self.epochs / 20:g}"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise RunConfigError(f"`betas` must be two numbers in [0, 1), got {self.betas}.")
        if (self.preset is None) == (self.model_config is None):
            raise RunConfigError(
                f"Give one of `preset` and `model_config`, got {self.preset!r} and {self.model_config!r}. "
                "Write `preset: null` to use a JSON file."
            )


@dataclass
class SegmentorRun(TrainingRun):
    """A run that trains the UNeXt segmentor on vesselness; defaults are those of the authors."""

    model: dict = _key({}, "keys of UNeXtConfig")
    image_size: int = _key(224, "size of the crops in pixels")
    epochs: int = _key(200, "number of epochs")
    learning_rate: float = _key(
        1e-3, "learning rate of Adam in the first epoch, for any batch size; then times (1 - epoch / epochs) ** 0.9"
    )
    validation_share: float = _key(0.05, "fraction of the frames held out to measure Dice with their vesselness")
    mixed_precision: str = _key("no", "no, bf16 or fp16")

    def validate(self) -> None:
        """Raise an error for invalid settings; see [`TrainingRun.validate`]."""
        super().validate()
        self._require_at_least(1, "epochs", "image_size")
        self._require_at_least(0, "learning_rate")
        if not 0 <= self.validation_share < 1:
            raise RunConfigError(f"`validation_share` must be in [0, 1), got {self.validation_share}.")


def load_run(kind: type[Run], path: str | Path, arguments: list[str] | None = None) -> Run:
    """Load a run file and apply command-line overrides.

    Args:
        kind (`type`): `PretrainRun` or `SegmentorRun`.
        path (`str` or `Path`): YAML file. Paths in it are relative to the working directory.
        arguments (`list[str]`, *optional*): For example `["--epochs", "20", "--model.mask_ratio=0.75"]`.

    Returns:
        The validated run.

    Raises:
        FileNotFoundError: If the file does not exist.
        RunConfigError: If a key is unknown, a value has the wrong type or a number is out of range.
    """
    yaml = require("yaml", "training")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no run file {path}. The project's are in training/configs.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RunConfigError(f"{path} is not valid YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RunConfigError(f"{path} must hold `key: value` lines, got {type(values).__name__}.")
    for name, text in parse_arguments(arguments or []):
        _override(values, name, text)
    return make_run(kind, values, str(path))


def make_run(kind: type[Run], values: dict, where: str = "the run") -> Run:
    """Create a run from a dictionary; as for [`load_run`], with `where` as the name in messages."""
    known = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    converted = {}
    for name, value in values.items():
        if name not in known:
            raise RunConfigError(_unknown(str(name), list(known), where))
        converted[name] = _convert(name, value, hints[name])
    if "model" in converted:
        check_nested("model", converted["model"], VasoMIMConfig if kind is PretrainRun else UNeXtConfig)
    if "vesselness" in converted:
        check_nested("vesselness", converted["vesselness"], VesselnessOptions)
    run = kind(**converted)
    run.validate()
    return run


def parse_arguments(arguments: list[str]) -> list[tuple[str, str]]:
    """Split `--key value` and `--key=value` into pairs.

    Raises:
        RunConfigError: If an argument is not a key, or a key has no value.

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
                    f"--{name} has no value. Write --{name} VALUE, for a switch --{name} true or false."
                )
            value = rest.pop(0)
        # nested names may be arbitrary, such as that of a curve
        key, dot, below = name.partition(".")
        pairs.append((key.replace("-", "_") + dot + below, value))
    return pairs


def save_run(run: TrainingRun, folder: str | Path) -> None:
    """Write a run to `run.yaml` in a folder, in the format of run files."""
    yaml = require("yaml", "training")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / RUN_FILE_NAME) as temporary:
        temporary.write_text(yaml.safe_dump(dataclasses.asdict(run), sort_keys=False), encoding="utf-8")


def describe_keys(kind: type[TrainingRun]) -> str:
    """One line per key of a run file with name, help text and default, for `--help`."""
    default = kind()
    return "\n".join(
        f"  {item.name:<29}{item.metadata['help']} [{_shown(getattr(default, item.name))}]"
        for item in dataclasses.fields(kind)
    )


def _shown(value: object) -> str:
    if value == "":
        return "required"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _unknown(name: str, known: list[str], where: str) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    home = next((key for key in ("model", "config") if key in known and name in _own_keys(VasoMIMConfig)), None)
    in_model = f" It is a key of the model: write it under `{home}`, or --{home}.{name}" if home else ""
    hint = in_model or (f" Did you mean `{close[0]}`?" if close else f" Known keys: {', '.join(known)}.")
    return f"{where} has an unknown key `{name}`.{hint}"


def _own_keys(kind: type) -> list[str]:
    # excludes keys that transformers adds to every configuration
    return [key for key in kind.__annotations__ if not key.startswith("_")]


def check_nested(name: str, values: dict, kind: type) -> None:
    """Reject unknown keys of a dictionary in a run, and convert numbers given as text, in place.

    Args:
        name (`str`): Key of the run with the dictionary.
        values (`dict`): Its contents.
        kind (`type`): Class whose fields are the valid keys.

    Raises:
        RunConfigError: If a key is unknown.
    """
    known = _own_keys(kind)
    for given, value in list(values.items()):
        key = str(given).replace("-", "_")
        if key not in known:
            raise RunConfigError(_unknown(str(given), known, f"`{name}`"))
        del values[given]
        values[key] = _number_if_it_looks_like_one(value)


def _number_if_it_looks_like_one(value: object) -> object:
    # YAML 1.1 reads 1e-3 as text, because it has no dot
    if isinstance(value, str):
        number = _to_float(value)
        return value if number is None else int(number) if value.strip().lstrip("+-").isdigit() else number
    return value


def _override(values: dict, name: str, text: str) -> None:
    """Insert the text of an argument; `_convert` parses it."""
    yaml = require("yaml", "training")
    name, is_nested, key = name.partition(".")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RunConfigError(f"--{name} {text!r} is not valid YAML: {error}") from error
    if not is_nested:
        # a path may look like a number, such as a folder 2024
        values[name] = value if value is None or isinstance(value, list | dict) else text
        return
    nested = values.setdefault(name, {})
    while isinstance(nested, dict) and _begins_with_a_key(key, nested):
        name, _, key = key.partition(".")
        nested = nested.setdefault(name, {})
    if not isinstance(nested, dict):
        raise RunConfigError(f"--{name}.{key} needs `{name}` to hold keys, got {nested!r}.")
    nested[key] = value


def _begins_with_a_key(key: str, nested: dict) -> bool:
    """Whether the part before the first dot is a key; a fraction such as 0.5 is one key."""
    first, dot, _ = key.partition(".")
    return bool(dot) and (first in nested or first.replace("-", "_").isidentifier())


def _convert(name: str, value: object, hint: object) -> typing.Any:
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None:
        if types.NoneType in choices:
            return None
        if dict in choices:
            return {}
        raise RunConfigError(f"`{name}` must not be empty.")
    target = next(choice for choice in choices if choice is not types.NoneType)
    converter = _CONVERTERS.get(typing.get_origin(target) or target)
    converted = converter(value)
    if converted is None:
        raise RunConfigError(f"`{name}` must be {_NAMES[typing.get_origin(target) or target]}, got {value!r}.")
    return converted


def _to_str(value: object) -> str | None:
    if value is False:
        return "no"  # YAML 1.1 reads a plain `no` as false
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def _to_bool(value: object) -> bool | None:
    return {"true": True, "yes": True, "false": False, "no": False}.get(str(value).lower())


def _to_float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _to_int(value: object) -> int | None:
    number = _to_float(value)
    return int(number) if number is not None and number == number // 1 and abs(number) < 2**63 else None


def _to_numbers(value: object) -> list[float] | None:
    if not isinstance(value, list | tuple):
        return None
    numbers = [_to_float(item) for item in value]
    return None if any(number is None for number in numbers) else typing.cast("list[float]", numbers)


_CONVERTERS: dict = {
    str: _to_str,
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    list: _to_numbers,
    dict: lambda value: dict(value) if isinstance(value, dict) else None,
}
_NAMES = {
    str: "text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "a list of numbers such as [0.9, 0.95]",
    dict: "keys and values",
}
