"""Parallel writing of Parquet shards; an interrupted build resumes and yields identical bytes.

Each shard contains a fixed range of items, so its bytes do not depend on earlier shards. Shards are written
atomically. A record of each stores its number of rows, its SHA-256 and the skipped items.
"""

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import connection, get_all_start_methods, get_context, parent_process
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...folders import atomic_file
from ...import_utils import require
from ...progress import Progress
from ..faults import Fault, FaultReport
from ..reading.files import UNREADABLE


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features


# recommended by the Hub for images: rows that a reader fetches and decompresses together
ROWS_PER_GROUP = 100
DATA_NAME = "data"
BUILD_NAME = ".build"
# starting a worker process takes about as long as creating this many rows
MIN_ITEMS_FOR_PROCESSES = 200


class RowMaker(Protocol):
    """Creates the rows of an item. Sent to worker processes, so it must open files lazily."""

    def __call__(self, index: int) -> dict[str, Any] | Iterator[dict[str, Any]] | None:
        """The row of item `index`, or an iterator over its rows, such as the frames of a cine; `None` if it has none.

        Exceptions in `UNREADABLE` are recorded as faults of the item; rows yielded before are kept.
        """
        ...

    def name(self, index: int) -> str:
        """Name of the item in fault reports."""
        ...


@dataclass(frozen=True)
class ShardPlan:
    """Distribution of items over shards.

    Args:
        num_items (`int`): Number of items.
        items_per_shard (`int`, defaults to 1000): Items per shard except the last; 1000 frames of 512×512 take 140 MB.
        split (`str`, defaults to `"train"`): Split, the first part of the shard names.
        key (`str`, defaults to `""`): Digest of contents and options. Builds with another key are not resumed.

    Raises:
        ValueError: If there is nothing to write.
    """

    num_items: int
    items_per_shard: int = 1000
    split: str = "train"
    key: str = ""

    def __post_init__(self) -> None:
        if self.num_items < 1 or self.items_per_shard < 1:
            raise ValueError(f"A build needs at least one item and one item per shard, got {self}.")

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_items // self.items_per_shard)

    def items(self, shard: int) -> range:
        """Indices of the items of a shard."""
        first = shard * self.items_per_shard
        return range(first, min(first + self.items_per_shard, self.num_items))

    def name(self, shard: int) -> str:
        """File name of a shard, as the Hub expects it."""
        return f"{self.split}-{shard:05d}-of-{self.num_shards:05d}.parquet"


@dataclass(frozen=True)
class ShardRecord:
    """Contents of a finished shard.

    Args:
        num_rows (`int`): Number of rows.
        num_bytes (`int`): File size.
        sha256 (`str`): Digest of the file, hexadecimal.
        faults (`list[Fault]`): Skipped items.
    """

    num_rows: int
    num_bytes: int
    sha256: str
    faults: list[Fault]


def write_shards(
    make_row: RowMaker,
    plan: ShardPlan,
    output: str | Path,
    features: "Features",
    *,
    num_workers: int | None = None,
    show_progress: bool = True,
) -> FaultReport:
    """Write `output/data/<split>-00000-of-000NN.parquet`; resumes an interrupted call.

    Row groups have 100 rows, columns are compressed with zstd, pages have checksums.

    Args:
        make_row ([`RowMaker`]): Creates the rows.
        plan ([`ShardPlan`]): Distribution of items over shards.
        output (`str` or `Path`): Folder of the data set. Records of finished shards are in its sub-folder `.build`.
        features (`datasets.Features`): Column types; image files that a row refers to by path are embedded.
        num_workers (`int`, *optional*): Number of processes, each writing one shard; defaults to the number of cores. A
            script that starts processes needs an `if __name__ == "__main__":` guard.
        show_progress (`bool`, defaults to `True`): Whether to show a progress bar in a terminal.

    Returns:
        [`~reports.FaultReport`]: All skipped items, including those of earlier calls.

    Raises:
        FileExistsError: If `output` contains a build of something else.
        RuntimeError: If another process is building there.
        OSError: If a shard cannot be written. Finished shards are kept, and the next call resumes.
    """
    output = Path(output)
    with build_lock(output):
        _check_plan(output, plan)
        job = _ShardJob(make_row, plan, output, features)
        todo = [shard for shard in range(plan.num_shards) if read_record(output, plan, shard) is None]
        with Progress(what=plan.split, total=plan.num_items, unit="rows", is_shown=show_progress) as bar:
            bar.update(plan.num_items - sum(len(plan.items(shard)) for shard in todo))
            for shard in run_jobs(job, todo, num_workers if len(todo) > 1 and _is_long(plan, todo) else 1):
                bar.update(len(plan.items(shard)))
    report = FaultReport()
    for shard in range(plan.num_shards):
        record = read_record(output, plan, shard)
        report.extend(record.faults if record else ())
    return report


