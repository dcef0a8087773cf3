"""Fine-tuning of segmentation: it learns, goes on exactly where it stopped, and says what is wrong with its input."""

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from miniatures.finetuning import ENCODER, HEADS, SIZE, frames, run_of, vessel_table, write_table
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, ViTMAEConfig, ViTMAEForPreTraining

from vasomim_hf import VasoMIMConfig, VasoMIMForImageClassification, VasoMIMForPreTraining
from vasomim_hf.data.reading import MaskError
from vasomim_hf.engine.finetuning import callbacks as finetune_callbacks
from vasomim_hf.engine.finetuning import trainer as finetuning
from vasomim_hf.engine.finetuning import weights as finetune_model
from vasomim_hf.engine.finetuning.callbacks import load_diverged_batch
from vasomim_hf.engine.finetuning.decoded import DecodeOptions, decode
from vasomim_hf.engine.finetuning.layer_decay import LayerWiseAdamW, layer_wise_groups
from vasomim_hf.engine.finetuning.rows import load_task_data
from vasomim_hf.engine.finetuning.run import ClassificationRun, SegmentationRun
from vasomim_hf.engine.finetuning.trainer import finetune, read_metrics
from vasomim_hf.engine.finetuning.weights import build_finetune_model
from vasomim_hf.engine.pretraining.loop import TrainingDivergedError
from vasomim_hf.engine.run_config import RunConfigError
from vasomim_hf.engine.tracking import read_log


ROOT = Path(__file__).parents[3]
LABELS = {0: "background", 1: "vessel"}


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return vessel_table(tmp_path_factory.mktemp("data") / "vessels")


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder, "step")]


def test_a_run_changes_every_part_of_the_model_and_the_folder_loads(table, tmp_path):
    run = run_of(
        SegmentationRun, table, tmp_path / "run", epochs=4, augment=False, learning_rate=5e-3, layer_decay=1.0
    )
    before = build_finetune_model(run, LABELS).state_dict()
    result = finetune(run)
    assert result.finished and result.folder == tmp_path / "run" / "final"
    model = AutoModelForSemanticSegmentation.from_pretrained(result.folder)
    # a key's bias moves all weights of a query alike, so that softmax takes it out
    trained = [name for name, _ in model.named_parameters() if "k_proj.bias" not in name]
    assert [name for name in trained if torch.equal(model.state_dict()[name], before[name])] == []
    processor = AutoImageProcessor.from_pretrained(result.folder)
    assert type(model).__name__ == "VasoMIMForSemanticSegmentation" and model.config.id2label == LABELS
    inputs = processor(frames(1)[0].image, return_tensors="pt")
    assert model(**inputs).logits.shape == (1, 2, SIZE, SIZE)
    metrics = read_metrics(run)
    assert metrics["metrics"]["pooled_dice"] == pytest.approx(
        max(line["pooled_dice"] for line in read_log(tmp_path / "run", "evaluation"))
    )
    assert metrics["frames_per_second"] > 0 and metrics["num_training_frames"] == 6
    assert not list((tmp_path / "run").glob(".*")), "decoded frames of patients are left behind"


def test_validation_scores_are_those_of_the_finished_model(table, tmp_path):
    result = finetune(run := run_of(SegmentationRun, table, tmp_path / "run", epochs=6))
    model = AutoModelForSemanticSegmentation.from_pretrained(result.folder)
    processor = AutoImageProcessor.from_pretrained(result.folder)
    intersection = total = 0
    for item in frames(3, first_seed=50):
        with torch.no_grad():
            logits = model(**processor(item.image, return_tensors="pt")).logits
        found, true = logits.argmax(dim=1)[0].numpy() == 1, item.segment_mask > 0
        intersection, total = intersection + 2 * (found & true).sum(), total + found.sum() + true.sum()
    assert read_metrics(run)["metrics"]["pooled_dice"] == pytest.approx(intersection / total, abs=1e-6)


