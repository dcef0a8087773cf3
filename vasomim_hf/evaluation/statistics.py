"""Uncertainty of metrics: bootstrap intervals and paired permutation tests, clustered by patient if known.

A statistic is a function of the weight of each item, `weights (R, N) -> (R,)`: all ones give the value itself, the
counts of a bootstrap resample its replicate, and zeros exclude items. The same code thus handles means, pooled ratios,
areas under curves and average precision.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from ..import_utils import require


Weighing = Callable[[np.ndarray], np.ndarray]

_BLOCK = 4_000_000  # weights per block, to bound memory for any number of resamples


@dataclass(frozen=True)
class Statistic:
    """A statistic over items, such as the images of a split.

    Args:
        compute (`Callable`): From weights `np.ndarray` of shape `(num_replicates, num_items)`, float >= 0, to values
            of shape `(num_replicates,)`; NaN if undefined.
        n (`int`): Number of items included.
        undefined (`int`): Number of items excluded because they have no value.
    """

    compute: Weighing
    n: int
    undefined: int = 0

    def value(self, num_items: int) -> float:
        """Value with every item counted once."""
        return float(self.compute(np.ones((1, num_items)))[0])


@dataclass(frozen=True)
class Resampling:
    """Options of confidence intervals and p-values.

    Args:
        level (`float`): Coverage of intervals, in (0, 1).
        num_resamples (`int`): Bootstrap resamples per interval.
        num_permutations (`int`): Random permutations per test; if there are no more than this, all are enumerated.
        method (`str`): `"bca"` (bias-corrected and accelerated; Efron, 1987) or `"percentile"`.
        seed (`int`): Random seed.
    """

    level: float = 0.95
    num_resamples: int = 2000
    num_permutations: int = 5000
    method: str = "bca"
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.level < 1:
            raise ValueError(f"`level` must be between 0 and 1, got {self.level}. Pass 0.95 for a 95 % interval.")
        if self.method not in ("bca", "percentile"):
            raise ValueError(f"`method` must be 'bca' or 'percentile', got {self.method!r}.")
        if min(self.num_resamples, self.num_permutations) < 1:
            raise ValueError(
                f"`num_resamples` and `num_permutations` must be positive, got {self.num_resamples} and "
                f"{self.num_permutations}."
            )


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval; the bounds are NaN if there is no interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Difference of two values on the same items (first minus second), its interval, and the p-value of no
    difference."""

    first: float
    second: float
    difference: Interval
    p_value: float


def weighted_mean(values: np.ndarray) -> Statistic:
    """Mean over the items that have a value.

    Args:
        values (`np.ndarray` of shape `(num_items,)`): float; NaN for items without a value.

    Returns:
        `Statistic`: The mean; NaN if no item has a value.
    """
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)

    def compute(weights: np.ndarray) -> np.ndarray:
        return safe_ratio(weights @ filled, weights @ known.astype(np.float64))

    return Statistic(compute, n=int(known.sum()), undefined=int((~known).sum()))


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """Mean of several statistics over the same items, such as those of several seeds."""

    def compute(weights: np.ndarray) -> np.ndarray:
        return np.mean([statistic.compute(weights) for statistic in statistics], axis=0)

    return Statistic(compute, min(s.n for s in statistics), max(s.undefined for s in statistics))


def safe_ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Quotient, NaN if the denominator is 0.

    Args:
        part (`np.ndarray` of any shape): float.
        whole (`np.ndarray` of the shape of `part`): float.

    Returns:
        `np.ndarray` of the shape of `part`: float.
    """
    result = np.full(np.broadcast_shapes(np.shape(part), np.shape(whole)), np.nan)
    return np.divide(part, whole, out=result, where=np.asarray(whole) != 0)


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean along the last axis without NaN; NaN if nothing is left.

    Args:
        values (`np.ndarray` of shape `(num_replicates, num_classes)`): float.

    Returns:
        `np.ndarray` of shape `(num_replicates,)`: float.
    """
    known = ~np.isnan(values)
    return safe_ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))


