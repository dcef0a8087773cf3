"""Training and validation rows of a fine-tuning run, and their class names."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.locations import VALIDATION_NAMES, MissingSplitError
from ...data.published.registry import find_dataset
from ...data.sources import DatasetSource
from ...data.splits import GROUP_COLUMNS, split_by_group
from ..run_config import RunConfigError
from ..tasks.registry import find_task
from .run import FinetuneRun


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

# second word of the seed for `train_fraction`
_FRACTION_STREAM = 11


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Labelled rows of a data set.

    Args:
        dataset (`datasets.Dataset`): Data set with the columns of the task.
        label_column (`str`): `mask`, `objects` or `label`, or the name in the data set.
        image_column (`str`): Column of the frames.
        numbers (sequence of `int`, *optional*): Indices of the rows in the original data set; `None` counts from 0.
        ignore_white (`bool`): Whether 255 in two-class masks marks pixels to ignore, see `MaskRule`.
    """

    dataset: "Dataset"
    label_column: str
    image_column: str
    numbers: Sequence[int] | None = None
    ignore_white: bool = False

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def _frames(self) -> DatasetSource:
        return DatasetSource(self.dataset, self.image_column)

    @cached_property
    def _labels(self) -> "Dataset":
        return self.dataset.select_columns([self.label_column])

    def frame(self, index: int) -> np.ndarray:
        """A frame of shape `(height, width)`, `uint8`, read as in pre-training; raises one of `UNREADABLE`."""
        return self._frames.frame(index)

    def label(self, index: int) -> Any:
        """Label of a frame, as stored in the data set."""
        return self._labels[index][self.label_column]

    @cached_property
    def image_ids(self) -> list[str]:
        """Ids of the frames, or their indices in the data set if it has none."""
        numbers = [str(number) for number in self.numbers or range(len(self))]
        if "image_id" not in self.dataset.column_names:
            return numbers
        ids = zip(self.dataset["image_id"], numbers, strict=True)
        return [number if name in (None, "") else str(name) for name, number in ids]

    @property
    def patient_ids(self) -> list[str | None]:
        """Patients, `None` where unknown."""
        if "patient_id" not in self.dataset.column_names:
            return [None] * len(self)
        return [None if name in (None, "") else str(name) for name in self.dataset["patient_id"]]

    def select(self, indices: Sequence[int]) -> "LabelledRows":
        """Select rows by index."""
        numbers = self.numbers or range(len(self))
        chosen = [numbers[index] for index in indices]
        return dataclasses.replace(self, dataset=self.dataset.select(list(indices)), numbers=chosen)


@dataclass(frozen=True, eq=False)
class TaskData:
    """Training and validation rows.

    Args:
        training (`LabelledRows`): Training rows, after `train_fraction`.
        validation (`LabelledRows`): Validation rows.
        id2label (`dict[int, str]`): Class names.
    """

    training: LabelledRows
    validation: LabelledRows
    id2label: dict[int, str]


def label_column(run: FinetuneRun) -> str:
    """Column of the labels of a run's rows."""
    column = find_task(run.kind).column
    return getattr(run, f"{column}_column") if find_dataset(run.dataset).is_table else column


def load_task_data(run: FinetuneRun) -> TaskData:
    """Load the rows of a run.

    Args:
        run (`FinetuneRun`): Run configuration.

    Returns:
        `TaskData`: Training and validation rows.

    Raises:
        ValueError: If a split or column is missing, or no rows are left.
    """
    if find_dataset(run.dataset).is_table and {run.train_split, run.validation_split} <= set(VALIDATION_NAMES):
        raise RunConfigError(
            f"`train_split` {run.train_split!r} and `validation_split` {run.validation_split!r} may be names of the "
            "same split. Use another one, or validation_split: null to hold out a part."
        )
    rows = load_rows(run, run.train_split)
    id2label = class_names(run, rows)
    validation = _validation_rows(run)
    training = np.arange(len(rows))
    if validation is None:
        training, held_out = hold_out(rows, run.validation_fraction, run.seed)
        validation = rows.select(held_out.tolist())
    rows, validation = (number_labels(run, part, id2label) for part in (rows, validation))
    chosen = choose_fraction(training, run.train_fraction, run.seed)
    return TaskData(rows.select(chosen.tolist()), validation, id2label)


def _validation_rows(run: FinetuneRun) -> LabelledRows | None:
    """Rows of the validation split; `None` if training frames must be held out instead."""
    if run.validation_split is None:
        return None
    try:
        return load_rows(run, run.validation_split)
    except MissingSplitError as error:
        if error.available:
            raise
        logger.warning(
            "%s has no splits: %g of its frames are held out for validation", run.data, run.validation_fraction
        )
        return None


def load_rows(run: FinetuneRun, split: str) -> LabelledRows:
    """Load one split of the data.

    Args:
        run (`FinetuneRun`): Run configuration.
        split (`str`): Name of the split.

    Returns:
        `LabelledRows`: At most `max_frames` rows.

    Raises:
        ValueError: If the split or a column is missing, or there are no frames.
    """
    entry = find_dataset(run.dataset)
    dataset = entry.load(run.data, run.task, split)
    image, labels = run.image_column if entry.is_table else "image", label_column(run)
    missing = [name for name in (image, labels) if name not in dataset.column_names]
    if missing:
        raise RunConfigError(
            f"{run.data} has no column {missing[0]!r} in its split {split!r}, but {', '.join(dataset.column_names)}. "
            "Set the column names, such as image_column."
        )
    if not len(dataset):
        raise RunConfigError(f"{run.data} has no frames in its split {split!r}. Use another split.")
    rows = LabelledRows(dataset, labels, image, ignore_white=getattr(run, "ignore_white", False))
    return rows if run.max_frames is None else rows.select(range(min(run.max_frames, len(rows))))


