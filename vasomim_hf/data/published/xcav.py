"""XCAV, spelled XACV by its authors: coronary angiography cines, a few frames of each with masks (Wu et al., 2025)."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Union

from ..faults import FaultReport
from .common import (
    LoaderOptions,
    Sample,
    annotate_mask,
    build_dataset,
    by_stem,
    check_choice,
    find_root,
    list_files,
    mask_features,
    relative,
    sub_folders,
)


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


EXPECTED = (
    "`XACV/` with a folder for each patient, such as `CVAI-2828/`, each with `images/<run>/<frame>.png` and "
    "`ground_truth/<run>/<frame>.png`."
)
# catheter masks are in a separate folder next to that of the cine
CATHETER = "CATH"


def load_xcav(
    root: str | Path,
    *,
    split: str = "all",
    frames: str = "labelled",
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    report: FaultReport | None = None,
) -> Union["Dataset", "IterableDataset"]:
    """Load XCAV from its extracted folder. For details of the data set see its data card.

    Columns: `image`, `mask` (vessels, 0 and 1; null for frames without a mask), `image_id` (`<patient>/<run>/<frame>`),
    `patient_id`, `study_id` (the cine), `frame_index`, `width`, `height`. Catheter masks are ignored.

    The split of the published results (175 and 46 pairs) is not available. To create one without patient overlap:
    `split_by_group(load_xcav(root), by=("patient_id",))`, see `data.splits`.

    Args:
        root (`str` or `Path`): Folder `XACV`, or up to two levels above it.
        split (`str`, defaults to `"all"`): Only `"all"`.
        frames (`str`, defaults to `"labelled"`): `"labelled"` for frames with a mask, or `"all"` for whole cines.
        streaming (`bool`, defaults to `False`): Whether to generate rows on demand.
        cache_dir (`str` or `Path`, *optional*): See [`~dataset_rows.to_dataset`].
        report (`FaultReport`, *optional*): Collects skipped items with reasons.

    Returns:
        `datasets.Dataset` or, with `streaming`, `datasets.IterableDataset`.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it is not an XCAV folder, or contains nothing usable.
    """
    check_choice(split, "split", ("all",), "No split is published; use `split_by_group(..., by=('patient_id',))`.")
    check_choice(frames, "frames", ("labelled", "all"))
    folder = find_root(root, _is_root, EXPECTED)
    options = LoaderOptions(streaming, cache_dir, FaultReport() if report is None else report)
    samples = [
        sample
        for patient in sub_folders(folder)
        for sample in _samples(patient, options.report)
        if frames == "all" or sample.label is not None
    ]
    return build_dataset("frames of XCAV", samples, annotate_mask, mask_features(), options)


def _is_root(folder: Path) -> bool:
    return any((patient / "ground_truth").is_dir() for patient in sub_folders(folder))


def _samples(patient: Path, report: FaultReport) -> Iterator[Sample]:
    root = patient.parent
    if not (patient / "images").is_dir():
        report.add(patient.name, "has no folder `images`; skipped")
    runs = {run.name: run for run in sub_folders(patient / "images")}
    masks = {run.name: run for run in sub_folders(patient / "ground_truth") if not _is_catheter(run)}
    for name, run in runs.items():
        yield from _run_samples(run, masks.get(name), report)
    for name, run in masks.items():
        if name not in runs:
            report.add(relative(run, root), "has masks but no frames; skipped")


def _is_catheter(run: Path) -> bool:
    return run.name.upper().endswith(CATHETER)


def _run_samples(run: Path, masks: Path | None, report: FaultReport) -> Iterator[Sample]:
    patient = run.parents[1]
    root = patient.parent
    frames = by_stem(list_files(run, report, root), report, root)
    labels = by_stem(list_files(masks, report, root) if masks else (), report, root)
    if masks is None:
        report.add(relative(run, root), "has no masks")
    for stem, path in frames.items():
        index = int(stem) if stem.isdecimal() else None
        yield Sample(path, f"{patient.name}/{run.name}/{stem}", patient.name, run.name, index, labels.get(stem))
    for stem, path in labels.items():
        if stem not in frames:
            report.add(relative(path, root), "is a mask without a frame; skipped")
