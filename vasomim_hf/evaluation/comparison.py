"""Comparison of two models on the same images: differences with intervals and p-values, over one or more seeds."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .classification_metrics import classification_measures
from .detection_metrics import detection_measures
from .measures import Measure, Rows, column
from .results import (
    EvaluationResults,
    ResultRow,
    SummaryValue,
    clusters_of,
    format_interval,
    format_number,
    format_table,
)
from .segmentation_scores import segmentation_measures
from .statistics import (
    Pair,
    PairedTest,
    Resampling,
    Statistic,
    groups_of,
    mean_of,
    paired_test,
    weighted_mean,
    wilcoxon_p,
)


class Scores(Protocol):
    """Interface of the score accumulators, such as `SegmentationScores`."""

    kind: str
    labels: list[str]

    @property
    def rows(self) -> list[ResultRow]:
        """One per image."""

    def summary(self, resampling: Resampling | None = None) -> dict[str, SummaryValue]:
        """All summary values with confidence intervals."""


@dataclass(frozen=True)
class Description:
    """Metadata of an evaluation; see `EvaluationResults`."""

    task: str
    model: str
    data: str
    split: str
    settings: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """Comparison of one metric between two models.

    Args:
        test (`PairedTest`): Both values, their difference (first minus second) with interval, and the permutation p-value.
        wilcoxon_p (`float`): p-value of Wilcoxon's test; NaN for metrics that are not a mean over images.
        n (`int`): Number of images included.
        undefined (`int`): Number of images excluded because one of the models has no value.
        spread (`tuple` of two `float`): Standard deviation over the seeds of each model; NaN for one seed.
    """

    test: PairedTest
    wilcoxon_p: float
    n: int
    undefined: int
    spread: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Comparison of two models on the same images.

    Args:
        first (`str`): Name of the first model.
        second (`str`): Name of the second.
        num_images (`int`): Number of images.
        num_groups (`int`): Number of patients, or of images if patients are unknown: the units of resampling.
        num_seeds (`int`): Number of result files per model.
        differing_settings (`list[str]`): Settings that are not the same in all files.
        differences (`dict[str, Difference]`): By name of the metric.
    """

    first: str
    second: str
    num_images: int
    num_groups: int
    num_seeds: int
    differing_settings: list[str]
    differences: dict[str, Difference]


def build_results(scores: Scores, description: Description, resampling: Resampling | None = None) -> EvaluationResults:
    """Combine accumulated scores and metadata for `write_results`.

    Args:
        scores (`Scores`): After the last batch.
        description (`Description`): Metadata of the evaluation.
        resampling (`Resampling`, *optional*): Options of the intervals; stored in the settings.

    Returns:
        `EvaluationResults`: Including the summary.
    """
    resampling = resampling or Resampling()
    settings = description.settings | {"resampling": vars(resampling)}
    return EvaluationResults(
        kind=scores.kind,
        task=description.task,
        model=description.model,
        data=description.data,
        split=description.split,
        labels=list(scores.labels),
        rows=list(scores.rows),
        summary=scores.summary(resampling),
        settings=settings,
    )


def measures_of(results: EvaluationResults) -> dict[str, Measure]:
    """Metrics that can be computed from the rows of a result.

    Args:
        results (`EvaluationResults`): Of any task.

    Returns:
        `dict[str, Measure]`: By name.
    """
    return _MEASURES[results.kind](results)


_MEASURES: dict[str, Callable[[EvaluationResults], dict[str, Measure]]] = {
    "segmentation": lambda results: segmentation_measures(results.labels, results.rows),
    "detection": lambda results: detection_measures(results.labels),
    "classification": lambda results: classification_measures(results.labels),
}


