"""What a level of a mask means, by whatever door the mask comes in."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vasomim_hf.data.faults import FaultReport
from vasomim_hf.data.frame_cache import build_frame_cache
from vasomim_hf.data.published.dca1 import load_dca1
from vasomim_hf.data.reading import MaskError, MaskRule, UnreadableMaskError, read_label_map, read_mask
from vasomim_hf.data.reading.masks import to_label_map, to_mask
from vasomim_hf.data.sources import DatasetSource, FolderSource
from vasomim_hf.data.synthetic import synthetic_angiogram
from vasomim_hf.engine.finetuning.decoded import DecodeOptions, decode
from vasomim_hf.engine.finetuning.rows import LabelledRows
from vasomim_hf.image_processing_vasomim import VasoMIMImageProcessorPil


datasets = pytest.importorskip("datasets")

SIDE = 48
FRAME = synthetic_angiogram(0, size=SIDE)
VESSEL = FRAME.vessel_mask


def soft(mask: np.ndarray) -> np.ndarray:
    """The mask with edges between its levels, as a resize with interpolation leaves them."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize((SIDE * 2, SIDE * 2), Image.Resampling.BILINEAR).resize((SIDE, SIDE)))


THREE_LEVELS = np.where(VESSEL, 255, 0).astype(np.uint8)
THREE_LEVELS[:4] = 128
MASKS: dict[str, np.ndarray] = {
    "0 and 255": VESSEL * np.uint8(255),
    "0 and 1": VESSEL * np.uint8(1),
    "one bit": VESSEL,
    "empty": np.zeros_like(VESSEL, dtype=np.uint8),
}
WRONG: dict[str, tuple[np.ndarray, str]] = {
    "0, 128 and 255": (THREE_LEVELS, "128"),
    "0 and 128": (VESSEL * np.uint8(128), "128"),
    "soft edges": (soft(VESSEL), "levels"),
    "1 and 255": (np.where(VESSEL, 1, 255).astype(np.uint8), "1 and 255"),
    "another size": (np.zeros((SIDE, SIDE + 1), np.uint8), f"{SIDE}×{SIDE + 1}"),
}


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


# Doors: each takes a mask and returns what arrives, as booleans


def from_file(mask: np.ndarray, folder: Path) -> np.ndarray:
    (folder / "mask.png").write_bytes(png(mask))
    return read_mask(folder / "mask.png", (SIDE, SIDE))


def from_mask_folder_of_pretraining(mask: np.ndarray, folder: Path) -> np.ndarray:
    for name, array in (("frames", FRAME.image), ("masks", mask)):
        (folder / name).mkdir()
        (folder / name / "0.png").write_bytes(png(array))
    cache = build_frame_cache(FolderSource(folder / "frames", masks=folder / "masks"), folder / "cache")
    return np.asarray(cache.vesselness(0)) > 0


def dataset_of(mask: np.ndarray, column: str) -> "datasets.Dataset":
    row = {"image": {"bytes": png(FRAME.image), "path": None}, column: {"bytes": png(mask), "path": None}}
    return datasets.Dataset.from_list([row], features=datasets.Features(dict.fromkeys(row, datasets.Image())))


def from_column_of_pretraining(mask: np.ndarray, folder: Path) -> np.ndarray:
    return DatasetSource(dataset_of(mask, "vesselness")).vesselness(0, (SIDE, SIDE))


def from_table_of_fine_tuning(mask: np.ndarray, folder: Path) -> np.ndarray:
    options = DecodeOptions(kind="segmentation", num_labels=2, size=SIDE)
    return decode(LabelledRows(dataset_of(mask, "mask"), "mask", "image"), options, folder / "decoded").masks[0] > 0


