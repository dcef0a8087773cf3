"""Curves, table and values of a label-efficiency comparison, from the finished cells."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...evaluation.comparison import measures_of
from ...evaluation.results import EvaluationResults, clusters_of, format_table, read_results
from ...evaluation.statistics import bootstrap_interval, mean_of
from ...folders import atomic_file
from ..run_config import RunConfigError
from .curves import Curve, Point, draw_curves
from .run import RESULTS_NAME, Cell, LabelEfficiencyRun, cells_of


def finished_cells(run: LabelEfficiencyRun) -> Iterator[tuple[Cell, EvaluationResults]]:
    """Finished cells with their results."""
    for cell in cells_of(run):
        path = cell.folder(run.output_dir) / RESULTS_NAME
        if path.is_file():
            yield cell, read_results(path)


def curves_of(run: LabelEfficiencyRun, measure: str) -> list[Curve]:
    """Curves of a metric over the finished cells.

    The value of a point is the mean over its seeds, with a bootstrap interval over the scored images or patients. The
    interval describes variation between patients for these trained models; the spread of the seeds describes variation
    between training runs with other labels.

    Args:
        run (`LabelEfficiencyRun`): Run configuration.
        measure (`str`): Name of the metric in the results.

    Returns:
        `list[Curve]`: One per initialisation.

    Raises:
        RunConfigError: If the results do not have this metric.
    """
    groups: dict[tuple[str, float], list[EvaluationResults]] = {}
    for cell, results in finished_cells(run):
        groups.setdefault((cell.name, cell.fraction), []).append(results)
    return [
        Curve(str(name), [_point(f, found, measure) for (n, f), found in sorted(groups.items()) if n == str(name)])
        for name in run.initialisations
    ]


def _point(fraction: float, results: list[EvaluationResults], measure: str) -> Point:
    known = measures_of(results[0])
    if measure not in known:
        raise RunConfigError(f"`measures`: the results have no {measure!r}. Available: {', '.join(known)}.")
    statistics = [measures_of(one)[measure].build(one.rows) for one in results]
    rows = results[0].rows
    interval = bootstrap_interval(mean_of(statistics), len(rows), clusters_of(rows))
    seeds = tuple(statistic.value(len(rows)) for statistic in statistics)
    return Point(fraction, interval.value, interval.low, interval.high, seeds)


def draw_finished(run: LabelEfficiencyRun) -> None:
    """Write `curves.png`, `curves.json` and `table.txt` of the finished cells."""
    panels = {name: curves_of(run, name) for name in run.measure_names}
    folder = Path(run.output_dir)
    results = next(finished_cells(run))[1]
    title = f"{results.task} on {results.data}, {results.split}: {len(results.rows)} frames"
    with atomic_file(folder / "curves.png") as temporary:
        draw_curves(panels, title).savefig(temporary, format="png")
    content = {name: [dataclasses.asdict(curve) for curve in curves] for name, curves in panels.items()}
    with atomic_file(folder / "curves.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    with atomic_file(folder / "table.txt") as temporary:
        temporary.write_text(format_curves(panels) + "\n", encoding="utf-8")


def format_curves(panels: dict[str, list[Curve]]) -> str:
    """Format curves as a table.

    Args:
        panels (`dict[str, list[Curve]]`): Curves by metric.

    Returns:
        `str`: One line per point: value, interval over images, standard deviation over seeds, and number of seeds.
    """
    lines = [
        (
            f"{measure}, {curve.name}",
            f"{100 * point.fraction:g} %",
            f"{point.value:.4f}",
            f"{point.low:.4f} to {point.high:.4f}",
            f"{np.std(point.seeds, ddof=1):.4f}" if len(point.seeds) > 1 else "–",
            str(len(point.seeds)),
        )
        for measure, curves in panels.items()
        for curve in curves
        for point in curve.points
    ]
    return format_table(("", "labels", "mean", "interval over images", "SD of seeds", "seeds"), lines)
