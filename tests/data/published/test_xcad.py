"""XCAD in its original layout."""

import importlib

import numpy as np
import pytest

from vasomim_hf.data.faults import FaultReport
from vasomim_hf.data.published.xcad import load_xcad


miniatures = importlib.import_module("miniatures.downstream")
faults = miniatures.faults


@pytest.fixture
def xcad(tmp_path):
    return miniatures.write_xcad(tmp_path / "raw")


def test_test_frames_come_with_their_masks(xcad):
    root, masks = xcad
    dataset = load_xcad(root)
    assert dataset["image_id"] == ["test/977_10", "test/12241_4", "test/12241_33"]
    for row in dataset:
        assert np.array_equal(np.asarray(row["mask"]), masks[row["image_id"].removeprefix("test/")])
    assert dataset["study_id"] == ["977", "12241", "12241"] and dataset["frame_index"] == [10, 4, 33]
    assert set(dataset["patient_id"]) == {None}


def test_training_frames_have_no_mask(xcad):
    dataset = load_xcad(xcad[0], split="train")
    assert dataset["image_id"] == [f"train/000_PPA_44_PSA_00_{number}" for number in range(4)]
    assert dataset["mask"] == [None] * 4
    assert dataset["study_id"] == ["000"] * 4 and dataset["frame_index"] == [0, 1, 2, 3]
    assert dataset.features == load_xcad(xcad[0]).features


def test_background_frames_are_read_when_asked_for(xcad):
    dataset = load_xcad(xcad[0], split="train", train_folder="trainC")
    assert dataset["image_id"] == ["train/001_PPA_-30_PSA_20_1"]
    with pytest.raises(ValueError, match="`train_folder` must be one of 'trainB', 'trainC', got 'trainA'"):
        load_xcad(xcad[0], split="train", train_folder="trainA")


@pytest.mark.parametrize("split", ["test", "train"])
def test_set_holds_the_contract_of_every_downstream_set(xcad, tmp_path, split):
    miniatures.check_contract(load_xcad, xcad[0], tmp_path, expected="`XCAD/` with `test/images/`", split=split)


def test_masks_reach_a_training_batch_through_parquet(xcad, tmp_path):
    batch = miniatures.training_batch(load_xcad(xcad[0]), tmp_path)
    assert batch["pixel_values"].shape == (3, 3, 224, 224) and set(batch["labels"].unique().tolist()) == {0, 1}


def test_bad_files_are_named_and_the_rest_is_loaded(xcad):
    root, _ = xcad
    miniatures.damage(root / "test/images/977_10.png")
    (root / "test/masks/12241_4.png").unlink()
    miniatures.write_image(root / "test/masks/5_5.png", np.zeros((64, 64), np.uint8))
    miniatures.write_text(root / "test/images/list.txt", "")
    report = FaultReport()
    assert load_xcad(root, report=report)["image_id"] == ["test/12241_33"]
    assert faults(report) == {
        "test/977_10": "cannot be read as an image",
        "test/images/12241_4.png": "has no mask; left out",
        "test/masks/5_5.png": "is a mask of no frame; left out",
        "test/images/list.txt": "is no file of this set",
    }


def test_name_of_another_form_has_no_study(xcad):
    root, _ = xcad
    for folder in ("images", "masks"):
        (root / "test" / folder / "977_10.png").rename(root / "test" / folder / "frame.png")
    row = next(row for row in load_xcad(root) if row["image_id"] == "test/frame")
    assert row["study_id"] is None and row["frame_index"] is None


def test_split_that_is_not_there_is_an_error_that_lists_what_is(xcad, tmp_path):
    root, _ = xcad
    (root / "test").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"holds train/\. Expected: `XCAD/`"):
        load_xcad(root)


def test_card_has_a_valid_head_and_tells_the_columns(xcad):
    miniatures.check_card("xcad", load_xcad(xcad[0]))
