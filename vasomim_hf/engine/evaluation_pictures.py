"""Pictures of an evaluation: masks and uncertainty of each frame, and the frames that went best, middling and worst."""

import colorsys
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..evaluation.calibration import predictive_entropy
from ..evaluation.results import EvaluationResults, ResultRow
from ..folders import atomic_file
from .finetune_config import CLASSIFICATION, DETECTION, SEGMENTATION
from .finetune_rows import LabelledRows
from .scoring import FrameScorer, ScoredFrame


NUM_CASES = 4
# Of a detector, boxes that are drawn
DRAWN_SCORE = 0.3
# Right, missed and made up (of boxes: annotated and found), told apart by people who do not see red and green (Okabe and Ito, 2008)
HIT, MISSED, FALSE = (0, 158, 115), (86, 180, 233), (230, 159, 0)
_OPACITY = 0.6
_SIDE = 320
_GAP = 4
_CAPTION = 16
# Step of the hue from one class to the next: neighbours differ most, and no two of 25 are the same
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
    hues = (np.arange(num_labels - 1) * _GOLDEN_RATIO) % 1
    bright = [colorsys.hsv_to_rgb(hue, 0.55 + 0.45 * (number % 2), 1.0) for number, hue in enumerate(hues)]
    return np.rint(np.array([(0.0, 0.0, 0.0), *bright]) * 255).astype(np.uint8)


def draw_cases(folder: str | Path, results: EvaluationResults, scorer: FrameScorer, rows: LabelledRows) -> list[Path]:
    """Draw the frames that went best, middling and worst, asking the model for them once more.

    Args:
        folder (`str` or `Path`): Where to; it is made.
        results (`EvaluationResults`): Of all rows.
        scorer (`FrameScorer`): As it was asked before.
        rows (`LabelledRows`): As they were scored.

    Returns:
        `list[Path]`: `best.png`, `median.png` and `worst.png`, up to four frames in each: as it is, and with what was
        annotated and found. A line at the end says which colour is which; several classes have a colour each and a panel
        for what was annotated and one for what was found.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    places = {image_id: number for number, image_id in enumerate(rows.image_ids)}
    written = []
    for name, chosen in choose_cases(results.rows, results.kind).items():
        values = {row.image_id: row for row in chosen}
        frames = scorer.frames(rows.select([places[row.image_id] for row in chosen]))
        cases = [_case(frame, values[frame.image_id], results) for frame in frames]
        _save(_stack(cases, _legend(results)), folder / f"{name}.png")
        written.append(folder / f"{name}.png")
    return written


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


def _case(frame: ScoredFrame, row: ResultRow, results: EvaluationResults) -> Image.Image:
    """A frame, what was annotated and found on it, and a line below."""
    panels = _panels(frame, results)
    share = _SIDE / max(panels[0].size)
    size = (max(1, round(panels[0].width * share)), max(1, round(panels[0].height * share)))
    # a line of text needs room also where there is one panel
    width = max(2, len(panels)) * (_SIDE + _GAP) - _GAP
    canvas = Image.new("RGB", (width, _SIDE + _CAPTION), "white")
    for number, panel in enumerate(panels):
        canvas.paste(panel.resize(size, Image.Resampling.LANCZOS), (number * (_SIDE + _GAP), 0))
    ImageDraw.Draw(canvas).text((2, _SIDE + 2), f"{frame.image_id}  {_numbers(frame, row, results)}", fill="black")
    return canvas


def _panels(frame: ScoredFrame, results: EvaluationResults) -> list[Image.Image]:
    grey = Image.fromarray(frame.frame).convert("RGB")
    if results.kind == CLASSIFICATION:
        return [grey]
    if results.kind == DETECTION:
        drawn = grey.copy()
        _draw_boxes(drawn, frame)
        return [grey, drawn]
    if len(results.labels) == 2:
        return [grey, _paint(frame)]
    return [grey, *(_colour(frame.frame, ids, len(results.labels)) for ids in (frame.target, _found(frame)))]


def _numbers(frame: ScoredFrame, row: ResultRow, results: EvaluationResults) -> str:
    if results.kind == SEGMENTATION:
        return f"Dice {row.values['dice']:.3f}  clDice {row.values['cl_dice']:.3f}"
    if results.kind == DETECTION:
        count = int((frame.prediction.scores >= DRAWN_SCORE).sum())
        return f"{row.values['num_targets']:.0f} annotated, {count} found (score of {DRAWN_SCORE} and more)"
    found, true = (results.labels[int(row.values[name])] for name in ("predicted", "target"))
    return f"found {found} ({row.values['confidence']:.2f}), annotated {true}"


def _legend(results: EvaluationResults) -> list[tuple[tuple[int, int, int] | None, str]]:
    """Colours with what they mean; a text without a colour stands alone."""
    if results.kind == CLASSIFICATION:
        return []
    if results.kind == DETECTION:
        return [(MISSED, "annotated"), (FALSE, "found, with its score")]
    if len(results.labels) == 2:
        return [(HIT, "annotated and found"), (MISSED, "annotated, not found"), (FALSE, "found, not annotated")]
    return [(None, "frame; annotated; found, a colour for each class, as in the masks of --maps")]


def _found(frame: ScoredFrame) -> np.ndarray:
    return frame.prediction.argmax(axis=0)


def _colour(grey: np.ndarray, ids: np.ndarray, num_labels: int) -> Image.Image:
    """Class ids of shape (height, width) in colours over a frame; ignored pixels stay grey."""
    painted = (ids > 0) & (ids < num_labels)
    picture = np.repeat(grey[:, :, None], 3, axis=2).astype(np.float32)
    colours = class_colours(num_labels)[ids[painted]]
    picture[painted] = (1 - _OPACITY) * picture[painted] + _OPACITY * colours
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


def _draw_boxes(image: Image.Image, frame: ScoredFrame) -> None:
    draw = ImageDraw.Draw(image)
    for corners in frame.target.corners:
        draw.rectangle(corners.tolist(), outline=MISSED, width=3)
    for corners, score in zip(frame.prediction.corners, frame.prediction.scores, strict=True):
        if score >= DRAWN_SCORE:
            draw.rectangle(corners.tolist(), outline=FALSE, width=2)
            draw.text((corners[0] + 2, corners[1] + 2), f"{score:.2f}", fill=FALSE)


def _stack(cases: Sequence[Image.Image], legend: Sequence[tuple[tuple[int, int, int] | None, str]]) -> Image.Image:
    """Cases of two panels two in a row, wider ones below each other, and the legend."""
    width, height = cases[0].size
    columns = min(len(cases), 1 if width > 2 * _SIDE + _GAP else 2)
    rows = math.ceil(len(cases) / columns)
    size = (columns * width + (columns - 1) * 2 * _GAP, rows * (height + _GAP) + _CAPTION * bool(legend))
    canvas = Image.new("RGB", size, "white")
    for number, case in enumerate(cases):
        row, column = divmod(number, columns)
        canvas.paste(case, (column * (width + 2 * _GAP), row * (height + _GAP)))
    _draw_legend(ImageDraw.Draw(canvas), legend, top=rows * (height + _GAP))
    return canvas


def _draw_legend(
    draw: ImageDraw.ImageDraw, legend: Sequence[tuple[tuple[int, int, int] | None, str]], top: int
) -> None:
    left = 2
    for colour, text in legend:
        if colour is not None:
            draw.rectangle((left, top + 3, left + 9, top + 12), fill=colour)
            left += 14
        draw.text((left, top + 1), text, fill="black")
        left += int(draw.textlength(text)) + 20


def _save(image: Image.Image, path: Path) -> None:
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
