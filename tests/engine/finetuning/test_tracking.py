"""What a person can watch of fine-tuning: pictures, TensorBoard, progress and short lines."""

import datasets
import numpy as np
import pytest
from miniatures.finetuning import frames, run_of, vessel_table, write_table
from PIL import Image

from vasomim_hf.engine.finetuning.linear_probe import finetune_classification
from vasomim_hf.engine.finetuning.run import ClassificationRun, DetectionRun, SegmentationRun
from vasomim_hf.engine.finetuning.trainer import finetune
from vasomim_hf.engine.tracking import read_log
from vasomim_hf.progress import LONGEST_LINE


WATCHED = {"tensorboard": True, "picture_every_epochs": 1, "num_pictures": 2, "epochs": 4, "num_evaluations": 4}


def events_of(folder):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return event_accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()


def is_not_blank(path) -> bool:
    with Image.open(path) as picture:
        levels = np.asarray(picture)
    return levels.ndim == 3 and levels.std() > 10


def table_of(folder, column: str, values: list, feature):
    images = [item.image for item in frames(6)]
    columns = {"image": images, column: values, "image_id": [str(number) for number in range(6)]}
    return write_table(folder, {"train": columns, "val": columns}, {column: feature})


@pytest.fixture(scope="module")
def vessels(tmp_path_factory):
    return vessel_table(tmp_path_factory.mktemp("data") / "vessels")


def test_a_segmentation_shows_curves_and_the_same_frames_at_each_evaluation(vessels, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = finetune(run_of(SegmentationRun, vessels, tmp_path / "run", **WATCHED)).folder.parent
    steps = [line["step"] for line in read_log(folder, "evaluation")]
    pictures = sorted((folder / "pictures").iterdir())
    assert [path.name for path in pictures] == ["final.png", *(f"step_{step:06d}.png" for step in steps)]
    assert all(is_not_blank(path) for path in pictures)
    events = events_of(folder)
    assert {"step/loss", "step/learning_rate", "evaluation/pooled_dice", "final/pooled_dice"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Images("predictions")] == steps
    assert set(events.Tags()["images"]) == {"predictions", "final_predictions"}
    own = [one.getMessage() for one in caplog.records if one.name.endswith("callbacks")]
    assert max(len(text) for text in own) + len("11-27 14:03:12 ") <= LONGEST_LINE


def test_pictures_keep_their_distance_in_epochs_and_can_be_left_out(vessels, tmp_path):
    seldom = run_of(SegmentationRun, vessels, tmp_path / "seldom", **{**WATCHED, "picture_every_epochs": 2})
    names = sorted(path.name for path in (finetune(seldom).folder.parent / "pictures").iterdir())
    assert names == ["final.png", "step_000003.png", "step_000009.png"]
    none = run_of(SegmentationRun, vessels, tmp_path / "none", **{**WATCHED, "picture_every_epochs": 0})
    assert not (finetune(none).folder.parent / "pictures").exists()


def test_pictures_change_nothing_about_the_training(vessels, tmp_path):
    watched = finetune(run_of(SegmentationRun, vessels, tmp_path / "watched", **WATCHED)).folder.parent
    keys = {**WATCHED, "picture_every_epochs": 0, "tensorboard": False}
    alone = finetune(run_of(SegmentationRun, vessels, tmp_path / "alone", **keys)).folder.parent
    lines = [[line["loss"] for line in read_log(folder, "step")] for folder in (watched, alone)]
    assert lines[0] == lines[1]


def test_a_detector_shows_its_boxes(tmp_path):
    pytest.importorskip("pycocotools")
    values = [{"bbox": [[10.0, 12.0, 20.0, 16.0]], "category": [0]}] * 6
    feature = {"bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4))}
    feature["category"] = datasets.List(datasets.ClassLabel(names=["stenosis"]))
    data = table_of(tmp_path / "data", "objects", values, feature)
    folder = finetune(run_of(DetectionRun, data, tmp_path / "run", **WATCHED)).folder.parent
    assert is_not_blank(folder / "pictures/final.png")


def test_a_classifier_shows_its_classes(tmp_path):
    data = table_of(tmp_path / "data", "label", [0, 1] * 3, datasets.ClassLabel(names=["left", "right"]))
    folder = finetune_classification(run_of(ClassificationRun, data, tmp_path / "run", **WATCHED)).folder.parent
    assert is_not_blank(folder / "pictures/final.png")
