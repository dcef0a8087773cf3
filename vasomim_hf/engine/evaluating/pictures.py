"""Pictures of an evaluation: masks and uncertainty maps of all frames, and the best, median and worst frames."""

import colorsys
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...evaluation.calibration import predictive_entropy
from ...evaluation.mask_metrics import dice
from ...evaluation.results import EvaluationResults, ResultRow
from ...folders import atomic_file
from ..finetuning.rows import LabelledRows
from ..finetuning.run import CLASSIFICATION, DETECTION, SEGMENTATION
from .scoring import FrameScorer, ScoredFrame


NUM_CASES = 4
# minimum score of boxes that are drawn
DRAWN_SCORE = 0.3
# true positive, false negative (or annotation, for boxes) and false positive (or prediction); distinguishable with
# colour blindness (Okabe and Ito, 2008)
HIT, MISSED, FALSE = (0, 158, 115), (86, 180, 233), (230, 159, 0)
# optional colour of a square, and text
LegendEntry = tuple[tuple[int, int, int] | None, str]
_OPACITY = 0.6
# nearly opaque: the frame is shown next to it, and 25 colours must remain distinguishable
_CLASS_OPACITY = 0.8
_SIDE = 320
_WIDEST = 1304
_GAP = 4
_FONT_SIZE = 12
_LINE = 16
_SQUARE = 10
# far apart from each other (at least 30 in CIELAB, also over medium grey) and from grey, in descending order
_CLASS_COLOURS = (
    *("ffb98b", "7400ff", "00ff00", "ff008b", "008bff", "00ffd1", "ff1700", "ffe800", "2e7400", "ffa2ff"),
    *("00d1ff", "d1ff8b", "ff8b00", "a2465d", "ff46ff", "7446d1", "745d17", "17d146", "b94617", "745da2"),
    *("46a274", "a2e817", "ff0046", "b9a217", "a2178b"),
)
# hue step between further classes
_GOLDEN_RATIO = 0.618034


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


def class_colours(num_labels: int) -> np.ndarray:
    """Colours of the class ids: black for the background, white for a single foreground class.

    Args:
        num_labels (`int`): Number of classes, including the background.

    Returns:
        `np.ndarray` of shape `(num_labels, 3)`: `uint8`, red, green and blue.
    """
    if num_labels <= 2:
        return np.array([[0, 0, 0], [255, 255, 255]], dtype=np.uint8)[:num_labels]
    named = [tuple(bytes.fromhex(colour)) for colour in _CLASS_COLOURS[: num_labels - 1]]
    hues = (np.arange(num_labels - 1 - len(named)) * _GOLDEN_RATIO) % 1
    more = [colorsys.hsv_to_rgb(hue, 0.6, 1.0) for hue in hues]
    return np.array([(0, 0, 0), *named, *(tuple(round(255 * level) for level in one) for one in more)], dtype=np.uint8)


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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    places = {image_id: number for number, image_id in enumerate(rows.image_ids)}
    written = []
    for name, chosen in choose_cases(results.rows, results.kind).items():
        values = {row.image_id: row for row in chosen}
        frames = scorer.frames(rows.select([places[row.image_id] for row in chosen]))
        cases, present = [], set()
        for frame in frames:
            cases.append(_case(frame, _numbers(frame, values[frame.image_id], results), results))
            present |= _classes_of(frame, results)
        _save(_stack(cases, _legend(results, present)), folder / f"{name}.png")
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
    about = EvaluationResults(scorer.kind, "", "", "", "", labels=list(scorer.labels), rows=[], summary={})
    cases, present = [], set()
    for frame in scorer.frames(rows):
        cases.append(_case(frame, _caption(frame, about), about))
        present |= _classes_of(frame, about)
    return _stack(cases, _legend(about, present))


def _caption(frame: ScoredFrame, results: EvaluationResults) -> str:
    """Caption without metrics from optional packages, which are not required for training."""
    if results.kind == SEGMENTATION:
        counted = frame.target < len(results.labels)
        value = dice((_found(frame) > 0) & counted, (frame.target > 0) & counted)
        return f"{_all_classes(results)}Dice {value:.3f}"
    if results.kind == DETECTION:
        return _box_counts(len(frame.target.labels), frame)
    return _class_names(int(frame.prediction.argmax()), frame.target, frame.prediction.max(), results)


