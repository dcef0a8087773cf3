"""Label-efficiency curves: means as lines, intervals as bands, and a ring for each seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...import_utils import require


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# sufficient contrast on white, and distinguishable with colour blindness (Okabe and Ito, 2008)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
_KEY = "line: mean of the seeds; band: 95 % interval over the frames; rings: seeds"


@dataclass(frozen=True)
class Point:
    """A point of a curve.

    Args:
        fraction (`float`): Fraction of the labels, in (0, 1].
        value (`float`): Mean over the seeds.
        low, high (`float`): Bounds of its interval; NaN if there is none.
        seeds (`tuple[float, ...]`): Value of each seed.
    """

    fraction: float
    value: float
    low: float
    high: float
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """Curve of one initialisation.

    Args:
        name (`str`): Label in the legend.
        points (`list[Point]`): By ascending fraction.
    """

    name: str
    points: list[Point]


def draw_curves(panels: dict[str, list[Curve]], title: str) -> "Figure":
    """Draw one panel per metric.

    Args:
        panels (`dict[str, list[Curve]]`): Curves by metric, with the same initialisations in each panel.
        title (`str`): Title of the figure.

    Returns:
        `matplotlib.figure.Figure`: Not registered with pyplot; write it with `figure.savefig(path)`.

    Raises:
        ValueError: If there is nothing to draw.
    """
    panels = {name: [curve for curve in curves if curve.points] for name, curves in panels.items()}
    if not any(panels.values()):
        raise ValueError("No finished cells to draw. Train at least one.")
    figure = require("matplotlib.figure", "training").Figure((5.6 * len(panels), 4.8), dpi=100, layout="constrained")
    figure.suptitle(title)
    for name, curves, axes in zip(
        panels, panels.values(), figure.subplots(1, len(panels), squeeze=False)[0], strict=True
    ):
        _draw_panel(axes, name, curves)
    # all panels have the same curves, so one legend is enough
    handles = next(axes for axes in figure.axes if axes.get_lines()).get_legend_handles_labels()[0]
    place = {"loc": "outside lower center", "ncols": 3, "frameon": False}
    figure.legend(handles=handles, title=_KEY, title_fontsize="small", **place)
    return figure


def _draw_panel(axes: "Axes", name: str, curves: Sequence[Curve]) -> None:
    for number, curve in enumerate(curves):
        _draw_curve(axes, COLOURS[number % len(COLOURS)], curve)
    fractions = sorted({point.fraction for curve in curves for point in curve.points})
    axes.set(title=name, xlabel="labels used", xscale="log")
    axes.set_xticks(fractions, [f"{100 * fraction:g} %" for fraction in fractions])
    axes.set_xticks([], minor=True)
    axes.grid(axis="y", alpha=0.4)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_curve(axes: "Axes", colour: str, curve: Curve) -> None:
    fractions = [point.fraction for point in curve.points]
    axes.plot(fractions, [point.value for point in curve.points], "o-", color=colour, markersize=5, label=curve.name)
    low, high = [point.low for point in curve.points], [point.high for point in curve.points]
    axes.fill_between(fractions, low, high, color=colour, alpha=0.2, linewidth=0)
    seeds = [(point.fraction, value) for point in curve.points if len(point.seeds) > 1 for value in point.seeds]
    if seeds:
        axes.scatter(
            [x for x, _ in seeds], [y for _, y in seeds], s=14, facecolors="none", edgecolors=colour, linewidths=0.8
        )
