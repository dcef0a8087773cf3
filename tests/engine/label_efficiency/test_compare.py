"""Label efficiency: cells are what they say, go on where they stopped, and their curves are means with intervals."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from miniatures.finetuning import frames, run_of, vessel_table
from PIL import Image
from safetensors.torch import load_file

from vasomim_hf.engine.finetuning import trainer as finetuning
from vasomim_hf.engine.finetuning.run import SegmentationRun
from vasomim_hf.engine.label_efficiency import compare as label_efficiency
from vasomim_hf.engine.label_efficiency.compare import compare_label_efficiency
from vasomim_hf.engine.label_efficiency.curves import Curve, Point, draw_curves
from vasomim_hf.engine.label_efficiency.report import curves_of
from vasomim_hf.engine.label_efficiency.run import Cell, LabelEfficiencyRun, cell_run, cells_of
from vasomim_hf.engine.run_config import RunConfigError, describe_keys, load_run, make_run
from vasomim_hf.engine.tracking import read_log
from vasomim_hf.evaluation.comparison import compare_results
from vasomim_hf.evaluation.mask_metrics import dice
from vasomim_hf.evaluation.results import read_results


CONFIGS = Path(__file__).parents[3] / "training" / "configs"
pytest.importorskip("skimage", reason="needs the extra eval")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A run file of fine-tuning on a table of six frames."""
    folder = tmp_path_factory.mktemp("base")
    run = run_of(SegmentationRun, vessel_table(folder / "table"), folder / "unused", epochs=1, num_threads=1)
    path = folder / "finetune.yaml"
    path.write_text(yaml.safe_dump(dataclasses.asdict(run)))
    return path


def comparison(base: Path, output_dir: Path, **keys) -> LabelEfficiencyRun:
    values = {
        "finetune": str(base),
        "output_dir": str(output_dir),
        "initialisations": {"scratch": "scratch", "branch alone": "scratch"},
        "settings_of": {"branch alone": {"model": {"segmentation_use_encoder": False}}},
        "fractions": [0.5, 1.0],
        "seeds": [0, 1],
        "num_seeds": {1.0: 1},
        **keys,
    }
    return make_run(LabelEfficiencyRun, values)


def test_all_cells_are_trained_scored_and_drawn_once(base, tmp_path, monkeypatch):
    run = comparison(base, tmp_path / "out")
    result = compare_label_efficiency(run)
    assert result.finished and result.step == 6
    found = {path.relative_to(tmp_path / "out/cells").as_posix() for path in (tmp_path / "out").rglob("results.json")}
    assert found == {
        f"{name}/{rest}/results.json"
        for name in ("scratch", "branch alone")
        for rest in ("50_percent/seed_0", "50_percent/seed_1", "100_percent/seed_0")
    }
    results = read_results(tmp_path / "out/cells/scratch/50_percent/seed_1/results.json")
    assert results.settings["num_training_frames"] == 3 and results.model == "scratch" and len(results.rows) == 3
    assert (tmp_path / "out/curves.png").is_file() and "cl_dice, branch alone" in (
        tmp_path / "out/table.txt"
    ).read_text()
    assert not list((tmp_path / "out").rglob("checkpoint-*")) and not list((tmp_path / "out").rglob(".decoded*"))
    other = read_results(tmp_path / "out/cells/branch alone/50_percent/seed_1/results.json")
    assert compare_results(results, other, ["dice"]).num_images == 3
    monkeypatch.setattr(label_efficiency, "train_cell", None)
    assert compare_label_efficiency(run).finished


def test_a_cell_is_scored_at_the_size_of_the_annotation(base, tmp_path):
    run = comparison(base, tmp_path / "out", fractions=[1.0], initialisations={"scratch": "scratch"}, settings_of={})
    run.settings = {"image_size": 32}
    compare_label_efficiency(run)
    folder = tmp_path / "out/cells/scratch/100_percent/seed_0"
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    model = AutoModelForSemanticSegmentation.from_pretrained(folder / "final")
    processor = AutoImageProcessor.from_pretrained(folder / "final")
    expected = []
    for item in frames(3, first_seed=50):
        with torch.no_grad():
            output = model(**processor(item.image, return_tensors="pt"))
        ids = processor.post_process_semantic_segmentation(output, target_sizes=[item.image.shape])[0]
        expected.append(dice(ids.numpy() == 1, item.segment_mask > 0))
    found = [row.values["dice"] for row in read_results(folder / "results.json").rows]
    assert found == pytest.approx(expected, nan_ok=True)


