"""Run files of a comparison over shares of the labels, and the cells that they stand for."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...import_utils import require
from ..evaluating.reference_models import MONAI_UNET
from ..finetuning.run import (
    CLASSIFICATION,
    DETECTION,
    LAST,
    RUNS,
    SCRATCH,
    SEGMENTATION,
    FinetuneRun,
    key,
    make_finetune_run,
)
from ..run_config import RunConfigError


RESULTS_NAME = "results.json"
DEFAULT_MEASURES = {SEGMENTATION: "dice,cl_dice", DETECTION: "ap50", CLASSIFICATION: "accuracy,auroc"}
# Keys of fine-tuning that the command decides for each cell
DECIDED = (
    *("train_fraction", "seed", "init", "output_dir", "resume", "keep", "patience", "evaluations", "saves"),
    "metric",
)
# Checkpoints of a cell, from which an interrupted one goes on
_SAVES = 5


@dataclass
class LabelEfficiencyRun:
    """A comparison over shares of the labels. Each key explains itself in `metadata["help"]`, shown by `--help`."""

    kind: str = key(SEGMENTATION, "segmentation, detection or classification")
    finetune: str = key("", "run file of fine-tuning that all cells begin with")
    output_dir: str = key("", "where cells, curves.png, table.txt and curves.json go")
    initialisations: dict = key({SCRATCH: SCRATCH}, "name of a curve: what `init` takes, or monai_unet")
    fractions: list[float] = key([0.05, 0.1, 0.25, 0.5, 1.0], "shares of the labels")
    seeds: list[float] = key([0, 1, 2], "of weights, order and which labels are taken")
    num_seeds: dict = key({}, "share: how many of the seeds, where not all, e.g. {1.0: 1}")
    settings: dict = key({}, "keys of fine-tuning instead of those of its file, e.g. {min_steps: 500}")
    settings_of: dict = key({}, "name of a curve: keys of fine-tuning for it alone")
    measures: str | None = key(None, "what is drawn, by names of the results, with commas; null takes the kind's")
    keep_models: bool = key(True, "whether the model of a finished cell stays; its results do in any case")

    def validate(self) -> None:
        """Refuse what cannot be run.

        Raises:
            RunConfigError: If a key is missing, or a number or choice does not fit.
        """
        for name in ("finetune", "output_dir", "initialisations", "fractions", "seeds"):
            if not getattr(self, name):
                raise RunConfigError(f"`{name}` is missing. Write `{name}: ...` in the run file, or give --{name} ...")
        if self.kind not in RUNS:
            raise RunConfigError(f"`kind` must be one of {', '.join(RUNS)}, got {self.kind!r}.")
        if not all(0 < fraction <= 1 for fraction in self.fractions):
            raise RunConfigError(f"`fractions` must be shares in (0, 1], got {self.fractions}.")
        if any(seed != int(seed) or seed < 0 for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise RunConfigError(f"`seeds` must be different whole numbers >= 0, got {self.seeds}.")
        for name, values in (("settings", [self.settings]), ("settings_of", list(self.settings_of.values()))):
            decided = sorted({one for value in values for one in value or ()} & set(DECIDED))
            if decided:
                raise RunConfigError(f"`{name}` must leave {', '.join(decided)} to the cells.")
        for name in self.unused_settings:
            close = difflib.get_close_matches(name, map(str, self.initialisations), n=1, cutoff=0.8)
            if close:
                raise RunConfigError(
                    f"`settings_of` names {name}, which is none of `initialisations`. Did you mean {close[0]!r}?"
                )
        if self.kind != SEGMENTATION and MONAI_UNET in self.initialisations.values():
            raise RunConfigError(f"{MONAI_UNET} is a model for segmentation, not for {self.kind}.")

    @property
    def unused_settings(self) -> list[str]:
        """Names in `settings_of` of curves that are not drawn, as where a command replaces `initialisations`."""
        return sorted(map(str, set(self.settings_of) - set(self.initialisations)))

    @property
    def measure_names(self) -> list[str]:
        """Names of what is drawn."""
        return [name.strip() for name in (self.measures or DEFAULT_MEASURES[self.kind]).split(",")]


class Cell(NamedTuple):
    """One training: name of the curve, share of the labels, seed."""

    name: str
    fraction: float
    seed: int

    def __str__(self) -> str:
        return f"{self.name}, {100 * self.fraction:g} % of the labels, seed {self.seed}"

    def folder(self, output_dir: str | Path) -> Path:
        """Where it lies."""
        return Path(output_dir) / "cells" / self.name / f"{100 * self.fraction:g}_percent" / f"seed_{self.seed}"


def cells_of(run: LabelEfficiencyRun) -> list[Cell]:
    """All cells of a comparison; those with few labels come first, seed by seed, so that early pictures are whole.

    Args:
        run (`LabelEfficiencyRun`): The comparison.

    Returns:
        `list[Cell]`: In the order of training.
    """
    fewer = {float(fraction): int(number) for fraction, number in run.num_seeds.items()}
    return [
        Cell(str(name), fraction, int(seed))
        for fraction in sorted(run.fractions)
        for seed in run.seeds[: fewer.get(fraction, len(run.seeds))]
        for name in run.initialisations
    ]


def cell_run(run: LabelEfficiencyRun, cell: Cell) -> FinetuneRun:
    """The fine-tuning run of a cell.

    Args:
        run (`LabelEfficiencyRun`): The comparison.
        cell (`Cell`): One of its cells.

    Returns:
        `FinetuneRun`: The run file with the settings of the comparison, of the curve and of the cell, in this order.

    Raises:
        RunConfigError: If it does not fit, or holds out frames from the training split: each seed would then be scored on
            other frames.
    """
    kind = RUNS[run.kind]
    values = _read(run.finetune)
    for more in (run.settings, run.settings_of.get(cell.name) or {}):
        values = _merge(values, more)
    init = str(run.initialisations[cell.name])
    decided = {
        "train_fraction": cell.fraction,
        "seed": cell.seed,
        "init": SCRATCH if init == MONAI_UNET else init,
        "output_dir": str(cell.folder(run.output_dir)),
        "resume": "auto",
        "keep": LAST,
        "patience": None,
        "metric": None,
        "evaluations": 1,
        "saves": _SAVES,
    }
    settings = make_finetune_run(kind, values | decided, f"the run of {cell}")
    if getattr(settings, "linear_probe", False):
        raise RunConfigError(f"{run.finetune} fits a linear probe; the cells are trained. Set linear_probe: false.")
    if settings.validation_split is None:
        raise RunConfigError(f"{run.finetune} must name a `validation_split`, the same for all cells.")
    return settings


def _read(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"`finetune`: there is no run file {file}. The project's are in training/configs.")
    values = require("yaml", "training").safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise RunConfigError(f"{file} must hold `key: value` lines, got {type(values).__name__}.")
    return values


def _merge(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Keys replaced; dictionaries such as `config` are joined key by key."""
    joined = {
        name: {**values[name], **value}
        for name, value in more.items()
        if isinstance(value, dict) and isinstance(values.get(name), dict)
    }
    return {**values, **more, **joined}
