"""CADICA in its original layout."""

import importlib

import numpy as np
import pytest

from vasomim_hf.data.faults import FaultReport
from vasomim_hf.data.published.cadica import load_cadica


miniatures = importlib.import_module("miniatures.downstream")
faults = miniatures.faults


@pytest.fixture
def root(tmp_path):
    return miniatures.write_cadica(tmp_path / "raw")


LESION = ["p1_v1_00003", "p1_v1_00004", "p10_v3_00001"]
SEVERITIES = ["p0_20", "p20_50", "p50_70", "p70_90", "p90_98", "p99", "p100"]


def label(root, stem, text):
    patient, video, _ = stem.split("_")
    return miniatures.write_text(root / "selectedVideos" / patient / video / "groundtruth" / f"{stem}.txt", text)


def test_lesions_are_loaded_with_their_severity(root):
    dataset = load_cadica(root)
    assert dataset["image_id"] == LESION
    categories = dataset.features["objects"]["category"].feature
    assert categories.names == SEVERITIES
    row = dataset[1]
    assert row["objects"]["bbox"] == [[11, 12, 20, 8], [30, 31, 5, 6]]
    assert categories.int2str(row["objects"]["category"]) == ["p20_50", "p100"]
    assert (row["patient_id"], row["study_id"], row["frame_index"]) == ("p1", "p1_v1", 4)
    assert np.array_equal(np.asarray(row["image"]), miniatures.frame(4).image)


def test_key_frames_without_a_lesion_have_no_boxes(root):
    dataset = load_cadica(root, frames="selected")
    assert dataset["image_id"] == ["p1_v1_00003", "p1_v1_00004", "p1_v2_00002", "p10_v3_00001"]
    assert dataset[2]["objects"] == {"bbox": [], "category": []}
    assert dataset["video_type"] == ["lesion", "lesion", "nonlesion", "lesion"]


def test_frames_nobody_looked_at_are_not_taken_for_frames_without_a_lesion(root):
    dataset = load_cadica(root, frames="all")
    assert len(dataset) == 11
    boxes = {row["image_id"]: row["objects"]["bbox"] for row in dataset}
    assert [stem for stem, found in boxes.items() if found] == LESION
    assert [stem for stem, found in boxes.items() if found == []] == ["p1_v2_00001", "p1_v2_00002", "p1_v2_00003"]
    unknown = {row["image_id"]: row["video_type"] for row in dataset if row["objects"]["bbox"] is None}
    assert unknown["p1_v1_00001"] == "lesion" and unknown["p10_v1_00001"] == "nonselected" and len(unknown) == 5


@pytest.mark.parametrize("frames", ["lesion", "selected", "all"])
def test_set_holds_the_contract_of_every_downstream_set(root, tmp_path, frames):
    miniatures.check_contract(load_cadica, root, tmp_path, expected="`CADICA/` with `selectedVideos", frames=frames)


def test_boxes_reach_a_training_batch_through_parquet(root, tmp_path):
    batch = miniatures.training_batch(load_cadica(root, frames="all"), tmp_path)
    assert batch["pixel_values"].shape == (11, 3, 224, 224)


def test_split_by_patient_shares_none(root):
    miniatures.check_group_split(load_cadica(root, frames="all"), "patient_id")


def test_other_choices_are_refused(root):
    with pytest.raises(ValueError, match="`split` must be one of 'all', got 'train'.*split_by_group"):
        load_cadica(root, split="train")
    with pytest.raises(ValueError, match="`frames` must be one of 'lesion', 'selected', 'all', got 'key'"):
        load_cadica(root, frames="key")


def test_complete_set_has_nothing_to_report(root):
    report = FaultReport()
    load_cadica(root, frames="all", report=report)
    assert list(report) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 2 3 4 p30_40\n", "has a line that is not `x y w h label`"),
        ("1 2 3 p99\n", "has a line that is not"),
        ("1 2 3 4 5 p99\n", "has a line that is not"),
        ("10 12 20 8 p20_50\n1 2 x 4 p99\n", "has a line that is not"),
        ("\n", "contains no boxes; skipped"),
    ],
)
def test_frame_whose_boxes_cannot_all_be_read_is_left_out(root, text, reason):
    label(root, "p1_v1_00003", text)
    report = FaultReport()
    assert load_cadica(root, report=report)["image_id"] == LESION[1:]
    assert faults(report) == {"p1_v1_00003": f"p1_v1_00003.txt {reason}"}