def test_an_interrupted_cell_goes_on_from_its_checkpoint(base, tmp_path, monkeypatch):
    run = comparison(base, tmp_path / "out", fractions=[1.0], initialisations={"scratch": "scratch"}, settings_of={})
    run.settings = {"epochs": 5}
    real = label_efficiency.FrameScorer.score

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(label_efficiency.FrameScorer, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        compare_label_efficiency(run)
    folder = tmp_path / "out/cells/scratch/100_percent/seed_0"
    assert not (folder / "results.json").exists()
    checkpoints = sorted(path.name for path in folder.glob("checkpoints/checkpoint-*"))
    assert "checkpoint-15" in checkpoints and len(checkpoints) == 2
    monkeypatch.setattr(label_efficiency.FrameScorer, "score", real)
    before = read_log(folder, "step")
    assert compare_label_efficiency(run).finished
    # not a step was done again: lines have the time at which they were written
    assert read_log(folder, "step") == before and len(before) == 15


def test_a_cell_stopped_in_the_middle_of_its_training_ends_as_one_that_was_not(base, tmp_path, monkeypatch):
    keys = {
        "fractions": [1.0],
        "initialisations": {"scratch": "scratch"},
        "settings_of": {},
        "settings": {"epochs": 5},
    }
    assert compare_label_efficiency(comparison(base, tmp_path / "whole", **keys)).finished
    real = finetuning.StopCallback

    def stopped():
        callback = real()
        callback.signal.number = 15
        return callback

    run = comparison(base, tmp_path / "out", **keys)
    monkeypatch.setattr(finetuning, "StopCallback", stopped)
    for step in (1, 2):
        result = compare_label_efficiency(run)
        assert not result.finished and result.folder.name == f"checkpoint-{step}"
    monkeypatch.undo()
    assert compare_label_efficiency(run).finished
    cell = "cells/scratch/100_percent/seed_0"
    ends = [load_file(tmp_path / name / cell / "final" / "model.safetensors") for name in ("whole", "out")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert [row.values for row in read_results(tmp_path / "whole" / cell / "results.json").rows] == [
        row.values for row in read_results(tmp_path / "out" / cell / "results.json").rows
    ]


def test_cells_are_not_mixed_with_those_of_other_settings(base, tmp_path):
    keys = {"fractions": [0.5], "seeds": [0], "initialisations": {"scratch": "scratch"}, "settings_of": {}}
    compare_label_efficiency(comparison(base, tmp_path / "out", **keys))
    with pytest.raises(RunConfigError, match="seed_0 was begun with other settings: `learning_rate` 0.001, now 0.1"):
        compare_label_efficiency(comparison(base, tmp_path / "out", **keys, settings={"learning_rate": 0.1}))
    same = comparison(base, tmp_path / "out", **keys, settings={"num_workers": 1, "num_threads": None})
    assert compare_label_efficiency(same).finished


def test_the_u_net_of_monai_is_trained_the_same_way(base, tmp_path):
    pytest.importorskip("monai", reason="needs the extra dev")
    run = comparison(
        base, tmp_path / "out", fractions=[0.5], seeds=[0], initialisations={"unet": "monai_unet"}, settings_of={}
    )
    run.settings = {"mixed_precision": "bf16"}
    assert compare_label_efficiency(run).finished
    folder = tmp_path / "out/cells/unet/50_percent/seed_0"
    assert json.loads((folder / "final" / "config.json").read_text())["model_type"] == "monai_unet"
    assert read_results(folder / "results.json").model == "unet"


def test_cells_with_few_labels_come_first_and_take_the_settings_in_order(base, tmp_path):
    run = comparison(base, tmp_path / "out", settings={"epochs": 7, "model": {"drop_path_rate": 0.2}})
    cells = cells_of(run)
    assert cells[:2] == [Cell("scratch", 0.5, 0), Cell("branch alone", 0.5, 0)] and len(cells) == 6
    settings = cell_run(run, cells[1])
    assert settings.epochs == 7 and settings.final_weights == "last" and settings.train_fraction == 0.5
    assert settings.model["drop_path_rate"] == 0.2 and settings.model["segmentation_use_encoder"] is False
    assert settings.model["hidden_size"] == 32


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fractions": [0.1, 2]}, "`fractions` must be in"),
        ({"seeds": [0, 0]}, "`seeds` must be different integers"),
        ({"kind": "denoising"}, "`kind` must be one of segmentation, detection, classification"),
        ({"finetune": ""}, "`finetune` is missing"),
        ({"settings": {"seed": 3}}, "`settings` must not set seed"),
        ({"settings_of": {"branch alon": {"epochs": 1}}}, "not in `initialisations`. Did you mean 'branch alone'"),
        (
            {"kind": "detection", "initialisations": {"u": "monai_unet"}, "settings_of": {}},
            "is a model for segmentation",
        ),
        ({"fraction": [1]}, "unknown key `fraction`. Did you mean `fractions`"),
    ],
    ids=str,
)
def test_a_comparison_that_does_not_fit_is_refused(base, tmp_path, keys, message):
    with pytest.raises(RunConfigError) as caught:
        comparison(base, tmp_path, **keys)
    assert message in str(caught.value)


