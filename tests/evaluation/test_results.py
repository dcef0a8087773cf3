"""Result files survive writing and reading, and two of them are compared only where they are of the same images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram
from vasomim_hf.evaluation.classification_metrics import ClassificationScores
from vasomim_hf.evaluation.comparison import (
    Comparison,
    Description,
    build_results,
    compare_results,
    format_comparison,
    measures_of,
)
from vasomim_hf.evaluation.detection_metrics import Boxes, DetectionScores
from vasomim_hf.evaluation.measures import summarise
from vasomim_hf.evaluation.results import EvaluationResults, format_results, read_results, write_results
from vasomim_hf.evaluation.segmentation_scores import SegmentationScores
from vasomim_hf.evaluation.statistics import Resampling


QUICK = Resampling(num_resamples=200, num_permutations=500)
DESCRIPTION = Description("vessel", "tiny", "synthetic", "val", {"threshold": 0.5})
IDS = [f"frame {i}" for i in range(12)]
PATIENTS = [None if i > 9 else f"p{i // 2}" for i in range(12)]
TARGETS = np.stack([synthetic_angiogram(seed, size=48).vessel_mask for seed in range(12)]).astype(np.uint8)


def segmentation(noise: float, seed: int = 0, patients=PATIENTS, **changes) -> EvaluationResults:
    rng = np.random.default_rng(seed)
    predictions = TARGETS ^ (rng.random(TARGETS.shape) < noise)
    scores = SegmentationScores()
    scores.update(predictions, TARGETS, IDS, patients)
    return build_results(scores, replace(DESCRIPTION, **changes), QUICK)


def detection(noise: float, seed: int = 0) -> EvaluationResults:
    rng = np.random.default_rng(seed)
    scores = DetectionScores(["stenosis"])
    for i in range(12):
        corners = np.random.default_rng(i).uniform(0, 300, (i % 3, 2))
        target = Boxes(np.concatenate([corners, corners + 40], axis=1), np.zeros(i % 3, dtype=int))
        stray = rng.uniform(0, 300, (2, 2))
        found = np.concatenate(
            [target.corners + rng.normal(0, noise, target.corners.shape), np.hstack([stray, stray + 40])]
        )
        scores.update([Boxes(found, np.zeros(len(found), dtype=int), rng.random(len(found)))], [target], [IDS[i]])
    return build_results(scores, replace(DESCRIPTION, task="stenosis_boxes", model=f"noise {noise}"), QUICK)


def classification(skill: float, seed: int = 0) -> EvaluationResults:
    rng = np.random.default_rng(seed)
    targets = np.arange(12) % 2
    right = np.clip(0.5 + rng.normal(skill, 0.2, 12), 0, 1)
    second = np.where(targets == 1, right, 1 - right)
    scores = ClassificationScores(["left", "right"])
    scores.update(np.stack([1 - second, second], axis=1), targets, IDS, PATIENTS)
    return build_results(scores, replace(DESCRIPTION, task="side", model=f"skill {skill}"), QUICK)


KINDS = {
    "segmentation": lambda: segmentation(0.05),
    "detection": lambda: detection(4),
    "classification": lambda: classification(0.2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again(tmp_path, kind):
    results = KINDS[kind]()
    path = tmp_path / "results.json"
    write_results(results, path)
    again = read_results(path)
    # NaN equals nothing, text does
    assert repr(again.summary) == repr(results.summary)
    np.testing.assert_equal([row.values for row in again.rows], [row.values for row in results.rows])
    np.testing.assert_equal([row.lists for row in again.rows], [row.lists for row in results.rows])
    for name in ("kind", "task", "model", "data", "split", "labels", "settings", "version", "image_ids"):
        assert getattr(again, name) == getattr(results, name)
    assert [row.patient_id for row in again.rows] == [row.patient_id for row in results.rows]
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_of_a_file_are_enough_for_its_summary(tmp_path, kind):
    results = KINDS[kind]()
    write_results(results, tmp_path / "results.json")
    again = read_results(tmp_path / "results.json")
    summary = summarise(again.rows, measures_of(again), Resampling(**again.settings["resampling"]))
    assert list(summary) == list(results.summary)
    for name, entry in summary.items():
        assert vars(entry) == pytest.approx(vars(results.summary[name]), nan_ok=True), name


def test_the_file_is_json_without_nan(tmp_path):
    scores = SegmentationScores()
    scores.update(TARGETS[:2] * 0, TARGETS[:2] * 0, IDS[:2])
    write_results(build_results(scores, DESCRIPTION, QUICK), tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    content = json.loads(text)
    assert content["rows"][0]["values"]["dice"] is None
    assert content["summary"]["dice"] == {"value": None, "low": None, "high": None, "n": 0, "undefined": 2}
    assert content["schema"] == 1 and content["settings"]["threshold"] == 0.5
    assert np.isnan(read_results(tmp_path / "results.json").summary["dice"].value)


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_results(segmentation(0.05), path)
    before = path.read_bytes()
    for wrong in ({"path": Path("a")}, {"rate": float("inf")}):
        with pytest.raises(ValueError, match="cannot be written as JSON"):
            write_results(replace(segmentation(0.05), settings=wrong), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("rows"),
        lambda content: content.pop("kind"),
        lambda content: content.update(schema=2),
        lambda content: content.update(more=1),
        lambda content: content.update(kind="regression"),
        lambda content: content["rows"].append(content["rows"][0]),
        lambda content: content["rows"][0].pop("values"),
        lambda content: content["summary"]["dice"].pop("n"),
        lambda content: content["rows"][0].update(values=[1, 2]),
    ],
)
def test_a_file_that_is_no_result_is_refused_with_its_name(tmp_path, change):
    path = tmp_path / "results.json"
    write_results(segmentation(0.05), path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="results.json"):
        read_results(path)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"schema": 1'])
def test_text_that_is_no_result_is_refused_with_its_name(tmp_path, text):
    (tmp_path / "odd.json is not a result file").write_text(text)
    with pytest.raises(ValueError, match="odd.json is not a result file"):
        read_results(tmp_path / "odd.json is not a result file")


def test_a_missing_file_a_folder_and_another_file_are_told_apart(tmp_path):
    (tmp_path / "metrics.json").write_text('{"step": 3, "metrics": {"accuracy": 0.5}}')
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    cases = {
        "none.json": (FileNotFoundError, "none.json does not exist"),
        ".": (OSError, "is a folder, not a result file"),
        "metrics.json": (ValueError, "metrics.json is not a result file"),
        "picture.png": (ValueError, "picture.png is not a result file: invalid JSON"),
    }
    for name, (kind, message) in cases.items():
        with pytest.raises(kind, match=f"{message}.*`vasomim evaluate --output`"):
            read_results(tmp_path / name)


def test_a_file_of_a_later_format_says_what_to_do(tmp_path):
    path = tmp_path / "results.json"
    write_results(segmentation(0.05), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}))
    with pytest.raises(ValueError, match="format 2.* 1. Install"):
        read_results(path)


def test_many_classes_have_a_line_each_instead_of_one_for_each_number():
    labels = ["background", *(f"{number}/a" for number in range(1, 26))]
    target = np.zeros((2, 30, 30), dtype=np.uint8)
    target[:, :10], target[0, 10:20] = 1, 2
    found = target.copy()
    found[0, 0] = 0
    scores = SegmentationScores(labels)
    scores.update(found, target, ["a", "b"])
    results = build_results(scores, DESCRIPTION, QUICK)
    lines = format_results(results).splitlines()
    assert len(results.summary) > 100 and len(lines) < 50
    assert [line.split()[0] for line in lines[2:4]] == ["dice", "iou"] and not any(" dice/" in line for line in lines)
    start = next(number for number, line in enumerate(lines) if line.startswith("class"))
    assert lines[start].split() == ["class", "dice", "iou", "pooled_dice", "pooled_iou", "n"]
    assert len(lines[start + 1 :]) == 26
    names = ("dice", "iou", "pooled_dice", "pooled_iou")
    for line, label, count in zip(lines[start + 1 : start + 4], labels[1:4], ("2", "1", "0"), strict=True):
        numbers = [results.summary[f"{name}/{label}"].value for name in names]
        shown = ["–" if np.isnan(number) else f"{number:.4f}" for number in numbers]
        assert line.split() == [label, *shown, count]
    assert lines[-1] == "n: images with the class. Per-class intervals are in the file."


def test_few_classes_keep_their_intervals_in_the_table():
    results = classification(0.2)
    lines = [line.split()[0] for line in format_results(results).splitlines()[2:]]
    assert lines == list(results.summary) and "recall/left" in lines


def test_the_table_shows_values_intervals_and_what_was_left_out():
    results = segmentation(0.05)
    lines = format_results(results).splitlines()
    assert lines[0] == "tiny: vessel on synthetic, val, 12 images"
    assert lines[1].split() == ["value", "interval", "n", "undefined"]
    dice = results.summary["dice"]
    assert lines[2].split() == ["dice", f"{dice.value:.4f}", f"{dice.low:.4f}", "to", f"{dice.high:.4f}", "12", "0"]
    assert len({len(line) for line in lines[1:]}) == 1


# Comparison ---------------------------------------------------------------------------------------------------------


def test_the_better_model_is_found_better():
    comparison = compare_results(
        segmentation(0.02, patients=None), segmentation(0.08, seed=1, patients=None), resampling=QUICK
    )
    dice = comparison.differences["dice"]
    assert dice.test.difference.low > 0 and dice.test.p_value < 0.01 and dice.wilcoxon_p < 0.01
    assert dice.test.difference.value == pytest.approx(dice.test.first - dice.test.second)
    assert comparison.differences["hd95"].test.difference.value < 0
    assert (comparison.num_images, comparison.num_groups, comparison.num_seeds) == (12, 12, 1)
    pooled = comparison.differences["pooled_dice"]
    assert pooled.test.p_value < 0.01 and np.isnan(pooled.wilcoxon_p)


def test_values_of_a_comparison_are_those_of_the_summaries():
    for first, second in (
        (segmentation(0.02), segmentation(0.05)),
        (detection(3), detection(9)),
        (classification(0.1), classification(0.3)),
    ):
        for name, entry in compare_results(first, second, resampling=QUICK).differences.items():
            summaries = first.summary[name].value, second.summary[name].value
            assert (entry.test.first, entry.test.second) == pytest.approx(summaries, nan_ok=True), name


def test_p_of_a_mean_is_that_of_scipy():
    first, second = segmentation(0.05, patients=None), segmentation(0.051, seed=1, patients=None)
    found = compare_results(first, second, ["dice"], Resampling(num_permutations=5000)).differences["dice"]
    values = [[row.values["dice"] for row in results.rows] for results in (first, second)]
    # all 4,096 exchanges of 12 images
    expected = stats.permutation_test(
        values, lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), permutation_type="samples", vectorized=True
    )
    assert found.test.p_value == pytest.approx(expected.pvalue)
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(*values).pvalue)


def test_a_model_is_not_better_than_itself():
    for results in (segmentation(0.05), detection(4), classification(0.2)):
        for name, entry in compare_results(results, results, resampling=QUICK).differences.items():
            assert entry.test.difference.value == pytest.approx(0, abs=1e-12, nan_ok=True), name
            assert entry.test.p_value == pytest.approx(1, nan_ok=True), name


def test_better_boxes_are_found_better():
    entry = compare_results(detection(1), detection(12), ["ap", "ap75"], QUICK).differences["ap75"]
    assert entry.test.difference.low > 0 and entry.test.p_value < 0.05


def test_the_order_of_the_images_does_not_matter():
    first, second = segmentation(0.02), segmentation(0.05)
    turned = replace(second, rows=second.rows[::-1])
    found = [compare_results(first, other, ["dice"], QUICK).differences for other in (second, turned)]
    # NaN equals nothing, text does
    assert repr(found[0]) == repr(found[1])


def test_patients_are_the_groups():
    comparison = compare_results(segmentation(0.02), segmentation(0.05), ["dice"], QUICK)
    # five patients of two images, and two images without a patient: all 128 exchanges are taken
    assert comparison.num_groups == 7
    assert comparison.differences["dice"].test.p_value == 2 / 128


def test_images_undefined_for_one_model_are_left_out_of_both():
    first, second = segmentation(0.02), segmentation(0.05)
    first.rows[3].values["hd95"] = float("nan")
    entry = compare_results(first, second, ["hd95"], QUICK).differences["hd95"]
    kept = [row.values["hd95"] for i, row in enumerate(second.rows) if i != 3]
    assert entry.test.second == pytest.approx(np.mean(kept))
    assert (entry.n, entry.undefined) == (11, 1)


def test_seeds_are_averaged_and_their_spread_is_told():
    firsts, seconds = ([segmentation(noise, seed) for seed in range(3)] for noise in (0.03, 0.05))
    comparison = compare_results(firsts, seconds, resampling=QUICK)
    assert comparison.num_seeds == 3
    for name in ("dice", "pooled_dice"):
        entry = comparison.differences[name]
        alone = [results.summary[name].value for results in firsts]
        assert entry.test.first == pytest.approx(np.mean(alone))
        assert entry.spread[0] == pytest.approx(np.std(alone, ddof=1))
        assert entry.test.difference.low <= entry.test.difference.value <= entry.test.difference.high
    assert np.isnan(compare_results(firsts[0], seconds[0], ["dice"], QUICK).differences["dice"].spread).all()
    with pytest.raises(ValueError, match="at least one, got 3 and 1"):
        compare_results(firsts, seconds[0])


def without_last(results: EvaluationResults) -> EvaluationResults:
    return replace(results, rows=results.rows[:-1])


def other_patient(results: EvaluationResults) -> EvaluationResults:
    return replace(results, rows=[replace(results.rows[0], patient_id="another"), *results.rows[1:]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_last, "11 images are in both, 1 only in 'tiny' and 0 only in 'tiny'"),
        (other_patient, "same image to different patients"),
        (lambda results: replace(results, split="train"), "`split` is 'val' and 'train'"),
        (lambda results: replace(results, task="stenosis"), "`task` is 'vessel' and 'stenosis'"),
        (lambda results: replace(results, data="arcade"), "`data` is 'synthetic' and 'arcade'"),
        (lambda results: replace(results, labels=["background", "x"]), "`labels` is"),
        (lambda results: replace(results, kind="detection"), "`kind` is 'segmentation' and 'detection'"),
    ],
)
def test_results_of_something_else_are_refused(change, message):
    results = segmentation(0.05)
    with pytest.raises(ValueError, match=message):
        compare_results(results, change(results))


def test_a_number_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="ap50.*dice, iou"):
        compare_results(segmentation(0.05), segmentation(0.05), ["ap50"])


def test_the_table_of_a_comparison_tells_seeds_groups_and_settings():
    first, second = segmentation(0.02, model="one"), segmentation(0.05, model="two", settings={"threshold": 0.4})
    text = format_comparison(compare_results(first, second, ["dice", "pooled_dice"], QUICK))
    lines = text.splitlines()
    assert lines[0] == "first: one, second: two; 12 images in 7 groups, 1 seeds each"
    assert lines[1] == "settings that differ: threshold"
    assert lines[3].startswith("dice ") and lines[4].startswith("pooled_dice ") and "–" in lines[4]
    seeds = format_comparison(compare_results([first] * 2, [second] * 2, ["dice"], QUICK))
    assert "spread of second" in seeds.splitlines()[2]
    assert isinstance(compare_results(first, second, ["dice"], QUICK), Comparison)