def stop_in_step(step: int, monkeypatch) -> None:
    """Let the signal to stop come in a step, counted from 1."""
    begin, real, stops = finetune_callbacks.LossGuard.on_step_begin, finetuning.StopCallback, []

    def stop(guard, args, state, control, **kwargs):
        begin(guard, args, state, control, **kwargs)
        if state.global_step == step - 1:
            stops[-1].signal.number = 15

    monkeypatch.setattr(finetuning, "StopCallback", lambda: stops.append(real()) or stops[-1])
    monkeypatch.setattr(finetune_callbacks.LossGuard, "on_step_begin", stop)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(table, tmp_path, monkeypatch, num_workers):
    keys = {"epochs": 4, "num_workers": num_workers}
    whole = run_of(SegmentationRun, table, tmp_path / "whole", **keys)
    whole.model["drop_path_rate"] = 0.5
    finetune(whole)
    stopped = dataclasses.replace(whole, output_dir=str(tmp_path / "stopped"))
    # in the middle of an epoch
    stop_in_step(5, monkeypatch)
    result = finetune(stopped)
    assert not result.finished and result.step == 5 and result.folder.name == "checkpoint-5"
    monkeypatch.undo()
    result = finetune(dataclasses.replace(stopped, resume="auto"))
    assert result.finished and losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    ends = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "stopped")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    # a finished run is left as it is
    assert finetune(dataclasses.replace(stopped, resume="auto")).step == 12


def test_each_epoch_draws_another_augmentation(table, tmp_path, monkeypatch):
    seen = []
    real = finetuning.FinetuneDataset.__getitem__

    def noted(dataset, index):
        if dataset.augmentation is not None:
            seen.append((dataset.epoch, index))
        return real(dataset, index)

    monkeypatch.setattr(finetuning.FinetuneDataset, "__getitem__", noted)
    finetune(run_of(SegmentationRun, table, tmp_path / "run", epochs=3))
    assert sorted(seen) == [(epoch, index) for epoch in range(3) for index in range(6)]


def test_a_run_is_not_begun_on_top_of_another_and_not_resumed_with_other_frames(table, tmp_path):
    run = run_of(SegmentationRun, table, tmp_path / "run", epochs=1)
    finetune(run)
    with pytest.raises(RunConfigError, match="already has a run.*--resume auto"):
        finetune(run)
    stored = (tmp_path / "run" / "run.yaml").read_text()
    changed = dataclasses.replace(run, resume="auto", epochs=7, learning_rate=1e-4, num_threads=1)
    with pytest.raises(RunConfigError, match="other settings: .*`epochs` 1.0, now 7"):
        finetune(changed)
    other = str(max((tmp_path / "run" / "checkpoints").glob("checkpoint-*")))
    with pytest.raises(RunConfigError, match="other settings: .*`epochs`"):
        finetune(dataclasses.replace(changed, resume=other, output_dir=str(tmp_path / "elsewhere")))
    assert (tmp_path / "run" / "run.yaml").read_text() == stored
    # one that was ended before its first checkpoint binds nobody
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "run.yaml").write_text(stored)
    assert finetune(dataclasses.replace(changed, epochs=0.1, output_dir=str(tmp_path / "early"))).finished
    (tmp_path / "run" / "final" / "metrics.json").unlink()
    fewer = vessel_table(tmp_path / "fewer", train=4)
    with pytest.raises(RunConfigError, match="created with other frames"):
        finetune(dataclasses.replace(run, resume="auto", data=str(fewer)))


