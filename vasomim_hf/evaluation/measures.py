"""Summary metrics: how each one is computed from the rows of a result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .results import ResultRow, SummaryValue, clusters_of
from .statistics import Resampling, Statistic, bootstrap_intervals, weighted_mean


Rows = Sequence[ResultRow]


@dataclass(frozen=True)
class Measure:
    """Definition of a summary metric.

    Args:
        build (`Callable`): Creates the statistic from the rows.
        is_mean (`bool`): Whether it is the mean of the row values of the same name. In comparisons, images without the
            value in either result are then excluded.
    """

    build: Callable[[Rows], Statistic]
    is_mean: bool = False


def column(rows: Rows, name: str, missing: float = np.nan) -> np.ndarray:
    """Collect one value of every row.

    Args:
        rows (sequence of `ResultRow`): Rows of a result.
        name (`str`): Name of the value.
        missing (`float`): Replacement where a row lacks the value.

    Returns:
        `np.ndarray` of shape `(num_rows,)`: `float64`.
    """
    return np.array([row.values.get(name, missing) for row in rows], dtype=np.float64)


def list_columns(rows: Rows, name: str) -> np.ndarray:
    """Collect a list of every row; all have the same length.

    Args:
        rows (sequence of `ResultRow`): Rows of a result.
        name (`str`): Name of the list.

    Returns:
        `np.ndarray` of shape `(num_rows, length)`: `float64`.
    """
    return np.array([row.lists[name] for row in rows], dtype=np.float64)


def mean_measure(name: str) -> Measure:
    """Mean of a row value over the images that have it."""
    return Measure(lambda rows: weighted_mean(column(rows, name)), is_mean=True)


def summarise(
    rows: Rows, measures: dict[str, Measure], resampling: Resampling | None = None
) -> dict[str, SummaryValue]:
    """Compute all summary values with confidence intervals, by patient if known, otherwise by image.

    Args:
        rows (sequence of `ResultRow`): One per image.
        measures (`dict[str, Measure]`): Metrics to compute.
        resampling (`Resampling`, *optional*): Options of the intervals.

    Returns:
        `dict[str, SummaryValue]`: In the order of `measures`.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("There are no images to summarise. Call `update` first.")
    statistics = [measure.build(rows) for measure in measures.values()]
    intervals = bootstrap_intervals(statistics, len(rows), clusters_of(rows), resampling)
    return {
        name: SummaryValue(interval.value, interval.low, interval.high, statistic.n, statistic.undefined)
        for name, statistic, interval in zip(measures, statistics, intervals, strict=True)
    }
