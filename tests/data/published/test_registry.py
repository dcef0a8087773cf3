"""Data sets by name: every entry loads its tasks and splits, and its splits share no patient or cine."""

import pytest
from miniatures.downstream import write_cadica, write_dca1, write_stenosis

from vasomim_hf.data.augmentation import FLIP_PROBABILITY
from vasomim_hf.data.published.cadica import CATEGORIES
from vasomim_hf.data.published.registry import ALL, DATASETS, DRAWN_SPLITS, OBJECTS, find_dataset
from vasomim_hf.data.splits import leaks


def test_the_seven_data_sets_and_their_tasks():
    assert {name: list(entry.tasks) for name, entry in DATASETS.items()} == {
        "arcade": ["vessel", "segments", "stenosis", "stenosis_boxes", "side"],
        "cadica": ["stenosis_boxes", "stenosis_severity_boxes"],
        "xcad": ["vessel"],
        "xcav": ["vessel"],
        "dca1": ["vessel"],
        "danilov": ["stenosis_boxes"],
        "table": [],
    }


def test_a_task_is_the_same_in_every_data_set():
    for entry in DATASETS.values():
        for name, task in entry.tasks.items():
            assert task.flip_probability == FLIP_PROBABILITY[name]
            assert entry.name == "cadica" or task == find_dataset("arcade").tasks[name]
            assert (task.column == OBJECTS) == name.endswith("_boxes")


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda: find_dataset("xkad"), ("'xkad'", "Did you mean 'xcad'?", "danilov")),
        (lambda: find_dataset("ARCADE"), ("Did you mean 'arcade'?",)),
        (lambda: find_dataset("xcad").find_task("stenosis_boxes"), ("one of vessel on XCAD", "'stenosis_boxes'")),
        (lambda: find_dataset("cadica").find_task("vessel", ["mask"]), ("stenosis_boxes", "CADICA", "'vessel'")),
        (lambda: find_dataset("arcade").find_task("vesel"), ("Did you mean 'vessel'?",)),
        (lambda: find_dataset("xcav").load("nowhere", "vessel", "dev"), ("train, val, test, all", "'dev'")),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(call, facts):
    with pytest.raises(ValueError) as caught:
        call()
    assert all(fact in str(caught.value) for fact in facts), caught.value


def test_drawn_splits_are_all_frames_and_share_no_patient(tmp_path):
    entry, root = find_dataset("danilov"), write_stenosis(tmp_path)
    parts = {split: entry.load(root, "stenosis_boxes", split) for split in DRAWN_SPLITS}
    assert not any(leaks(parts, by=("patient_id", "study_id")).values())
    rows = entry.load(root, "stenosis_boxes", ALL)
    assert sorted(name for part in parts.values() for name in part["image_id"]) == sorted(rows["image_id"])
    both = entry.load(root, "stenosis_boxes", "val+train")["image_id"]
    assert both == [name for name in rows["image_id"] if name not in parts["test"]["image_id"]]
    assert entry.load(root, "stenosis_boxes", "test")["image_id"] == parts["test"]["image_id"]


def test_frames_without_a_known_group_are_drawn_one_by_one(tmp_path):
    root, _ = write_dca1(tmp_path)
    parts = [find_dataset("dca1").load(root, "vessel", split)["image_id"] for split in DRAWN_SPLITS]
    assert sorted(name for part in parts for name in part) == ["1", "10", "134", "2"] and all(map(len, parts))


def test_cadica_has_boxes_of_one_class_or_of_seven_and_frames_without_a_lesion(tmp_path):
    entry, root = find_dataset("cadica"), write_cadica(tmp_path)
    merged = entry.load(root, "stenosis_boxes", ALL)
    graded = entry.load(root, "stenosis_severity_boxes", ALL)
    assert merged["image_id"] == graded["image_id"] and None not in [one["category"] for one in merged["objects"]]
    assert [one["bbox"] for one in merged["objects"]] == [one["bbox"] for one in graded["objects"]]
    assert [] in [one["category"] for one in merged["objects"]]
    assert {label for one in merged["objects"] for label in one["category"]} == {0}
    assert entry.tasks["stenosis_severity_boxes"].labels == dict(enumerate(CATEGORIES))
    assert merged.features["objects"]["category"].feature.names == ["stenosis"]
