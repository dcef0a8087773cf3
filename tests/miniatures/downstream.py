"""Miniatures of the published downstream sets in their original layouts, drawn by the synthetic generator.

For tests only: they show what a reader meets, not what an angiogram looks like. Each writer returns the set's folder.
"""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, IterableDataset, load_dataset
from datasets.table import embed_table_storage
from huggingface_hub import DatasetCard
from PIL import Image

from vasomim_hf import VasoMIMImageProcessor
from vasomim_hf.data.splits import split_by_group
from vasomim_hf.data.synthetic.angiogram import SyntheticAngiogram, synthetic_angiogram


SIZE = 64
# Boxes as left, top, right, bottom
STENOSIS_BOXES = {
    "14_002_1_0001": [(10, 12, 20, 30)],
    "14_002_1_0002": [(11, 12, 21, 30)],
    "14_002_2_0010": [(5, 6, 15, 16), (40, 41, 50, 61)],
    "14_003_1_0007": [(1, 2, 3, 4)],
    "14_004_5_0016": [(30, 30, 60, 60)],
}
STENOSIS_SPLIT = {
    "train": ["14_002_1_0001", "14_002_2_0010", "14_004_5_0016"],
    "test": ["14_003_1_0007", "14_002_1_0002"],
}


@cache
def frame(seed: int, size: int | tuple[int, int] = SIZE) -> SyntheticAngiogram:
    return synthetic_angiogram(seed, size)


