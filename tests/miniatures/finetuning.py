"""Tiny runs of fine-tuning on synthetic angiograms, shared by their tests."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram
from vasomim_hf.engine.finetuning.run import ClassificationRun, DetectionRun, FinetuneRun, SegmentationRun
from vasomim_hf.engine.run_config import make_run


SIZE = 64
ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
HEADS = {
    SegmentationRun: {"segmentation_hidden_size": 16, "detail_stem_channels": 8},
    DetectionRun: {"detection_channels": 16, "detection_num_convs": 1},
    ClassificationRun: {},
}
TASKS = {SegmentationRun: "vessel", DetectionRun: "stenosis_boxes", ClassificationRun: "side"}


def frames(count: int, first_seed: int = 0) -> list:
    return [synthetic_angiogram(seed, size=SIZE) for seed in range(first_seed, first_seed + count)]


def write_table(folder: Path, columns: dict[str, dict[str, list]], features: dict[str, Any] | None = None) -> Path:
    """Save splits, name -> columns, as `DatasetDict.save_to_disk` does; pictures are arrays."""
    saved = {}
    for split, content in columns.items():
        ready = {
            name: [Image.fromarray(item) if isinstance(item, np.ndarray) else item for item in items]
            for name, items in content.items()
        }
        dataset = datasets.Dataset.from_dict(ready)
        saved[split] = dataset.cast(datasets.Features({**dataset.features, **features})) if features else dataset
    datasets.DatasetDict(saved).save_to_disk(folder)
    return folder


def vessel_table(folder: Path, train: int = 6, val: int = 3) -> Path:
    splits = {"train": frames(train), "val": frames(val, first_seed=50)}
    columns = {
        split: {
            "image": [item.image for item in items],
            "mask": [(item.segment_mask > 0).astype(np.uint8) for item in items],
            "image_id": [f"{split}-{number}" for number in range(len(items))],
        }
        for split, items in splits.items()
    }
    return write_table(folder, columns)


def run_of(kind: type[FinetuneRun], data: Path, output_dir: Path, **keys: Any) -> Any:
    """A run on a table, with a tiny model, in float32."""
    values = {
        "data": str(data),
        "output_dir": str(output_dir),
        "cache_dir": str(output_dir.parent / "cache"),
        "dataset": "table",
        "task": TASKS[kind],
        "image_size": SIZE,
        "epochs": 2,
        "batch_size": 2,
        "num_evaluations": 2,
        "mixed_precision": "no",
        "log_every_steps": 1,
        "tensorboard": False,
        "picture_every_epochs": 0,
        "model": {**ENCODER, "image_size": SIZE, **HEADS[kind]},
        **keys,
    }
    if kind is SegmentationRun:
        values.setdefault("labels", {0: "background", 1: "vessel"})
    return make_run(kind, values)