def read_record(output: Path, plan: ShardPlan, shard: int) -> ShardRecord | None:
    """Read the record of a shard.

    Args:
        output (`Path`): Folder of the data set.
        plan ([`ShardPlan`]): Plan of the build.
        shard (`int`): Index of the shard.

    Returns:
        [`ShardRecord`]: Its record; `None` if the shard is unfinished or its file size is wrong.
    """
    path = output / DATA_NAME / plan.name(shard)
    try:
        content = json.loads(_record_path(output, plan, shard).read_text(encoding="utf-8"))
        record = ShardRecord(**{**content, "faults": [Fault(*fault) for fault in content["faults"]]})
        return record if path.stat().st_size == record.num_bytes else None
    except (FileNotFoundError, json.JSONDecodeError):
        return None


@contextmanager
def build_lock(output: str | Path) -> Iterator[None]:
    """Lock a folder against builds by other processes.

    Args:
        output (`str` or `Path`): Folder of the data set; created if missing.

    Raises:
        FileExistsError: If it contains files but no build.
        RuntimeError: If another process is building there.
    """
    filelock = require("filelock", "data")
    folder = Path(output) / BUILD_NAME
    if Path(output).is_dir() and not folder.is_dir() and any(Path(output).iterdir()):
        raise FileExistsError(f"{output} contains files but no build of a data set. Choose a new or empty folder.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise RuntimeError(
            f"Another process is building in {output}. Wait for it, or choose another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _check_plan(output: Path, plan: ShardPlan) -> None:
    """Write the plan, or reject a different one, and remove partial files of a killed build."""
    path = output / BUILD_NAME / f"plan-{plan.split}.json"
    if path.is_file():
        found = ShardPlan(**json.loads(path.read_text(encoding="utf-8")))
        if found != plan:
            raise FileExistsError(
                f"{output} contains a different build: {found}, expected {plan}. "
                "Choose another folder, or remove this one."
            )
    else:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(plan)), encoding="utf-8")
    (output / DATA_NAME).mkdir(exist_ok=True)
    for left in (output / DATA_NAME).glob(f".*.{plan.split}-*.parquet"):
        left.unlink()


def _is_long(plan: ShardPlan, todo: list[int]) -> bool:
    return sum(len(plan.items(shard)) for shard in todo) >= MIN_ITEMS_FOR_PROCESSES


def _record_path(output: Path, plan: ShardPlan, shard: int) -> Path:
    return (output / BUILD_NAME / plan.name(shard)).with_suffix(".json")


