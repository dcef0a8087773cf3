"""A number of a summary: its name, and how it is computed from rows of results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .results import ResultRow, SummaryValue, clusters_of
from .statistics import Resampling, Statistic, bootstrap_intervals, weighted_mean


Rows = Sequence[ResultRow]


@dataclass(frozen=True)
class Measure:
    """How a number of a summary is computed.

    Args:
        build (`Callable`): From the rows to the statistic over them.
        is_mean (`bool`): Whether it is the mean of the row values of the same name; images that lack the value in one
            of two results are then left out of both.
    """

    build: Callable[[Rows], Statistic]
    is_mean: bool = False


def column(rows: Rows, name: str, missing: float = np.nan) -> np.ndarray:
    """A row value of all rows.

    Args:
        rows (sequence of `ResultRow`): The rows.
        name (`str`): Name of the value.
        missing (`float`): What stands where a row has none.

    Returns:
        `np.ndarray` of shape `(num_rows,)`: `float64`.
    """
    return np.array([row.values.get(name, missing) for row in rows], dtype=np.float64)


def list_columns(rows: Rows, name: str) -> np.ndarray:
    """Lists of the same length of all rows.

    Args:
        rows (sequence of `ResultRow`): The rows.
        name (`str`): Name of the list.

    Returns:
        `np.ndarray` of shape `(num_rows, length)`: `float64`.
    """
    return np.array([row.lists[name] for row in rows], dtype=np.float64)


def mean_measure(name: str) -> Measure:
    """Mean over the images of a row value, those without it left out."""
    return Measure(lambda rows: weighted_mean(column(rows, name)), is_mean=True)


def summarise(
    rows: Rows, measures: dict[str, Measure], resampling: Resampling | None = None
) -> dict[str, SummaryValue]:
    """All numbers with their intervals: by patient, and by image where no patient is known.

    Args:
        rows (sequence of `ResultRow`): One for each image.
        measures (`dict[str, Measure]`): What to compute.
        resampling (`Resampling`, *optional*): How intervals are drawn.

    Returns:
        `dict[str, SummaryValue]`: In the order of `measures`.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("There are no images to summarise. Update the scores with at least one batch.")
    statistics = [measure.build(rows) for measure in measures.values()]
    intervals = bootstrap_intervals(statistics, len(rows), clusters_of(rows), resampling)
    return {
        name: SummaryValue(interval.value, interval.low, interval.high, statistic.n, statistic.undefined)
        for name, statistic, interval in zip(measures, statistics, intervals, strict=True)
    }
