"""Sliding-window inference for frames larger than the training size, with blending of overlaps.

Windows and weights match MONAI's `sliding_window_inference` with `mode="gaussian"`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch


# standard deviation of the Gaussian weights relative to the window size
SIGMA = 0.125
# keeps the corners of the frame, which only one window covers, from vanishing numerically
LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class SlidingWindow:
    """Options of sliding windows.

    Args:
        size (`int`): Side length in pixels; shorter frames are covered by one window.
        overlap (`float`): Fraction of a window that overlaps with the next one, in [0, 1).
        batch_size (`int`): Number of windows per forward pass.

    Raises:
        ValueError: If a value is out of range.
    """

    size: int
    overlap: float = 0.5
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("batch_size", self.batch_size)):
            if value < 1:
                raise ValueError(f"`{name}` of a sliding window must be at least 1, got {value}.")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"`overlap` must be in [0, 1), got {self.overlap}. 0.5 is usual.")


def window_starts(side: int, window: int, overlap: float) -> list[int]:
    """First pixel of each window along one side; the last window ends at the edge.

    Args:
        side (`int`): Length of the side in pixels, at least `window`.
        window (`int`): Window size in pixels.
        overlap (`float`): Fraction of a window that overlaps with the next one, in [0, 1).

    Returns:
        `list[int]`: In ascending order.

    Example:
        >>> window_starts(side=100, window=64, overlap=0.5)
        [0, 32, 36]
    """
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil((side - window) / step) + 1
    return [min(number * step, side - window) for number in range(count)]


def blending_weights(height: int, width: int) -> torch.Tensor:
    """Weight of each pixel of a window: a centred Gaussian, because predictions are least reliable at the edges.

    Args:
        height (`int`): In pixels.
        width (`int`): In pixels.

    Returns:
        `torch.Tensor` of shape `(height, width)`: float32 in [0.001, 1].
    """

    def profile(side: int) -> torch.Tensor:
        places = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
        return torch.exp(-(places**2) / (2 * (SIGMA * side) ** 2))

    return torch.outer(profile(height), profile(width)).clamp(min=LEAST_WEIGHT)


def sliding_window_logits(
    predict: Callable[[torch.Tensor], torch.Tensor], pixel_values: torch.Tensor, window: SlidingWindow
) -> torch.Tensor:
    """Compute logits of whole frames from overlapping windows.

    Args:
        predict (`Callable`): From windows of shape `(num_windows, num_channels, height, width)` to logits of shape
            `(num_windows, num_labels, height, width)`.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalised frames.
        window (`SlidingWindow`): Options.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels, height, width)`: float32, average of the windows weighted by
        [`blending_weights`].

    Raises:
        ValueError: If `predict` returns logits of a different size than its windows.

    Example:
        >>> frames = torch.rand(1, 1, 96, 80)
        >>> logits = sliding_window_logits(lambda windows: windows, frames, SlidingWindow(64))
        >>> torch.allclose(logits, frames, atol=1e-6)
        True
    """
    height, width = (min(window.size, side) for side in pixel_values.shape[-2:])
    tops, lefts = (
        window_starts(side, part, window.overlap)
        for side, part in zip(pixel_values.shape[-2:], (height, width), strict=True)
    )
    places = list(product(range(len(pixel_values)), tops, lefts))
    weights = blending_weights(height, width).to(pixel_values.device)
    total, weight = None, torch.zeros(pixel_values.shape[-2:], device=pixel_values.device)
    for top, left in product(tops, lefts):
        weight[top : top + height, left : left + width] += weights
    for start in range(0, len(places), window.batch_size):
        chosen = places[start : start + window.batch_size]
        logits = predict(torch.stack([pixel_values[i, :, y : y + height, x : x + width] for i, y, x in chosen]))
        if logits.shape[-2:] != (height, width):
            raise ValueError(
                f"Windows of {height}×{width} pixels gave logits of {logits.shape[-2]}×{logits.shape[-1]}. Resize "
                "the logits to the size of the window."
            )
        if total is None:
            total = logits.new_zeros(
                (len(pixel_values), logits.shape[1], *pixel_values.shape[-2:]), dtype=torch.float32
            )
        for (i, y, x), found in zip(chosen, logits, strict=True):
            total[i, :, y : y + height, x : x + width] += found.float() * weights
    if total is None:
        raise ValueError("Expected at least one frame, got an empty batch.")
    return total / weight
