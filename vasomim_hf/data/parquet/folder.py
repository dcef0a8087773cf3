"""Which Parquet files make up a split, and loading them as what they are now.

`datasets.load_dataset(folder)` keeps a copy, and where a README lists the files by patterns it takes the copy of another
folder of the same name, or of what the folder held before, without a word (`datasets` 5.2). By the names of the files it
looks at their times.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Union

from ...import_utils import require


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


_SEVERAL = "Where it has several configurations, name the folder of one of them, such as FOLDER/vessel."


def find_parquet(
    data: str, split: str = "train", *, config: str | None = None, revision: str | None = None
) -> list[str]:
    """Find the Parquet files of a split, as `datasets.load_dataset` would.

    Args:
        data (`str`): A folder, or `OWNER/NAME` on the Hub.
        split (`str`, defaults to `"train"`): Which split; file names and the card say which files it has.
        config (`str`, *optional*): Which configuration of the card.
        revision (`str`, *optional*): Of a repository on the Hub.

    Returns:
        `list[str]`: Paths or `hf://` addresses, in the order of the data.

    Raises:
        ValueError: If the data are not Parquet, or have no such split or configuration.
    """
    datasets = require("datasets", "data")
    with tempfile.TemporaryDirectory() as scratch:  # for the lock of a cache that stays empty
        try:
            builder = datasets.load_dataset_builder(data, config, revision=revision, cache_dir=scratch)
        except ValueError as error:
            raise ValueError(f"{data} cannot be loaded as one data set ({error}). {_SEVERAL}") from error
    if builder.name != "parquet":
        raise ValueError(f"{data} is read as `{builder.name}`, and Parquet files were expected. Convert it before.")
    files = builder.config.data_files or {}
    if split not in files:
        raise ValueError(f"{data} has no split {split!r}, but {sorted(map(str, files))}. Name another split.")
    return list(files[split])


def load_parquet_folder(
    folder: str | Path,
    split: str = "train",
    *,
    config: str | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
) -> Union["Dataset", "IterableDataset"]:
    """Load a split of a folder of Parquet, with what the files hold now.

    Args:
        folder (`str` or `Path`): The folder.
        split (`str`, defaults to `"train"`): Which split.
        config (`str`, *optional*): Which configuration of its README.
        streaming (`bool`, defaults to `False`): Read rows as they are asked for.
        cache_dir (`str` or `Path`, *optional*): Where `datasets` keeps its copy; its usual place by default.

    Returns:
        `datasets.Dataset` or, with `streaming`, `datasets.IterableDataset`.

    Raises:
        ValueError: If the folder does not hold such a split as Parquet.
    """
    datasets = require("datasets", "data")
    files = {split: find_parquet(str(folder), split, config=config)}
    cache = None if cache_dir is None else str(cache_dir)
    return datasets.load_dataset("parquet", data_files=files, split=split, streaming=streaming, cache_dir=cache)