def compare_results(
    first: EvaluationResults | Sequence[EvaluationResults],
    second: EvaluationResults | Sequence[EvaluationResults],
    names: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> Comparison:
    """Compare two models on the same images.

    Several results of a model are treated as its seeds: each metric is averaged over them, images or patients are
    resampled, and the spread over the seeds is reported separately. The interval describes variation between patients
    for these trained models; only the spread describes variation between training runs.

    Args:
        first (`EvaluationResults` or a sequence): Results of one model; as many seeds as `second`.
        second (`EvaluationResults` or a sequence): Results of the other model.
        names (sequence of `str`, *optional*): Metrics to compare; defaults to all that both have.
        resampling (`Resampling`, *optional*): Options of the intervals and p-values.

    Returns:
        `Comparison`: Differences are first minus second.

    Raises:
        ValueError: If the results differ in images, task, data or patients.
    """
    firsts = [first] if isinstance(first, EvaluationResults) else list(first)
    seconds = [second] if isinstance(second, EvaluationResults) else list(second)
    if not firsts or len(firsts) != len(seconds):
        raise ValueError(
            f"Both models need the same number of results (seeds), and at least one, got {len(firsts)} and "
            f"{len(seconds)}."
        )
    everything = [*firsts, *seconds]
    for other in everything[1:]:
        _check_same(everything[0], other)
    rows = [_in_order(results, everything[0].image_ids) for results in everything]
    measures = {name: measure for name, measure in measures_of(firsts[0]).items() if name in measures_of(seconds[0])}
    unknown = [name for name in names or () if name not in measures]
    if unknown:
        raise ValueError(
            f"These metrics are not in both results: {', '.join(unknown)}. Available: {', '.join(measures)}."
        )
    differences = {
        name: _difference(name, measures[name], rows[: len(firsts)], rows[len(firsts) :], resampling)
        for name in names or measures
    }
    return Comparison(
        first=firsts[0].model,
        second=seconds[0].model,
        num_images=len(rows[0]),
        num_groups=len(set(groups_of(clusters_of(rows[0]), len(rows[0])).tolist())),
        num_seeds=len(firsts),
        differing_settings=_differing_settings(everything),
        differences=differences,
    )


def _check_same(one: EvaluationResults, other: EvaluationResults) -> None:
    for name in ("kind", "task", "data", "split", "labels"):
        if getattr(one, name) != getattr(other, name):
            raise ValueError(
                f"Results of different evaluations cannot be compared: `{name}` is {getattr(one, name)!r} and "
                f"{getattr(other, name)!r}. Evaluate both models with the same options."
            )
    here, there = set(one.image_ids), set(other.image_ids)
    if here != there or len(here) != len(one.rows) or len(there) != len(other.rows):
        odd = [repr(i) for i in sorted(here ^ there)[:5]]
        raise ValueError(
            f"Results on different images cannot be compared: {len(here & there)} images are in both, "
            f"{len(here - there)} only in {one.model!r} and {len(there - here)} only in {other.model!r}"
            f"{' (for example ' + ', '.join(odd) + ')' if odd else ''}. Evaluate both models on the same split."
        )
    patients = {row.image_id: row.patient_id for row in one.rows}
    if any(patients[row.image_id] != row.patient_id for row in other.rows):
        raise ValueError(
            "The results assign the same image to different patients. Evaluate both models on the same data."
        )


def _in_order(results: EvaluationResults, image_ids: Sequence[str]) -> list[ResultRow]:
    rows = {row.image_id: row for row in results.rows}
    return [rows[i] for i in image_ids]


def _differing_settings(everything: Sequence[EvaluationResults]) -> list[str]:
    names = {name for results in everything for name in results.settings}
    texts = {name: {json.dumps(r.settings.get(name), sort_keys=True) for r in everything} for name in names}
    return sorted(name for name, found in texts.items() if len(found) > 1)


def _difference(
    name: str, measure: Measure, firsts: Sequence[Rows], seconds: Sequence[Rows], resampling: Resampling | None
) -> Difference:
    clusters = clusters_of(firsts[0])
    means, wilcoxon = _means(name, firsts, seconds, measure), float("nan")
    if means is None:
        parts = [[measure.build(rows) for rows in side] for side in (firsts, seconds)]
        mixed = [measure.build([*a, *b]) for a, b in zip(firsts, seconds, strict=True)]
    else:
        parts = [[weighted_mean(values) for values in side] for side in means]
        mixed = [weighted_mean(np.concatenate(both)) for both in zip(*means, strict=True)]
        wilcoxon = wilcoxon_p(means[0].mean(axis=0), means[1].mean(axis=0), clusters)
    first, second = mean_of(parts[0]), mean_of(parts[1])
    pair = Pair(first, second, mean_of(mixed).compute, len(clusters), clusters)
    spread = _spread(parts[0], len(clusters)), _spread(parts[1], len(clusters))
    return Difference(paired_test(pair, resampling), wilcoxon, first.n, first.undefined, spread)


def _means(
    name: str, firsts: Sequence[Rows], seconds: Sequence[Rows], measure: Measure
) -> tuple[np.ndarray, np.ndarray] | None:
    """Row values (S, N) of both models, NaN if undefined for any; `None` for metrics that are not means of row
    values."""
    if not measure.is_mean:
        return None
    values = np.stack([[column(rows, name) for rows in side] for side in (firsts, seconds)])
    values[:, :, np.isnan(values).any(axis=(0, 1))] = np.nan
    return values[0], values[1]


def _spread(parts: Sequence[Statistic], num_items: int) -> float:
    return float(np.std([part.value(num_items) for part in parts], ddof=1)) if len(parts) > 1 else float("nan")


def format_comparison(comparison: Comparison) -> str:
    """Format a comparison as text.

    Args:
        comparison (`Comparison`): Comparison to format.

    Returns:
        `str`: A header and a table.
    """
    head = ["", "first", "second", "difference", "interval", "p", "Wilcoxon p", "n", "undefined"]
    several = comparison.num_seeds > 1
    lines = []
    for name, entry in comparison.differences.items():
        test = entry.test
        numbers = [format_number(value) for value in (test.first, test.second, test.difference.value)]
        ends = format_interval(test.difference.low, test.difference.high)
        p_values = [format_number(test.p_value), format_number(entry.wilcoxon_p)]
        spreads = [format_number(value) for value in entry.spread] if several else []
        lines.append([name, *numbers, ends, *p_values, str(entry.n), str(entry.undefined), *spreads])
    head += ["spread of first", "spread of second"] if several else []
    title = (
        f"first: {comparison.first}, second: {comparison.second}; {comparison.num_images} images in "
        f"{comparison.num_groups} groups, {comparison.num_seeds} seeds each"
    )
    settings = f"\nsettings that differ: {', '.join(comparison.differing_settings)}" * bool(
        comparison.differing_settings
    )
    return f"{title}{settings}\n{format_table(head, lines)}\n"
