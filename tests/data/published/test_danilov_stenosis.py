"""The stenosis set of Danilov et al. in its original layout."""

import importlib

import numpy as np
import pytest

from vasomim_hf.data.faults import FaultReport
from vasomim_hf.data.published.danilov_stenosis import load_stenosis


miniatures = importlib.import_module("miniatures.downstream")
faults = miniatures.faults


BOXES, SPLIT = miniatures.STENOSIS_BOXES, miniatures.STENOSIS_SPLIT


@pytest.fixture
def root(tmp_path):
    return miniatures.write_stenosis(tmp_path / "raw" / "set")


def boxes_of(dataset):
    return {row["image_id"]: row["objects"]["bbox"] for row in dataset}


def rewrite(root, stem, *args, **kwargs):
    miniatures.write_text(root / "dataset" / f"{stem}.xml", miniatures.voc(*args, **kwargs))


def test_boxes_are_those_of_the_files_as_left_top_width_height(root):
    dataset = load_stenosis(root)
    expected = {
        stem: [[x, y, right - x, bottom - y] for x, y, right, bottom in boxes] for stem, boxes in BOXES.items()
    }
    assert boxes_of(dataset) == expected
    assert dataset.features["objects"]["category"].feature.names == ["stenosis"]
    assert [row["objects"]["category"] for row in dataset] == [[0] * len(boxes) for boxes in BOXES.values()]
    assert np.array_equal(np.asarray(dataset[2]["image"]), miniatures.frame(2).image)


def test_patient_run_and_frame_are_read_from_the_name(root):
    row = load_stenosis(root)[2]
    assert (row["patient_id"], row["study_id"], row["frame_index"]) == ("14_002", "14_002_2", 10)


@pytest.mark.parametrize("split", ["train", "test"])
def test_split_of_the_tables_is_kept_as_it_is(root, split):
    report = FaultReport()
    assert load_stenosis(root, split=split, report=report)["image_id"] == sorted(SPLIT[split])
    assert len(report) == 0


def test_split_of_the_tables_shares_patients_and_a_split_by_patient_shares_none(root):
    train, test = (set(load_stenosis(root, split=split)["patient_id"]) for split in ("train", "test"))
    assert train & test == {"14_002"}
    miniatures.check_group_split(load_stenosis(root), "patient_id")


@pytest.mark.parametrize("split", ["all", "train"])
def test_set_holds_the_contract_of_every_downstream_set(root, tmp_path, split):
    miniatures.check_contract(load_stenosis, root, tmp_path, expected="`dataset/` with frames", split=split)


def test_folder_of_the_frames_can_be_named_and_finds_tables_beside_it(root):
    assert load_stenosis(root / "dataset", split="test")["image_id"] == sorted(SPLIT["test"])


def test_boxes_reach_a_training_batch_through_parquet(root, tmp_path):
    assert miniatures.training_batch(load_stenosis(root), tmp_path)["pixel_values"].shape == (5, 3, 224, 224)


def test_split_without_its_table_is_an_error_that_says_what_to_do(root):
    (root / "test_labels.csv").unlink()
    assert len(load_stenosis(root)) == 5
    with pytest.raises(FileNotFoundError, match=r"dataset, train_labels.csv, video_test"):
        load_stenosis(root, split="test")


def test_table_with_other_columns_is_an_error(root):
    miniatures.write_text(root / "train_labels.csv", "file,width,height,class,xmin,ymin,xmax,ymax\n")
    with pytest.raises(ValueError, match="filename. Restore the table"):
        load_stenosis(root)


def test_bad_frames_and_labels_are_named_and_the_rest_is_loaded(root):
    folder = root / "dataset"
    miniatures.damage(folder / "14_002_1_0001.bmp")
    for stem in ("14_002_1_0002", "14_003_1_0007"):
        (folder / f"{stem}.xml").unlink()
    miniatures.write_table(root / "test_labels.csv", miniatures.table_rows(["14_003_1_0007"]))
    miniatures.write_text(folder / "14_009_1_0001.xml", miniatures.voc([(1, 2, 3, 4)]))
    miniatures.write_text(folder / "desktop.ini", "")
    report = FaultReport()
    assert load_stenosis(root, report=report)["image_id"] == ["14_002_2_0010", "14_003_1_0007", "14_004_5_0016"]
    assert faults(report) == {
        "14_002_1_0001": "cannot be read as an image",
        "14_002_1_0002.bmp": "has neither a .xml nor a row in a table; skipped",
        "14_003_1_0007": "has no .xml; using the boxes of the table",
        "14_009_1_0001.xml": "has boxes for a missing frame; skipped",
        "desktop.ini": "is no file of this set",
    }


