"""From a run's `data:` line to labelled rows, the names of their classes, and the rows to learn from and to judge by."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.parquet.folder import load_parquet_folder
from ...data.published.arcade import arcade_labels, load_arcade
from ...image_processing_reading import read_frames
from ...import_utils import require
from ...modeling_vasomim_segmentation import IGNORED_LABEL
from ..run_config import RunConfigError
from .run import (
    ARCADE,
    CLASSIFICATION,
    DETECTION,
    SEGMENTATION,
    FinetuneRun,
)


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

HUB_PREFIX = "hf://datasets/"
# Rows that share a value in one of these are not parted between learning and judging
GROUP_COLUMNS = ("patient_id", "study_id", "twin_group", "near_duplicate_group")
# What data sets call the split to judge by; `datasets` itself reads a file val.parquet as the split "validation"
VALIDATION_NAMES = ("val", "validation", "valid", "dev")
# How a run file names classes
_EXAMPLES = {
    SEGMENTATION: "{0: background, 1: vessel}",
    DETECTION: "{0: stenosis}",
    CLASSIFICATION: "{0: left, 1: right}",
}
# Last words of the seeds of the two draws
_FRACTION_STREAM, _HELD_OUT_STREAM = 11, 12


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Rows of a data set for one purpose.

    Args:
        dataset (`datasets.Dataset`): With the columns of the task.
        label_column (`str`): `mask`, `objects` or `label`, as the data set calls it.
        image_column (`str`): Column of the frames.
        numbers (sequence of `int`, *optional*): Of the rows in the data set they were chosen from; `None` counts from 0.
        white_is_class_1 (`bool`): Whether 255 in a mask is class 1, and not a pixel to ignore.
    """

    dataset: "Dataset"
    label_column: str
    image_column: str
    numbers: Sequence[int] | None = None
    white_is_class_1: bool = False

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def image_ids(self) -> list[str]:
        """Ids of the frames; their numbers in the data set, where it has none."""
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
        """Some of the rows."""
        numbers = self.numbers or range(len(self))
        chosen = [numbers[index] for index in indices]
        return dataclasses.replace(self, dataset=self.dataset.select(list(indices)), numbers=chosen)


@dataclass(frozen=True, eq=False)
class TaskData:
    """What a run learns from and is judged by.

    Args:
        training (`LabelledRows`): After `train_fraction`.
        validation (`LabelledRows`): Whole.
        id2label (`dict[int, str]`): Names of the classes.
    """

    training: LabelledRows
    validation: LabelledRows
    id2label: dict[int, str]


def label_column(run: FinetuneRun) -> str:
    """Column of the labels of a run's rows."""
    names = {SEGMENTATION: "mask", DETECTION: "objects", CLASSIFICATION: "label"}
    return getattr(run, f"{names[run.kind]}_column") if run.dataset != ARCADE else names[run.kind]


def load_task_data(run: FinetuneRun) -> TaskData:
    """Load the rows that a run needs.

    Args:
        run (`FinetuneRun`): The run.

    Returns:
        `TaskData`: Rows to learn from and to judge by.

    Raises:
        ValueError: If a split or column is missing, or no row is left.
    """
    if run.dataset != ARCADE and {run.train_split, run.validation_split} <= set(VALIDATION_NAMES):
        raise RunConfigError(
            f"`train_split` {run.train_split!r} and `validation_split` {run.validation_split!r} may be names of the same "
            "split. Name another one, or write validation_split: null to hold out a part."
        )
    rows = load_rows(run, run.train_split)
    id2label = class_names(run, rows)
    validation = None if run.validation_split is None else load_rows(run, run.validation_split)
    # decided over both, so that the same level never means two things
    rows, *others = read_white(run, len(id2label), [rows] if validation is None else [rows, validation])
    if others:
        training, validation = np.arange(len(rows)), others[0]
    else:
        training, held_out = hold_out(rows, run.validation_share, run.seed)
        validation = rows.select(held_out.tolist())
    rows, validation = (number_labels(run, part, id2label) for part in (rows, validation))
    chosen = choose_fraction(training, run.train_fraction, run.seed)
    return TaskData(rows.select(chosen.tolist()), validation, id2label)


def load_rows(run: FinetuneRun, split: str) -> LabelledRows:
    """Load one split of a run's data.

    Args:
        run (`FinetuneRun`): The run.
        split (`str`): Its name.

    Returns:
        `LabelledRows`: At most `max_frames` of them.

    Raises:
        ValueError: If the split or a column is missing, or there is no frame.
    """
    dataset = load_arcade(run.data, run.task, split) if run.dataset == ARCADE else _load_table(run, split)
    image, labels = "image" if run.dataset == ARCADE else run.image_column, label_column(run)
    missing = [name for name in (image, labels) if name not in dataset.column_names]
    if missing:
        raise RunConfigError(
            f"{run.data} has no column {missing[0]!r} in its split {split!r}, but {', '.join(dataset.column_names)}. Name "
            f"the columns with image_column and the like."
        )
    if not len(dataset):
        raise RunConfigError(f"{run.data} has no frames in its split {split!r}. Name another split.")
    rows = LabelledRows(dataset, labels, image)
    return rows if run.max_frames is None else rows.select(range(min(run.max_frames, len(rows))))


