"""Panels of pictures: a frame, its annotation and its prediction in colours, and text over them."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...evaluation.detection_metrics import Boxes


# minimum score of boxes that are drawn
DRAWN_SCORE = 0.3
# true positive, false negative (or annotation, for boxes) and false positive (or prediction); distinguishable with
# colour blindness (Okabe and Ito, 2008)
HIT, MISSED, FALSE = (0, 158, 115), (86, 180, 233), (230, 159, 0)
# optional colour of a square, and text
LegendEntry = tuple[tuple[int, int, int] | None, str]
_OPACITY = 0.6
# nearly opaque: the frame is shown next to it, and 25 colours must remain distinguishable
_CLASS_OPACITY = 0.8
SIDE = 320
_FONT_SIZE = 12
LINE = 16
# far apart from each other (at least 30 in CIELAB, also over medium grey) and from grey, in descending order
_CLASS_COLOURS = (
    *("ffb98b", "7400ff", "00ff00", "ff008b", "008bff", "00ffd1", "ff1700", "ffe800", "2e7400", "ffa2ff"),
    *("00d1ff", "d1ff8b", "ff8b00", "a2465d", "ff46ff", "7446d1", "745d17", "17d146", "b94617", "745da2"),
    *("46a274", "a2e817", "ff0046", "b9a217", "a2178b"),
)
# hue step between further classes
_GOLDEN_RATIO = 0.618034


def class_colours(num_labels: int) -> np.ndarray:
    """Colours of the class ids: black for the background, white for a single foreground class.

    Args:
        num_labels (`int`): Number of classes, including the background.

    Returns:
        `np.ndarray` of shape `(num_labels, 3)`: `uint8`, red, green and blue.
    """
    if num_labels <= 2:
        return np.array([[0, 0, 0], [255, 255, 255]], dtype=np.uint8)[:num_labels]
    named = [tuple(bytes.fromhex(colour)) for colour in _CLASS_COLOURS[: num_labels - 1]]
    hues = (np.arange(num_labels - 1 - len(named)) * _GOLDEN_RATIO) % 1
    more = [colorsys.hsv_to_rgb(hue, 0.6, 1.0) for hue in hues]
    return np.array([(0, 0, 0), *named, *(tuple(round(255 * level) for level in one) for one in more)], dtype=np.uint8)


def _fitted(image: Image.Image) -> Image.Image:
    share = SIDE / max(image.size)
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(size, Image.Resampling.LANCZOS)


def grey_panel(frame: np.ndarray) -> Image.Image:
    """A frame of shape (height, width) alone."""
    return _fitted(Image.fromarray(frame).convert("RGB"))


def paint_classes(frame: np.ndarray, ids: np.ndarray, num_labels: int) -> Image.Image:
    """Class ids over a frame.

    Args:
        frame, ids (`np.ndarray` of shape `(height, width)`): 8-bit grey levels and ids; pixels with other ids stay grey.
        num_labels (`int`): Number of classes.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    painted = (ids > 0) & (ids < num_labels)
    picture = np.repeat(frame[:, :, None], 3, axis=2).astype(np.float32)
    colours = class_colours(num_labels)[ids[painted]]
    picture[painted] = (1 - _CLASS_OPACITY) * picture[painted] + _CLASS_OPACITY * colours
    return _fitted(Image.fromarray(np.rint(picture).astype(np.uint8)))


def paint_errors(frame: np.ndarray, true: np.ndarray, found: np.ndarray, num_labels: int) -> Image.Image:
    """True positives, missed pixels and false positives over a frame.

    Args:
        frame, true, found (`np.ndarray` of shape `(height, width)`): 8-bit grey levels, annotated and predicted ids.
        num_labels (`int`): Number of classes; other annotated ids are ignored.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    right = (found == true) & (true > 0)
    missed = (true > 0) & ~right & (true < num_labels)
    picture = np.repeat(frame[:, :, None], 3, axis=2).astype(np.float32)
    for part, colour in ((right, HIT), (missed, MISSED), ((found > 0) & (true == 0), FALSE)):
        picture[part] = (1 - _OPACITY) * picture[part] + _OPACITY * np.array(colour, dtype=np.float32)
    return _fitted(Image.fromarray(np.rint(picture).astype(np.uint8)))


def draw_boxes(panel: Image.Image, longest: int, true: Boxes, found: Boxes, labels: Sequence[str]) -> Image.Image:
    """Boxes over a copy of a panel, with constant line width; the highest-scoring on top.

    Args:
        panel (`PIL.Image.Image`): Of [`grey_panel`].
        longest (`int`): Longer side of the frame in pixels.
        true, found (`Boxes`): Annotated and predicted boxes in pixels of the frame.
        labels (sequence of `str`): Class names.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    drawn = panel.copy()
    draw, share = ImageDraw.Draw(drawn), SIDE / longest
    for corners in true.corners * share:
        # slightly larger, so that a predicted box in the same place does not hide it
        draw.rectangle((corners + (-2, -2, 2, 2)).tolist(), outline=MISSED, width=2)
    scores = np.zeros(0) if found.scores is None else found.scores
    for number in np.argsort(scores, kind="stable").tolist():
        if scores[number] >= DRAWN_SCORE:
            corners = found.corners[number] * share
            name = f"{labels[int(found.labels[number])]} " if len(labels) > 1 else ""
            draw.rectangle(corners.tolist(), outline=FALSE, width=2)
            _write_at_box(draw, corners, f"{name}{scores[number]:.2f}", drawn.size)
    return drawn


def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Font of all pictures."""
    return ImageFont.load_default(_FONT_SIZE)


def write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str) -> None:
    """Black text with its top left corner at a place."""
    draw.text(place, text, fill="black", font=font())


def _write_at_box(draw: ImageDraw.ImageDraw, corners: np.ndarray, text: str, panel: tuple[int, int]) -> None:
    """Text on black above a box, or below it if there is no room; never clipped."""
    text = shortened(text, panel[0] - 4)
    width = math.ceil(font().getlength(text)) + 4
    left = max(0.0, min(float(corners[0]), panel[0] - width))
    top = float(corners[1]) - LINE if corners[1] >= LINE else min(float(corners[3]) + 1, panel[1] - LINE)
    draw.rectangle((left, top, left + width - 1, top + LINE - 2), fill="black")
    draw.text((left + 2, top), text, fill=FALSE, font=font())


def shortened(text: str, width: int) -> str:
    """Text with its middle omitted if it is wider than a number of pixels."""
    shown, half = text, len(text) // 2
    while half > 0 and font().getlength(shown) > width:
        half -= 1
        shown = f"{text[:half]}...{text[len(text) - half :]}"
    return shown
