"""Tasks: what each knows fits together, and nothing outside of them asks which one it is."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig

import vasomim_hf.engine
from vasomim_hf.configuration_vasomim import VasoMIMConfig
from vasomim_hf.data.augmentation import AugmentationOptions, Size, draw_augmentation
from vasomim_hf.data.faults import FaultReport
from vasomim_hf.data.published.registry import DATASETS
from vasomim_hf.engine.evaluating.pictures import draw_scored
from vasomim_hf.engine.finetuning.run import RUNS
from vasomim_hf.engine.tasks.registry import TASKS, find_task, task_of_model
from vasomim_hf.engine.tasks.task import LabelContext, ScoredFrame, Task, View
from vasomim_hf.evaluation.detection_metrics import Boxes


SIDE = 16
MASK = np.zeros((SIDE, SIDE), np.uint8)
MASK[4:9, 4:9] = 1
# a label as in a row, and a prediction for it
LABELS = {
    "segmentation": (Image.fromarray(MASK), np.stack([1 - MASK, MASK]).astype(np.float32)),
    "detection": (
        {"bbox": [[4, 4, 5, 5]], "category": [1]},
        Boxes(np.array([[4.0, 4.0, 9.0, 9.0]]), np.array([1]), np.array([0.9])),
    ),
    "classification": (1, np.array([0.1, 0.9])),
}


@pytest.mark.parametrize("kind", TASKS)
def test_a_label_goes_from_its_row_to_the_model_the_scores_and_a_picture(kind):
    task, (label, prediction), size = find_task(kind), LABELS[kind], Size(SIDE, SIDE)
    read = task.read(label, LabelContext("a", size, 2, FaultReport()))
    assert 1 in task.classes_in(read)
    kept = task.keep(read, size, 2, is_training=True)
    assert (kept.plane is not None) == task.is_dense
    view = View(draw_augmentation(AugmentationOptions(), 0, 0, 0), size, Size(SIDE, SIDE), 0.4)
    assert task.training_label(kept, view) is not None
    frame = ScoredFrame("a", MASK * np.uint8(99), task.target(read, size), prediction)
    scores = task.make_scores(["first", "second"])
    task.add(scores, frame, None)
    assert len(scores.rows) == 1 and scores.kind == kind and task.rank(scores.rows[0]) > 0
    assert task.caption(frame, ["first", "second"]) and task.describe(frame, scores.rows[0], ["first", "second"])
    assert draw_scored(task, [frame], ["first", "second"]).size[0] >= 320


def test_every_task_has_a_run_a_data_set_and_a_model_of_its_own():
    assert RUNS.keys() == TASKS.keys()
    columns = {one.column for entry in DATASETS.values() for one in entry.tasks.values()}
    for kind, task in TASKS.items():
        assert task.kind == kind and task.column in columns and hasattr(RUNS[kind], f"{task.column}_column")
        assert task_of_model(task.model_class.__name__) is task
        assert task.auto_class._model_mapping[VasoMIMConfig] is task.model_class
        assert task.default_metric in task.metrics
    assert task_of_model("VasoMIMForPreTraining") is None
    assert isinstance(AutoConfig.for_model("vasomim"), VasoMIMConfig)


def test_another_name_is_answered_with_those_that_exist():
    with pytest.raises(ValueError, match="segmentation, detection, classification, got 'regression'"):
        find_task("regression")


def test_a_task_leaves_nothing_of_the_protocol_out():
    for task in TASKS.values():
        assert not inspect.isabstract(type(task))
        for name in Task.__annotations__:
            assert hasattr(task, name), f"{task.kind} has no {name}"


def test_nothing_outside_of_the_tasks_asks_which_task_it_is():
    folder = Path(vasomim_hf.engine.__file__).parent
    branch = re.compile(r"\bif .*(kind (==|!=|in|not in) |[=!]= (SEGMENTATION|DETECTION|CLASSIFICATION))")
    found = [
        f"{path.relative_to(folder)}: {line.strip()}"
        for path in sorted(folder.rglob("*.py"))
        for line in path.read_text().splitlines()
        if branch.search(line) and '"final"' not in line and "self.nested" not in line
    ]
    assert [line for line in found if "tasks/registry.py" not in line] == []
