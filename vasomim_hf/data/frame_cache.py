"""Cache of decoded frames and their vesselness in two memory-mapped files with random access.

A cache folder has `frames.bin` (grey `uint8` frames, concatenated), `vesselness.bin` (masks, eight pixels per byte, each
row padded to whole bytes) and `index.json` (names, sizes, filter options, unreadable files). The folder name is a key of
its inputs, so a changed folder or option creates another cache.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ..import_utils import require
from ..progress import Progress
from .crops import CROP_SCALE, Crop, crop_frame, crop_vesselness, random_crop
from .reading.files import UNREADABLE
from .sources import FrameSource
from .vesselness import VesselnessOptions, vessel_mask


logger = logging.getLogger(__name__)

CACHE_FORMAT = 1
INDEX_NAME, FRAMES_NAME, VESSELNESS_NAME = "index.json", "frames.bin", "vesselness.bin"
# below this, starting processes takes longer than the work
MIN_FRAMES_FOR_PROCESSES = 200


class StoredFrames(Protocol):
    """Frames and vessel masks by index: a [`FrameCache`], or `ParquetFrames`, which reads them on demand."""

    key: str

    @property
    def row_groups(self) -> tuple[int, ...] | None:
        """Number of consecutive frames that are read together; `None` if frames are read separately."""
        ...

    def __len__(self) -> int: ...

    def select(self, indices: list[int]) -> "StoredFrames":
        """Select these frames, in this order."""
        ...

    def name(self, index: int) -> str:
        """Name of a frame in messages."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        ...

    def frame(self, index: int) -> np.ndarray:
        """A frame of shape `(height, width)`, `uint8`."""
        ...

    def vesselness(self, index: int, top: int = 0, height: int | None = None) -> np.ndarray:
        """Rows of its vessel mask, of shape `(height, width)`: `uint8`, 0 or 1."""
        ...


class FrameCache:
    """Frames and vessel masks of a cache folder, read through a memory map.

    Files are opened on first access in each process, so a cache can be passed to loader processes.

    Args:
        folder (`str` or `Path`): Folder created by [`build_frame_cache`].

    Raises:
        FileNotFoundError: If the folder has no index.
        ValueError: If it was created by another version, or a file is truncated.

    Example:
        >>> cache = FrameCache(folder)  # doctest: +SKIP
        >>> cache.frame(0).shape, cache.vesselness(0).shape  # doctest: +SKIP
        ((512, 512), (512, 512))
    """

    row_groups: tuple[int, ...] | None = None

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index = self._read_index()
        self.key: str = index["key"]
        self.skipped: dict[str, str] = index["skipped"]
        self.names: list[str] = index["names"]
        self.sizes: list[tuple[int, int]] = list(zip(index["heights"], index["widths"], strict=True))
        self._frame_offsets = list(accumulate((h * w for h, w in self.sizes), initial=0))
        self._bit_offsets = list(accumulate((h * _row_bytes(w) for h, w in self.sizes), initial=0))
        self._rows = list(range(len(self.names)))
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        self._check_lengths()

    def _read_index(self) -> dict:
        path = self.folder / INDEX_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder} is not a frame cache: it has no {INDEX_NAME}.")
        index = json.loads(path.read_text(encoding="utf-8"))
        if index.get("format") != CACHE_FORMAT:
            raise ValueError(
                f"{self.folder} is a frame cache of format {index.get('format')}, this version reads {CACHE_FORMAT}. "
                "Delete the folder to rebuild it from the frames."
            )
        return index

    def _check_lengths(self) -> None:
        for name, expected in ((FRAMES_NAME, self._frame_offsets[-1]), (VESSELNESS_NAME, self._bit_offsets[-1])):
            path = self.folder / name
            length = path.stat().st_size if path.is_file() else 0
            if length != expected:
                raise ValueError(
                    f"{path} has {length} bytes instead of {expected}. Delete {self.folder} to rebuild it."
                )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": None}

    def __len__(self) -> int:
        return len(self._rows)

    def select(self, indices: list[int]) -> "FrameCache":
        """The same files with only these frames, in this order."""
        chosen = object.__new__(FrameCache)
        chosen.__dict__.update(self.__getstate__())
        chosen._rows = [self._rows[i] for i in indices]
        return chosen

    def name(self, index: int) -> str:
        """Name of a frame: its path relative to the data folder, or its index in a data set."""
        return self.names[self._rows[index]]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        return self.sizes[self._rows[index]]

    def frame(self, index: int) -> np.ndarray:
        """A frame of shape `(height, width)`, `uint8`, read-only."""
        row = self._rows[index]
        start = self._frame_offsets[row]
        height, width = self.sizes[row]
        return self._open()[0][start : start + height * width].reshape(height, width)

    def vesselness(self, index: int, top: int = 0, height: int | None = None) -> np.ndarray:
        """Vessel mask of a frame, or `height` rows of it from row `top`: `(height, width)`, `uint8`, 0 or 1."""
        row = self._rows[index]
        full_height, width = self.sizes[row]
        height = full_height - top if height is None else height
        start = self._bit_offsets[row] + top * _row_bytes(width)
        packed = self._open()[1][start : start + height * _row_bytes(width)].reshape(height, -1)
        return np.unpackbits(packed, axis=1, count=width)

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        if self._maps is None:
            # as plain arrays: slicing a np.memmap takes several microseconds
            paths = (self.folder / FRAMES_NAME, self.folder / VESSELNESS_NAME)
            maps = [np.memmap(path, np.uint8, mode="r").view(np.ndarray) for path in paths]
            self._maps = (maps[0], maps[1])
        return self._maps


