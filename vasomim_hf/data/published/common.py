"""Shared code of the readers of published data sets: finding files, checking frames, masks and boxes, rows.

A reader lists the samples of a data set from names and tables only, and defines how a sample is annotated. Frames are
read when their rows are created. Faults of single frames are reported, and the remaining frames are used.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np
from PIL import Image

from ...import_utils import require
from ..faults import FaultReport
from ..parquet.png import encode_label_png
from ..parquet.rows import to_dataset
from ..reading.files import FRAME_SUFFIXES, UNREADABLE
from ..reading.masks import MaskError, read_mask


if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset


logger = logging.getLogger(__name__)

SUFFIXES = (*FRAME_SUFFIXES, ".pgm")
_SHOWN = 8  # names listed in an error


class Unusable(ValueError):
    """A sample cannot be used; the message states why. Other samples are not affected."""


class Size(NamedTuple):
    """Size of a frame in pixels."""

    width: int
    height: int


class Box(NamedTuple):
    """A box with its category id: left, top, width and height in pixels (COCO)."""

    category: int
    x: float
    y: float
    width: float
    height: float


Note = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """A frame of a data set: its path, and the information in its name and folders.

    Args:
        path (`Path`): Path of the frame.
        image_id (`str`): Name of the frame, unique in the data set and independent of the machine.
        patient_id (`str`, *optional*): Patient, if known.
        study_id (`str`, *optional*): Cine, or the narrowest known group.
        frame_index (`int`, *optional*): Index of the frame in its cine, from its name.
        label (`Path`, *optional*): File with its mask or boxes.
        extra (mapping, *optional*): Additional columns of the data set.
    """

    path: Path
    image_id: str
    patient_id: str | None = None
    study_id: str | None = None
    frame_index: int | None = None
    label: Path | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


Annotate = Callable[[Sample, Size, Note], dict[str, Any]]


@dataclass(frozen=True)
class LoaderOptions:
    """Options for the rows, see [`~dataset_rows.to_dataset`], and the fault report."""

    streaming: bool
    cache_dir: str | Path | None
    report: FaultReport


# Finding files
# --------------------------------------------------------------------------------------------------------


def natural_key(path: Path) -> list[str | int]:
    """Natural sort key of a file name, so that `2.pgm` comes before `10.pgm`.

    Args:
        path (`Path`): A path; only its name is used.

    Returns:
        `list`: Alternating strings and numbers.

    Example:
        >>> [path.name for path in sorted([Path("10.pgm"), Path("2.pgm")], key=natural_key)]
        ['2.pgm', '10.pgm']
    """
    parts = re.split(r"(\d+)", path.name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def sub_folders(folder: Path) -> list[Path]:
    """Visible sub-folders in natural order; empty if the folder does not exist."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]
    return sorted(found, key=natural_key)


def find_root(root: str | Path, is_root: Callable[[Path], bool], expected: str) -> Path:
    """Find the folder of a data set: the given one, or one up to two levels below it.

    Args:
        root (`str` or `Path`): Path given by the user.
        is_root (`Callable`): Whether a folder is that of the data set.
        expected (`str`): Description of its contents, for the error.

    Returns:
        `Path`: The folder.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If it is an archive or another file, or if no folder matches.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"`{root}` does not exist. Name the unpacked folder of the set: {expected}")
    if not root.is_dir():
        raise ValueError(f"`{root}` is a file. Unpack the archive first and name the folder. Expected: {expected}")
    children = sub_folders(root)
    for folder in (root, *children, *(grandchild for child in children for grandchild in sub_folders(child))):
        if is_root(folder):
            return folder
    raise ValueError(f"`{root}` is not the expected folder: it holds {_content(root)}. Expected: {expected}")


def _content(folder: Path) -> str:
    names = [f"{path.name}/" if path.is_dir() else path.name for path in sorted(folder.iterdir(), key=natural_key)]
    if not names:
        return "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    packed = any(name.lower().endswith((".zip", ".7z", ".rar", ".tar", ".gz")) for name in names)
    return ", ".join(names[:_SHOWN]) + more + (" (unpack the archive first)" if packed else "")


def list_files(folder: Path, report: FaultReport, root: Path, companions: Sequence[str] = ()) -> list[Path]:
    """List the images of a folder in natural order, and report other files.

    Args:
        folder (`Path`): Folder, without sub-folders; may be missing.
        report (`FaultReport`): Collects other files; hidden ones are ignored.
        root (`Path`): Names in the report are relative to this folder.
        companions (`Sequence[str]`, *optional*): Lower-case suffixes of files that may accompany the images.

    Returns:
        `list[Path]`: Images.
    """
    images = []
    for path in sorted(folder.iterdir(), key=natural_key) if folder.is_dir() else ():
        if path.is_dir() or path.name.startswith("."):
            continue
        if path.suffix.lower() in SUFFIXES:
            images.append(path)
        elif path.suffix.lower() not in companions:
            report.add(relative(path, root), "is no file of this set; passed over")
    return images


def relative(path: Path, root: Path) -> str:
    """Name of a file in reports: relative to the folder of the data set, the same on every machine."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def by_stem(paths: Iterable[Path], report: FaultReport, root: Path) -> dict[str, Path]:
    """Files by stem; of several with the same stem the first is used and the others are reported."""
    found: dict[str, Path] = {}
    for path in paths:
        first = found.setdefault(path.stem, path)
        if first is not path:
            report.add(relative(path, root), f"has the same name as {first.name}, which was taken; left out")
    return found


