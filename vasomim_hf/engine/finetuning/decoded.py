"""Labelled frames for training: decoded once to memory-mapped 8-bit planes, then augmented, batched and normalised.

Training frames are stored slightly larger than the input size, so that augmentation can zoom in; validation frames are
stored exactly as the image processor resizes them. Planes are stored in a private folder that is removed when the run
ends.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...data.augmentation import (
    AugmentationOptions,
    Size,
    augment_boxes,
    augment_frame,
    augment_label_map,
    augment_soft_mask,
    draw_augmentation,
)
from ...data.crops import normalize_frames
from ...data.faults import FaultReport
from ...data.reading.files import UNREADABLE
from ...data.reading.masks import MaskRule, to_label_map
from ...modeling_vasomim_segmentation import IGNORED_LABEL
from ...progress import Progress
from .rows import LabelledRows
from .run import CLASSIFICATION, DETECTION, SEGMENTATION


logger = logging.getLogger(__name__)

# minimum side of a box, in pixels of the result
SHORTEST_SIDE = 1.0
_PLANES_NAME = "planes.bin"


class PlaneStore:
    """8-bit planes in one memory-mapped file; picklable, loader processes map the file again.

    Args:
        path (`Path`): File.
        shapes (sequence of `tuple[int, int]`): Height and width of each plane.
    """

    def __init__(self, path: Path, shapes: Sequence[tuple[int, int]]):
        self.path = path
        self.shapes = list(shapes)
        self._offsets = np.concatenate([[0], np.cumsum([h * w for h, w in shapes], dtype=np.int64)])
        self._map: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        """A plane of shape `(height, width)`, `uint8`, read-only."""
        if self._map is None:
            self._map = np.memmap(self.path, dtype=np.uint8, mode="r")
        return self._map[self._offsets[index] : self._offsets[index + 1]].reshape(self.shapes[index])

    def __getstate__(self) -> dict[str, Any]:
        # a memory map would be pickled with its content
        return {**self.__dict__, "_map": None}


@dataclass(frozen=True, eq=False)
class Samples:
    """Decoded frames with their labels.

    Args:
        kind (`str`): Segmentation, detection or classification.
        frames (`PlaneStore`): Grey frames.
        masks (`PlaneStore`, *optional*): For segmentation: class ids, or 0 to 255 where `is_soft`.
        is_soft (`np.ndarray` of shape `(num_samples,)`): `bool`, whether a mask stores the fraction of foreground.
        boxes (`list` of `np.ndarray` of shape `(num_boxes, 4)`): Left, top, right and bottom relative to the frame.
        labels (`list`): Class ids: `np.ndarray` of shape `(num_boxes,)` for boxes, or an `int` for the frame.
        counts (`np.ndarray` of shape `(num_labels,)`): Number of frames with each class.
        image_ids (`list[str]`): Ids of the frames.
    """

    kind: str
    frames: PlaneStore
    masks: PlaneStore | None
    is_soft: np.ndarray
    boxes: list[np.ndarray]
    labels: list[Any]
    counts: np.ndarray
    image_ids: list[str]

    def __len__(self) -> int:
        return len(self.frames)


@contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """A folder for decoded frames that is removed when the block ends."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".decoded-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# Decoding -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecodeOptions:
    """Options for decoding and storing frames.

    Args:
        kind (`str`): Segmentation, detection or classification.
        num_labels (`int`): Number of classes.
        size (`int`): Input size of the model in pixels.
        working_scale (`float`, *optional*): For training: maximum factor by which the longer side is larger than `size`,
            keeping the aspect ratio. `None` resizes both sides to `size`, as the image processor does.
    """

    kind: str
    num_labels: int
    size: int
    working_scale: float | None = None

    def kept_size(self, frame: Size) -> Size:
        """Width and height at which a frame is stored."""
        if self.working_scale is None:
            return Size(self.size, self.size)
        share = min(1.0, self.working_scale * self.size / max(frame))
        return Size(max(1, round(frame.width * share)), max(1, round(frame.height * share)))


