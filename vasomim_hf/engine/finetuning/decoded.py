"""Labelled frames for training: decoded once to memory-mapped 8-bit planes, then augmented, stacked and normalised.

Training frames are kept a little larger than the model sees them, so that the augmentation can zoom in; validation frames
are kept just as the image processor resizes them. Planes lie in a folder of the run's own and go when the run ends.
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

# Shorter sides of a box, in pixels of the result, are nothing to learn from
SHORTEST_SIDE = 1.0
_PLANES_NAME = "planes.bin"


class PlaneStore:
    """Planes of 8 bits in one memory-mapped file; may be sent to loader processes, which map it anew.

    Args:
        path (`Path`): The file.
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
        # a memory map would be sent as its content
        return {**self.__dict__, "_map": None}


@dataclass(frozen=True, eq=False)
class Samples:
    """Frames with their labels, decoded.

    Args:
        kind (`str`): Segmentation, detection or classification.
        frames (`PlaneStore`): Grey frames.
        masks (`PlaneStore`, *optional*): Of a segmentation: class ids, or 0 to 255 where `is_soft`.
        is_soft (`np.ndarray` of shape `(num_samples,)`): `bool`, whether a mask holds shares of the foreground.
        boxes (`list` of `np.ndarray` of shape `(num_boxes, 4)`): Left, top, right and bottom as shares of the frame.
        labels (`list`): Class ids: of the boxes `np.ndarray` of shape `(num_boxes,)`, or one `int` of the frame.
        counts (`np.ndarray` of shape `(num_labels,)`): Frames that each class occurs in.
        image_ids (`list[str]`): Of the frames.
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
    """A folder for decoded frames that goes when the block ends."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".decoded-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# Decoding -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecodeOptions:
    """How frames are kept.

    Args:
        kind (`str`): Segmentation, detection or classification.
        num_labels (`int`): Number of classes.
        size (`int`): Side in pixels that the model sees.
        working_scale (`float`, *optional*): For training: the longer side is kept at most this many times larger, and the
            aspect stays. `None` resizes both sides to `size`, as the image processor does.
    """

    kind: str
    num_labels: int
    size: int
    working_scale: float | None = None

    def kept_size(self, frame: Size) -> Size:
        """Width and height that a frame is kept at."""
        if self.working_scale is None:
            return Size(self.size, self.size)
        share = min(1.0, self.working_scale * self.size / max(frame))
        return Size(max(1, round(frame.width * share)), max(1, round(frame.height * share)))


def decode(rows: LabelledRows, options: DecodeOptions, folder: Path) -> Samples:
    """Decode rows once.

    Args:
        rows (`LabelledRows`): Frames with labels.
        options (`DecodeOptions`): How they are kept.
        folder (`Path`): Where; a new or an empty one.

    Returns:
        `Samples`: As many as rows.

    Raises:
        ValueError: If a mask has another size than its frame or ids of no class, a box is no box, or a label is no class.
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
    """Reads rows one by one and keeps what is small."""

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
        # in between two ids of many lies nothing, and neither between an id and a pixel to ignore
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
    """A frame of some rows, with its id in the errors.

    Args:
        rows (`LabelledRows`): The rows.
        number (`int`): Which row.
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
    """The label of a frame, checked.

    Args:
        value (`int`): As a data set gives it.
        num_labels (`int`): Number of classes.
        name (`str`): For messages.

    Returns:
        `int`: From 0 to `num_labels - 1`.

    Raises:
        ValueError: If it is no class id.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < num_labels:
        raise ValueError(
            f"{name}: the label must be a class id from 0 to {num_labels - 1}, got {value!r}. Correct it or leave the row "
            "out."
        )
    return value


def corner_boxes(
    objects: Any, num_labels: int, size: Size, name: str, faults: FaultReport
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as corners in shares of the frame. A frame without boxes is one without a finding.

    Args:
        objects (`dict`): `bbox`, left, top, width and height in pixels of each, and `category`.
        num_labels (`int`): Number of classes.
        size (`Size`): Of the frame.
        name (`str`): For messages.
        faults (`FaultReport`): Takes boxes without an area inside the frame, which are left out.

    Returns:
        `tuple`: Corners of shape `(num_boxes, 4)`, float32, and class ids of shape `(num_boxes,)`, int64.

    Raises:
        ValueError: If there are not as many categories as boxes, or a category is no class.
    """
    given, categories = (objects or {}).get("bbox") or [], (objects or {}).get("category") or []
    if len(given) != len(categories) or any(len(box) != 4 for box in given):
        raise ValueError(f"{name}: {len(given)} boxes of four numbers need as many categories, got {len(categories)}.")
    boxes = np.array(given, dtype=np.float64).reshape(-1, 4)
    labels = np.array(categories, dtype=np.int64)
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_labels):
        raise ValueError(
            f"{name}: categories must be ids from 0 to {num_labels - 1}, got {sorted(set(labels.tolist()))[:5]}. Correct "
            "them, or name all classes in `labels`."
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
    """Samples as the model sees them, before normalisation.

    Args:
        samples (`Samples`): Decoded frames and labels.
        size (`int`): Side in pixels.
        seed (`int`): Of the augmentation.
        augmentation (`AugmentationOptions`, *optional*): How frames are changed; `None` leaves them as they are.
    """

    def __init__(self, samples: Samples, size: int, seed: int = 0, augmentation: AugmentationOptions | None = None):
        self.samples = samples
        self.size = Size(size, size)
        self.seed = seed
        self.augmentation = augmentation
        # another epoch draws another augmentation; set from outside, at its begin
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample.

        Args:
            index (`int`): Its number.

        Returns:
            `dict`: `pixel` of shape `(1, height, width)`, uint8; `labels` as the model's `forward` takes those of one
            frame; and `frame_index`.
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
    """What a detector learns from one frame.

    Args:
        corners (`np.ndarray` of shape `(num_boxes, 4)`): Left, top, right and bottom as shares.
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
    """Stacks samples to the arguments of `forward`; may be sent to loader processes.

    Args:
        mean, std (`tuple[float, ...]`): Of the image processor, the only home of the pixel statistics.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            items (sequence of `dict`): Of a [`FinetuneDataset`].

        Returns:
            `dict`: `pixel_values` of shape `(batch_size, num_channels, height, width)`, float32; `labels`; and
            `frame_indices` of shape `(batch_size,)`, which is taken out again before `forward`.
        """
        pixels = torch.stack([item["pixel"] for item in items])
        labels: Any = [item["labels"] for item in items]
        return {
            "pixel_values": normalize_frames(pixels, self.mean, self.std),
            "labels": labels if isinstance(labels[0], dict) else torch.stack(labels),
            "frame_indices": torch.tensor([item["frame_index"] for item in items]),
        }
