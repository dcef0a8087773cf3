"""XCAD: coronary angiograms of 512×512, 126 test frames with vessel masks and training frames without (Ma et al.,
2021)."""

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
    pair_masks,
)


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


EXPECTED = (
    "`XCAD/` with `test/images/` and `test/masks/` (the same names in both) and, for the frames without masks, "
    "`train/trainB/`."
)
TRAIN_FOLDERS = ("trainB", "trainC")
# `12241_33` and `000_PPA_44_PSA_00_8`: a number shared by several frames, for some the view angles, and the frame
_NAME = re.compile(r"(\d+)_(?:.*_)?(\d+)")


def load_xcad(
    root: str | Path,
    *,
    split: str = "test",
    train_folder: str = "trainB",
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    report: FaultReport | None = None,
) -> Union["Dataset", "IterableDataset"]:
    """Load XCAD from its extracted folder. For details of the data set see its data card.

    Columns: `image`, `mask` (0 and 1; null in training), `image_id` (`<split>/<name>`), `patient_id` (unknown: null),
    `study_id` and `frame_index` (first and last number of names such as `12241_33`, an inference), `width`, `height`.

    Args:
        root (`str` or `Path`): Folder `XCAD`, or up to two levels above it.
        split (`str`, defaults to `"test"`): `"test"` for the frames with masks, or `"train"` for those without.
        train_folder (`str`, defaults to `"trainB"`):
            Folder of `train/` to read: `"trainB"`, angiograms, or `"trainC"`, called background frames in the authors'
            code. `trainA` contains synthetic masks and no frames.
        streaming (`bool`, defaults to `False`): Whether to generate rows on demand.
        cache_dir (`str` or `Path`, *optional*): See [`~dataset_rows.to_dataset`].
        report (`FaultReport`, *optional*): Collects skipped items with reasons.

    Returns:
        `datasets.Dataset` or, with `streaming`, `datasets.IterableDataset`.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it is not an XCAD folder with that split, or contains nothing usable.
    """
    check_choice(split, "split", ("train", "test"))
    check_choice(train_folder, "train_folder", TRAIN_FOLDERS)
    part = Path("test", "images") if split == "test" else Path("train", train_folder)
    folder = find_root(root, lambda path: (path / part).is_dir(), EXPECTED)
    options = LoaderOptions(streaming, cache_dir, FaultReport() if report is None else report)
    images = list_files(folder / part, options.report, folder)
    if split == "test":
        masks = list_files(folder / "test" / "masks", options.report, folder)
        samples = [_sample(path, split, mask) for path, mask in pair_masks(images, masks, options.report, folder)]
    else:
        samples = [_sample(path, split) for path in by_stem(images, options.report, folder).values()]
    return build_dataset(f"frames of XCAD ({split})", samples, annotate_mask, mask_features(), options)


def _sample(path: Path, split: str, mask: Path | None = None) -> Sample:
    match = _NAME.fullmatch(path.stem)
    study, frame = (match[1], int(match[2])) if match else (None, None)
    return Sample(path, f"{split}/{path.stem}", study_id=study, frame_index=frame, label=mask)