def choose_cases(rows: Sequence[ResultRow], kind: str) -> dict[str, list[ResultRow]]:
    """Select the best, median and worst rows.

    Args:
        rows (sequence of `ResultRow`): Rows of an evaluation.
        kind (`str`): Segmentation (by Dice), detection (by scores of true positives minus those of false positives and the
            number of missed boxes) or classification (by the probability of the true class).

    Returns:
        `dict[str, list[ResultRow]]`: `best`, `median` and `worst`, up to four each; empty if no row has the value.
    """
    known = [row for row in rows if not math.isnan(_ranking_score(row, kind))]
    ordered = sorted(known, key=lambda row: (-_ranking_score(row, kind), row.image_id))
    middle = max(0, (len(ordered) - NUM_CASES) // 2)
    places = {"best": slice(NUM_CASES), "median": slice(middle, middle + NUM_CASES), "worst": slice(-NUM_CASES, None)}
    return {name: ordered[place] for name, place in places.items() if ordered}


def _ranking_score(row: ResultRow, kind: str) -> float:
    if kind == SEGMENTATION:
        return row.values["dice"]
    if kind == CLASSIFICATION:
        confidence = row.values["confidence"]
        return confidence if row.values["accuracy"] else -confidence
    # the lowest bit is set if IoU with a target is at least 0.5
    signed = [score if int(bits) & 1 else -score for score, bits in _scored_boxes(row)]
    return sum(signed) - (row.values["num_targets"] - row.values["num_found"])


def _scored_boxes(row: ResultRow) -> list[tuple[float, float]]:
    return list(zip(row.lists["scores"], row.lists["matches"], strict=True))


def _case(frame: ScoredFrame, numbers: str, results: EvaluationResults) -> Image.Image:
    """A frame with annotation and prediction, and its id and metrics below."""
    panels = _panels(frame, results)
    width = len(panels) * (_SIDE + _GAP) - _GAP
    canvas = Image.new("RGB", (width, _SIDE + 2 * _LINE), "white")
    for number, panel in enumerate(panels):
        canvas.paste(panel, (number * (_SIDE + _GAP), 0))
    for number, text in enumerate((frame.image_id, numbers)):
        _write(ImageDraw.Draw(canvas), (2, _SIDE + number * _LINE), _shortened(text, width - 4))
    return canvas


def _panels(frame: ScoredFrame, results: EvaluationResults) -> list[Image.Image]:
    """Panels with a longer side of 320 pixels."""
    grey = _fitted(Image.fromarray(frame.frame).convert("RGB"))
    if results.kind == CLASSIFICATION:
        return [grey]
    if results.kind == DETECTION:
        return [grey, _draw_boxes(grey, frame, results.labels)]
    if len(results.labels) == 2:
        return [grey, _fitted(_paint(frame))]
    return [
        grey,
        *(_fitted(_colour(frame.frame, ids, len(results.labels))) for ids in (frame.target, _found(frame))),
    ]


def _fitted(image: Image.Image) -> Image.Image:
    share = _SIDE / max(image.size)
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _numbers(frame: ScoredFrame, row: ResultRow, results: EvaluationResults) -> str:
    if results.kind == SEGMENTATION:
        return f"{_all_classes(results)}Dice {row.values['dice']:.3f}, clDice {row.values['cl_dice']:.3f}"
    if results.kind == DETECTION:
        return _box_counts(int(row.values["num_targets"]), frame)
    values = row.values
    return _class_names(int(values["predicted"]), int(values["target"]), values["confidence"], results)


def _all_classes(results: EvaluationResults) -> str:
    return "all classes merged: " if len(results.labels) > 2 else ""


def _box_counts(num_targets: int, frame: ScoredFrame) -> str:
    count = int((frame.prediction.scores >= DRAWN_SCORE).sum())
    return f"{num_targets} annotated, {count} predicted (score >= {DRAWN_SCORE})"


def _class_names(found: int, true: int, confidence: float, results: EvaluationResults) -> str:
    return f"predicted {results.labels[found]} ({confidence:.2f}), annotated {results.labels[true]}"


def _classes_of(frame: ScoredFrame, results: EvaluationResults) -> set[int]:
    """Foreground class ids of a segmentation that are annotated or predicted."""
    if results.kind != SEGMENTATION:
        return set()
    ids = np.union1d(frame.target, _found(frame)).tolist()
    return {number for number in ids if 0 < number < len(results.labels)}


def _legend(results: EvaluationResults, present: set[int]) -> list[LegendEntry]:
    """Colours and their meaning; with several classes, only those present."""
    if results.kind == CLASSIFICATION:
        return []
    if results.kind == DETECTION:
        return [(MISSED, "annotated"), (FALSE, f"predicted, with score, if at least {DRAWN_SCORE}")]
    if len(results.labels) == 2:
        return [(HIT, "true positive"), (MISSED, "missed"), (FALSE, "false positive")]
    colours = class_colours(len(results.labels)).tolist()
    named = [(tuple(colours[number]), results.labels[number]) for number in sorted(present)]
    return [(None, "left: the frame; middle: annotated; right: predicted"), *named]


def _found(frame: ScoredFrame) -> np.ndarray:
    return frame.prediction.argmax(axis=0)


def _colour(grey: np.ndarray, ids: np.ndarray, num_labels: int) -> Image.Image:
    """Class ids of shape (height, width) in colours over a frame; ignored pixels stay grey."""
    painted = (ids > 0) & (ids < num_labels)
    picture = np.repeat(grey[:, :, None], 3, axis=2).astype(np.float32)
    colours = class_colours(num_labels)[ids[painted]]
    picture[painted] = (1 - _CLASS_OPACITY) * picture[painted] + _CLASS_OPACITY * colours
    return Image.fromarray(np.rint(picture).astype(np.uint8))


def _paint(frame: ScoredFrame) -> Image.Image:
    found, true = _found(frame), frame.target
    counted = true <= len(frame.prediction) - 1
    right = (found == true) & (true > 0)
    parts = ((right, HIT), ((true > 0) & ~right & counted, MISSED), ((found > 0) & (true == 0), FALSE))
    picture = np.repeat(frame.frame[:, :, None], 3, axis=2).astype(np.float32)
    for part, colour in parts:
        picture[part] = (1 - _OPACITY) * picture[part] + _OPACITY * np.array(colour, dtype=np.float32)
    return Image.fromarray(np.rint(picture).astype(np.uint8))


def _draw_boxes(panel: Image.Image, frame: ScoredFrame, labels: Sequence[str]) -> Image.Image:
    """Boxes over a copy of a panel, with constant line width; the highest-scoring on top."""
    drawn = panel.copy()
    draw, share = ImageDraw.Draw(drawn), _SIDE / max(frame.frame.shape)
    for corners in frame.target.corners * share:
        # slightly larger, so that a predicted box in the same place does not hide it
        draw.rectangle((corners + (-2, -2, 2, 2)).tolist(), outline=MISSED, width=2)
    found = frame.prediction
    for number in np.argsort(found.scores, kind="stable").tolist():
        if found.scores[number] >= DRAWN_SCORE:
            corners = found.corners[number] * share
            name = f"{labels[int(found.labels[number])]} " if len(labels) > 1 else ""
            draw.rectangle(corners.tolist(), outline=FALSE, width=2)
            _write_at_box(draw, corners, f"{name}{found.scores[number]:.2f}", drawn.size)
    return drawn


# Text and layout
# ------------------------------------------------------------------------------------------------------


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)


