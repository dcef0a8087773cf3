"""Run files: known keys, types, remedies, overrides, and the way back to YAML."""

from pathlib import Path

import pytest

from vasomim_hf.engine.run_config import (
    PretrainRun,
    RunConfigError,
    SegmentorRun,
    describe_keys,
    load_run,
    make_run,
    save_run,
)


CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def write(folder, text):
    path = folder / "config.yaml"
    path.write_text("data: frames\noutput_dir: out\n" + text)
    return path


def load(folder, text="", *arguments, kind=PretrainRun):
    return load_run(kind, write(folder, text), list(arguments))


def test_defaults_are_the_papers_recipe(tmp_path):
    run = load(tmp_path)
    assert (run.epochs, run.warmup_epochs, run.base_learning_rate, run.weight_decay) == (800, 40, 1.5e-4, 0.05)
    assert (run.betas, run.batch_size, run.preset, run.crop_scale) == ([0.9, 0.95], 256, "base", [0.2, 1.0])
    segmentor = load(tmp_path, kind=SegmentorRun)
    assert (segmentor.epochs, segmentor.learning_rate, segmentor.batch_size) == (200, 1e-3, 256)


@pytest.mark.parametrize(
    "text, message",
    [
        ("batch_sise: 8", "unknown key `batch_sise`. Did you mean `batch_size`"),
        ("mask_ratio: 0.75", "It is a key of the model: write it under `model`, or --model.mask_ratio"),
        ("model: {mask_ration: 0.75}", "`model` has an unknown key `mask_ration`. Did you mean `mask_ratio`"),
        ("vesselness: {boarder: 3}", "`vesselness` has an unknown key `boarder`. Did you mean `border`"),
        ("banana: 1", "Known keys: data, output_dir"),
        ("epochs: many", "`epochs` must be an integer, got 'many'"),
        ("epochs: 1.5", "`epochs` must be an integer, got 1.5"),
        ("epochs: true", "`epochs` must be an integer, got True"),
        ("base_learning_rate: fast", "`base_learning_rate` must be a number, got 'fast'"),
        ("base_learning_rate: .nan", "`base_learning_rate` must be a number, got nan"),
        ("base_learning_rate: .inf", "`base_learning_rate` must be a number, got inf"),
        ("flip_probability: 50", r"`flip_probability` must be in [0, 1], got 50"),
        ("betas: 0.9", "`betas` must be a list of numbers"),
        ("betas: [0.9, 1.0]", "two numbers in"),
        ("tensorboard: maybe", "`tensorboard` must be true or false"),
        ("data: [a, b]", "`data` must be text"),
        ("data:", "`data` must not be empty"),
        ("output_dir: ''", "`output_dir` is missing. Write `output_dir: ...` in the run file, or give --output_dir"),
        ("batch_size: 0", "`batch_size` must be at least 1, got 0"),
        ("epochs: 20", "The paper's share is a twentieth: --warmup_epochs 1"),
        ("mixed_precision: fp8", "one of no, bf16, fp16"),
        ("crop_scale: [0.5, 0.2]", "0 < from <= to <= 1"),
        ("clip_grad_norm: 0", "Write null to not clip"),
        ("model_config: x.json", "Write `preset: null`"),
        ("masks: m\nvesselness: {border: 3}", "Leave one out"),
        ("model: 3", "`model` must be keys and values"),
        ("- a", "not valid YAML"),
    ],
)
def test_a_wrong_run_file_is_answered_with_the_remedy(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text("data: frames\noutput_dir: out\n" + text)
    with pytest.raises(RunConfigError) as caught:
        load_run(PretrainRun, path)
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.yaml"):
        load_run(PretrainRun, tmp_path / "absent.yaml")


def test_a_file_without_keys_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("only text")
    with pytest.raises(RunConfigError, match="must hold `key: value` lines"):
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
    save_run(run, tmp_path / "out")
    assert load_run(PretrainRun, tmp_path / "out" / "run.yaml") == run
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.yaml"]


def test_runs_do_not_share_their_defaults():
    first = make_run(PretrainRun, {"data": "a", "output_dir": "b"})
    first.model["mask_ratio"] = 0.1
    first.betas.append(1.0)
    assert make_run(PretrainRun, {"data": "a", "output_dir": "b"}).model == {}
    assert PretrainRun().betas == [0.9, 0.95]


def test_numbers_of_the_model_that_are_given_as_text_keep_their_kind(tmp_path):
    run = load(tmp_path, 'model: {num_hidden_layers: "3", mask_ratio: "5e-1", hidden_act: gelu}')
    assert run.model == {"num_hidden_layers": 3, "mask_ratio": 0.5, "hidden_act": "gelu"}
    assert isinstance(run.model["num_hidden_layers"], int)


@pytest.mark.parametrize("kind", [PretrainRun, SegmentorRun])
def test_every_key_is_explained(kind):
    lines = describe_keys(kind).splitlines()
    assert len(lines) == len(kind.__dataclass_fields__) and all(len(line) > 40 for line in lines)


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
