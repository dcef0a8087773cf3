"""Data sets by name: what `dataset: NAME` in a run file and `vasomim evaluate --dataset NAME` load.

An entry knows its loader, its tasks and its splits. Some sets were published without splits, some with splits that share
patients or without masks for training. Their annotated frames are split here by patient or cine, the same way in every
training run and evaluation.
"""

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..augmentation import FLIP_PROBABILITY
from ..locations import load_split
from ..splits import GROUP_COLUMNS, split_by_group
from . import cadica
from .arcade import PARTS, SPLITS, arcade_labels, load_arcade
from .common import box_features
from .danilov_stenosis import load_stenosis
from .dca1 import load_dca1
from .xcad import load_xcad
from .xcav import load_xcav


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

ARCADE, TABLE = "arcade", "table"
MASK, OBJECTS, LABEL = "mask", "objects", "label"
# All annotated frames of a set
ALL = "all"
# Fractions of the splits drawn here
DRAWN_SPLITS: Mapping[str, float] = {"train": 0.7, "val": 0.1, "test": 0.2}


@dataclass(frozen=True)
class LabelledTask:
    """What the frames of a data set are annotated with.

    Args:
        column (`str`): Column of the annotation: `"mask"`, `"objects"` or `"label"`.
        labels (`dict[int, str]`): Names of the classes by id; in masks, 0 is the background.
        flip_probability (`float`): Probability of a horizontal flip in training; 0 where labels depend on the side.
    """

    column: str
    labels: dict[int, str]
    flip_probability: float


@dataclass(frozen=True)
class DatasetEntry:
    """A data set that runs and evaluations know by name.

    Args:
        name (`str`): Name in run files.
        title (`str`): Name in messages.
        rows (`Callable`): Loads the rows of a root folder, a task and a split.
        tasks (mapping of `str` to `LabelledTask`): Tasks by name; empty for a table, which has the task its owner gives it.
        splits (`tuple[str, ...]`): Names of the splits; empty for a table.
    """

    name: str
    title: str
    rows: Callable[[str, str, str], "Dataset"]
    tasks: Mapping[str, LabelledTask] = field(default_factory=dict)
    splits: tuple[str, ...] = ()

    @property
    def is_table(self) -> bool:
        """Whether columns, classes and task are named by the user."""
        return not self.tasks

    def find_task(self, task: str, columns: Iterable[str] = (MASK, OBJECTS, LABEL)) -> LabelledTask:
        """Look up a task.

        Args:
            task (`str`): Name of the task.
            columns (iterable of `str`): Columns of annotations that the caller can use.

        Returns:
            `LabelledTask`: The task.

        Raises:
            ValueError: If the set has no such task with one of these columns; the message names those that it has.
        """
        columns = set(columns)
        known = [name for name, one in self.tasks.items() if one.column in columns]
        if task not in known:
            listed = f"one of {', '.join(known)}" if known else f"one that {self.title} has: {', '.join(self.tasks)}"
            raise ValueError(f"`task` must be {listed} on {self.title}, got {task!r}.{_nearest(task, known)}")
        return self.tasks[task]

    def load(self, root: str | Path, task: str, split: str) -> "Dataset":
        """Load the rows of a split for a task.

        Args:
            root (`str` or `Path`): Folder of the data set, as its loader takes it; of a table also a Hub address.
            task (`str`): One of `tasks`; any name for a table.
            split (`str`): One of `splits`, or several such as `"train+val"`.

        Returns:
            `datasets.Dataset`: Rows with the columns of the loader.

        Raises:
            FileNotFoundError: If there is nothing at `root`.
            ValueError: If the task or the split does not exist, or `root` does not contain the data set.
        """
        if not self.is_table:
            self.find_task(task)
            unknown = [name for name in split.split("+") if name not in self.splits]
            if unknown:
                raise ValueError(
                    f"The splits of {self.title} are {', '.join(self.splits)}, got {unknown[0]!r}. Several are written as "
                    f"{self.splits[0]}+{self.splits[1]}."
                )
        return self.rows(str(root), task, split)


