"""Series of CoronaryDominance: `.npz` files with the frames of a run in one array."""

import zipfile
from typing import BinaryIO, NamedTuple

import numpy as np

from ..reading.files import UNREADABLE, FrameReadError
from .archives import DAMAGED, MOST_BYTES, Store


PIXELS_KEY = "pixel_array"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def count_frames(store: Store, path: str) -> int:
    """Number of frames in a series, from the head of its array; the frames are not unpacked.

    Args:
        store (`Store`): Where the file is.
        path (`str`): Of the `.npz` file.

    Returns:
        `int`: Frames, from 1; a single picture counts as one.

    Raises:
        FrameReadError: If it is no series of frames.
    """
    try:
        with store.open(path) as file:
            shape, kind, size = _head(file)
    except FrameReadError:
        raise
    except (*UNREADABLE, *DAMAGED) as error:
        raise FrameReadError(
            f"`{path}` cannot be read as a series ({type(error).__name__}: {error}). Get it again."
        ) from error
    if kind not in "uif" or len(shape) not in (2, 3) or 0 in shape:
        raise FrameReadError(
            f"`{PIXELS_KEY}` in `{path}` has the shape {shape} and the kind {kind!r}, expected numbers of shape "
            "(frames, height, width). Such a file is not read."
        )
    if size > MOST_BYTES:
        raise FrameReadError(f"`{PIXELS_KEY}` in `{path}` claims {size} bytes, which is no run of frames.")
    return shape[0] if len(shape) == 3 else 1


def _head(file: BinaryIO) -> tuple[tuple[int, ...], str, int]:
    """Shape, kind of number and bytes of the array."""
    with zipfile.ZipFile(file) as archive:
        if f"{PIXELS_KEY}.npy" not in archive.namelist():
            raise KeyError(f"no array `{PIXELS_KEY}`, but {sorted(archive.namelist())[:5]}")
        with archive.open(f"{PIXELS_KEY}.npy") as member:
            version = np.lib.format.read_magic(member)
            if version not in _HEADERS:
                raise ValueError(f"version {version} of the array format is not known")
            shape, _, dtype = _HEADERS[version](member)
    return shape, dtype.kind, int(np.prod(shape, dtype=object)) * dtype.itemsize


class _Series(NamedTuple):
    """A series as it was read last: its array of shape `(F, H, W)`, or why it could not be."""

    place: tuple[str, str]
    frames: np.ndarray | FrameReadError


class SeriesReader:
    """Reads single frames of series; the series of the last one is kept, since its neighbours follow."""

    def __init__(self) -> None:
        self._last: _Series | None = None

    def __getstate__(self) -> dict:
        return {"_last": None}

    def read(self, key: str, store: Store, path: str, index: int) -> np.ndarray:
        """Read a frame.

        Args:
            key (`str`): Name of the store.
            store (`Store`): Where the file is.
            path (`str`): Of the `.npz` file.
            index (`int`): Number of the frame, from 0.

        Returns:
            `np.ndarray` of shape `(height, width)`: `uint8`.

        Raises:
            FrameReadError: If the series or the frame cannot be read.
        """
        last = self._last
        if last is None or last.place != (key, path):
            # One series at a time in memory
            self._last = last = None
            last = self._last = _Series((key, path), _load(store, path))
        if isinstance(last.frames, FrameReadError):
            raise last.frames
        if not index < len(last.frames):
            raise FrameReadError(f"`{path}` has {len(last.frames)} frames, no number {index}. It has changed.")
        return _levels(last.frames[index], f"{path}#{index}")


def _load(store: Store, path: str) -> np.ndarray | FrameReadError:
    try:
        with store.open(path) as file, np.load(file, allow_pickle=False) as arrays:
            pixels = arrays[PIXELS_KEY]
    except FrameReadError as error:
        return error
    except (*UNREADABLE, *DAMAGED) as error:
        return FrameReadError(f"`{path}` cannot be read as a series ({type(error).__name__}: {error}). Get it again.")
    return pixels[None] if pixels.ndim == 2 else pixels


def _levels(frame: np.ndarray, name: str) -> np.ndarray:
    if frame.dtype == np.uint8:
        return frame.copy()
    low, high = frame.min(), frame.max()
    # written so that it fails for what is no number
    if not (low >= 0 and high <= 255 and (frame == np.rint(frame)).all()):
        raise FrameReadError(f"`{name}` has {frame.dtype} levels from {low} to {high}, expected whole ones of 0..255.")
    return frame.astype(np.uint8)
