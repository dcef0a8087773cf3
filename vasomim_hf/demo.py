"""End-to-end demonstration on synthetic angiograms: segmentor, pre-training, export, loading, and a picture."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

from .data.reading.files import read_frame
from .data.synthetic.angiogram import write_folder
from .data.vesselness import vessel_mask
from .engine.drawing import hide_patches, picture_grid, to_grey
from .engine.pretraining.segmentor_training import train_segmentor
from .engine.pretraining.vasomim_training import pretrain
from .engine.run_config import PretrainRun, SegmentorRun, make_run
from .folders import atomic_file
from .model_card import TrainingData, TrainingRecord, model_card
from .publishing import export


logger = logging.getLogger(__name__)

NUM_PICTURES = 4
# identifies folders written by the demonstration, which may be replaced
MARKER = ".vasomim-demo"
PARTS = ("frames", "runs", "model")


@dataclass(frozen=True)
class DemoResult:
    """Paths of the results of the demonstration.

    Args:
        model (`Path`): Folder for `AutoModel.from_pretrained` and `AutoImageProcessor.from_pretrained`.
        picture (`Path`): PNG with frame, vesselness, visible patches, reconstruction and vessels segmented in it.
        num_features (`int`): Length of the feature vector of a frame.
    """

    model: Path
    picture: Path
    num_features: int


def run_demo(
    output: str | Path,
    num_frames: int = 96,
    size: int = 512,
    epochs: tuple[int, int] = (20, 54),
    preset: str = "tiny",
) -> DemoResult:
    """Generate angiograms, train a segmentor on their vesselness, pre-train VasoMIM, and load and show the result.

    Args:
        output (`str` or `Path`):
            Output folder. Results of an earlier demonstration are replaced; nothing else is changed.
        num_frames (`int`, defaults to 96):
            Number of synthetic angiograms.
        size (`int`, defaults to 512):
            Side length of the frames in pixels.
        epochs (`tuple[int, int]`, defaults to `(20, 54)`):
            Epochs of segmentor training and of pre-training.
        preset (`str`, defaults to `"tiny"`):
            Model size.

    Returns:
        [`DemoResult`]

    Raises:
        ImportError: If the extras `data` and `training` are not installed.
        FileExistsError: If `output` contains a folder of the same name that was not written by a demonstration.
        ValueError: If a number is out of range.
    """
    output = Path(output)
    frames, runs, model_folder = _clear(output)
    logger.info("generating %d synthetic angiograms", num_frames)
    paths = write_folder(frames, num_frames, size=size)
    shared = {"data": str(frames), "cache_dir": str(runs / "cache"), "num_workers": 0, "tensorboard": False}
    # a process can only have one precision; fp32 is fast on every processor, bf16 only on some
    shared["mixed_precision"] = "no"
    segmentor = _train_segmentor(shared, runs / "segmentor", epochs[0])
    trained = _pretrain(shared, runs / "pretraining", epochs[1], segmentor, preset)
    _export(trained, model_folder, num_frames, epochs[1])
    return _show(model_folder, paths[:NUM_PICTURES], output / "picture.png")


def _clear(output: Path) -> list[Path]:
    """Remove the results of an earlier demonstration and return the folders to write."""
    parts = [output / name for name in PARTS]
    for folder in parts:
        if folder.exists() and not (output / MARKER).is_file():
            raise FileExistsError(
                f"{folder} exists and was not written by a demonstration. Choose another output folder."
            )
        shutil.rmtree(folder, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()
    return parts


def _train_segmentor(shared: dict[str, object], folder: Path, epochs: int) -> Path:
    logger.info("training the vessel segmentor")
    own = {"output_dir": str(folder), "epochs": epochs, "batch_size": 16, "save_every_epochs": epochs}
    return train_segmentor(make_run(SegmentorRun, {**shared, **own})).folder


def _pretrain(shared: dict[str, object], folder: Path, epochs: int, segmentor: Path, preset: str) -> Path:
    logger.info("pre-training VasoMIM")
    own = {
        "output_dir": str(folder),
        "preset": preset,
        "segmentor": str(segmentor),
        "epochs": epochs,
        "warmup_ratio": 0.05,
        "batch_size": 16,
        "base_learning_rate": 16e-3,  # absolute peak learning rate 1e-3
        "save_every_epochs": epochs,
        "picture_every_epochs": 0,
    }
    return pretrain(make_run(PretrainRun, {**shared, **own})).folder


def _export(trained: Path, folder: Path, num_frames: int, epochs: int) -> None:
    model = AutoModelForPreTraining.from_pretrained(trained)
    record = TrainingRecord(
        data=[TrainingData(name="synthetic angiograms", num_images=num_frames, licence="apache-2.0")],
        recipe={"epochs": epochs},
        command="vasomim demo",
        note="Demonstration on synthetic frames; not useful on real ones.",
    )
    card = model_card(model, training=record)
    export(model, AutoImageProcessor.from_pretrained(trained), folder, card=card)


@torch.no_grad()
def _show(folder: Path, paths: list[Path], picture: Path) -> DemoResult:
    """Load the folder as a user would, compute features, and draw inputs and predictions."""
    image_processor = AutoImageProcessor.from_pretrained(folder)
    frames = [read_frame(path) for path in paths]
    masks = [vessel_mask(frame).astype(np.uint8) * 255 for frame in frames]
    inputs = image_processor(frames, vesselness=masks, return_tensors="pt")
    features = AutoModel.from_pretrained(folder)(inputs["pixel_values"]).pooler_output

    model = AutoModelForPreTraining.from_pretrained(folder)
    noise = torch.rand(len(frames), int(np.prod(model.config.patch_grid)), generator=torch.Generator().manual_seed(0))
    output = model(**inputs, progress=1.0, noise=noise)
    statistics = (image_processor.image_mean, image_processor.image_std)
    grey = to_grey(inputs["pixel_values"], *statistics)
    visible = hide_patches(grey, output.mask, model.config.patch_grid)
    reconstruction = to_grey(output.reconstruction, *statistics)
    seen = model.segment(output.reconstruction).sigmoid()
    columns = [grey, inputs["vesselness"], visible, reconstruction, seen]
    with atomic_file(picture) as temporary:
        picture_grid(columns, ("frame", "vesselness", "visible", "reconstruction", "segmented vessels")).save(
            temporary
        )
    return DemoResult(model=folder, picture=picture, num_features=features.shape[1])
