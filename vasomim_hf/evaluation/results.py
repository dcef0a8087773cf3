"""The file of an evaluation: what was evaluated, one row of numbers for each image, and the summary.

It is plain JSON: an undefined number is `null`. The rows are enough to compute everything in the summary again, so that two
files can be compared without the models. They hold ids and numbers, no pixels.
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
# More numbers of single classes than these are shown in a table of their own
_MOST_CLASS_LINES = 12


@dataclass(frozen=True)
class ResultRow:
    """The numbers of one image.

    Args:
        image_id (`str`): Unique in the file.
        patient_id (`str`, *optional*): Patient, where known; intervals are by patient then.
        values (`dict[str, float]`): Numbers by name; NaN where undefined.
        lists (`dict[str, list[float]]`): What has several numbers, such as the scores of the boxes found.
    """

    image_id: str
    patient_id: str | None
    values: dict[str, float]
    lists: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class SummaryValue:
    """A number over the images with its confidence interval.

    Args:
        value (`float`): NaN where undefined.
        low (`float`): Lower end of the interval; NaN where there is none.
        high (`float`): Upper end.
        n (`int`): Images that count.
        undefined (`int`): Images without this number, which are left out.
    """

    value: float
    low: float
    high: float
    n: int
    undefined: int


@dataclass(frozen=True)
class EvaluationResults:
    """One model on one split.

    Args:
        kind (`str`): `"segmentation"`, `"detection"` or `"classification"`: says what the rows hold.
        task (`str`): Such as `"vessel"`.
        model (`str`): Name of the model.
        data (`str`): Name of the data set.
        split (`str`): Such as `"val"`.
        labels (`list[str]`): Names of the classes, in the order of their ids.
        rows (`list[ResultRow]`): One for each image.
        summary (`dict[str, SummaryValue]`): By name of the number.
        settings (`dict[str, Any]`): How it was computed, as JSON can hold it: thresholds, test-time augmentation, ...
        version (`str`): Of this package.
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
        """Ids of the images, in the order of the rows."""
        return [row.image_id for row in self.rows]


class RowCollector:
    """Keeps the rows of an evaluation and refuses an image that comes twice."""

    def __init__(self) -> None:
        self.rows: list[ResultRow] = []
        self._seen: set[str] = set()

    def check(self, image_ids: Sequence[str], patient_ids: Sequence[str | None] | None, count: int) -> None:
        """Refuse ids that do not fit a batch, before anything of it is counted.

        Args:
            image_ids (sequence of `str`): Ids of the batch.
            patient_ids (sequence of `str` or `None`, *optional*): Patients of the batch.
            count (`int`): Images in the batch.

        Raises:
            ValueError: If there are not as many ids as images, or an id was there before.
        """
        for name, ids in (("image_ids", image_ids), ("patient_ids", patient_ids)):
            if ids is not None and len(ids) != count:
                raise ValueError(f"`{name}` must name each of the {count} images of the batch, got {len(ids)}.")
        twice = sorted({i for i in image_ids if i in self._seen} | _repeated(image_ids))
        if twice:
            raise ValueError(
                f"Images may be counted once, got again: {', '.join(twice[:5])}. Pass unique `image_ids`."
            )

    def add(self, row: ResultRow) -> None:
        """Keep a row whose id was checked."""
        self._seen.add(row.image_id)
        self.rows.append(row)


def clusters_of(rows: Sequence[ResultRow]) -> list[Hashable]:
    """Patient of each row, `None` where unknown."""
    return [row.patient_id for row in rows]


