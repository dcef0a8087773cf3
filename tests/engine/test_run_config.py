"""Run files: known keys, types, remedies, overrides, and the way back to YAML."""

import dataclasses
import re
from pathlib import Path

import pytest

from vasomim_hf.engine.finetuning.run import ClassificationRun, DetectionRun, SegmentationRun
from vasomim_hf.engine.label_efficiency.run import LabelEfficiencyRun
from vasomim_hf.engine.run_config import (
    PretrainRun,
    RunConfigError,
    SegmentorRun,
    describe_keys,
    load_run,
    make_run,
)


ENGINE = Path(__file__).parents[2] / "vasomim_hf" / "engine"
CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def write(folder, text):
    path = folder / "config.yaml"
    path.write_text("data: frames\noutput_dir: out\n" + text)
    return path


def load(folder, text="", *arguments, kind=PretrainRun):
    return load_run(kind, write(folder, text), list(arguments))


def test_defaults_are_the_papers_recipe(tmp_path):
    run = load(tmp_path)
    assert (run.epochs, run.warmup_ratio, run.base_learning_rate, run.weight_decay) == (800, 0.05, 1.5e-4, 0.05)
    assert (run.betas, run.batch_size, run.preset, run.crop_scale) == ([0.9, 0.95], 256, "base", [0.2, 1.0])
    segmentor = load(tmp_path, kind=SegmentorRun)
    assert (segmentor.epochs, segmentor.learning_rate, segmentor.batch_size) == (200, 1e-3, 256)