class FrameCacheDataset(torch.utils.data.Dataset):
    """Augmented crops of the frames in a cache.

    A crop is a function of `(seed, epoch, index)` only: neither the number of loader processes nor resuming changes
    it.

    Args:
        cache (`FrameCache` or `ParquetFrames`): Source of the frames.
        size (`tuple[int, int]`): Height and width of the crops in pixels.
        seed (`int`, defaults to 0): Seed of the crops.
        crop_scale (`tuple[float, float]`, defaults to `(0.2, 1.0)`): Minimum and maximum fraction of the frame's area.
        flip_probability (`float`, defaults to 0.5): Probability of a horizontal flip.
        augment (`bool`, defaults to `True`): With `False`, the whole frame resized to `size`.

    Example:
        >>> dataset = FrameCacheDataset(cache, (224, 224), seed=0)  # doctest: +SKIP
        >>> dataset[3, 17]["pixel"].shape  # epoch 3, frame 17  # doctest: +SKIP
        torch.Size([1, 224, 224])
    """

    def __init__(
        self,
        cache: StoredFrames,
        size: tuple[int, int],
        seed: int = 0,
        crop_scale: tuple[float, float] = CROP_SCALE,
        flip_probability: float = 0.5,
        augment: bool = True,
    ):
        self.cache = cache
        self.size = size
        self.seed = seed
        self.crop_scale = crop_scale
        self.flip_probability = flip_probability
        self.augment = augment

    def __len__(self) -> int:
        return len(self.cache)

    def crop(self, epoch: int, index: int) -> Crop:
        """Crop of a frame in an epoch."""
        if not self.augment:
            return Crop(0, 0, *self.cache.size(index))
        generator = np.random.default_rng([self.seed, epoch, index])
        size = self.cache.size(index)
        return random_crop(size, generator, scale=self.crop_scale, flip_probability=self.flip_probability)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        """Load the crop of a frame.

        Args:
            key (`int` or `tuple[int, int]`): Index of a frame, in epoch 0, or epoch and index.

        Returns:
            `dict`: `pixel` and `vesselness`, both of shape `(1, height, width)` and `uint8`; vesselness is 0 or 1.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        crop = self.crop(epoch, index)
        rows = self.cache.vesselness(index, crop.top, crop.height)
        pixel = crop_frame(self.cache.frame(index), crop, self.size)
        vesselness = crop_vesselness(rows, Crop(0, crop.left, crop.height, crop.width, crop.flip), self.size)
        return {"pixel": torch.from_numpy(pixel)[None], "vesselness": torch.from_numpy(vesselness)[None]}


def build_frame_cache(
    source: FrameSource,
    cache_dir: str | Path,
    *,
    vesselness_options: dict | None = None,
    num_workers: int = 1,
    show_progress: bool = True,
) -> FrameCache:
    """Decode and filter all frames of a source, or reuse an existing cache of the same source.

    Unreadable frames are reported and skipped.

    Args:
        source (`FrameSource`): Source of the frames, see [`open_source`].
        cache_dir (`str` or `Path`): Parent of the cache folders. A 512×512 frame takes 295 kB.
        vesselness_options (`dict`, *optional*): Fields of [`VesselnessOptions`], such as `{"border": 3}`.
        num_workers (`int`, defaults to 1): Number of processes.
        show_progress (`bool`, defaults to `True`): Whether to show progress.

    Returns:
        `FrameCache`: The opened cache.

    Raises:
        ValueError: If the source is empty or none of its frames can be read.
    """
    options = asdict(VesselnessOptions(**(vesselness_options or {})))
    if len(source) == 0:
        raise ValueError(f"{source.description} has no frames. Check the path and the file suffixes.")
    key = cache_key(source, options)
    folder = Path(cache_dir) / key
    if (folder / INDEX_NAME).is_file():
        return FrameCache(folder)
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    # only readable by the user: it contains decoded frames of patients
    temporary = Path(tempfile.mkdtemp(dir=cache_dir, prefix=f".{key}-"))
    try:
        results = _read_all(source, options, num_workers)
        results = Progress(results, what="decoding and filtering", total=len(source), is_shown=show_progress)
        index = _write_frames(temporary, source, results)
        index.update(format=CACHE_FORMAT, key=key, source=source.description, vesselness_options=options)
        (temporary / INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")
        _move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return FrameCache(folder)


def cache_key(source: FrameSource, vesselness_options: dict) -> str:
    """Name of the cache folder: a digest of the frames (names, sizes, sampled contents) and the filter options."""
    what = {"format": CACHE_FORMAT, "source": source.signature(), "vesselness": vesselness_options}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]


def _row_bytes(width: int) -> int:
    return (width + 7) // 8


def _move_into_place(temporary: Path, folder: Path) -> None:
    try:
        os.rename(temporary, folder)
    except OSError:
        # another process was faster; its cache has the same key, hence the same contents
        if not (folder / INDEX_NAME).is_file():
            raise


def _write_frames(folder: Path, source: FrameSource, results: Iterator) -> dict:
    index: dict = {"names": [], "heights": [], "widths": [], "skipped": {}}
    with open(folder / FRAMES_NAME, "wb") as frames, open(folder / VESSELNESS_NAME, "wb") as masks:
        for name, result in zip(source.names, results, strict=True):
            if isinstance(result, str):
                index["skipped"][name] = result
                continue
            frame, packed = result
            frames.write(frame)
            masks.write(packed)
            index["names"].append(name)
            index["heights"].append(frame.shape[0])
            index["widths"].append(frame.shape[1])
    _report_skipped(source, index)
    return index


def _report_skipped(source: FrameSource, index: dict) -> None:
    skipped = index["skipped"]
    some = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:5])
    if not index["names"]:
        raise ValueError(f"None of the {len(skipped)} frames of {source.description} can be read: {some}")
    if skipped:
        logger.warning("%d of %d frames cannot be read and are skipped: %s", len(skipped), len(source), some)


def _read_all(source: FrameSource, options: dict, num_workers: int) -> Iterator[tuple[np.ndarray, bytes] | str]:
    if num_workers <= 1 or len(source) < MIN_FRAMES_FOR_PROCESSES:
        for index in range(len(source)):
            yield _read_one(source, options, index)
        return
    # not fork: the parent may have threads of torch or OpenCV
    context = get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _start_worker, (source, options)) as pool:
        waiting: list[Future] = []
        for index in range(len(source)):
            waiting.append(pool.submit(_read_in_worker, index))
            if len(waiting) >= 8 * num_workers:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()


_WORKER_STATE: dict = {}


def _start_worker(source: FrameSource, options: dict) -> None:
    require("cv2", "data").setNumThreads(1)
    _WORKER_STATE.update(source=source, options=options)


def _read_in_worker(index: int) -> tuple[np.ndarray, bytes] | str:
    return _read_one(_WORKER_STATE["source"], _WORKER_STATE["options"], index)


def _read_one(source: FrameSource, options: dict, index: int) -> tuple[np.ndarray, bytes] | str:
    """A frame and its packed mask, or the reason why it cannot be read."""
    try:
        frame = source.frame(index)
    except UNREADABLE as error:
        return f"{type(error).__name__}: {error}"
    try:
        vesselness = source.vesselness(index, frame.shape)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    if vesselness is None:
        vesselness = vessel_mask(frame, **options)
    return np.ascontiguousarray(frame), np.packbits(vesselness, axis=1).tobytes()
