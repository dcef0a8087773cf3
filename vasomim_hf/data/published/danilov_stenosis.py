"""The stenosis data set of Danilov et al. (2021): 8,325 coronary angiograms with stenosis boxes, as Pascal VOC XML and CSV files."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union
from xml.etree import ElementTree

from ..faults import FaultReport
from .common import (
    Box,
    LoaderOptions,
    Note,
    Sample,
    Size,
    Unusable,
    box_features,
    build_dataset,
    by_stem,
    check_choice,
    find_root,
    fit_boxes,
    list_files,
    objects_of,
)


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


EXPECTED = (
    "`dataset/` with frames `14_<patient>_<run>_<frame>.bmp` and a `.xml` (Pascal VOC) for each, and "
    "`train_labels.csv` and `test_labels.csv` in it or next to it."
)
CATEGORIES = ("stenosis",)
SPLITS = ("train", "test")
_COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
_CORNERS = _COLUMNS[4:]
_NAME = re.compile(r"(\d+_\d+)_(\d+)_(\d+)")


class _Object(NamedTuple):
    """An annotated object in either format: class name and corners in pixels."""

    name: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float


class _Entry(NamedTuple):
    """Annotation of a frame; the size is `None` if not stated."""

    size: Size | None
    objects: tuple[_Object, ...]


def load_stenosis(
    root: str | Path,
    *,
    split: str = "all",
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    report: FaultReport | None = None,
) -> Union["Dataset", "IterableDataset"]:
    """Load the stenosis data set from its extracted folder. For details of the data set see its data card.

    Columns: `image`, `objects` with `bbox` (left, top, width, height in pixels; width is `xmax - xmin`) and `category`
    (`stenosis`), `image_id` (the name), `patient_id` (`14_024` of `14_024_2_0042`), `study_id` (the cine, `14_024_2`),
    `frame_index`, `width`, `height`.

    **In the split of the tables, nearly all patients are on both sides.** To create one without patient overlap:
    `split_by_group(load_stenosis(root), by=("patient_id",))`, see `data.splits`.

    Boxes come from the `.xml` of the frame, or from the table if the `.xml` is missing or damaged. Disagreements
    between the two are reported. Boxes are clipped to the frame and empty ones dropped; frames without any remaining
    box are skipped.

    Args:
        root (`str` or `Path`): Folder of the data set, of its frames, or one level above.
        split (`str`, defaults to `"all"`): `"all"` frames, or those listed in the `"train"` or `"test"` tables.
        streaming (`bool`, defaults to `False`): Whether to generate rows on demand.
        cache_dir (`str` or `Path`, *optional*): See [`~dataset_rows.to_dataset`].
        report (`FaultReport`, *optional*): Collects skipped and corrected items with reasons.

    Returns:
        `datasets.Dataset` or, with `streaming`, `datasets.IterableDataset`.

    Raises:
        FileNotFoundError: If the folder, or the table of the split, does not exist.
        ValueError: If it is not a folder of the data set, a table has wrong columns, or nothing is usable.
    """
    check_choice(split, "split", ("all", *SPLITS))
    folder = find_root(root, _is_root, EXPECTED)
    options = LoaderOptions(streaming, cache_dir, FaultReport() if report is None else report)
    tables = _read_tables(folder, Path(root), options.report)
    if split != "all" and split not in tables:
        found = ", ".join(path.name for path in sorted(folder.parent.iterdir()))
        raise FileNotFoundError(
            f"`{split}_labels.csv` is not in or next to `{folder}` (found: {found}). Add it, or load split='all'."
        )
    for stem in sorted(set(tables.get("train", ())) & set(tables.get("test", ()))):
        options.report.add(stem, "is in both train_labels.csv and test_labels.csv; kept in both")
    chosen = {name: table for name, table in tables.items() if split in ("all", name)}
    samples = _samples(folder, chosen, split == "all", options.report)
    entries = {stem: entry for table in chosen.values() for stem, entry in table.items()}
    return build_dataset(
        "frames of the stenosis data set", samples, _Annotate(entries), box_features(CATEGORIES), options
    )


def _is_root(folder: Path) -> bool:
    # next to the frames, the data set has folders of whole cines without boxes
    is_run = folder.name.lower().startswith("video")
    return not is_run and any(_NAME.fullmatch(path.stem) for path in folder.iterdir() if path.is_file())


def _samples(
    folder: Path, tables: Mapping[str, Mapping[str, _Entry]], with_all: bool, report: FaultReport
) -> list[Sample]:
    """Frames with annotations; without `with_all`, only those listed in a table."""
    frames = by_stem(list_files(folder, report, folder, companions=(".xml", ".csv")), report, folder)
    labels = {path.stem: path for path in sorted(folder.glob("*.[xX][mM][lL]")) if not path.name.startswith(".")}
    for name, table in tables.items():
        for stem in table:
            if stem not in frames:
                report.add(f"{name}_labels.csv", f"lists {stem}, which has no frame; skipped")
    for stem, path in labels.items() if with_all else ():
        if stem not in frames:
            report.add(path.name, "has boxes for a missing frame; skipped")
    named = {stem for table in tables.values() for stem in table}
    wanted = [path for stem, path in frames.items() if with_all or stem in named]
    return [_sample(path, labels.get(path.stem)) for path in wanted if _has_label(path, labels.keys() | named, report)]


def _has_label(path: Path, labelled: set[str], report: FaultReport) -> bool:
    if path.stem not in labelled:
        report.add(path.name, "has neither a .xml nor a row in a table; skipped")
    return path.stem in labelled


def _sample(path: Path, label: Path | None) -> Sample:
    match = _NAME.fullmatch(path.stem)
    patient, run, frame = (match[1], f"{match[1]}_{match[2]}", int(match[3])) if match else (None, None, None)
    return Sample(path, path.stem, patient, run, frame, label)


# Tables
# ---------------------------------------------------------------------------------------------------------------


def _read_tables(folder: Path, root: Path, report: FaultReport) -> dict[str, dict[str, _Entry]]:
    """Entries of the tables by split and frame stem."""
    tables = {}
    for split in SPLITS:
        places = [place / f"{split}_labels.csv" for place in (folder, folder.parent, root)]
        if path := next((place for place in places if place.is_file()), None):
            tables[split] = _read_table(path, report)
    return tables


def _read_table(path: Path, report: FaultReport) -> dict[str, _Entry]:
    sizes: dict[str, Size] = {}
    objects: dict[str, dict[_Object, None]] = defaultdict(dict)
    for number, row in _rows_of(path):
        try:
            item = _Object(row["class"], *(float(row[key]) for key in _CORNERS))
            size, stem = Size(int(row["width"]), int(row["height"])), Path(row["filename"]).stem
        except (TypeError, ValueError):
            report.add(path.name, f"line {number} is not {', '.join(_COLUMNS)}; ignored")
            continue
        if item in objects[stem]:
            report.add(path.name, f"line {number} repeats a box of {stem}; counted once")
        objects[stem][item] = None
        sizes[stem] = size
    return {stem: _Entry(sizes[stem], tuple(found)) for stem, found in objects.items()}


def _rows_of(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"`{path}` has the columns {reader.fieldnames}, but not {', '.join(missing)}. Restore the table."
            )
        for row in reader:
            yield reader.line_num, row


# Boxes of a frame
# -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Annotate:
    """Returns the boxes of a frame; `entries` are those of the tables."""

    entries: Mapping[str, _Entry]

    def __call__(self, sample: Sample, size: Size, note: Note) -> dict[str, Any]:
        entry = self._entry(sample, note)
        if entry.size is None:
            note("its .xml states no size; using that of the frame")
        elif entry.size != size:
            stated = f"{entry.size.width}×{entry.size.height}"
            raise Unusable(f"annotations are for {stated} but the frame is {size.width}×{size.height}; skipped")
        boxes = [_box(item) for item in entry.objects if _is_stenosis(item, note)]
        return {"objects": objects_of(fit_boxes(boxes, size, note))}

    def _entry(self, sample: Sample, note: Note) -> _Entry:
        row = self.entries.get(sample.path.stem)
        if sample.label is None:
            note("has no .xml; using the boxes of the table")
        else:
            try:
                entry = _read_voc(sample.label)
            except Unusable as error:
                note(f"{error}; using the boxes of the table" if row else f"{error}; it is not in a table either")
            else:
                _compare(entry, row, note)
                return entry
        if row is None:
            raise Unusable("has no boxes; skipped")
        return row


def _read_voc(path: Path) -> _Entry:
    try:
        text = path.read_bytes()
        # annotations do not use entities, and nested ones can exhaust memory
        if b"<!ENTITY" in text:
            raise Unusable(f"{path.name} defines entities, which are not allowed in annotations")
        root = ElementTree.fromstring(text)
        objects = tuple(_voc_object(item) for item in root.iter("object"))
        return _Entry(_voc_size(root), objects)
    except (OSError, ElementTree.ParseError, TypeError) as error:
        raise Unusable(f"{path.name} cannot be read ({type(error).__name__}: {error})") from error
    except Unusable:
        raise
    except ValueError as error:
        raise Unusable(f"{path.name} has an invalid number ({error})") from error


def _voc_size(root: ElementTree.Element) -> Size | None:
    width, height = root.findtext("size/width"), root.findtext("size/height")
    if width is None or height is None or int(width) <= 0 or int(height) <= 0:
        return None
    return Size(int(width), int(height))


def _voc_object(item: ElementTree.Element) -> _Object:
    corners = [float(item.findtext(f"bndbox/{key}") or "missing") for key in _CORNERS]
    return _Object(item.findtext("name") or "", *corners)


def _compare(entry: _Entry, row: _Entry | None, note: Note) -> None:
    if row is None:
        return
    if _comparable(entry) != _comparable(row):
        note(f".xml and table disagree ({len(entry.objects)} and {len(row.objects)} boxes); using those of the .xml")
    elif entry.size is not None and entry.size != row.size:
        note(".xml and table state different sizes; using that of the .xml")


def _comparable(entry: _Entry) -> set[_Object]:
    return {item._replace(name=item.name.strip().lower()) for item in entry.objects}


def _is_stenosis(item: _Object, note: Note) -> bool:
    if item.name.strip().lower() in CATEGORIES:
        return True
    note(f"box of class {item.name!r} is not a stenosis; dropped")
    return False


def _box(item: _Object) -> Box:
    return Box(0, item.xmin, item.ymin, item.xmax - item.xmin, item.ymax - item.ymin)
