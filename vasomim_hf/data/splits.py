"""Splits that keep frames of the same patient, study or near-duplicate group together.

A model trained on one frame of a cine recognises the next one in the test set. Rows that share a value in any of the
given columns are connected, directly or indirectly, and each connected component is assigned to a single split.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..import_utils import require
from .near_duplicates import join_rows


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)

DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}
# columns that group frames, from the strongest to the weakest
GROUP_COLUMNS = ("patient_id", "study_id", "near_duplicate_group")

Columns = Mapping[str, Sequence[Any] | np.ndarray]


class _Component(NamedTuple):
    """A connected component of rows, with two random numbers in [0, 1) (for order and split) and its stratum."""

    rows: np.ndarray
    draws: tuple[float, float]
    stratum: Hashable


def split_by_group(
    dataset_or_columns: "datasets.Dataset | Columns",
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    *,
    by: str | Sequence[str] | None = None,
    seed: int = 0,
    stratify: str | None = None,
) -> "datasets.DatasetDict | dict[str, np.ndarray]":
    """Split rows while keeping those of the same patient, study or near-duplicate group together.

    Rows with an equal value in any of the columns `by` stay together, also indirectly. Null, NaN and the empty string
    connect nothing. Components are assigned to splits in descending order of size, each to a random split with
    sufficient remaining room, in proportion to that room. The random numbers depend on `seed` and the values in `by`,
    not on the order of the rows, except for values that are row indices (such as near-duplicate groups) and rows
    without values.

    Args:
        dataset_or_columns (`datasets.Dataset` or mapping of columns): Rows to split; columns have equal lengths.
        fractions (`Mapping[str, float]`, *optional*, defaults to 0.8 `train`, 0.1 `validation`, 0.1 `test`):
            Fraction of the rows for each split, in (0, 1], with a sum of 1.
        by (`str` or `Sequence[str]`, *optional*):
            Columns whose values connect rows. `None` uses those of `GROUP_COLUMNS` that exist.
        seed (`int`, *optional*, defaults to 0): Random seed.
        stratify (`str`, *optional*):
            Column whose values should have the same distribution in each split, such as `"source"`. A component counts
            with its most frequent value.

    Returns:
        `datasets.DatasetDict` for a data set, without copying it; for columns a dictionary with an `np.ndarray` of
        shape `(num_rows_of_split,)`, `int64` row indices, for each split. Rows keep their order.

    Raises:
        TypeError: If the data set is streamed.
        ValueError: If a column is missing, the fractions do not sum to 1, or there are fewer components than splits.

    Example:
        >>> columns = {"patient_id": ["a", "a", "b", "c"], "near_duplicate_group": [0, 1, 1, 3]}
        >>> {name: rows.tolist() for name, rows in split_by_group(columns, {"train": 0.75, "test": 0.25}).items()}
        {'train': [0, 1, 2], 'test': [3]}
    """
    _check_fractions(fractions)
    names = _names(by, [dataset_or_columns])
    columns = _read_columns(dataset_or_columns, [*names, *([stratify] if stratify else [])])
    _warn_of_empty({name: columns[name] for name in names})
    components = _components({name: columns[name] for name in names}, columns.get(stratify or ""), seed)
    _check_components(components, fractions, names)
    rows = _deal(components, fractions)
    if _is_columns(dataset_or_columns):
        return rows
    dataset: Any = dataset_or_columns
    splits = {name: dataset.select(indices) for name, indices in rows.items()}
    return require("datasets", extra="data").DatasetDict(splits)


def leaks(
    splits: "Mapping[str, datasets.Dataset | Columns]", by: str | Sequence[str] | None = None
) -> dict[str, dict[Any, tuple[str, ...]]]:
    """Find values that occur in more than one split.

    Near-duplicate groups can only be compared if they were computed over all splits together.

    Args:
        splits (`Mapping[str, datasets.Dataset or mapping of columns]`): Splits by name, such as a `DatasetDict`.
        by (`str` or `Sequence[str]`, *optional*):
            Columns to check; `None` uses those of `GROUP_COLUMNS` that all splits have. Null, NaN and empty strings
            are ignored.

    Returns:
        `dict[str, dict[Any, tuple[str, ...]]]`: For each column, the values in several splits and these splits; empty
        if there are none.

    Raises:
        TypeError: If a split is streamed.
        ValueError: If a split has no such column.

    Example:
        >>> leaks({"train": {"patient_id": ["a", "b"]}, "test": {"patient_id": ["b", None]}}, by="patient_id")
        {'patient_id': {'b': ('train', 'test')}}
    """
    names = _names(by, list(splits.values()))
    found: dict[str, dict[Any, list[str]]] = {name: defaultdict(list) for name in names}
    for split, data in splits.items():
        for name, values in _read_columns(data, names).items():
            for value in dict.fromkeys(value for value in values if not _is_null(value)):
                found[name][value].append(split)
    return {
        name: {value: tuple(held) for value, held in values.items() if len(held) > 1} for name, values in found.items()
    }


def _warn_of_empty(columns: dict[str, list[Any]]) -> None:
    empty = [name for name, values in columns.items() if all(_is_null(value) for value in values)]
    if empty:
        logger.warning(
            "No row has a value in %s, so no rows are grouped by it. For your own files, patient ids require a salt, "
            "see `ReadOptions`.",
            ", ".join(f"`{name}`" for name in empty),
        )


# Reading
# --------------------------------------------------------------------------------------------------------------


def _names(by: str | Sequence[str] | None, tables: Sequence[Any]) -> list[str]:
    if by is None:
        present = [set(table if _is_columns(table) else _column_names(table)) for table in tables]
        by = [name for name in GROUP_COLUMNS if all(name in columns for columns in present)] or GROUP_COLUMNS[:1]
    names = [by] if isinstance(by, str) else list(by)
    if not names:
        raise ValueError("`by` is empty. Pass the columns to group by, such as `patient_id`.")
    return names


def _read_columns(data: Any, names: Iterable[str]) -> dict[str, list[Any]]:
    """Columns as lists of plain values."""
    present = list(data) if _is_columns(data) else _column_names(data)
    missing = [name for name in names if name not in present]
    if missing:
        raise ValueError(
            f"There is no column {', '.join(f'`{name}`' for name in missing)}, only {', '.join(present)}. Pass the "
            "columns to group by as `by`; add near-duplicate groups with `near_duplicate_groups`."
        )
    plain = data if _is_columns(data) else data.with_format(None)
    columns = {name: np.asarray(plain[name], dtype=object).tolist() for name in names}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Columns must have equal lengths, got {lengths}.")
    return columns


def _is_columns(data: object) -> bool:
    # a DatasetDict is also a mapping
    return isinstance(data, Mapping) and not any(hasattr(values, "column_names") for values in data.values())


def _column_names(data: Any) -> list[str]:
    if not isinstance(data, require("datasets", extra="data").Dataset):
        raise TypeError(
            f"Expected a `datasets.Dataset` or a mapping of columns, got {type(data).__name__}. Load a streamed data "
            "set with streaming=False; combine the splits of a DatasetDict with `datasets.concatenate_datasets`."
        )
    return data.column_names


def _is_null(value: Any) -> bool:
    return value is None or value == "" or value != value


# Components
# -----------------------------------------------------------------------------------------------------------


def _components(columns: Mapping[str, list[Any]], strata: list[Any] | None, seed: int) -> list[_Component]:
    """Connected components, in descending order of size, then by their random numbers."""
    parents = np.arange(len(next(iter(columns.values()))))
    for values in columns.values():
        rows, first_rows = _rows_of_values(values)
        join_rows(parents, rows, first_rows)
    order = np.argsort(parents, kind="stable")
    starts = np.flatnonzero(np.diff(parents[order], prepend=-1))
    components = [
        _Component(rows, _draws(columns, rows, seed), _most_frequent(strata, rows))
        for rows in np.split(order, starts[1:])
        if len(rows)
    ]
    return sorted(components, key=lambda component: (-len(component.rows), component.draws))


def _rows_of_values(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Rows with a value, and for each the first row with the same value."""
    first: dict[Any, int] = {}
    pairs = [(row, first.setdefault(value, row)) for row, value in enumerate(values) if not _is_null(value)]
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _draws(columns: Mapping[str, list[Any]], rows: np.ndarray, seed: int) -> tuple[float, float]:
    """Random numbers in [0, 1) from the seed and the first column that has a value in these rows."""
    for name, values in columns.items():
        keys = {f"{name}={values[row]}" for row in rows if not _is_null(values[row])}
        if keys:
            return min(_hashed(f"{seed} {key}") for key in keys)
    return _hashed(f"{seed} row {rows[0]}")


