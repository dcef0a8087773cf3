"""Result files: metadata of an evaluation, one row per image, and the summary.

Plain JSON; undefined values are `null`. The summary can be recomputed from the rows, so two files can be compared
without the models. They contain ids and numbers, no pixels.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..folders import atomic_file
from ..version import __version__


SCHEMA = 1
KINDS = ("segmentation", "detection", "classification")
# with more per-class metrics than this, they are formatted as a separate table
_MOST_CLASS_LINES = 12


@dataclass(frozen=True)
class ResultRow:
    """Values of one image.

    Args:
        image_id (`str`): Unique in the file.
        patient_id (`str`, *optional*): Patient id, if known; intervals then resample patients instead of images.
        values (`dict[str, float]`): Metrics by name; NaN if undefined.
        lists (`dict[str, list[float]]`): Lists by name, such as the scores of the predicted boxes.
    """

    image_id: str
    patient_id: str | None
    values: dict[str, float]
    lists: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class SummaryValue:
    """A summary metric with its confidence interval.

    Args:
        value (`float`): NaN if undefined.
        low (`float`): Lower bound of the interval; NaN if there is none.
        high (`float`): Upper bound.
        n (`int`): Number of images included.
        undefined (`int`): Number of images excluded because the metric is undefined.
    """

    value: float
    low: float
    high: float
    n: int
    undefined: int


@dataclass(frozen=True)
class EvaluationResults:
    """Evaluation of one model on one split.

    Args:
        kind (`str`): `"segmentation"`, `"detection"` or `"classification"`; determines the contents of the rows.
        task (`str`): Task, such as `"vessel"`.
        model (`str`): Name of the model.
        data (`str`): Name of the data set.
        split (`str`): Split, such as `"val"`.
        labels (`list[str]`): Class names in the order of their ids.
        rows (`list[ResultRow]`): One per image.
        summary (`dict[str, SummaryValue]`): By name of the metric.
        settings (`dict[str, Any]`): Options of the evaluation, JSON-serialisable: thresholds, test-time augmentation, ...
        version (`str`): Version of this package.
    """

    kind: str
    task: str
    model: str
    data: str
    split: str
    labels: list[str]
    rows: list[ResultRow]
    summary: dict[str, SummaryValue]
    settings: dict[str, Any] = field(default_factory=dict)
    version: str = __version__

    @property
    def image_ids(self) -> list[str]:
        """Image ids in the order of the rows."""
        return [row.image_id for row in self.rows]


class RowCollector:
    """Collects the rows of an evaluation and rejects duplicate images."""

    def __init__(self) -> None:
        self.rows: list[ResultRow] = []
        self._seen: set[str] = set()

    def check(self, image_ids: Sequence[str], patient_ids: Sequence[str | None] | None, count: int) -> None:
        """Check the ids of a batch before it is added.

        Args:
            image_ids (sequence of `str`): Ids of the batch.
            patient_ids (sequence of `str` or `None`, *optional*): Patients of the batch.
            count (`int`): Images in the batch.

        Raises:
            ValueError: If the number of ids is wrong, or an id occurred before.
        """
        for name, ids in (("image_ids", image_ids), ("patient_ids", patient_ids)):
            if ids is not None and len(ids) != count:
                raise ValueError(f"`{name}` must have one id per image for {count} images, got {len(ids)}.")
        duplicates = sorted({i for i in image_ids if i in self._seen} | _duplicates(image_ids))
        if duplicates:
            raise ValueError(f"Duplicate images: {', '.join(duplicates[:5])}. Pass unique `image_ids`.")

    def add(self, row: ResultRow) -> None:
        """Add a row whose id has been checked."""
        self._seen.add(row.image_id)
        self.rows.append(row)


def clusters_of(rows: Sequence[ResultRow]) -> list[Hashable]:
    """Patient of each row, `None` if unknown."""
    return [row.patient_id for row in rows]


def write_results(results: EvaluationResults, path: str | os.PathLike) -> None:
    """Write a result file atomically.

    Args:
        results (`EvaluationResults`): Results to write.
        path (`str` or `os.PathLike`): JSON file; an existing one is replaced.

    Raises:
        ValueError: If a value is infinite, or a setting is not JSON-serialisable.
    """
    # not asdict, which copies every value of every row
    content = {"schema": SCHEMA} | {entry.name: getattr(results, entry.name) for entry in fields(results)}
    content["rows"] = [vars(row) for row in results.rows]
    content["summary"] = {name: asdict(value) for name, value in results.summary.items()}
    try:
        text = json.dumps(_without_nan(content), indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The results cannot be written as JSON: {error}. Settings must be JSON-serialisable."
        ) from error
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_results(path: str | os.PathLike) -> EvaluationResults:
    """Read and validate a result file.

    Args:
        path (`str` or `os.PathLike`): JSON file written by `write_results`.

    Returns:
        `EvaluationResults`: Same as written.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a result file, or has a newer format.
    """
    content = _read_json(Path(path))
    try:
        rows = [_row(row) for row in content.pop("rows")]
        summary = {name: _summary_value(value) for name, value in content.pop("summary").items()}
        results = EvaluationResults(rows=rows, summary=summary, **content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not a valid result file: {what}. Recreate it with `vasomim evaluate`.") from error
    _check(results, path)
    return results


def _read_json(path: Path) -> dict[str, Any]:
    """Contents of a file without its schema version, which is checked."""
    remedy = "Pass a file written by `vasomim evaluate --output`."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Result file {path} does not exist. {remedy}") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{path} is a folder, not a result file. {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a result file: invalid JSON ({error}). {remedy}") from error
    if not isinstance(content, dict) or "schema" not in content or "rows" not in content:
        raise ValueError(f"{path} is not a result file: it contains no evaluation rows. {remedy}")
    schema = content.pop("schema")
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has format {schema!r}; this version of the package reads format {SCHEMA}. Install the version "
            "that wrote the file, or evaluate again."
        )
    return content


def _check(results: EvaluationResults, path: str | os.PathLike) -> None:
    if results.kind not in KINDS:
        raise ValueError(f"{path}: `kind` must be one of {', '.join(KINDS)}, got {results.kind!r}.")
    if duplicates := sorted(_duplicates(results.image_ids)):
        raise ValueError(f"{path}: duplicate images: {', '.join(duplicates[:5])}. Expected one row per image.")


def _row(row: Mapping[str, Any]) -> ResultRow:
    values = {name: _number(value) for name, value in row["values"].items()}
    lists = {name: [_number(value) for value in entries] for name, entries in row["lists"].items()}
    return ResultRow(row["image_id"], row["patient_id"], values, lists)


def _summary_value(value: Mapping[str, Any]) -> SummaryValue:
    number, low, high = (_number(value[name]) for name in ("value", "low", "high"))
    return SummaryValue(number, low, high, n=int(value["n"]), undefined=int(value["undefined"]))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def _duplicates(ids: Sequence[str]) -> set[str]:
    return {i for i, count in Counter(ids).items() if count > 1}


# Formatting
# -----------------------------------------------------------------------------------------------------------


def format_results(results: EvaluationResults) -> str:
    """Format the summary as text.

    Args:
        results (`EvaluationResults`): Results to format.

    Returns:
        `str`: A header and a table: name, value, interval, images included, images excluded as undefined. Many
        per-class metrics are shown in a separate table with one line per class, without intervals.
    """
    head = f"{results.model}: {results.task} on {results.data}, {results.split}, {len(results.rows)} images"
    of_classes = {name: entry for name, entry in results.summary.items() if "/" in name}
    if len(of_classes) <= _MOST_CLASS_LINES:
        of_classes = {}
    lines = [
        (name, format_number(entry.value), format_interval(entry.low, entry.high), str(entry.n), str(entry.undefined))
        for name, entry in results.summary.items()
        if name not in of_classes
    ]
    table = format_table(("", "value", "interval", "n", "undefined"), lines)
    return f"{head}\n{table}\n{_format_classes(of_classes)}"


def _format_classes(summary: Mapping[str, SummaryValue]) -> str:
    """Format per-class metrics (named METRIC/CLASS) with one line per class."""
    if not summary:
        return ""
    names = [name.partition("/") for name in summary]
    measures = list(dict.fromkeys(measure for measure, _, _ in names))
    lines = []
    for label in dict.fromkeys(label for _, _, label in names):
        found = [summary.get(f"{measure}/{label}") for measure in measures]
        # pooled metrics count all images, means only those with the class
        fewest = min(entry.n for entry in found if entry is not None)
        lines.append((label, *("–" if entry is None else format_number(entry.value) for entry in found), str(fewest)))
    return f"\n{format_table(('class', *measures, 'n'), lines)}\nn: images with the class. Per-class intervals are in the file.\n"


def format_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format columns of text, the first left-aligned and the others right-aligned.

    Args:
        head (sequence of `str`): Column names.
        lines (sequence of sequence of `str`): Cells.

    Returns:
        `str`: Without a trailing newline.

    Example:
        >>> print(format_table(("", "value"), [("dice", "0.5")]))
              value
        dice    0.5
    """
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    aligned = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in (head, *lines)
    ]
    return "\n".join("  ".join(cells) for cells in aligned)


def format_number(value: float) -> str:
    """Four decimals, or a dash for an undefined value."""
    return "–" if math.isnan(value) else f"{value:.4f}"


def format_interval(low: float, high: float) -> str:
    """Both bounds, or a dash if there is no interval."""
    return "–" if math.isnan(low) or math.isnan(high) else f"{low:.4f} to {high:.4f}"
