"""Read exported cines frame by frame: arrays in NPZ files, and videos (MP4, AVI)."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...image_processing_reading import to_grey
from ...import_utils import require
from .frame import Frame, FrameMetadata, FrameReadError, ReadOptions, bits_for, hashed_id


NPZ_SUFFIXES = (".npz",)
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")

# array name in the CoronaryDominance data set
DEFAULT_KEY = "pixel_array"
DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# for some containers, the number of frames is an estimate
UNCERTAIN_FRAMES = 1


# Arrays


@dataclass(frozen=True)
class _Member:
    """An array in an NPZ file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool


def read_npz_frames(path: str | os.PathLike, options: ReadOptions | None = None) -> Iterator[Frame]:
    """Read the frames of an array `(num_frames, height, width)` or `(height, width)` in an NPZ file.

    Integers are used unchanged, as are floats with integer values; floats up to 1 are scaled to 16 bits. Dtypes with
    more than 8 bits are read twice, the first time to find the maximum, so that a cine has a single bit depth. Angles
    (`primary_angle`, `secondary_angle`) and ids (`studyid`, `seriesid`; hashed) stored with the array are kept.

    Args:
        path (`str` or `os.PathLike`): File; pickled objects in it are never loaded.
        options (`ReadOptions`, *optional*): Uses `npz_key`, `bits_stored` and `salt`.

    Yields:
        `Frame`: In array order.

    Raises:
        FrameReadError: If the file is damaged (after yielding the frames before the damage), lacks the array, or the
            array has an unsupported shape or dtype.
    """
    path, options = Path(path), options or ReadOptions()
    member = _find(path, options.npz_key)
    num_frames = member.shape[0] if len(member.shape) == 3 else 1
    metadata = FrameMetadata(num_frames=num_frames, **_scalars(path, options.salt))
    to_levels, bits = _conversion(path, member, options.bits_stored)
    for index, pixels in enumerate(_arrays(path, member)):
        yield Frame(to_levels(pixels), bits, index, metadata)


def _find(path: Path, key: str | None) -> _Member:
    try:
        with zipfile.ZipFile(path) as file:
            members = [_member(file, info) for info in file.infolist() if info.filename.endswith(".npy")]
    except Exception as error:  # numpy parses headers as expressions, which can raise anything
        raise FrameReadError(
            f"`{path}` cannot be read as NPZ ({type(error).__name__}: {error}). Restore or remove it."
        ) from error
    found = {member.name: member for member in members}
    wanted = key or (DEFAULT_KEY if DEFAULT_KEY in found else None)
    if wanted is None:
        runs = [member for member in members if len(member.shape) in (2, 3) and member.dtype.kind in "iuf"]
        wanted = runs[0].name if len(runs) == 1 else DEFAULT_KEY
    if wanted not in found:
        raise FrameReadError(
            f"`{path}` has no array {wanted!r}, only {sorted(found)}. Set `npz_key` to the array with the frames."
        )
    return _checked(path, found[wanted])


def _member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    with file.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"array format {version}")
        shape, is_fortran, dtype = HEADERS[version](stream)
    return _Member(info.filename.removesuffix(".npy"), shape, dtype, is_fortran)


def _checked(path: Path, member: _Member) -> _Member:
    shape, kind = member.shape, member.dtype.kind
    what = f"`{path}`: the array {member.name!r} has shape {shape} and type {member.dtype}"
    if kind == "O":
        raise FrameReadError(f"{what}: pickled objects are not loaded, since that can run code. Save a plain array.")
    is_colour = len(shape) == 3 and shape[-1] in (3, 4)
    if kind not in "iuf" or len(shape) not in (2, 3) or is_colour or min(shape, default=0) < 1:
        raise FrameReadError(f"{what}; expected grey levels of shape (num_frames, height, width).")
    if member.is_fortran and len(shape) == 3:
        raise FrameReadError(f"{what} in Fortran order, which is not supported. Save it with numpy.ascontiguousarray.")
    return member


def _arrays(path: Path, member: _Member) -> Iterator[np.ndarray]:
    height, width = member.shape[-2:]
    size = height * width * member.dtype.itemsize
    num_frames = member.shape[0] if len(member.shape) == 3 else 1
    index = 0
    try:
        with zipfile.ZipFile(path) as file, file.open(f"{member.name}.npy") as stream:
            HEADERS[np.lib.format.read_magic(stream)](stream)
            while index < num_frames:
                data = stream.read(size)
                if len(data) < size:
                    raise EOFError("the array ends early")
                pixels = np.frombuffer(data, member.dtype)
                yield pixels.reshape(width, height).T if member.is_fortran else pixels.reshape(height, width)
                index += 1
    except DAMAGE as error:
        raise FrameReadError(
            f"`{path}`: frame {index} of {num_frames} cannot be read ({type(error).__name__}: {error}); the {index} "
            "before it are intact. Restore the file."
        ) from error


