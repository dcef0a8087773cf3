"""Augmentation of annotated angiograms: a frame and its mask or boxes are transformed consistently.

A single affine map combines rotation, scale, translation, flip and the resize to the model's input, so pixels are
interpolated only once. Areas outside the frame are black and background, like those behind a collimator. Grey levels
are changed by a lookup table. Random parameters depend only on (seed, epoch, index), so a resumed run sees the same
frames.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from ..import_utils import require


# Flips only where they do not change labels. Anatomy is not mirror-symmetric: vessel segments and the side of the tree
# depend on left and right; vessels and stenoses do not.
FLIP_PROBABILITY = {
    "vessel": 0.5,
    "stenosis": 0.5,
    "stenosis_boxes": 0.5,
    "stenosis_severity_boxes": 0.5,
    "segments": 0.0,
    "side": 0.0,
}
# last word of the seed, so other uses of the same seed and index get different random numbers
_STREAM = 7
_HALF = 128


@dataclass(frozen=True)
class AugmentationOptions:
    """Ranges of the augmentations; 0 disables an augmentation.

    Args:
        rotation (`float`): Maximum angle in degrees, in both directions.
        scale (`float`): Maximum zoom; factors range from 1 / (1 + scale) to 1 + scale.
        translation (`float`): Maximum shift relative to the sides.
        flip_probability (`float`): Probability of a horizontal flip; see `FLIP_PROBABILITY`.
        brightness (`float`): Maximum shift of the grey levels, relative to their range.
        contrast (`float`): Contrast factors range from 1 / (1 + contrast) to 1 + contrast.
        gamma (`float`): Exponents range from 1 / (1 + gamma) to 1 + gamma.
        noise (`float`): Maximum standard deviation of added noise, relative to the range of grey levels.
        blur (`float`): Maximum standard deviation of a Gaussian blur, in pixels of the result.
        degrade_probability (`float`): Probability of noise, and of blur.
        kept_box_share (`float`): Boxes are dropped if a smaller fraction of their area stays in the frame.

    Raises:
        ValueError: If a value is out of range.
    """

    rotation: float = 15.0
    scale: float = 0.25
    translation: float = 0.05
    flip_probability: float = 0.0
    brightness: float = 0.1
    contrast: float = 0.25
    gamma: float = 0.25
    noise: float = 0.02
    blur: float = 0.8
    degrade_probability: float = 0.2
    kept_box_share: float = 0.4

    def __post_init__(self) -> None:
        limits = {"rotation": 180.0, "scale": 3.0, "contrast": 3.0, "gamma": 3.0, "blur": 20.0}
        for item in fields(self):
            value, most = getattr(self, item.name), limits.get(item.name, 1.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise ValueError(f"`{item.name}` must be a number from 0 to {most:g}, got {value!r}.")


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Sampled augmentation of one frame.

    Args:
        angle (`float`): In degrees, counter-clockwise on the screen.
        zoom (`float`): Scale factor.
        shift (`tuple[float, float]`): To the right and down, relative to the sides.
        flip (`bool`): Whether left and right are swapped.
        table (`np.ndarray` of shape `(256,)`): `uint8`, lookup table of grey levels.
        noise (`float`): Standard deviation, in grey levels.
        blur (`float`): Standard deviation, in pixels.
        rng (`np.random.Generator`): Source of the noise.
    """

    angle: float
    zoom: float
    shift: tuple[float, float]
    flip: bool
    table: np.ndarray
    noise: float
    blur: float
    rng: np.random.Generator

    def matrix(self, frame: Size, result: Size) -> np.ndarray:
        """Affine map from frame pixels to result pixels; coordinates start at the outer corner.

        Args:
            frame (`Size`): Size of the frame.
            result (`Size`): Size of the result; another aspect ratio stretches the frame, as in the image processor.

        Returns:
            `np.ndarray` of shape `(2, 3)`: `float64`.
        """
        angle = np.deg2rad(self.angle)
        turn = self.zoom * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        turn[:, 0] *= -1 if self.flip else 1
        centre = np.array(frame) / 2
        moved = centre - turn @ centre + np.array(self.shift) * frame
        stretch = np.array(result) / np.array(frame)
        return np.column_stack([turn, moved]) * stretch[:, None]


def draw_augmentation(options: AugmentationOptions, seed: int, epoch: int, index: int) -> Augmentation:
    """Sample the augmentation of one frame in one epoch.

    Args:
        options (`AugmentationOptions`): Ranges.
        seed, epoch, index (`int`): Seed of the training run, epoch and frame index, >= 0; they determine the result.

    Returns:
        `Augmentation`: Parameters for the functions of this module.

    Example:
        >>> options = AugmentationOptions(rotation=10)
        >>> bool(draw_augmentation(options, 0, 3, 7).angle == draw_augmentation(options, 0, 3, 7).angle)
        True
    """
    rng = np.random.default_rng([seed, epoch, index, _STREAM])
    angle, zoom, right, down, light, contrast, gamma = rng.uniform(-1, 1, 7)
    flip, blurs, noises = rng.random(3) < (
        options.flip_probability,
        options.degrade_probability,
        options.degrade_probability,
    )
    blur, noise = rng.random(2)
    return Augmentation(
        angle=angle * options.rotation,
        zoom=(1 + options.scale) ** zoom,
        shift=(right * options.translation, down * options.translation),
        flip=bool(flip),
        table=_grey_table(
            light * options.brightness, (1 + options.contrast) ** contrast, (1 + options.gamma) ** gamma
        ),
        noise=255 * options.noise * noise if noises else 0.0,
        blur=options.blur * blur if blurs else 0.0,
        rng=rng,
    )


