"""Report of an XA-170K build: its counts and files, and verification against them."""

import io
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from ...folders import atomic_file
from ...import_utils import require
from ...progress import Progress
from ..faults import Fault, FaultReport
from ..frame_digest import frame_digest
from ..parquet.write import file_digest, run_jobs
from ..reading.files import UNREADABLE
from .sources import KNOWN_COUNTS, FrameItem, XA170KOptions


REPORT_NAME = "build_report.json"
CARD_NAME = "README.md"
# starting a worker process takes about as long as checking this many rows
MIN_ROWS_FOR_PROCESSES = 6000


@dataclass(frozen=True)
class ShardFile:
    """A Parquet file of a build.

    Args:
        path (`str`): Relative to the folder of the build.
        source (`str`): Collection of its frames.
        first_row (`int`): Index of its first row in the data set.
        num_rows (`int`): Number of rows.
        num_bytes (`int`): File size.
        num_bytes_unpacked (`int`): Uncompressed size of its columns.
        sha256 (`str`): Its digest, hexadecimal.
    """

    path: str
    source: str
    first_row: int
    num_rows: int
    num_bytes: int
    num_bytes_unpacked: int
    sha256: str


@dataclass(frozen=True)
class SourceCount:
    """Counts of one collection.

    Args:
        source (`str`): Name of the collection.
        num_known (`int`): Frames that the authors of XA-170K used from it.
        num_found (`int`): Frames found.
        num_rows (`int`): Frames in the data set: those found minus the unreadable ones.
        num_ready_masks (`int`): Frames supplied with a mask; the filter computed the others.
        num_patients (`int`, *optional*): Distinct patients, `None` if unknown for all frames.
        num_studies (`int`, *optional*): Distinct studies, `None` if unknown for all frames.
        num_groups (`int`): Groups of near duplicates that start in it.
        num_copies (`int`): Frames with the same pixels as an earlier frame of the data set.
    """

    source: str
    num_known: int
    num_found: int
    num_rows: int
    num_ready_masks: int
    num_patients: int | None
    num_studies: int | None
    num_groups: int
    num_copies: int

    def difference(self) -> str | None:
        """Difference from the known count as text; `None` if they are equal."""
        if self.num_rows == self.num_known:
            return None
        unreadable = self.num_found - self.num_rows
        why = f", {unreadable:,} more are unreadable" if unreadable else ""
        return f"{self.source}: expected {self.num_known:,} frames, found {self.num_rows:,}{why}"


@dataclass(frozen=True)
class RowTable:
    """Properties of the rows of a build.

    Args:
        items (`list[FrameItem]`): Frame of each row.
        groups (`np.ndarray` of shape `(num_rows,)`): `int64`, index of the first row of the group.
        digests (`np.ndarray` of shape `(num_rows, 32)`): `uint8`, see [`~frame_digest.frame_digest`].
        is_ready (`np.ndarray` of shape `(num_rows,)`): `bool`, whether the mask was supplied.
    """

    items: list[FrameItem]
    groups: np.ndarray
    digests: np.ndarray
    is_ready: np.ndarray

    def rows_of(self, source: str) -> np.ndarray:
        """Indices of the rows of one collection, shape `(num_rows_of_collection,)`."""
        return np.array([row for row, item in enumerate(self.items) if item.source == source], dtype=np.int64)

    def is_copy(self) -> np.ndarray:
        """Whether an earlier row has the same pixels; `bool` of shape `(num_rows,)`."""
        copies = np.ones(len(self.items), bool)
        copies[np.unique(self.digests, axis=0, return_index=True)[1]] = False
        return copies

    def num_crossing_groups(self) -> int:
        """Number of groups that span more than one collection."""
        pairs = {(group, item.source) for group, item in zip(self.groups.tolist(), self.items, strict=True)}
        return sum(number > 1 for number in Counter(group for group, _ in pairs).values())


def count_source(source: str, found: list[FrameItem], table: RowTable) -> SourceCount:
    """Count the frames of one collection.

    Args:
        source (`str`): Name of the collection.
        found (`list[FrameItem]`): All frames found.
        table ([`RowTable`]): Rows of the build.

    Returns:
        [`SourceCount`]: The counts.
    """
    rows = table.rows_of(source)
    items = [table.items[row] for row in rows]
    patients = {item.patient_id for item in items} - {None}
    studies = {(item.patient_id, item.study_id) for item in items if item.study_id is not None}
    return SourceCount(
        source=source,
        num_known=KNOWN_COUNTS[source],
        num_found=sum(item.source == source for item in found),
        num_rows=len(rows),
        num_ready_masks=int(table.is_ready[rows].sum()),
        num_patients=len(patients) or None,
        num_studies=len(studies) or None,
        num_groups=int((table.groups[rows] == rows).sum()),
        num_copies=int(table.is_copy()[rows].sum()),
    )


