"""Test-time augmentation: the same frame flipped or at another scale, and the way back."""

from typing import NamedTuple

import torch


# Sides of a frame at another scale are multiples of this, so that no patch is padded
_MULTIPLE = 16


class View(NamedTuple):
    """A changed frame.

    Args:
        flip_horizontal (`bool`): Left and right exchanged.
        flip_vertical (`bool`): Top and bottom exchanged.
        scale (`float`): Factor of both sides.
    """

    flip_horizontal: bool = False
    flip_vertical: bool = False
    scale: float = 1.0

    @property
    def axes(self) -> list[int]:
        """Axes that are turned round."""
        return [-1] * self.flip_horizontal + [-2] * self.flip_vertical


IDENTITY = View()
# Mirrored hearts do not occur: flips are for tasks whose labels do not hang on left and right
VIEWS: dict[str, tuple[View, ...]] = {
    "none": (IDENTITY,),
    "flips": (IDENTITY, View(flip_horizontal=True), View(flip_vertical=True), View(True, True)),
    "scales": (IDENTITY, View(scale=0.875), View(scale=1.125)),
}


def view_frames(pixel_values: torch.Tensor, view: View) -> torch.Tensor:
    """Frames as a view has them.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalised frames.
        view (`View`): Which one.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_channels, new_height, new_width)`: sides are multiples of 16 pixels
        where the scale is not 1.
    """
    if view.axes:
        pixel_values = pixel_values.flip(view.axes)
    if view.scale == 1.0:
        return pixel_values
    size = [max(1, round(side * view.scale / _MULTIPLE)) * _MULTIPLE for side in pixel_values.shape[-2:]]
    return torch.nn.functional.interpolate(
        pixel_values, size=size, mode="bilinear", align_corners=False, antialias=True
    )


def undo_on_maps(maps: torch.Tensor, view: View) -> torch.Tensor:
    """Maps of a view turned back; their scale stays, since they are brought to the size of the frame anyhow.

    Args:
        maps (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`): Of the changed frames.
        view (`View`): How they were changed.

    Returns:
        `torch.Tensor` of the same shape.
    """
    return maps.flip(view.axes) if view.axes else maps


def undo_on_boxes(boxes: torch.Tensor, view: View) -> torch.Tensor:
    """Boxes of a view turned back.

    Args:
        boxes (`torch.Tensor` of shape `(batch_size, num_boxes, 4)`): Centre x, centre y, width and height as shares of the
            changed frames.
        view (`View`): How they were changed.

    Returns:
        `torch.Tensor` of the same shape: shares of the frames as they were.

    Example:
        >>> undo_on_boxes(torch.tensor([[[0.25, 0.5, 0.125, 0.25]]]), View(flip_horizontal=True))
        tensor([[[0.7500, 0.5000, 0.1250, 0.2500]]])
    """
    centre_x, centre_y, *sizes = boxes.unbind(-1)
    centre_x = 1 - centre_x if view.flip_horizontal else centre_x
    centre_y = 1 - centre_y if view.flip_vertical else centre_y
    return torch.stack([centre_x, centre_y, *sizes], dim=-1)
