"""Test-time augmentation: flipped and rescaled views of a frame, and how to undo them."""

from typing import NamedTuple

import torch


# sides of rescaled frames are multiples of this, so no patch is padded
_MULTIPLE = 16


class View(NamedTuple):
    """A view of a frame.

    Args:
        flip_horizontal (`bool`): Whether left and right are swapped.
        flip_vertical (`bool`): Whether top and bottom are swapped.
        scale (`float`): Scale factor of both sides.
    """

    flip_horizontal: bool = False
    flip_vertical: bool = False
    scale: float = 1.0

    @property
    def axes(self) -> list[int]:
        """Flipped axes."""
        return [-1] * self.flip_horizontal + [-2] * self.flip_vertical


IDENTITY = View()
# anatomy is not mirror-symmetric: flips are only for tasks whose labels do not depend on left and right
VIEWS: dict[str, tuple[View, ...]] = {
    "none": (IDENTITY,),
    "flips": (IDENTITY, View(flip_horizontal=True), View(flip_vertical=True), View(True, True)),
    "scales": (IDENTITY, View(scale=0.875), View(scale=1.125)),
}


def view_frames(pixel_values: torch.Tensor, view: View) -> torch.Tensor:
    """Transform frames to a view.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalised frames.
        view (`View`): View to create.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_channels, new_height, new_width)`: sides are multiples of 16 pixels
        if the scale is not 1.
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
    """Undo the flips of a view on maps; their scale is kept, because they are resized to the frame later.

    Args:
        maps (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`): Maps of the transformed frames.
        view (`View`): View they belong to.

    Returns:
        `torch.Tensor` of the same shape.
    """
    return maps.flip(view.axes) if view.axes else maps


def undo_on_boxes(boxes: torch.Tensor, view: View) -> torch.Tensor:
    """Undo the flips of a view on boxes.

    Args:
        boxes (`torch.Tensor` of shape `(batch_size, num_boxes, 4)`): Centre x, centre y, width and height relative to the
            transformed frames.
        view (`View`): View they belong to.

    Returns:
        `torch.Tensor` of the same shape: relative to the original frames.

    Example:
        >>> undo_on_boxes(torch.tensor([[[0.25, 0.5, 0.125, 0.25]]]), View(flip_horizontal=True))
        tensor([[[0.7500, 0.5000, 0.1250, 0.2500]]])
    """
    centre_x, centre_y, *sizes = boxes.unbind(-1)
    centre_x = 1 - centre_x if view.flip_horizontal else centre_x
    centre_y = 1 - centre_y if view.flip_vertical else centre_y
    return torch.stack([centre_x, centre_y, *sizes], dim=-1)
