"""Paired crop and flip of a frame and its vesselness on the CPU, and normalisation of batches on the device."""

import math
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch

from ..import_utils import require


CROP_SCALE = (0.2, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10


@dataclass(frozen=True)
class Crop:
    """A crop box and whether the crop is flipped.

    Args:
        top, left (`int`): First row and column, in pixels.
        height, width (`int`): Size of the box in pixels.
        flip (`bool`, defaults to `False`): Whether to flip horizontally after resizing.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def random_crop(
    frame_size: tuple[int, int],
    generator: np.random.Generator,
    scale: tuple[float, float] = CROP_SCALE,
    ratio: tuple[float, float] = CROP_RATIO,
    flip_probability: float = 0.5,
) -> Crop:
    """Sample a crop as torchvision's `RandomResizedCrop` does, and a horizontal flip.

    The area fraction is uniform in `scale` and the log of width / height uniform in the log of `ratio`; after ten
    failed attempts, the largest central box with a valid ratio is used.

    Args:
        frame_size (`tuple[int, int]`): Height and width of the frame in pixels.
        generator (`np.random.Generator`): Source of randomness.
        scale (`tuple[float, float]`, defaults to `(0.2, 1.0)`): Minimum and maximum fraction of the area.
        ratio (`tuple[float, float]`, defaults to `(3 / 4, 4 / 3)`): Minimum and maximum width / height.
        flip_probability (`float`, defaults to 0.5): Probability of the flip, in [0, 1].

    Returns:
        `Crop`: Box inside the frame.

    Example:
        >>> crop = random_crop((512, 512), np.random.default_rng(0))
        >>> 0.2 <= crop.height * crop.width / 512**2 <= 1.0
        True
    """
    height, width = frame_size
    flip = bool(generator.random() < flip_probability)
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(CROP_TRIES):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(*log_ratio))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(generator.integers(0, height - box_height + 1))
            left = int(generator.integers(0, width - box_width + 1))
            return Crop(top, left, box_height, box_width, flip)
    return _central_crop(frame_size, ratio, flip)


def _central_crop(frame_size: tuple[int, int], ratio: tuple[float, float], flip: bool) -> Crop:
    height, width = frame_size
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        box_width = max(1, round(height * ratio[1]))
    return Crop((height - box_height) // 2, (width - box_width) // 2, box_height, box_width, flip)


def crop_frame(frame: np.ndarray, crop: Crop, size: tuple[int, int]) -> np.ndarray:
    """Crop a frame and resize it with antialiasing.

    The interpolation depends on the downscaling factor: cubic below 1.15, linear up to 1.6 (its two taps then cover all
    source pixels), area beyond. In its range, each is the closest of the three to Pillow's antialiased bicubic, and all
    are several times faster.

    Args:
        frame (`np.ndarray` of shape `(height, width)`): Grey frame, `uint8`; may be a read-only memory map.
        crop (`Crop`): Box inside the frame.
        size (`tuple[int, int]`): Height and width of the result in pixels.

    Returns:
        `np.ndarray` of shape `size`, `uint8`, contiguous.

    Example:
        >>> crop_frame(np.full((8, 8), 7, np.uint8), Crop(0, 0, 4, 4), (2, 2)).tolist()
        [[7, 7], [7, 7]]
    """
    cv2 = require("cv2", "data")
    box = frame[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    resized = cv2.resize(box, size[::-1], interpolation=_interpolation(cv2, crop, size))
    return cv2.flip(resized, 1) if crop.flip else resized


def _interpolation(cv2: ModuleType, crop: Crop, size: tuple[int, int]) -> int:
    shrinking = math.sqrt(crop.height * crop.width / (size[0] * size[1]))
    if shrinking < 1.15:
        return cv2.INTER_CUBIC
    return cv2.INTER_LINEAR if shrinking < 1.6 else cv2.INTER_AREA


def crop_vesselness(vesselness: np.ndarray, crop: Crop, size: tuple[int, int]) -> np.ndarray:
    """Crop a vessel mask and resize it with nearest-neighbour interpolation, so values are unchanged.

    Args:
        vesselness (`np.ndarray` of shape `(height, width)`): `uint8` or `bool`, same size as the frame.
        crop (`Crop`): Crop passed to `crop_frame`.
        size (`tuple[int, int]`): Height and width of the result in pixels.

    Returns:
        `np.ndarray` of shape `size`, `uint8`.
    """
    cv2 = require("cv2", "data")
    box = vesselness[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width].view(np.uint8)
    resized = cv2.resize(box, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return cv2.flip(resized, 1) if crop.flip else resized


def normalize_frames(
    pixels: torch.Tensor, mean: list[float] | tuple[float, ...], std: list[float] | tuple[float, ...]
) -> torch.Tensor:
    """Convert a batch of grey frames to `pixel_values`, on their device.

    Args:
        pixels (`torch.Tensor` of shape `(batch_size, 1, height, width)`): `uint8`, 0 is black.
        mean (`list[float]`): Mean of each channel, in [0, 1]: `image_processor.image_mean`.
        std (`list[float]`): Standard deviation of each channel: `image_processor.image_std`.

    Returns:
        `torch.Tensor` of shape `(batch_size, len(mean), height, width)`: `float32`, `(pixels / 255 - mean) / std`.

    Raises:
        ValueError: If the input is not `uint8` with one channel.

    Example:
        >>> normalize_frames(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), [0.5, 0.0], [0.5, 1.0]).flatten().tolist()
        [1.0, 1.0]
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 1:
        raise ValueError(
            f"Expected grey frames of shape (batch_size, 1, height, width), uint8, got {tuple(pixels.shape)}, "
            f"{pixels.dtype}. Pass them before normalisation."
        )
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), pixels.device)
    return pixels * scale - shift


@lru_cache(maxsize=8)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    # cached: transferring numbers to an accelerator in each step would force a synchronisation
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=device)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=device)
    return scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
