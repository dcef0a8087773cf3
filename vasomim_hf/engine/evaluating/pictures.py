"""Pictures of an evaluation: masks and uncertainty of each frame, and the frames that went best, middling and worst."""

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
# Of a detector, boxes that are drawn
DRAWN_SCORE = 0.3
# Right, missed and made up (of boxes: annotated and found), told apart by people who do not see red and green (Okabe and Ito, 2008)
HIT, MISSED, FALSE = (0, 158, 115), (86, 180, 233), (230, 159, 0)
# Colour of a square, if there is one, and text
LegendEntry = tuple[tuple[int, int, int] | None, str]
_OPACITY = 0.6
# The frame is beside it, and 25 colours need all of their strength
_CLASS_OPACITY = 0.8
_SIDE = 320
_WIDEST = 1304
_GAP = 4
_FONT_SIZE = 12
_LINE = 16
_SQUARE = 10
# Far from each other (30 and more in CIELAB, also over a mean grey) and from grey; the first ones farthest
_CLASS_COLOURS = (
    *("ffb98b", "7400ff", "00ff00", "ff008b", "008bff", "00ffd1", "ff1700", "ffe800", "2e7400", "ffa2ff"),
    *("00d1ff", "d1ff8b", "ff8b00", "a2465d", "ff46ff", "7446d1", "745d17", "17d146", "b94617", "745da2"),
    *("46a274", "a2e817", "ff0046", "b9a217", "a2178b"),
)
# Step of the hue from one class to the next where there are more
_GOLDEN_RATIO = 0.618034


def file_stem(image_id: str) -> str:
    """An id as the name of a file: other signs than letters, digits, dot, hyphen and underscore become underscores."""
    return re.sub(r"[^\w.-]", "_", image_id)


class MapWriter:
    """Writes `ID_mask.png` with class ids, shown in colours, and `ID_uncertainty.png`: 0 (sure) to 255 (all as probable).

    ID is that of [`file_stem`]; where two frames would share it, the later ones end in `-2`, `-3`, ...

    Args:
        folder (`str` or `Path`): Where to; it is made.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        # stems in small letters, since some file systems know no others
        self._taken: set[str] = set()

    def __call__(self, frame: ScoredFrame) -> None:
        """Write the maps of a frame of a segmentation."""
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
    """A colour for each class id: black for the background, white for a single class beside it.

    Args:
        num_labels (`int`): Number of classes, the background included.

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
    """Draw the frames that went best, middling and worst, asking the model for them once more.

    Args:
        folder (`str` or `Path`): Where to; it is made.
        results (`EvaluationResults`): Of all rows.
        scorer (`FrameScorer`): As it was asked before.
        rows (`LabelledRows`): As they were scored.

    Returns:
        `list[Path]`: `best.png`, `median.png` and `worst.png`, up to four frames in each: as it is, and with what was
        annotated and found. A legend at the end says which colour is which; several classes have a colour each, as in the
        masks of `MapWriter`, and a panel for what was annotated and one for what was found.
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
    """Draw frames with their labels and what the model predicts, as [`draw_cases`] does, but all of them and in order.

    Args:
        scorer (`FrameScorer`): Is asked for each frame.
        rows (`LabelledRows`): A few.

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
    """What is known of a frame without the metrics, whose packages need not be installed for training."""
    if results.kind == SEGMENTATION:
        counted = frame.target < len(results.labels)
        value = dice((_found(frame) > 0) & counted, (frame.target > 0) & counted)
        return f"{_all_classes(results)}Dice {value:.3f}"
    if results.kind == DETECTION:
        return _box_counts(len(frame.target.labels), frame)
    return _class_names(int(frame.prediction.argmax()), frame.target, frame.prediction.max(), results)


