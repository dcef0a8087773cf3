"""Each of the seven data sets, in the layout in which it is published, is trained on and evaluated by its name."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml
from miniatures.arcade import write_arcade
from miniatures.downstream import frame, write_cadica, write_dca1, write_image, write_pair, write_stenosis, write_text
from miniatures.downstream import write_xcad as write_small_xcad
from miniatures.downstream import write_xcav as write_small_xcav
from miniatures.finetuning import run_of, vessel_table

from vasomim_hf.cli import main
from vasomim_hf.data.published.registry import DATASETS
from vasomim_hf.engine.finetuning.linear_probe import finetune_classification
from vasomim_hf.engine.finetuning.run import ClassificationRun, DetectionRun, SegmentationRun
from vasomim_hf.engine.finetuning.trainer import finetune
from vasomim_hf.engine.label_efficiency.compare import compare_label_efficiency
from vasomim_hf.engine.label_efficiency.run import LabelEfficiencyRun
from vasomim_hf.engine.run_config import make_run
from vasomim_hf.evaluation.results import read_results


def _write_arcade(root: Path) -> Path:
    write_arcade(root)
    return root


def _write_more_cadica(root: Path) -> Path:
    root = write_cadica(root)
    for patient in ("p2", "p3"):
        name = f"{patient}_v1"
        write_image(root / f"selectedVideos/{patient}/v1/input/{name}_00001.png", frame(3).image)
        write_text(root / f"selectedVideos/{patient}/v1/groundtruth/{name}_00001.txt", "20 20 16 16 p100\n")
        write_text(root / f"selectedVideos/{patient}/v1/{name}_selectedFrames.txt", f"{name}_00001")
        write_text(root / f"selectedVideos/{patient}/lesionVideos.txt", "v1\n")
        write_text(root / f"selectedVideos/{patient}/nonlesionVideos.txt", "")
    return root


def _write_more_xcad(root: Path) -> Path:
    root, _ = write_small_xcad(root)
    for seed, stem in enumerate(["978_1", "979_1"]):
        write_pair(root / "test/images" / f"{stem}.png", root / "test/masks" / f"{stem}.png", seed + 5)
    return root


def _write_more_xcav(root: Path) -> Path:
    root, _ = write_small_xcav(root)
    for patient in ("CVAI-2830", "CVAI-2831"):
        path = f"{patient}RAO1_CRA1/00000.png"
        write_image(root / patient / "images" / path, frame(4).image)
        write_image(root / patient / "ground_truth" / path, frame(4).vessel_mask.astype(np.uint8) * 255)
    return root


WRITERS = {
    "arcade": _write_arcade,
    "cadica": _write_more_cadica,
    "xcad": _write_more_xcad,
    "xcav": _write_more_xcav,
    "dca1": lambda root: write_dca1(root)[0],
    "danilov": write_stenosis,
    "table": lambda root: vessel_table(root / "table"),
}
CASES = [(name, task) for name, entry in DATASETS.items() for task in (entry.tasks or ["vessel"])]
RUNS = {"side": ClassificationRun, "stenosis_boxes": DetectionRun, "stenosis_severity_boxes": DetectionRun}


def test_every_data_set_has_a_miniature():
    assert WRITERS.keys() == DATASETS.keys()


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_model_is_trained_and_evaluated_by_the_name_of_the_data_set(name, task, tmp_path):
    root, output = WRITERS[name](tmp_path / "data"), tmp_path / "model"
    kind = RUNS.get(task, SegmentationRun)
    # a miniature need not have every class in its few validation frames
    run = run_of(
        kind, root, output, dataset=name, task=task, metric="loss", **({} if name == "table" else {"labels": {}})
    )
    train = finetune_classification if kind is ClassificationRun else finetune
    result = train(run)
    assert result.finished
    split = "val" if name == "table" else "test"
    arguments = ["evaluate", str(result.folder), "--data", str(root), "--dataset", name, "--task", task]
    file = tmp_path / "results.json"
    assert main([*arguments, "--split", split, "--output", str(file), "--mixed-precision", "no"]) == 0
    results = read_results(file)
    assert results.rows and (results.task, results.split) == (task, split)
    assert results.data == (root.name if name == "table" else name)
    entry = DATASETS[name]
    assert results.labels == (list(entry.tasks[task].labels.values()) if entry.tasks else ["background", "vessel"])


def test_label_efficiency_takes_the_name_too(tmp_path):
    pytest.importorskip("skimage", reason="needs the extra eval")
    root = WRITERS["xcad"](tmp_path / "data")
    run = run_of(SegmentationRun, root, tmp_path / "unused", dataset="xcad", labels={}, epochs=1)
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump(dataclasses.asdict(run)))
    keys = {"finetune": str(tmp_path / "finetune.yaml"), "output_dir": str(tmp_path / "out"), "fractions": [1.0]}
    assert compare_label_efficiency(make_run(LabelEfficiencyRun, {**keys, "seeds": [0]})).finished
    results = read_results(next((tmp_path / "out").rglob("results.json")))
    assert (results.data, results.task, results.split) == ("xcad", "vessel", "val") and results.rows
