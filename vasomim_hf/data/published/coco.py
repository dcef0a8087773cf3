"""COCO annotation files: reading with checks, boxes, and masks from polygons.

pycocotools turns outlines into masks (Lin et al., "Microsoft COCO", ECCV 2014, `annToMask` of its API): a pixel belongs to
the mask if its centre lies inside. OpenCV's `fillPoly` would add the pixels that the outline only touches; on vessels a few
pixels wide that is every tenth pixel (intersection over union with pycocotools 0.89 on average on ARCADE), and the mask
would be wider than what was drawn. Its reader of annotation files is not used: it neither checks entries nor reports
damaged ones.
"""

import json
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ...import_utils import require
from ..faults import FaultReport


MAX_SIDE = 65_535  # pixels; a larger frame is a slip
MAX_COORDINATE = 100_000.0  # pixels; filling takes time and memory proportional to the outline's length

Box = tuple[float, float, float, float]


class RunLengths(NamedTuple):
    """A mask as lengths of runs of 0 and 1, down the columns, beginning with 0."""

    counts: np.ndarray
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class CocoObject:
    """One annotation.

    Args:
        category (`str`): Name of the category.
        outlines (`tuple` of `np.ndarray` of shape `(num_points, 2)`): `float64`, x and y in pixels; the object is their
            union. Empty where the file has only a box or runs.
        runs (`RunLengths`, *optional*): The mask, where the file has runs and no outlines.
        bbox (`tuple` of four `float`): Left, top, width and height in pixels, cut at the frame's edges.
    """

    category: str
    outlines: tuple[np.ndarray, ...]
    runs: RunLengths | None
    bbox: Box


@dataclass(frozen=True, eq=False)
class CocoFrame:
    """An image entry with its annotations, in the order of the file.

    Args:
        file_name (`str`): Name without folders.
        width (`int`): Pixels.
        height (`int`): Pixels.
        objects (`tuple[CocoObject, ...]`): What is annotated, perhaps nothing.
    """

    file_name: str
    width: int
    height: int
    objects: tuple[CocoObject, ...]

    @property
    def stem(self) -> str:
        """Name without its ending."""
        return PurePosixPath(self.file_name).stem


# Reading ------------------------------------------------------------------------------------------------------------


def read_coco(
    path: str | Path, report: FaultReport, categories: Mapping[int, str] | None = None, name: str | None = None
) -> list[CocoFrame]:
    """Read a COCO annotation file of one flat folder of images.

    What is wrong with single entries goes into the report: an image without a name or size, a second image of the same
    name (endings do not count), an annotation of an unknown image or category, a polygon of fewer than three points or
    outside the frame, a box without an area. Such an entry is left out, or the part of it that is wrong. A box that is
    missing is made from the outline.

    Args:
        path (`str` or `Path`): The JSON file.
        report (`FaultReport`): Takes the faults.
        categories (mapping of `int` to `str`, *optional*): Names to use if the file names no category at all, which is
            then reported; otherwise the file's own list counts.
        name (`str`, *optional*): What to call the file in the report, instead of its name.

    Returns:
        `list[CocoFrame]`: In the order of the file.

    Raises:
        ValueError: If the file is no JSON or no COCO file.
    """
    path = Path(path)
    reader = _Reader(report, path.name if name is None else name)
    content = _read_json(path)
    names = reader.category_names(content.get("categories"), categories)
    frames = reader.frames(content["images"])
    objects = reader.objects(content["annotations"], frames, names)
    return [
        CocoFrame(frame.file_name, frame.width, frame.height, tuple(objects[key]))
        for key, frame in frames.items()
        if frame is not None
    ]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no whole JSON file ({error}). Download or unpack it again.") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} is no COCO file: expected an object with the lists `images` and `annotations`, got {found}."
        )
    return content