def pair_masks(
    images: Iterable[Path], masks: Iterable[Path], report: FaultReport, root: Path
) -> Iterator[tuple[Path, Path]]:
    """Pair images and masks by stem, in the order of the images; unpaired files are reported.

    Args:
        images (iterable of `Path`): Frames.
        masks (iterable of `Path`): Masks.
        report (`FaultReport`): Collects unpaired files.
        root (`Path`): Names in the report are relative to this folder.

    Yields:
        `tuple[Path, Path]`: A frame and its mask.
    """
    frames, labels = by_stem(images, report, root), by_stem(masks, report, root)
    for stem, path in frames.items():
        if stem in labels:
            yield path, labels[stem]
        else:
            report.add(relative(path, root), "has no mask; left out")
    for stem, path in labels.items():
        if stem not in frames:
            report.add(relative(path, root), "is a mask of no frame; left out")


def check_choice(value: str, name: str, choices: Sequence[str], hint: str = "") -> None:
    """Raise an error if a value is not among the choices.

    Raises:
        ValueError: With the choices, and with `hint` on what to do.
    """
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}, got {value!r}. {hint}".strip())


# Checking frames
# ------------------------------------------------------------------------------------------------------


def image_size(path: Path) -> Size:
    """Size of an image after checking that the file is intact: PNG checksums are verified, other formats decoded.

    Args:
        path (`Path`): An image file.

    Returns:
        `Size`: Width and height in pixels.

    Raises:
        Unusable: If it is damaged.
    """
    try:
        with Image.open(path) as image:
            size = Size(*image.size)
            # a verified PNG need not be decompressed, which would take ten times as long
            image.verify() if image.format == "PNG" else image.load()
    except UNREADABLE as error:
        raise Unusable(f"cannot be read as an image ({type(error).__name__}: {error}); left out") from error
    return size


def annotate_mask(sample: Sample, size: Size, note: Note) -> dict[str, Any]:
    """Column `mask` of a frame: values 0 and 1 in an 8-bit PNG, or null if the sample has no mask.

    Args:
        sample (`Sample`): Frame; its `label` is the mask file.
        size (`Size`): Size of the frame.
        note (`Callable`): Receives remarks about the mask.

    Returns:
        `dict`: `{"mask": ...}`.

    Raises:
        Unusable: If the mask cannot be read or has invalid values, see [`read_mask`].
    """
    if sample.label is None:
        return {"mask": None}
    try:
        mask = read_mask(sample.label, (size.height, size.width))
    except MaskError as error:
        raise Unusable(f"{error} Left out.") from error
    if not mask.any():
        note(f"mask {sample.label.name} is empty; kept")
    return {"mask": {"path": None, "bytes": encode_label_png(mask)}}


def fit_boxes(boxes: Iterable[Box], size: Size, note: Note) -> list[Box]:
    """Clip boxes to their frame and drop empty ones; each change is reported.

    Args:
        boxes (iterable of `Box`): Boxes in pixels of the frame.
        size (`Size`): Size of the frame.
        note (`Callable`): Receives remarks about the changes.

    Returns:
        `list[Box]`: At least one box.

    Raises:
        Unusable: If no box is left. The frame would otherwise count as one without a finding.

    Example:
        >>> fit_boxes([Box(0, -2, 5, 10, 10), Box(0, 5, 5, 0, 3)], Size(64, 64), note=lambda text: None)
        [Box(category=0, x=0.0, y=5.0, width=8.0, height=10.0)]
    """
    kept = []
    for box in boxes:
        corners = np.array([box.x, box.y, box.x + box.width, box.y + box.height], dtype=float)
        left, top, right, bottom = np.clip(corners, 0, np.array([*size, *size])).tolist()
        shown = ", ".join(f"{value:g}" for value in box[1:])
        # also rejects NaN
        if not (box.width > 0 and box.height > 0 and right > left and bottom > top):
            note(f"box [{shown}] is empty or outside of the frame of {_by(size)}; dropped")
            continue
        if not np.array_equal(corners, (left, top, right, bottom)):
            note(f"box [{shown}] reaches beyond the frame of {_by(size)}; cut to it")
        kept.append(Box(box.category, left, top, right - left, bottom - top))
    if not kept:
        raise Unusable("no box is left; left out")
    return kept


