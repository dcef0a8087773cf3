"""Run files of a label-efficiency comparison, and the training runs (cells) they expand to."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ..evaluating.reference_models import MONAI_UNET
from ..finetuning.run import LAST, RUNS, FinetuneRun
from ..run_config import SCRATCH, RunConfigError, RunFile, key, make_run, read_run_file
from ..tasks.registry import find_task
from ..tasks.task import SEGMENTATION


RESULTS_NAME = "results.json"
# Keys of fine-tuning that are set for each cell
DECIDED = (
    *("train_fraction", "seed", "init", "output_dir", "resume", "final_weights", "patience"),
    *("num_evaluations", "num_checkpoints", "metric"),
)
# Checkpoints of a cell, from which an interrupted one resumes
_NUM_CHECKPOINTS = 5


@dataclass
class LabelEfficiencyRun(RunFile):
    """A comparison over fractions of the labels."""

    required: ClassVar[tuple[str, ...]] = ("finetune", "output_dir", "initialisations", "fractions", "seeds")

    kind: str = key(SEGMENTATION, "segmentation, detection or classification")
    finetune: str = key("", "run file of fine-tuning that all cells start from")
    initialisations: dict = key({SCRATCH: SCRATCH}, "name of a curve: value of `init`, or monai_unet")
    fractions: list[float] = key([0.05, 0.1, 0.25, 0.5, 1.0], "fractions of the labels")
    seeds: list[float] = key([0, 1, 2], "seeds of weights, order and the choice of labels")
    num_seeds: dict = key({}, "fraction: number of seeds, where not all are used, e.g. {1.0: 1}")
    settings: dict = key({}, "keys of fine-tuning that replace those of its file, e.g. {min_steps: 500}")
    settings_of: dict = key({}, "name of a curve: keys of fine-tuning for this curve alone")
    measures: str | None = key(None, "metrics to draw, separated by commas; null takes those of the kind")
    keep_models: bool = key(True, "whether to keep the model of a finished cell; its results are always kept")

    def validate(self) -> None:
        """Check the values; see [`RunFile.validate`]."""
        super().validate()
        self.require_choice("kind", tuple(RUNS))
        if not all(0 < fraction <= 1 for fraction in self.fractions):
            raise RunConfigError(f"`fractions` must be in (0, 1], got {self.fractions}.")
        if any(seed != int(seed) or seed < 0 for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise RunConfigError(f"`seeds` must be different integers >= 0, got {self.seeds}.")
        self._check_settings()
        if not find_task(self.kind).is_dense and MONAI_UNET in self.initialisations.values():
            raise RunConfigError(f"{MONAI_UNET} is a model for segmentation, not for {self.kind}.")

    def _check_settings(self) -> None:
        for name, values in (("settings", [self.settings]), ("settings_of", list(self.settings_of.values()))):
            decided = sorted({one for value in values for one in value or ()} & set(DECIDED))
            if decided:
                raise RunConfigError(f"`{name}` must not set {', '.join(decided)}: each cell has its own.")
        for name in self.unused_settings:
            close = difflib.get_close_matches(name, map(str, self.initialisations), n=1, cutoff=0.8)
            if close:
                raise RunConfigError(
                    f"`settings_of` names {name}, which is not in `initialisations`. Did you mean {close[0]!r}?"
                )

    @property
    def unused_settings(self) -> list[str]:
        """Names in `settings_of` without a curve, such as after a command replaced `initialisations`."""
        return sorted(map(str, set(self.settings_of) - set(self.initialisations)))

    @property
    def measure_names(self) -> list[str]:
        """Names of the metrics to draw."""
        return [name.strip() for name in (self.measures or find_task(self.kind).measures).split(",")]


class Cell(NamedTuple):
    """One training run: name of the curve, fraction of the labels, seed."""

    name: str
    fraction: float
    seed: int

    def __str__(self) -> str:
        return f"{self.name}, {100 * self.fraction:g} % of the labels, seed {self.seed}"

    def folder(self, output_dir: str | Path) -> Path:
        """Folder of the cell."""
        return Path(output_dir) / "cells" / self.name / f"{100 * self.fraction:g}_percent" / f"seed_{self.seed}"


def cells_of(run: LabelEfficiencyRun) -> list[Cell]:
    """All cells of a comparison, those with few labels first and seed by seed, so that early curves are complete.

    Args:
        run (`LabelEfficiencyRun`): The comparison.

    Returns:
        `list[Cell]`: In training order.
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
    values = read_run_file(run.finetune)
    for more in (run.settings, run.settings_of.get(cell.name) or {}):
        values = _merge(values, more)
    init = str(run.initialisations[cell.name])
    decided = {
        "train_fraction": cell.fraction,
        "seed": cell.seed,
        "init": SCRATCH if init == MONAI_UNET else init,
        "output_dir": str(cell.folder(run.output_dir)),
        "resume": "auto",
        "final_weights": LAST,
        "patience": None,
        "metric": None,
        "num_evaluations": 1,
        "num_checkpoints": _NUM_CHECKPOINTS,
    }
    settings = make_run(kind, values | decided, f"the run of {cell}")
    if getattr(settings, "linear_probe", False):
        raise RunConfigError(f"{run.finetune} fits a linear probe; the cells are trained. Set linear_probe: false.")
    if settings.validation_split is None:
        raise RunConfigError(f"{run.finetune} must name a `validation_split`, the same for all cells.")
    return settings


def _merge(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Keys replaced; dictionaries such as `model` are joined key by key."""
    joined = {
        name: {**values[name], **value}
        for name, value in more.items()
        if isinstance(value, dict) and isinstance(values.get(name), dict)
    }
    return {**values, **more, **joined}
