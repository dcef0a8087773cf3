"""Building XA-170K: Parquet shards with vesselness masks, a report and a data card, from any supported layout.

A build passes over the frames twice. The survey collects sizes, digests and near-duplicate signatures, so groups,
counts and disk space are known before hours of filtering; then the shards are written. Both passes can resume, with
identical bytes.
"""

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...folders import atomic_file
from ...import_utils import require
from ...version import __version__
from ..faults import FaultReport
from ..frame_digest import frame_digest
from ..near_duplicates import group_near_duplicates
from ..parquet.png import encode_mask_png, encode_png
from ..parquet.write import BUILD_NAME, DATA_NAME, ShardPlan, build_lock, read_record, write_shards
from ..reading.files import UNREADABLE
from ..vesselness import VesselnessOptions, vessel_mask
from .card import xa170k_card
from .report import (
    CARD_NAME,
    REPORT_NAME,
    BuildReport,
    RowTable,
    ShardFile,
    count_source,
    origin_of,
    verify_xa170k,
    without_places,
)
from .sources import SOURCES, FrameItem, XA170KOptions, XA170KSource, open_xa170k_source
from .survey import READY, Survey, survey_frames, survey_keys


if TYPE_CHECKING:
    from datasets import Features


logger = logging.getLogger(__name__)

# part of the key: increase it when the output for the same frames and options changes
BUILD_FORMAT = 1
# relative accuracy of the size estimate; a build that might fit is not refused
ESTIMATE_TOLERANCE = 0.9


@dataclass(frozen=True)
class XA170KBuildOptions:
    """Options of a build.

    Args:
        source ([`~xa170k_sources.XA170KOptions`]): How frames are found.
        vesselness ([`~vesselness.VesselnessOptions`]): Filter for frames without a mask.
        frames_per_shard (`int`, defaults to 1000): Frames per Parquet file; a file contains frames of one collection.
        num_workers (`int`, *optional*): Number of processes; defaults to the number of cores.
        show_progress (`bool`, defaults to `True`): Whether to show progress bars in a terminal.
    """

    source: XA170KOptions = field(default_factory=XA170KOptions)
    vesselness: VesselnessOptions = field(default_factory=VesselnessOptions)
    frames_per_shard: int = 1000
    num_workers: int | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        if self.frames_per_shard < 1:
            raise ValueError(f"`frames_per_shard` must be at least 1, got {self.frames_per_shard}.")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"`num_workers` must be at least 1, got {self.num_workers}.")


class SourceChangedError(RuntimeError):
    """A frame has changed since the survey of the same build."""


def xa170k_features() -> "Features":
    """Columns of XA-170K.

    `image` is the grey frame and `vesselness` its 1-bit mask; `sha256` is that of the pixels, see
    [`~frame_digest.frame_digest`]; `near_duplicate_group` is the row index of the first frame of the group in the
    whole data set. `patient_id`, `study_id` and `frame_index` are null if unknown.

    Returns:
        `datasets.Features`: Names and types, in order.
    """
    datasets = require("datasets", "data")
    text, number = datasets.Value("string"), datasets.Value("int32")
    columns = {"image": datasets.Image(), "vesselness": datasets.Image(), "source": text, "patient_id": text}
    columns |= {"study_id": text, "frame_index": number, "width": number, "height": number, "sha256": text}
    return datasets.Features(columns | {"near_duplicate_group": datasets.Value("int64")})


def build_xa170k(source: str | Path, output: str | Path, options: XA170KBuildOptions | None = None) -> BuildReport:
    """Write XA-170K as Parquet to a folder, with report and data card; resumes an interrupted build.

    Unreadable frames are skipped and listed in the report with all other faults. A folder that already contains the
    same build is left unchanged.

    Args:
        source (`str` or `Path`): Frames, see [`~xa170k_sources.open_xa170k_source`].
        output (`str` or `Path`): A new or empty folder, or that of the same build.
        options ([`XA170KBuildOptions`], *optional*): Options of the build.

    Returns:
        [`BuildReport`]: Contents of the folder: counts, differences from the known counts, files, faults.

    Raises:
        FileExistsError: If `output` contains something else, including a build of other frames or with other options.
        FileNotFoundError: If the source does not exist.
        ValueError: If it contains no readable frames.
        OSError: If there is not enough disk space. Finished work is kept; run it again.
        RuntimeError: If another process builds there, frames change during the build, or written data cannot be verified.
    """
    options = options or XA170KBuildOptions()
    return build_opened(open_xa170k_source(source, options.source), Path(output), options)


def build_opened(source: XA170KSource, output: Path, options: XA170KBuildOptions) -> BuildReport:
    """Same as [`build_xa170k`], for an open source.

    Args:
        source ([`~xa170k_sources.XA170KSource`]): Frames.
        output (`Path`): Folder of the build.
        options ([`XA170KBuildOptions`]): Options of the build.

    Returns:
        [`BuildReport`]: Contents of the folder.
    """
    key = build_key(source, options)
    report = _finished(output, key) or _build(source, output, key, options)
    # harmless if another process uses it or it cannot be removed
    if (output / BUILD_NAME).is_dir():
        with suppress(RuntimeError, OSError), build_lock(output):
            _remove_records(output)
    _log(report, output)
    return report


