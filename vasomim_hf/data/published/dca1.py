"""DCA1: 134 coronary angiograms of 300×300 with vessel masks (Cervantes-Sanchez et al., 2019)."""

import re
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
)


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


EXPECTED = "`Database_134_Angiograms/` with frames `<number>.pgm` and masks `<number>_gt.pgm`."
_FRAME = re.compile(r"\d+")
_MASK = re.compile(r"(\d+)_gt", re.IGNORECASE)


def load_dca1(
    root: str | Path,
    *,
    split: str = "all",
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    report: FaultReport | None = None,
) -> Union["Dataset", "IterableDataset"]:
    """Load DCA1 from its extracted folder. For details of the data set see its data card.

    Columns: `image`, `mask` (0 and 1), `image_id` (the number), `patient_id`, `study_id` and `frame_index` (unknown:
    null), `width`, `height`. Rows are sorted by number. The archive has no split.

    Args:
        root (`str` or `Path`): Folder `Database_134_Angiograms`, or up to two levels above it.
        split (`str`, defaults to `"all"`): Only `"all"`.
        streaming (`bool`, defaults to `False`): Whether to generate rows on demand.
        cache_dir (`str` or `Path`, *optional*): See [`~dataset_rows.to_dataset`].
        report (`FaultReport`, *optional*): Collects skipped items with reasons.

    Returns:
        `datasets.Dataset` or, with `streaming`, `datasets.IterableDataset`.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it is not a DCA1 folder, or contains nothing usable.
    """
    check_choice(split, "split", ("all",), "The archive has no split; select rows by `image_id`.")
    folder = find_root(root, _is_root, EXPECTED)
    options = LoaderOptions(streaming, cache_dir, FaultReport() if report is None else report)
    samples = _samples(folder, options.report)
    return build_dataset("frames of DCA1", samples, annotate_mask, mask_features(), options)


def _is_root(folder: Path) -> bool:
    return any(_MASK.fullmatch(path.stem) for path in folder.iterdir() if path.is_file())


def _samples(folder: Path, report: FaultReport) -> list[Sample]:
    files = by_stem(list_files(folder, report, folder), report, folder)
    masks = {match[1]: path for stem, path in files.items() if (match := _MASK.fullmatch(stem))}
    frames = {stem: path for stem, path in files.items() if _FRAME.fullmatch(stem)}
    for stem, path in files.items():
        if stem in frames and stem not in masks:
            report.add(relative(path, folder), "has no mask; skipped")
        elif stem not in frames and path not in masks.values():
            report.add(relative(path, folder), "is neither `<number>` nor `<number>_gt`; ignored")
    for number, path in masks.items():
        if number not in frames:
            report.add(relative(path, folder), "is a mask without a frame; skipped")
    return [Sample(path, stem, label=masks[stem]) for stem, path in frames.items() if stem in masks]