def _grey_table(brightness: float, contrast: float, gamma: float) -> np.ndarray:
    levels = (np.arange(256) / 255) ** gamma
    return np.rint(255 * np.clip((levels - 0.5) * contrast + 0.5 + brightness, 0, 1)).astype(np.uint8)


def augment_frame(frame: np.ndarray, augmentation: Augmentation, result: Size) -> np.ndarray:
    """Transform a frame, then change its grey levels, blur it and add noise.

    Args:
        frame (`np.ndarray` of shape `(height, width)`): `uint8`.
        augmentation (`Augmentation`): Sampled parameters.
        result (`Size`): Output size.

    Returns:
        `np.ndarray` of shape `(result.height, result.width)`: `uint8`; black outside the original frame.
    """
    cv2 = require("cv2", "data")
    moved = _warp(augmentation.table[frame], augmentation, result, cv2.INTER_LINEAR)
    if augmentation.blur > 0.1:
        moved = cv2.GaussianBlur(moved, (0, 0), augmentation.blur)
    if augmentation.noise:
        noise = augmentation.rng.standard_normal(moved.shape, dtype=np.float32) * np.float32(augmentation.noise)
        moved = np.clip(moved + noise, 0, 255).astype(np.uint8)
    return moved


def augment_soft_mask(mask: np.ndarray, augmentation: Augmentation, result: Size) -> np.ndarray:
    """Transform a binary mask with linear interpolation and a threshold of one half; keeps thin vessels smooth.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): `uint8`, 0 is background, 255 foreground; values in between are
            partial coverage.
        augmentation (`Augmentation`): Parameters sampled for its frame.
        result (`Size`): Output size.

    Returns:
        `np.ndarray` of shape `(result.height, result.width)`: `uint8`, 0 or 1.
    """
    moved = _warp(mask, augmentation, result, require("cv2", "data").INTER_LINEAR)
    return (moved >= _HALF).astype(np.uint8)


def augment_label_map(labels: np.ndarray, augmentation: Augmentation, result: Size) -> np.ndarray:
    """Transform a map of class ids with nearest-neighbour interpolation.

    Args:
        labels (`np.ndarray` of shape `(height, width)`): `uint8` ids.
        augmentation (`Augmentation`): Parameters sampled for its frame.
        result (`Size`): Output size.

    Returns:
        `np.ndarray` of shape `(result.height, result.width)`: `uint8` ids; 0 outside the original frame.
    """
    return _warp(labels, augmentation, result, require("cv2", "data").INTER_NEAREST)


def augment_boxes(
    boxes: np.ndarray, augmentation: Augmentation, frame: Size, kept_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Transform boxes; a rotated box becomes the bounding box of its inscribed ellipse.

    Lesions resemble ellipses, and the bounding box of the rotated corners would be too large.

    Args:
        boxes (`np.ndarray` of shape `(num_boxes, 4)`): Left, top, right and bottom relative to the frame, float.
        augmentation (`Augmentation`): Parameters sampled for the frame.
        frame (`Size`): Size of the frame.
        kept_share (`float`): Minimum fraction of a box that must stay in the frame.

    Returns:
        `tuple`: Kept boxes of shape `(num_kept, 4)`, left, top, right and bottom relative to the result, clipped; and
        a mask of the kept boxes, `bool` of shape `(num_boxes,)`.
    """
    sides = np.array(frame, dtype=np.float64)
    matrix = augmentation.matrix(frame, frame)
    centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2 * sides, (boxes[:, 2:] - boxes[:, :2]) / 2 * sides
    centres = centres @ matrix[:, :2].T + matrix[:, 2]
    halves = np.sqrt(halves**2 @ (matrix[:, :2] ** 2).T)
    moved = np.concatenate([(centres - halves) / sides, (centres + halves) / sides], axis=1)
    cut = moved.clip(0, 1)
    kept = _area(cut) > np.maximum(kept_share * _area(moved), 1e-12)
    return cut[kept].astype(np.float32), kept


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _warp(plane: np.ndarray, augmentation: Augmentation, result: Size, interpolation: int) -> np.ndarray:
    cv2 = require("cv2", "data")
    height, width = plane.shape
    matrix = augmentation.matrix(Size(width, height), result)
    # OpenCV's origin is the centre of the first pixel; that of the matrix is its corner
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return cv2.warpAffine(
        plane, matrix, tuple(result), flags=interpolation, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