def test_a_loss_that_is_no_number_names_its_step_and_keeps_its_batch(table, tmp_path, monkeypatch):
    run = run_of(SegmentationRun, table, tmp_path / "run")
    real = finetuning.FinetuneDataset.__getitem__

    def spoilt(dataset, index):
        item = real(dataset, index)
        if dataset.epoch == 1 and dataset.augmentation is not None:
            dataset.broken = True
        return item

    def collate(collator, items):
        batch = real_collate(collator, items)
        if any(item["frame_index"] == 2 for item in items) and getattr(trained[0], "broken", False):
            batch["pixel_values"][0, 0, 0, 0] = float("nan")
        return batch

    trained = []
    real_init = finetuning.FinetuneDataset.__init__
    monkeypatch.setattr(
        finetuning.FinetuneDataset,
        "__init__",
        lambda self, *a, **k: (trained.append(self), real_init(self, *a, **k))[1],
    )
    monkeypatch.setattr(finetuning.FinetuneDataset, "__getitem__", spoilt)
    real_collate = finetuning.Collator.__call__
    monkeypatch.setattr(finetuning.Collator, "__call__", collate)
    with pytest.raises(TrainingDivergedError, match=r"The loss of step [456] is not a finite number.*train-2"):
        finetune(run)
    folder = next((tmp_path / "run").glob("diverged_step_*"))
    about = json.loads((folder / "about.json").read_text())
    assert "train-2" in about["frames"] and about["weights_are_finite"] and f"{about['step']:08d}" in folder.name
    inputs = load_diverged_batch(folder)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder / "model")
    assert not torch.isfinite(model(**inputs).loss)
    inputs["pixel_values"] = inputs["pixel_values"].nan_to_num()
    assert torch.isfinite(model(**inputs).loss)


def test_weights_that_are_no_numbers_are_told_from_a_batch_that_is_none(table, tmp_path, monkeypatch):
    models = []
    real = finetuning.build_finetune_model
    monkeypatch.setattr(
        finetuning, "build_finetune_model", lambda *arguments: models.append(real(*arguments)) or models[0]
    )
    begin = finetune_callbacks.LossGuard.on_step_begin

    def spoil(guard, args, state, control, **kwargs):
        begin(guard, args, state, control, **kwargs)
        if state.global_step == 1:
            models[0].decode_head.classifier.bias.data.fill_(float("nan"))

    monkeypatch.setattr(finetune_callbacks.LossGuard, "on_step_begin", spoil)
    with pytest.raises(TrainingDivergedError, match=r"The loss of step 2 is .* The weights were already not finite"):
        finetune(run_of(SegmentationRun, table, tmp_path / "run"))
    folder = tmp_path / "run/diverged_step_00000002"
    assert not json.loads((folder / "about.json").read_text())["weights_are_finite"]
    assert not (folder / "model").exists() and load_diverged_batch(folder)["labels"].shape == (2, SIZE, SIZE)


@pytest.mark.parametrize("content", [None, '{"global_step": 5'])
def test_a_run_goes_on_from_the_newest_whole_checkpoint(table, tmp_path, monkeypatch, content):
    whole = run_of(SegmentationRun, table, tmp_path / "whole", num_evaluations=4)
    finetune(whole)
    killed = dataclasses.replace(whole, output_dir=str(tmp_path / "killed"))
    stop_in_step(5, monkeypatch)
    finetune(killed)
    monkeypatch.undo()
    state = tmp_path / "killed/checkpoints/checkpoint-5/trainer_state.json"
    state.unlink() if content is None else state.write_text(content)
    with pytest.raises(FileNotFoundError, match="checkpoint-5 is not a complete checkpoint. Use --resume auto"):
        finetune(dataclasses.replace(killed, resume=str(state.parent)))
    assert finetuning.newest_checkpoint(tmp_path / "killed").name in ("checkpoint-2", "checkpoint-4")
    finetune(dataclasses.replace(killed, resume="auto"))
    ends = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_early_stopping_ends_a_run_that_gains_nothing(table, tmp_path):
    run = run_of(
        SegmentationRun, table, tmp_path / "run", epochs=10, num_evaluations=10, patience=2, learning_rate=0.0
    )
    result = finetune(run)
    assert result.finished and result.step == 9 and read_metrics(run)["best_step"] == 3