def find_dataset(name: str) -> DatasetEntry:
    """Look up a data set.

    Args:
        name (`str`): Name in run files, such as `"xcad"`.

    Returns:
        `DatasetEntry`: Its entry.

    Raises:
        ValueError: If there is none of this name; the message contains the nearest name.

    Example:
        >>> sorted(find_dataset("arcade").tasks)
        ['segments', 'side', 'stenosis', 'stenosis_boxes', 'vessel']
    """
    if name not in DATASETS:
        raise ValueError(f"`dataset` must be one of {', '.join(DATASETS)}, got {name!r}.{_nearest(name, DATASETS)}")
    return DATASETS[name]


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(str(name).lower(), list(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def _task(name: str, labels: dict[int, str] | None = None) -> LabelledTask:
    column = OBJECTS if name.endswith("_boxes") else LABEL if name == "side" else MASK
    return LabelledTask(column, labels or arcade_labels(name), FLIP_PROBABILITY[name])


# Sets whose splits are drawn here


def _drawn(title: str, load: Callable[[str, str], "Dataset"]) -> Callable[[str, str, str], "Dataset"]:
    """Rows of a loader without usable splits: all, or parts that share no patient and no cine.

    Where neither is known, frames are drawn one by one.
    """

    def rows(root: str, task: str, split: str) -> "Dataset":
        dataset = load(root, task)
        names = split.split("+")
        if ALL in names:
            return dataset
        groups = [name for name in GROUP_COLUMNS if any(dataset[name] if name in dataset.column_names else ())]
        columns = {name: dataset[name] for name in groups or ["image_id"]}
        parts = split_by_group(columns, DRAWN_SPLITS, by=tuple(columns))
        chosen = np.sort(np.concatenate([parts[name] for name in dict.fromkeys(names)]))
        by = ", ".join(columns)
        logger.info("%s: split %r is %d of %d frames, drawn by %s", title, split, len(chosen), len(dataset), by)
        return dataset.select(chosen.tolist())

    return rows


def _drawn_entry(
    name: str, title: str, load: Callable[[str, str], "Dataset"], tasks: Mapping[str, LabelledTask]
) -> DatasetEntry:
    return DatasetEntry(name, title, _drawn(title, load), tasks, (*DRAWN_SPLITS, ALL))


def _load_cadica(root: str, task: str) -> "Dataset":
    # key frames of videos without a lesion are the negatives; other frames were not annotated
    dataset = cadica.load_cadica(root, frames="selected")
    if task == "stenosis_severity_boxes":
        return dataset
    objects = [{**one, "category": [0] * len(one["category"])} for one in dataset["objects"]]
    # not `map`, which would copy all frames
    return dataset.remove_columns("objects").add_column(
        "objects", objects, feature=box_features(("stenosis",))["objects"]
    )


_VESSEL = {"vessel": _task("vessel")}
_STENOSIS_BOXES = {"stenosis_boxes": _task("stenosis_boxes")}
_SEVERITY = {"stenosis_severity_boxes": _task("stenosis_severity_boxes", dict(enumerate(cadica.CATEGORIES)))}

DATASETS: dict[str, DatasetEntry] = {
    entry.name: entry
    for entry in (
        DatasetEntry(ARCADE, "ARCADE", load_arcade, {name: _task(name) for name in PARTS}, SPLITS),
        _drawn_entry("cadica", "CADICA", _load_cadica, {**_STENOSIS_BOXES, **_SEVERITY}),
        # masks are published for its test frames alone
        _drawn_entry("xcad", "XCAD", lambda root, task: load_xcad(root, split="test"), _VESSEL),
        _drawn_entry("xcav", "XCAV", lambda root, task: load_xcav(root), _VESSEL),
        _drawn_entry("dca1", "DCA1", lambda root, task: load_dca1(root), _VESSEL),
        # nearly all patients are on both sides of the published split
        _drawn_entry("danilov", "the Danilov set", lambda root, task: load_stenosis(root), _STENOSIS_BOXES),
        DatasetEntry(TABLE, "a table", lambda root, task, split: load_split(root, split)),
    )
}
