"""Classification of frames: the linear probe is the logistic regression it claims to be, and full fine-tuning learns."""

import dataclasses
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from miniatures.finetuning import SIZE, frames, run_of, write_table
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram
from vasomim_hf.engine.evaluating import EvaluationRequest, evaluate_model
from vasomim_hf.engine.finetuning.linear_probe import finetune_classification
from vasomim_hf.engine.finetuning.logistic_regression import Features, fit_logistic_regression
from vasomim_hf.engine.finetuning.rows import LabelledRows, choose_fraction, hold_out, load_task_data
from vasomim_hf.engine.finetuning.run import ClassificationRun
from vasomim_hf.engine.finetuning.trainer import read_metrics
from vasomim_hf.engine.finetuning.weights import build_finetune_model
from vasomim_hf.engine.run_config import RunConfigError


NAMES = ["dark", "bright"]


def columns(count: int, first_seed: int) -> dict[str, list]:
    """Half of the frames are brighter: a label that every encoder can tell."""
    images = [
        (item.image // 2 + 100 * (number % 2)).astype(np.uint8)
        for number, item in enumerate(frames(count, first_seed))
    ]
    return {
        "image": images,
        "label": [number % 2 for number in range(count)],
        "patient_id": [f"{first_seed}-{number // 2}" for number in range(count)],
    }


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "brightness"
    splits = {"train": columns(12, 0), "val": columns(6, 40)}
    return write_table(folder, splits, {"label": datasets.ClassLabel(names=NAMES)})


def test_a_linear_probe_tells_what_is_there_and_leaves_the_encoder_as_it_was(table, tmp_path):
    run = run_of(ClassificationRun, table, tmp_path / "run", linear_probe=True)
    result = finetune_classification(run)
    metrics = read_metrics(run)
    assert result.finished and metrics["metrics"]["accuracy"] == 1 and metrics["metrics"]["auroc"] == 1
    model = AutoModelForImageClassification.from_pretrained(result.folder)
    assert model.config.freeze_encoder and model.config.id2label == dict(enumerate(NAMES))
    assert not any(parameter.requires_grad for parameter in model.vasomim.parameters())
    processor = AutoImageProcessor.from_pretrained(result.folder)
    for image, label in zip(*(columns(6, 40)[name] for name in ("image", "label")), strict=True):
        with torch.no_grad():
            assert int(model(**processor(image, return_tensors="pt", do_check_input=False)).logits.argmax()) == label
    # a finished run is not computed again
    before = (result.folder / "model.safetensors").stat().st_mtime_ns
    finetune_classification(dataclasses.replace(run, resume="auto"))
    assert (result.folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RunConfigError, match="already has a run"):
        finetune_classification(run)


def test_a_linear_probe_learns_from_frames_as_the_image_processor_gives_them(tmp_path):
    images = [synthetic_angiogram(seed, size=100).image for seed in range(4)]
    split = {"image": images, "label": [0, 1, 0, 1]}
    table = write_table(tmp_path / "data", {"train": split, "val": split}, {"label": datasets.ClassLabel(names=NAMES)})
    folder = finetune_classification(run_of(ClassificationRun, table, tmp_path / "run", linear_probe=True)).folder
    features = load_file(folder.parent / "features.safetensors")
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        expected = model.pooled_features(processor(images, return_tensors="pt", do_check_input=False)["pixel_values"])
    torch.testing.assert_close(features["training"], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features["validation"], expected, atol=1e-5, rtol=1e-4)


def test_a_linear_probe_says_which_keys_it_does_not_use_and_others_may_read_its_files(table, tmp_path, caplog):
    caplog.set_level("INFO")
    keys = {"epochs": 1, "learning_rate": 0.1, "num_evaluations": 20, "mixed_precision": "bf16"}
    keys |= {"tensorboard": True, "picture_every_epochs": 1}
    before = os.umask(0o027)
    try:
        folder = finetune_classification(
            run_of(ClassificationRun, table, tmp_path / "run", linear_probe=True, log_every_steps=10, **keys)
        ).folder
    finally:
        os.umask(before)
    assert "it ignores epochs, learning_rate, mixed_precision" in [
        text.rpartition("; ")[2] for text in caplog.messages
    ]
    modes = {
        path.name: oct(path.stat().st_mode & 0o777)
        for path in [*folder.iterdir(), *folder.parent.iterdir()]
        if path.is_file()
    }
    assert set(modes.values()) == {"0o640"} and {"model.safetensors", "features.safetensors"} <= set(modes), modes
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize("weight_decay", [0.03, 1e-3])
def test_logistic_regression_is_the_minimum_of_its_objective(num_labels, weight_decay):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 5)) * [1, 10, 0.1, 3, 1] + [0, 5, 2, -1, 0]
    score = values @ [1, 0.05, 3, 0, -1] + rng.normal(size=60)
    labels = torch.tensor(np.digitize(score, np.quantile(score, np.arange(1, num_labels) / num_labels)))
    layer = fit_logistic_regression(Features(torch.tensor(values).float(), labels), num_labels, weight_decay).double()
    std = torch.tensor(values.std(axis=0))
    loss = torch.nn.functional.cross_entropy(layer(torch.tensor(values)), labels)
    (loss + weight_decay / 2 * (layer.weight * std).square().sum()).backward()
    for gradient in (layer.weight.grad / std, layer.bias.grad):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-4, rtol=0)