def write_image(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_pair(image: Path, mask: Path, seed: int) -> np.ndarray:
    """Write a frame and its mask of 0 and 255; return the mask."""
    drawn = frame(seed)
    write_image(image, drawn.image)
    write_image(mask, drawn.vessel_mask.astype(np.uint8) * 255)
    return drawn.vessel_mask


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def damage(path: Path) -> None:
    """Keep the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


# Danilov et al. -----------------------------------------------------------------------------------------------------


def voc(
    boxes: Sequence[tuple[float, ...]], size: tuple[int, int] | None = (SIZE, SIZE), name: str = "Stenosis"
) -> str:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    keys = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box, strict=True))
        + "</bndbox></object>"
        for box in boxes
    )
    return f"<annotation><folder>dataset</folder>{stated}{objects}</annotation>"


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        writer.writerows(rows)
    return path


def table_rows(stems: Sequence[str]) -> list[list[object]]:
    return [[f"{stem}.bmp", SIZE, SIZE, "Stenosis", *box] for stem in stems for box in STENOSIS_BOXES[stem]]


def write_stenosis(root: Path) -> Path:
    for seed, (stem, boxes) in enumerate(STENOSIS_BOXES.items()):
        write_image(root / "dataset" / f"{stem}.bmp", frame(seed).image)
        write_text(root / "dataset" / f"{stem}.xml", voc(boxes))
    for split, stems in STENOSIS_SPLIT.items():
        write_table(root / f"{split}_labels.csv", table_rows(stems))
    write_image(root / "video_test" / "14_009_1_0001.bmp", frame(90).image)
    return root


# CADICA -------------------------------------------------------------------------------------------------------------


def write_cadica(root: Path) -> Path:
    """Patient 1 with a lesion in v1 and none in v2, patient 10 with a lesion in v3 and a video that was not selected."""
    root = root / "CADICA"
    boxes = {
        "p1_v1_00003": "10 12 20 8 p20_50\n",
        "p1_v1_00004": "11 12 20 8 p20_50\n30 31 5 6 p100\n",
        "p10_v3_00001": "1 2 3 4 p99\n",
    }
    videos = {"p1_v1": 5, "p1_v2": 3, "p10_v3": 2}
    for name, number in videos.items():
        video = root / "selectedVideos" / name.replace("_", "/")
        for index in range(1, number + 1):
            write_image(video / "input" / f"{name}_{index:05d}.png", frame(index).image)
        labelled = [stem for stem in boxes if stem.startswith(f"{name}_")]
        for stem in labelled:
            write_text(video / "groundtruth" / f"{stem}.txt", boxes[stem])
        if labelled:
            write_text(video / "groundtruth" / f"{name}_groundTruthTable.mat", "")
        write_text(video / f"{name}_selectedFrames.txt", "\n".join(labelled or [f"{name}_00002"]))
    write_text(root / "selectedVideos/p1/lesionVideos.txt", "v1\n")
    write_text(root / "selectedVideos/p1/nonlesionVideos.txt", "v2\n")
    write_text(root / "selectedVideos/p10/lesionVideos.txt", "v3\n")
    write_text(root / "selectedVideos/p10/nonlesionVideos.txt", "")
    write_image(root / "nonselectedVideos/p10/v1/input/p10_v1_00001.png", frame(7).image)
    write_text(root / "metadata.xlsx", "")
    return root


# XCAD, XCAV, DCA1 ---------------------------------------------------------------------------------------------------


def write_xcad(root: Path) -> tuple[Path, dict[str, np.ndarray]]:
    root = root / "XCAD"
    masks = {
        stem: write_pair(root / "test/images" / f"{stem}.png", root / "test/masks" / f"{stem}.png", seed)
        for seed, stem in enumerate(["12241_33", "12241_4", "977_10"])
    }
    for seed in range(4):
        write_image(root / "train/trainB" / f"000_PPA_44_PSA_00_{seed}.png", frame(20 + seed).image)
    write_image(root / "train/trainA/0.png", frame(30).vessel_mask.astype(np.uint8) * 255)
    write_image(root / "train/trainC/001_PPA_-30_PSA_20_1.png", frame(31).image)
    return root, masks


def write_xcav(root: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Two patients with a run each; two frames of the first and one of the second have masks."""
    root = root / "XACV"
    masks = {}
    for patient, run, labelled in (("CVAI-2828", "RAO2_CRA32", (1, 3)), ("CVAI-2829", "LAO44_CRA29", (0,))):
        name = f"{patient}{run}"
        for index in range(4):
            drawn = frame(index + 10 * len(labelled))
            write_image(root / patient / "images" / name / f"{index:05d}.png", drawn.image)
            if index in labelled:
                mask = drawn.vessel_mask
                masks[f"{patient}/{name}/{index:05d}"] = mask
                pixels = mask.astype(np.uint8) * 255
                write_image(root / patient / "ground_truth" / name / f"{index:05d}.png", pixels)
                catheter = root / patient / "ground_truth" / f"{name}CATH" / f"{index:05d}.png"
                write_image(catheter, 255 - pixels)
    return root, masks


def write_dca1(root: Path) -> tuple[Path, dict[str, np.ndarray]]:
    root = root / "Database_134_Angiograms"
    masks = {
        stem: write_pair(root / f"{stem}.pgm", root / f"{stem}_gt.pgm", int(stem)) for stem in ("10", "1", "2", "134")
    }
    return root, masks


# What all sets are held to ------------------------------------------------------------------------------------------


def faults(report: Iterable[tuple[str, str]]) -> "dict[str, Begins]":
    """Reported reasons by name; a reason equals a text that it begins with."""
    found = list(report)
    names = [name for name, _ in found]
    assert len(names) == len(set(names)), found
    return {name: Begins(reason) for name, reason in found}


class Begins(str):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and other != "" and self.startswith(other)

    __hash__ = str.__hash__


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with pixels instead of images."""
    return {key: np.asarray(value).tolist() if key in ("image", "mask") else value for key, value in row.items()}


def check_contract(load: Callable[..., Any], root: Path, tmp_path: Path, *, expected: str, **options: Any) -> None:
    """A downstream set has the common columns, streams the same rows, is found one level up, and refuses other paths."""
    rows = [plain(row) for row in load(root, **options)]
    common = {"image", "image_id", "patient_id", "study_id", "frame_index", "width", "height"}
    assert all(common <= row.keys() and ("mask" in row) != ("objects" in row) for row in rows)
    assert len({row["image_id"] for row in rows}) == len(rows) > 1

    stream = load(root, streaming=True, **options)
    assert isinstance(stream, IterableDataset)
    assert [plain(row) for row in stream] == rows
    assert [row["image_id"] for row in load(root.parent, **options)] == [row["image_id"] for row in rows]

    cache = tmp_path / "cache"
    load(root, cache_dir=cache, **options)
    assert len(list(cache.glob("*.arrow"))) == 1

    with pytest.raises(FileNotFoundError, match=re.escape(expected)):
        load(tmp_path / "absent", **options)
    archive = write_text(tmp_path / "other" / "set.zip", "PK")
    with pytest.raises(ValueError, match=f"Unpack the archive first.*{re.escape(expected)}"):
        load(archive, **options)
    with pytest.raises(ValueError, match=rf"holds set\.zip \(unpack the archive first\).*{re.escape(expected)}"):
        load(archive.parent, **options)


def through_parquet(dataset: Dataset, tmp_path: Path) -> Dataset:
    """The same data set from a Parquet file that holds its images."""
    whole = dataset.with_format("arrow").map(embed_table_storage, batched=True, load_from_cache_file=False)
    path = tmp_path / "parquet" / "train.parquet"
    path.parent.mkdir()
    whole.with_format(None).to_parquet(path)
    return load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "datasets"))


def training_batch(dataset: Dataset, tmp_path: Path) -> Any:
    """Raw files to Parquet, to `load_dataset`, to a batch for a model."""
    loaded = through_parquet(dataset, tmp_path)
    assert [plain(row) for row in loaded] == [plain(row) for row in dataset]
    processor = VasoMIMImageProcessor(size={"height": 224, "width": 224})
    maps = {"segmentation_maps": loaded["mask"][:]} if "mask" in loaded.column_names else {}
    return processor(images=loaded["image"][:], **maps, return_tensors="pt")


def check_group_split(dataset: Dataset, column: str) -> None:
    """A split by groups shares none of them and loses no row."""
    parts = split_by_group(dataset, by=(column,), fractions={"train": 0.5, "test": 0.5})
    groups = [set(part[column]) for part in parts.values()]
    assert sum(len(part) for part in parts.values()) == len(dataset)
    assert sum(len(group) for group in groups) == len(set(dataset[column]))


SECTIONS = ["Description", "Source", "Licence", "Citation", "Counts", "Columns", "Data leakage", "Limits"]


def check_card(name: str, dataset: Dataset) -> None:
    """The card of a set has a valid head, the sections of all cards in their order, and the columns that are loaded."""
    card = DatasetCard.load(Path(__file__).parents[2] / "model_cards" / "data" / f"{name}.md")
    head = card.data.to_dict()
    assert head["license"] in ("other", "unknown") and head["pretty_name"]
    assert head["task_categories"] == ["image-segmentation" if "mask" in dataset.column_names else "object-detection"]
    assert head["size_categories"][0] in ("n<1K", "1K<n<10K")
    assert re.findall(r"^## (.*)$", card.text, flags=re.MULTILINE) == SECTIONS
    table = card.text.split("## Columns")[1].split("## ")[0]
    told = [
        column for line in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for column in re.findall(r"`(\w+)`", line)
    ]
    assert told == dataset.column_names