def decode(rows: LabelledRows, options: DecodeOptions, folder: Path) -> Samples:
    """Decode all rows.

    Args:
        rows (`LabelledRows`): Frames with labels.
        options (`DecodeOptions`): Options.
        folder (`Path`): New or empty output folder.

    Returns:
        `Samples`: One per row.

    Raises:
        ValueError: If a mask has a wrong size or invalid ids, or a box or label is invalid.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reader = _RowReader(rows, options)
    with open(folder / _PLANES_NAME, "wb") as frames, open(folder / f"masks_{_PLANES_NAME}", "wb") as masks:
        for number in Progress(range(len(rows)), what=f"decoding {folder.name} frames"):
            frame, mask = reader.read(number)
            frame.tofile(frames)
            if mask is not None:
                mask.tofile(masks)
    reader.faults.log("frames with boxes", len(rows))
    return reader.samples(folder)


class _RowReader:
    """Reads rows one by one and collects their labels."""

    def __init__(self, rows: LabelledRows, options: DecodeOptions):
        self.rows = rows
        self.options = options
        self.image_ids = rows.image_ids
        self.faults = FaultReport()
        self.shapes: list[tuple[int, int]] = []
        self.is_soft: list[bool] = []
        self.boxes: list[np.ndarray] = []
        self.labels: list[Any] = []
        self.counts = np.zeros(options.num_labels, dtype=np.int64)

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        name = self.image_ids[number]
        frame = read_named_frame(self.rows, number, name)
        size = Size(frame.shape[1], frame.shape[0])
        kept, target = self.options.kept_size(size), self.rows.label(number)
        self.shapes.append((kept.height, kept.width))
        mask = None
        if self.options.kind == SEGMENTATION:
            mask = self._mask(target, size, kept, name)
        elif self.options.kind == DETECTION:
            self._boxes(target, size, name)
        else:
            self.labels.append(class_id(target, self.options.num_labels, name))
            self.counts[self.labels[-1]] += 1
        return _resize(frame, kept, Image.Resampling.BICUBIC), mask

    def samples(self, folder: Path) -> Samples:
        frames = PlaneStore(folder / _PLANES_NAME, self.shapes)
        is_segmentation = self.options.kind == SEGMENTATION
        masks = PlaneStore(folder / f"masks_{_PLANES_NAME}", self.shapes) if is_segmentation else None
        return Samples(
            kind=self.options.kind,
            frames=frames,
            masks=masks,
            is_soft=np.array(self.is_soft, dtype=bool),
            boxes=self.boxes,
            labels=self.labels,
            counts=self.counts,
            image_ids=self.image_ids,
        )

    def _mask(self, value: Any, size: Size, kept: Size, name: str) -> np.ndarray:
        rule = MaskRule(self.options.num_labels, self.rows.ignore_white)
        ids = to_label_map(value, f"of {name}", (size.height, size.width), rule)
        self.counts[np.unique(ids[ids != IGNORED_LABEL])] += 1
        # no interpolation between several class ids, nor between an id and pixels to ignore
        is_soft = self.options.working_scale is not None and self.options.num_labels == 2
        is_soft = is_soft and int(ids.max()) <= 1
        self.is_soft.append(is_soft)
        if is_soft:
            return _resize(ids * np.uint8(255), kept, Image.Resampling.BOX)
        return _resize(ids, kept, Image.Resampling.NEAREST)

    def _boxes(self, value: Any, size: Size, name: str) -> None:
        boxes, labels = corner_boxes(value, self.options.num_labels, size, name, self.faults)
        self.boxes.append(boxes)
        self.labels.append(labels)
        self.counts[np.unique(labels)] += 1


def read_named_frame(rows: LabelledRows, number: int, name: str) -> np.ndarray:
    """Read a frame, with its id in error messages.

    Args:
        rows (`LabelledRows`): Rows.
        number (`int`): Index of the row.
        name (`str`): Id of the frame.

    Returns:
        `np.ndarray` of shape `(height, width)`: `uint8`.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return rows.frame(number)
    except UNREADABLE as error:
        raise ValueError(f"{name}: {error}. Repair the frame or leave the row out.") from error


def class_id(value: Any, num_labels: int, name: str) -> int:
    """Validate the class id of a frame.

    Args:
        value (`int`): Value in the data set.
        num_labels (`int`): Number of classes.
        name (`str`): For messages.

    Returns:
        `int`: From 0 to `num_labels - 1`.

    Raises:
        ValueError: If it is not a class id.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < num_labels:
        raise ValueError(
            f"{name}: the label must be a class id from 0 to {num_labels - 1}, got {value!r}. Correct it or leave "
            "the row out."
        )
    return value


def corner_boxes(
    objects: Any, num_labels: int, size: Size, name: str, faults: FaultReport
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as corners relative to the frame. A frame without boxes has no findings.

    Args:
        objects (`dict`): `bbox`, left, top, width and height in pixels of each, and `category`.
        num_labels (`int`): Number of classes.
        size (`Size`): Size of the frame.
        name (`str`): For messages.
        faults (`FaultReport`): Collects boxes with zero area inside the frame, which are skipped.

    Returns:
        `tuple`: Corners of shape `(num_boxes, 4)`, float32, and class ids of shape `(num_boxes,)`, int64.

    Raises:
        ValueError: If the numbers of categories and boxes differ, or a category is invalid.
    """
    given, categories = (objects or {}).get("bbox") or [], (objects or {}).get("category") or []
    if len(given) != len(categories) or any(len(box) != 4 for box in given):
        raise ValueError(f"{name}: {len(given)} boxes of four numbers need as many categories, got {len(categories)}.")
    boxes = np.array(given, dtype=np.float64).reshape(-1, 4)
    labels = np.array(categories, dtype=np.int64)
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_labels):
        raise ValueError(
            f"{name}: categories must be ids from 0 to {num_labels - 1}, got {sorted(set(labels.tolist()))[:5]}. "
            "Correct them, or name all classes in `labels`."
        )
    sides = np.array([size.width, size.height] * 2, dtype=np.float64)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    cut = (corners / sides).clip(0, 1)
    has_area = (boxes[:, 2:] > 0).all(axis=1) & ((cut[:, 2:] - cut[:, :2]) * sides[:2] > 1e-3).all(axis=1)
    is_box = np.isfinite(boxes).all(axis=1) & has_area
    for box in boxes[~is_box]:
        faults.add(name, f"box {np.round(box, 2).tolist()} has no area inside the frame; left out")
    return cut[is_box].astype(np.float32), labels[is_box]


