"""What a `data:` line of a run means: a folder of frames, a saved data set, Parquet files or a data set on the Hub."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..import_utils import require
from .parquet.folder import load_parquet_folder


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

HUB_PREFIX = "hf://datasets/"
# Names of one split; `datasets` itself calls a file val.parquet the split "validation"
VALIDATION_NAMES = ("val", "validation", "valid", "dev")
# The split of a data set that was saved without any
ONLY_SPLIT = "train"


class MissingSplitError(ValueError):
    """The data have no such split; `available` names those they have, none where they were saved without splits."""

    def __init__(self, message: str, available: tuple[str, ...] = ()):
        super().__init__(message)
        self.available = available


def is_on_hub(data: str) -> bool:
    """Whether a `data:` line names a data set on the Hub."""
    return data.startswith(HUB_PREFIX)


def hub_name(data: str) -> tuple[str, str | None]:
    """Repository and revision of a `data:` line such as `hf://datasets/OWNER/NAME@REVISION`.

    Args:
        data (`str`): The line.

    Returns:
        `tuple`: `OWNER/NAME`, and the revision, `None` where none is given.

    Example:
        >>> hub_name("hf://datasets/owner/name@main")
        ('owner/name', 'main')
    """
    name, _, revision = data.removeprefix(HUB_PREFIX).partition("@")
    return name, revision or None


def check_location(data: str) -> None:
    """Refuse a `data:` line that names nothing.

    Raises:
        FileNotFoundError: If it is no address on the Hub, and neither a folder nor a Parquet file.
    """
    path = Path(data)
    if not (is_on_hub(data) or path.is_dir() or (path.suffix == ".parquet" and path.is_file())):
        raise FileNotFoundError(f"There is no folder {data}. For a data set on the Hub write {HUB_PREFIX}OWNER/NAME.")


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` saved a folder by `save_to_disk`."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def load_split(data: str, split: str) -> "Dataset":
    """Load one split of a data set, wherever it is.

    A split to judge by may be called val, validation, valid or dev. A data set that was saved without splits is its
    `train`.

    Args:
        data (`str`): Folder of a saved data set or of Parquet files, a Parquet file, or `hf://datasets/OWNER/NAME`.
        split (`str`): Which split.

    Returns:
        `datasets.Dataset`: Its rows.

    Raises:
        FileNotFoundError: If there is nothing at `data`.
        MissingSplitError: If there is no such split.
        ValueError: If it cannot be read as a data set.
    """
    check_location(data)
    if is_on_hub(data):
        name, revision = hub_name(data)
        datasets = require("datasets", "data")
        return _by_any_name(lambda one: datasets.load_dataset(name, split=one, revision=revision), split)
    if is_saved_dataset(Path(data)):
        return _saved_split(data, split)
    return _by_any_name(lambda one: load_parquet_folder(data, one), split)


def _saved_split(data: str, split: str) -> "Dataset":
    datasets = require("datasets", "data")
    try:
        saved = datasets.load_from_disk(data)
    except IndexError as error:
        # the library's words for a split that was saved without rows
        raise ValueError(
            f"{data} has a split without rows, which cannot be read. Save it without that split."
        ) from error
    if not isinstance(saved, datasets.Dataset):
        return _by_any_name(lambda one: _named(saved, one, data), split)
    if split == ONLY_SPLIT:
        return saved
    raise MissingSplitError(
        f"{data} was saved without splits, so that all of it is {ONLY_SPLIT!r}, and there is no {split!r}. Hold out a part of "
        f"it with validation_split: null, or save a DatasetDict with a split {split!r}."
    )


def _named(saved: Any, split: str, data: str) -> "Dataset":
    if split not in saved:
        raise MissingSplitError(f"{data} has no split {split!r}, but {', '.join(sorted(saved))}.", tuple(saved))
    return saved[split]


def _by_any_name(load: Callable[[str], Any], split: str) -> Any:
    """What a split's name loads, or another of the names that the validation split goes by."""
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
