"""Reading of images as frames, and scaling of any bit depth to 0..255.

Shared by the image processor and the file readers: the rules for bit depth, mask values and images that Pillow reads
incorrectly. Copied to the Hub together with the image processor; only needs Pillow.
"""

import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from transformers.image_utils import ChannelDimension
from transformers.utils import logging

from .configuration_unext import IGNORED_LABEL


logger = logging.get_logger(__name__)

ImageLike = Image.Image | np.ndarray | torch.Tensor | str | os.PathLike[str]
ImagesLike = ImageLike | list[Any] | tuple[Any, ...]

CHANNELS = (1, 3, 4)
BIT_DEPTHS = (8, 10, 12, 14, 16)
SHORTEST_CINE_SIDE = 16  # below this, the axis of a (T, H, W) array is more likely a wrong number of channels
TOLERANCE = 0.01  # relative to the range, for overshoot of resampling and rounding
PHOTOMETRIC_TAG = 262  # of a TIFF; 0 is MinIsWhite
DARKEST_COLOUR = 64  # of 255; 14-bit pixels read as 16-bit ones stay below
LUMA = (19595, 38470, 7471)  # weights of red, green and blue in grey (ITU-R BT.601), in 1/65536, as in Pillow


def to_grey(colour: np.ndarray, axis: int = -1) -> np.ndarray:
    """Convert colour frames to grey with the luma of Pillow's `convert("L")`; grey images stored as colour are
    unchanged.

    Args:
        colour (`np.ndarray` with 3 or 4 channels on `axis`): Red, green and blue; alpha is ignored. Any dtype.
        axis (`int`, *optional*, defaults to -1): Channel axis.

    Returns:
        `np.ndarray` of the same shape without `axis`: Same dtype; integers are rounded.

    Example:
        >>> to_grey(np.array([[[7, 7, 7], [255, 0, 0]]], dtype=np.uint8))
        array([[ 7, 76]], dtype=uint8)
    """
    red, green, blue = (colour.take(channel, axis=axis) for channel in range(3))
    if colour.dtype.kind == "f":
        # from the differences to green, so that equal channels give exactly their value
        share_of_red, _, share_of_blue = (weight / 65536 for weight in LUMA)
        return (green + (red - green) * share_of_red + (blue - green) * share_of_blue).astype(colour.dtype)
    weighted = sum(part.astype(np.uint64) * weight for part, weight in zip((red, green, blue), LUMA, strict=True))
    return ((weighted + 0x8000) >> 16).astype(colour.dtype)


def _depth(highest: int, bits_stored: int | None, do_check_input: bool) -> int:
    """Bit depth: as stated if it fits the maximum, otherwise inferred with a warning."""
    bits = bits_stored or next((bits for bits in BIT_DEPTHS if not highest >> bits), BIT_DEPTHS[-1])
    if highest >> bits:
        raise ValueError(
            f"Pixels reach {highest}, which {bits} bits cannot hold (at most {(1 << bits) - 1}). "
            "Pass the true depth as `bits_stored`."
        )
    if bits_stored is None and do_check_input:
        logger.warning_once(
            f"Bit depth unknown: {bits} bits are assumed, the smallest of {BIT_DEPTHS} that hold the pixels. "
            "Pass the true depth as `bits_stored` (DICOM: Bits Stored)."
        )
    return bits


def _scale_integers(array: np.ndarray, bits_stored: int | None, do_check_input: bool) -> np.ndarray:
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0:
        raise ValueError(
            f"Pixels must be >= 0, got a minimum of {lowest} in {array.dtype}. Add the offset of signed pixels first "
            "(DICOM: modality transformation); do not pass an image that is already normalised."
        )
    bits = _depth(highest, bits_stored, do_check_input)
    return array.astype(np.uint8) if bits == 8 else array.astype(np.float32) * np.float32(255 / ((1 << bits) - 1))


def looks_normalised(array: np.ndarray) -> bool:
    """Whether floats (any shape) are negative beyond rounding errors; `False` if any is NaN."""
    return array.dtype.kind == "f" and bool(array.min() < -TOLERANCE * max(float(array.max()), 0.0))


def normalised_message(subject: str, array: np.ndarray) -> str:
    """Error message for floats (any shape) that look normalised; `subject` includes its verb."""
    return (
        f"{subject} already normalised: float pixels with minimum {array.min():.3g}, mean {array.mean():.3g} and "
        f"standard deviation {array.std():.3g}. Expected raw pixels >= 0. Pass the frame itself, or "
        "`do_rescale=False, do_normalize=False` to have it only resized."
    )


