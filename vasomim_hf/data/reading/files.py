"""Frames of angiograms from files: images, arrays, videos and DICOM.

[`read_frames`] returns every frame of a file of any kind, with its original bit depth and metadata; [`read_frame`]
returns one frame of an image file with 8 bits, for the vesselness filter and training.
"""

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ...image_processing_reading import check_levels, has_deep_colour, scale_to_8_bit
from .arrays_and_video import NPZ_SUFFIXES, VIDEO_SUFFIXES, read_npz_frames, read_video_frames
from .dicom import DICOM_SUFFIXES, is_dicom, read_dicom_frames
from .frame import Frame, FrameMetadata, FrameReadError, ReadOptions, bits_for


logger = logging.getLogger(__name__)

FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

# exceptions of Pillow for a damaged file, depending on format and location of the damage
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    Image.DecompressionBombError,
)


class FolderScan(NamedTuple):
    """Contents of a folder: frames, other files and hidden files, each sorted."""

    frames: list[Path]
    strays: list[Path]
    hidden: list[Path]


def scan_folder(folder: str | os.PathLike) -> FolderScan:
    """Sort the files of a folder and its sub-folders into frames and others, by name.

    Args:
        folder (`str` or `os.PathLike`): Folder. Links to folders are not followed, hidden folders are skipped.

    Returns:
        `FolderScan`: Paths of frames, other files and hidden files.

    Raises:
        NotADirectoryError: If the folder does not exist.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"`{root}` is not a folder of frames. Check the path.")
    scan = FolderScan([], [], [])
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            _kind(scan, name).append(Path(parent, name))
    return FolderScan(*(sorted(paths) for paths in scan))


def _kind(scan: FolderScan, name: str) -> list[Path]:
    if name.startswith("."):
        return scan.hidden
    return scan.frames if name.lower().endswith(FRAME_SUFFIXES) else scan.strays


def list_frames(folder: str | os.PathLike) -> list[Path]:
    """List the frames of a folder and its sub-folders, sorted, so the order is the same on every machine.

    Other files are skipped, with their number in one log line; [`scan_folder`] returns them.

    Args:
        folder (`str` or `os.PathLike`): Folder with png, jpg, jpeg, bmp, tif and tiff files, in upper or lower case.

    Returns:
        `list[Path]`: At least one path, each starting with `folder`.

    Raises:
        NotADirectoryError: If the folder does not exist.
        ValueError: If it contains no frames.
    """
    scan = scan_folder(folder)
    others = len(scan.strays) + len(scan.hidden)
    if not scan.frames:
        raise ValueError(
            f"`{folder}` contains no frames, {f'only {others} other files' if others else 'and no other files'}. "
            f"Expected files ending in {', '.join(FRAME_SUFFIXES)}, in the folder or its sub-folders."
        )
    if scan.strays:
        logger.warning("%s: skipped %d files that are not frames, e.g. %s", folder, others, scan.strays[0].name)
    elif others:
        logger.info("%s: skipped %d hidden files", folder, others)
    return scan.frames


def read_frame(path: str | os.PathLike, bits_stored: int | None = None) -> np.ndarray:
    """Read one 8-bit grey frame from an image file.

    Colour is converted to grey as in Pillow's `convert("L")` (grey images stored as colour are unchanged), alpha is
    ignored. Images with more than 8 bits (16-bit, 32-bit, float) are scaled by their bit depth as in [`to_uint8`]. The
    frame is rotated according to its EXIF orientation, if any, as in `datasets` and transformers' `load_image`.

    Args:
        path (`str` or `os.PathLike`): Image file with one frame.
        bits_stored (`int`, *optional*):
            Number of bits used for the grey level, such as 10 for 10 bits stored in 16; `None` infers it. Ignored for
            8-bit files.

    Returns:
        `np.ndarray` of shape `(height, width)`: `uint8`, 0 to 255.

    Raises:
        FrameReadError: If the file is damaged, has several frames, cannot be scaled, or is one that Pillow decodes
            incorrectly, see [`~image_processing_reading.check_levels`].
    """
    return _frame(path, str(path), bits_stored)


def decode_frame(data: bytes | memoryview, name: str, bits_stored: int | None = None) -> np.ndarray:
    """Decode one 8-bit grey frame from the bytes of an image file; see [`read_frame`].

    Args:
        data (`bytes` or `memoryview`): Contents of the file.
        name (`str`): Name in messages.
        bits_stored (`int`, *optional*): Bit depth of frames with more than 8 bits, see [`read_frame`].

    Returns:
        `np.ndarray` of shape `(height, width)`: `uint8`, 0 to 255.

    Raises:
        FrameReadError: As for [`read_frame`].

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.fromarray(np.array([[0, 1023]], dtype=np.uint16)).save(file, "PNG")
        >>> decode_frame(file.getvalue(), "a.png", bits_stored=10)
        array([[  0, 255]], dtype=uint8)
    """
    return _frame(io.BytesIO(data), name, bits_stored)


def _frame(file: str | os.PathLike | io.BytesIO, name: str, bits_stored: int | None) -> np.ndarray:
    try:
        # never by path: Pillow would then memory-map a rotated TIFF with its sides swapped
        with open(file, "rb") if isinstance(file, str | os.PathLike) else file as opened, Image.open(opened) as image:
            return frame_from_image(image, name, bits_stored)
    except FrameReadError:
        raise
    except UNREADABLE as error:
        raise FrameReadError(
            f"`{name}` cannot be read as an image ({type(error).__name__}: {error}). Restore or remove the file."
        ) from error


def frame_from_image(image: Image.Image, name: str, bits_stored: int | None = None) -> np.ndarray:
    """Convert an image to one 8-bit grey frame, by the rules of [`read_frame`].

    Args:
        image (`PIL.Image.Image`): Image. Once it is loaded, 16 bits per colour channel can no longer be detected.
        name (`str`): Name in messages.
        bits_stored (`int`, *optional*): Bit depth of frames with more than 8 bits, see [`read_frame`].

    Returns:
        `np.ndarray` of shape `(height, width)`: `uint8`, 0 to 255.

    Raises:
        FrameReadError: If it has several frames, cannot be scaled or is one that Pillow decodes incorrectly.
        OSError, ValueError: Or another exception in `UNREADABLE`, if it is damaged and not loaded yet.
    """
    is_deep_colour = has_deep_colour(image)
    image.load()
    number = getattr(image, "n_frames", 1)
    if number != 1:
        raise FrameReadError(f"`{name}` has {number} frames, expected one. Save each frame in a separate file.")
    upright = ImageOps.exif_transpose(image)
    try:
        check_levels(image, is_deep_colour, bits_stored)
        is_deep = image.mode.startswith(("I", "F"))
        return to_uint8(np.asarray(upright), bits_stored) if is_deep else np.array(upright.convert("L"))
    except ValueError as error:
        raise FrameReadError(f"`{name}`: {error}") from error


def kind_of(path: str | os.PathLike) -> str | None:
    """Kind of a file by its suffix or, for unknown suffixes, by its DICOM magic bytes.

    Args:
        path (`str` or `os.PathLike`): File.

    Returns:
        `str`: `"image"`, `"npz"`, `"video"` or `"dicom"`; `None` for anything else.

    Example:
        >>> kind_of("run.AVI"), kind_of("notes.txt")
        ('video', None)
    """
    name = os.fspath(path).lower()
    for kind, suffixes in _SUFFIXES.items():
        if name.endswith(suffixes):
            return kind
    return "dicom" if is_dicom(path) else None


_SUFFIXES = {"image": FRAME_SUFFIXES, "npz": NPZ_SUFFIXES, "video": VIDEO_SUFFIXES, "dicom": DICOM_SUFFIXES}


def read_frames(path: str | os.PathLike, options: ReadOptions | None = None) -> Iterator[Frame]:
    """Read the frames of an image (including multi-page TIFF), NPZ, video or DICOM file one by one.

    Frames are decoded on demand, so a cine is never completely in memory. For a damaged file, the frames before the
    damage are yielded, followed by an error.

    Args:
        path (`str` or `os.PathLike`): File. DICOM files need no suffix.
        options (`ReadOptions`, *optional*): Reading options.

    Yields:
        `Frame`: In file order: grey, `uint8` or `uint16`, shape `(height, width)`, not scaled, 0 is black.

    Raises:
        FrameReadError: If the file cannot be read; the message names it and states what to do.
        ImportError: If the package for this format is not installed; the message contains the pip command.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16)).save(path)
        >>> frame = next(read_frames(path, ReadOptions(bits_stored=10)))
        >>> frame.pixels[0, 0], frame.bits_stored, frame.metadata.num_frames
        (np.uint16(1000), 10, 1)
    """
    options = options or ReadOptions()
    if not Path(path).is_file():
        raise FrameReadError(f"`{path}` is not a file. Check the path.")
    kind = kind_of(path)
    if kind is None:
        known = ", ".join(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
        raise FrameReadError(
            f"`{path}` is not an image, array, video or DICOM file. Expected DICOM, or one of {known}."
        )
    readers = {"dicom": read_dicom_frames, "npz": read_npz_frames, "video": read_video_frames}
    yield from readers.get(kind, read_image_frames)(path, options)


def read_image_frames(path: str | os.PathLike, options: ReadOptions | None = None) -> Iterator[Frame]:
    """Read the frames of an image file: one, or each page of a TIFF.

    Colour is converted to grey as in [`read_frame`]; more than 8 bits are kept. Pages with more than 8 bits are read
    twice if the bit depth is not given, the first time to find the maximum, so that all have the same bit depth.

    Args:
        path (`str` or `os.PathLike`): Image file.
        options (`ReadOptions`, *optional*): Uses `bits_stored`.

    Yields:
        `Frame`: In file order.

    Raises:
        FrameReadError: If the file is damaged (after yielding the pages before the damage), is one that Pillow decodes
            incorrectly, or has values that do not fit in 16 bits.
    """
    path, options = Path(path), options or ReadOptions()
    bits = None
    for index, (pixels, num_frames) in enumerate(_pages(path, options.bits_stored)):
        if pixels.dtype != np.uint8 and bits is None:
            is_known = num_frames == 1 or options.bits_stored is not None
            highest = pixels.max() if is_known else max(page.max() for page, _ in _pages(path, None))
            bits = _image_bits(path, int(highest), options.bits_stored)
        if pixels.dtype != np.uint8:
            _image_bits(path, int(pixels.max()), bits)
            pixels = pixels.astype(np.uint8 if bits == 8 else np.uint16)
        yield Frame(pixels, 8 if pixels.dtype == np.uint8 else bits or 8, index, FrameMetadata(num_frames=num_frames))


def _image_bits(path: Path, highest: int, bits_stored: int | None) -> int:
    try:
        return bits_for(highest, bits_stored)
    except ValueError as error:
        raise FrameReadError(f"`{path}`: {error}") from error


def _pages(path: Path, bits_stored: int | None) -> Iterator[tuple[np.ndarray, int]]:
    """Grey levels of each page, and the number of pages."""
    index = 0
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            num_frames = getattr(image, "n_frames", 1)
            for index in range(num_frames):
                if index:
                    image.seek(index)
                is_deep_colour = has_deep_colour(image)
                image.load()
                yield _page_levels(image, path, bits_stored, is_deep_colour), num_frames
    except FrameReadError:
        raise
    except UNREADABLE as error:
        where = f" from page {index} on" if index else ""
        raise FrameReadError(
            f"`{path}` cannot be read as an image{where} ({type(error).__name__}: {error}). Restore or remove the "
            "file."
        ) from error


def _page_levels(image: Image.Image, path: Path, bits_stored: int | None, is_deep_colour: bool) -> np.ndarray:
    try:
        # `bits_stored` does not apply to 8-bit pages
        check_levels(image, is_deep_colour, bits_stored if is_deep_colour else None)
    except ValueError as error:
        raise FrameReadError(f"`{path}`: {error}") from error
    upright = ImageOps.exif_transpose(image)
    if not upright.mode.startswith(("I", "F")):
        return np.array(upright.convert("L"))
    levels = np.array(upright)
    if levels.dtype.kind == "f":
        levels = _whole_levels(levels, path)
    if levels.min() < 0:
        raise FrameReadError(f"`{path}`: levels must be >= 0, got a minimum of {levels.min()}. Add an offset first.")
    return levels


def _whole_levels(levels: np.ndarray, path: Path) -> np.ndarray:
    """Convert floats to integers: unchanged, or [0, 1] scaled to 16 bits."""
    if np.isfinite(levels).all() and (levels == np.rint(levels)).all():
        return levels.astype(np.int64)
    if not (levels.min() >= 0 and levels.max() <= 1):
        raise FrameReadError(
            f"`{path}`: levels are {levels.min():g} to {levels.max():g}; expected integers, or floats in [0, 1]. "
            "Save the grey levels before normalisation."
        )
    return np.rint(levels.astype(np.float64) * 65535).astype(np.uint16)


def to_uint8(pixels: np.ndarray, bits_stored: int | None = None) -> np.ndarray:
    """Scale grey levels to integers in 0..255, by the rules of the image processor and with its warnings.

    Without `bits_stored` the bit depth is the smallest of 8, 10, 12, 14 and 16 bits that fits the maximum, and floats
    up to 1 are treated as [0, 1]; the assumption is logged.

    Args:
        pixels (`np.ndarray`): Grey levels of one frame or one cine, any shape, integer or float, finite, >= 0.
        bits_stored (`int`, *optional*): Number of bits used for the grey level, 8 to 32.

    Returns:
        `np.ndarray` of the same shape: `uint8`; 0 maps to 0 and `2**bits_stored - 1` to 255, rounded.

    Raises:
        ValueError: If a value is negative, not finite or exceeds the bit depth.

    Example:
        >>> to_uint8(np.array([[0, 512, 1023]], dtype=np.uint16), bits_stored=10)
        array([[  0, 128, 255]], dtype=uint8)
    """
    # floats may slightly exceed the range after resampling
    return np.rint(scale_to_8_bit(pixels, bits_stored).clip(0, 255)).astype(np.uint8)