@pytest.mark.parametrize("step", [6, 8, 9])
def test_a_stop_changes_nothing_about_evaluations_and_early_stopping(table, tmp_path, monkeypatch, step):
    keys = {"epochs": 10, "num_evaluations": 10, "patience": 2, "learning_rate": 0.0, "gradient_accumulation_steps": 1}
    run = run_of(SegmentationRun, table, tmp_path / "run", **keys)
    stop_in_step(step, monkeypatch)
    result = finetune(run)
    # the evaluation of step 9 is the one that ends training
    assert result.finished == (step == 9) and result.step == step
    monkeypatch.undo()
    result = finetune(dataclasses.replace(run, resume="auto"))
    assert result.finished and result.step == 9 and read_metrics(run)["best_step"] == 3
    assert [line["step"] for line in read_log(tmp_path / "run", "evaluation")] == [3, 6, 9]


def test_the_last_weights_are_kept_where_the_run_says_so(table, tmp_path):
    run = run_of(SegmentationRun, table, tmp_path / "run", epochs=2, final_weights="last")
    finetune(run)
    last = load_file(tmp_path / "run/checkpoints/checkpoint-6/model.safetensors")
    kept = load_file(tmp_path / "run/final/model.safetensors")
    assert all(torch.equal(kept[name], last[name]) for name in kept) and read_metrics(run)["best_step"] == 6


def test_few_frames_are_seen_more_often_where_steps_are_asked_for(table, tmp_path):
    run = run_of(SegmentationRun, table, tmp_path / "run", train_fraction=0.3, epochs=1, min_steps=4)
    assert finetune(run).step == 4 and read_metrics(run)["num_training_frames"] == 2


# First weights


def test_pre_trained_weights_of_vasomim_fill_the_encoder(tmp_path):
    pretrained = VasoMIMForPreTraining(
        VasoMIMConfig(**ENCODER, image_size=32, filter_weight=1, consistency_loss_weight=0)
    )
    pretrained.save_pretrained(tmp_path / "pre")
    config = {**HEADS[SegmentationRun], "drop_path_rate": 0.1}
    run = run_of(SegmentationRun, tmp_path, tmp_path / "run", init=str(tmp_path / "pre"), model=config)
    model = build_finetune_model(run, LABELS)
    assert model.config.drop_path_rate == 0.1 and model.config.image_size == 32
    expected = pretrained.vasomim.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.vasomim.state_dict().items())


def test_weights_of_other_shapes_are_told_one_by_one(tmp_path, caplog):
    model = build_finetune_model(run_of(SegmentationRun, tmp_path, tmp_path / "run"), LABELS)
    model.save_pretrained(tmp_path / "two")
    run = run_of(SegmentationRun, tmp_path, tmp_path / "run", init=str(tmp_path / "two"), model={})
    build_finetune_model(run, {**LABELS, 2: "catheter"})
    assert [text for text in caplog.messages if "classifier.bias" in text] == [
        f"decode_head.classifier.bias is newly initialised: its shape is (2,) in {tmp_path / 'two'} and (3,) here"
    ]


def test_pre_trained_weights_of_a_plain_mae_give_its_features(tmp_path, capfd):
    mae = ViTMAEForPreTraining(ViTMAEConfig(**ENCODER, image_size=SIZE, decoder_num_hidden_layers=1))
    mae.save_pretrained(tmp_path / "mae")
    run = run_of(SegmentationRun, tmp_path, tmp_path / "run", init=str(tmp_path / "mae"), model=HEADS[SegmentationRun])
    model = build_finetune_model(run, LABELS).eval()
    pixels = torch.randn(1, 3, SIZE, SIZE)
    mae.vit.config.mask_ratio = mae.config.mask_ratio = 0.0
    # in the order of noise, which is that of the patches
    noise = torch.arange(16.0)[None]
    with torch.no_grad():
        expected = mae.eval().vit(pixels, noise=noise).last_hidden_state
        found = model.vasomim(pixels).last_hidden_state
    assert found == pytest.approx(expected, abs=1e-5)
    assert "UNEXPECTED" not in capfd.readouterr().err


