"""`vasomim evaluate` and `vasomim compare`: right numbers, at the right size, and clear refusals."""

import dataclasses
import json

import datasets
import numpy as np
import pytest
import torch
from miniatures.arcade import NUM_FRAMES, write_arcade
from miniatures.finetuning import ENCODER, SIZE, frames, vessel_table, write_table
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from vasomim_hf import (
    UNeXtConfig,
    UNeXtForVesselSegmentation,
    VasoMIMConfig,
    VasoMIMForImageClassification,
    VasoMIMForObjectDetection,
    VasoMIMForSemanticSegmentation,
    VasoMIMImageProcessor,
    VasoMIMModel,
)
from vasomim_hf.cli import main
from vasomim_hf.data.locations import source_name
from vasomim_hf.data.published import registry
from vasomim_hf.data.published.arcade import arcade_labels, load_arcade
from vasomim_hf.data.reading import MaskError
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram
from vasomim_hf.engine.evaluating import EvaluationRequest, evaluate_model
from vasomim_hf.engine.evaluating import evaluate as model_evaluation
from vasomim_hf.engine.evaluating.pictures import choose_cases
from vasomim_hf.engine.evaluating.scoring import FrameScorer
from vasomim_hf.engine.finetuning import weights as finetune_model
from vasomim_hf.engine.finetuning.decoded import Collator, DecodeOptions, FinetuneDataset, decode
from vasomim_hf.engine.finetuning.rows import load_rows
from vasomim_hf.engine.finetuning.run import ClassificationRun
from vasomim_hf.engine.run_config import make_run
from vasomim_hf.engine.tasks.segmentation import Segmentation
from vasomim_hf.evaluation.calibration import predictive_entropy
from vasomim_hf.evaluation.mask_metrics import dice
from vasomim_hf.evaluation.results import ResultRow, read_results
from vasomim_hf.image_processing_reading import read_frames
from vasomim_hf.inference import prediction


HEADS = {
    "vessel": VasoMIMForSemanticSegmentation,
    "segments": VasoMIMForSemanticSegmentation,
    "stenosis": VasoMIMForSemanticSegmentation,
    "stenosis_boxes": VasoMIMForObjectDetection,
    "side": VasoMIMForImageClassification,
}


