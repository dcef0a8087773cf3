"""Load your own images, arrays, videos and DICOM cines as a data set with one row per frame."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from PIL import Image

from ..import_utils import require
from .faults import Fault, FaultReport
from .frame_digest import frame_digest
from .parquet.export import SplitFiles, finish_export, is_exported, write_card
from .parquet.png import encode_mask_png, encode_png
from .parquet.rows import to_dataset
from .parquet.write import DATA_NAME, ShardPlan, read_record, write_shards
from .reading.files import UNREADABLE, kind_of, read_frames, to_uint8
from .reading.frame import Frame, FrameReadError, ReadOptions, hashed_id
from .sources import size_and_sample
from .vesselness import VesselnessOptions, vessel_mask


if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset


logger = logging.getLogger(__name__)

ORIENTATION_TAG, UPRIGHT = 0x0112, 1  # of EXIF
HEAD = 1 << 16  # bytes of a file used for its id without a salt; includes a DICOM header
SHORT_SALT = 16

_STRAY = "is not an image, array, video or DICOM file; skipped"
_ABOUT = """# Frames

Angiograms written by `vasomim_hf`, one row per frame, with the output of a ridge filter for vessels in the column
`vesselness` (not ground truth). Ids are hashes with the secret of the person who created this folder, or null. Check for
text burned into the images before sharing them. For research only, not a medical device."""


class _File(NamedTuple):
    """A file that may contain frames: its path, and its name relative to the path passed by the user."""

    path: Path
    name: str


def load_frames(
    path: str | os.PathLike,
    *,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    options: ReadOptions | None = None,
    report: FaultReport | None = None,
    keep_names: bool = False,
) -> Union["Dataset", "IterableDataset"]:
    """Load a file or a folder of frames, recursively, as a data set with one row per frame.

    Columns: `image` (16-bit stays 16-bit, Pillow mode `I;16`), `bits_stored`, `width`, `height`, `image_id`,
    `frame_index` and `num_frames` (within the file), `frame_time_ms`, `imager_pixel_spacing_mm` and `pixel_spacing_mm`
    (rows, columns; the second if calibrated), `primary_angle` and `secondary_angle` (degrees), `patient_id`, `study_id`,
    `series_id`, `sha256` of the pixels (see [`~frame_digest.frame_digest`]); with `keep_names` also `name`. Unknown
    values are null.

    Rows contain no file or folder names, and no ids, dates or places of DICOM files. `patient_id`, `study_id` and
    `series_id` are hashes with `options.salt`, null without one. `image_id` is a hash of the relative path and the
    frame index, independent of the location of the folder. Its key is the salt or, without one, the beginning of the
    file, so names cannot be guessed from it. Faults contain paths, in the report and in the log.

    Args:
        path (`str` or `os.PathLike`): A file or a folder. Hidden files are ignored.
        streaming (`bool`, defaults to `False`): Whether to read frames on demand, file by file. Faults are then logged one by
            one, and a report is only filled if the data set is read in this process.
        cache_dir (`str` or `Path`, *optional*): Folder for decoded frames. `None` uses a private folder that is removed when
            the process ends.
        options (`ReadOptions`, *optional*): Options for reading files.
        report (`FaultReport`, *optional*): Collects files that are skipped or only partly used, with reasons. Of a damaged
            cine, the frames before the damage are used.
        keep_names (`bool`, defaults to `False`): Whether to add the column `name`, and let rows of 8-bit grey PNG and JPEG
            files refer to the file instead of copying its pixels; exporting such rows then copies the files with all text in
            them.

    Returns:
        `datasets.Dataset`; with `streaming`, a `datasets.IterableDataset`.

    Raises:
        FileNotFoundError: If the file or folder does not exist.
        ValueError: If it contains no readable frames.
    """
    options, report = options or ReadOptions(), FaultReport() if report is None else report
    root = Path(path)
    files, strays = _files(root)
    for stray in strays:
        report.add(stray.name, _STRAY)
    _warn_about_ids(files, options)
    rows = _FrameRows(options, report, keep_names, streaming)
    try:
        dataset = to_dataset(rows, files, _features(keep_names), streaming=streaming, cache_dir=cache_dir)
    except ValueError as error:
        raise ValueError(f"`{root}` contains no readable frames. {report}") from error
    report.log(f"files of {root}", len(files) + len(strays))
    return dataset


def export_frames(
    path: str | os.PathLike,
    output: str | Path,
    *,
    options: ReadOptions | None = None,
    vesselness: VesselnessOptions | None = None,
    keep_names: bool = False,
    num_workers: int | None = None,
) -> FaultReport:
    """Write a file or a folder of frames as Parquet with vesselness masks; resumes an interrupted call.

    `datasets.load_dataset(output)` returns the columns of [`load_frames`] and `vesselness`, a 1-bit mask computed by
    the filter from the frame scaled to 8 bits; pre-training accepts `output` as its data, with or without `streaming`.

    Args:
        path (`str` or `os.PathLike`): As for [`load_frames`].
        output (`str` or `Path`): A new or empty folder, or that of the same frames.
        options (`ReadOptions`, *optional*): Options for reading files.
        vesselness (`VesselnessOptions`, *optional*): Options of the masks; defaults to those of the method.
        keep_names (`bool`, defaults to `False`): Whether to add the column `name`, the path relative to `path`.
        num_workers (`int`, *optional*): Number of processes; defaults to the number of cores.

    Returns:
        [`~reports.FaultReport`]: Files that are skipped or only partly used. Empty if the export was already finished:
        file names are not stored in `output`.

    Raises:
        ImportError: If there are DICOM files and pydicom is missing; nothing is written.
        FileNotFoundError: If the file or folder does not exist.
        FileExistsError: If `output` contains something else.
        RuntimeError: If `output` contains the same export with a damaged file.
        ValueError: If it contains no readable frames.
        OSError: If the disk is full. Finished work is kept.
    """
    options, output = options or ReadOptions(), Path(output)
    files, strays = _files(Path(path))
    if not files:
        raise ValueError(f"`{path}` contains no image, array, video or DICOM file.")
    if any(kind_of(file.path) == "dicom" for file in files):
        require("pydicom", "dicom")  # fail now instead of reporting a fault per file
    _warn_about_ids(files, options)
    rows = _FrameRows(options, FaultReport(), keep_names, is_streaming=False)
    maker = _FileRows(files, rows, vesselness or VesselnessOptions())
    plan = ShardPlan(len(files), _files_per_shard(files), key=maker.key())
    if is_exported(output, plan.key):
        return FaultReport()
    report = FaultReport(Fault(stray.name, _STRAY) for stray in strays)
    report.extend(write_shards(maker, plan, output, maker.features(), num_workers=num_workers))
    records = [read_record(output, plan, shard) for shard in range(plan.num_shards)]
    num_rows = sum(record.num_rows for record in records if record is not None)
    if not num_rows:
        raise ValueError(f"`{path}` contains no readable frames. {report}")
    written = SplitFiles(f"{DATA_NAME}/{plan.split}-*.parquet", num_rows, plan.key)
    write_card(output, _ABOUT, "unknown", {"default": {plan.split: written}})
    finish_export(output, plan.key, [(output, plan)])
    return report


def _files_per_shard(files: Sequence[_File]) -> int:
    # a cine of 70 frames of 512×512 takes about 10 MB
    return 1000 if all(kind_of(file.path) == "image" for file in files) else 20


@dataclass(frozen=True)
class _FileRows:
    """Creates the Parquet rows of a file, with masks."""

    files: list[_File]
    rows: "_FrameRows"
    vesselness: VesselnessOptions

    def name(self, index: int) -> str:
        return self.files[index].name

    def __call__(self, index: int) -> Iterator[dict[str, Any]]:
        file = self.files[index]
        file_id = _file_id(file, self.rows.options.salt)
        for frame in read_frames(file.path, self.rows.options):
            mask = vessel_mask(to_uint8(frame.pixels, frame.bits_stored), **asdict(self.vesselness))
            row = self.rows.row(file, file_id, frame)
            # never the file itself, which may contain text about a patient in addition to the pixels
            row["image"] = {"path": None, "bytes": encode_png(frame.pixels)}
            yield row | {"vesselness": {"path": None, "bytes": encode_mask_png(mask)}}

    def features(self) -> "Features":
        datasets = require("datasets", "data")
        return datasets.Features({**_features(self.rows.keep_names), "vesselness": datasets.Image()})

    def key(self) -> str:
        """Digest of the files and reading options. The salt enters through its effect on an id."""
        options = asdict(self.rows.options) | {"salt": hashed_id("a build", "key", self.rows.options.salt)}
        # included so that installing a missing decoder invalidates the export
        decoders = [find_spec(name) is not None for name in ("pydicom", "gdcm", "cv2")]
        how = [options, asdict(self.vesselness), self.rows.keep_names, decoders]
        files = [[file.name, *size_and_sample(file.path)] for file in self.files]
        return hashlib.sha256(json.dumps([how, files], sort_keys=True, default=str).encode()).hexdigest()[:20]


def _files(root: Path) -> tuple[list[_File], list[_File]]:
    """Files with frames and other files, each sorted for a reproducible order."""
    if root.is_file():
        return [_File(root, root.name)], []
    if not root.is_dir():
        raise FileNotFoundError(f"`{root}` does not exist. Check the path.")
    found = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    files = [_File(path, path.relative_to(root).as_posix()) for path in sorted(found)]
    is_frames = [kind_of(file.path) is not None and file.path.name != "DICOMDIR" for file in files]
    strays = [file for file, is_one in zip(files, is_frames, strict=True) if not is_one]
    return [file for file, is_one in zip(files, is_frames, strict=True) if is_one], strays


def _warn_about_ids(files: Sequence[_File], options: ReadOptions) -> None:
    if options.salt is not None and len(options.salt) < SHORT_SALT:
        logger.warning("The salt has %d characters; use at least %d random ones.", len(options.salt), SHORT_SALT)
    if options.salt is None and any(kind_of(file.path) == "dicom" for file in files):
        logger.warning(
            "No salt was given: patient_id, study_id and series_id are null. Pass a secret as --salt-file or "
            "ReadOptions(salt=...) to store them as hashes, for example to split by patient."
        )


def _features(keep_names: bool) -> "Features":
    datasets = require("datasets", "data")
    value = datasets.Value
    spacing = datasets.List(value("float64"))
    columns: dict[str, Any] = {"image": datasets.Image()}
    columns |= {name: value("int32") for name in ("bits_stored", "width", "height")}
    columns |= {"image_id": value("string"), "frame_index": value("int32"), "num_frames": value("int32")}
    columns |= {"frame_time_ms": value("float64"), "imager_pixel_spacing_mm": spacing, "pixel_spacing_mm": spacing}
    columns |= {"primary_angle": value("float64"), "secondary_angle": value("float64")}
    columns |= {name: value("string") for name in ("patient_id", "study_id", "series_id", "sha256")}
    return datasets.Features(columns | ({"name": value("string")} if keep_names else {}))


@dataclass(frozen=True)
class _FrameRows:
    """Creates the rows of files. A fault is reported, and the remaining files are processed."""

    options: ReadOptions
    report: FaultReport
    keep_names: bool
    is_streaming: bool

    def __call__(self, files: Sequence[_File]) -> Iterator[dict[str, Any]]:
        for path, name in files:
            file = _File(path, name)
            try:
                yield from self._rows(file)
            except (FrameReadError, ImportError, OSError) as error:
                self.report.add(name, error)
                if self.is_streaming:
                    logger.warning("%s: %s", name, error)

    def _rows(self, file: _File) -> Iterator[dict[str, Any]]:
        file_id = _file_id(file, self.options.salt)
        for frame in read_frames(file.path, self.options):
            yield self.row(file, file_id, frame)

    def row(self, file: _File, file_id: str, frame: Frame) -> dict[str, Any]:
        row = _row(frame, f"{file_id}-{frame.index:05d}")
        if self.keep_names:
            row["name"] = file.name
        is_file = self.keep_names and frame.metadata.num_frames == 1 and _is_plain(file.path)
        pixels = {"path": str(file.path), "bytes": None}
        row["image"] = pixels if is_file else {"path": None, "bytes": encode_png(frame.pixels)}
        return row


def _row(frame: Frame, image_id: str) -> dict[str, Any]:
    height, width = frame.pixels.shape
    known = frame.metadata
    return {
        "bits_stored": frame.bits_stored,
        "width": width,
        "height": height,
        "image_id": image_id,
        "frame_index": frame.index,
        "num_frames": known.num_frames,
        "frame_time_ms": known.frame_time_ms,
        "imager_pixel_spacing_mm": known.imager_pixel_spacing_mm,
        "pixel_spacing_mm": known.pixel_spacing_mm,
        "primary_angle": known.primary_angle,
        "secondary_angle": known.secondary_angle,
        "patient_id": known.patient_id,
        "study_id": known.study_id,
        "series_id": known.series_id,
        "sha256": frame_digest(frame.pixels).hex(),
    }


def _file_id(file: _File, salt: str | None) -> str:
    if salt is not None:
        key = hashlib.sha256(salt.encode()).digest()
    else:
        with open(file.path, "rb") as stream:
            key = hashlib.sha256(stream.read(HEAD)).digest()
    return hashlib.blake2b(file.name.encode(errors="surrogateescape"), digest_size=12, key=key).hexdigest()


def _is_plain(path: Path) -> bool:
    """Whether any image reader gets the same pixels: 8-bit grey PNG or JPEG without rotation."""
    try:
        # a DICOM file may look like a TIFF in its preamble
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            is_upright = image.getexif().get(ORIENTATION_TAG, UPRIGHT) == UPRIGHT
            return image.mode == "L" and is_upright
    except UNREADABLE:
        return False