def read_white(run: FinetuneRun, num_labels: int, parts: Sequence[LabelledRows]) -> list[LabelledRows]:
    """Decide what 255 means in the masks of a data set with two classes.

    It is class 1 where the masks hold 0 and 255 alone, as most programs draw them; where any has a 1, it is a pixel to
    ignore. One frame cannot tell: its only white may be a strip that somebody wants ignored.

    Args:
        run (`FinetuneRun`): The run; of ARCADE the masks are ids.
        num_labels (`int`): Number of classes.
        parts (sequence of `LabelledRows`): All splits that are used.

    Returns:
        `list[LabelledRows]`: The same, with `white_is_class_1`.
    """
    if run.kind != SEGMENTATION or run.dataset == ARCADE or num_labels != 2:
        return list(parts)
    white = False
    for part in parts:
        for mask in part.dataset[part.label_column]:
            levels = np.unique(read_frames(mask, keep_ids=True)) if mask is not None else np.zeros(0)
            if 1 in levels:
                logger.info("masks hold class ids: 255, where it occurs, is a pixel to ignore")
                return list(parts)
            white = white or IGNORED_LABEL in levels
    if white:
        logger.info("masks hold 0 and 255 alone: 255 is class 1. Where a mask has a 1, it would be a pixel to ignore")
    return [dataclasses.replace(part, white_is_class_1=white) for part in parts]


def _load_table(run: FinetuneRun, split: str) -> Any:
    datasets, data = require("datasets", "data"), run.data
    if data.startswith(HUB_PREFIX):
        name, _, revision = data.removeprefix(HUB_PREFIX).partition("@")
        return _any_name(lambda one: datasets.load_dataset(name, split=one, revision=revision or None), split)
    folder = Path(data)
    if not folder.is_dir():
        raise FileNotFoundError(f"`data`: there is no folder {folder}. The Hub is reached by hf://datasets/OWNER/NAME")
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        return _any_name(lambda one: load_parquet_folder(folder, one), split)
    try:
        saved = datasets.load_from_disk(data)
    except IndexError as error:
        # the library's words for a split that was saved without rows
        raise RunConfigError(
            f"{data} has a split without rows, which cannot be read. Save it without that."
        ) from error
    if not isinstance(saved, datasets.Dataset):
        return _any_name(lambda one: _split_of(saved, one, data), split)
    if run.validation_split is None:
        return saved
    raise RunConfigError(
        f"{data} is one data set without splits. Save a DatasetDict with a split {split!r}, so that it is clear what is "
        "learnt from and what is judged by; in training, validation_split: null holds out a part of it."
    )


def _split_of(saved: Any, split: str, data: str) -> Any:
    if split not in saved:
        raise RunConfigError(f"{data} has no split {split!r}, but {', '.join(sorted(saved))}.")
    return saved[split]


def _any_name(load: Callable[[str], Any], split: str) -> Any:
    """What a split's name loads, or another name of the split to judge by."""
    try:
        return load(split)
    except ValueError:
        for name in VALIDATION_NAMES if split in VALIDATION_NAMES else ():
            try:
                found = load(name)
            except ValueError:
                continue
            logger.info("there is no split %r; %r is taken for it", split, name)
            return found
        raise


def class_names(run: FinetuneRun, rows: LabelledRows) -> dict[int, str]:
    """Names of the classes, from the data set or the run.

    Args:
        run (`FinetuneRun`): The run.
        rows (`LabelledRows`): Rows with typed columns.

    Returns:
        `dict[int, str]`: From 0 on without gaps.

    Raises:
        ValueError: If neither says them, or the ids have gaps.
    """
    if run.dataset == ARCADE:
        return arcade_labels(run.task)
    if run.labels:
        names = {_whole(number): str(name) for number, name in run.labels.items()}
        if run.kind == SEGMENTATION:
            names.setdefault(0, "background")
    else:
        names = named_by_columns(run, rows)
    if sorted(names) != list(range(len(names))) or not names:
        raise RunConfigError(
            f"The classes of {rows.label_column!r} need names with ids from 0 on, got {names or 'none'}. Write them in the "
            f"run file, such as labels: {_example(run, rows)}"
        )
    return dict(sorted(names.items()))


