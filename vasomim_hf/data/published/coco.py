"""COCO annotation files: validated reading, boxes, and masks from polygons.

pycocotools rasterises polygons (Lin et al., "Microsoft COCO", ECCV 2014, `annToMask` of its API): a pixel belongs to the
mask if its centre is inside. OpenCV's `fillPoly` also adds the pixels that the outline touches, which on vessels a few
pixels wide is every tenth pixel (on ARCADE the intersection over union with pycocotools is 0.89 on average). The reader
of pycocotools is not used, because it neither validates entries nor reports invalid ones.
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


MAX_SIDE = 65_535  # pixels; larger values are errors
MAX_COORDINATE = 100_000.0  # pixels; time and memory of rasterisation grow with the outline

Box = tuple[float, float, float, float]


class RunLengths(NamedTuple):
    """Run-length encoding of a mask: lengths of alternating runs of 0 and 1, column by column, starting with 0."""

    counts: np.ndarray
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class CocoObject:
    """An annotation.

    Args:
        category (`str`): Name of the category.
        outlines (`tuple` of `np.ndarray` of shape `(num_points, 2)`): `float64`, x and y in pixels; the object is their
            union. Empty if the file only has a box or a run-length encoding.
        runs (`RunLengths`, *optional*): The mask, if the file has a run-length encoding and no polygons.
        bbox (`tuple` of four `float`): Left, top, width and height in pixels, clipped to the frame.
    """

    category: str
    outlines: tuple[np.ndarray, ...]
    runs: RunLengths | None
    bbox: Box


@dataclass(frozen=True, eq=False)
class CocoFrame:
    """An image entry with its annotations, in file order.

    Args:
        file_name (`str`): Name without folders.
        width (`int`): In pixels.
        height (`int`): In pixels.
        objects (`tuple[CocoObject, ...]`): Annotations, possibly none.
    """

    file_name: str
    width: int
    height: int
    objects: tuple[CocoObject, ...]

    @property
    def stem(self) -> str:
        """File name without suffix."""
        return PurePosixPath(self.file_name).stem


# Reading
# --------------------------------------------------------------------------------------------------------------


def read_coco(
    path: str | Path, report: FaultReport, categories: Mapping[int, str] | None = None, name: str | None = None
) -> list[CocoFrame]:
    """Read a COCO annotation file for a flat folder of images.

    Invalid entries are reported: an image without a name or size, a duplicate image name (ignoring suffixes), an
    annotation with an unknown image or category, a polygon with fewer than three points or outside the frame, a box
    with zero area. The entry, or its invalid part, is skipped. A missing box is computed from the outline.

    Args:
        path (`str` or `Path`): JSON file.
        report (`FaultReport`): Collects the faults.
        categories (mapping of `int` to `str`, *optional*): Category names to use, and report, if the file has none.
        name (`str`, *optional*): Name of the file in the report; defaults to its file name.

    Returns:
        `list[CocoFrame]`: In file order.

    Raises:
        ValueError: If the file is not JSON or not a COCO file.
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
        raise ValueError(f"{path} is not valid JSON ({error}). Download or extract it again.") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} is not a COCO file: expected an object with the lists `images` and `annotations`, got {found}."
        )
    return content


class _Reader:
    """Converts the entries of a file to frames and objects, and reports skipped ones."""

    def __init__(self, report: FaultReport, name: str):
        self.report = report
        self.name = name

    def fault(self, what: str, reason: str) -> None:
        self.report.add(f"{self.name}: {what}", reason)

    def category_names(self, entries: object, default: Mapping[int, str] | None) -> dict[Hashable, str]:
        """Category names by id, from the file."""
        names: dict[Hashable, str] = {}
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and _is_key(entry.get("id")) and isinstance(entry.get("name"), str | int):
                names[entry["id"]] = str(entry["name"]).strip()
            else:
                self.fault("category", f"expected an `id` and a `name`, got {_short(entry)}; skipped")
        if not names and default is not None:
            self.fault("categories", "the file has none; using the ids of the original data set")
            names = {key: str(value) for key, value in default.items()}
        return names

    def frames(self, entries: list) -> dict[Hashable, CocoFrame | None]:
        """Frames without objects by image id; `None` for skipped images, whose annotations are skipped too."""
        frames: dict[Hashable, CocoFrame | None] = {}
        stems: set[str] = set()
        for number, entry in enumerate(entries):
            what = _entry_name("image", entry, "file_name", number)
            key = entry.get("id") if isinstance(entry, dict) else None
            if not _is_key(key):
                self.fault(what, f"expected an object with an `id`, got {_short(entry)}; skipped")
            elif key in frames:
                self.fault(
                    what, f"duplicate image id {key!r}; skipped, its annotations are assigned to the first image"
                )
            else:
                frames[key] = self.frame(what, entry, stems)
        return frames

    def frame(self, what: str, entry: dict, stems: set[str]) -> CocoFrame | None:
        """The frame of an image entry; `None` if it is invalid."""
        try:
            frame = _frame(entry)
            if frame.stem in stems:
                raise ValueError("duplicate image name")
        except ValueError as error:
            self.fault(what, f"{error}; skipped with its annotations")
            return None
        stems.add(frame.stem)
        return frame

    def objects(
        self, entries: list, frames: Mapping[Hashable, CocoFrame | None], names: Mapping[Hashable, str]
    ) -> dict[Hashable, list[CocoObject]]:
        """Objects in file order by image id."""
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
        """The object of an annotation; raises `ValueError` if neither polygon nor box is valid."""
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
                self.fault(what, f"{error}; polygon skipped")
        box = self.box(what, entry.get("bbox"), frame) or _bounds(outlines, runs)
        if box is None:
            raise ValueError("no valid polygon or box; skipped")
        return CocoObject(category, tuple(outlines), runs, _cut(box, frame))

    def box(self, what: str, values: object, frame: CocoFrame) -> Box | None:
        """The box in the file; `None` if missing or invalid."""
        if values is None:
            return None
        try:
            return _box(values, frame)
        except ValueError as error:
            self.fault(what, f"{error}; computed from the outline if possible")
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
    # only the last part: a name must not point outside the image folder
    name = str(entry.get("file_name") or "").replace("\\", "/").rsplit("/", 1)[-1].strip()
    if name in ("", ".", ".."):
        raise ValueError(f"expected a `file_name`, got {_short(entry.get('file_name'))}")
    return CocoFrame(name, _side(entry.get("width"), "width"), _side(entry.get("height"), "height"), ())