def test_the_weights_of_imagenet_are_asked_for_by_their_name(tmp_path, monkeypatch):
    ViTMAEForPreTraining(ViTMAEConfig(**ENCODER, image_size=SIZE, decoder_num_hidden_layers=1)).save_pretrained(
        tmp_path / "mae"
    )
    assert finetune_model.MAE_NAME == "facebook/vit-mae-base"
    monkeypatch.setattr(finetune_model, "MAE_NAME", str(tmp_path / "mae"))
    run = run_of(SegmentationRun, tmp_path, tmp_path / "run", init="mae", model=HEADS[SegmentationRun])
    weights = load_file(tmp_path / "mae" / "model.safetensors")
    found = build_finetune_model(run, LABELS).vasomim.state_dict()
    assert torch.equal(found["embeddings.cls_token"], weights["vit.embeddings.cls_token"])
    run.model["patch_size"] = 8
    with pytest.raises(RunConfigError, match="has patch_size 16, `config`"):
        build_finetune_model(run, LABELS)


def test_weights_that_the_hub_does_not_give_are_named_with_the_key_that_asks_for_them(tmp_path, monkeypatch):
    def absent(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect\nand more")

    monkeypatch.setattr(finetune_model.AutoConfig, "from_pretrained", absent)
    with pytest.raises(OSError) as caught:
        build_finetune_model(run_of(SegmentationRun, tmp_path, tmp_path / "run", init="mae"), LABELS)
    assert str(caught.value).startswith("`init`: facebook/vit-mae-base cannot be loaded (We couldn't connect). Pass a")


@pytest.mark.parametrize("frozen", [None, True])
def test_a_linear_probe_is_a_start_whose_encoder_learns(tmp_path, frozen):
    config = VasoMIMConfig(**ENCODER, image_size=SIZE, id2label=LABELS, label2id={"background": 0, "vessel": 1})
    probe = VasoMIMForImageClassification(config)
    probe.freeze_encoder()
    probe.save_pretrained(tmp_path / "probe")
    keys = {"init": str(tmp_path / "probe"), "model": {} if frozen is None else {"freeze_encoder": frozen}}
    model = build_finetune_model(run_of(ClassificationRun, tmp_path, tmp_path / "run", **keys), LABELS).train()
    assert torch.equal(model.classifier.weight, probe.classifier.weight)
    assert all(p.requires_grad != bool(frozen) for p in model.vasomim.parameters())
    assert model.config.freeze_encoder == bool(frozen)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    VasoMIMForPreTraining(VasoMIMConfig(**ENCODER, image_size=32)).save_pretrained(tmp_path / "pre")
    run = run_of(SegmentationRun, tmp_path, tmp_path / "run", init=str(tmp_path / "pre"), model={"hidden_size": 64})
    with pytest.raises(RunConfigError, match=".* encoder weights differ"):
        build_finetune_model(run, LABELS)
    with pytest.raises(FileNotFoundError, match="is not a model"):
        build_finetune_model(dataclasses.replace(run, init=str(tmp_path / "absent")), LABELS)


def test_the_seed_decides_the_first_weights(tmp_path):
    run = run_of(SegmentationRun, tmp_path, tmp_path / "run")
    first, again = (build_finetune_model(run, LABELS).state_dict() for _ in range(2))
    other = build_finetune_model(dataclasses.replace(run, seed=1), LABELS).state_dict()
    name = "decode_head.classifier.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


def test_rates_fall_from_head_to_embeddings_as_in_beit(tmp_path):
    model = build_finetune_model(run_of(SegmentationRun, tmp_path, tmp_path / "run"), LABELS)
    groups = layer_wise_groups(model, 1.0, 0.5, 0.05)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert len(found) == len(rates)
    assert found["decode_head.classifier.weight"] == found["vasomim.layernorm.weight"] == 1.0
    assert found["vasomim.layers.1.mlp.fc1.weight"] == 0.5 and found["vasomim.layers.0.mlp.fc1.weight"] == 0.25
    assert found["vasomim.embeddings.cls_token"] == 0.125
    by_name = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert by_name["decode_head.classifier.bias"] == by_name["vasomim.layernorm.weight"] == 0
    assert by_name["decode_head.classifier.weight"] == 0.05
    optimizer = LayerWiseAdamW()(model.requires_grad_(False).requires_grad_(True), lr=1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {1.0}


# Input


def one_frame(mask: np.ndarray) -> dict:
    return {"image": [frames(1)[0].image], "mask": [mask], "image_id": ["odd"]}


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((SIZE, SIZE), 7, np.uint8), "mask of odd has the levels 7"),
        (np.zeros((SIZE, SIZE + 2), np.uint8), "mask of odd is 64×66, its frame 64×64"),
        (np.zeros((SIZE, SIZE), np.uint8), "None of the 1 training frames has vessel: there is nothing to learn"),
    ],
)
def test_masks_that_do_not_fit_are_refused(tmp_path, mask, message):
    good = one_frame(np.eye(SIZE, dtype=np.uint8))
    table = write_table(tmp_path / "table", {"train": one_frame(mask), "val": good})
    with pytest.raises(ValueError) as caught:
        finetune(run_of(SegmentationRun, table, tmp_path / "run"))
    assert message in str(caught.value)
    assert not list((tmp_path / "run").glob(".*"))


