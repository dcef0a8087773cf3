"""Resolution of `data:` in a run: a folder of frames, a saved data set, Parquet files or a data set on the Hub."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..folders import FINAL_NAME
from ..import_utils import require
from .parquet.folder import load_parquet_folder


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

HUB_PREFIX = "hf://datasets/"
# names of the validation split; `datasets` itself calls the split of val.parquet "validation"
VALIDATION_NAMES = ("val", "validation", "valid", "dev")
# split name of a data set that was saved without splits
ONLY_SPLIT = "train"


class MissingSplitError(ValueError):
    """The split does not exist; `available` has the names of the existing ones, empty for data saved without
    splits."""

    def __init__(self, message: str, available: tuple[str, ...] = ()):
        super().__init__(message)
        self.available = available


def is_on_hub(data: str) -> bool:
    """Whether `data:` refers to a data set on the Hub."""
    return data.startswith(HUB_PREFIX)


def hub_name(data: str) -> tuple[str, str | None]:
    """Repository and revision of a Hub address such as `hf://datasets/OWNER/NAME@REVISION`.

    Args:
        data (`str`): Address.

    Returns:
        `tuple`: `OWNER/NAME`, and the revision or `None`.

    Example:
        >>> hub_name("hf://datasets/owner/name@main")
        ('owner/name', 'main')
    """
    name, _, revision = data.removeprefix(HUB_PREFIX).partition("@")
    return name, revision or None


def check_location(data: str) -> None:
    """Raise an error if `data:` does not exist.

    Raises:
        FileNotFoundError: If it is neither a Hub address nor a folder or Parquet file.
    """
    path = Path(data)
    if not (is_on_hub(data) or path.is_dir() or (path.suffix == ".parquet" and path.is_file())):
        raise FileNotFoundError(f"There is no folder {data}. For a data set on the Hub write {HUB_PREFIX}OWNER/NAME.")


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of `datasets`."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def load_split(data: str, split: str) -> "Dataset":
    """Load a split of a data set from any location.

    The validation split may be called val, validation, valid or dev. A data set saved without splits is its `train`
    split.

    Args:
        data (`str`): Folder of a saved data set or of Parquet files, a Parquet file, or `hf://datasets/OWNER/NAME`.
        split (`str`): Name of the split.

    Returns:
        `datasets.Dataset`: Rows of the split.

    Raises:
        FileNotFoundError: If `data` does not exist.
        MissingSplitError: If the split does not exist.
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
        # error message of `datasets` for a split saved without rows
        raise ValueError(
            f"{data} has a split without rows, which cannot be read. Save it without that split."
        ) from error
    if not isinstance(saved, datasets.Dataset):
        return _by_any_name(lambda one: _named(saved, one, data), split)
    if split == ONLY_SPLIT:
        return saved
    raise MissingSplitError(
        f"{data} was saved without splits, so that all of it is {ONLY_SPLIT!r}, and there is no {split!r}. Hold out "
        f"a part of it with validation_split: null, or save a DatasetDict with a split {split!r}."
    )


def _named(saved: Any, split: str, data: str) -> "Dataset":
    if split not in saved:
        raise MissingSplitError(f"{data} has no split {split!r}, but {', '.join(sorted(saved))}.", tuple(saved))
    return saved[split]


def _by_any_name(load: Callable[[str], Any], split: str) -> Any:
    """Load a split by its name, or by another name of the validation split."""
    try:
        return load(split)
    except ValueError:
        for name in VALIDATION_NAMES if split in VALIDATION_NAMES else ():
            try:
                found = load(name)
            except ValueError:
                continue
            logger.info("there is no split %r; using %r", split, name)
            return found
        raise


def source_name(source: str) -> str:
    """Name of a model or data set for results, without the paths of this machine.

    Args:
        source (`str`): Folder, or id on the Hub.

    Returns:
        `str`: Name of the folder, or of the training run whose result `final` it is; the full id on the Hub.

    Example:
        >>> source_name("hf://datasets/owner/angiograms")
        'owner/angiograms'
    """
    folder = Path(source).resolve()
    if not folder.exists():
        return source.removeprefix(HUB_PREFIX)
    return folder.parent.name if folder.name == FINAL_NAME else folder.name
