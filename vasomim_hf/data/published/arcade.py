"""ARCADE: 3,000 coronary angiograms with vessel segments and stenoses, as `datasets` data sets.

Popov et al., "Dataset for Automatic Region-based Coronary Artery Disease Diagnostics Using X-Ray Angiography Images",
Scientific Data 11, 20 (2024), doi:10.1038/s41597-023-02871-z. Two folders of 1,000 + 200 + 300 frames each: in `syntax`
the segments of the vessel tree are outlined, in `stenosis` the lesions. Its licence and data leakage
are described in `model_cards/data/arcade.md`.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from ...import_utils import require
from ..faults import FaultReport
from ..parquet.export import export_dataset
from ..parquet.png import encode_label_png
from ..parquet.rows import to_dataset
from ..reading.files import FRAME_SUFFIXES, FrameReadError, read_frame
from ..synthetic.anatomy import RIGHT_SEGMENTS, SEGMENT_IDS, SEGMENT_NAMES
from .coco import CocoFrame, CocoObject, paint, read_coco


if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset


logger = logging.getLogger(__name__)

STENOSIS = "stenosis"
SPLITS = ("train", "val", "test")
SIDES = ("left", "right")

# task -> part of ARCADE that it is derived from
PARTS = {
    "vessel": "syntax",
    "segments": "syntax",
    "stenosis": "stenosis",
    "stenosis_boxes": "stenosis",
    "side": "syntax",
}
_MASK_TASKS = ("vessel", "segments", "stenosis")

_ABOUT = """# ARCADE as Parquet