@pytest.fixture(scope="module")
def arcade(tmp_path_factory):
    root = tmp_path_factory.mktemp("arcade")
    write_arcade(root)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder for each task, with weights that were never trained."""
    folders = {}
    for task, head in HEADS.items():
        torch.manual_seed(0)
        labels = arcade_labels(task)
        sizes = {"segmentation_hidden_size": 16, "detail_stem_channels": 8, "detection_channels": 16}
        names = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
        folders[task] = tmp_path_factory.mktemp("models") / task
        head(VasoMIMConfig(**ENCODER, image_size=SIZE, **sizes, **names)).save_pretrained(folders[task])
        VasoMIMImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folders[task])
    return folders


def request_of(models, data, trained_for, **keys):
    values = {"model": str(models[trained_for]), "data": str(data), "task": trained_for}
    values |= {"split": "val", "mixed_precision": "no"}
    return EvaluationRequest(**{**values, **keys})


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("split", NUM_FRAMES)
def test_every_task_and_split_gives_a_file(models, arcade, task, split, tmp_path, capsys):
    path = tmp_path / "results.json"
    arguments = ["evaluate", str(models[task]), "--data", str(arcade), "--dataset", "arcade", "--task", task]
    assert main([*arguments, "--split", split, "--output", str(path), "--mixed-precision", "no"]) == 0
    results = read_results(path)
    assert (results.task, results.split, len(results.rows)) == (task, split, NUM_FRAMES[split])
    assert results.model == task and str(arcade) not in path.read_text(), "where files lie is nobody's business"
    expected = {"vessel": "dice", "segments": "mean_class_dice", "stenosis": "cl_dice", "side": "auroc"}
    assert expected.get(task, "ap50") in results.summary and expected.get(task, "ap50") in capsys.readouterr().out


def test_dice_is_taken_at_the_size_of_the_annotated_frame(models, arcade):
    results = evaluate_model(request_of(models, arcade, "vessel"))
    model = VasoMIMForSemanticSegmentation.from_pretrained(models["vessel"]).eval()
    processor = VasoMIMImageProcessor.from_pretrained(models["vessel"])
    rows = load_arcade(arcade, "vessel", "val")
    for row, found in zip(rows, results.rows, strict=True):
        with torch.no_grad():
            output = model(**processor(row["image"], return_tensors="pt"))
        mask = np.asarray(row["mask"])
        assert mask.shape != (SIZE, SIZE)
        ids = processor.post_process_semantic_segmentation(output, target_sizes=[mask.shape])[0].numpy()
        assert found.values["dice"] == pytest.approx(dice(ids > 0, mask > 0), nan_ok=True)


@pytest.mark.parametrize(
    "task, keys", [("vessel", {"batch_size": 1}), ("stenosis_boxes", {"batch_size": 2}), ("side", {})]
)
def test_the_batch_decides_nothing(models, arcade, task, keys):
    first = evaluate_model(request_of(models, arcade, task, batch_size=3))
    second = evaluate_model(request_of(models, arcade, task, **keys))
    for one, other in zip(first.rows, second.rows, strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-4, nan_ok=True)


def test_options_change_what_they_say(models, arcade):
    plain = evaluate_model(request_of(models, arcade, "vessel"))
    for keys in (
        {"tta": "flips"},
        {"tta": "scales"},
        {"sliding_window": 32},
        {"sliding_window": 48, "frame_size": 64},
        {"image_size": 48},
    ):
        other = evaluate_model(request_of(models, arcade, "vessel", **keys))
        assert [row.values for row in other.rows] != [row.values for row in plain.rows], keys
        assert {name: other.settings[name] for name in keys if name != "image_size"} == {
            name: value for name, value in keys.items() if name != "image_size"
        }
    assert plain.settings["image_size"] == [SIZE, SIZE] and other.settings["image_size"] == [48, 48]


def test_the_file_says_which_precision_auto_took(models, arcade, monkeypatch):
    for is_fast, precision in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(prediction, "has_fast_bf16", lambda _, is_fast=is_fast: is_fast)
        results = evaluate_model(request_of(models, arcade, "side", mixed_precision="auto"))
        assert results.settings["mixed_precision"] == precision


def test_a_window_over_the_frame_as_the_model_sees_it_changes_nothing(models, arcade):
    plain = evaluate_model(request_of(models, arcade, "vessel"))
    windowed = evaluate_model(request_of(models, arcade, "vessel", sliding_window=SIZE, frame_size=SIZE))
    for one, other in zip(plain.rows, windowed.rows, strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-4)


def test_training_and_evaluation_see_the_same_pixels_and_say_the_same_in_float32(models, arcade, tmp_path):
    request = request_of(models, arcade, "side", split="train")
    results = evaluate_model(request)
    processor = VasoMIMImageProcessor.from_pretrained(models["side"])
    run = make_run(ClassificationRun, {"data": str(arcade), "task": "side", "output_dir": str(tmp_path)})
    samples = decode(load_rows(run, "train"), DecodeOptions("classification", 2, SIZE), tmp_path / "kept")
    frames = FinetuneDataset(samples, SIZE)
    collate = Collator(tuple(processor.image_mean), tuple(processor.image_std))
    batch = collate([frames[number] for number in range(len(frames))])
    model = VasoMIMForImageClassification.from_pretrained(models["side"]).eval()
    with torch.no_grad():
        probabilities = model(batch["pixel_values"]).logits.softmax(dim=1)[:, 1]
    assert probabilities.tolist() == pytest.approx([row.values["probability/right"] for row in results.rows], abs=1e-5)


def test_maps_and_pictures_are_written(models, arcade, tmp_path):
    maps, pictures = tmp_path / "maps", tmp_path / "pictures"
    evaluate_model(request_of(models, arcade, "vessel", maps=str(maps), pictures=str(pictures)))
    row = load_arcade(arcade, "vessel", "val")[0]
    names = ("mask", "uncertainty")
    mask, uncertainty = (read_frames(maps / f"syntax_val_1_{name}.png", keep_ids=True)[0, 0] for name in names)
    assert mask.shape == row["image"].size[::-1] and set(np.unique(mask)) <= {0, 1}
    model = VasoMIMForSemanticSegmentation.from_pretrained(models["vessel"]).eval()
    processor = VasoMIMImageProcessor.from_pretrained(models["vessel"])
    with torch.no_grad():
        logits = model(**processor(row["image"], return_tensors="pt")).logits
    logits = torch.nn.functional.interpolate(logits, size=uncertainty.shape, mode="bilinear", align_corners=False)
    entropy = predictive_entropy(logits.softmax(dim=1).numpy())
    assert np.abs(uncertainty / 255 - entropy).max() < 0.01
    assert {path.name for path in pictures.iterdir()} == {"best.png", "median.png", "worst.png"}


@pytest.mark.parametrize("task, panels", [("segments", 3), ("stenosis_boxes", 2), ("side", 1)])
def test_pictures_of_every_kind(models, arcade, task, panels, tmp_path):
    results = evaluate_model(request_of(models, arcade, task, pictures=str(tmp_path), split="train"))
    columns = min(len(results.rows), {3: 1, 2: 2, 1: 4}[panels])
    with Image.open(tmp_path / "worst.png") as picture:
        assert picture.width == columns * (panels * 324 - 4) + (columns - 1) * 8


def test_cases_are_selected_by_score():
    rows = [ResultRow(str(number), None, {"dice": number / 10}) for number in range(11)]
    rows.append(ResultRow("empty", None, {"dice": float("nan")}))
    chosen = {name: [row.image_id for row in found] for name, found in choose_cases(rows, "segmentation").items()}
    assert chosen == {"best": ["10", "9", "8", "7"], "median": ["7", "6", "5", "4"], "worst": ["3", "2", "1", "0"]}
    # right with 0.9; missed one, with a wrong box of 0.8
    boxes = [
        ({"num_targets": 1.0, "num_found": 1.0}, [0.9], [1]),
        ({"num_targets": 1.0, "num_found": 0.0}, [0.8], [0]),
    ]
    rows = [
        ResultRow(str(number), None, values, {"scores": scores, "matches": matches})
        for number, (values, scores, matches) in enumerate(boxes)
    ]
    assert [row.image_id for row in choose_cases(rows, "detection")["best"]] == ["0", "1"]
    # surely right, hardly right, hardly wrong, surely wrong
    sides = [(1.0, 0.9), (1.0, 0.6), (0.0, 0.55), (0.0, 0.95)]
    rows = [
        ResultRow(str(number), None, {"accuracy": right, "confidence": confidence})
        for number, (right, confidence) in enumerate(sides)
    ]
    assert [row.image_id for row in choose_cases(rows, "classification")["worst"]] == ["0", "1", "2", "3"]


def test_a_table_is_evaluated(models, tmp_path):
    table = vessel_table(tmp_path / "table")
    request = request_of(models, table, "vessel", dataset="table", task="mine", mask_column="mask")
    results = evaluate_model(request)
    assert (results.data, results.task, len(results.rows)) == ("table", "mine", 3)
    wrong = dataclasses.replace(request, mask_column="masks")
    with pytest.raises(ValueError, match="no column 'masks'"):
        evaluate_model(wrong)


def side_table(folder, names, labels):
    images = [item.image for item in frames(len(labels))]
    return write_table(
        folder, {"val": {"image": images, "label": labels}}, {"label": datasets.ClassLabel(names=names)}
    )


def test_different_class_names_in_a_table_are_logged(models, tmp_path, caplog):
    table = side_table(tmp_path / "table", ["L", "R"], [0, 1])
    evaluate_model(request_of(models, table, "side", dataset="table", task="mine"))
    assert "the classes of the model are left, right, those of the data L, R" in caplog.text
    swapped = side_table(tmp_path / "swapped", ["right", "left"], [0, 1])
    with pytest.raises(ValueError, match="the same in another order"):
        evaluate_model(request_of(models, swapped, "side", dataset="table", task="mine"))


@pytest.mark.parametrize("label", [None, -1])
def test_a_frame_without_a_class_is_named(models, tmp_path, label):
    table = side_table(tmp_path / "table", ["left", "right"], [0, label])
    with pytest.raises(ValueError, match=f"1: the label must be a class id from 0 to 1, got {label}"):
        evaluate_model(request_of(models, table, "side", dataset="table", task="mine"))


def vessel_columns(count=3, sizes=(SIZE,), **more):
    found = [synthetic_angiogram(seed, size=sizes[seed % len(sizes)]) for seed in range(count)]
    masks = [(item.segment_mask > 0).astype(np.uint8) for item in found]
    return {"image": [item.image for item in found], "mask": masks, **more}


def test_255_in_two_class_masks_is_ignored_on_request(models, tmp_path):
    columns = vessel_columns(1, image_id=["only"])
    columns["mask"][0][:8] = 255
    table = write_table(tmp_path / "table", {"val": columns})
    request = request_of(models, table, "vessel", dataset="table", task="mine")
    with pytest.raises(MaskError, match="only holds both 1 and 255"):
        evaluate_model(request)
    ignoring = evaluate_model(dataclasses.replace(request, ignore_white=True, maps=str(tmp_path / "maps")))
    ids = np.asarray(Image.open(tmp_path / "maps" / "only_mask.png"))[8:]
    expected = dice(ids > 0, columns["mask"][0][8:] > 0)
    assert ignoring.rows[0].values["dice"] == pytest.approx(expected)


def test_frames_without_ids_keep_their_numbers_in_pictures(models, tmp_path, monkeypatch):
    table = write_table(tmp_path / "table", {"val": vessel_columns(6)})
    drawn = []
    real = Segmentation.panels
    monkeypatch.setattr(
        Segmentation, "panels", lambda task, frame, labels: drawn.append(frame) or real(task, frame, labels)
    )
    request = request_of(models, table, "vessel", dataset="table", task="mine", pictures=str(tmp_path / "pictures"))
    results = evaluate_model(request)
    columns = vessel_columns(6)
    assert len(drawn) == 12 and [row.image_id for row in results.rows] == [str(number) for number in range(6)]
    for frame in drawn:
        assert np.array_equal(frame.frame, columns["image"][int(frame.image_id)])


def test_ids_that_come_twice_are_refused_before_the_model_is_asked(models, tmp_path):
    ids = ["a", "b", "a"]
    table = write_table(tmp_path / "table", {"val": vessel_columns(image_id=ids)})
    maps = tmp_path / "maps"
    with pytest.raises(ValueError, match="occur more than once, such as a"):
        evaluate_model(request_of(models, table, "vessel", dataset="table", task="mine", maps=str(maps)))
    assert not any(maps.iterdir())


def test_maps_of_ids_that_look_alike_do_not_replace_each_other(models, tmp_path):
    ids = ["a/1", "a_1", "A 1"]
    table = write_table(tmp_path / "table", {"val": vessel_columns(image_id=ids)})
    maps = tmp_path / "maps"
    evaluate_model(request_of(models, table, "vessel", dataset="table", task="mine", maps=str(maps)))
    masks = {path.name for path in maps.glob("*_mask.png")}
    assert masks == {"a_1_mask.png", "a_1-2_mask.png", "A_1-3_mask.png"} and len(list(maps.iterdir())) == 6


def test_a_split_without_frames_is_refused(models, tmp_path, monkeypatch):
    table = datasets.load_from_disk(write_table(tmp_path / "table", {"val": vessel_columns()}))
    empty = table["val"].select([])
    monkeypatch.setattr(registry, "load_split", lambda *_: empty)
    with pytest.raises(ValueError, match="no frames in its split 'val'"):
        evaluate_model(request_of(models, tmp_path, "vessel", dataset="table", task="mine"))
    datasets.DatasetDict({"val": empty}).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match="no frames in its split|a split without rows"):
        evaluate_model(request_of(models, tmp_path / "empty", "vessel", dataset="table", task="mine"))


@pytest.mark.parametrize("options", [{"size": {"shortest_edge": SIZE}}, {"do_resize": False}])
def test_frames_that_the_model_sees_at_several_sizes_are_scored_at_their_own(models, tmp_path, options):
    columns = vessel_columns(sizes=(64, 80, 96))
    columns["image"][2], columns["mask"][2] = columns["image"][2][:70], columns["mask"][2][:70]
    table = write_table(tmp_path / "table", {"val": columns})
    folder = tmp_path / "model"
    model = VasoMIMForSemanticSegmentation.from_pretrained(models["vessel"]).eval()
    model.save_pretrained(folder)
    processor = VasoMIMImageProcessor(**options)
    processor.save_pretrained(folder)
    results = evaluate_model(request_of({"vessel": folder}, table, "vessel", dataset="table", task="mine"))
    assert results.settings["image_size"] is None
    for image, mask, row in zip(columns["image"], columns["mask"], results.rows, strict=True):
        with torch.no_grad():
            output = model(**processor(image, return_tensors="pt"))
        ids = processor.post_process_semantic_segmentation(output, target_sizes=[mask.shape])[0].numpy()
        assert row.values["dice"] == pytest.approx(dice(ids > 0, mask > 0))


@pytest.mark.parametrize("options", [{"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}])
def test_an_image_processor_that_crops_is_refused_where_places_count(models, arcade, tmp_path, options):
    for task in ("vessel", "side"):
        HEADS[task].from_pretrained(models[task]).save_pretrained(tmp_path / task)
        VasoMIMImageProcessor(**options).save_pretrained(tmp_path / task)
    folders = {task: tmp_path / task for task in ("vessel", "side")}
    with pytest.raises(ValueError, match="crops or pads frames"):
        evaluate_model(request_of(folders, arcade, "vessel"))
    assert evaluate_model(request_of(folders, arcade, "side")).kind == "classification"


def test_a_segmentor_and_a_model_of_the_library_are_evaluated(models, arcade, tmp_path):
    torch.manual_seed(0)
    UNeXtForVesselSegmentation(UNeXtConfig()).save_pretrained(tmp_path / "unext")
    VasoMIMImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path / "unext")
    sizes = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]}
    sizes |= {"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    names = {"id2label": {0: "background", 1: "vessel"}, "label2id": {"background": 0, "vessel": 1}}
    config = SegformerConfig(**sizes, **names, decoder_hidden_size=16)
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "segformer")
    SegformerImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path / "segformer")
    folders = {"vessel": tmp_path / "unext"}
    plain = evaluate_model(request_of(folders, arcade, "vessel"))
    assert plain.model == "unext" and plain.labels == ["background", "vessel"] and 0 < plain.summary["dice"].value < 1
    folders = {"vessel": tmp_path / "segformer"}
    for keys in ({}, {"sliding_window": 32}):
        found = evaluate_model(request_of(folders, arcade, "vessel", **keys))
        assert found.model == "segformer" and len(found.rows) == NUM_FRAMES["val"]


def test_a_result_of_a_run_is_named_by_the_run(tmp_path):
    (tmp_path / "arcade-vessel/final").mkdir(parents=True)
    assert source_name(str(tmp_path / "arcade-vessel/final")) == "arcade-vessel"
    assert source_name("owner/final") == "owner/final"


def test_results_bear_the_names_of_folders_given_as_a_dot(models, monkeypatch, tmp_path):
    vessel_table(tmp_path / "frames-of-mine")
    monkeypatch.chdir(tmp_path / "frames-of-mine")
    results = evaluate_model(request_of(models, ".", "vessel", dataset="table", task="mine"))
    assert results.data == "frames-of-mine"


def test_the_hub_is_not_asked_for_a_folder_that_is_missing(models, arcade, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        finetune_model.AutoConfig, "from_pretrained", lambda *a, **k: asked.append(a) or VasoMIMConfig()
    )
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("runs/typo", "typo", "./typo", "a/b/typo", str(tmp_path / "typo")):
        with pytest.raises(FileNotFoundError, match="folder does not exist"):
            evaluate_model(dataclasses.replace(request_of(models, arcade, "vessel"), model=name))
    assert not asked
    assert finetune_model.load_config("owner/name", "the model").model_type == "vasomim" and asked == [("owner/name",)]


def test_output_paths_are_checked_before_evaluation(models, arcade, tmp_path, capsys, monkeypatch):
    arguments = ["evaluate", str(models["vessel"]), "--data", str(arcade), "--task", "vessel", "--split", "val"]
    assert main([*arguments, "--output", str(tmp_path / "new" / "results.json")]) == 0
    monkeypatch.setattr(FrameScorer, "score", lambda *_: pytest.fail("nothing may be computed"))
    (tmp_path / "file").touch()
    assert main([*arguments, "--output", str(tmp_path)]) == 2
    assert "is a folder." in capsys.readouterr().err
    for option in ("--maps", "--pictures"):
        assert main([*arguments, "--output", str(tmp_path / "r.json"), option, str(tmp_path / "file")]) == 2
        assert "Cannot write to" in capsys.readouterr().err


def test_an_interrupted_evaluation_leaves_the_older_file(models, arcade, tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    path.write_text("older")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(FrameScorer, "_predict", stop)
    arguments = ["evaluate", str(models["vessel"]), "--data", str(arcade), "--task", "vessel", "--split", "val"]
    assert main([*arguments, "--output", str(path)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "vasomim: stopped"
    assert path.read_text() == "older" and [item.name for item in tmp_path.iterdir()] == ["results.json"]


def test_results_are_written_before_pictures_are_drawn(models, arcade, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no picture")

    monkeypatch.setattr(model_evaluation, "draw_cases", fail)
    path = tmp_path / "results.json"
    request = request_of(models, arcade, "vessel", output=str(path), name="ours", pictures=str(tmp_path / "pictures"))
    with pytest.raises(ValueError, match="no picture"):
        evaluate_model(request)
    assert read_results(path).model == "ours"


@pytest.mark.parametrize(
    "task, keys, message",
    [
        ("vessel", {"task": "side"}, "model for segmentation, and side is a task of classification"),
        ("vessel", {"task": "veins"}, "`task` must be one of"),
        ("vessel", {"task": "segments"}, "has 2 classes .*, the data have 26"),
        ("segments", {"tta": "flips"}, "depend on left and right"),
        ("vessel", {"tta": "turns"}, "`tta` must be one of"),
        ("side", {"sliding_window": 32}, "Sliding windows are for segmentation"),
        ("side", {"maps": "x"}, "`maps` are for segmentation"),
        ("vessel", {"sliding_window": 32, "image_size": 32}, "frame_size"),
        ("vessel", {"frame_size": 32}, "requires `sliding_window`"),
        ("vessel", {"batch_size": 0}, "`batch_size` must be at least 1"),
        ("vessel", {"mixed_precision": "bf8"}, "must be one of auto, no, bf16, fp16"),
        ("vessel", {"ignore_white": True}, "`ignore_white` is for tables"),
        ("vessel", {"sliding_window": 0}, "`sliding_window` must be at least 1"),
        ("vessel", {"num_threads": 0}, "`num_threads` must be at least 1"),
        ("vessel", {"dataset": "table", "label_column": "x"}, "`label_column` does not fit"),
        ("vessel", {"mask_column": "x"}, "`mask_column` does not fit"),
        ("vessel", {"split": "holdout"}, "split"),
        ("vessel", {"model": "./nowhere"}, "folder does not exist"),
    ],
)
def test_inconsistent_requests_are_rejected(models, arcade, task, keys, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate_model(request_of(models, arcade, task, **keys))


def test_an_encoder_without_a_head_is_refused(arcade, tmp_path, capsys):
    VasoMIMModel(VasoMIMConfig(**ENCODER, image_size=SIZE)).save_pretrained(tmp_path)
    VasoMIMImageProcessor().save_pretrained(tmp_path)
    output = tmp_path / "results.json"
    arguments = ["--data", str(arcade), "--task", "vessel", "--split", "val", "--output", str(output)]
    assert main(["evaluate", str(tmp_path), *arguments]) == 2
    assert "has no head" in capsys.readouterr().err and not output.exists()


def test_missing_weights_are_named(models, arcade, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    VasoMIMForSemanticSegmentation.from_pretrained(models["vessel"]).save_pretrained(folder)
    VasoMIMImageProcessor().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop("decode_head.classifier.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights, such as decode_head.classifier.weight"):
        evaluate_model(request_of({"vessel": folder}, arcade, "vessel"))


def test_two_files_are_compared(models, arcade, tmp_path, capsys):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, size in zip(paths, (64, 48), strict=True):
        options = ["--task", "vessel", "--split", "train", "--image-size", str(size), "--mixed-precision", "no"]
        arguments = ["evaluate", str(models["vessel"]), "--data", str(arcade), *options, "--output", str(path)]
        assert main(arguments) == 0
    capsys.readouterr()
    assert main(["compare", "--first", str(paths[0]), "--second", str(paths[1]), "--measures", "dice", "hd95"]) == 0
    out = capsys.readouterr().out
    assert "settings that differ: image_size" in out and "Wilcoxon" in out
    values = [json.loads(path.read_text())["summary"]["dice"]["value"] for path in paths]
    assert f"{values[0] - values[1]:.4f}" in out
    for wrong, message in ((tmp_path / "none.json", "none.json"), (tmp_path, "is a folder")):
        assert main(["compare", "--first", str(paths[0]), "--second", str(wrong)]) == 2
        assert message in capsys.readouterr().err
