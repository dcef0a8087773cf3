"""Building XA-170K: frames in whatever layout become Parquet shards with vesselness masks, a report and a data card.

A build passes over the frames twice. The survey reads each one for its size, digest and near-duplicate signature, so that
the groups, which need all frames, the counts and the space on the disk are known before hours of filtering; then the
shards are written. Both go on where they were when something interrupts them, to the same bytes.
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

# Another number, another key: what the same frames and options give has changed
BUILD_FORMAT = 1
# The estimate of a build's size is that good; more is not refused
ESTIMATE_TOLERANCE = 0.9


@dataclass(frozen=True)
class XA170KBuildOptions:
    """How XA-170K is built.

    Args:
        source ([`~xa170k_sources.XA170KOptions`]): How the frames are found.
        vesselness ([`~vesselness.VesselnessOptions`]): How masks are made of frames without a ready one.
        frames_per_shard (`int`, defaults to 1000): Frames in each Parquet file; a file holds frames of one collection.
        num_workers (`int`, *optional*): Processes; as many as cores by default.
        show_progress (`bool`, defaults to `True`): Whether a terminal shows progress bars.
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
    """A frame is not what it was in the survey of the same build."""


def xa170k_features() -> "Features":
    """Columns of XA-170K.

    `image` is the grey frame and `vesselness` its 1-bit mask; `sha256` is that of the frame's pixels, see
    [`~frame_digest.frame_digest`]; `near_duplicate_group` is the row number of the first frame of the group, among all
    rows of the data set. `patient_id`, `study_id` and `frame_index` are null where a collection does not tell.

    Returns:
        `datasets.Features`: Names and types, in order.
    """
    datasets = require("datasets", "data")
    text, number = datasets.Value("string"), datasets.Value("int32")
    columns = {"image": datasets.Image(), "vesselness": datasets.Image(), "source": text, "patient_id": text}
    columns |= {"study_id": text, "frame_index": number, "width": number, "height": number, "sha256": text}
    return datasets.Features(columns | {"near_duplicate_group": datasets.Value("int64")})


def build_xa170k(source: str | Path, output: str | Path, options: XA170KBuildOptions | None = None) -> BuildReport:
    """Write XA-170K as Parquet into a folder, with its report and data card; an interrupted build goes on.

    Frames that cannot be read are left out and named in the report, with all else that was amiss. A folder that holds
    the same build already is left as it is.

    Args:
        source (`str` or `Path`): Where the frames are, see [`~xa170k_sources.open_xa170k_source`].
        output (`str` or `Path`): A new folder, an empty one, or that of the same build.
        options ([`XA170KBuildOptions`], *optional*): How it is built.

    Returns:
        [`BuildReport`]: What is in the folder: counts, differences from the known counts, files, faults.

    Raises:
        FileExistsError: If `output` holds something else, also a build of other frames or with other options.
        FileNotFoundError: If there is no such source.
        ValueError: If it holds no frame that can be read.
        OSError: If the disk is too small or full. What is done stays; run it again.
        RuntimeError: If another process builds there, frames change meanwhile, or what was written reads differently.
    """
    options = options or XA170KBuildOptions()
    return build_opened(open_xa170k_source(source, options.source), Path(output), options)


def build_opened(source: XA170KSource, output: Path, options: XA170KBuildOptions) -> BuildReport:
    """Do what [`build_xa170k`] does, for a source that is open.

    Args:
        source ([`~xa170k_sources.XA170KSource`]): The frames.
        output (`Path`): Where to build.
        options ([`XA170KBuildOptions`]): How it is built.

    Returns:
        [`BuildReport`]: What is in the folder.
    """
    key = build_key(source, options)
    report = _finished(output, key) or _build(source, output, key, options)
    # What another process has taken up, or cannot be removed, does no harm
    if (output / BUILD_NAME).is_dir():
        with suppress(RuntimeError, OSError), build_lock(output):
            _remove_records(output)
    _log(report, output)
    return report


def _build(source: XA170KSource, output: Path, key: str, options: XA170KBuildOptions) -> BuildReport:
    with build_lock(output):
        report = _finished(output, key)
        if report is not None:
            return report  # by another process, in the meantime
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
        raise RuntimeError(f"Rows could not be made of frames that can be read: {wrong}.")
    with build_lock(output):
        report = _count(rows, survey, plan, output, options)
        _finish(report, output, options)
        _remove_records(output)
    return report


def _remove_records(output: Path) -> None:
    """Remove what only an unfinished build needs, while the lock is held: nobody else may be writing there."""
    shutil.rmtree(output / BUILD_NAME, ignore_errors=True)


def build_key(source: XA170KSource, options: XA170KBuildOptions) -> str:
    """Name a build by what decides its bytes: the frames, the filter, the length of the shards, the package.

    Args:
        source ([`~xa170k_sources.XA170KSource`]): The frames.
        options ([`XA170KBuildOptions`]): How it is built.

    Returns:
        `str`: 20 hexadecimal digits.
    """
    what = {"format": BUILD_FORMAT, "version": __version__, "frames_per_shard": options.frames_per_shard}
    what |= {"source": source.signature(), "vesselness": asdict(options.vesselness)}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]