def test_a_class_without_frames_is_never_predicted():
    values = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    for labels in ([0, 0, 2, 2], [0, 1, 3, 3]):
        probabilities = fit_logistic_regression(Features(values, torch.tensor(labels)), 4, 1e-3)(values).softmax(dim=1)
        assert probabilities.argmax(dim=1).tolist() == labels
        absent = sorted({0, 1, 2, 3} - set(labels))
        assert probabilities[:, absent].max() < 1e-8


def test_a_feature_that_never_changes_does_no_harm():
    features = Features(torch.tensor([[0.0, 5.0], [1.0, 5.0], [4.0, 5.0], [6.0, 5.0]]), torch.tensor([0, 0, 1, 1]))
    layer = fit_logistic_regression(features, 2, 1e-3)
    assert torch.isfinite(layer.weight).all() and layer(features.values).argmax(dim=1).tolist() == [0, 0, 1, 1]


def test_full_fine_tuning_changes_every_part_of_the_model(table, tmp_path):
    run = run_of(ClassificationRun, table, tmp_path / "run", epochs=2, learning_rate=3e-3, layer_decay=1.0)
    before = build_finetune_model(run, load_task_data(run).id2label).state_dict()
    result = finetune_classification(run)
    assert result.finished and 0 <= read_metrics(run)["metrics"]["balanced_accuracy"] <= 1
    model = AutoModelForImageClassification.from_pretrained(result.folder)
    assert not model.config.freeze_encoder
    # a key's bias moves all weights of a query alike, so that softmax takes it out
    trained = [name for name, _ in model.named_parameters() if "k_proj.bias" not in name]
    assert [name for name in trained if torch.equal(model.state_dict()[name], before[name])] == []


def test_labels_that_do_not_fit_are_refused(tmp_path):
    good = columns(4, 0)
    for split, message in (
        (good | {"label": [0, 0, 0, 0]}, "None of the 4 training frames is bright"),
        (good | {"label": [0, 1, 2, 0]}, "the label must be a class id from 0 to 1, got 2"),
    ):
        table = write_table(tmp_path / message[:20], {"train": split, "val": good})
        run = run_of(ClassificationRun, table, tmp_path / "run", labels=dict(enumerate(NAMES)))
        with pytest.raises(ValueError) as caught:
            finetune_classification(run)
        assert message in str(caught.value)