def groups_of(clusters: Sequence[Hashable] | None, num_items: int) -> np.ndarray:
    """Number the groups that are resampled as a whole.

    Args:
        clusters (sequence of `num_items` hashables, *optional*): Patient of each item; an item with `None` is its own
            group. Without clusters, every item is.
        num_items (`int`): Number of items.

    Returns:
        `np.ndarray` of shape `(num_items,)`: `int64`, consecutive from 0 in order of appearance.

    Raises:
        ValueError: If the number of clusters differs from the number of items.
    """
    if clusters is None:
        return np.arange(num_items)
    if len(clusters) != num_items:
        raise ValueError(f"`clusters` must have one group per item for {num_items} items, got {len(clusters)}.")
    numbers: dict[Hashable, int] = {}
    keys = (("item", i) if cluster is None else ("group", cluster) for i, cluster in enumerate(clusters))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def bootstrap_interval(
    statistic: Statistic,
    num_items: int,
    clusters: Sequence[Hashable] | None = None,
    resampling: Resampling | None = None,
) -> Interval:
    """Bootstrap confidence interval; groups are resampled with replacement, each with all of its items.

    Replicates in which the statistic is undefined are excluded, for example if a rare class was not drawn.

    Args:
        statistic (`Statistic`): Statistic of interest.
        num_items (`int`): Number of items.
        clusters (sequence of `num_items` hashables, *optional*): Patient of each item; without it, items are resampled.
        resampling (`Resampling`, *optional*): Level, method, seed.

    Returns:
        `Interval`: With NaN bounds if there are fewer than two groups or the statistic is undefined.

    Example:
        >>> bootstrap_interval(weighted_mean(np.array([0.5, 0.7, 0.9])), 3, resampling=Resampling(method="percentile"))
        Interval(value=0.7000000000000001, low=0.5, high=0.9)
    """
    return bootstrap_intervals([statistic], num_items, clusters, resampling)[0]


def bootstrap_intervals(
    statistics: Sequence[Statistic],
    num_items: int,
    clusters: Sequence[Hashable] | None = None,
    resampling: Resampling | None = None,
) -> list[Interval]:
    """`bootstrap_interval` for several statistics over the same items, using the same resamples.

    Args:
        statistics (sequence of `Statistic`): Statistics of interest.
        num_items (`int`): Number of items.
        clusters (sequence of `num_items` hashables, *optional*): Patient of each item.
        resampling (`Resampling`, *optional*): Level, method, seed.

    Returns:
        `list[Interval]`: In the order of `statistics`.
    """
    resampling = resampling or Resampling()
    groups = groups_of(clusters, num_items)
    values = [statistic.value(num_items) if num_items else float("nan") for statistic in statistics]
    if not num_items or groups.max() < 1:
        return [Interval(value, float("nan"), float("nan")) for value in values]
    replicates = _replicates_of(statistics, _resamples(groups, resampling))
    is_bca = resampling.method == "bca"
    without = _replicates_of(statistics, _leaving_one_out(groups)) if is_bca else [np.empty(0)] * len(values)
    parts = zip(values, replicates, without, strict=True)
    return [_interval(value, _known(found), _known(left), resampling.level) for value, found, left in parts]


def _interval(value: float, replicates: np.ndarray, without: np.ndarray, level: float) -> Interval:
    if np.isnan(value) or not len(replicates):
        return Interval(value, float("nan"), float("nan"))
    quantiles = _corrected_quantiles(((1 - level) / 2, (1 + level) / 2), value, replicates, without)
    low, high = np.quantile(replicates, quantiles)
    return Interval(value, float(low), float(high))


def _replicates_of(statistics: Sequence[Statistic], blocks: Iterator[np.ndarray]) -> list[np.ndarray]:
    found: list[list[np.ndarray]] = [[] for _ in statistics]
    for weights in blocks:
        for values, statistic in zip(found, statistics, strict=True):
            values.append(statistic.compute(weights))
    return [np.concatenate(values) for values in found]


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _resamples(groups: np.ndarray, resampling: Resampling) -> Iterator[np.ndarray]:
    """Blocks of weights (R, N): how often the group of each item was drawn."""
    rng = np.random.default_rng(resampling.seed)
    num_groups = int(groups.max()) + 1
    for rows in _blocks(resampling.num_resamples, len(groups)):
        drawn = rng.integers(0, num_groups, (rows, num_groups))
        flat = (drawn + np.arange(rows)[:, None] * num_groups).ravel()
        counts = np.bincount(flat, minlength=rows * num_groups).reshape(rows, num_groups)
        yield counts[:, groups].astype(np.float64)