def test_cells_that_do_not_fit_are_refused(base, tmp_path):
    for keys, message in (
        ({"settings": {"validation_split": None}}, "must name a `validation_split`"),
        ({"settings": {"epoch": 3}}, "unknown key `epoch`"),
        ({"measures": "dise"}, "the results have no 'dise'. Available: dice, iou"),
    ):
        run = comparison(base, tmp_path / message[:8], fractions=[0.5], seeds=[0], **keys)
        with pytest.raises(RunConfigError) as caught:
            compare_label_efficiency(run)
        assert message in str(caught.value)


def test_the_run_file_of_the_project_is_valid_and_every_key_explained():
    run = load_run(LabelEfficiencyRun, CONFIGS / "label_efficiency_arcade_vessel.yaml")
    run.finetune = str(CONFIGS.parents[1] / run.finetune)
    cells = cells_of(run)
    assert len(cells) == 4 * (3 * 3 + 2)
    for cell in cells[:4]:
        assert cell_run(run, cell).data
    text = describe_keys(LabelEfficiencyRun)
    assert all(f"  {item.name} " in text for item in dataclasses.fields(LabelEfficiencyRun))


# Curves


def test_a_point_is_the_mean_of_its_seeds_with_an_interval_around_it(base, tmp_path):
    run = comparison(base, tmp_path / "out", fractions=[0.5], initialisations={"scratch": "scratch"}, settings_of={})
    compare_label_efficiency(run)
    point = curves_of(run, "betti0_error")[0].points[0]
    folders = [tmp_path / f"out/cells/scratch/50_percent/seed_{seed}" for seed in (0, 1)]
    seeds = [read_results(folder / "results.json").summary["betti0_error"].value for folder in folders]
    assert point.seeds == pytest.approx(seeds) and point.value == pytest.approx(np.mean(seeds))
    assert point.low <= point.value <= point.high


def test_curves_are_drawn_where_their_values_are(tmp_path):
    nan = float("nan")
    low = Curve("low", [Point(0.1, 0.2, 0.15, 0.25, (0.2,)), Point(1.0, 0.3, nan, nan, (0.25, 0.35))])
    high = Curve("high", [Point(0.1, 0.6, 0.55, 0.65, (0.6,)), Point(1.0, 0.8, 0.7, 0.85, (0.8,))])
    figure = draw_curves({"dice": [low, high], "cl_dice": []}, "Few labels")
    axes = figure.axes[0]
    assert axes.get_title() == "dice" and figure.get_suptitle() == "Few labels"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["low", "high"]
    drawn = [line.get_xydata().tolist() for line in axes.get_lines()]
    assert drawn == [[[0.1, 0.2], [1.0, 0.3]], [[0.1, 0.6], [1.0, 0.8]]]
    rings = [dots.get_offsets().tolist() for dots in axes.collections if len(dots.get_offsets()) == 2]
    assert rings == [[[1.0, 0.25], [1.0, 0.35]]]
    figure.savefig(tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    assert figure.canvas.manager is None  # not known to pyplot
    with pytest.raises(ValueError, match="finished cell"):
        draw_curves({"dice": [Curve("none", [])]}, "title")


def test_a_single_point_can_be_drawn(tmp_path):
    point = Point(0.1, 0.5, 0.5, 0.5, (0.5,))
    draw_curves({"a": [Curve("one", [point])]}, "title").savefig(tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 1
