"""The library's pipelines on a saved folder of each head: where things land, what goes in, what the log says."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from miniatures.models import SEGMENTOR, SMALL, SMALL_HEADS
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from vasomim_hf import (
    UNeXtConfig,
    UNeXtForVesselSegmentation,
    VasoMIMConfig,
    VasoMIMForImageClassification,
    VasoMIMForObjectDetection,
    VasoMIMForPreTraining,
    VasoMIMForSemanticSegmentation,
    VasoMIMModel,
)
from vasomim_hf.image_processing_vasomim import VasoMIMImageProcessor, scale_to_8_bit
from vasomim_hf.publishing import export


SIZES = {**SMALL, **SMALL_HEADS}
# Task of the pipeline and labels, by folder.
TASKS = {
    "segmentation": ("image-segmentation", ["background", "vessel"]),
    "unext": ("image-segmentation", ["background", "vessel"]),
    "detection": ("object-detection", ["stenosis"]),
    "classification": ("image-classification", ["empty", "bright thing"]),
    "encoder": ("image-feature-extraction", []),
}
FRAMES = [(180, 120), (50, 100), (64, 64)]  # height and width; the model's are 64 x 64

# Runs where the package cannot be imported: every pipeline by the folder's own code, results and log kept.
CLEAN_PROCESS = """
import json
import logging
import sys
from pathlib import Path


class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "vasomim_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class Keep(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())


sys.meta_path.insert(0, Block())
said = []

import torch
from PIL import Image
from transformers import pipeline

torch.set_num_threads(1)
logging.getLogger("transformers").addHandler(Keep(logging.WARNING))
folder, tasks = Path(sys.argv[1]), json.loads(sys.argv[2])
results = {}
for name, task in tasks.items():
    run = pipeline(task, str(folder / name), trust_remote_code=True)
    assert type(run.model).__module__.startswith("transformers_modules."), type(run.model)
    results[name] = run(str(folder / "frame.png"))
    for one in results[name]:
        if "mask" in one:
            one["mask"] = [one["mask"].size, one["mask"].tobytes().hex()]