def from_published_loader(mask: np.ndarray, folder: Path) -> np.ndarray:
    root = folder / "Database_134_Angiograms"
    root.mkdir()
    Image.fromarray(FRAME.image).save(root / "1.pgm")
    (root / "1_gt.png").write_bytes(png(mask))
    report = FaultReport()
    try:
        return np.asarray(load_dca1(root, report=report)[0]["mask"]) > 0
    except ValueError as error:  # the only frame of the set was left out
        raise MaskError(str(error)) from error


def from_image_processor(mask: np.ndarray, folder: Path) -> np.ndarray:
    options = {"do_resize": False, "num_labels": 2, "return_tensors": "np"}
    processor = VasoMIMImageProcessorPil()
    return processor(Image.fromarray(FRAME.image), segmentation_maps=Image.fromarray(mask), **options)["labels"][0] > 0


DOORS: list[Callable[[np.ndarray, Path], Any]] = [
    from_file,
    from_mask_folder_of_pretraining,
    from_column_of_pretraining,
    from_table_of_fine_tuning,
    from_published_loader,
    from_image_processor,
]


@pytest.mark.parametrize("door", DOORS)
def test_every_door_finds_the_same_mask(door, tmp_path):
    for number, (name, mask) in enumerate(MASKS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = door(mask, folder)
        np.testing.assert_array_equal(found, VESSEL if name != "empty" else np.zeros_like(VESSEL), err_msg=name)


@pytest.mark.parametrize("door", DOORS)
def test_every_entry_point_rejects_the_same_masks_with_a_reason(door, tmp_path):
    for number, (name, (mask, fact)) in enumerate(WRONG.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        # the image processor compares sizes before it looks at levels
        kind = ValueError if door is from_image_processor and name == "another size" else MaskError
        with pytest.raises(kind, match=str(SIDE + 1) if kind is ValueError else fact):
            door(mask, folder)


def test_a_damaged_or_missing_mask_is_also_an_operating_system_error(tmp_path):
    (tmp_path / "cut.png").write_bytes(png(VESSEL)[:60])
    for path in ("cut.png", "absent.png"):
        with pytest.raises(UnreadableMaskError, match=path):
            read_mask(tmp_path / path)
    assert issubclass(UnreadableMaskError, OSError) and issubclass(UnreadableMaskError, MaskError)
    with pytest.raises(UnreadableMaskError):
        to_mask(None, "a")


def test_ids_of_many_classes_are_kept_and_255_is_ignored(tmp_path):
    ids = np.array([[0, 3, 255], [7, 0, 25]], np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette([value for level in range(256) for value in (level, 255 - level, 0)])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "palette.png", rule=MaskRule(26)), ids)
    with pytest.raises(MaskError, match="ids 25, expected 0 to 24"):
        to_label_map(ids, "a", rule=MaskRule(25))


def test_255_in_a_mask_of_two_classes_is_ignored_where_that_is_said():
    mask = np.array([[0, 1, 255]], np.uint8)
    assert to_label_map(mask, "a", rule=MaskRule(2, ignore_white=True)).tolist() == [[0, 1, 255]]
    assert to_label_map(mask[:, [0, 2]], "a").tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((4, 4, 3), np.uint8) + np.array([255, 0, 0], np.uint8),
        np.full((4, 4), 0.5),
        np.full((4, 4), np.nan),
        np.zeros((2, 2, 2, 2)),
    ],
    ids=["colour", "fractions", "not a number", "four axes"],
)
def test_non_masks_are_rejected(mask):
    with pytest.raises(MaskError):
        to_mask(mask, "a")


def test_pages_and_alpha():
    image = Image.fromarray(VESSEL.astype(np.uint8) * 255)
    with_alpha = image.convert("RGBA")
    with_alpha.putalpha(7)
    np.testing.assert_array_equal(to_mask(with_alpha, "a"), VESSEL)
    file = io.BytesIO()
    image.save(file, "TIFF", save_all=True, append_images=[image])
    with pytest.raises(MaskError, match="2 pages"):
        to_mask(file.getvalue(), "a")