def _conversion(path: Path, member: _Member, bits_stored: int | None) -> tuple[Any, int]:
    """Function that converts arrays to grey levels, the same for the whole cine, and the bit depth."""
    if member.dtype == np.uint8:
        return _as_uint8, 8
    lowest, highest, is_whole = np.inf, -np.inf, True
    for pixels in _arrays(path, member):
        if not np.isfinite(pixels).all():
            raise FrameReadError(f"`{path}`: levels must be finite, found NaN or infinity. Replace them first.")
        lowest, highest = min(lowest, float(pixels.min())), max(highest, float(pixels.max()))
        is_whole = is_whole and (member.dtype.kind != "f" or bool((pixels == np.rint(pixels)).all()))
    if lowest < 0 or (not is_whole and highest > 1):
        raise FrameReadError(
            f"`{path}`: levels are {lowest:g} to {highest:g}; expected integers from 0, or floats in [0, 1]. "
            "Save the grey levels before normalisation."
        )
    if not is_whole:
        return _spread, 16
    try:
        bits = bits_for(int(highest), bits_stored)
    except ValueError as error:
        raise FrameReadError(f"`{path}`: {error}") from error
    return (_as_uint8 if bits == 8 else _as_uint16), bits


def _as_uint8(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.uint8)


def _as_uint16(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.uint16)


def _spread(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels.astype(np.float64) * 65535).astype(np.uint16)


def _scalars(path: Path, salt: str | None) -> dict[str, Any]:
    """Metadata of the cine stored with the array."""
    known: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as file:
        for name in ("primary_angle", "secondary_angle"):
            value = _scalar(file, name, "iuf")
            known[name] = None if value is None or not np.isfinite(value) else float(value)
        for name, key in (("study_id", "studyid"), ("series_id", "seriesid")):
            known[name] = hashed_id(_scalar(file, key, "iuU"), name, salt)
    return known


def _scalar(file: Any, key: str, kinds: str) -> Any:
    if key not in file.files:
        return None
    try:
        value = file[key]
    except DAMAGE:  # pickled
        return None
    return value.item() if value.dtype.kind in kinds and value.size == 1 else None


# Videos


def read_video_frames(path: str | os.PathLike, options: ReadOptions | None = None) -> Iterator[Frame]:
    """Read the frames of a video with OpenCV. Colour is converted to grey; videos have 8 bits.

    Args:
        path (`str` or `os.PathLike`): MP4, AVI or another format supported by OpenCV.
        options (`ReadOptions`, *optional*): Ignored for videos.

    Yields:
        `Frame`: In video order, `uint8`.

    Raises:
        FrameReadError: If the video cannot be read, or ends early (after yielding the frames before that).
        ImportError: If OpenCV is not installed.
    """
    path = Path(path)
    cv2 = require("cv2", "data")
    if not path.is_file():
        raise FrameReadError(f"`{path}` is not a file. Check the path.")
    # an absolute path is never interpreted as a URL
    video = cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise FrameReadError(
                f"`{path}` cannot be read as a video: it is damaged, or OpenCV has no decoder for it. Restore it, or "
                "convert it to MP4 (H.264) or AVI (Motion JPEG)."
            )
        rate, count = video.get(cv2.CAP_PROP_FPS), int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        yield from _video_frames(path, video, 1000 / rate if rate > 0 else None, count)
    finally:
        video.release()


def _video_frames(path: Path, video: Any, frame_time_ms: float | None, count: int) -> Iterator[Frame]:
    metadata = FrameMetadata(num_frames=max(count, 1), frame_time_ms=frame_time_ms)
    index = 0
    while True:
        found, pixels = video.read()
        if not found:
            break
        yield Frame(to_grey(pixels[..., ::-1]), 8, index, replace(metadata, num_frames=max(count, index + 1)))
        index += 1
    if index == 0 or index < count - UNCERTAIN_FRAMES:
        raise FrameReadError(f"`{path}` ends after {index} of {count} frames; the frames before that are intact.")