def test_bad_rows_of_a_table_are_named(root):
    rows = miniatures.table_rows(SPLIT["train"])
    rows = [*rows, rows[0], ["14_002_2_0010.bmp", 64, 64, "Stenosis", "a", 1, 2, 3]]
    miniatures.write_table(root / "train_labels.csv", [*rows, ["14_777_1_0001.bmp", 64, 64, "Stenosis", 1, 1, 2, 2]])
    report = FaultReport()
    assert load_stenosis(root, split="train", report=report)["image_id"] == sorted(SPLIT["train"])
    assert [(name, reason.split(";")[0]) for name, reason in report] == [
        ("train_labels.csv", "line 6 repeats a box of 14_002_1_0001"),
        ("train_labels.csv", "line 7 is not filename, width, height, class, xmin, ymin, xmax, ymax"),
        ("train_labels.csv", "lists 14_777_1_0001, which has no frame"),
    ]


def test_frame_in_both_tables_is_named(root):
    miniatures.write_table(root / "test_labels.csv", miniatures.table_rows(["14_002_1_0001"]))
    report = FaultReport()
    assert load_stenosis(root, split="test", report=report)["image_id"] == ["14_002_1_0001"]
    assert faults(report) == {"14_002_1_0001": "is in both train_labels.csv and test_labels.csv; kept in both"}


def test_boxes_of_the_xml_are_taken_where_the_table_says_otherwise(root):
    rewrite(root, "14_002_1_0001", [(10, 12, 20, 31)])
    report = FaultReport()
    assert boxes_of(load_stenosis(root, report=report))["14_002_1_0001"] == [[10, 12, 10, 19]]
    assert faults(report) == {"14_002_1_0001": ".xml and table disagree (1 and 1 boxes); using those of the .xml"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<annotation><object>", "cannot be read (ParseError"),
        ("<a><object><name>Stenosis</name><bndbox><xmin>1</xmin></bndbox></object></a>", "has an invalid number"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "defines entities"),
    ],
)
def test_boxes_of_the_table_are_taken_where_the_xml_cannot_be_read(root, text, reason):
    miniatures.write_text(root / "dataset/14_003_1_0007.xml", text)
    report = FaultReport()
    assert boxes_of(load_stenosis(root, report=report))["14_003_1_0007"] == [[1, 2, 2, 2]]
    assert faults(report) == {"14_003_1_0007": f"14_003_1_0007.xml {reason}"}
    assert next(iter(report)).reason.endswith("using the boxes of the table")
    (root / "test_labels.csv").unlink()
    assert "14_003_1_0007" not in load_stenosis(root)["image_id"]


def test_sizes_that_are_missing_or_wrong_are_named(root):
    rewrite(root, "14_002_1_0001", BOXES["14_002_1_0001"], size=None)
    rewrite(root, "14_002_1_0002", BOXES["14_002_1_0002"], size=(512, 512))
    (root / "test_labels.csv").unlink()
    report = FaultReport()
    assert "14_002_1_0002" not in load_stenosis(root, report=report)["image_id"]
    assert faults(report) == {
        "14_002_1_0001": "its .xml states no size; using that of the frame",
        "14_002_1_0002": "annotations are for 512×512 but the frame is 64×64; skipped",
    }


def test_boxes_are_cut_to_the_frame_and_empty_ones_dropped(root):
    (root / "train_labels.csv").unlink()
    (root / "test_labels.csv").unlink()
    rewrite(root, "14_002_1_0001", [(-4, 50, 20, 70), (10, 10, 10, 20), (30, 20, 20, 30), (70, 70, 80, 80)])
    rewrite(root, "14_002_1_0002", [(10, 10, 10, 20)])
    rewrite(root, "14_003_1_0007", [])
    rewrite(root, "14_004_5_0016", [(1, 1, 5, 5)], name="Calcium")
    report = FaultReport()
    boxes = boxes_of(load_stenosis(root, report=report))
    assert boxes == {"14_002_1_0001": [[0, 50, 20, 14]], "14_002_2_0010": [[5, 6, 10, 10], [40, 41, 10, 20]]}
    assert [(name, reason) for name, reason in report] == [
        ("14_002_1_0001", "box [-4, 50, 24, 20] reaches beyond the frame of 64×64; cut to it"),
        ("14_002_1_0001", "box [10, 10, 0, 10] is empty or outside of the frame of 64×64; dropped"),
        ("14_002_1_0001", "box [30, 20, -10, 10] is empty or outside of the frame of 64×64; dropped"),
        ("14_002_1_0001", "box [70, 70, 10, 10] is empty or outside of the frame of 64×64; dropped"),
        ("14_002_1_0002", "box [10, 10, 0, 10] is empty or outside of the frame of 64×64; dropped"),
        ("14_002_1_0002", "no box is left; left out"),
        ("14_003_1_0007", "no box is left; left out"),
        ("14_004_5_0016", "box of class 'Calcium' is not a stenosis; dropped"),
        ("14_004_5_0016", "no box is left; left out"),
    ]


def test_folders_of_whole_runs_are_no_frames_of_the_set(root, tmp_path):
    (root / "dataset").rename(tmp_path / "away")
    with pytest.raises(ValueError, match="holds test_labels.csv, train_labels.csv, video_test/. Expected"):
        load_stenosis(root)


def test_card_has_a_valid_head_and_tells_the_columns(root):
    miniatures.check_card("stenosis", load_stenosis(root))