Coronary angiograms of Popov et al. (Sci Data 11, 20, 2024, doi:10.1038/s41597-023-02871-z; Zenodo 10.5281/zenodo.10390295),
written by `vasomim_hf`. Images are the original files; masks are drawn from the original polygons, their levels are class
ids; `side` is derived from the segments. Public copies say CC0 1.0, which was not checked at the source. Frames of one
patient are in several rows and splits, and patients are not named. For research, not a medical device."""

# levels below the given folder that are searched for a layout
_SEARCH_DEPTH = 2


@dataclass(frozen=True)
class _Layout:
    """Layout of a release of ARCADE: (part, split) -> folder with `images` and `annotations`, and JSON name."""

    name: str
    folders: dict[tuple[str, str], tuple[str, str]]


_LAYOUTS = (
    _Layout(
        "final layout (Zenodo 10390295)",
        {(part, split): (f"{part}/{split}", f"{split}.json") for part in ("syntax", STENOSIS) for split in SPLITS},
    ),
    _Layout(
        "challenge layout (Zenodo 8386059)",
        {
            ("syntax", "train"): ("dataset_phase_1/segmentation_dataset/seg_train", "seg_train.json"),
            ("syntax", "val"): ("dataset_phase_1/segmentation_dataset/seg_val", "seg_val.json"),
            ("syntax", "test"): ("dataset_final_phase/test_case_segmentation", "instances_default.json"),
            (STENOSIS, "train"): ("dataset_phase_1/stenosis_dataset/sten_train", "sten_train.json"),
            (STENOSIS, "val"): ("dataset_phase_1/stenosis_dataset/sten_val", "sten_val.json"),
            (STENOSIS, "test"): ("dataset_final_phase/test_cases_stenosis", "instances_default.json"),
        },
    ),
)


@dataclass(frozen=True)
class _Item:
    """A frame on disk with its annotations."""

    path: Path
    frame: CocoFrame
    image_id: str
    split: str
    near_duplicate_group: str | None


# Public API
# -----------------------------------------------------------------------------------------------------------


def load_arcade(
    root: str | Path,
    task: str = "vessel",
    split: str = "train",
    *,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    report: FaultReport | None = None,
) -> Union["Dataset", "IterableDataset"]:
    """Load a split of ARCADE for one task.

    Tasks and their columns:

    - `"vessel"`: `mask`, 1 on any of the 25 vessel segments of `syntax`, 0 elsewhere.
    - `"segments"`: `mask`, ARCADE category ids 1 to 25 of `syntax` (see [`arcade_labels`]; id 10 is segment `9a`), 0
      elsewhere. Where outlines overlap, the later one in the file is used: 0.12 % of the labelled pixels of train and val.
    - `"stenosis"`: `mask`, 1 on any stenosis of `stenosis`, 0 elsewhere.
    - `"stenosis_boxes"`: `objects` with `bbox` (left, top, width, height in pixels, clipped to the frame) and
      `category` (0, `stenosis`), a list each, empty for frames without a stenosis.
    - `"side"`: `label`, 0 `left` or 1 `right` coronary artery. Not part of ARCADE; derived from the segments of
      `syntax` (1, 2, 3, 4, 16, 16a, 16b and 16c belong to the right artery). Frames with segments of both sides or of none
      are skipped and reported; train and val have no such frames.

    Masks are 8-bit PNGs whose grey levels are class ids: `np.asarray(row["mask"])` of shape `(height, width)` is
    `uint8` with the ids; on screen it looks black. Polygons are rasterised as by pycocotools, see [`~data.coco`].

    Common columns: `image` (the original file), `image_id` (`"syntax/train/10"`: part, split, file stem), `width`,
    `height`, `split`, `near_duplicate_group`, and `patient_id`, `study_id` and `frame_index`, which are unknown for
    ARCADE (null). With a file `twins.json` in the root, frames that show the same image have the same
    `near_duplicate_group`, and every other frame has a unique one; without the file it is null. Split by that column
    when combining several splits or both parts: several hundred frames of one part also occur in the other, some
    across train and val.

    Args:
        root (`str` or `Path`): Folder with `syntax` and `stenosis` (final layout), with `dataset_phase_1` and
            `dataset_final_phase` (challenge layout), or up to two levels above. If both are found, the final one is used
            with a warning.
        task (`str`, defaults to `"vessel"`): See above.
        split (`str`, defaults to `"train"`): `"train"`, `"val"` or `"test"`, or several, as in `"train+val"`.
        streaming (`bool`, defaults to `False`): Whether to read images and create masks on demand.
        cache_dir (`str` or `Path`, *optional*): Folder for the rows; `None` uses a private one that is removed at exit.
        report (`FaultReport`, *optional*): Collects skipped and corrected items with reasons; they are logged in any case.
            With `streaming`, damaged images are logged when they are read.

    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` with `streaming`: Rows in the order of the annotation files.

    Raises:
        ValueError: If the task or split is unknown, the root has neither layout or not that split, an annotation file is not
            a COCO file, or no frames are left.
    """
    _check_task(task)
    faults, total = FaultReport(), 0
    try:
        items = _items(Path(root), task, _split_names(split), faults)
        total = len(items)
        if task == "side":
            items = [item for item in items if _has_one_side(item, faults)]
        rows = _Rows(task, None if streaming else faults)
        return to_dataset(rows, items, _features(task), streaming=streaming, cache_dir=cache_dir)
    finally:
        faults.log(f"frames of ARCADE ({task}, {split})", total)
        if report is not None:
            report.extend(faults)


def arcade_labels(task: str) -> dict[int, str]:
    """Class ids and names of a task, for `id2label` of a model.

    Args:
        task (`str`): As in [`load_arcade`].

    Returns:
        `dict[int, str]`: Names by id; for masks, 0 is the background.

    Raises:
        ValueError: If the task is unknown.

    Example:
        >>> arcade_labels("stenosis"), arcade_labels("segments")[10], len(arcade_labels("segments"))
        ({0: 'background', 1: 'stenosis'}, '9a', 26)
    """
    _check_task(task)
    if task == "side":
        return dict(enumerate(SIDES))
    if task == "stenosis_boxes":
        return {0: STENOSIS}
    if task == "segments":
        return {0: "background"} | {number: SEGMENT_NAMES[number] for number in _SEGMENTS}
    return {0: "background", 1: task}


def arcade_splits(root: str | Path, task: str = "vessel") -> list[str]:
    """Splits of a task that exist on disk.

    Args:
        root (`str` or `Path`): As for [`load_arcade`].
        task (`str`, defaults to `"vessel"`): As for [`load_arcade`].

    Returns:
        `list[str]`: Some of `"train"`, `"val"` and `"test"`, in this order.

    Raises:
        ValueError: If the task is unknown, or the root has neither layout.
    """
    _check_task(task)
    base, layout = _find(Path(root))
    return [split for split in SPLITS if (base / layout.folders[PARTS[task], split][0]).is_dir()]


def export_arcade(
    root: str | Path,
    output: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    num_workers: int | None = None,
) -> FaultReport:
    """Write ARCADE as Parquet: one configuration per task with the splits that exist on disk.

    `datasets.load_dataset(output, "segments", split="val")` then returns the same as `load_arcade(root, "segments",
    "val")`.

    Args:
        root (`str` or `Path`): As for [`load_arcade`].
        output (`str` or `Path`): A new or empty folder, or that of the same data.
        tasks (`Sequence[str]`, *optional*): As for [`load_arcade`]; defaults to all.
        num_workers (`int`, *optional*): Number of processes; defaults to the number of cores.

    Returns:
        [`~reports.FaultReport`]: Skipped and corrected items with reasons.

    Raises:
        ValueError: As for [`load_arcade`].
        FileExistsError: If `output` contains something else.
    """
    report = FaultReport()
    configs = {
        task: {split: load_arcade(root, task, split, report=report) for split in arcade_splits(root, task)}
        for task in tasks or PARTS
    }
    report.extend(export_dataset(configs, output, about=_ABOUT, num_workers=num_workers))
    return report


# vessel segments: all categories of ARCADE except the stenosis
_SEGMENTS = tuple(number for number, name in SEGMENT_NAMES.items() if name != STENOSIS)


def _check_task(task: str) -> None:
    if task not in PARTS:
        raise ValueError(f"`task` must be one of {', '.join(PARTS)}, got {task!r}.")


def _split_names(split: str) -> list[str]:
    names = split.split("+") if isinstance(split, str) else []
    if not names or not set(names) <= set(SPLITS) or len(set(names)) < len(names):
        raise ValueError(
            f"`split` must be one of {', '.join(SPLITS)}, or several joined by +, such as 'train+val'; got {split!r}."
        )
    return names


# Files
# ----------------------------------------------------------------------------------------------------------------


def _items(root: Path, task: str, splits: Sequence[str], faults: FaultReport) -> list[_Item]:
    base, layout = _find(root)
    groups = _near_duplicate_groups(root, base)
    part = PARTS[task]
    items: list[_Item] = []
    for split in splits:
        for path, frame in _frames(base, layout, (part, split), faults):
            image_id = f"{part}/{split}/{frame.stem}"
            group = None if groups is None else groups.get(image_id, image_id)
            items.append(_Item(path, frame, image_id, split, group))
    return items


def _find(root: Path) -> tuple[Path, _Layout]:
    """Folder that contains a layout, and the layout."""
    if not root.is_dir():
        raise ValueError(f"`root` must be the folder of ARCADE, but {root} is no folder. {_expected()}")
    found = [(base, layout) for layout in _LAYOUTS for base in _bases(root, layout)]
    if not found:
        names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
        inside = f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else "nothing"
        raise ValueError(f"No ARCADE data set was found in {root}, which holds {inside}. {_expected()}")
    same = [base for base, layout in found if layout is found[0][1]]
    if len(same) > 1:
        raise ValueError(
            f"{root} holds ARCADE more than once: {', '.join(map(str, same))}. Pass one of them as `root`."
        )
    for base, layout in found[1:]:
        logger.warning(
            "%s holds ARCADE in two layouts: the %s in %s is used, the %s in %s is not",
            root,
            found[0][1].name,
            found[0][0],
            layout.name,
            base,
        )
    return found[0]


def _bases(root: Path, layout: _Layout) -> list[Path]:
    """Folders closest to the root that contain at least one folder of the layout."""
    level = [root]
    for _ in range(_SEARCH_DEPTH + 1):
        bases = [base for base in level if any((base / folder).is_dir() for folder, _ in layout.folders.values())]
        if bases:
            return bases
        level = [path for base in level for path in sorted(base.iterdir()) if path.is_dir() and path.name[0] != "."]
    return []


def _expected() -> str:
    layouts = "; or ".join(
        f"{layout.name}: {', '.join(folder for folder, _ in layout.folders.values())}" for layout in _LAYOUTS
    )
    return f"Expected, each with the folders `images` and `annotations`: {layouts}."


def _frames(
    base: Path, layout: _Layout, key: tuple[str, str], faults: FaultReport
) -> Iterator[tuple[Path, CocoFrame]]:
    """Files of a split with their annotations; frames without either are reported."""
    part, split = key
    relative, json_name = layout.folders[key]
    folder = base / relative
    if not (folder / "images").is_dir() or not (folder / "annotations").is_dir():
        there = [s for (p, s), (path, _) in layout.folders.items() if p == part and (base / path).is_dir()]
        raise ValueError(
            f"The split {split} of {part} needs the folders `images` and `annotations` in {folder}. Found of {part} "
            f"in this {layout.name}: {', '.join(there) or 'no split'}. Unpack the whole archive, or ask for another "
            "split."
        )
    annotations = _annotation_file(folder / "annotations", json_name)
    files = _ImageFiles(folder / "images")
    for frame in read_coco(annotations, faults, SEGMENT_NAMES, name=f"{part}/{split}"):
        path = files.take(frame)
        if path is None:
            faults.add(f"{part}/{split}/{frame.stem}", f"no file {frame.file_name} in {folder / 'images'}; left out")
        else:
            yield path, _known(frame, f"{part}/{split}/{frame.stem}", faults)
    for name in files.left_over():
        faults.add(f"{part}/{split}: {name}", f"is not named in {annotations.name}; left out")


def _annotation_file(folder: Path, name: str) -> Path:
    """The file of that name, or the only JSON file in the folder."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".json" and path.name[0] != ".")
    chosen = [path for path in paths if path.name == name] or paths
    if len(chosen) != 1:
        found = ", ".join(path.name for path in paths) or "no JSON file"
        raise ValueError(f"Expected the annotations in {folder / name}, found {found}. Unpack the whole archive.")
    return chosen[0]


def _known(frame: CocoFrame, name: str, faults: FaultReport) -> CocoFrame:
    """The frame without objects of unknown categories, matched by name because ids may differ between files."""
    strange = sorted({item.category for item in frame.objects if item.category not in SEGMENT_IDS})
    if not strange:
        return frame
    faults.add(name, f"holds categories that ARCADE does not have: {', '.join(strange)}; their objects are skipped")
    objects = tuple(item for item in frame.objects if item.category in SEGMENT_IDS)
    return CocoFrame(frame.file_name, frame.width, frame.height, objects)


class _ImageFiles:
    """Images of a folder by stem; copies of ARCADE differ in the suffix."""

    def __init__(self, folder: Path):
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES)
        self._by_name = {path.name: path for path in paths if path.name[0] != "."}
        self._by_stem = {path.stem: path for path in self._by_name.values()}
        self._taken: set[str] = set()

    def take(self, frame: CocoFrame) -> Path | None:
        path = self._by_name.get(frame.file_name, self._by_stem.get(frame.stem))
        if path is not None:
            self._taken.add(path.stem)
        return path

    def left_over(self) -> list[str]:
        return [name for name, path in self._by_name.items() if path.stem not in self._taken]


def _near_duplicate_groups(root: Path, base: Path) -> dict[str, str] | None:
    """Group name by image id, from the `twins.json` in the root; `None` without one."""
    path = next((folder / "twins.json" for folder in (base, root) if (folder / "twins.json").is_file()), None)
    if path is None:
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no whole JSON file ({error}). Correct it or remove it.") from error
    groups = content.get("twins") if isinstance(content, dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, list) and group for group in groups):
        raise ValueError(
            f'{path} must hold {{"twins": [["syntax/train/8", "stenosis/train/309"], ...]}}, one list of image ids for '
            f"each group. Correct it or remove it."
        )
    names = [str(name) for group in groups for name in group]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} names {twice} twice. Join the groups that share a frame.")
    return {str(name): min(map(str, group)) for group in groups for name in group}


# Rows
# -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """Creates rows of items; damaged images are reported, or logged when streaming."""

    task: str
    faults: FaultReport | None

    def __call__(self, items: Sequence[_Item]) -> Iterator[dict[str, Any]]:
        for item in items:
            reason = _image_fault(item)
            if reason is None:
                yield _row(item, self.task)
            elif self.faults is None:
                logger.warning("%s: %s", item.image_id, reason)
            else:
                self.faults.add(item.image_id, reason)


def _image_fault(item: _Item) -> str | None:
    try:
        height, width = read_frame(item.path).shape
    except FrameReadError as error:
        return f"{error} Left out."
    if (height, width) != (item.frame.height, item.frame.width):
        expected = f"{item.frame.width}x{item.frame.height}"
        return f"{item.path.name} has {width}x{height} pixels, its annotations are for {expected}; left out"
    return None


def _row(item: _Item, task: str) -> dict[str, Any]:
    return {
        "image": {"path": str(item.path), "bytes": None},
        "image_id": item.image_id,
        "width": item.frame.width,
        "height": item.frame.height,
        "split": item.split,
        "near_duplicate_group": item.near_duplicate_group,
        "patient_id": None,
        "study_id": None,
        "frame_index": None,
        **_target(item, task),
    }


def _target(item: _Item, task: str) -> dict[str, Any]:
    if task == "side":
        return {"label": SIDES.index(_sides(item)[0])}
    if task == "stenosis_boxes":
        # a stream keeps all digits, a file only those of the column type
        boxes = [np.asarray(found.bbox, dtype=np.float32).tolist() for _, found in _wanted(item, task)]
        return {"objects": {"bbox": boxes, "category": [0] * len(boxes)}}
    labels = paint(np.zeros((item.frame.height, item.frame.width), dtype=np.uint8), _wanted(item, task))
    return {"mask": {"path": None, "bytes": encode_label_png(labels)}}


def _wanted(item: _Item, task: str) -> Iterator[tuple[int, CocoObject]]:
    """Objects of the task with their class ids."""
    for found in item.frame.objects:
        if (found.category == STENOSIS) == (PARTS[task] == STENOSIS):
            yield SEGMENT_IDS[found.category] if task == "segments" else 1, found


def _sides(item: _Item) -> list[str]:
    segments = {SEGMENT_IDS[found.category] for _, found in _wanted(item, "segments")}
    return [
        side
        for side, there in zip(SIDES, (segments - RIGHT_SEGMENTS, segments & RIGHT_SEGMENTS), strict=True)
        if there
    ]


def _has_one_side(item: _Item, faults: FaultReport) -> bool:
    sides = _sides(item)
    if len(sides) != 1:
        faults.add(item.image_id, f"has segments of {'both sides' if sides else 'no side'}; left out")
    return len(sides) == 1


def _features(task: str) -> "Features":
    datasets = require("datasets", "data")
    text, number = datasets.Value("string"), datasets.Value("int32")
    common = {
        "image": datasets.Image(),
        "image_id": text,
        "width": number,
        "height": number,
        "split": text,
        "near_duplicate_group": text,
        "patient_id": text,
        "study_id": text,
        "frame_index": number,
    }
    if task in _MASK_TASKS:
        return datasets.Features(common | {"mask": datasets.Image()})
    if task == "side":
        return datasets.Features(common | {"label": datasets.ClassLabel(names=list(SIDES))})
    box = datasets.List(datasets.Value("float32"), length=4)
    category = datasets.ClassLabel(names=list(arcade_labels(task).values()))
    return datasets.Features(common | {"objects": {"bbox": datasets.List(box), "category": datasets.List(category)}})