def test_classes_that_a_split_lacks_are_told(tmp_path, caplog):
    plain = np.eye(SIZE, dtype=np.uint8)
    both = plain + 2 * np.eye(SIZE, k=20, dtype=np.uint8)
    table = write_table(tmp_path / "table", {"train": one_frame(plain), "val": one_frame(both)})
    labels = {0: "background", 1: "left", 2: "right"}
    run = run_of(SegmentationRun, table, tmp_path / "run", labels=labels, task="segments", epochs=1)
    assert finetune(run).finished
    assert [record.message for record in caplog.records if "frame has" in record.message] == [
        "no training frame has right: predictions and scores for it are meaningless"
    ]
    # the class is in the validation frames, and counts there
    assert read_metrics(run)["metrics"]["pooled_mean_class_dice"] <= 0.5


def test_the_best_weights_are_not_chosen_by_frames_with_nothing_to_find(tmp_path):
    good, nothing = (one_frame(mask) for mask in (np.eye(SIZE, dtype=np.uint8), np.zeros((SIZE, SIZE), np.uint8)))
    table = write_table(tmp_path / "table", {"train": good, "val": nothing})
    for keys in ({}, {"final_weights": "last", "patience": 1}):
        with pytest.raises(RunConfigError, match="pooled_dice cannot select"):
            finetune(run_of(SegmentationRun, table, tmp_path / "run", **keys))
    for name, keys in (("last", {"final_weights": "last"}), ("loss", {"metric": "loss"})):
        assert finetune(run_of(SegmentationRun, table, tmp_path / name, epochs=1, **keys)).finished


def test_a_missing_split_or_column_is_named(table, tmp_path):
    for keys, message in (
        ({"validation_split": "test"}, "has no split 'test', but train, val"),
        ({"train_split": "val", "validation_split": "dev"}, "may be names of the same split"),
        ({"mask_column": "vessels"}, "has no column 'vessels' in its split 'train', but image, mask, image_id"),
        ({"labels": {}}, "need names with ids from 0 on, got none"),
        ({"labels": {2: "vessel"}}, "need names with ids from 0 on"),
    ):
        with pytest.raises(ValueError) as caught:
            finetune(run_of(SegmentationRun, table, tmp_path / "run", **keys))
        assert message in str(caught.value)