def _build(source: XA170KSource, output: Path, key: str, options: XA170KBuildOptions) -> BuildReport:
    with build_lock(output):
        report = _finished(output, key)
        if report is not None:
            return report  # finished by another process in the meantime
        survey = _survey(source, output, key, options)
    rows = _plan_rows(source, survey, options)
    plan = ShardPlan(len(rows.items), options.frames_per_shard, key=key)
    _check_space(output, survey)
    wrong = write_shards(
        rows,
        plan,
        output,
        xa170k_features(),
        num_workers=options.num_workers,
        show_progress=options.show_progress,
    )
    if len(wrong):
        raise RuntimeError(f"Cannot write rows of readable frames: {wrong}.")
    with build_lock(output):
        report = _count(rows, survey, plan, output, options)
        _finish(report, output, options)
        _remove_records(output)
    return report


def _remove_records(output: Path) -> None:
    """Remove intermediate files. Call while holding the lock, so no other process is writing them."""
    shutil.rmtree(output / BUILD_NAME, ignore_errors=True)


def build_key(source: XA170KSource, options: XA170KBuildOptions) -> str:
    """Key of a build, from everything that determines its bytes: frames, filter, shard length, package.

    Args:
        source ([`~xa170k_sources.XA170KSource`]): Frames.
        options ([`XA170KBuildOptions`]): Options of the build.

    Returns:
        `str`: 20 hexadecimal digits.
    """
    what = {"format": BUILD_FORMAT, "version": __version__, "frames_per_shard": options.frames_per_shard}
    what |= {"source": source.signature(), "vesselness": asdict(options.vesselness)}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]


def collection_order(source: XA170KSource) -> np.ndarray:
    """Order of the frames in the data set: by collection, then by name.

    Args:
        source ([`~xa170k_sources.XA170KSource`]): Frames.

    Returns:
        `np.ndarray` of shape `(num_items,)`: Indices of the items.
    """
    return np.argsort([SOURCES.index(item.source) for item in source.items], kind="stable")


def frame_row(item: FrameItem, frame: np.ndarray, mask: np.ndarray, group: int | None) -> dict[str, Any]:
    """Create a row of the data set.

    Args:
        item ([`~xa170k_layouts.FrameItem`]): Origin of the frame.
        frame (`np.ndarray` of shape `(height, width)`): `uint8`.
        mask (`np.ndarray` of shape `(height, width)`): `bool`, `True` on vessels.
        group (`int`, *optional*): Its group of near duplicates, `None` if unknown.

    Returns:
        `dict`: The columns of [`xa170k_features`].
    """
    return {
        "image": {"path": item.name.rpartition("/")[2], "bytes": encode_png(frame)},
        "vesselness": {"path": None, "bytes": encode_mask_png(mask)},
        "source": item.source,
        "patient_id": item.patient_id,
        "study_id": item.study_id,
        "frame_index": item.frame_index,
        "width": frame.shape[1],
        "height": frame.shape[0],
        "sha256": frame_digest(frame).hex(),
        "near_duplicate_group": group,
    }


@dataclass
class _Rows:
    """Creates the rows. Empty places pad the last shard of a collection, so each file has a single collection."""

    source: XA170KSource
    items: np.ndarray  # (num_places,) index of an item, -1 if empty
    groups: np.ndarray  # (num_places,) near-duplicate group
    state: np.ndarray  # (num_items,) from the survey, like `digests`
    digests: np.ndarray
    vesselness: dict[str, Any]

    def name(self, index: int) -> str:
        return self.source.items[self.items[index]].name

    def __call__(self, index: int) -> dict[str, Any] | None:
        number = self.items[index]
        if number < 0:
            return None
        item = self.source.items[number]
        frame, mask = self._read(item, self.state[number] == READY)
        if mask is None:
            mask = vessel_mask(frame, **self.vesselness)
        row = frame_row(item, frame, mask, int(self.groups[index]))
        if row["sha256"] != self.digests[number].tobytes().hex():
            raise _changed(item, "now has different pixels")
        return row

    def _read(self, item: FrameItem, is_ready: bool) -> tuple[np.ndarray, np.ndarray | None]:
        try:
            frame = self.source.read(item)
            return frame, self.source.read_vesselness(item, frame.shape) if is_ready else None
        except UNREADABLE as error:
            # counting it as a fault would drop a row that groups and counts include
            raise _changed(item, f"is now unreadable ({type(error).__name__}: {error})") from error


def _changed(item: FrameItem, what: str) -> SourceChangedError:
    return SourceChangedError(
        f"{item.name} was readable in the survey of this build and {what}. Restore the source and run the build "
        "again, or build into a new folder."
    )