(folder / "results.json").write_text(json.dumps({"results": results, "said": said}))
"""


class Scene(NamedTuple):
    """A grey frame with one bright thing, and where that is: left, top, right, bottom in pixels."""

    image: Image.Image
    box: tuple[int, int, int, int]


def scene(seed: int, size: tuple[int, int]) -> Scene:
    """The bright thing takes a quarter to two fifths of each side."""
    rng = np.random.default_rng(seed)
    height, width = size
    high, wide = (int(side * rng.uniform(0.25, 0.4)) for side in size)
    top = int(rng.integers(height // 16, height - high - height // 16))
    left = int(rng.integers(width // 16, width - wide - width // 16))
    pixels = np.array(empty(seed, size))
    pixels[top : top + high, left : left + wide] += 120
    return Scene(Image.fromarray(pixels), (left, top, left + wide, top + high))


def empty(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(70, 90, size).astype(np.uint8))


def truth(made: Scene) -> np.ndarray:
    left, top, right, bottom = made.box
    mask = np.zeros((made.image.height, made.image.width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def learn(model: torch.nn.Module, rate: float, steps: int, **batch: Any) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def names(folder: str) -> dict[str, dict]:
    labels = TASKS[folder][1]
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Each head, after it has learned to find the bright thing at 64 x 64."""
    made = [scene(seed, (64, 64)) for seed in range(16)]
    processor = VasoMIMImageProcessor(size={"height": 64, "width": 64}, do_check_input=False)
    boxes = [[{"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": 0}] for x0, y0, x1, y1 in (one.box for one in made)]
    annotations = [{"image_id": i, "annotations": box} for i, box in enumerate(boxes)]
    inputs = processor([one.image for one in made], annotations=annotations, return_tensors="pt")
    pixel_values, masks = inputs.pixel_values, torch.from_numpy(np.stack([truth(one) for one in made]))
    torch.manual_seed(0)
    heads = {
        "segmentation": VasoMIMForSemanticSegmentation(VasoMIMConfig(**SIZES, **names("segmentation"))),
        "unext": UNeXtForVesselSegmentation(UNeXtConfig(**SEGMENTOR)),
        "detection": VasoMIMForObjectDetection(VasoMIMConfig(**SIZES, **names("detection"))),
        "classification": VasoMIMForImageClassification(VasoMIMConfig(**SIZES, **names("classification"))),
    }
    empties = processor([empty(seed, (64, 64)) for seed in range(len(made))], return_tensors="pt").pixel_values
    both, classes = torch.cat([empties, pixel_values]), torch.arange(2).repeat_interleave(len(made))
    learn(heads["segmentation"], 1e-2, 20, pixel_values=pixel_values, labels=masks.long())
    learn(heads["unext"], 1e-2, 40, pixel_values=pixel_values, labels=masks.float())
    learn(heads["detection"], 5e-3, 60, pixel_values=pixel_values, labels=inputs["labels"])
    learn(heads["classification"], 5e-3, 40, pixel_values=both, labels=classes)
    return heads | {"encoder": heads["classification"].vasomim}


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory) -> Path:
    """Folders as a training leaves them, without code."""
    folder = tmp_path_factory.mktemp("saved")
    pretraining = VasoMIMForPreTraining(VasoMIMConfig(**SIZES)).eval()
    for name, model in (models | {"pretraining": pretraining}).items():
        model.save_pretrained(folder / name)
        VasoMIMImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def pipelines(saved) -> dict[str, Any]:
    return {name: pipeline(task, str(saved / name)) for name, (task, _) in TASKS.items()}


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Messages of the library and of this package, from warnings up."""
    loggers = [logging.getLogger("transformers"), logging.getLogger("vasomim_hf")]
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Keep(logging.WARNING)
    for logger in loggers:
        logger.addHandler(handler)
    yield messages
    for logger in loggers:
        logger.removeHandler(handler)


def overlap(mask: np.ndarray, other: np.ndarray) -> float:
    return float((mask & other).sum() / (mask | other).sum())


def box_iou(box: dict[str, int], other: tuple[int, int, int, int], size: tuple[int, int]) -> float:
    drawn = np.zeros((2, size[1], size[0]), dtype=bool)
    for plane, (left, top, right, bottom) in zip(
        drawn, (other, (box["xmin"], box["ymin"], box["xmax"], box["ymax"])), strict=True
    ):
        plane[top:bottom, left:right] = True
    return overlap(*drawn)


def plain(result: Any) -> Any:
    """A result with masks as arrays, so that two can be compared."""
    if isinstance(result, list):
        return [plain(one) for one in result]
    if isinstance(result, dict):
        return {key: plain(value) for key, value in result.items()}
    return np.asarray(result) if isinstance(result, Image.Image) else result


def assert_same(result: Any, expected: Any, tolerance: float = 1e-4) -> None:
    if isinstance(expected, list | tuple):
        assert len(result) == len(expected)
        for pair in zip(result, expected, strict=True):
            assert_same(*pair, tolerance)
    elif isinstance(expected, dict):
        assert result.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(result[key], value, tolerance)
    elif isinstance(expected, np.ndarray):
        assert result.shape == expected.shape and (result != expected).mean() < 1e-3
    elif isinstance(expected, int | float):
        assert result == pytest.approx(expected, abs=1 if isinstance(expected, int) else tolerance)
    else:
        assert result == expected


# Where things land ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", FRAMES)
@pytest.mark.parametrize("folder", ["segmentation", "unext"])
def test_masks_have_the_frames_size_and_lie_on_the_bright_thing(pipelines, folder, size):
    made = scene(101, size)
    found = {one["label"]: one for one in pipelines[folder](made.image)}
    assert list(found) == ["background", "vessel"]
    for one in found.values():
        assert set(one) == {"label", "mask", "score"} and one["score"] is None
        assert one["mask"].size == made.image.size and one["mask"].mode == "L"
        assert set(np.unique(one["mask"])) == {0, 255}
    background, vessel = (np.asarray(found[label]["mask"]) > 0 for label in ("background", "vessel"))
    assert (background ^ vessel).all()
    assert overlap(vessel, truth(made)) > 0.75


@pytest.mark.parametrize("folder", ["segmentation", "unext"])
def test_a_frame_with_nothing_in_it_is_all_background(pipelines, folder):
    (only,) = pipelines[folder](empty(0, (80, 60)))
    assert only["label"] == "background" and np.asarray(only["mask"]).min() == 255


@pytest.mark.parametrize("size", FRAMES)
@pytest.mark.parametrize("seed", [101, 102])
def test_boxes_are_in_pixels_of_the_frame_and_lie_on_the_bright_thing(pipelines, seed, size):
    made = scene(seed, size)
    best, *_ = pipelines["detection"](made.image, threshold=0.3)
    assert set(best) == {"label", "score", "box"} and best["label"] == "stenosis" and 0.3 < best["score"] <= 1
    assert all(type(value) is int for value in best["box"].values())
    assert box_iou(best["box"], made.box, made.image.size) > 0.6


@pytest.mark.parametrize("size", FRAMES)
@pytest.mark.parametrize("label", ["empty", "bright thing"])
def test_the_first_label_of_a_frame_is_the_right_one(pipelines, label, size):
    frame = empty(101, size) if label == "empty" else scene(101, size).image
    found = pipelines["classification"](frame)
    assert found[0]["label"] == label
    assert {one["label"] for one in found} == {"empty", "bright thing"}
    assert sum(one["score"] for one in found) == pytest.approx(1) and found[0]["score"] > found[1]["score"] >= 0


@pytest.mark.parametrize("folder", ["encoder", "pretraining", "segmentation", "detection", "classification"])
def test_features_of_every_folder_are_those_of_its_encoder(saved, folder):
    frame = scene(0, (50, 100)).image
    run = pipeline("image-feature-extraction", str(saved / folder))
    assert type(run.model) is VasoMIMModel
    pixel_values = AutoImageProcessor.from_pretrained(saved / folder)(frame, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = VasoMIMModel.from_pretrained(saved / folder)(pixel_values)
    torch.testing.assert_close(run(frame, return_tensors=True), expected.last_hidden_state)
    torch.testing.assert_close(run(frame, return_tensors=True, pool=True), expected.pooler_output)
    assert np.shape(run(frame)) == (1, 17, 32)


# What goes in --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", TASKS)
def test_a_path_a_list_a_batch_and_a_generator_give_what_single_images_give(pipelines, folder, tmp_path):
    run = pipelines[folder]
    frames = [scene(seed, FRAMES[seed % 3]).image for seed in range(5)]
    paths = [str(tmp_path / f"{number}.png") for number in range(5)]
    for frame, path in zip(frames, paths, strict=True):
        frame.save(path)
    single = [plain(run(frame)) for frame in frames]
    assert_same(plain(run(paths[1])), single[1])
    assert_same(plain(run(frames[1].convert("RGB"))), single[1])
    for several in (
        run(frames),
        run(frames, batch_size=2),
        run(paths, batch_size=3),
        list(run((frame for frame in frames), batch_size=2)),
    ):
        assert_same(plain(several), single)


@pytest.mark.parametrize("folder", TASKS)
def test_a_deep_image_is_said_to_be_saturated_and_scaled_to_8_bits_is_as_good(pipelines, folder, said):
    pixels = np.asarray(scene(1, (90, 80)).image) - np.uint8(65)  # so dark that the clipped frame is not all white
    frame, deep = Image.fromarray(pixels), Image.fromarray(np.rint(pixels * (4095 / 255)).astype(np.uint16))
    assert deep.mode == "I;16" and np.asarray(deep.convert("RGB")).min() < 255
    pipelines[folder](deep)
    assert any("looks saturated" in message and "scale_to_8_bit" in message for message in said), said
    said.clear()
    scaled = Image.fromarray(scale_to_8_bit(np.asarray(deep), bits_stored=12).round().astype(np.uint8))
    assert_same(plain(pipelines[folder](scaled)), plain(pipelines[folder](frame)))
    assert not any("saturated" in message for message in said)


def test_the_classifier_takes_deep_arrays_without_loss(saved):
    frame = np.asarray(scene(1, (90, 80)).image)
    run = pipeline("image-classification", str(saved / "classification"))
    run.image_processor.bits_stored = 16
    # deep frames keep the overshoot of the bicubic filter, which 8 bits clip
    assert_same(run(frame.astype(np.uint16) * 257), run(Image.fromarray(frame)), tolerance=1e-2)


# Arguments -----------------------------------------------------------------------------------------------------------


def test_the_threshold_selects_boxes_by_score(pipelines):
    run, frame = pipelines["detection"], scene(101, (180, 120)).image
    everything = run(frame, threshold=0.0)
    scores = [one["score"] for one in everything]
    assert len(scores) > 3 and scores == sorted(scores, reverse=True) and 0 <= scores[-1] < scores[0] <= 1
    assert_same(run(frame, threshold=scores[2]), everything[:2])
    assert_same(run(frame), [one for one in everything if one["score"] > 0.5])
    assert run(frame, threshold=1.0) == []


def test_the_threshold_of_the_segmentation_pipeline_is_not_for_maps_of_classes(pipelines):
    run, made = pipelines["segmentation"], scene(101, (90, 80))
    assert_same(plain(run(made.image, threshold=0.999)), plain(run(made.image, subtask="semantic")))
    with pytest.raises(ValueError, match="Subtask panoptic is not supported"):
        run(made.image, subtask="panoptic")


def test_the_classifiers_arguments_choose_how_many_labels_and_which_scores(pipelines):
    run, frame = pipelines["classification"], scene(101, (90, 80)).image
    (best,) = run(frame, top_k=1)
    assert best["label"] == "bright thing" and best["score"] > 0.5
    raw = {one["label"]: one["score"] for one in run(frame, function_to_apply="none")}
    ratio = np.exp(raw["bright thing"] - raw["empty"])
    assert best["score"] == pytest.approx(ratio / (1 + ratio), abs=1e-5)


@pytest.mark.parametrize("folder", TASKS)
def test_bfloat16_finds_what_float32_finds(saved, pipelines, folder):
    run, made = pipeline(TASKS[folder][0], str(saved / folder), dtype=torch.bfloat16), scene(101, (90, 80))
    assert next(run.model.parameters()).dtype == torch.bfloat16
    result, expected = run(made.image), pipelines[folder](made.image)
    if TASKS[folder][0] == "image-segmentation":
        assert overlap(np.asarray(result[1]["mask"]) > 0, np.asarray(expected[1]["mask"]) > 0) > 0.9
    elif folder == "detection":
        best, *_ = run(made.image, threshold=0.3)
        assert box_iou(best["box"], made.box, made.image.size) > 0.6
    else:
        assert_same(result, expected, tolerance=0.1)


# Routes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", TASKS)
def test_a_saved_folder_makes_a_pipeline_without_a_word_in_the_log(saved, models, folder, said):
    run = pipeline(TASKS[folder][0], str(saved / folder))
    run(scene(101, (90, 80)).image)
    assert type(run.model) is type(models[folder])
    assert said == []


def test_published_folders_make_the_same_pipelines_by_their_own_code_without_a_word_in_the_log(
    models, pipelines, tmp_path
):
    processor = VasoMIMImageProcessor(size={"height": 64, "width": 64})
    for name, model in models.items():
        export(model, processor, tmp_path / name)
    frame = scene(101, (90, 80)).image
    frame.save(tmp_path / "frame.png")
    (tmp_path / "clean_process.py").write_text(CLEAN_PROCESS)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    tasks = json.dumps({name: task for name, (task, _) in TASKS.items()})
    # -I: neither the working folder nor the user's packages are importable
    command = [sys.executable, "-I", "-W", "error", str(tmp_path / "clean_process.py"), str(tmp_path), tasks]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    outcome = json.loads((tmp_path / "results.json").read_text())
    assert outcome["said"] == [] and "not supported" not in process.stderr
    for name, run in pipelines.items():
        expected = run(frame)
        for one in expected if TASKS[name][0] == "image-segmentation" else []:
            one["mask"] = [list(one["mask"].size), one["mask"].tobytes().hex()]
        assert_same(outcome["results"][name], expected)
