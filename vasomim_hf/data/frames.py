"""Frames of angiograms from image files: grey, 8 bits, whatever the file holds.

Kinds of input are one small function each, so that another kind of file gets another function beside them.
"""

import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..image_processing_reading import check_levels, has_deep_colour, scale_to_8_bit


logger = logging.getLogger(__name__)

FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

# Pillow raises any of these on a damaged file, depending on the format and on where the damage is.
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


class FrameReadError(ValueError):
    """A file cannot be read as a frame; the message names it, what was found and what to do."""


class FolderScan(NamedTuple):
    """What a folder holds: frames, files of other kinds, and hidden files, each sorted."""

    frames: list[Path]
    strays: list[Path]
    hidden: list[Path]


def scan_folder(folder: str | os.PathLike) -> FolderScan:
    """Sort the files of a folder and its sub-folders into frames and others, by name.

    Args:
        folder (`str` or `os.PathLike`): Where to look. Links to folders are not followed, hidden folders are skipped.

    Returns:
        `FolderScan`: Paths of frames, of stray files and of hidden files.

    Raises:
        NotADirectoryError: If there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(
            f"`{root}` is not a folder of frames. Check the path; a single file is read as it is."
        )
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
    """List the frames of a folder and its sub-folders, sorted, so that every machine sees the same order.

    Files of other kinds are left out with one log line that counts them; [`scan_folder`] returns them.

    Args:
        folder (`str` or `os.PathLike`): Where to look for png, jpg, jpeg, bmp, tif and tiff files, in any case.

    Returns:
        `list[Path]`: At least one path, each beginning with `folder`.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If it holds no frame.
    """
    scan = scan_folder(folder)
    others = len(scan.strays) + len(scan.hidden)
    if not scan.frames:
        raise ValueError(
            f"`{folder}` holds no frame, {f'but {others} other files' if others else 'and no other file'}. "
            f"Expected files that end in {', '.join(FRAME_SUFFIXES)}, also in sub-folders."
        )
    if scan.strays:
        logger.warning("%s: left out %d files that are no frames, e.g. %s", folder, others, scan.strays[0].name)
    elif others:
        logger.info("%s: left out %d hidden files", folder, others)
    return scan.frames


def read_frame(path: str | os.PathLike, bits_stored: int | None = None) -> np.ndarray:
    """Read one grey frame of 8 bits from an image file.

    Colour becomes grey as in Pillow's `convert("L")` (a grey picture saved as colour keeps its exact levels), alpha is
    ignored. Deep images (16-bit, 32-bit, float) are scaled by their bit depth as in [`to_uint8`].

    Args:
        path (`str` or `os.PathLike`): Image file with one frame.
        bits_stored (`int`, *optional*):
            Bits that carry the grey level in a deep image, such as 10 for 10 bits stored in 16; `None` infers them.
            8-bit files do not need it and ignore it.

    Returns:
        `np.ndarray` of shape `(height, width)`: `uint8`, 0 to 255.

    Raises:
        FrameReadError: If the file is damaged, holds several frames or cannot be scaled, or if Pillow reads other levels
            than it means, see [`~image_processing_reading.check_levels`].
    """
    try:
        with Image.open(path) as image:
            is_deep_colour = has_deep_colour(image)
            image.load()
            return _grey(image, Path(path), bits_stored, is_deep_colour)
    except FrameReadError:
        raise
    except UNREADABLE as error:
        raise FrameReadError(
            f"`{path}` cannot be read as an image ({type(error).__name__}: {error}). Restore or remove the file."
        ) from error


def _grey(image: Image.Image, path: Path, bits_stored: int | None, is_deep_colour: bool) -> np.ndarray:
    number = getattr(image, "n_frames", 1)
    if number != 1:
        raise FrameReadError(f"`{path}` holds {number} frames, expected one. Save each frame as a file of its own.")
    try:
        check_levels(image, is_deep_colour, bits_stored)
        is_deep = image.mode.startswith(("I", "F"))
        return to_uint8(np.asarray(image), bits_stored) if is_deep else np.array(image.convert("L"))
    except ValueError as error:
        raise FrameReadError(f"`{path}`: {error}") from error


def to_uint8(pixels: np.ndarray, bits_stored: int | None = None) -> np.ndarray:
    """Scale grey levels to whole numbers of 0..255, by the image processor's rule and with its warnings.

    Without `bits_stored` the depth is the smallest of 8, 10, 12, 14 and 16 bits that holds the largest level, and
    floats up to 1 are the unit range; a log line names the assumption.

    Args:
        pixels (`np.ndarray`): Grey levels of one frame or of one run, any shape, integer or float, finite, >= 0.
        bits_stored (`int`, *optional*): Bits that carry the grey level, 8 to 32.

    Returns:
        `np.ndarray` of the same shape: `uint8`; level 0 is 0 and `2**bits_stored - 1` is 255, rounded.

    Raises:
        ValueError: If a level is negative, not finite or above the bit depth.

    Example:
        >>> to_uint8(np.array([[0, 512, 1023]], dtype=np.uint16), bits_stored=10)
        array([[  0, 128, 255]], dtype=uint8)
    """
    # floats may lie beyond the range by what resampling left
    return np.rint(scale_to_8_bit(pixels, bits_stored).clip(0, 255)).astype(np.uint8)