def write_results(results: EvaluationResults, path: str | os.PathLike) -> None:
    """Write the file as a whole.

    Args:
        results (`EvaluationResults`): What to write.
        path (`str` or `os.PathLike`): JSON file; one that is there is replaced.

    Raises:
        ValueError: If a number is infinite, or a setting cannot be written as JSON.
    """
    # not asdict: it copies every number of every row
    content = {"schema": SCHEMA} | {entry.name: getattr(results, entry.name) for entry in fields(results)}
    content["rows"] = [vars(row) for row in results.rows]
    content["summary"] = {name: asdict(value) for name, value in results.summary.items()}
    try:
        text = json.dumps(_without_nan(content), indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The results cannot be written as JSON: {error}. Settings must be plain values.") from error
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_results(path: str | os.PathLike) -> EvaluationResults:
    """Read a file of `write_results`, with checks.

    Args:
        path (`str` or `os.PathLike`): The JSON file.

    Returns:
        `EvaluationResults`: The same as was written.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is none of `write_results`, or of a later format.
    """
    content = _read_json(Path(path))
    try:
        rows = [_row(row) for row in content.pop("rows")]
        summary = {name: _summary_value(value) for name, value in content.pop("summary").items()}
        results = EvaluationResults(rows=rows, summary=summary, **content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is a damaged result file: {what}. Write it again with `vasomim evaluate`."
        ) from error
    _check(results, path)
    return results


def _read_json(path: Path) -> dict[str, Any]:
    """What a file holds beside its schema, which is checked."""
    remedy = "Pass a file that `vasomim evaluate --output` wrote."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no result file {path}. {remedy}") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{path} is a folder, and no result file. {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no result file: it is no JSON ({error}). {remedy}") from error
    if not isinstance(content, dict) or "schema" not in content or "rows" not in content:
        raise ValueError(f"{path} is no result file: it has no rows of an evaluation in it. {remedy}")
    schema = content.pop("schema")
    if schema != SCHEMA:
        raise ValueError(
            f"{path}: its format is {schema!r}, and this version of the package reads {SCHEMA}. Install the version that wrote "
            "it, or evaluate again."
        )
    return content


def _check(results: EvaluationResults, path: str | os.PathLike) -> None:
    if results.kind not in KINDS:
        raise ValueError(f"{path}: `kind` must be one of {', '.join(KINDS)}, got {results.kind!r}.")
    if twice := sorted(_repeated(results.image_ids)):
        raise ValueError(f"{path}: images come twice: {', '.join(twice[:5])}. Each may have one row.")


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


def _repeated(ids: Sequence[str]) -> set[str]:
    return {i for i, count in Counter(ids).items() if count > 1}


# To read ------------------------------------------------------------------------------------------------------------


def format_results(results: EvaluationResults) -> str:
    """The summary as text for people.

    Args:
        results (`EvaluationResults`): What to show.

    Returns:
        `str`: A head and a table: name, value, interval, images that count, images left out as undefined. Where there are
        many numbers of single classes, they stand in a table of their own, with a line for each class and no intervals.
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
    """A line for each class, of numbers called MEASURE/CLASS."""
    if not summary:
        return ""
    names = [name.partition("/") for name in summary]
    measures = list(dict.fromkeys(measure for measure, _, _ in names))
    lines = []
    for label in dict.fromkeys(label for _, _, label in names):
        found = [summary.get(f"{measure}/{label}") for measure in measures]
        # pooled numbers count all images, means those that have the class
        fewest = min(entry.n for entry in found if entry is not None)
        lines.append((label, *("–" if entry is None else format_number(entry.value) for entry in found), str(fewest)))
    return f"\n{format_table(('class', *measures, 'n'), lines)}\nn: images that have the class. Intervals of the classes are in the file.\n"


def format_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first to the left and the others to the right.

    Args:
        head (sequence of `str`): Names of the columns.
        lines (sequence of sequence of `str`): Cells.

    Returns:
        `str`: Without a line end after the last line.

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
    """Four digits after the point, or a dash for an undefined number."""
    return "–" if math.isnan(value) else f"{value:.4f}"


def format_interval(low: float, high: float) -> str:
    """Both ends, or a dash where there is no interval."""
    return "–" if math.isnan(low) or math.isnan(high) else f"{low:.4f} to {high:.4f}"
