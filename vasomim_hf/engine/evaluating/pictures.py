"""Pictures of an evaluation: masks and uncertainty maps of all frames, and the best, median and worst frames."""

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ...evaluation.calibration import predictive_entropy
from ...evaluation.results import EvaluationResults, ResultRow
from ...folders import atomic_file
from ..finetuning.rows import LabelledRows
from ..tasks.painting import LINE, SIDE, LegendEntry, class_colours, font, shortened, write
from ..tasks.registry import find_task
from ..tasks.task import ScoredFrame, Task
from .scoring import FrameScorer


NUM_CASES = 4
_WIDEST = 1304
_GAP = 4
_SQUARE = 10


def file_stem(image_id: str) -> str:
    """File name for an id: characters other than letters, digits, dot, hyphen and underscore become underscores."""
    return re.sub(r"[^\w.-]", "_", image_id)


class MapWriter:
    """Writes `ID_mask.png` with class ids as a palette image, and `ID_uncertainty.png`: 0 (certain) to 255 (uniform).

    ID is that of [`file_stem`]; for duplicates, later ones end in `-2`, `-3`, ...

    Args:
        folder (`str` or `Path`): Output folder; created if missing.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        # lower case, because some file systems are case-insensitive
        self._taken: set[str] = set()

    def __call__(self, frame: ScoredFrame) -> None:
        """Write the maps of a segmented frame."""
        ids = frame.prediction.argmax(axis=0).astype(np.uint8)
        entropy = predictive_entropy(frame.prediction[None])
        stem = self._free_stem(file_stem(frame.image_id))
        mask = Image.fromarray(ids, mode="P")
        mask.putpalette(class_colours(len(frame.prediction)).tobytes())
        uncertainty = Image.fromarray(np.rint(entropy * 255).astype(np.uint8))
        for name, picture in (("mask", mask), ("uncertainty", uncertainty)):
            _save(picture, self.folder / f"{stem}_{name}.png")

    def _free_stem(self, stem: str) -> str:
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        free = next(name for name in names if name.lower() not in self._taken)
        self._taken.add(free.lower())
        return free


def draw_cases(folder: str | Path, results: EvaluationResults, scorer: FrameScorer, rows: LabelledRows) -> list[Path]:
    """Draw the best, median and worst frames, with new predictions of the model.

    Args:
        folder (`str` or `Path`): Output folder; created if missing.
        results (`EvaluationResults`): Results for all rows.
        scorer (`FrameScorer`): Scorer used in the evaluation.
        rows (`LabelledRows`): Evaluated rows.

    Returns:
        `list[Path]`: `best.png`, `median.png` and `worst.png`, up to four frames each: the frame, and the frame with
        annotation and prediction. A legend explains the colours; with several classes, each has its own colour, as in
        the masks of `MapWriter`, and annotation and prediction are separate panels.
    """
    folder, task = Path(folder), scorer.task
    folder.mkdir(parents=True, exist_ok=True)
    places = {image_id: number for number, image_id in enumerate(rows.image_ids)}
    written = []
    for name, chosen in choose_cases(results.rows, results.kind).items():
        values = {row.image_id: row for row in chosen}
        frames = scorer.frames(rows.select([places[row.image_id] for row in chosen]))
        cases, present = [], set()
        for frame in frames:
            text = task.describe(frame, values[frame.image_id], results.labels)
            cases.append(_case(task.panels(frame, results.labels), frame.image_id, text))
            present |= task.drawn_classes(frame, results.labels)
        _save(_stack(cases, task.legend(results.labels, present)), folder / f"{name}.png")
        written.append(folder / f"{name}.png")
    return written


def draw_frames(scorer: FrameScorer, rows: LabelledRows) -> Image.Image:
    """Draw annotations and predictions for frames, as in [`draw_cases`] but for all rows, in order.

    Args:
        scorer (`FrameScorer`): Predicts each frame.
        rows (`LabelledRows`): A few rows.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    return draw_scored(scorer.task, scorer.frames(rows), scorer.labels)