def _write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str) -> None:
    draw.text(place, text, fill="black", font=_font())


def _write_at_box(draw: ImageDraw.ImageDraw, corners: np.ndarray, text: str, panel: tuple[int, int]) -> None:
    """Text on black above a box, or below it if there is no room; never clipped."""
    text = _shortened(text, panel[0] - 4)
    width = math.ceil(_font().getlength(text)) + 4
    left = max(0.0, min(float(corners[0]), panel[0] - width))
    top = float(corners[1]) - _LINE if corners[1] >= _LINE else min(float(corners[3]) + 1, panel[1] - _LINE)
    draw.rectangle((left, top, left + width - 1, top + _LINE - 2), fill="black")
    draw.text((left + 2, top), text, fill=FALSE, font=_font())


def _shortened(text: str, width: int) -> str:
    """Text with its middle omitted if it is wider than a number of pixels."""
    shown, half = text, len(text) // 2
    while half > 0 and _font().getlength(shown) > width:
        half -= 1
        shown = f"{text[:half]}...{text[len(text) - half :]}"
    return shown


def _stack(cases: Sequence[Image.Image], legend: Sequence[LegendEntry]) -> Image.Image:
    """Arrange cases in a grid with a legend below."""
    width, height = cases[0].size
    columns = max(1, min(len(cases), (_WIDEST + 2 * _GAP) // (width + 2 * _GAP)))
    rows = math.ceil(len(cases) / columns)
    # a single narrow case leaves no room for a legend
    total = max(columns * (width + 2 * _GAP) - 2 * _GAP, 2 * _SIDE if legend else 0)
    lines = _legend_lines(legend, total)
    canvas = Image.new("RGB", (total, rows * (height + _GAP) + _LINE * len(lines)), "white")
    for number, case in enumerate(cases):
        row, column = divmod(number, columns)
        canvas.paste(case, (column * (width + 2 * _GAP), row * (height + _GAP)))
    for number, line in enumerate(lines):
        _draw_legend(ImageDraw.Draw(canvas), line, top=rows * (height + _GAP) + number * _LINE)
    return canvas


def _entry_width(entry: LegendEntry) -> int:
    colour, text = entry
    return int(_font().getlength(text)) + 20 + (_SQUARE + 4 if colour is not None else 0)


def _legend_lines(legend: Sequence[LegendEntry], width: int) -> list[list[LegendEntry]]:
    """Wrap a legend to lines of a number of pixels."""
    lines: list[list[LegendEntry]] = []
    left = width
    for colour, text in legend:
        entry = (colour, _shortened(text, width - 40))
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
        _write(draw, (begin, top), text)
        left += _entry_width((colour, text))


def _save(image: Image.Image, path: Path) -> None:
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
