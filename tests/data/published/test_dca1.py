"""DCA1 in its original layout, and what all readers of sets with masks share."""

import importlib
import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from vasomim_hf.data.faults import FaultReport
from vasomim_hf.data.published.dca1 import load_dca1


miniatures = importlib.import_module("miniatures.downstream")
faults = miniatures.faults


@pytest.fixture
def dca1(tmp_path):
    return miniatures.write_dca1(tmp_path / "raw")


def test_frames_and_masks_come_in_the_order_of_their_numbers(dca1):
    root, masks = dca1
    dataset = load_dca1(root)
    assert dataset["image_id"] == ["1", "2", "10", "134"]
    for row in dataset:
        assert np.array_equal(np.asarray(row["image"]), miniatures.frame(int(row["image_id"])).image)
        assert np.array_equal(np.asarray(row["mask"]), masks[row["image_id"]])
        assert (row["width"], row["height"]) == (64, 64)
        assert row["patient_id"] is row["study_id"] is row["frame_index"] is None


def test_set_holds_the_contract_of_every_downstream_set(dca1, tmp_path):
    miniatures.check_contract(load_dca1, dca1[0], tmp_path, expected="Database_134_Angiograms")


def test_masks_reach_a_training_batch_through_parquet(dca1, tmp_path):
    root, masks = dca1
    batch = miniatures.training_batch(load_dca1(root), tmp_path)
    assert batch["pixel_values"].shape == (4, 3, 224, 224)
    assert batch["labels"].shape[0] == 4 and set(batch["labels"].unique().tolist()) == {0, 1}


def test_only_the_whole_set_can_be_asked_for(dca1):
    with pytest.raises(ValueError, match="must be one of 'all', got 'train'. The archive"):
        load_dca1(dca1[0], split="train")


def test_bad_files_are_named_and_the_rest_is_loaded(dca1):
    root, _ = dca1
    miniatures.damage(root / "2.pgm")
    (root / "1_gt.pgm").unlink()
    miniatures.write_image(root / "3_gt.pgm", np.zeros((64, 64), np.uint8))
    miniatures.write_image(root / "other.png", np.zeros((64, 64), np.uint8))
    miniatures.write_text(root / "Thumbs.db", "")
    miniatures.write_text(root / ".DS_Store", "")
    report = FaultReport()
    assert load_dca1(root, report=report)["image_id"] == ["10", "134"]
    assert faults(report) == {
        "1.pgm": "has no mask; skipped",
        "2": "cannot be read as an image",
        "3_gt.pgm": "is a mask without a frame; skipped",
        "other.png": "is neither `<number>` nor `<number>_gt`",
        "Thumbs.db": "is no file of this set",
    }


def test_masks_of_another_size_or_other_levels_are_named(dca1):
    root, masks = dca1
    miniatures.write_image(root / "1_gt.pgm", np.zeros((32, 64), np.uint8))
    miniatures.write_image(root / "2_gt.pgm", np.full((64, 64), 37, np.uint8))
    miniatures.write_image(root / "10_gt.pgm", np.zeros((64, 64), np.uint8))
    report = FaultReport()
    assert load_dca1(root, report=report)["image_id"] == ["10", "134"]
    found = faults(report)
    assert found.keys() == {"1", "2", "10"} and found["10"] == "mask 10_gt.pgm is empty; kept"
    assert "1_gt.pgm" in found["1"] and "32×64" in found["1"] and "64×64" in found["1"]
    assert "2_gt.pgm" in found["2"] and "37" in found["2"]


@pytest.mark.parametrize("kind", ["levels 0 and 1", "one bit", "grey as colour", "palette"])
def test_mask_is_read_whatever_it_is_stored_as(dca1, kind):
    root, masks = dca1
    mask = masks["1"]
    (root / "1_gt.pgm").unlink()
    levels = mask.astype(np.uint8)
    picture = {
        "levels 0 and 1": Image.fromarray(levels),
        "one bit": Image.fromarray(mask),
        "grey as colour": Image.fromarray(np.stack([levels * 255] * 3, axis=-1)),
        "palette": Image.fromarray(levels),
    }[kind]
    if kind == "palette":
        picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.save(root / "1_gt.png")
    assert np.array_equal(np.asarray(load_dca1(root)[0]["mask"]), mask)


def test_two_files_of_one_name_are_taken_once(dca1):
    root, _ = dca1
    miniatures.write_image(root / "2.png", miniatures.frame(50).image)
    report = FaultReport()
    assert load_dca1(root, report=report)["image_id"] == ["1", "2", "10", "134"]
    assert faults(report) == {"2.png": "has the same name as 2.pgm, which was taken; left out"}


def test_faults_are_summed_up_in_one_warning(dca1, caplog):
    root, _ = dca1
    (root / "1_gt.pgm").unlink()
    miniatures.damage(root / "2.pgm")
    with caplog.at_level(logging.WARNING, logger="vasomim_hf"):
        load_dca1(root)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["2 faults in 3 frames of DCA1"]


def test_faults_of_a_stream_are_told_when_they_are_met(dca1, caplog):
    root, _ = dca1
    miniatures.damage(root / "2.pgm")
    dataset = load_dca1(root, streaming=True)
    with caplog.at_level(logging.WARNING, logger="vasomim_hf"):
        assert [row["image_id"] for row in dataset] == ["1", "10", "134"]
    assert [record.getMessage()[:30] for record in caplog.records] == ["2: cannot be read as an image "]


def test_stream_can_be_sent_to_workers_that_share_the_frames(dca1):
    dataset = load_dca1(dca1[0], streaming=True)
    shares = [pickle.loads(pickle.dumps(dataset.shard(2, number))) for number in range(2)]
    assert [[row["image_id"] for row in share] for share in shares] == [["1", "2"], ["10", "134"]]


def test_nothing_usable_is_an_error_that_says_why(dca1):
    root, _ = dca1
    for path in root.glob("*_gt.pgm"):
        miniatures.damage(path)
    with pytest.raises(ValueError, match=r"None of the 4 frames of DCA1 could be used: 1: .*1_gt.pgm cannot be read"):
        load_dca1(root)


def test_card_has_a_valid_head_and_tells_the_columns(dca1):
    miniatures.check_card("dca1", load_dca1(dca1[0]))