WRONG = {
    "batch_sise: 8": ("batch_sise", "`batch_size`"),
    "data_split: a": ("data_split", "`train_split`"),
    "mask_ratio: 0.75": ("mask_ratio", "--model.mask_ratio"),
    "model: {mask_ration: 0.75}": ("mask_ration", "`mask_ratio`"),
    "vesselness: {boarder: 3}": ("boarder", "`border`"),
    "banana: 1": ("banana", "output_dir, data"),
    "epochs: many": ("`epochs`", "many"),
    "epochs: 1.5": ("`epochs`", "1.5"),
    "epochs: true": ("`epochs`", "True"),
    "base_learning_rate: fast": ("`base_learning_rate`", "fast"),
    "base_learning_rate: .nan": ("`base_learning_rate`", "nan"),
    "base_learning_rate: .inf": ("`base_learning_rate`", "inf"),
    "flip_probability: 50": ("`flip_probability`", "0 to 1", "50"),
    "betas: 0.9": ("`betas`", "0.9"),
    "betas: [0.9, 1.0]": ("`betas`", "[0, 1)"),
    "tensorboard: maybe": ("`tensorboard`", "maybe"),
    "data: [a, b]": ("`data`", "['a', 'b']"),
    "data:": ("`data`", "None"),
    "output_dir: ''": ("`output_dir` is missing", "--output_dir"),
    "batch_size: 0": ("`batch_size`", "at least 1", "0"),
    "warmup_ratio: 40": ("`warmup_ratio`", "0 to 1", "40"),
    "mixed_precision: bf15": ("auto, no, bf16, fp16", "Did you mean 'bf16'"),
    "crop_scale: [0.5, 0.2]": ("`crop_scale`", "[0.5, 0.2]"),
    "clip_grad_norm: 0": ("`clip_grad_norm`", "null"),
    "learning_rate: 1e-3\nbase_learning_rate: 1e-3": ("`learning_rate`", "`base_learning_rate`"),
    "preset: tiny\nmodel_config: x.json": ("`preset`", "`model_config`"),
    "masks: m\nvesselness: {border: 3}": ("`vesselness`", "`masks`"),
    "model: 3": ("`model`", "3"),
    "- a": ("not valid YAML",),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_run_file_is_answered_with_key_and_remedy(tmp_path, text):
    path = tmp_path / "config.yaml"
    mine = [line for line in ("data: frames", "output_dir: out") if not text.startswith(line.split()[0])]
    path.write_text("\n".join([*mine, text]))
    with pytest.raises(RunConfigError) as caught:
        load_run(PretrainRun, path)
    assert [fact for fact in WRONG[text] if fact not in str(caught.value)] == [], str(caught.value)


# Keys whose defaults belong to a recipe: they differ, and mean the same
RECIPE = {
    *(
        "epochs",
        "batch_size",
        "learning_rate",
        "base_learning_rate",
        "warmup_ratio",
        "min_learning_rate_ratio",
        "betas",
    ),
    *(
        "clip_grad_norm",
        "num_workers",
        "picture_every_epochs",
        "preset",
        "init",
        "validation_fraction",
        "mixed_precision",
    ),
    *("task",),
}
KINDS = [PretrainRun, SegmentorRun, SegmentationRun, DetectionRun, ClassificationRun, LabelEfficiencyRun]


def test_a_key_means_the_same_in_every_run():
    found: dict[str, dict] = {}
    for kind in KINDS:
        default = kind()
        for item in dataclasses.fields(kind):
            found.setdefault(item.name, {})[kind.__name__] = (
                getattr(item.type, "__name__", str(item.type)),
                str(getattr(default, item.name)),
            )
    shared = {name: set(kinds.values()) for name, kinds in found.items() if len(kinds) > 1}
    assert {name: values for name, values in shared.items() if len(values) > 1 and name not in RECIPE} == {}
    types = {name: {kind.replace(" | None", "") for kind, _ in values} for name, values in shared.items()}
    # epochs of fine-tuning may be fractions, where there are few frames
    assert {name for name, kinds in types.items() if len(kinds) > 1} == {"epochs"}


READERS = {
    PretrainRun: ["pretraining"],
    SegmentorRun: [
        "pretraining/segmentor_training.py",
        "pretraining/loop.py",
        "pretraining/frames.py",
        "pretraining/checkpoints.py",
    ],
    SegmentationRun: ["finetuning"],
    DetectionRun: ["finetuning"],
    ClassificationRun: ["finetuning"],
    LabelEfficiencyRun: ["label_efficiency"],
}
# Read by a name that is put together: the column of the task, and what a task may or may not have
BY_NAME = {"mask_column", "objects_column", "label_column", "ignore_white"}
# Read through a method of the run
BY_METHOD = {
    "mixed_precision": "precision",
    "learning_rate": "peak_learning_rate",
    "base_learning_rate": "peak_learning_rate",
}


def unread_keys(kind: type) -> list[str]:
    """Keys of a run that the code of its training never reads."""
    places = [ENGINE / place for place in READERS[kind]]
    files = [file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])]
    read = set(
        re.findall(r"(?<![\w.])(?:self\.run|run|settings|self)\.(\w+)", "".join(file.read_text() for file in files))
    )
    read |= BY_NAME | {name for name, method in BY_METHOD.items() if method in read}
    return [item.name for item in dataclasses.fields(kind) if item.name not in read]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_has_no_key_that_nothing_reads(kind):
    assert unread_keys(kind) == []


def test_a_key_that_nothing_reads_would_be_found(monkeypatch):
    @dataclasses.dataclass
    class Extended(SegmentorRun):
        never_read: int = 0

    monkeypatch.setitem(READERS, Extended, READERS[SegmentorRun])
    assert unread_keys(Extended) == ["never_read"]


def test_one_of_two_alternatives_replaces_the_default_of_the_other(tmp_path):
    assert load(tmp_path, "learning_rate: 1e-3").base_learning_rate is None
    assert load(tmp_path, "model_config: x.json").preset is None
    run = load(tmp_path, "base_learning_rate: 1.5e-4")
    assert run.peak_learning_rate(512) == pytest.approx(3e-4)
    assert load(tmp_path, "learning_rate: 1e-3").peak_learning_rate(512) == 1e-3


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.yaml"):
        load_run(PretrainRun, tmp_path / "absent.yaml")


