"""Finding the Parquet files of a split and loading their current contents.

`datasets.load_dataset(folder)` keeps a cached copy. If a README lists the files by patterns, it may silently return
the copy of another folder of the same name, or of earlier contents (`datasets` 5.2). If the files are passed by name,
it checks their modification times.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Union

from ...import_utils import require


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


_SEVERAL = "If it has several configurations, pass the folder of one of them, such as FOLDER/vessel."


def find_parquet(
    data: str, split: str = "train", *, config: str | None = None, revision: str | None = None
) -> list[str]:
    """Find the Parquet files of a split, as `datasets.load_dataset` does.

    Args:
        data (`str`): A folder, or `OWNER/NAME` on the Hub.
        split (`str`, defaults to `"train"`): Split; its files are determined by file names and the card.
        config (`str`, *optional*): Configuration in the card.
        revision (`str`, *optional*): Revision of a Hub repository.

    Returns:
        `list[str]`: Paths or `hf://` URLs, in the order of the data.

    Raises:
        ValueError: If the data are not Parquet, or the split or configuration does not exist.
    """
    datasets = require("datasets", "data")
    with tempfile.TemporaryDirectory() as scratch:  # the cache stays empty, but its lock needs a folder
        try:
            builder = datasets.load_dataset_builder(data, config, revision=revision, cache_dir=scratch)
        except ValueError as error:
            raise ValueError(f"{data} cannot be loaded as one data set ({error}). {_SEVERAL}") from error
    if builder.name != "parquet":
        raise ValueError(f"{data} is a `{builder.name}` data set, expected Parquet files. Convert it first.")
    files = builder.config.data_files or {}
    if split not in files:
        raise ValueError(f"{data} has no split {split!r}. Available: {sorted(map(str, files))}.")
    return list(files[split])


def load_parquet_folder(
    folder: str | Path,
    split: str = "train",
    *,
    config: str | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
) -> Union["Dataset", "IterableDataset"]:
    """Load a split of a Parquet folder with its current contents.

    Args:
        folder (`str` or `Path`): Folder, or one Parquet file, which then is the split.
        split (`str`, defaults to `"train"`): Split.
        config (`str`, *optional*): Configuration in its README.
        streaming (`bool`, defaults to `False`): Whether to read rows on demand.
        cache_dir (`str` or `Path`, *optional*): Cache folder of `datasets`; defaults to its usual one.

    Returns:
        `datasets.Dataset` or, with `streaming`, `datasets.IterableDataset`.

    Raises:
        ValueError: If the folder does not contain this split as Parquet.
    """
    datasets = require("datasets", "data")
    is_file = Path(folder).is_file()
    files = {split: [str(folder)] if is_file else find_parquet(str(folder), split, config=config)}
    cache = None if cache_dir is None else str(cache_dir)
    return datasets.load_dataset("parquet", data_files=files, split=split, streaming=streaming, cache_dir=cache)