@pytest.mark.parametrize("is_parquet", [False, True])
def test_a_split_to_judge_by_has_several_names(tmp_path, is_parquet, caplog):
    folder = vessel_table(tmp_path / "saved")
    if is_parquet:
        folder = tmp_path / "parquet"
        folder.mkdir()
        for name, rows in datasets.load_from_disk(tmp_path / "saved").items():
            rows.to_parquet(folder / f"{name}.parquet")
    caplog.set_level("INFO")
    data = load_task_data(run_of(SegmentationRun, folder, tmp_path / "run", validation_split="dev"))
    assert (len(data.training), data.validation.image_ids) == (6, ["val-0", "val-1", "val-2"])
    assert "there is no split 'dev'; using 'val" in caplog.text
    run = run_of(SegmentationRun, folder, tmp_path / "run", validation_split="val", labels={1: "vessel"})
    data = load_task_data(run)
    assert len(data.validation) == 3 and data.id2label == LABELS


def test_part_of_a_data_set_without_splits_is_held_out(table, tmp_path, caplog):
    datasets.load_from_disk(table)["train"].save_to_disk(tmp_path / "plain")
    for validation_split in (None, "val"):
        keys = {"validation_split": validation_split}
        data = load_task_data(run_of(SegmentationRun, tmp_path / "plain", tmp_path / "run", **keys))
        assert (len(data.training), len(data.validation)) == (5, 1)
    assert "has no splits" in caplog.text


def test_the_script_writes_a_folder_that_loads_and_ends_with_one_line_on_bad_input(table, tmp_path):
    run = run_of(SegmentationRun, table, tmp_path / "run", epochs=1, mixed_precision="bf16")
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(dataclasses.asdict(run)))
    script = ROOT / "training" / "finetune_segmentation.py"
    done = subprocess.run(
        [sys.executable, script, path, "--batch_size", "3"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"The fine-tuned model is in {tmp_path / 'run' / 'final'}"]
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run" / "final")
    assert read_metrics(run)["step"] == 2
    again = subprocess.run([sys.executable, script, path], capture_output=True, text=True, cwd=tmp_path)
    assert (
        again.returncode == 1
        and again.stderr.splitlines()[-1].startswith("error: ")
        and "Traceback" not in again.stderr
    )


@pytest.mark.parametrize("ignore_white", [False, True])
def test_white_in_masks_of_two_classes_is_foreground_unless_the_run_says_otherwise(tmp_path, ignore_white):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:8] = 255
    mask[20:24] = 1 if ignore_white else 255
    columns = {"image": [frames(1)[0].image], "mask": [mask]}
    table = write_table(tmp_path / "table", {"train": columns, "val": columns})
    data = load_task_data(run_of(SegmentationRun, table, tmp_path / "run", ignore_white=ignore_white))
    options = DecodeOptions(kind="segmentation", num_labels=2, size=SIZE)
    masks = decode(data.training, options, tmp_path / "decoded").masks
    assert set(np.unique(masks[0])) == ({0, 1, 255} if ignore_white else {0, 1})


def test_a_mask_that_holds_1_and_255_is_refused_where_255_is_not_ignored(tmp_path):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:8], mask[20:24] = 255, 1
    columns = {"image": [frames(1)[0].image], "mask": [mask], "image_id": ["odd"]}
    table = write_table(tmp_path / "table", {"train": columns, "val": columns})
    with pytest.raises(MaskError, match="odd holds both 1 and 255.*ignore_white"):
        finetune(run_of(SegmentationRun, table, tmp_path / "run"))


def test_the_log_tells_a_new_head_in_a_line_and_which_weights_were_kept(table, tmp_path, caplog, monkeypatch):
    VasoMIMForPreTraining(VasoMIMConfig(**ENCODER, image_size=SIZE)).save_pretrained(tmp_path / "encoder")
    caplog.set_level("INFO")
    # the library's own log does not reach the root
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.WARNING)
    sizes = {"segmentation_hidden_size": 16, "detail_stem_channels": 8}
    run = run_of(SegmentationRun, table, tmp_path / "run", init=str(tmp_path / "encoder"), model=sizes)
    finetune(run)
    assert "MISSING" not in caplog.text and "tensors of the head are new" in caplog.text
    about = read_metrics(run)
    assert about["chosen_by"] == "pooled_dice"
    assert f"best weights (step {about['best_step']} by pooled_dice): " in caplog.text