class _Reader:
    """Turns the entries of one file into frames and objects, and notes those that it leaves out."""

    def __init__(self, report: FaultReport, name: str):
        self.report = report
        self.name = name

    def fault(self, what: str, reason: str) -> None:
        self.report.add(f"{self.name}: {what}", reason)

    def category_names(self, entries: object, default: Mapping[int, str] | None) -> dict[Hashable, str]:
        """Id -> name, as the file says."""
        names: dict[Hashable, str] = {}
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and _is_key(entry.get("id")) and isinstance(entry.get("name"), str | int):
                names[entry["id"]] = str(entry["name"]).strip()
            else:
                self.fault("category", f"expected an `id` and a `name`, got {_short(entry)}; left out")
        if not names and default is not None:
            self.fault("categories", "the file names none; ids are read as in the original data set")
            names = {key: str(value) for key, value in default.items()}
        return names

    def frames(self, entries: list) -> dict[Hashable, CocoFrame | None]:
        """Image id -> frame without objects; `None` for one that is left out, whose annotations go with it."""
        frames: dict[Hashable, CocoFrame | None] = {}
        stems: set[str] = set()
        for number, entry in enumerate(entries):
            what = _entry_name("image", entry, "file_name", number)
            key = entry.get("id") if isinstance(entry, dict) else None
            if not _is_key(key):
                self.fault(what, f"expected an object with an `id`, got {_short(entry)}; left out")
            elif key in frames:
                self.fault(what, f"a second image with the id {key!r}; left out, its annotations go to the first")
            else:
                frames[key] = self.frame(what, entry, stems)
        return frames

    def frame(self, what: str, entry: dict, stems: set[str]) -> CocoFrame | None:
        """The frame of an image entry; `None` if it cannot be used."""
        try:
            frame = _frame(entry)
            if frame.stem in stems:
                raise ValueError("a second image of that name")
        except ValueError as error:
            self.fault(what, f"{error}; left out with its annotations")
            return None
        stems.add(frame.stem)
        return frame

    def objects(
        self, entries: list, frames: Mapping[Hashable, CocoFrame | None], names: Mapping[Hashable, str]
    ) -> dict[Hashable, list[CocoObject]]:
        """Image id -> objects in the order of the file."""
        objects: dict[Hashable, list[CocoObject]] = {key: [] for key in frames}
        for number, entry in enumerate(entries):
            what = _entry_name("annotation", entry, "id", number)
            try:
                key, category = _subject(entry, frames, names)
                frame = frames[key]
                if frame is not None:
                    objects[key].append(self.shape(what, entry, frame, category))
            except ValueError as error:
                self.fault(what, str(error))
        return objects

    def shape(self, what: str, entry: dict, frame: CocoFrame, category: str) -> CocoObject:
        """The object of an annotation; a `ValueError` if neither outline nor box can be used."""
        outlines, runs = [], None
        segmentation = entry.get("segmentation")
        try:
            if isinstance(segmentation, dict):
                runs = _runs(segmentation, frame)
            elif not segmentation or not isinstance(segmentation, list):
                raise ValueError("no polygon in `segmentation`")
        except ValueError as error:
            self.fault(what, f"{error}; only its box is used")
        for polygon in segmentation if isinstance(segmentation, list) else []:
            try:
                outlines.append(_outline(polygon, frame))
            except ValueError as error:
                self.fault(what, f"{error}; the polygon is left out")
        box = self.box(what, entry.get("bbox"), frame) or _bounds(outlines, runs)
        if box is None:
            raise ValueError("neither a polygon nor a box that can be used; left out")
        return CocoObject(category, tuple(outlines), runs, _cut(box, frame))

    def box(self, what: str, values: object, frame: CocoFrame) -> Box | None:
        """The box as the file has it; `None` without one, and for one that is wrong."""
        if values is None:
            return None
        try:
            return _box(values, frame)
        except ValueError as error:
            self.fault(what, f"{error}; made from the outline, if there is one")
            return None


