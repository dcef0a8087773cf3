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
    augment_frame,
    draw_augmentation,
)
from ...data.crops import normalize_frames
from ...data.faults import FaultReport
from ...data.reading.files import UNREADABLE
from ...progress import Progress
from ..tasks.registry import find_task
from ..tasks.task import KeptLabel, LabelContext, Task, View, resize_plane
from .rows import LabelledRows


logger = logging.getLogger(__name__)

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
        masks (`PlaneStore`, *optional*): Planes of the labels, if the task has them, see [`Task.keep`].
        labels (`list`): What else the task keeps of each label.
        counts (`np.ndarray` of shape `(num_labels,)`): Number of frames with each class.
        image_ids (`list[str]`): Ids of the frames.
    """

    kind: str
    frames: PlaneStore
    masks: PlaneStore | None
    labels: list[Any]
    counts: np.ndarray
    image_ids: list[str]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def task(self) -> Task:
        """The task."""
        return find_task(self.kind)

    def label(self, index: int) -> KeptLabel:
        """The label of a frame as it was kept."""
        return KeptLabel(None if self.masks is None else self.masks[index], self.labels[index])


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

    @property
    def task(self) -> Task:
        """The task."""
        return find_task(self.kind)

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
        self.has_planes = False
        self.labels: list[Any] = []
        self.counts = np.zeros(options.num_labels, dtype=np.int64)

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        name = self.image_ids[number]
        frame = read_named_frame(self.rows, number, name)
        task, options, size = self.options.task, self.options, size_of(frame)
        kept_size = options.kept_size(size)
        context = LabelContext(name, size, options.num_labels, self.faults, self.rows.ignore_white)
        label = task.read(self.rows.label(number), context)
        kept = task.keep(label, kept_size, options.num_labels, options.working_scale is not None)
        self.shapes.append((kept_size.height, kept_size.width))
        self.counts[task.classes_in(label)] += 1
        self.labels.append(kept.value)
        self.has_planes = kept.plane is not None
        return resize_plane(frame, kept_size, Image.Resampling.BICUBIC), kept.plane

    def samples(self, folder: Path) -> Samples:
        frames = PlaneStore(folder / _PLANES_NAME, self.shapes)
        masks = PlaneStore(folder / f"masks_{_PLANES_NAME}", self.shapes) if self.has_planes else None
        return Samples(
            kind=self.options.kind,
            frames=frames,
            masks=masks,
            labels=self.labels,
            counts=self.counts,
            image_ids=self.image_ids,
        )


def size_of(frame: np.ndarray) -> Size:
    """Size of a frame of shape `(height, width)`."""
    return Size(frame.shape[1], frame.shape[0])


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
        view = View(drawn, size_of(frame), self.size, options.kept_box_share)
        labels = self.samples.task.training_label(self.samples.label(index), view)
        return {"pixel": torch.from_numpy(pixel)[None], "labels": labels, "frame_index": index}


_NOTHING = AugmentationOptions(
    rotation=0, scale=0, translation=0, brightness=0, contrast=0, gamma=0, noise=0, blur=0, degrade_probability=0
)


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
