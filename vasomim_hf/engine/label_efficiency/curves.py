"""Curves over shares of labels, drawn with Pillow: lines of means, bands of intervals and a dot for each seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont


# Dark enough on white and told apart by people who do not see red and green (Okabe and Ito, 2008)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
PANEL_WIDTH, PANEL_HEIGHT = 560, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 58, 56
# Drawn larger and reduced, so that lines are smooth
SCALE = 3
_BAND_OPACITY = 50
_KEY = "line: mean of the seeds; band: 95 % interval over the frames; rings: seeds"


@dataclass(frozen=True)
class Point:
    """One share of the labels.

    Args:
        fraction (`float`): Share, in (0, 1].
        value (`float`): Mean over the seeds.
        low, high (`float`): Ends of its interval; NaN where there is none.
        seeds (`tuple[float, ...]`): Value of each seed.
    """

    fraction: float
    value: float
    low: float
    high: float
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """One initialisation.

    Args:
        name (`str`): For the legend.
        points (`list[Point]`): By rising share.
    """

    name: str
    points: list[Point]


class _Axes:
    """Places of values on one panel, in pixels of the enlarged drawing; shares are spaced by their logarithm."""

    def __init__(self, left: int, curves: Sequence[Curve]):
        points = [point for curve in curves for point in curve.points]
        self.left = left
        fractions = sorted({point.fraction for point in points})
        self.fractions = fractions
        self._first, self._last = math.log(fractions[0]), math.log(fractions[-1])
        numbers = [n for p in points for n in (p.value, p.low, p.high, *p.seeds) if not math.isnan(n)] or [0.0, 1.0]
        self.step = _nice_step(max(numbers) - min(numbers))
        self.low = math.floor(min(numbers) / self.step) * self.step
        self.high = max(math.ceil(max(numbers) / self.step) * self.step, self.low + self.step)

    def x(self, fraction: float) -> float:
        width = self._last - self._first
        share = (math.log(fraction) - self._first) / width if width else 0.5
        return SCALE * (self.left + LEFT + (0.04 + 0.92 * share) * (PANEL_WIDTH - LEFT - RIGHT))

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return SCALE * (TOP + (1 - share) * (PANEL_HEIGHT - TOP - BOTTOM))

    def ticks(self) -> list[float]:
        return [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]


def _nice_step(span: float) -> float:
    rough = max(span, 0.02) / 5
    power = 10 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)


def draw_curves(panels: dict[str, list[Curve]], title: str) -> Image.Image:
    """Draw one panel for each measure.

    Args:
        panels (`dict[str, list[Curve]]`): Name of the measure -> its curves, of the same initialisations in each panel.
        title (`str`): Above all.

    Returns:
        `PIL.Image.Image`: RGB.

    Raises:
        ValueError: If there is nothing to draw.
    """
    panels = {name: [curve for curve in curves if curve.points] for name, curves in panels.items()}
    if not any(panels.values()):
        raise ValueError("There is no finished cell to draw. Train at least one.")
    legend = 44 + 20 * math.ceil(max(len(curves) for curves in panels.values()) / 3)
    size = (SCALE * PANEL_WIDTH * len(panels), SCALE * (PANEL_HEIGHT + legend))
    picture = Image.new("RGB", size, "white")
    for number, (name, curves) in enumerate(panels.items()):
        if curves:
            picture = _draw_panel(picture, _Axes(number * PANEL_WIDTH, curves), name, curves)
    draw = ImageDraw.Draw(picture)
    draw.text((SCALE * 12, SCALE * 6), title, fill="black", font=_font(14))
    _draw_legend(draw, next(curves for curves in panels.values() if curves))
    return picture.resize((size[0] // SCALE, size[1] // SCALE), Image.Resampling.LANCZOS)


def _draw_panel(picture: Image.Image, axes: _Axes, name: str, curves: Sequence[Curve]) -> Image.Image:
    _draw_grid(ImageDraw.Draw(picture), axes, name)
    bands = Image.new("RGBA", picture.size, (255, 255, 255, 0))
    for colour, curve in zip(_colours(curves), curves, strict=True):
        corners = [(axes.x(p.fraction), axes.y(p.low)) for p in curve.points if not math.isnan(p.low)]
        corners += [(axes.x(p.fraction), axes.y(p.high)) for p in reversed(curve.points) if not math.isnan(p.high)]
        if len(corners) >= 4:
            band = Image.new("RGBA", picture.size, (255, 255, 255, 0))
            ImageDraw.Draw(band).polygon(corners, fill=(*_rgb(colour), _BAND_OPACITY))
            bands = Image.alpha_composite(bands, band)
    picture = Image.alpha_composite(picture.convert("RGBA"), bands).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for number, (colour, curve) in enumerate(zip(_colours(curves), curves, strict=True)):
        _draw_curve(draw, axes, colour, curve, SCALE * 2.0 * (number - (len(curves) - 1) / 2))
    return picture


def _draw_grid(draw: ImageDraw.ImageDraw, axes: _Axes, name: str) -> None:
    left, right = SCALE * (axes.left + LEFT), SCALE * (axes.left + PANEL_WIDTH - RIGHT)
    for value in axes.ticks():
        draw.line([(left, axes.y(value)), (right, axes.y(value))], fill="#E4E4E4", width=SCALE)
        draw.text((left - SCALE * 8, axes.y(value)), f"{value:.3g}", fill="#444444", font=_font(12), anchor="rm")
    bottom = axes.y(axes.low)
    for fraction in axes.fractions:
        x = axes.x(fraction)
        draw.line([(x, bottom), (x, bottom + SCALE * 5)], fill="#888888", width=SCALE)
        label = f"{100 * fraction:g} %"
        draw.text((x, bottom + SCALE * 9), label, fill="#444444", font=_font(12), anchor="mt")
    draw.line([(left, bottom), (right, bottom)], fill="#888888", width=SCALE)
    middle = (left + right) / 2
    draw.text((middle, bottom + SCALE * 30), "labels used", fill="#444444", font=_font(12), anchor="mt")
    draw.text((left, SCALE * (TOP - 16)), name, fill="black", font=_font(13), anchor="lm")


def _draw_curve(draw: ImageDraw.ImageDraw, axes: _Axes, colour: str, curve: Curve, aside: float) -> None:
    line = [(axes.x(point.fraction), axes.y(point.value)) for point in curve.points if not math.isnan(point.value)]
    if len(line) > 1:
        draw.line(line, fill=colour, width=2 * SCALE, joint="curve")
    for x, y in line:
        radius = 3.5 * SCALE
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour, outline="white", width=SCALE)
    for point in curve.points:
        # several seeds, a little aside so that those of other curves stay visible
        for value in point.seeds if len(point.seeds) > 1 else ():
            x, y, radius = axes.x(point.fraction) + aside, axes.y(value), 2 * SCALE
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=colour, width=SCALE)


def _draw_legend(draw: ImageDraw.ImageDraw, curves: Sequence[Curve]) -> None:
    for number, (colour, curve) in enumerate(zip(_colours(curves), curves, strict=True)):
        x, y = SCALE * (LEFT + 160 * (number % 3)), SCALE * (PANEL_HEIGHT + 12 + 20 * (number // 3))
        draw.line([(x, y), (x + SCALE * 22, y)], fill=colour, width=3 * SCALE)
        draw.text((x + SCALE * 28, y), curve.name, fill="black", font=_font(12), anchor="lm")
    x, y = SCALE * LEFT, SCALE * (PANEL_HEIGHT + 16 + 20 * math.ceil(len(curves) / 3))
    draw.text((x, y), _KEY, fill="#444444", font=_font(11), anchor="lm")


def _colours(curves: Sequence[Curve]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(curves))]


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)
