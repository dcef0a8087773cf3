"""Run files of fine-tuning: the project's own are valid, and what does not fit is refused with what to do."""

import dataclasses
from pathlib import Path

import pytest

from vasomim_hf.engine.finetuning.run import ClassificationRun, DetectionRun, SegmentationRun
from vasomim_hf.engine.run_config import RunConfigError, describe_keys, load_run, make_run


CONFIGS = Path(__file__).parents[3] / "training" / "configs"
KINDS = {"side": ClassificationRun, "stenosis_boxes": DetectionRun}
NEEDED = {"data": "frames", "output_dir": "runs/x"}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("finetune_*.yaml")), ids=lambda path: path.stem)
def test_a_run_file_of_the_project_is_valid_and_says_what_it_is(path):
    run = load_run(KINDS.get(path.stem.split("_", 2)[2], SegmentationRun), path)
    assert path.stem == f"finetune_{run.dataset}_{run.task}"
    head = path.read_text().split("\n\n")[0]
    for word in ("Source:", "Command: python training/finetune_", "Cost:", "Result:"):
        assert word in head, f"{path.name} does not say its {word}"


@pytest.mark.parametrize("kind", [SegmentationRun, DetectionRun, ClassificationRun])
def test_every_key_is_explained(kind):
    text = describe_keys(kind)
    for item in dataclasses.fields(kind):
        assert f"  {item.name} " in text and len(item.metadata["help"]) > 5


def test_a_run_comes_back_from_its_file(tmp_path):
    run = make_run(SegmentationRun, {**NEEDED, "output_dir": str(tmp_path), "epochs": 3, "patience": None})
    run.save()
    assert load_run(SegmentationRun, tmp_path / "run.yaml", ["--model.drop_path_rate", "0.2"]) == dataclasses.replace(
        run, model={"drop_path_rate": 0.2}
    )


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        (SegmentationRun, {"learning_rat": 1}, "unknown key `learning_rat`. Did you mean `learning_rate`"),
        (SegmentationRun, {"model": {"drop_path": 0.1}}, "Did you mean `drop_path_rate`"),
        (SegmentationRun, {"augmentation": {"rotatio": 3}}, "Did you mean `rotation`"),
        (SegmentationRun, {"drop_path_rate": 0.1}, "--model.drop_path_rate"),
        (SegmentationRun, {"metric": "dise"}, "`metric` must be one of loss, dice, pooled_dice"),
        (DetectionRun, {"metric": "dice"}, "`metric` must be one of loss, ap50"),
        (SegmentationRun, {"augmentation": {"rotation": -3}}, "`augmentation`: `rotation` must be a number from 0"),
        (SegmentationRun, {"task": "side"}, "must be one of vessel, segments, stenosis on ARCADE"),
        (ClassificationRun, {"task": "vessel"}, "must be one of side on ARCADE"),
        (SegmentationRun, {"train_fraction": 0}, "`train_fraction` must be above 0"),
        (SegmentationRun, {"train_fraction": 10}, "`train_fraction` must be from 0 to 1, got 10"),
        (SegmentationRun, {"batch_size": 0}, "`batch_size` must be at least 1"),
        (SegmentationRun, {"validation_split": "train"}, "is also used for training"),
        (SegmentationRun, {"train_split": "train+val"}, "is also used for training"),
        (SegmentationRun, {"validation_split": None, "validation_fraction": 0}, "`validation_fraction` must be in"),
        (SegmentationRun, {"final_weights": "first"}, "`final_weights` must be one of best, last"),
        (SegmentationRun, {"dataset": "coco"}, "arcade, cadica"),
        (SegmentationRun, {"dataset": "xkad"}, "Did you mean 'xcad'?"),
        (SegmentationRun, {"dataset": "cadica"}, "one that CADICA has: stenosis_boxes"),
        (SegmentationRun, {"betas": [0.9, 1.0]}, "`betas` must be two numbers"),
        (SegmentationRun, {"layer_decay": 0}, "`layer_decay` must be above 0"),
        (SegmentationRun, {"linear_probe": True}, "unknown key `linear_probe`"),
        (ClassificationRun, {"probe_weight_decays": []}, "`probe_weight_decays`"),
        (DetectionRun, {"data": ""}, "`data` is missing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_refused(kind, keys, message):
    with pytest.raises(RunConfigError) as caught:
        make_run(kind, {**NEEDED, **keys})
    assert message in str(caught.value)


def test_numbers_without_a_dot_are_numbers_also_below_a_key(tmp_path):
    (tmp_path / "run.yaml").write_text("data: frames\noutput_dir: out\naugmentation: {rotation: 1e1}\n")
    run = load_run(SegmentationRun, tmp_path / "run.yaml", ["--model.drop_path_rate", "1e-1"])
    assert run.augmentation_options().rotation == 10 and run.model == {"drop_path_rate": 0.1}


def test_flips_follow_the_task_unless_the_run_says_otherwise():
    def flip(kind, **keys):
        return make_run(kind, {**NEEDED, **keys}).augmentation_options().flip_probability

    assert flip(SegmentationRun) == flip(DetectionRun) == 0.5
    assert flip(SegmentationRun, task="segments") == flip(ClassificationRun) == 0
    assert flip(ClassificationRun, augmentation={"flip_probability": 0.3}) == 0.3
    assert flip(SegmentationRun, dataset="table", task="mine") == 0
    assert make_run(SegmentationRun, {**NEEDED, "augment": False}).augmentation_options() is None


def test_the_metric_that_decides_follows_the_task():
    assert make_run(SegmentationRun, NEEDED).decisive_metric == "pooled_dice"
    assert make_run(SegmentationRun, {**NEEDED, "task": "segments"}).decisive_metric == ("pooled_mean_class_dice")
    run = make_run(DetectionRun, {**NEEDED, "metric": "loss"})
    assert run.decisive_metric == "loss" and run.metric_is_loss