def check_floats(array: np.ndarray, may_be_negative: bool) -> float:
    """Maximum of an array (any shape) that is finite and not negative beyond rounding errors."""
    lowest, highest = float(array.min()), float(array.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError(
            f"Pixels must be finite, got {np.count_nonzero(~np.isfinite(array))} NaN or infinite of {array.size}. "
            "Replace them first."
        )
    if not may_be_negative and looks_normalised(array):
        raise ValueError(normalised_message("The image looks", array))
    return highest


def _scale_floats(array: np.ndarray, bits_stored: int | None, do_check_input: bool) -> np.ndarray:
    highest = check_floats(array, may_be_negative=not do_check_input)
    if highest <= 1 + TOLERANCE:
        if do_check_input:
            logger.warning_once(
                "Float frames in [0, 1] are multiplied by 255 before `rescale_factor` is applied. Pass frames in "
                "0..255, or `do_rescale=False` to have floats taken as they are."
            )
        factor = 255.0
    elif bits_stored is None and highest <= 255 * (1 + TOLERANCE):
        factor = 1.0
    else:
        factor = 255 / ((1 << _depth(math.ceil(highest), bits_stored, do_check_input)) - 1)
    return array.astype(np.float32) * np.float32(factor)


def scale_to_8_bit(array: np.ndarray, bits_stored: int | None = None, do_check_input: bool = True) -> np.ndarray:
    """Scale pixels of any dtype to 0..255, without clipping or rounding to 8 bits.

    Args:
        array (`np.ndarray` of any shape):
            Pixels of one image or one cine, so that all of its frames are scaled alike. `uint8` is returned unchanged;
            `bool` becomes 0 and 255; integers are treated as unsigned with `bits_stored` bits. Floats up to 1 are
            treated as [0, 1], others up to 255 as 0..255, and larger ones as integers.
        bits_stored (`int`, *optional*):
            Number of bits used per pixel, 8 to 32 (DICOM: Bits Stored). `None` infers the smallest of 8, 10, 12, 14
            and 16 that holds the maximum, with a warning. Ignored for `uint8`, `bool` and floats in [0, 1].
        do_check_input (`bool`, *optional*, defaults to `True`):
            Whether to warn about assumptions and to reject floats that look normalised.

    Returns:
        `np.ndarray` of the same shape: `uint8` for 8-bit pixels, otherwise `float32`, in 0..255.

    Raises:
        ValueError: If pixels are negative, not finite, not numbers, or do not fit in `bits_stored`.

    Example:
        >>> scale_to_8_bit(np.array([[0, 4095]], dtype=np.uint16), bits_stored=12)
        array([[  0., 255.]], dtype=float32)
    """
    if bits_stored is not None and not 8 <= bits_stored <= 32:
        raise ValueError(f"`bits_stored` must be in 8..32, or None to infer it, got {bits_stored}.")
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "f":
        return _scale_floats(array, bits_stored, do_check_input)
    if array.dtype.kind in "iu":
        return _scale_integers(array, bits_stored, do_check_input)
    raise ValueError(f"Pixels must be bool, integers or floats, got {array.dtype}. Convert the array first.")


class MaskError(ValueError):
    """A mask cannot be read or has invalid values; the message names the mask, the values and the remedy."""


class MaskRule(NamedTuple):
    """Meaning of the values of a mask.

    Args:
        num_labels (`int`, defaults to 2): Number of classes, including the background.
        ignore_white (`bool`, defaults to `False`):
            Whether 255 in a two-class mask marks pixels to ignore, so that only 1 is foreground. With more classes it
            always does.
    """

    num_labels: int = 2
    ignore_white: bool = False


def check_mask(levels: np.ndarray, name: str, rule: MaskRule) -> np.ndarray:
    """Validate the values of a mask and convert them to class ids.

    Args:
        levels (`np.ndarray` of any shape): Integers.
        name (`str`): Name of the mask in messages.
        rule (`MaskRule`): Number of classes, and meaning of 255.

    Returns:
        `np.ndarray` of the same shape: `uint8`, ids below `num_labels`, or 255 for pixels to ignore.

    Raises:
        MaskError: If a value is invalid, or a two-class mask contains both 1 and 255.
    """
    found = set(np.unique(levels).tolist())
    two_classes = rule.num_labels == 2 and not rule.ignore_white
    known = {0, 1, IGNORED_LABEL} if two_classes else {*range(rule.num_labels), IGNORED_LABEL}
    if found - known:
        raise MaskError(_unknown_levels(sorted(found - known), name, rule, two_classes))
    if not two_classes:
        return levels.astype(np.uint8)
    if {1, IGNORED_LABEL} <= found:
        raise MaskError(
            f"The mask {name} holds both 1 and 255, and either could be the foreground. Save it with 0 and 255; if "
            "255 marks pixels to ignore, set ignore_white."
        )
    return (levels != 0).astype(np.uint8)


def _unknown_levels(unknown: list[int], name: str, rule: MaskRule, two_classes: bool) -> str:
    listed = ", ".join(str(level) for level in unknown[:5])
    if two_classes:
        return (
            f"The mask {name} has the levels {listed}, expected 0 and 255, or 0 and 1. Resizing with interpolation "
            "and JPEG leave levels in between: threshold the mask and save it as PNG."
        )
    return (
        f"The mask {name} has the ids {listed}, expected 0 to {rule.num_labels - 1}, or {IGNORED_LABEL} for pixels to "
        "ignore. Correct the mask, or name all classes."
    )


def flatten(images: ImagesLike) -> Iterator[ImageLike]:
    """Flatten nested lists of images; an array of any shape is one image."""
    if isinstance(images, list | tuple):
        for image in images:
            yield from flatten(image)
    else:
        yield images


def has_deep_colour(image: Image.Image) -> bool:
    """Whether an opened, not yet loaded image has 16 bits per colour channel."""
    # only the decoder arguments, such as "RGB;16B", show this; they are gone after loading
    return not image.mode.startswith(("I", "F")) and ";16" in str([tile[3] for tile in getattr(image, "tile", [])])


def check_levels(image: Image.Image, is_deep_colour: bool, bits_stored: int | None = None) -> None:
    """Reject images whose values Pillow silently reads incorrectly.

    Args:
        image (`PIL.Image.Image`): The image, loaded or not.
        is_deep_colour (`bool`): Result of [`has_deep_colour`] before the image was loaded.
        bits_stored (`int`, *optional*): Number of bits used per pixel, as stated by the user.

    Raises:
        ValueError: If the image has more than 8 bits and stores white as 0 (TIFF MinIsWhite), which Pillow only
        inverts at 8 bits; or if its colour has 16 bits per channel, of which Pillow keeps the upper 8, and these do
        not contain the values: `bits_stored` other than 16, or no value above a quarter of the range.
    """
    if image.mode.startswith(("I", "F")) and getattr(image, "tag_v2", {}).get(PHOTOMETRIC_TAG) == 0:
        raise ValueError(
            "The image stores white as 0 (MinIsWhite), which is not read above 8 bits. Save it with black as 0."
        )
    if is_deep_colour:
        highest = max(image.getchannel(band).getextrema()[1] for band in image.getbands() if band != "A")
        if bits_stored not in (None, 16) or highest < DARKEST_COLOUR:
            raise ValueError(
                "The image has 16 bits per colour channel, of which only the upper 8 can be read (largest level "
                f"{highest} of 255, bits_stored={bits_stored}). Save it as 16-bit grey or as 8-bit."
            )


def _pil_to_array(image: Image.Image, keep_ids: bool, bits_stored: int | None) -> np.ndarray:
    """Pixels of a Pillow image, (H, W) or (H, W, C), without loss of bits; palette indices if `keep_ids`.

    Rotated according to its EXIF orientation, like `load_image` of transformers.
    """
    check_levels(image, has_deep_colour(image), bits_stored)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "La"):
        image = image.getchannel(0)
    elif image.mode in ("P", "PA"):
        # via RGBA, otherwise Pillow warns about palettes with transparency
        image = image.getchannel(0) if keep_ids else image.convert("RGBA").convert("RGB")
    elif image.mode not in ("1", "L", "I", "F", "RGB", "RGBA") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    return np.asarray(image)


