"""XCAV in its original layout."""

import importlib

import numpy as np
import pytest

from vasomim_hf.data.faults import FaultReport
from vasomim_hf.data.published.xcav import load_xcav


miniatures = importlib.import_module("miniatures.downstream")
faults = miniatures.faults


@pytest.fixture
def xcav(tmp_path):
    return miniatures.write_xcav(tmp_path / "raw")


RUN = "CVAI-2828/CVAI-2828RAO2_CRA32"


def test_frames_with_masks_are_loaded_and_masks_of_catheters_are_not(xcav):
    root, masks = xcav
    dataset = load_xcav(root)
    assert dataset["image_id"] == list(masks)
    for row in dataset:
        assert np.array_equal(np.asarray(row["mask"]), masks[row["image_id"]])
    assert dataset["patient_id"] == ["CVAI-2828", "CVAI-2828", "CVAI-2829"]
    assert dataset["study_id"][0] == "CVAI-2828RAO2_CRA32" and dataset["frame_index"] == [1, 3, 0]


def test_whole_runs_come_with_masks_where_there_are_some(xcav):
    root, masks = xcav
    dataset = load_xcav(root, frames="all")
    assert len(dataset) == 8
    assert [row["image_id"] for row in dataset if row["mask"] is not None] == list(masks)
    assert dataset["frame_index"] == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("frames", ["labelled", "all"])
def test_set_holds_the_contract_of_every_downstream_set(xcav, tmp_path, frames):
    miniatures.check_contract(load_xcav, xcav[0], tmp_path, expected="`XACV/` with a folder", frames=frames)


def test_masks_reach_a_training_batch_through_parquet(xcav, tmp_path):
    batch = miniatures.training_batch(load_xcav(xcav[0]), tmp_path)
    assert batch["pixel_values"].shape == (3, 3, 224, 224) and set(batch["labels"].unique().tolist()) == {0, 1}


def test_bad_files_are_named_and_the_rest_is_loaded(xcav):
    root, masks = xcav
    miniatures.damage(root / "CVAI-2828/images/CVAI-2828RAO2_CRA32/00001.png")
    (root / "CVAI-2829/images/CVAI-2829LAO44_CRA29/00000.png").unlink()
    miniatures.write_text(root / "CVAI-2828/images/CVAI-2828RAO2_CRA32/notes.txt", "")
    miniatures.write_image(root / "CVAI-2829/ground_truth/lost/00000.png", np.zeros((64, 64), np.uint8))
    (root / "CVAI-2830").mkdir()
    report = FaultReport()
    assert load_xcav(root, report=report)["image_id"] == [f"{RUN}/00003"]
    assert faults(report) == {
        f"{RUN}/00001": "cannot be read as an image",
        "CVAI-2828/images/CVAI-2828RAO2_CRA32/notes.txt": "is no file of this set",
        "CVAI-2829/ground_truth/CVAI-2829LAO44_CRA29/00000.png": "is a mask without a frame; skipped",
        "CVAI-2829/ground_truth/lost": "has masks but no frames; skipped",
        "CVAI-2830": "has no folder `images`; skipped",
    }


def test_run_without_masks_is_named_and_loaded_when_all_frames_are(xcav):
    root, _ = xcav
    for path in (root / "CVAI-2829/ground_truth/CVAI-2829LAO44_CRA29").iterdir():
        path.unlink()
    (root / "CVAI-2829/ground_truth/CVAI-2829LAO44_CRA29").rmdir()
    report = FaultReport()
    assert len(load_xcav(root, report=report)) == 2 and len(load_xcav(root, frames="all")) == 8
    assert faults(report) == {"CVAI-2829/images/CVAI-2829LAO44_CRA29": "has no masks"}


def test_published_split_cannot_be_asked_for(xcav):
    with pytest.raises(ValueError, match="No split is published; use `split_by_group"):
        load_xcav(xcav[0], split="test")


def test_split_by_patient_shares_none(xcav):
    miniatures.check_group_split(load_xcav(xcav[0], frames="all"), "patient_id")


def test_card_has_a_valid_head_and_tells_the_columns(xcav):
    miniatures.check_card("xcav", load_xcav(xcav[0]))