def choose_cases(rows: Sequence[ResultRow], kind: str) -> dict[str, list[ResultRow]]:
    """Rows that went best, middling and worst.

    Args:
        rows (sequence of `ResultRow`): Of an evaluation.
        kind (`str`): Segmentation (by Dice), detection (by the scores of right boxes, less those of wrong ones and the
            number of boxes missed) or classification (by the probability of the right class).

    Returns:
        `dict[str, list[ResultRow]]`: `best`, `median` and `worst`, up to four each; empty without rows that have the number.
    """
    known = [row for row in rows if not math.isnan(_goodness(row, kind))]
    ordered = sorted(known, key=lambda row: (-_goodness(row, kind), row.image_id))
    middle = max(0, (len(ordered) - NUM_CASES) // 2)
    places = {"best": slice(NUM_CASES), "median": slice(middle, middle + NUM_CASES), "worst": slice(-NUM_CASES, None)}
    return {name: ordered[place] for name, place in places.items() if ordered}


def _goodness(row: ResultRow, kind: str) -> float:
    if kind == SEGMENTATION:
        return row.values["dice"]
    if kind == CLASSIFICATION:
        confidence = row.values["confidence"]
        return confidence if row.values["accuracy"] else -confidence
    # the lowest bit says whether a box overlaps a target by half
    signed = [score if int(bits) & 1 else -score for score, bits in _scored_boxes(row)]
    return sum(signed) - (row.values["num_targets"] - row.values["num_found"])


def _scored_boxes(row: ResultRow) -> list[tuple[float, float]]:
    return list(zip(row.lists["scores"], row.lists["matches"], strict=True))


def _case(frame: ScoredFrame, numbers: str, results: EvaluationResults) -> Image.Image:
    """A frame, what was annotated and found on it, and below its id and numbers."""
    panels = _panels(frame, results)
    width = len(panels) * (_SIDE + _GAP) - _GAP
    canvas = Image.new("RGB", (width, _SIDE + 2 * _LINE), "white")
    for number, panel in enumerate(panels):
        canvas.paste(panel, (number * (_SIDE + _GAP), 0))
    for number, text in enumerate((frame.image_id, numbers)):
        _write(ImageDraw.Draw(canvas), (2, _SIDE + number * _LINE), _shortened(text, width - 4))
    return canvas


def _panels(frame: ScoredFrame, results: EvaluationResults) -> list[Image.Image]:
    """Pictures of a longer side of 320 pixels."""
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
    return "all classes as one: " if len(results.labels) > 2 else ""


def _box_counts(num_targets: int, frame: ScoredFrame) -> str:
    count = int((frame.prediction.scores >= DRAWN_SCORE).sum())
    return f"{num_targets} annotated, {count} found (score >= {DRAWN_SCORE})"


def _class_names(found: int, true: int, confidence: float, results: EvaluationResults) -> str:
    return f"found {results.labels[found]} ({confidence:.2f}), annotated {results.labels[true]}"


def _classes_of(frame: ScoredFrame, results: EvaluationResults) -> set[int]:
    """Of a segmentation: ids of classes, the background left out, that are annotated or found."""
    if results.kind != SEGMENTATION:
        return set()
    ids = np.union1d(frame.target, _found(frame)).tolist()
    return {number for number in ids if 0 < number < len(results.labels)}


def _legend(results: EvaluationResults, present: set[int]) -> list[LegendEntry]:
    """Colours with what they mean, of several classes those that are present."""
    if results.kind == CLASSIFICATION:
        return []
    if results.kind == DETECTION:
        return [(MISSED, "annotated"), (FALSE, f"found, with the score, if it is {DRAWN_SCORE} or more")]
    if len(results.labels) == 2:
        return [(HIT, "annotated and found"), (MISSED, "annotated, not found"), (FALSE, "found, not annotated")]
    colours = class_colours(len(results.labels)).tolist()
    named = [(tuple(colours[number]), results.labels[number]) for number in sorted(present)]
    return [(None, "left: the frame; middle: annotated; right: found"), *named]


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
    """Boxes over a copy of a panel, with lines as wide whatever the size of the frame; the surest on top."""
    drawn = panel.copy()
    draw, share = ImageDraw.Draw(drawn), _SIDE / max(frame.frame.shape)
    for corners in frame.target.corners * share:
        # around the place of a box found there, which would hide it
        draw.rectangle((corners + (-2, -2, 2, 2)).tolist(), outline=MISSED, width=2)
    found = frame.prediction
    for number in np.argsort(found.scores, kind="stable").tolist():
        if found.scores[number] >= DRAWN_SCORE:
            corners = found.corners[number] * share
            name = f"{labels[int(found.labels[number])]} " if len(labels) > 1 else ""
            draw.rectangle(corners.tolist(), outline=FALSE, width=2)
            _write_at_box(draw, corners, f"{name}{found.scores[number]:.2f}", drawn.size)
    return drawn


# Text and layout ----------------------------------------------------------------------------------------------------


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)


def _write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str) -> None:
    draw.text(place, text, fill="black", font=_font())


def _write_at_box(draw: ImageDraw.ImageDraw, corners: np.ndarray, text: str, panel: tuple[int, int]) -> None:
    """Text on black above a box, or below it where there is no room; never cut off."""
    text = _shortened(text, panel[0] - 4)
    width = math.ceil(_font().getlength(text)) + 4
    left = max(0.0, min(float(corners[0]), panel[0] - width))
    top = float(corners[1]) - _LINE if corners[1] >= _LINE else min(float(corners[3]) + 1, panel[1] - _LINE)
    draw.rectangle((left, top, left + width - 1, top + _LINE - 2), fill="black")
    draw.text((left + 2, top), text, fill=FALSE, font=_font())


def _shortened(text: str, width: int) -> str:
    """Text without its middle where it would be wider than so many pixels."""
    shown, half = text, len(text) // 2
    while half > 0 and _font().getlength(shown) > width:
        half -= 1
        shown = f"{text[:half]}...{text[len(text) - half :]}"
    return shown


def _stack(cases: Sequence[Image.Image], legend: Sequence[LegendEntry]) -> Image.Image:
    """Cases beside and below each other, and the legend."""
    width, height = cases[0].size
    columns = max(1, min(len(cases), (_WIDEST + 2 * _GAP) // (width + 2 * _GAP)))
    rows = math.ceil(len(cases) / columns)
    # one narrow case leaves no room for a legend
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
    """A legend broken into lines of so many pixels."""
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