@dataclass(frozen=True)
class BuildReport:
    """Contents of a build; stored as `build_report.json` in its folder.

    Args:
        key (`str`): Digest of frames and options.
        made_from (`str`): Origin of the frames, as text.
        counts (`tuple[SourceCount, ...]`): One per collection, including those not found.
        files (`tuple[ShardFile, ...]`): Parquet files.
        faults (`tuple[Fault, ...]`): All faults: skipped frames, unused masks, missing files.
        largest_group (`int`): Size of the largest group of near duplicates.
        num_crossing_groups (`int`): Number of groups that span more than one collection.
        vesselness (`dict`): Options of the filter.
        version (`str`): Version of this package.
    """

    key: str
    made_from: str
    counts: tuple[SourceCount, ...]
    files: tuple[ShardFile, ...]
    faults: tuple[Fault, ...]
    largest_group: int
    num_crossing_groups: int
    vesselness: dict[str, Any]
    version: str

    @property
    def num_rows(self) -> int:
        """Number of rows in the data set."""
        return sum(file.num_rows for file in self.files)

    @property
    def num_bytes(self) -> int:
        """Total size of the Parquet files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def num_groups(self) -> int:
        """Number of groups of near duplicates, i.e. of frames after deduplication."""
        return sum(count.num_groups for count in self.counts)

    @property
    def differences(self) -> list[str]:
        """Differences from the known counts, one text per collection."""
        return [text for count in self.counts if (text := count.difference()) is not None]

    def files_of(self, source: str) -> list[ShardFile]:
        """Files of one collection."""
        return [file for file in self.files if file.source == source]

    def write(self, folder: Path) -> None:
        """Write `build_report.json` atomically.

        Args:
            folder (`Path`): Folder of the build.
        """
        content = {**asdict(self), "differences": self.differences}
        with atomic_file(folder / REPORT_NAME) as temporary:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "BuildReport":
        """Read `build_report.json`.

        Args:
            folder (`str` or `os.PathLike`): Folder of a finished build.

        Raises:
            FileNotFoundError: If there is none: the build is unfinished, or the folder is something else.
            ValueError: If it cannot be read.
        """
        path = Path(folder, REPORT_NAME)
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} has no {REPORT_NAME}, so it is not a finished build of XA-170K. Build it, or run an "
                "interrupted build again to resume."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content.pop("differences")
            content["counts"] = tuple(SourceCount(**count) for count in content["counts"])
            content["files"] = tuple(ShardFile(**file) for file in content["files"])
            content["faults"] = tuple(Fault(*fault) for fault in content["faults"])
            return cls(**content)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not a report of this version of the package: {error}. Build again."
            ) from error


def origin_of(description: str, options: XA170KOptions) -> str:
    """Describe the origin of the frames without local paths, for publication.

    Args:
        description (`str`): Source that was opened: a folder, a zip, or a Hub repository.
        options ([`~xa170k_sources.XA170KOptions`]): Options it was opened with.

    Returns:
        `str`: Markdown; for a repository with its commit, if known.
    """
    path = Path(description)
    if path.exists():
        return f"{'the folder' if path.is_dir() else 'the file'} `{path.resolve().name}`"
    repository, _, revision = description.removeprefix("hf://datasets/").partition("@")
    cache_dir = None if options.cache_dir is None else str(options.cache_dir)
    cached = try_to_load_from_cache(repository, options.archive, cache_dir, revision or None, "dataset")
    parts = Path(cached).parts if isinstance(cached, str) else ()
    commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts else revision or "not known"
    return f"`{options.archive}` of https://huggingface.co/datasets/{repository}, revision {commit}"


def without_places(faults: Iterable[Fault], places: Iterable[str]) -> Iterator[Fault]:
    """Remove local folders from the paths in faults.

    Args:
        faults (iterable of `Fault`): Faults.
        places (iterable of `str`): Absolute paths of folders.

    Yields:
        `Fault`: The same faults with paths relative to these folders.
    """
    longest_first = sorted({place.rstrip("/") for place in places} - {""}, key=len, reverse=True)
    # not if it is the end of a longer path
    pattern = re.compile("|".join(rf"(?<![\w./-]){re.escape(place)}/" for place in longest_first) or r"(?!)")
    for fault in faults:
        yield Fault(pattern.sub("", fault.name), pattern.sub("", fault.reason))


def verify_xa170k(
    folder: str | Path,
    report: BuildReport | None = None,
    *,
    results: Path | None = None,
    num_workers: int | None = None,
    show_progress: bool = True,
) -> FaultReport:
    """Read every file of a build again and compare it with its report.

    Compares digests, numbers of rows, collections and groups of the files, and for each row the digest of the decoded
    frame and the sizes of frame and mask.

    Args:
        folder (`str` or `Path`): Folder of the build.
        report ([`BuildReport`], *optional*): Report to compare with; defaults to that in the folder.
        results (`Path`, *optional*): Folder for intermediate results, to resume an interrupted verification.
        num_workers (`int`, *optional*): Number of processes; defaults to the number of cores.
        show_progress (`bool`, defaults to `True`): Whether to show a progress bar in a terminal.

    Returns:
        [`~reports.FaultReport`]: Differences by file; empty if there are none.

    Raises:
        FileNotFoundError: If the folder is not a finished build.
    """
    folder = Path(folder)
    report = report or BuildReport.read(folder)
    # created only if needed: a killed process could not remove it
    with _results_folder(results) as place:
        job = _Check(folder, report.files, Path(place))
        todo = [number for number in range(len(report.files)) if job.read(number) is None]
        workers = num_workers if report.num_rows >= MIN_ROWS_FOR_PROCESSES else 1
        with Progress(what="verify", total=report.num_rows, unit="rows", is_shown=show_progress) as bar:
            bar.update(report.num_rows - sum(report.files[number].num_rows for number in todo))
            for number in run_jobs(job, todo, workers):
                bar.update(report.files[number].num_rows)
        reasons = [(file, job.read(number) or ()) for number, file in enumerate(report.files)]
    return FaultReport(Fault(file.path, reason) for file, texts in reasons for reason in texts)


def _results_folder(results: Path | None) -> AbstractContextManager[str | Path]:
    return nullcontext(results) if results is not None else tempfile.TemporaryDirectory(prefix="vasomim-verify-")


@dataclass
class _Check:
    """Checks one file; sent to each worker once."""

    folder: Path
    files: tuple[ShardFile, ...]
    results: Path

    def read(self, number: int) -> list[str] | None:
        try:
            return json.loads(self._result(number).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def _result(self, number: int) -> Path:
        return self.results / f"verified-{self.files[number].sha256[:16]}-{number:05d}.json"

    def __call__(self, number: int) -> None:
        found = list(_differences(self.folder, self.files[number]))
        with atomic_file(self._result(number)) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")


def _differences(folder: Path, file: ShardFile) -> Iterator[str]:
    path = folder / file.path
    if not path.is_file():
        yield "is missing"
        return
    if path.stat().st_size != file.num_bytes or file_digest(path) != file.sha256:
        yield f"has changed: expected {file.num_bytes:,} bytes with SHA-256 {file.sha256}"
        return
    reader = require("pyarrow.parquet", "data").ParquetFile(path)
    if reader.metadata.num_rows != file.num_rows:
        yield f"has {reader.metadata.num_rows} rows, expected {file.num_rows}"
    reasons: Counter[str] = Counter()
    row = file.first_row
    for group in range(reader.num_row_groups):
        # row by row, because a row group may contain a hundred large frames
        for content in _rows(reader.read_row_group(group)):
            reasons.update(_row_differences(content, row, file.source))
            row += 1
    yield from (f"{number} rows: {reason}" for reason, number in reasons.items())


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1):
        yield batch.to_pylist()[0]


def _row_differences(row: dict[str, Any], number: int, source: str) -> Iterator[str]:
    size = (row["width"], row["height"])
    if row["source"] != source:
        yield f"belong to another collection than {source}"
    if not 0 <= row["near_duplicate_group"] <= number:
        yield "have a group that does not start at an earlier row"
    try:
        frame, mask = (_decode(row[column]["bytes"]) for column in ("image", "vesselness"))
    except UNREADABLE as error:
        yield f"cannot be decoded ({type(error).__name__})"
        return
    if frame_digest(frame).hex() != row["sha256"]:
        yield "have a frame that does not match its sha256"
    if frame.shape[::-1] != size or mask.shape != frame.shape or mask.dtype != np.bool_:
        yield "have a frame or mask of unexpected size or dtype"


def _decode(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)