def _resize(plane: np.ndarray, size: Size, resample: int) -> np.ndarray:
    if plane.shape == (size.height, size.width):
        return np.ascontiguousarray(plane)
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((size.width, size.height), resample))


# Loading ------------------------------------------------------------------------------------------------------------


class FinetuneDataset(torch.utils.data.Dataset):
    """Samples at the input size of the model, before normalisation.

    Args:
        samples (`Samples`): Decoded frames and labels.
        size (`int`): Side in pixels.
        seed (`int`): Seed of the augmentation.
        augmentation (`AugmentationOptions`, *optional*): Ranges of the augmentation; `None` disables it.
    """

    def __init__(self, samples: Samples, size: int, seed: int = 0, augmentation: AugmentationOptions | None = None):
        self.samples = samples
        self.size = Size(size, size)
        self.seed = seed
        self.augmentation = augmentation
        # seeds the augmentation; set by a callback at the start of each epoch
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Load a sample.

        Args:
            index (`int`): Index of the sample.

        Returns:
            `dict`: `pixel` of shape `(1, height, width)`, uint8; `labels` for one frame, as for the model's `forward`; and
            `frame_index`.
        """
        options = self.augmentation or _NOTHING
        drawn = draw_augmentation(options, self.seed, self.epoch, index)
        frame = self.samples.frames[index]
        if self.augmentation is None and frame.shape == (self.size.height, self.size.width):
            pixel = np.array(frame)
        else:
            pixel = augment_frame(frame, drawn, self.size)
        labels = self._labels(index, drawn, options.kept_box_share)
        return {"pixel": torch.from_numpy(pixel)[None], "labels": labels, "frame_index": index}

    def _labels(self, index: int, drawn: Any, kept_share: float) -> Any:
        samples = self.samples
        if samples.kind == CLASSIFICATION:
            return torch.tensor(samples.labels[index])
        if samples.kind == DETECTION:
            height, width = samples.frames.shapes[index]
            boxes, kept = augment_boxes(samples.boxes[index], drawn, Size(width, height), kept_share)
            is_box = ((boxes[:, 2:] - boxes[:, :2]) * self.size >= SHORTEST_SIDE).all(axis=1)
            return box_labels(boxes[is_box], samples.labels[index][kept][is_box])
        mask = samples.masks[index] if samples.masks is not None else np.zeros((1, 1), np.uint8)
        move = augment_soft_mask if samples.is_soft[index] else augment_label_map
        return torch.from_numpy(move(mask, drawn, self.size).astype(np.int64))


_NOTHING = AugmentationOptions(
    rotation=0, scale=0, translation=0, brightness=0, contrast=0, gamma=0, noise=0, blur=0, degrade_probability=0
)


def box_labels(corners: np.ndarray, labels: np.ndarray) -> dict[str, torch.Tensor]:
    """Detection labels of one frame.

    Args:
        corners (`np.ndarray` of shape `(num_boxes, 4)`): Left, top, right and bottom relative to the frame.
        labels (`np.ndarray` of shape `(num_boxes,)`): Class ids.

    Returns:
        `dict`: `class_labels` of shape `(num_boxes,)`, int64, and `boxes` of shape `(num_boxes, 4)`, float32: centre x,
        centre y, width and height.
    """
    centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    boxes = np.concatenate([centres, sizes], axis=1).astype(np.float32)
    return {"class_labels": torch.from_numpy(labels.astype(np.int64)), "boxes": torch.from_numpy(boxes)}


@dataclass(frozen=True)
class Collator:
    """Batches samples to arguments of `forward`; picklable.

    Args:
        mean, std (`tuple[float, ...]`): Statistics of the image processor.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Create a batch.

        Args:
            items (sequence of `dict`): Samples of a [`FinetuneDataset`].

        Returns:
            `dict`: `pixel_values` of shape `(batch_size, num_channels, height, width)`, float32; `labels`; and
            `frame_indices` of shape `(batch_size,)`, which is removed before `forward`.
        """
        pixels = torch.stack([item["pixel"] for item in items])
        labels: Any = [item["labels"] for item in items]
        return {
            "pixel_values": normalize_frames(pixels, self.mean, self.std),
            "labels": labels if isinstance(labels[0], dict) else torch.stack(labels),
            "frame_indices": torch.tensor([item["frame_index"] for item in items]),
        }