def objects_of(boxes: Iterable[Box]) -> dict[str, list[Any]]:
    """Convert boxes to the column `objects`: `bbox` as (left, top, width, height) and `category` as a class id."""
    boxes = list(boxes)
    return {
        "bbox": [[float(value) for value in box[1:]] for box in boxes],
        "category": [box.category for box in boxes],
    }


def _by(size: Size) -> str:
    return f"{size.width}×{size.height}"


# Rows
# -----------------------------------------------------------------------------------------------------------------


def frame_features(**more: Any) -> "Features":
    """Columns common to all downstream data sets, and additional ones.

    Args:
        more (`Any`): Additional features by name.

    Returns:
        `datasets.Features`: Column types.
    """
    datasets = require("datasets", "data")
    text, whole = datasets.Value("string"), datasets.Value("int32")
    ids = {"image_id": text, "patient_id": text, "study_id": text, "frame_index": whole}
    return datasets.Features({"image": datasets.Image(), **more, **ids, "width": whole, "height": whole})


def mask_features() -> "Features":
    """Columns of a data set with masks.

    Returns:
        `datasets.Features`: Common columns and `mask`.
    """
    return frame_features(mask=require("datasets", "data").Image())


def box_features(categories: Sequence[str], **more: Any) -> "Features":
    """Columns of a data set with boxes.

    Args:
        categories (`Sequence[str]`): Category names by id.
        more (`Any`): Additional features by name.

    Returns:
        `datasets.Features`: Common columns, `objects`, and additional ones.
    """
    datasets = require("datasets", "data")
    bbox = datasets.List(datasets.List(datasets.Value("float32"), length=4))
    category = datasets.List(datasets.ClassLabel(names=list(categories)))
    return frame_features(objects={"bbox": bbox, "category": category}, **more)


@dataclass(frozen=True)
class _Rows:
    """Creates the rows of samples; an object rather than a closure, so that it is picklable."""

    annotate: Annotate
    report: FaultReport
    # when streaming, faults are logged one by one, because there is no end at which to summarise them
    is_streaming: bool

    def __call__(self, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            try:
                yield self._row(sample)
            except Unusable as error:
                self._fault(sample, str(error))

    def _row(self, sample: Sample) -> dict[str, Any]:
        size = image_size(sample.path)
        annotations = self.annotate(sample, size, lambda text: self._fault(sample, text))
        return {
            "image": {"path": str(sample.path.absolute()), "bytes": None},
            **annotations,
            **sample.extra,
            "image_id": sample.image_id,
            "patient_id": sample.patient_id,
            "study_id": sample.study_id,
            "frame_index": sample.frame_index,
            "width": size.width,
            "height": size.height,
        }

    def _fault(self, sample: Sample, text: str) -> None:
        self.report.add(sample.image_id, text)
        if self.is_streaming:
            logger.warning("%s: %s", sample.image_id, text)


def build_dataset(
    what: str, samples: Sequence[Sample], annotate: Annotate, features: "Features", options: LoaderOptions
) -> Union["Dataset", "IterableDataset"]:
    """Create the data set from samples, and report faults.

    Args:
        what (`str`): Description of the samples for messages, such as `"frames of DCA1"`.
        samples (`Sequence[Sample]`): In the order of the rows.
        annotate (`Callable`): Returns the annotation columns of a sample; must be picklable.
        features (`datasets.Features`): Column types.
        options (`LoaderOptions`): Row options; its report has the faults found so far.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: The rows.

    Raises:
        ValueError: If no sample is left.
    """
    report = options.report
    if not samples:
        raise ValueError(f"There are no {what} to load. {report}" if len(report) else f"There are no {what} to load.")
    rows = _Rows(annotate, report, options.streaming)
    try:
        dataset = to_dataset(rows, samples, features, streaming=options.streaming, cache_dir=options.cache_dir)
    except ValueError as error:
        if not len(report):
            raise
        raise ValueError(f"None of the {len(samples)} {what} could be used: {report}") from error
    report.log(what, len(samples))
    return dataset
