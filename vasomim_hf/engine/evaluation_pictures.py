"""Pictures of an evaluation: masks and uncertainty of each frame, and the frames that went best, middling and worst."""

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


def file_stem(image_id: str) -> str:
    """An id as the name of a file: other signs than letters, digits, dot, hyphen and underscore become underscores."""
    return re.sub(r"[^\w.-]", "_", image_id)


class MapWriter:
    """Writes `ID_mask.png` with class ids and `ID_uncertainty.png` with 0 (sure) to 255 (all classes as probable).

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
        for name, plane in (("mask", ids), ("uncertainty", np.rint(entropy * 255).astype(np.uint8))):
            _save(Image.fromarray(plane), self.folder / f"{stem}_{name}.png")

    def _free_stem(self, stem: str) -> str:
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        free = next(name for name in names if name.lower() not in self._taken)
        self._taken.add(free.lower())
        return free


def draw_cases(folder: str | Path, results: EvaluationResults, scorer: FrameScorer, rows: LabelledRows) -> list[Path]:
    """Draw the frames that went best, middling and worst, asking the model for them once more.

    Args:
        folder (`str` or `Path`): Where to; it is made.
        results (`EvaluationResults`): Of all rows.
        scorer (`FrameScorer`): As it was asked before.
        rows (`LabelledRows`): As they were scored.

    Returns:
        `list[Path]`: `best.png`, `median.png` and `worst.png`, up to four frames in each, every one as it is and with what
        was found: green right, blue missed (or of another class), orange made up. Of boxes the annotated ones are blue,
        the found ones orange; classes are named below.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    places = {image_id: number for number, image_id in enumerate(rows.image_ids)}
    written = []
    for name, chosen in choose_cases(results.rows, results.kind).items():
        values = {row.image_id: row for row in chosen}
        frames = scorer.frames(rows.select([places[row.image_id] for row in chosen]))
        pairs = [_pair(frame, values[frame.image_id], results) for frame in frames]
        _save(_stack(pairs), folder / f"{name}.png")
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


def _pair(frame: ScoredFrame, row: ResultRow, results: EvaluationResults) -> Image.Image:
    """A frame beside itself with what was found, and a line below."""
    grey = Image.fromarray(frame.frame).convert("RGB")
    drawn = grey.copy()
    if results.kind == SEGMENTATION:
        drawn = _paint(frame)
        text = f"Dice {row.values['dice']:.3f}  clDice {row.values['cl_dice']:.3f}"
    elif results.kind == DETECTION:
        _draw_boxes(drawn, frame)
        text = f"{row.values['num_targets']:.0f} annotated, found with a score of {DRAWN_SCORE} and more"
    else:
        found, true = (results.labels[int(row.values[name])] for name in ("predicted", "target"))
        text = f"{found} ({row.values['confidence']:.2f}), annotated {true}"
    share = _SIDE / max(grey.size)
    size = (max(1, round(grey.width * share)), max(1, round(grey.height * share)))
    canvas = Image.new("RGB", (2 * _SIDE + _GAP, _SIDE + _CAPTION), "white")
    for left, image in ((0, grey), (_SIDE + _GAP, drawn)):
        canvas.paste(image.resize(size, Image.Resampling.LANCZOS), (left, 0))
    ImageDraw.Draw(canvas).text((2, _SIDE + 2), f"{frame.image_id}  {text}", fill="black")
    return canvas


def _paint(frame: ScoredFrame) -> Image.Image:
    found, true = frame.prediction.argmax(axis=0), frame.target
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


def _stack(pairs: Sequence[Image.Image]) -> Image.Image:
    """Two pairs in a row."""
    rows = math.ceil(len(pairs) / 2)
    width, height = pairs[0].size
    columns = min(2, len(pairs))
    canvas = Image.new("RGB", (columns * width + (columns - 1) * 2 * _GAP, rows * (height + _GAP) - _GAP), "white")
    for number, pair in enumerate(pairs):
        canvas.paste(pair, ((number % 2) * (width + 2 * _GAP), (number // 2) * (height + _GAP)))
    return canvas


def _save(image: Image.Image, path: Path) -> None:
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
