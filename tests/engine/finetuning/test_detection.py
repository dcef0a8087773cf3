"""Fine-tuning of detection: it learns boxes, and frames without any are kept as what they are."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from miniatures.finetuning import SIZE, run_of, write_table
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from vasomim_hf.data.augmentation import AugmentationOptions, Size
from vasomim_hf.data.faults import FaultReport
from vasomim_hf.engine.finetuning import trainer as finetuning
from vasomim_hf.engine.finetuning.callbacks import load_diverged_batch
from vasomim_hf.engine.finetuning.decoded import Collator, DecodeOptions, FinetuneDataset, decode
from vasomim_hf.engine.finetuning.rows import LabelledRows
from vasomim_hf.engine.finetuning.run import DETECTION, DetectionRun
from vasomim_hf.engine.finetuning.trainer import finetune, read_metrics
from vasomim_hf.engine.pretraining.loop import TrainingDivergedError
from vasomim_hf.engine.tasks.detection import corner_boxes
from vasomim_hf.engine.tasks.task import LabelContext


FEATURES = {
    "objects": {
        "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
        "category": datasets.List(datasets.ClassLabel(names=["stenosis"])),
    }
}


def discs(count: int, seed: int) -> dict[str, list]:
    """Dark discs on grey, one to a frame, and none in each fourth."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    images, objects = [], []
    for number in range(count):
        image = rng.integers(150, 170, (SIZE, SIZE)).astype(np.uint8)
        x, y, radius = rng.uniform(14, SIZE - 14, 2).tolist() + [rng.uniform(6, 9)]
        if number % 4:
            image[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = 30
        box = [[x - radius, y - radius, 2 * radius, 2 * radius]] * bool(number % 4)
        images.append(image)
        objects.append({"bbox": box, "category": [0] * len(box)})
    return {"image": images, "objects": objects, "image_id": [f"{seed}-{number}" for number in range(count)]}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "discs"
    return write_table(folder, {"train": discs(8, 0), "val": discs(4, 1)}, FEATURES)


def test_a_run_on_boxes_leaves_a_folder_that_loads_and_finds_boxes(table, tmp_path):
    pytest.importorskip("pycocotools", reason="needs the extra eval")
    run = run_of(
        DetectionRun,
        table,
        tmp_path / "run",
        epochs=2,
        num_evaluations=1,
        learning_rate=3e-3,
        layer_decay=1.0,
        augment=False,
    )
    result = finetune(run)
    assert result.finished and 0 <= read_metrics(run)["metrics"]["ap50"] <= 1
    model = AutoModelForObjectDetection.from_pretrained(result.folder)
    processor = AutoImageProcessor.from_pretrained(result.folder)
    image = discs(2, 0)["image"][1]
    with torch.no_grad():
        output = model(**processor(image, return_tensors="pt", do_check_input=False))
    best = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(SIZE, SIZE)])[0]
    assert best["boxes"].shape[1] == 4 and len(best["boxes"]) > 0
    assert float(best["boxes"].min()) >= 0 and float(best["boxes"].max()) <= SIZE


def decoded(table: Path, folder: Path, working_scale: float | None = None):
    dataset = datasets.load_from_disk(table)["train"]
    options = DecodeOptions(DETECTION, 1, 32, working_scale)
    return decode(LabelledRows(dataset, "objects", "image"), options, folder)


def test_frames_without_boxes_are_frames_without_a_finding(table, tmp_path):
    samples = decoded(table, tmp_path / "planes")
    assert [len(boxes.corners) for boxes in samples.labels] == [
        0,
        1,
        1,
        1,
        0,
        1,
        1,
        1,
    ] and samples.counts.tolist() == [6]
    batch = Collator((0.5,), (0.5,))([FinetuneDataset(samples, 32)[index] for index in (0, 1)])
    assert batch["pixel_values"].shape == (2, 1, 32, 32) and batch["frame_indices"].tolist() == [0, 1]
    assert batch["labels"][0]["boxes"].shape == (0, 4) and batch["labels"][0]["class_labels"].shape == (0,)
    x, y, width, height = (value / SIZE for value in discs(2, 0)["objects"][1]["bbox"][0])
    assert batch["labels"][1]["boxes"][0].tolist() == pytest.approx([x + width / 2, y + height / 2, width, height])