def named_by_columns(run: FinetuneRun, rows: LabelledRows) -> dict[int, str]:
    """Names of the classes as the type of the label column has them.

    Args:
        run (`FinetuneRun`): Says what kind of task it is.
        rows (`LabelledRows`): Rows with typed columns.

    Returns:
        `dict[int, str]`: Empty where the column does not say, as masks do not.
    """
    feature = rows.dataset.features[rows.label_column]
    feature = feature["category"] if run.kind == DETECTION else feature
    return dict(enumerate(getattr(getattr(feature, "feature", feature), "names", None) or ()))


def number_labels(run: FinetuneRun, rows: LabelledRows, id2label: dict[int, str]) -> LabelledRows:
    """Put ids in the place of labels of frames that are names.

    Args:
        run (`FinetuneRun`): Says what kind of task it is.
        rows (`LabelledRows`): Rows whose labels are ids or names.
        id2label (`dict[int, str]`): Names of the classes.

    Returns:
        `LabelledRows`: With ids; the same where they are ids already.

    Raises:
        RunConfigError: If a label is the name of no class.
    """
    if run.kind != CLASSIFICATION or not _are_names(rows):
        return rows
    ids = {name: number for number, name in id2label.items()}
    given = rows.dataset[rows.label_column]
    for name, label in zip(rows.image_ids, given, strict=True):
        if label not in ids:
            raise RunConfigError(
                f"{name}: the label must be one of {', '.join(ids)}, got {label!r}. Correct it, or name it in `labels`."
            )
    # not mapped, which would leave a copy of all frames beside the data
    plain = rows.dataset.remove_columns(rows.label_column)
    return dataclasses.replace(rows, dataset=plain.add_column(rows.label_column, [ids[label] for label in given]))


def _are_names(rows: LabelledRows) -> bool:
    return getattr(rows.dataset.features[rows.label_column], "dtype", None) in ("string", "large_string")


def _example(run: FinetuneRun, rows: LabelledRows) -> str:
    """Line of a run file that names classes: those of the data where they are known."""
    if run.kind != CLASSIFICATION or not _are_names(rows):
        return _EXAMPLES[run.kind]
    found = sorted({str(label) for label in rows.dataset[rows.label_column] if label})
    return "{" + ", ".join(f"{number}: {name}" for number, name in enumerate(found[:10])) + "}"


def _whole(value: object) -> int:
    try:
        return int(str(value))
    except ValueError as error:
        raise RunConfigError(f"`labels` must be id: name, got the id {value!r}.") from error


def choose_fraction(indices: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draw a share of some rows. With the same seed, a smaller share is a part of a larger one.

    Args:
        indices (`np.ndarray` of shape `(num_rows,)`): Rows to draw from.
        fraction (`float`): Share, in (0, 1]; at least one row is taken.
        seed (`int`): Of the draw.

    Returns:
        `np.ndarray` of shape `(num_chosen,)`: In rising order.
    """
    order = np.random.default_rng([seed, _FRACTION_STREAM]).permutation(len(indices))
    count = min(len(indices), max(1, round(fraction * len(indices))))
    return np.sort(indices[order[:count]])


def hold_out(rows: LabelledRows, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Part rows into some to learn from and some to judge by, without parting a patient or near copies.

    Args:
        rows (`LabelledRows`): Rows; those that are known to belong together by `GROUP_COLUMNS` stay so.
        share (`float`): Least share of the rows to hold out, in (0, 1).
        seed (`int`): Of the draw.

    Returns:
        Two `np.ndarray` of shape `(num_rows,)`: Rows to learn from and rows held out.

    Raises:
        ValueError: If nothing would be left to learn from.
    """
    groups = _groups(rows)
    wanted = max(1, round(share * len(rows)))
    held_out: set[int] = set()
    count = 0
    for group in np.random.default_rng([seed, _HELD_OUT_STREAM]).permutation(int(groups.max()) + 1).tolist():
        if count >= wanted:
            break
        held_out.add(group)
        count += int((groups == group).sum())
    is_held_out = np.isin(groups, list(held_out))
    if is_held_out.all():
        raise RunConfigError(
            f"Holding out {share:.0%} of {len(rows)} frames by patient leaves none to learn from. Name a validation_split."
        )
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def _groups(rows: LabelledRows) -> np.ndarray:
    """Number of the group of each row, (N,); rows tied by any of the columns are in one."""
    parents = list(range(len(rows)))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for name in set(GROUP_COLUMNS) & set(rows.dataset.column_names):
        first: dict[Any, int] = {}
        for row, value in enumerate(rows.dataset[name]):
            if value not in (None, ""):
                parents[root(row)] = root(first.setdefault(value, row))
    return np.unique([root(row) for row in range(len(rows))], return_inverse=True)[1]