def draw_scored(task: Task, frames: Iterable[ScoredFrame], labels: Sequence[str]) -> Image.Image:
    """Draw given annotations and predictions.

    Args:
        task (`Task`): Task of the frames.
        frames (iterable of `ScoredFrame`): A few frames with labels and predictions.
        labels (sequence of `str`): Class names.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    cases, present = [], set()
    for frame in frames:
        cases.append(_case(task.panels(frame, labels), frame.image_id, task.caption(frame, labels)))
        present |= task.drawn_classes(frame, labels)
    return _stack(cases, task.legend(labels, present))


def choose_cases(rows: Sequence[ResultRow], kind: str) -> dict[str, list[ResultRow]]:
    """Select the best, median and worst rows.

    Args:
        rows (sequence of `ResultRow`): Rows of an evaluation.
        kind (`str`): Task that ranks the rows, see [`Task.rank`].

    Returns:
        `dict[str, list[ResultRow]]`: `best`, `median` and `worst`, up to four each; empty if no row has the value.
    """
    rank = find_task(kind).rank
    known = [row for row in rows if not math.isnan(rank(row))]
    ordered = sorted(known, key=lambda row: (-rank(row), row.image_id))
    middle = max(0, (len(ordered) - NUM_CASES) // 2)
    places = {"best": slice(NUM_CASES), "median": slice(middle, middle + NUM_CASES), "worst": slice(-NUM_CASES, None)}
    return {name: ordered[place] for name, place in places.items() if ordered}


def _case(panels: Sequence[Image.Image], *texts: str) -> Image.Image:
    """Panels of a frame, and its id and metrics below."""
    width = len(panels) * (SIDE + _GAP) - _GAP
    canvas = Image.new("RGB", (width, SIDE + 2 * LINE), "white")
    for number, panel in enumerate(panels):
        canvas.paste(panel, (number * (SIDE + _GAP), 0))
    for number, text in enumerate(texts):
        write(ImageDraw.Draw(canvas), (2, SIDE + number * LINE), shortened(text, width - 4))
    return canvas


# Text and layout
# ------------------------------------------------------------------------------------------------------


def _stack(cases: Sequence[Image.Image], legend: Sequence[LegendEntry]) -> Image.Image:
    """Arrange cases in a grid with a legend below."""
    width, height = cases[0].size
    columns = max(1, min(len(cases), (_WIDEST + 2 * _GAP) // (width + 2 * _GAP)))
    rows = math.ceil(len(cases) / columns)
    # a single narrow case leaves no room for a legend
    total = max(columns * (width + 2 * _GAP) - 2 * _GAP, 2 * SIDE if legend else 0)
    lines = _legend_lines(legend, total)
    canvas = Image.new("RGB", (total, rows * (height + _GAP) + LINE * len(lines)), "white")
    for number, case in enumerate(cases):
        row, column = divmod(number, columns)
        canvas.paste(case, (column * (width + 2 * _GAP), row * (height + _GAP)))
    for number, line in enumerate(lines):
        _draw_legend(ImageDraw.Draw(canvas), line, top=rows * (height + _GAP) + number * LINE)
    return canvas


def _entry_width(entry: LegendEntry) -> int:
    colour, text = entry
    return int(font().getlength(text)) + 20 + (_SQUARE + 4 if colour is not None else 0)


def _legend_lines(legend: Sequence[LegendEntry], width: int) -> list[list[LegendEntry]]:
    """Wrap a legend to lines of a number of pixels."""
    lines: list[list[LegendEntry]] = []
    left = width
    for colour, text in legend:
        entry = (colour, shortened(text, width - 40))
        if left + _entry_width(entry) > width:
            lines.append([])
            left = 2
        lines[-1].append(entry)
        left += _entry_width(entry)
    return lines


def _draw_legend(draw: ImageDraw.ImageDraw, line: Sequence[LegendEntry], top: int) -> None:
    left = 2
    for colour, text in line:
        begin = left
        if colour is not None:
            draw.rectangle((left, top + 3, left + _SQUARE - 1, top + 2 + _SQUARE), fill=colour)
            begin += _SQUARE + 4
        write(draw, (begin, top), text)
        left += _entry_width((colour, text))


def _save(image: Image.Image, path: Path) -> None:
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