def _hashed(text: str) -> tuple[float, float]:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48, int.from_bytes(digest[6:12], "big") / 2**48


def _most_frequent(strata: list[Any] | None, rows: np.ndarray) -> Hashable:
    if strata is None:
        return None
    return max(sorted(Counter(str(strata[row]) for row in rows).items()), key=lambda item: item[1])[0]


# Assignment
# -----------------------------------------------------------------------------------------------------------


def _check_fractions(fractions: Mapping[str, float]) -> None:
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(
            f"`fractions` must be above 0 and sum to 1, got {dict(fractions)} with a sum of "
            f"{sum(fractions.values()):.4g}. Omit splits that should stay empty."
        )


def _check_components(components: list[_Component], fractions: Mapping[str, float], names: list[str]) -> None:
    if len(components) < len(fractions):
        raise ValueError(
            f"{len(fractions)} splits ({', '.join(fractions)}) need at least as many groups of rows, but grouping by "
            f"{', '.join(names)} gives {len(components)}. Use fewer splits, or group by fewer columns."
        )
    total, largest = sum(len(component.rows) for component in components), len(components[0].rows)
    small = [f"{name} {fraction * total:.0f}" for name, fraction in fractions.items() if largest > fraction * total]
    if small:
        logger.warning(
            "the largest of %d groups has %d of %d rows, more than these splits should have: %s. It is assigned to a "
            "larger split, and split sizes may deviate from the fractions.",
            len(components),
            largest,
            total,
            ", ".join(small),
        )


