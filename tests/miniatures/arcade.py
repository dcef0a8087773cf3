"""Small copies of ARCADE's two layouts, drawn by the synthetic generator: what the tests of readers read."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vasomim_hf.data.synthetic.angiogram import SEGMENT_IDS, SEGMENT_NAMES, SyntheticAngiogram, synthetic_angiogram


FOLDERS = {
    "final": {
        (part, split): (f"{part}/{split}", f"{split}.json")
        for part in ("syntax", "stenosis")
        for split in ("train", "val", "test")
    },
    "challenge": {
        ("syntax", "train"): ("dataset_phase_1/segmentation_dataset/seg_train", "seg_train.json"),
        ("syntax", "val"): ("dataset_phase_1/segmentation_dataset/seg_val", "seg_val.json"),
        ("syntax", "test"): ("dataset_final_phase/test_case_segmentation", "instances_default.json"),
        ("stenosis", "train"): ("dataset_phase_1/stenosis_dataset/sten_train", "sten_train.json"),
        ("stenosis", "val"): ("dataset_phase_1/stenosis_dataset/sten_val", "sten_val.json"),
        ("stenosis", "test"): ("dataset_final_phase/test_cases_stenosis", "instances_default.json"),
    },
}
NUM_FRAMES = {"train": 3, "val": 2, "test": 1}
# With these seeds, `syntax` has both sides in train, and `stenosis` has frames with several lesions and with none
FIRST_SEED = 25
ZOOM = 3


def outlines(mask: np.ndarray) -> list[list[float]]:
    """COCO polygons of a mask (height, width), one for each of its parts; holes are filled.

    They run a sixth of a pixel inside the pixels' edges, so that every way to fill them by centres gives the mask back.
    """
    import cv2

    large = np.kron(mask.astype(np.uint8), np.ones((ZOOM, ZOOM), np.uint8))
    found, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [np.round((contour.reshape(-1) + 0.5) / ZOOM, 2).tolist() for contour in found]


def bounds(polygons: list[list[float]]) -> list[float]:
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
    return [*points.min(axis=0).round(2).tolist(), *np.ptp(points, axis=0).round(2).tolist()]


def annotation(category: int, mask: np.ndarray) -> dict:
    polygons = outlines(mask)
    return {
        "category_id": category,
        "segmentation": polygons,
        "bbox": bounds(polygons),
        "area": float(mask.sum()),
        "iscrowd": 0,
    }


def annotations(frame: SyntheticAngiogram, part: str) -> list[dict]:
    """What ARCADE would say about a frame: one annotation for each segment, or for each stenosis."""
    if part == "syntax":
        return [annotation(int(i), frame.segment_mask == i) for i in np.unique(frame.segment_mask) if i]
    found = []
    for left, top, width, height in frame.boxes.astype(int):
        lesion = np.zeros_like(frame.stenosis_mask)
        window = np.s_[top : top + height, left : left + width]
        lesion[window] = frame.stenosis_mask[window]
        found.append(annotation(SEGMENT_IDS["stenosis"], lesion))
    return found


def write_split(folder: Path, json_name: str, part: str, seeds: range, size: int) -> dict[str, SyntheticAngiogram]:
    """Write one folder with `images` and `annotations`; frames are called 1.png, 2.png, ... as in ARCADE."""
    frames = {str(number): synthetic_angiogram(seed, size) for number, seed in enumerate(seeds, start=1)}
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    content: dict = {
        "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in SEGMENT_NAMES.items()],
        "images": [],
        "annotations": [],
    }
    for stem, frame in frames.items():
        Image.fromarray(frame.image).save(folder / "images" / f"{stem}.png")
        height, width = frame.image.shape
        content["images"].append({"id": int(stem), "width": width, "height": height, "file_name": f"{stem}.png"})
        for entry in annotations(frame, part):
            identity = {"id": len(content["annotations"]) + 1, "image_id": int(stem)}
            content["annotations"].append(identity | entry)
    (folder / "annotations" / json_name).write_text(json.dumps(content))
    return frames


def write_arcade(root: Path, layout: str = "final", size: int = 96) -> dict[str, SyntheticAngiogram]:
    """Write a miniature of ARCADE.

    Args:
        root (`Path`): Folder that gets `syntax` and `stenosis`, or `dataset_phase_1` and `dataset_final_phase`.
        layout (`str`): `"final"` or `"challenge"`.
        size (`int`): Of the frames, pixels.

    Returns:
        `dict[str, SyntheticAngiogram]`: Image id, such as `"syntax/train/1"`, -> what was drawn.
    """
    drawn, seed = {}, FIRST_SEED
    for (part, split), (folder, json_name) in FOLDERS[layout].items():
        seeds = range(seed, seed + NUM_FRAMES[split])
        seed = seeds.stop
        frames = write_split(root / folder, json_name, part, seeds, size)
        drawn |= {f"{part}/{split}/{stem}": frame for stem, frame in frames.items()}
    return drawn