def _finished(output: Path, key: str) -> BuildReport | None:
    if not (output / REPORT_NAME).is_file():
        return None
    report = BuildReport.read(output)
    if report.key != key:
        raise FileExistsError(
            f"{output} contains a finished build of other frames or with other options. Choose another folder, or "
            "remove it."
        )
    sizes = {file.path: (output / file.path).stat().st_size for file in report.files if (output / file.path).is_file()}
    if sizes != {file.path: file.num_bytes for file in report.files}:
        raise FileExistsError(
            f"Files of the finished build in {output} are missing or truncated. Remove it and build again."
        )
    return report


def _survey(source: XA170KSource, output: Path, key: str, options: XA170KBuildOptions) -> Survey:
    if survey_keys(output) - {key}:
        raise FileExistsError(
            f"{output} contains an unfinished build of other frames or with other options. Choose another folder, or "
            "remove it."
        )
    survey = survey_frames(source, output, key, num_workers=options.num_workers, show_progress=options.show_progress)
    if not len(survey.readable):
        raise ValueError(
            f"None of the {len(source.items)} frames of {source.description} can be read: {FaultReport(survey.faults)}"
        )
    return survey


def _plan_rows(source: XA170KSource, survey: Survey, options: XA170KBuildOptions) -> _Rows:
    """Order the readable frames by collection; each collection starts a new shard."""
    order = collection_order(source)
    items = order[np.isin(order, survey.readable)]
    origin = np.array([SOURCES.index(source.items[number].source) for number in items])
    groups = group_near_duplicates(survey.signatures[items])
    place = np.arange(len(items))
    for start in np.flatnonzero(np.diff(origin)) + 1:
        place[start:] += -place[start] % options.frames_per_shard
    places = np.full((2, place[-1] + 1), -1)
    places[:, place] = items, groups
    return _Rows(source, places[0], places[1], survey.state, survey.digests, asdict(options.vesselness))


def _check_space(output: Path, survey: Survey) -> None:
    there = sum(path.stat().st_size for path in (output / DATA_NAME).glob("*.parquet"))
    needed, free = survey.packed_bytes() - there, shutil.disk_usage(output).free
    logger.info("the build needs about %.1f GB more; %.1f GB are free", needed / 1e9, free / 1e9)
    if ESTIMATE_TOLERANCE * needed > free:
        raise OSError(
            errno.ENOSPC,
            f"The build needs about {needed / 1e9:.1f} GB more; {free / 1e9:.1f} GB are free. Free some space and "
            "run it again; the survey is kept",
            str(output),
        )


def _count(rows: _Rows, survey: Survey, plan: ShardPlan, output: Path, options: XA170KBuildOptions) -> BuildReport:
    order = rows.items[rows.items >= 0]
    table = RowTable(
        [rows.source.items[number] for number in order],
        rows.groups[rows.items >= 0],
        survey.digests[order],
        survey.state[order] == READY,
    )
    return BuildReport(
        key=plan.key,
        made_from=origin_of(rows.source.description, options.source),
        counts=tuple(count_source(source, rows.source.items, table) for source in SOURCES),
        files=tuple(_files(rows, plan, output)),
        faults=tuple(without_places((*rows.source.report, *survey.faults), rows.source.places())),
        largest_group=int(np.bincount(table.groups).max()),
        num_crossing_groups=table.num_crossing_groups(),
        vesselness=json.loads(json.dumps(rows.vesselness)),
        version=__version__,
    )


def _files(rows: _Rows, plan: ShardPlan, output: Path) -> Iterator[ShardFile]:
    first_row = 0
    for shard in range(plan.num_shards):
        record = read_record(output, plan, shard)
        if record is None:
            raise RuntimeError(f"{plan.name(shard)} in {output} is missing. Run the build again.")
        first = plan.items(shard).start
        source = rows.source.items[rows.items[first]].source
        path = f"{DATA_NAME}/{plan.name(shard)}"
        yield ShardFile(
            path, source, first_row, record.num_rows, record.num_bytes, _unpacked(output / path), record.sha256
        )
        first_row += record.num_rows


def _unpacked(path: Path) -> int:
    metadata = require("pyarrow.parquet", "data").read_metadata(path)
    return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def _finish(report: BuildReport, output: Path, options: XA170KBuildOptions) -> None:
    """Verify the written files, then write the card and, to mark the build as finished, the report."""
    wrong = verify_xa170k(
        output,
        report,
        results=output / BUILD_NAME,
        num_workers=options.num_workers,
        show_progress=options.show_progress,
    )
    if len(wrong):
        raise RuntimeError(f"Verification of {output} failed: {wrong}. Remove the folder and build again.")
    with atomic_file(output / CARD_NAME) as temporary:
        temporary.write_text(xa170k_card(report, xa170k_features()), encoding="utf-8")
    report.write(output)


def _log(report: BuildReport, output: Path) -> None:
    logger.info("%d frames of XA-170K in %s, %.1f GB", report.num_rows, output, report.num_bytes / 1e9)
    if report.differences:
        logger.warning("counts differ from those of XA-170K: %s", "; ".join(report.differences))
    FaultReport(report.faults).log("frames of XA-170K", sum(count.num_found for count in report.counts))
