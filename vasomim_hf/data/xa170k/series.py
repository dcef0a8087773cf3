"""Series of CoronaryDominance: `.npz` files that hold all frames of a cine as one array."""

import zipfile
from typing import BinaryIO, NamedTuple

import numpy as np

from ..reading.files import UNREADABLE, FrameReadError
from .archives import DAMAGED, MAX_BYTES, Store


PIXELS_KEY = "pixel_array"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def count_frames(store: Store, path: str) -> int:
    """Number of frames in a series, read from the array header without decompressing the frames.

    Args:
        store (`Store`): Store that contains the file.
        path (`str`): Path of the `.npz` file.

    Returns:
        `int`: Number of frames, at least 1; a single image counts as one.

    Raises:
        FrameReadError: If it is not a series of frames.
    """
    try:
        with store.open(path) as file:
            shape, kind, size = _head(file)
    except FrameReadError:
        raise
    except (*UNREADABLE, *DAMAGED) as error:
        raise FrameReadError(
            f"`{path}` cannot be read as a series ({type(error).__name__}: {error}). Download it again."
        ) from error
    if kind not in "uif" or len(shape) not in (2, 3) or 0 in shape:
        raise FrameReadError(
            f"`{PIXELS_KEY}` in `{path}` has shape {shape} and dtype {kind!r}, expected numbers of shape "
            "(frames, height, width)."
        )
    if size > MAX_BYTES:
        raise FrameReadError(f"`{PIXELS_KEY}` in `{path}` claims {size} bytes, too many for a cine.")
    return shape[0] if len(shape) == 3 else 1


def _head(file: BinaryIO) -> tuple[tuple[int, ...], str, int]:
    """Shape, dtype kind and size in bytes of the array."""
    with zipfile.ZipFile(file) as archive:
        if f"{PIXELS_KEY}.npy" not in archive.namelist():
            raise KeyError(f"no array `{PIXELS_KEY}`, only {sorted(archive.namelist())[:5]}")
        with archive.open(f"{PIXELS_KEY}.npy") as member:
            version = np.lib.format.read_magic(member)
            if version not in _HEADERS:
                raise ValueError(f"unknown version {version} of the array format")
            shape, _, dtype = _HEADERS[version](member)
    return shape, dtype.kind, int(np.prod(shape, dtype=object)) * dtype.itemsize


class _Series(NamedTuple):
    """The last series read: its array of shape `(F, H, W)`, or the error."""

    place: tuple[str, str]
    frames: np.ndarray | FrameReadError


class SeriesReader:
    """Reads frames of series; caches the last series, because neighbouring frames are usually read next."""

    def __init__(self) -> None:
        self._last: _Series | None = None

    def __getstate__(self) -> dict:
        return {"_last": None}

    def read(self, key: str, store: Store, path: str, index: int) -> np.ndarray:
        """Read a frame.

        Args:
            key (`str`): Name of the store.
            store (`Store`): Store that contains the file.
            path (`str`): Path of the `.npz` file.
            index (`int`): Index of the frame, from 0.

        Returns:
            `np.ndarray` of shape `(height, width)`: `uint8`.

        Raises:
            FrameReadError: If the series or the frame cannot be read.
        """
        last = self._last
        if last is None or last.place != (key, path):
            # release the last series first: at most one in memory
            self._last = last = None
            last = self._last = _Series((key, path), _load(store, path))
        if isinstance(last.frames, FrameReadError):
            raise last.frames
        if not index < len(last.frames):
            raise FrameReadError(
                f"`{path}` has {len(last.frames)} frames, but frame {index} was requested: the file has changed."
            )
        return _levels(last.frames[index], f"{path}#{index}")


def _load(store: Store, path: str) -> np.ndarray | FrameReadError:
    try:
        with store.open(path) as file, np.load(file, allow_pickle=False) as arrays:
            pixels = arrays[PIXELS_KEY]
    except FrameReadError as error:
        return error
    except (*UNREADABLE, *DAMAGED) as error:
        return FrameReadError(
            f"`{path}` cannot be read as a series ({type(error).__name__}: {error}). Download it again."
        )
    return pixels[None] if pixels.ndim == 2 else pixels


def _levels(frame: np.ndarray, name: str) -> np.ndarray:
    if frame.dtype == np.uint8:
        return frame.copy()
    low, high = frame.min(), frame.max()
    # phrased so that NaN is rejected too
    if not (low >= 0 and high <= 255 and (frame == np.rint(frame)).all()):
        raise FrameReadError(
            f"`{name}` has {frame.dtype} values from {low} to {high}, expected integers from 0 to 255."
        )
    return frame.astype(np.uint8)
