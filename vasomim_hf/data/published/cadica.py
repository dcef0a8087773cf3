"""CADICA: coronary angiography cines of 42 patients, key frames with lesion boxes by severity (2024)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from ...import_utils import require
from ..faults import FaultReport
from .common import (
    Box,
    LoaderOptions,
    Note,
    Sample,
    Size,
    Unusable,
    box_features,
    build_dataset,
    by_stem,
    check_choice,
    find_root,
    fit_boxes,
    list_files,
    objects_of,
    relative,
    sub_folders,
)


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


EXPECTED = (
    "`CADICA/` with `selectedVideos/p<patient>/v<video>/input/p<patient>_v<video>_<frame>.png` and, for videos with "
    "lesions, `groundtruth/p<patient>_v<video>_<frame>.txt` next to `input/`."
)
# lumen narrowing in percent, from none or slight to occlusion
CATEGORIES = ("p0_20", "p20_50", "p50_70", "p70_90", "p90_98", "p99", "p100")
FRAMES = ("lesion", "selected", "all")
SELECTED, NONSELECTED = "selectedVideos", "nonselectedVideos"
_PATIENT, _VIDEO = re.compile(r"p\d+"), re.compile(r"v\d+")


@dataclass(frozen=True)
class _Video:
    """A video: its folder, and its category (`lesion`, `nonlesion`, `nonselected` or `unknown`)."""

    folder: Path
    kind: str

    @property
    def patient(self) -> str:
        return self.folder.parent.name

    @property
    def name(self) -> str:
        return f"{self.patient}_{self.folder.name}"

    @property
    def root(self) -> Path:
        return self.folder.parents[2]


def load_cadica(
    root: str | Path,
    *,
    split: str = "all",
    frames: str = "lesion",
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    report: FaultReport | None = None,
) -> Union["Dataset", "IterableDataset"]:
    """Load CADICA from its extracted folder. For details of the data set see its data card.

    Columns: `image`, `objects` with `bbox` (left, top, width, height in pixels, as in the files) and `category` (severity,
    see `CATEGORIES`), `video_type` (`lesion`, `nonlesion`, `nonselected`, `unknown`), `image_id` (the name),
    `patient_id`, `study_id` (the video), `frame_index`, `width`, `height`.

    `bbox` and `category` are empty lists for frames of videos without a lesion. They are **null** for frames that were
    not annotated, such as those between the key frames of a video with a lesion: the lesion is there, but its box is
    unknown.

    The archive has no split. To create one without patient overlap: `split_by_group(load_cadica(root),
    by=("patient_id",))`, see `data.splits`.

    Args:
        root (`str` or `Path`): Folder `CADICA`, or up to two levels above it.
        split (`str`, defaults to `"all"`): Only `"all"`.
        frames (`str`, defaults to `"lesion"`):
                `"lesion"`: frames with boxes. `"selected"`: also the key frames of videos without a lesion. `"all"`: every
                frame of every video, including videos that were not selected.
        streaming (`bool`, defaults to `False`): Whether to generate rows on demand.
        cache_dir (`str` or `Path`, *optional*): See [`~dataset_rows.to_dataset`].
        report (`FaultReport`, *optional*): Collects skipped and corrected items with reasons.

    Returns:
        `datasets.Dataset` or, with `streaming`, `datasets.IterableDataset`.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it is not a CADICA folder, or contains nothing usable.
    """
    check_choice(split, "split", ("all",), "The archive has none; use `split_by_group(..., by=('patient_id',))`.")
    check_choice(frames, "frames", FRAMES)
    folder = find_root(root, lambda path: (path / SELECTED).is_dir(), EXPECTED)
    options = LoaderOptions(streaming, cache_dir, FaultReport() if report is None else report)
    samples = [
        sample
        for video in _videos(folder, frames, options.report)
        for sample in _video_samples(video, frames, options.report)
    ]
    features = box_features(CATEGORIES, video_type=require("datasets", "data").Value("string"))
    return build_dataset("frames of CADICA", samples, _annotate, features, options)


# Videos
# ---------------------------------------------------------------------------------------------------------------


def _videos(folder: Path, frames: str, report: FaultReport) -> Iterator[_Video]:
    for patient in _named(folder / SELECTED, _PATIENT, report):
        lesion, nonlesion = (_listed(patient / f"{kind}Videos.txt", report) for kind in ("lesion", "nonlesion"))
        present = {path.name: path for path in _named(patient, _VIDEO, report)}
        for name, path in present.items():
            yield _Video(path, _kind(path, name in lesion, name in nonlesion, report))
        for name in sorted((lesion | nonlesion) - present.keys()):
            report.add(f"{patient.name}/{name}", "is listed but has no folder; skipped")
    for patient in _named(folder / NONSELECTED, _PATIENT, report) if frames == "all" else ():
        for path in _named(patient, _VIDEO, report):
            yield _Video(path, "nonselected")


def _named(folder: Path, pattern: re.Pattern[str], report: FaultReport) -> Iterator[Path]:
    for path in sub_folders(folder):
        if pattern.fullmatch(path.name):
            yield path
        else:
            report.add(f"{folder.name}/{path.name}", f"is not a folder named {pattern.pattern}; ignored")


def _listed(path: Path, report: FaultReport) -> set[str]:
    """Names such as `v3` from a list of videos; some copies contain `p1_v3`."""
    if not path.is_file():
        report.add(f"{path.parent.name}/{path.name}", "is missing")
        return set()
    return {line.rsplit("_", 1)[-1] for line in _lines(path)}


def _kind(path: Path, in_lesion: bool, in_nonlesion: bool, report: FaultReport) -> str:
    name = f"{path.parent.name}/{path.name}"
    if in_lesion == in_nonlesion:
        where = "both" if in_lesion else "neither"
        report.add(name, f"is in {where} of lesionVideos.txt and nonlesionVideos.txt; only its boxes are used")
        return "unknown"
    return "lesion" if in_lesion else "nonlesion"


# Frames of a video
# ----------------------------------------------------------------------------------------------------


def _video_samples(video: _Video, frames: str, report: FaultReport) -> Iterator[Sample]:
    images = by_stem(list_files(video.folder / "input", report, video.root), report, video.root)
    labels = _labels(video, report)
    if labels and video.kind == "nonlesion":
        report.add(video.name, "is listed as without a lesion but has boxes; only its boxes are used")
        video = replace(video, kind="unknown")
    selected = _selected(video, report) if video.kind != "nonselected" else set()
    _report_gaps(video, images, labels, selected, report)
    for stem, path in images.items():
        is_free_key_frame = video.kind == "nonlesion" and stem in selected
        is_wanted = stem in labels or frames == "all" or (frames == "selected" and is_free_key_frame)
        if is_wanted and (sample := _sample(video, path, labels.get(stem), report)):
            yield sample


def _labels(video: _Video, report: FaultReport) -> dict[str, Path]:
    # some copies use `groundTruth`
    folder = next((path for path in sub_folders(video.folder) if path.name.lower() == "groundtruth"), None)
    labels = {path.stem: path for path in sorted(folder.glob("*.txt"))} if folder else {}
    if not labels and video.kind == "lesion":
        report.add(video.name, "is listed as with a lesion but has no boxes")
    return labels


def _selected(video: _Video, report: FaultReport) -> set[str]:
    path = video.folder / f"{video.name}_selectedFrames.txt"
    if not path.is_file():
        report.add(relative(path, video.root), "is missing")
        return set()
    return set(_lines(path))


def _lines(path: Path) -> list[str]:
    # a line in another encoding matches no name and is reported as such
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _report_gaps(
    video: _Video, images: dict[str, Path], labels: dict[str, Path], selected: set[str], report: FaultReport
) -> None:
    for stem in sorted((labels.keys() | selected) - images.keys()):
        report.add(stem, f"is in {'groundtruth' if stem in labels else 'selectedFrames.txt'} but has no frame")
    if labels:
        for stem in sorted((selected & images.keys()) - labels.keys()):
            report.add(stem, "is a key frame without a box file; its boxes are unknown")
        for stem in sorted((labels.keys() & images.keys()) - selected) if selected else ():
            report.add(stem, "has boxes but is not in selectedFrames.txt; kept")


def _sample(video: _Video, path: Path, label: Path | None, report: FaultReport) -> Sample | None:
    match = re.fullmatch(rf"{video.name}_(\d+)", path.stem)
    if match is None:
        report.add(relative(path, video.root), f"is not named {video.name}_<frame>; skipped")
        return None
    return Sample(path, path.stem, video.patient, video.name, int(match[1]), label, {"video_type": video.kind})


# Boxes
# ----------------------------------------------------------------------------------------------------------------


def _annotate(sample: Sample, size: Size, note: Note) -> dict[str, Any]:
    if sample.label is None:
        # other frames were not annotated, which does not mean that they have no lesion
        is_free = sample.extra["video_type"] == "nonlesion"
        return {"objects": objects_of(()) if is_free else {"bbox": None, "category": None}}
    return {"objects": objects_of(fit_boxes(_read_boxes(sample.label), size, note))}


def _read_boxes(path: Path) -> list[Box]:
    """Boxes of a file, one per line: left, top, width, height, severity.

    One unreadable line invalidates the whole frame, because its lesion would otherwise count as background.
    """
    try:
        lines = [line.split() for line in _lines(path)]
        if not lines:
            raise Unusable(f"{path.name} contains no boxes; skipped")
        return [Box(CATEGORIES.index(label), *map(float, corner)) for *corner, label in lines]
    except Unusable:
        raise
    except (OSError, TypeError, ValueError) as error:
        expected = f"`x y w h label` with a label of {', '.join(CATEGORIES)}"
        raise Unusable(f"{path.name} has a line that is not {expected} ({error}); skipped") from error