def test_boxes_are_cut_to_the_frame_and_empty_ones_dropped(root):
    label(root, "p1_v1_00003", "60 60 20 8 p99\n3 3 0 4 p0_20\n")
    label(root, "p1_v1_00004", "nan 3 5 4 p0_20\n")
    report = FaultReport()
    dataset = load_cadica(root, report=report)
    assert dataset["image_id"] == ["p1_v1_00003", "p10_v3_00001"]
    assert dataset[0]["objects"] == {"bbox": [[60, 60, 4, 4]], "category": [5]}
    assert [reason.split("] ")[-1] for _, reason in report] == [
        "reaches beyond the frame of 64×64; cut to it",
        "is empty or outside of the frame of 64×64; dropped",
        "is empty or outside of the frame of 64×64; dropped",
        "no box is left; left out",
    ]


def test_bad_files_are_named_and_the_rest_is_loaded(root):
    videos = root / "selectedVideos"
    miniatures.damage(videos / "p1/v1/input/p1_v1_00003.png")
    (videos / "p10/v3/input/p10_v3_00001.png").unlink()
    miniatures.write_image(videos / "p1/v1/input/p7_v1_00009.png", miniatures.frame(1).image)
    miniatures.write_text(videos / "p1/v1/input/list.txt", "")
    miniatures.write_text(videos / "p1/v1/p1_v1_selectedFrames.txt", "p1_v1_00003\np1_v1_00001\n")
    (videos / "extra").mkdir()
    report = FaultReport()
    assert load_cadica(root, report=report)["image_id"] == ["p1_v1_00004"]
    assert faults(report) == {
        "selectedVideos/extra": "is not a folder named",
        "selectedVideos/p1/v1/input/list.txt": "is no file of this set",
        "p1_v1_00001": "is a key frame without a box file; its boxes are unknown",
        "p1_v1_00004": "has boxes but is not in selectedFrames.txt; kept",
        "p10_v3_00001": "is in groundtruth but has no frame",
        "p1_v1_00003": "cannot be read as an image",
    }
    report = FaultReport()
    assert len(load_cadica(root, frames="all", report=report)) == 9
    reason = "is not named p1_v1_<frame>; skipped"
    assert faults(report)["selectedVideos/p1/v1/input/p7_v1_00009.png"] == reason


def test_lists_that_disagree_with_the_folders_are_named(root):
    videos = root / "selectedVideos"
    (videos / "p1/lesionVideos.txt").write_bytes(b"\xef\xbb\xbfp1_v1\r\nv9\nv\xff\n")
    miniatures.write_text(videos / "p1/nonlesionVideos.txt", "v1\nv2\n")
    (videos / "p10/nonlesionVideos.txt").unlink()
    (videos / "p1/v2/p1_v2_selectedFrames.txt").unlink()
    report = FaultReport()
    assert load_cadica(root, frames="selected", report=report)["image_id"] == LESION
    assert faults(report) == {
        "p1/v1": "is in both of lesionVideos.txt and nonlesionVideos.txt",
        "p1/v9": "is listed but has no folder; skipped",
        "p1/v\ufffd": "is listed but has no folder; skipped",
        "p10/nonlesionVideos.txt": "is missing",
        "selectedVideos/p1/v2/p1_v2_selectedFrames.txt": "is missing",
    }


def test_video_without_a_lesion_that_has_boxes_keeps_them_and_no_more(root):
    label(root, "p1_v2_00003", "1 2 3 4 p70_90\n")
    report = FaultReport()
    dataset = load_cadica(root, frames="all", report=report)
    boxes = {row["image_id"]: row["objects"]["bbox"] for row in dataset if row["study_id"] == "p1_v2"}
    assert boxes == {"p1_v2_00001": None, "p1_v2_00002": None, "p1_v2_00003": [[1, 2, 3, 4]]}
    assert faults(report)["p1_v2"] == "is listed as without a lesion but has boxes; only its boxes are used"


def test_folder_of_boxes_is_found_in_any_spelling(root):
    folder = root / "selectedVideos/p10/v3"
    (folder / "groundtruth").rename(folder / "groundTruth")
    assert load_cadica(root)["image_id"] == LESION


def test_card_has_a_valid_head_and_tells_the_columns(root):
    miniatures.check_card("cadica", load_cadica(root))