def test_a_file_without_keys_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("only text")
    with pytest.raises(RunConfigError, match="only text"):
        load_run(PretrainRun, path)


def test_numbers_without_a_dot_are_numbers(tmp_path):
    assert load(tmp_path, "mixed_precision: no").mixed_precision == "no"
    run = load(tmp_path, "base_learning_rate: 1e-3\nmodel: {consistency_loss_weight: 1e-1}\nepochs: 1e2")
    assert run.base_learning_rate == 1e-3 and run.model == {"consistency_loss_weight": 0.1} and run.epochs == 100


def test_arguments_replace_keys_of_the_file(tmp_path):
    arguments = [
        "--epochs",
        "50",
        "--base_learning_rate=1e-3",
        "--model.mask_ratio",
        "0.75",
        "--betas",
        "[0.9, 0.999]",
    ]
    arguments += ["--tensorboard", "false", "--frame-list", "null", "--data", "2024", "--model.norm_pix_loss=false"]
    run = load(tmp_path, "model: {mask_ratio: 0.6, filter_weight: 1}\nframe_list: x.txt", *arguments)
    assert (run.epochs, run.base_learning_rate, run.betas, run.tensorboard) == (50, 1e-3, [0.9, 0.999], False)
    assert run.model == {"mask_ratio": 0.75, "filter_weight": 1, "norm_pix_loss": False}
    assert run.frame_list is None and run.data == "2024"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["epochs", "3"], "Expected --key value, got 'epochs'"),
        (["--epochs"], "--epochs has no value"),
        (["--tensorboard", "--epochs", "3"], "--tensorboard true or false"),
        (["--epoch", "3"], "Did you mean `epochs`"),
        (["--model.mask_rati", "3"], "Did you mean `mask_ratio`"),
        (["--data.x", "3"], "needs `data` to hold keys"),
        (["--betas", "[1,"], "is not valid YAML"),
    ],
)
def test_wrong_arguments_are_answered_with_the_remedy(tmp_path, arguments, message):
    with pytest.raises(RunConfigError) as caught:
        load(tmp_path, "", *arguments)
    assert message in str(caught.value)


def test_a_saved_run_is_the_same_run(tmp_path):
    run = load(tmp_path, "model: {mask_ratio: 0.75}\nclip_grad_norm: 1.0\nvesselness: {border: 3}")
    run.output_dir = str(tmp_path / "out")
    run.save()
    assert load_run(PretrainRun, tmp_path / "out" / "run.yaml") == run
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.yaml"]


def test_runs_do_not_share_their_defaults():
    first = make_run(PretrainRun, {"data": "a", "output_dir": "b"})
    first.model["mask_ratio"] = 0.1
    first.betas.append(1.0)
    assert make_run(PretrainRun, {"data": "a", "output_dir": "b"}).model == {}
    assert PretrainRun().betas == [0.9, 0.95]


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_explained(kind):
    lines = describe_keys(kind).splitlines()
    assert len(lines) == len(dataclasses.fields(kind)) and all(len(line) > 40 for line in lines)


RUN_FILES = sorted([*CONFIGS.glob("pretrain_*.yaml"), *CONFIGS.glob("train_segmentor_*.yaml")])


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_every_run_file_of_the_project_is_valid_and_says_where_it_comes_from(path):
    kind = PretrainRun if path.stem.startswith("pretrain") else SegmentorRun
    run = load_run(kind, path)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert run.output_dir and any("training/" in line for line in head) and any("Source" in line for line in head)


def test_there_are_run_files_for_the_paper_and_for_a_small_machine():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert {"pretrain_vasomim_base_xa170k", "pretrain_vasomim_tiny_small_machine"} <= names
    assert {"train_segmentor_xa170k", "train_segmentor_small_machine"} <= names