def collection_order(source: XA170KSource) -> np.ndarray:
    """Put the frames in the order of the data set: collection by collection, and by name.

    Args:
        source ([`~xa170k_sources.XA170KSource`]): The frames.

    Returns:
        `np.ndarray` of shape `(num_items,)`: Indices of the items.
    """
    return np.argsort([SOURCES.index(item.source) for item in source.items], kind="stable")


def frame_row(item: FrameItem, frame: np.ndarray, mask: np.ndarray, group: int | None) -> dict[str, Any]:
    """Make a row of the data set.

    Args:
        item ([`~xa170k_layouts.FrameItem`]): What is known of the frame.
        frame (`np.ndarray` of shape `(height, width)`): `uint8`.
        mask (`np.ndarray` of shape `(height, width)`): `bool`, `True` on vessels.
        group (`int`, *optional*): Its group of near duplicates, `None` where it is not known.

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
    """Makes the rows; places without an item end the last shard of a collection, so that a file holds one alone."""

    source: XA170KSource
    items: np.ndarray  # (num_places,) index of an item, -1 for none
    groups: np.ndarray  # (num_places,) its group
    state: np.ndarray  # (num_items,) of the survey, like the next
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
            raise _changed(item, "has other pixels now")
        return row

    def _read(self, item: FrameItem, is_ready: bool) -> tuple[np.ndarray, np.ndarray | None]:
        try:
            frame = self.source.read(item)
            return frame, self.source.read_vesselness(item, frame.shape) if is_ready else None
        except UNREADABLE as error:
            # A fault here would leave out a row that groups and counts rely on
            raise _changed(item, f"cannot be read now ({type(error).__name__}: {error})") from error


def _changed(item: FrameItem, what: str) -> SourceChangedError:
    return SourceChangedError(
        f"{item.name} could be read in the survey of this build and {what}. Bring the source back as it was and run the "
        "build again, or build into a new folder."
    )


def _finished(output: Path, key: str) -> BuildReport | None:
    if not (output / REPORT_NAME).is_file():
        return None
    report = BuildReport.read(output)
    if report.key != key:
        raise FileExistsError(
            f"{output} holds a finished build of other frames or with other options. Name another folder, or remove it."
        )
    sizes = {file.path: (output / file.path).stat().st_size for file in report.files if (output / file.path).is_file()}
    if sizes != {file.path: file.num_bytes for file in report.files}:
        raise FileExistsError(
            f"Files of the finished build in {output} are missing or cut short. Remove it and build anew."
        )
    return report


def _survey(source: XA170KSource, output: Path, key: str, options: XA170KBuildOptions) -> Survey:
    if survey_keys(output) - {key}:
        raise FileExistsError(
            f"{output} holds a build of other frames or with other options that is not finished. Name another folder, or "
            "remove this one."
        )
    survey = survey_frames(source, output, key, num_workers=options.num_workers, show_progress=options.show_progress)
    if not len(survey.readable):
        raise ValueError(
            f"None of the {len(source.items)} frames of {source.description} can be read: {FaultReport(survey.faults)}"
        )
    return survey


def _plan_rows(source: XA170KSource, survey: Survey, options: XA170KBuildOptions) -> _Rows:
    """Put the readable frames in order, collection by collection, each beginning with a shard of its own."""
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
    logger.info("the build needs about %.1f GB more, %.1f GB are free", needed / 1e9, free / 1e9)
    if ESTIMATE_TOLERANCE * needed > free:
        raise OSError(
            errno.ENOSPC,
            f"The build needs about {needed / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free. Free some space and run it "
            "again; the survey is kept",
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
            raise RuntimeError(f"{plan.name(shard)} in {output} has gone. Run the build again.")
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
    """Verify what was written, then write the card and, as the mark of a finished build, the report."""
    wrong = verify_xa170k(
        output,
        report,
        results=output / BUILD_NAME,
        num_workers=options.num_workers,
        show_progress=options.show_progress,
    )
    if len(wrong):
        raise RuntimeError(
            f"What was written to {output} reads differently: {wrong}. Remove the folder and build anew."
        )
    with atomic_file(output / CARD_NAME) as temporary:
        temporary.write_text(xa170k_card(report, xa170k_features()), encoding="utf-8")
    report.write(output)


def _log(report: BuildReport, output: Path) -> None:
    logger.info("%d frames of XA-170K in %s, %.1f GB", report.num_rows, output, report.num_bytes / 1e9)
    if report.differences:
        logger.warning("counts that differ from those of XA-170K: %s", "; ".join(report.differences))
    FaultReport(report.faults).log("frames of XA-170K", sum(count.num_found for count in report.counts))