def test_labels_that_are_names_become_ids_in_the_order_of_the_run(tmp_path):
    named = {"train": columns(4, 0), "val": columns(4, 40)}
    for split in named.values():
        split["label"] = ["left", "right", "right", "left"]
    table = write_table(tmp_path / "table", named)
    before = sorted(path.name for path in table.rglob("*"))
    run = run_of(ClassificationRun, table, tmp_path / "run", labels={0: "right", 1: "left"})
    data = load_task_data(run)
    assert list(data.training.dataset["label"]) == list(data.validation.dataset["label"]) == [1, 0, 0, 1]
    assert sorted(path.name for path in table.rglob("*")) == before, "nothing of the frames is written beside the data"
    for labels, message in (
        ({}, "such as labels: {0: left, 1: right}"),
        ({0: "left", 1: "middle"}, "1: the label must be one of left, middle, got 'right'"),
    ):
        with pytest.raises(RunConfigError) as caught:
            load_task_data(dataclasses.replace(run, labels=labels))
        assert message in str(caught.value)
    finetune_classification(dataclasses.replace(run, epochs=1))
    request = EvaluationRequest(str(run.result_folder), str(table), "side", "validation", dataset="table")
    assert len(evaluate_model(request).rows) == 4


def test_classes_that_the_validation_frames_lack_are_told_and_choose_nothing(tmp_path, caplog):
    table = write_table(tmp_path / "table", {"train": columns(6, 0), "val": columns(4, 40) | {"label": [0] * 4}})
    keys = {"labels": dict(enumerate(NAMES)), "epochs": 1}
    with pytest.raises(RunConfigError, match="fewer than 2 of the classes, so auroc"):
        finetune_classification(run_of(ClassificationRun, table, tmp_path / "auroc", metric="auroc", **keys))
    caplog.clear()
    run = run_of(ClassificationRun, table, tmp_path / "run", **keys)
    assert finetune_classification(run).finished
    assert "no validation frame has bright: predictions and scores for it are meaningless" in caplog.messages
    # the mean over the classes that occur
    metrics = read_metrics(run)["metrics"]
    assert metrics["balanced_accuracy"] == metrics["accuracy"]


def rows_with(**content: list) -> LabelledRows:
    return LabelledRows(datasets.Dataset.from_dict(content), "label", "image")


def test_held_out_frames_share_no_patient_with_the_others():
    patients = [number // 4 for number in range(40)]
    twins = [f"twin-{number}" if number not in (3, 36) else "twin" for number in range(40)]
    rows = rows_with(label=[0] * 40, patient_id=patients, near_duplicate_group=twins)
    learnt, judged = hold_out(rows, 0.2, seed=1)
    assert sorted([*learnt, *judged]) == list(range(40)) and 8 <= len(judged) <= 16
    assert not {patients[i] for i in learnt} & {patients[i] for i in judged}
    assert (3 in learnt) == (36 in learnt)
    assert hold_out(rows, 0.2, seed=2)[1].tolist() != judged.tolist()
    with pytest.raises(RunConfigError, match="leaves none to train on"):
        hold_out(rows_with(label=[0, 1], patient_id=["a", "a"]), 0.5, seed=0)


def test_a_smaller_fraction_is_part_of_a_larger_one_and_follows_the_seed():
    rows = np.arange(200)
    parts = [set(choose_fraction(rows, fraction, 3).tolist()) for fraction in (0.05, 0.1, 0.5, 1.0)]
    assert [len(part) for part in parts] == [10, 20, 100, 200]
    assert parts[0] < parts[1] < parts[2] < parts[3]
    assert set(choose_fraction(rows, 0.1, 4).tolist()) != parts[1]
    assert len(choose_fraction(rows, 1e-6, 0)) == 1


def test_frames_are_seen_at_the_size_of_the_run(table, tmp_path):
    run = run_of(ClassificationRun, table, tmp_path / "run", linear_probe=True, image_size=48)
    finetune_classification(run)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "final")
    assert dict(processor.size) == {"height": 48, "width": 48} and SIZE != 48
