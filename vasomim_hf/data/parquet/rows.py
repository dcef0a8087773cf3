"""Conversion of rows from a loader to a `datasets` data set, on disk or streamed."""

import atexit
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from ...import_utils import require
from ...progress import Progress


if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset


# called with some items; yields their rows and skips items without rows
RowFunction = Callable[[Sequence[Any]], Iterator[dict[str, Any]]]

# rows written together: a few dozen MB of frames at most
ROWS_PER_WRITE = 100
_PREFIX = "vasomim-rows-"


def to_dataset(
    rows: RowFunction,
    items: Sequence[Any],
    features: "Features",
    *,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
) -> Union["Dataset", "IterableDataset"]:
    """Create a data set from the rows that a function yields for some items.

    Args:
        rows (`Callable`): Called with a sequence of items, yields one dictionary per row. Streaming sends it to loader
            workers, so it must be picklable: a module-level function, a `functools.partial` of one, or an object.
        items (`Sequence`): Inputs of `rows`, such as paths.
        features (`datasets.Features`): Column types.
        streaming (`bool`, defaults to `False`): Whether to generate rows on demand. Items are distributed over workers.
        cache_dir (`str` or `Path`, *optional*): Folder for the Arrow file. `None` uses a private folder that is removed
            when the process ends (or by the next process, if it was killed), so that no decoded patient data is left
            behind.

    Returns:
        `datasets.Dataset`, memory-mapped; with `streaming`, a `datasets.IterableDataset`.

    Raises:
        ValueError: If no item yields a row.
    """
    datasets = require("datasets", "data")
    if not items:
        raise ValueError("No items found to create a data set from.")
    if streaming:
        kwargs = {"items": list(items), "rows": rows}
        return datasets.IterableDataset.from_generator(_stream, features=features, gen_kwargs=kwargs)
    folder = _private_folder() if cache_dir is None else Path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rows-{uuid.uuid4().hex[:12]}.arrow"
    try:
        shown: Any = Progress(items, what="reading", unit="files")
        _write_rows(path, rows(shown), features)
        return datasets.Dataset.from_file(str(path))
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _stream(items: list[Any], rows: RowFunction) -> Iterator[dict[str, Any]]:
    yield from rows(items)


def _write_rows(path: Path, rows: Iterator[dict[str, Any]], features: "Features") -> None:
    writer_class = require("datasets.arrow_writer", "data").ArrowWriter
    found = False
    with writer_class(path=str(path), features=features, writer_batch_size=ROWS_PER_WRITE) as writer:
        for row in rows:
            found = True
            writer.write(row)
        if found:
            writer.finalize()
    if not found:
        raise ValueError("None of the items could be used; see the logged or reported faults.")


@cache
def _private_folder() -> Path:
    _remove_folders_of_killed_processes()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _remove_folders_of_killed_processes() -> None:
    if os.name == "nt":
        return  # there, os.kill(pid, 0) would terminate the process
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