@dataclass
class _ShardJob:
    """Writes one shard; sent to each worker once."""

    make_row: RowMaker
    plan: ShardPlan
    output: Path
    features: "Features"

    def __call__(self, shard: int) -> None:
        path = self.output / DATA_NAME / self.plan.name(shard)
        faults: list[Fault] = []
        with atomic_file(path) as temporary:
            num_rows = self._write(temporary, self._rows(shard, faults))
        record = ShardRecord(num_rows, path.stat().st_size, file_digest(path), faults)
        with atomic_file(_record_path(self.output, self.plan, shard)) as temporary:
            temporary.write_text(json.dumps(asdict(record), ensure_ascii=False), encoding="utf-8")

    def _rows(self, shard: int, faults: list[Fault]) -> Iterator[dict[str, Any]]:
        for index in self.plan.items(shard):
            # outside the handler for faults: a row that does not match the columns is a bug
            for row in self._rows_of(index, faults):
                yield self.features.encode_example(row)

    def _rows_of(self, index: int, faults: list[Fault]) -> Iterator[dict[str, Any]]:
        try:
            yield from _as_rows(self.make_row(index))
        except UNREADABLE as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise
            faults.append(Fault(self.make_row.name(index), f"{type(error).__name__}: {error}"))

    def _write(self, path: Path, rows: Iterator[dict[str, Any]]) -> int:
        parquet = require("pyarrow.parquet", "data")
        schema = self.features.arrow_schema
        options = {"compression": "zstd", "compression_level": 1, "use_dictionary": False, "write_page_checksum": True}
        num_rows = 0
        with parquet.ParquetWriter(path, schema, **options) as writer:
            while group := list(islice(rows, ROWS_PER_GROUP)):
                writer.write_table(self._table(group, schema), row_group_size=ROWS_PER_GROUP)
                num_rows += len(group)
        return num_rows

    def _table(self, rows: list[dict[str, Any]], schema: "pa.Schema") -> "pa.Table":
        """Rows as a table with all images embedded."""
        table = require("pyarrow", "data").Table.from_pylist(rows, schema=schema)
        if not any(_is_reference(value) for row in rows for value in row.values()):
            return table
        return require("datasets.table", "data").embed_table_storage(table)


def _is_reference(value: Any) -> bool:
    """Whether the value is an image, encoded by `datasets`, that only refers to a file."""
    return isinstance(value, dict) and "bytes" in value and value["bytes"] is None


def _as_rows(rows: dict[str, Any] | Iterator[dict[str, Any]] | None) -> Iterator[dict[str, Any]]:
    if isinstance(rows, dict):
        yield rows
    elif rows is not None:
        yield from rows


def file_digest(path: str | Path) -> str:
    """Compute the SHA-256 of a file.

    Args:
        path (`str` or `Path`): File.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_jobs(job: Callable[[int], Any], numbers: list[int], num_workers: int | None = None) -> Iterator[int]:
    """Run a job for each number in worker processes, and yield the numbers as they finish.

    Workers terminate with their parent process, however it ends.

    Args:
        job (`Callable[[int], Any]`): Function to call; sent to each worker once. Its return value is ignored.
        numbers (`list[int]`): Arguments.
        num_workers (`int`, *optional*): Number of processes; defaults to the number of cores. 1 runs in this process.

    Yields:
        `int`: Numbers in order of completion.

    Raises:
        OSError: If the disk is full, with the progress so far; other errors are re-raised.
    """
    workers = min(num_workers or num_cores(), len(numbers))
    done = 0
    try:
        for number in _run_here(job, numbers) if workers <= 1 else _run_in_workers(job, numbers, workers):
            done += 1
            yield number
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC,
            f"The disk is full; {done} of {len(numbers)} parts are written and kept. Free some space and run it again",
        ) from error


def num_cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_here(job: Callable[[int], Any], numbers: list[int]) -> Iterator[int]:
    for number in numbers:
        job(number)
        yield number


def _run_in_workers(job: Callable[[int], Any], numbers: list[int], num_workers: int) -> Iterator[int]:
    pool = ProcessPoolExecutor(num_workers, _worker_context(), _start_worker, (job,))
    try:
        futures = {pool.submit(_work, number): number for number in numbers}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A worker process ended unexpectedly. Either a script started processes outside of "
            '`if __name__ == "__main__":`, or the machine ran out of memory: add the guard, or use fewer workers '
            "(num_workers=1 starts none). Finished work is kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _worker_context() -> BaseContext:
    # Not fork: the parent may have threads of torch or OpenCV. A fork server, where available, imports torch once, has
    # no threads, and starts workers quickly.
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


_WORKER_STATE: dict[str, Callable[[int], Any]] = {}


def _start_worker(job: Callable[[int], Any]) -> None:
    require("cv2", "data").setNumThreads(1)
    require("pyarrow", "data").set_cpu_count(1)
    _WORKER_STATE["job"] = job
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # otherwise the workers of a killed process would wait forever
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(number: int) -> None:
    _WORKER_STATE["job"](number)