def _stack_pages(pages: list[np.ndarray], source: str) -> np.ndarray:
    shapes = {page.shape for page in pages}
    if len(shapes) > 1:
        raise ValueError(
            f"{source} has pages of different shapes, {sorted(shapes)}. Pass the pages you want as a list."
        )
    array = np.stack(pages) if len(pages) > 1 else pages[0][None]
    return np.moveaxis(array, -1, 1) if array.ndim == 4 else array[:, None]


def _read_file(path: str, keep_ids: bool, bits_stored: int | None) -> np.ndarray:
    # not `transformers.image_utils.load_image`, which converts to 8-bit RGB and saturates deeper images
    if "://" in path:
        raise ValueError(f"Expected a local path, got the address {path!r}. Download the image first.")
    try:
        # opened here, because Pillow memory-maps an uncompressed TIFF opened by name and rotates the map incorrectly
        with open(path, "rb") as file, Image.open(file) as image:
            pages = [_pil_to_array(page, keep_ids, bits_stored).copy() for page in ImageSequence.Iterator(image)]
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{path!r} is no image that Pillow opens. Expected PNG, TIFF, JPEG and the like; read DICOM files with a "
            "DICOM reader and pass the pixel array."
        ) from error
    except OSError as error:
        raise type(error)(f"{path!r} cannot be read: {error}. Pass the path of a whole image file.") from error
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{path!r}: {error}") from error
    return _stack_pages(pages, repr(path))


