"""Batched crop, flip and antialiased resize of frames and vessel masks on the GPU.

A resize along one axis is a product with a weight matrix. Each frame has its own matrices, for its own crop box, so
two batched products process the whole batch without a loop.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from ..import_utils import require
from .crops import Crop


# Keys' cubic kernel with a = -0.5, as in Pillow: two source pixels on each side, wider when downscaling
CUBIC_A = -0.5
CUBIC_SUPPORT = 2.0


def crop_batch(
    pixels: torch.Tensor, vesselness: torch.Tensor, crops: Sequence[Crop], size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop each frame and its vessel mask to that frame's own box, resize both, and flip them where `flip` is set.

    Frames are resized like Pillow's `resize(size, BICUBIC, box=...)`: antialiased, including pixels around the box,
    and rounded after each axis; the result differs from Pillow's by at most one grey level. Mask pixels are selected
    exactly as in [`crop_vesselness`].

    Args:
        pixels (`torch.Tensor` of shape `(batch_size, 1, height, width)`): Grey frames, `uint8`, on any device.
        vesselness (`torch.Tensor` of the same shape): Vessel masks, `uint8` or `bool`, on the same device.
        crops (sequence of `Crop`): One per frame, for example `[dataset.crop(epoch, index) for index in indices]` with a
            `FrameCacheDataset`, for the same boxes as its own crops.
        size (`tuple[int, int]`): Height and width of the result in pixels.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Frames of shape `(batch_size, 1, *size)`, `uint8`, and masks of that shape, of
        the dtype of `vesselness`.

    Raises:
        ValueError: If a tensor has another shape or dtype, or a box is outside its frame.

    Example:
        >>> frames = torch.full((2, 1, 8, 8), 7, dtype=torch.uint8)
        >>> crops = [Crop(0, 0, 4, 4), Crop(1, 2, 7, 5, flip=True)]
        >>> crop_batch(frames, frames > 3, crops, (2, 2))[0].flatten().tolist()
        [7, 7, 7, 7, 7, 7, 7, 7]
    """
    _check(pixels, vesselness, crops)
    boxes = _boxes(crops, pixels.device)
    flips, (top, left, height, width) = boxes[:, 4].bool(), boxes[:, :4].unbind(1)
    across = _weights(left, width, pixels.shape[3], size[1])
    across = torch.where(flips[:, None, None], across.flip(1), across)
    down = _weights(top, height, pixels.shape[2], size[0])
    # autocast would reduce the products to 8 bits of precision
    with torch.autocast(pixels.device.type, enabled=False):
        rows = _round(torch.bmm(pixels[:, 0].float(), across.transpose(1, 2)))
        resized = _round(torch.bmm(down, rows)).to(torch.uint8)
    return resized[:, None], _nearest(vesselness, boxes, size)


def _check(pixels: torch.Tensor, vesselness: torch.Tensor, crops: Sequence[Crop]) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 1:
        raise ValueError(
            f"Expected grey frames of shape (batch_size, 1, height, width), uint8, got {tuple(pixels.shape)}, "
            f"{pixels.dtype}. Pass them before normalisation."
        )
    if vesselness.shape != pixels.shape or vesselness.dtype not in (torch.uint8, torch.bool):
        raise ValueError(
            f"Expected vessel masks of the frames' shape {tuple(pixels.shape)}, uint8 or bool, got "
            f"{tuple(vesselness.shape)}, {vesselness.dtype}."
        )
    if len(crops) != len(pixels):
        raise ValueError(f"Expected one crop per frame for {len(pixels)} frames, got {len(crops)}.")
    frame_height, frame_width = pixels.shape[2:]
    for crop in crops:
        fits_down = crop.top >= 0 and 0 < crop.height <= frame_height - crop.top
        if not fits_down or not (crop.left >= 0 and 0 < crop.width <= frame_width - crop.left):
            raise ValueError(f"{crop} is outside a frame of {frame_height}×{frame_width} (height×width) pixels.")


def _boxes(crops: Sequence[Crop], device: torch.device) -> torch.Tensor:
    """Top, left, height, width and flip of each crop, `int64`; transferred without synchronisation."""
    boxes = torch.tensor([(c.top, c.left, c.height, c.width, c.flip) for c in crops], dtype=torch.int64).view(-1, 5)
    if device.type == "cuda":
        return boxes.pin_memory().to(device, non_blocking=True)
    return boxes.to(device)


def _weights(start: torch.Tensor, length: torch.Tensor, num_in: int, num_out: int) -> torch.Tensor:
    """Weight of each source pixel in each output pixel, `(batch_size, num_out, num_in)`; rows sum to 1."""
    scale = (length.float() / num_out)[:, None, None]
    # upscaling interpolates; downscaling averages over the source pixels that an output pixel covers
    widening = scale.clamp(min=1.0)
    out = torch.arange(num_out, device=start.device).float()[None, :, None] + 0.5
    centre = start[:, None, None] + out * scale
    source = torch.arange(num_in, device=start.device).float()[None, None, :] + 0.5
    weights = _cubic((source - centre).abs_().div_(widening))
    return weights / weights.sum(dim=2, keepdim=True)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * CUBIC_A
    return torch.where(distance < 1, near, torch.where(distance < CUBIC_SUPPORT, far, 0.0))


def _round(levels: torch.Tensor) -> torch.Tensor:
    # round half up, as in Pillow's fixed-point arithmetic
    return levels.add_(0.5).floor_().clamp_(0, 255)


def _nearest(vesselness: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    top, left, height, width, flip = boxes.unbind(1)
    rows = top[:, None] + _nearest_places(vesselness.shape[2], size[0], boxes.device)[height]
    places = _nearest_places(vesselness.shape[3], size[1], boxes.device)[width]
    columns = left[:, None] + torch.where(flip.bool()[:, None], places.flip(1), places)
    batch = torch.arange(len(boxes), device=boxes.device)[:, None, None]
    return vesselness[batch, 0, rows[:, :, None], columns[:, None, :]][:, None]


@lru_cache(maxsize=8)
def _nearest_places(longest: int, num_out: int, device: torch.device) -> torch.Tensor:
    """Source pixel of each output pixel for each box length, `(longest + 1, num_out)`; cached on the device.

    Computed by OpenCV, because its rounding of half-pixel positions differs between versions.
    """
    cv2 = require("cv2", "data")
    table = np.zeros((longest + 1, num_out), np.int64)
    source = np.arange(longest, dtype=np.uint16)[None]
    for length in range(1, longest + 1):
        table[length] = cv2.resize(source[:, :length], (num_out, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0]
    return torch.from_numpy(table).to(device)