def _side(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= MAX_SIDE or value % 1:
        raise ValueError(f"`{name}` must be an integer from 1 to {MAX_SIDE}, got {_short(value)}")
    return int(value)


def _subject(
    entry: object, frames: Mapping[Hashable, CocoFrame | None], names: Mapping[Hashable, str]
) -> tuple[Hashable, str]:
    """Image id and category name of an annotation."""
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, got {_short(entry)}; skipped")
    image, category = entry.get("image_id"), entry.get("category_id")
    if not _is_key(image) or image not in frames:
        raise ValueError(f"its image_id {_short(image)} is not in the file; skipped")
    if not _is_key(category) or category not in names:
        raise ValueError(f"its category_id {_short(category)} is not in the file; skipped")
    return image, names[category]


def _numbers(values: object, what: str) -> np.ndarray:
    # phrased so that NaN is rejected too
    if not isinstance(values, list) or not all(type(v) in (int, float) and abs(v) <= MAX_COORDINATE for v in values):
        raise ValueError(f"{what} must be a list of numbers of at most {MAX_COORDINATE:.0f}, got {_short(values)}")
    return np.array(values, dtype=np.float64)


def _outline(polygon: object, frame: CocoFrame) -> np.ndarray:
    values = _numbers(polygon, "a polygon")
    if len(values) % 2 or len(values) < 6:
        raise ValueError(f"a polygon needs x and y of at least 3 points, got {len(values)} numbers")
    points = values.reshape(-1, 2)
    if (points.max(axis=0) <= 0).any() or (points.min(axis=0) >= (frame.width, frame.height)).any():
        raise ValueError(f"a polygon is outside the frame of {frame.width}x{frame.height} pixels")
    return points


def _box(values: object, frame: CocoFrame) -> Box:
    numbers = _numbers(values, "`bbox`")
    if len(numbers) != 4 or (numbers[2:] <= 0).any():
        raise ValueError(f"`bbox` must be left, top, width and height with width and height > 0, got {_short(values)}")
    left, top, width, height = numbers.tolist()
    if left >= frame.width or top >= frame.height or left + width <= 0 or top + height <= 0:
        raise ValueError(f"`bbox` {_short(values)} is outside the frame of {frame.width}x{frame.height} pixels")
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
    """Clip a box to the frame; boxes inside are returned exactly."""
    left, top, width, height = box
    if left >= 0 and top >= 0 and left + width <= frame.width and top + height <= frame.height:
        return box
    right, bottom = min(left + width, frame.width), min(top + height, frame.height)
    left, top = max(left, 0.0), max(top, 0.0)
    return left, top, right - left, bottom - top


def _runs(segmentation: dict, frame: CocoFrame) -> RunLengths:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [frame.height, frame.width]:
        raise ValueError(f"its mask has size {_short(size)}, its image {[frame.height, frame.width]}")
    lengths = list(_unpack(counts)) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(type(length) is int and length >= 0 for length in lengths):
        raise ValueError(f"`counts` must be a string or a list of integers >= 0, got {_short(counts)}")
    if sum(lengths) != frame.height * frame.width:
        raise ValueError(f"its runs sum to {sum(lengths)} pixels, its image has {frame.height * frame.width}")
    return RunLengths(np.array(lengths, dtype=np.int64), frame.height, frame.width)


def _unpack(text: str) -> Iterator[int]:
    """Decode run lengths from COCO's compressed string.

    Each character carries five bits, lowest first, and a flag for more; the fifth bit of the last one is the sign. From the
    fourth number on, the difference from the number two before is stored.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"compressed runs contain the invalid character {character!r}")
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


# Masks
# ----------------------------------------------------------------------------------------------------------------


def paint(canvas: np.ndarray, objects: Iterable[tuple[int, CocoObject]]) -> np.ndarray:
    """Paint objects on a canvas, each with its own value, later ones over earlier ones.

    Args:
        canvas (`np.ndarray` of shape `(height, width)`): Any dtype; modified in place.
        objects (iterable of `(value, CocoObject)`): Objects to paint. Objects with only a box are ignored.

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
    """Union of filled polygons: its bounding box in the frame, and the mask inside it, `bool`."""
    coco = require("pycocotools.mask", "data")
    runs = coco.merge(coco.frPyObjects([points.reshape(-1).tolist() for points in outlines], height, width))
    left, top, columns, rows = coco.toBbox(runs).astype(int).tolist()
    part = (slice(top, top + rows), slice(left, left + columns))
    with warnings.catch_warnings():
        # raised by the extension module of pycocotools 2.0.11 with numpy 2
        warnings.simplefilter("ignore", DeprecationWarning)
        return part, coco.decode(runs)[part].astype(bool)