def _is_key(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _entry_name(kind: str, entry: object, key: str, number: int) -> str:
    given = entry.get(key) if isinstance(entry, dict) else None
    return f"{kind} {given}" if _is_key(given) else f"{kind} number {number} of the list"


def _frame(entry: dict) -> CocoFrame:
    # Only the last part: a name must not lead out of the folder of images
    name = str(entry.get("file_name") or "").replace("\\", "/").rsplit("/", 1)[-1].strip()
    if name in ("", ".", ".."):
        raise ValueError(f"expected a `file_name`, got {_short(entry.get('file_name'))}")
    return CocoFrame(name, _side(entry.get("width"), "width"), _side(entry.get("height"), "height"), ())


def _side(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= MAX_SIDE or value % 1:
        raise ValueError(f"`{name}` must be a whole number from 1 to {MAX_SIDE}, got {_short(value)}")
    return int(value)


def _subject(
    entry: object, frames: Mapping[Hashable, CocoFrame | None], names: Mapping[Hashable, str]
) -> tuple[Hashable, str]:
    """Image id and category name of an annotation."""
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, got {_short(entry)}; left out")
    image, category = entry.get("image_id"), entry.get("category_id")
    if not _is_key(image) or image not in frames:
        raise ValueError(f"its image_id {_short(image)} is no image of the file; left out")
    if not _is_key(category) or category not in names:
        raise ValueError(f"its category_id {_short(category)} is no category of the file; left out")
    return image, names[category]


def _numbers(values: object, what: str) -> np.ndarray:
    # "not a number" is not less than anything
    if not isinstance(values, list) or not all(type(v) in (int, float) and abs(v) <= MAX_COORDINATE for v in values):
        raise ValueError(f"{what} must be a list of numbers of at most {MAX_COORDINATE:.0f}, got {_short(values)}")
    return np.array(values, dtype=np.float64)


def _outline(polygon: object, frame: CocoFrame) -> np.ndarray:
    values = _numbers(polygon, "a polygon")
    if len(values) % 2 or len(values) < 6:
        raise ValueError(f"a polygon has x and y of at least 3 points, got {len(values)} numbers")
    points = values.reshape(-1, 2)
    if (points.max(axis=0) <= 0).any() or (points.min(axis=0) >= (frame.width, frame.height)).any():
        raise ValueError(f"a polygon lies outside the frame of {frame.width}x{frame.height} pixels")
    return points


def _box(values: object, frame: CocoFrame) -> Box:
    numbers = _numbers(values, "`bbox`")
    if len(numbers) != 4 or (numbers[2:] <= 0).any():
        raise ValueError(f"`bbox` must be left, top, width and height, both above 0, got {_short(values)}")
    left, top, width, height = numbers.tolist()
    if left >= frame.width or top >= frame.height or left + width <= 0 or top + height <= 0:
        raise ValueError(f"`bbox` {_short(values)} lies outside the frame of {frame.width}x{frame.height} pixels")
    return left, top, width, height


def _bounds(outlines: list[np.ndarray], runs: RunLengths | None) -> Box | None:
    if runs is not None:
        rows, columns = np.nonzero(_run_mask(runs))
        if not len(rows):
            return None
        return float(columns.min()), float(rows.min()), float(np.ptp(columns) + 1), float(np.ptp(rows) + 1)
    if not outlines:
        return None
    points = np.concatenate(outlines)
    (left, top), (width, height) = points.min(axis=0).tolist(), np.ptp(points, axis=0).tolist()
    return (left, top, width, height) if width > 0 and height > 0 else None


def _cut(box: Box, frame: CocoFrame) -> Box:
    """The part of a box that lies inside the frame, to the last digit the same where all of it does."""
    left, top, width, height = box
    if left >= 0 and top >= 0 and left + width <= frame.width and top + height <= frame.height:
        return box
    right, bottom = min(left + width, frame.width), min(top + height, frame.height)
    left, top = max(left, 0.0), max(top, 0.0)
    return left, top, right - left, bottom - top


def _runs(segmentation: dict, frame: CocoFrame) -> RunLengths:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [frame.height, frame.width]:
        raise ValueError(f"the size of its runs is {_short(size)}, that of its image {[frame.height, frame.width]}")
    lengths = list(_unpack(counts)) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(type(length) is int and length >= 0 for length in lengths):
        raise ValueError(f"`counts` must be a text or a list of whole numbers from 0, got {_short(counts)}")
    if sum(lengths) != frame.height * frame.width:
        raise ValueError(f"its runs add up to {sum(lengths)} pixels, its image has {frame.height * frame.width}")
    return RunLengths(np.array(lengths, dtype=np.int64), frame.height, frame.width)


def _unpack(text: str) -> Iterator[int]:
    """Lengths of runs from COCO's compressed text.

    Each character carries five bits, the lowest first, and a sign that more follow; the last one's fifth bit is the
    sign. From the fourth number on, what is stored is the difference from the number two before.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"compressed runs hold the character {character!r}, which has no meaning there")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (bits & 16) << (shift - 4)
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        yield lengths[-1]
        value = shift = 0
    if shift:
        raise ValueError("compressed runs end in the middle of a number")


# Masks --------------------------------------------------------------------------------------------------------------


def paint(canvas: np.ndarray, objects: Iterable[tuple[int, CocoObject]]) -> np.ndarray:
    """Paint objects on a canvas, each in its own value, later ones over earlier ones.

    Args:
        canvas (`np.ndarray` of shape `(height, width)`): Any type; changed in place.
        objects (iterable of `(value, CocoObject)`): What to paint. An object of which only the box is known paints
            nothing.

    Returns:
        `np.ndarray` of shape `(height, width)`: The canvas.

    Example:
        >>> square = np.array([[1.0, 0.0], [3.0, 0.0], [3.0, 2.0], [1.0, 2.0]])
        >>> paint(np.zeros((3, 4), int), [(7, CocoObject("stenosis", (square,), None, (1, 0, 2, 2)))])
        array([[0, 7, 7, 0],
               [0, 7, 7, 0],
               [0, 0, 0, 0]])
    """
    for value, item in objects:
        if item.runs is not None:
            canvas[_run_mask(item.runs)] = value
        elif item.outlines:
            part, mask = _filled(item.outlines, *canvas.shape)
            canvas[part][mask] = value
    return canvas


def _run_mask(runs: RunLengths) -> np.ndarray:
    values = np.repeat(np.arange(len(runs.counts)) % 2 == 1, runs.counts)
    return values.reshape(runs.width, runs.height).T


def _filled(outlines: Iterable[np.ndarray], height: int, width: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """The union of filled polygons: its bounding box in the frame, and what it fills of that, `bool`."""
    coco = require("pycocotools.mask", "data")
    runs = coco.merge(coco.frPyObjects([points.reshape(-1).tolist() for points in outlines], height, width))
    left, top, columns, rows = coco.toBbox(runs).astype(int).tolist()
    part = (slice(top, top + rows), slice(left, left + columns))
    with warnings.catch_warnings():
        # raised by the compiled part of pycocotools 2.0.11 under numpy 2
        warnings.simplefilter("ignore", DeprecationWarning)
        return part, coco.decode(runs)[part].astype(bool)