def test_augmented_boxes_stay_on_what_they_name(table, tmp_path):
    dataset = FinetuneDataset(
        decoded(table, tmp_path / "planes", 2.0), 32, 0, AugmentationOptions(flip_probability=0.5)
    )
    for epoch in range(8):
        dataset.epoch = epoch
        item = dataset[1]
        # black too is what lies outside of the frame, but not beside the disc
        boxes = item["labels"]["boxes"].numpy() * 32
        assert len(boxes) == 1
        x, y, width, height = boxes[0]
        pixels = item["pixel"][0].numpy()
        inside = pixels[int(y - height / 4) : int(y + height / 4) + 1, int(x - width / 4) : int(x + width / 4) + 1]
        assert inside.mean() < 90


def test_boxes_that_are_none_are_left_out_and_told():
    faults = FaultReport()
    none = [[5, 5, 0, 3], [70, 5, 9, 9], [5, 5, -3, 3], [5, float("nan"), 3, 3], [5, 5, float("inf"), 3]]
    objects = {"bbox": [[10, 10, 20, 20], *none, [-4, 0, 10, 10]], "category": [0] * 7}
    boxes, labels = corner_boxes(objects, LabelContext("a", Size(64, 64), 1, faults))
    assert boxes * 64 == pytest.approx(np.array([[10, 10, 30, 30], [0, 0, 6, 10]])) and labels.tolist() == [0, 0]
    assert [fault.name for fault in faults] == ["a"] * 5 and "no area inside the frame" in next(iter(faults)).reason


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"bbox": [[1, 1, 2, 2]], "category": []}, "a: 1 boxes of four numbers need as many categories, got 0"),
        ({"bbox": [[1, 1, 2, 2]], "category": [3]}, "a: categories must be ids from 0 to 0, got [3]"),
        ({"bbox": [[1, 1, 2]], "category": [0]}, "a: 1 boxes of four numbers"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(objects, message):
    with pytest.raises(ValueError) as caught:
        corner_boxes(objects, LabelContext("a", Size(64, 64), 1, FaultReport()))
    assert message in str(caught.value)


def test_a_batch_of_boxes_that_made_the_loss_diverge_is_replayed(table, tmp_path, monkeypatch):
    real = finetuning.Collator.__call__

    def spoilt(collator, items):
        batch = real(collator, items)
        batch["pixel_values"][0, 0, 0, 0] = float("inf")
        return batch

    monkeypatch.setattr(finetuning.Collator, "__call__", spoilt)
    with pytest.raises(TrainingDivergedError, match="The loss of step 1 is not a finite number"):
        finetune(run_of(DetectionRun, table, tmp_path / "run", batch_size=8))
    folder = tmp_path / "run/diverged_step_00000001"
    inputs = load_diverged_batch(folder)
    # two of the eight frames have no boxes
    assert sorted(len(one["boxes"]) for one in inputs["labels"]) == [0, 0, 1, 1, 1, 1, 1, 1]
    assert [one["class_labels"].shape for one in inputs["labels"]] == [
        one["boxes"].shape[:1] for one in inputs["labels"]
    ]
    model = AutoModelForObjectDetection.from_pretrained(folder / "model").train()
    assert not torch.isfinite(model(**inputs).loss)
    inputs["pixel_values"] = inputs["pixel_values"].nan_to_num(posinf=0)
    assert torch.isfinite(model(**inputs).loss)


def test_a_split_without_any_box_is_refused_to_learn_from(tmp_path):
    nothing = discs(1, 0)
    table = write_table(tmp_path / "table", {"train": nothing, "val": discs(2, 1)}, FEATURES)
    with pytest.raises(ValueError, match="None of the 1 training frames has stenosis: there is nothing to learn"):
        finetune(run_of(DetectionRun, table, tmp_path / "run"))
