"""Pictures of pre-training: input, masked input, reconstruction, and the vessels of both."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw


MASK_GREY = 0.5
CAPTION_HEIGHT = 14
GAP = 2
COLUMNS = ("frame", "visible", "reconstruction", "vesselness", "segmentor", "segmentor, reconstr.")


def hide_patches(frames: torch.Tensor, mask: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Grey out the masked patches.

    Args:
        frames (`torch.Tensor` of shape `(batch_size, 1, height, width)`): In [0, 1].
        mask (`torch.Tensor` of shape `(batch_size, num_patches)`): 1 for masked patches, row by row.
        grid (`tuple[int, int]`): Rows and columns of the patch grid.

    Returns:
        `torch.Tensor` of the shape of `frames`.
    """
    hidden = mask.to(frames.dtype).view(-1, 1, *grid)
    hidden = torch.nn.functional.interpolate(hidden, size=frames.shape[-2:], mode="nearest")
    return frames * (1 - hidden) + MASK_GREY * hidden


def to_grey(pixel_values: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Undo the normalisation.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalised frames.
        mean, std (`Sequence[float]`): Values of the image processor, one per channel.

    Returns:
        `torch.Tensor` of shape `(batch_size, 1, height, width)`: mean over the channels, clipped to [0, 1].
    """
    scale, shift = pixel_values.new_tensor(std).view(1, -1, 1, 1), pixel_values.new_tensor(mean).view(1, -1, 1, 1)
    return (pixel_values * scale + shift).mean(dim=1, keepdim=True).clamp(0, 1)


def picture_grid(columns: Sequence[torch.Tensor], captions: Sequence[str]) -> Image.Image:
    """Arrange frames in a grid, one row per item of the batch.

    Args:
        columns (`Sequence[torch.Tensor]`, each of shape `(batch_size, 1, height, width)`): In [0, 1]; NaN shows as white.
        captions (`Sequence[str]`): One per column.

    Returns:
        `PIL.Image.Image`: Grey picture with captions above the columns.
    """
    cells = torch.stack([column.detach().float().cpu().nan_to_num(1.0).clamp(0, 1) for column in columns], dim=1)
    rows, num_columns, _, height, width = cells.shape
    canvas = np.full((CAPTION_HEIGHT + rows * (height + GAP), num_columns * (width + GAP) - GAP), 255, np.uint8)
    for row in range(rows):
        for column in range(num_columns):
            top, left = CAPTION_HEIGHT + row * (height + GAP), column * (width + GAP)
            cell = (cells[row, column, 0] * 255).round().to(torch.uint8)
            canvas[top : top + height, left : left + width] = cell.numpy()
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for column, caption in enumerate(captions):
        draw.text((column * (width + GAP) + 2, 1), caption, fill=0)
    return image