def class_names(run: FinetuneRun, rows: LabelledRows) -> dict[int, str]:
    """Class names from the data set or the run.

    Args:
        run (`FinetuneRun`): Run configuration.
        rows (`LabelledRows`): Rows with typed columns.

    Returns:
        `dict[int, str]`: Consecutive ids from 0.

    Raises:
        ValueError: If neither provides them, or the ids have gaps.
    """
    entry = find_dataset(run.dataset)
    if not entry.is_table:
        return dict(entry.tasks[run.task].labels)
    if run.labels:
        names = {_whole(number): str(name) for number, name in run.labels.items()}
        names = find_task(run.kind).complete_names(names)
    else:
        names = named_by_columns(run, rows)
    if sorted(names) != list(range(len(names))) or not names:
        raise RunConfigError(
            f"The classes of {rows.label_column!r} need names with ids from 0 on, got {names or 'none'}. Write them "
            f"in the run file, such as labels: {_example(run, rows)}"
        )
    return dict(sorted(names.items()))


def named_by_columns(run: FinetuneRun, rows: LabelledRows) -> dict[int, str]:
    """Class names stored in the type of the label column.

    Args:
        run (`FinetuneRun`): Run configuration.
        rows (`LabelledRows`): Rows with typed columns.

    Returns:
        `dict[int, str]`: Empty if the column has none, as for masks.
    """
    feature = find_task(run.kind).class_feature(rows.dataset.features[rows.label_column])
    return dict(enumerate(getattr(getattr(feature, "feature", feature), "names", None) or ()))


def number_labels(run: FinetuneRun, rows: LabelledRows, id2label: dict[int, str]) -> LabelledRows:
    """Replace label names of frames by ids.

    Args:
        run (`FinetuneRun`): Run configuration.
        rows (`LabelledRows`): Rows whose labels are ids or names.
        id2label (`dict[int, str]`): Class names.

    Returns:
        `LabelledRows`: With ids; unchanged if they are already ids.

    Raises:
        RunConfigError: If a label is not a class name.
    """
    if not (find_task(run.kind).allows_names and _are_names(rows)):
        return rows
    ids = {name: number for number, name in id2label.items()}
    given = rows.dataset[rows.label_column]
    for name, label in zip(rows.image_ids, given, strict=True):
        if label not in ids:
            raise RunConfigError(
                f"{name}: the label must be one of {', '.join(ids)}, got {label!r}. Correct it, or name it in "
                "`labels`."
            )
    # not `map`, which would write a copy of all frames
    plain = rows.dataset.remove_columns(rows.label_column)
    return dataclasses.replace(rows, dataset=plain.add_column(rows.label_column, [ids[label] for label in given]))


def _are_names(rows: LabelledRows) -> bool:
    return getattr(rows.dataset.features[rows.label_column], "dtype", None) in ("string", "large_string")


def _example(run: FinetuneRun, rows: LabelledRows) -> str:
    """Example of class names for a run file, with those of the data if known."""
    task = find_task(run.kind)
    if not (task.allows_names and _are_names(rows)):
        return task.labels_example
    found = sorted({str(label) for label in rows.dataset[rows.label_column] if label})
    return "{" + ", ".join(f"{number}: {name}" for number, name in enumerate(found[:10])) + "}"


def _whole(value: object) -> int:
    try:
        return int(str(value))
    except ValueError as error:
        raise RunConfigError(f"`labels` must be id: name, got the id {value!r}.") from error


def choose_fraction(indices: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Select a random fraction of the rows. With the same seed, smaller fractions are subsets of larger ones.

    Args:
        indices (`np.ndarray` of shape `(num_rows,)`): Rows to choose from.
        fraction (`float`): Fraction in (0, 1]; at least one row is selected.
        seed (`int`): Random seed.

    Returns:
        `np.ndarray` of shape `(num_chosen,)`: In ascending order.
    """
    order = np.random.default_rng([seed, _FRACTION_STREAM]).permutation(len(indices))
    count = min(len(indices), max(1, round(fraction * len(indices))))
    return np.sort(indices[order[:count]])


def hold_out(rows: LabelledRows, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out part of some rows for validation, by [`split_by_group`]: frames of a patient stay together.

    Args:
        rows (`LabelledRows`): Rows to divide.
        fraction (`float`): Fraction of the rows to hold out, in (0, 1).
        seed (`int`): Seed of the draw.

    Returns:
        Two `np.ndarray` of shape `(num_rows,)`: Rows to train on, and rows held out.

    Raises:
        RunConfigError: If nothing would be left to train on.
    """
    columns = {name: rows.dataset[name] for name in GROUP_COLUMNS if name in rows.dataset.column_names}
    columns = columns or {GROUP_COLUMNS[0]: [None] * len(rows)}
    try:
        parts = split_by_group(columns, {"train": 1 - fraction, "validation": fraction}, seed=seed)
    except ValueError as error:
        raise RunConfigError(
            f"Holding out {fraction:.0%} of {len(rows)} frames by patient leaves none to train on ({error}). Name a "
            "validation_split."
        ) from error
    return parts["train"], parts["validation"]