def _blocks(rows: int, columns: int) -> Iterator[int]:
    size = max(1, _BLOCK // max(columns, 1))
    yield from (min(size, rows - start) for start in range(0, rows, size))


def _leaving_one_out(groups: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of weights (R, N), each row without one of the groups."""
    start = 0
    for rows in _blocks(int(groups.max()) + 1, len(groups)):
        yield (groups[None] != np.arange(start, start + rows)[:, None]).astype(np.float64)
        start += rows


def _corrected_quantiles(
    quantiles: tuple[float, float], value: float, replicates: np.ndarray, without: np.ndarray
) -> tuple[float, float]:
    """Quantiles of the replicates used by BCa (Efron and Tibshirani, 1993, section 14.3)."""
    normal = NormalDist()
    below = ((replicates < value).mean() + (replicates <= value).mean()) / 2
    if not 0 < below < 1 or not len(without):
        return quantiles
    bias = normal.inv_cdf(float(below))
    away = without.mean() - without
    # rounding errors if all are equal
    spread = float((away**2).sum()) if not np.allclose(away, 0, atol=1e-12) else 0.0
    acceleration = float((away**3).sum()) / (6 * spread**1.5) if spread else 0.0
    moved = [bias + normal.inv_cdf(share) for share in quantiles]
    low, high = (normal.cdf(bias + z / (1 - acceleration * z)) for z in moved)
    return low, high


@dataclass(frozen=True)
class Pair:
    """A statistic of two models on the same items.

    Args:
        first (`Statistic`): Of the first model.
        second (`Statistic`): Of the second model.
        exchanged (`Callable`): Statistic from weights for the items of both models: from shape
            `(num_replicates, 2 * num_items)` to `(num_replicates,)`.
        num_items (`int`): Number of items.
        clusters (sequence of `num_items` hashables, *optional*): Patient of each item.
    """

    first: Statistic
    second: Statistic
    exchanged: Weighing
    num_items: int
    clusters: Sequence[Hashable] | None = field(default=None)

    def difference(self) -> Statistic:
        """First minus second."""

        def compute(weights: np.ndarray) -> np.ndarray:
            return self.first.compute(weights) - self.second.compute(weights)

        return Statistic(compute, min(self.first.n, self.second.n))


def paired_test(pair: Pair, resampling: Resampling | None = None) -> PairedTest:
    """Test the difference between two models on the same items.

    The interval comes from a paired bootstrap, which uses the same resampled items for both models. The p-value comes
    from a two-sided paired permutation test: under the null hypothesis the results of a group can be exchanged between
    the models, and p is the fraction of exchanges with a difference at least as large as the observed one. All
    exchanges are enumerated if they are few; otherwise the observed one is added to the random ones (Phipson and
    Smyth, 2010), so p is never 0. For means this is the sign-flip test.

    Args:
        pair (`Pair`): The statistic of both models.
        resampling (`Resampling`, *optional*): Level, method, seed.

    Returns:
        `PairedTest`: p is NaN if the difference is undefined.
    """
    resampling = resampling or Resampling()
    first, second = pair.first.value(pair.num_items), pair.second.value(pair.num_items)
    interval = bootstrap_interval(pair.difference(), pair.num_items, pair.clusters, resampling)
    p_value = float("nan") if np.isnan(interval.value) else _permutation_p(pair, interval.value, resampling)
    return PairedTest(first, second, interval, p_value)


def _permutation_p(pair: Pair, found: float, resampling: Resampling) -> float:
    groups = groups_of(pair.clusters, pair.num_items)
    extreme, total = 0, 0
    is_exact = 2 ** (int(groups.max()) + 1) <= resampling.num_permutations
    # tolerance for rounding
    bound = abs(found) - 1e-9 * max(abs(found), 1e-3)
    for exchange in _exchanges(groups, is_exact, resampling):
        stay = 1.0 - exchange
        first = pair.exchanged(np.concatenate([stay, exchange], axis=1))
        second = pair.exchanged(np.concatenate([exchange, stay], axis=1))
        difference = np.abs(first - second)
        extreme += int((difference >= bound).sum())
        total += int((~np.isnan(difference)).sum())
    return extreme / total if is_exact else (extreme + 1) / (total + 1)


def _exchanges(groups: np.ndarray, is_exact: bool, resampling: Resampling) -> Iterator[np.ndarray]:
    """Blocks of (R, N), 1 if the group of the item is exchanged."""
    num_groups = int(groups.max()) + 1
    rng = np.random.default_rng(resampling.seed)
    start = 0
    for rows in _blocks(2**num_groups if is_exact else resampling.num_permutations, 2 * len(groups)):
        numbers = np.arange(start, start + rows)[:, None]
        flips = numbers >> np.arange(num_groups) & 1 if is_exact else rng.integers(0, 2, (rows, num_groups))
        yield flips[:, groups].astype(np.float64)
        start += rows


def wilcoxon_p(first: np.ndarray, second: np.ndarray, clusters: Sequence[Hashable] | None = None) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test, to check the permutation test. Needs the extra `eval`.

    Args:
        first (`np.ndarray` of shape `(num_items,)`): float; NaN for items without a value.
        second (`np.ndarray` of shape `(num_items,)`): float.
        clusters (sequence of `num_items` hashables, *optional*): Patient of each item; the mean differences per patient
            are ranked.

    Returns:
        `float`: 1 if there are no nonzero differences, NaN if no item has both values.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    known = ~np.isnan(difference)
    if not known.any():
        return float("nan")
    groups = groups_of(clusters, len(difference))[known]
    counts = np.bincount(groups)
    means = np.bincount(groups, weights=difference[known])[counts > 0] / counts[counts > 0]
    # equal results may differ in the last bit
    means[np.abs(means) < 1e-12] = 0.0
    if not means.any():
        return 1.0
    return float(require("scipy.stats", extra="eval").wilcoxon(means).pvalue)
