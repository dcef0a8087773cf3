"""Read masks and validate their values.

A two-class mask has 0 for background and 1 or 255 for foreground. A mask with more classes has class ids, and 255
marks pixels to ignore. Other values are an error that lists them: masks with intermediate values were resized with
interpolation or saved as JPEG, and only the user can choose the threshold.
"""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ...image_processing_reading import MaskError, MaskRule, check_mask
from .files import UNREADABLE


class UnreadableMaskError(MaskError, OSError):
    """A mask is damaged or missing, so its values are unknown."""


def read_mask(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a two-class mask from an image file.

    Args:
        path (`str` or `os.PathLike`): Image file: 0 is background; either 1 or 255, not both, is foreground.
        size (`tuple[int, int]`, *optional*): Required height and width, those of its frame.

    Returns:
        `np.ndarray` of shape `(height, width)`: `bool`, `True` for foreground.

    Raises:
        MaskError: If its size or values are wrong; `UnreadableMaskError`, which is also an `OSError`, if the file is
            damaged.
    """
    return read_label_map(path, size).astype(bool)


def read_label_map(
    path: str | os.PathLike, size: tuple[int, int] | None = None, rule: MaskRule | None = None
) -> np.ndarray:
    """Read the class ids of a mask from an image file.

    Args:
        path (`str` or `os.PathLike`): Image file; for palette images, the palette indices are the ids.
        size (`tuple[int, int]`, *optional*): Required height and width, those of its frame.
        rule (`MaskRule`, *optional*): Meaning of the values; `None` is a two-class mask.

    Returns:
        `np.ndarray` of shape `(height, width)`: `uint8`, ids below `num_labels`, or 255 for pixels to ignore.

    Raises:
        MaskError: If its size or values are wrong; `UnreadableMaskError`, which is also an `OSError`, if the file is
            damaged.
    """
    return to_label_map(Path(path), str(path), size, rule)


def to_mask(mask: Any, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Convert an image, an array, the bytes or the path of a file to a two-class mask; see [`read_mask`].

    Args:
        mask (`PIL.Image.Image`, `np.ndarray` of shape `(height, width)`, `bytes` or `Path`): The mask.
        name (`str`): Name in messages.
        size (`tuple[int, int]`, *optional*): Required height and width.

    Returns:
        `np.ndarray` of shape `(height, width)`: `bool`.

    Raises:
        MaskError: See [`read_mask`].

    Example:
        >>> to_mask(np.array([[0, 255]], dtype=np.uint8), "a").tolist()
        [[False, True]]
    """
    return to_label_map(mask, name, size).astype(bool)


def to_label_map(
    mask: Any, name: str, size: tuple[int, int] | None = None, rule: MaskRule | None = None
) -> np.ndarray:
    """Convert an image, an array, the bytes or the path of a file to class ids; see [`read_label_map`].

    Args:
        mask (`PIL.Image.Image`, `np.ndarray` of shape `(height, width)`, `bytes` or `Path`): The mask.
        name (`str`): Name in messages.
        size (`tuple[int, int]`, *optional*): Required height and width.
        rule (`MaskRule`, *optional*): Meaning of the values; `None` is a two-class mask.

    Returns:
        `np.ndarray` of shape `(height, width)`: `uint8`, ids below `num_labels`, or 255 for pixels to ignore.

    Raises:
        MaskError: See [`read_label_map`].

    Example:
        >>> to_label_map(np.array([[0, 3, 255]]), "a", rule=MaskRule(num_labels=4)).tolist()
        [[0, 3, 255]]
    """
    levels = _levels(mask, name)
    if size is not None and levels.shape != tuple(size):
        raise MaskError(
            f"The mask {name} is {levels.shape[0]}×{levels.shape[1]}, its frame {size[0]}×{size[1]} (height×width). "
            "Save the mask at the size of its frame."
        )
    return check_mask(levels, name, rule or MaskRule())


def _levels(mask: Any, name: str) -> np.ndarray:
    """Integers of shape (H, W)."""
    if mask is None:
        raise UnreadableMaskError(f"The mask {name} is missing. Remove the frame, or draw an empty mask.")
    if isinstance(mask, np.ndarray):
        return _whole_levels(mask, name)
    try:
        if isinstance(mask, Image.Image):
            return _levels_of_image(mask, name)
        # opened here, because Pillow memory-maps an uncompressed TIFF opened by name and rotates the map incorrectly
        with io.BytesIO(mask) if isinstance(mask, bytes) else open(mask, "rb") as file, Image.open(file) as image:
            return _levels_of_image(image, name)
    except MaskError:
        raise
    except UNREADABLE as error:
        raise UnreadableMaskError(
            f"The mask {name} cannot be read ({type(error).__name__}: {error}). Restore or remove the file."
        ) from error


def _levels_of_image(image: Image.Image, name: str) -> np.ndarray:
    num_pages = getattr(image, "n_frames", 1)
    if num_pages != 1:
        raise MaskError(f"The mask {name} has {num_pages} pages, expected one. Save each mask in a separate file.")
    upright = ImageOps.exif_transpose(image)
    # palette indices are ids, so they are read before any conversion to colour
    array = np.asarray(upright.getchannel(0) if upright.mode in ("P", "PA", "LA", "La") else upright)
    return _whole_levels(array, name)


def _whole_levels(array: np.ndarray, name: str) -> np.ndarray:
    """Values of a grey image, possibly stored as colour; alpha is ignored."""
    if array.ndim == 3 and array.shape[-1] in (1, 3, 4):
        if (array[..., 1:3] != array[..., :1]).any():
            raise MaskError(f"The mask {name} is in colour. Save the class ids as grey levels.")
        array = array[..., 0]
    if array.ndim != 2:
        raise MaskError(f"The mask {name} has the shape {array.shape}, expected (height, width).")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise MaskError(f"The mask {name} has fractional values, expected integers. Threshold it first.")
    return array.astype(np.int64)