def _deal(components: list[_Component], fractions: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Row indices of each split. The remainder of one stratum carries over to the next."""
    strata: dict[Hashable, list[_Component]] = defaultdict(list)
    for component in components:
        strata[component.stratum].append(component)
    dealt: dict[str, list[np.ndarray]] = {name: [] for name in fractions}
    room = dict.fromkeys(fractions, 0.0)
    left = len(components)
    for _, members in sorted(strata.items(), key=lambda item: str(item[0])):
        size = sum(len(component.rows) for component in members)
        room = {name: room[name] + fraction * size for name, fraction in fractions.items()}
        for component in members:
            empty = [name for name in fractions if not dealt[name]]
            among = empty if len(empty) == left else list(fractions)
            name = _choose({name: room[name] for name in among}, component)
            dealt[name].append(component.rows)
            room[name] -= len(component.rows)
            left -= 1
    return {name: np.sort(np.concatenate(rows)) for name, rows in dealt.items()}


def _choose(room: Mapping[str, float], component: _Component) -> str:
    """A random split with room for the component, in proportion to its room; otherwise the one with the most room."""
    fitting = {name: free for name, free in room.items() if free >= len(component.rows) - 0.5}
    if not fitting:
        return max(room, key=lambda name: room[name])
    ends = np.cumsum([max(free, 0.0) for free in fitting.values()])
    at = int(np.searchsorted(ends, component.draws[1] * ends[-1], side="right"))
    return list(fitting)[min(at, len(fitting) - 1)]