def _to_frame_axes(array: np.ndarray, data_format: str | None, first: tuple[int, ...]) -> np.ndarray:
    """(H, W), (C, H, W), (H, W, C), (T, H, W), (T, C, H, W) or (T, H, W, C) to (T, C, H, W), as a view."""
    if array.ndim not in (2, 3, 4):
        raise ValueError(
            f"An image must have 2 to 4 axes, got shape {array.shape}. Pass (H, W), (C, H, W), (T, H, W), (T, C, H, "
            "W), or a list of these."
        )
    if array.ndim == 2:
        return array[None, None]
    if data_format is not None:
        channels_first = ChannelDimension(data_format) == ChannelDimension.FIRST
    else:
        channels_first = True if array.shape[-3] in first else False if array.shape[-1] in CHANNELS else None
    if channels_first is None and array.ndim == 3 and min(array.shape[1:]) >= SHORTEST_CINE_SIDE:
        return array[:, None]
    frames = array if array.ndim == 4 else array[None]
    frames = np.moveaxis(frames, -1, 1) if channels_first is False else frames
    if channels_first is None or frames.shape[1] not in CHANNELS:
        raise ValueError(
            f"A frame must have 1, 3 or 4 channels on its first or last axis, got shape {array.shape} with "
            f"input_data_format={data_format}. Pass a grey or RGB(A) image, or a cine as (T, H, W, 1)."
        )
    return frames


def _to_array(image: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(image, torch.Tensor):
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy(force=True)
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"An image must be a PIL image, a numpy array, a torch tensor or a path, got {type(image).__name__}. "
            "Convert it, for example with `numpy.asarray`."
        )
    return image


def read_frames(
    image: ImageLike, data_format: str | None = None, keep_ids: bool = False, bits_stored: int | None = None
) -> np.ndarray:
    """Read an image or cine as frames in its own dtype.

    Args:
        image (PIL image, `np.ndarray`, `torch.Tensor` or local path):
            An image or a cine; arrays of shape (H, W), (C, H, W), (H, W, C), (T, H, W), (T, C, H, W) or (T, H, W, C).
        data_format (`str`, *optional*): Position of the channels of an array, `"channels_first"` or `"channels_last"`.
        keep_ids (`bool`, *optional*, defaults to `False`): Whether it is a label map, whose palette colours are ignored.
        bits_stored (`int`, *optional*): Number of bits used per pixel; values are not scaled here.

    Returns:
        `np.ndarray` of shape (T, C, H, W).

    Raises:
        TypeError: If it is not an image.
        ValueError: If it has wrong axes or channels, is below 2 x 2 pixels, or as in [`check_levels`].
        OSError: If a file cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        frames = _read_file(os.fspath(image), keep_ids, bits_stored)
    elif isinstance(image, Image.Image):
        frames = _stack_pages([_pil_to_array(image, keep_ids, bits_stored)], "The image")
    else:
        # label maps have no colour: an array (3, H, W) is three maps, while (H, W, 3) is one image
        frames = _to_frame_axes(_to_array(image), data_format, first=(1,) if keep_ids else CHANNELS)
    if frames.size == 0 or min(frames.shape[-2:]) < 2:
        raise ValueError(
            f"A frame must be at least 2 x 2 pixels, got {frames.shape[-2]} x {frames.shape[-1]} "
            f"({frames.shape[0]} frames). Check how it was read or cropped."
        )
    return frames
