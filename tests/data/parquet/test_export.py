"""An exported data set is read by `load_dataset` alone, with every column as it was."""

from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as PillowImage

from vasomim_hf.data.parquet.export import dataset_digest, export_dataset
from vasomim_hf.data.parquet.png import encode_label_png


FEATURES = Features(
    {
        "image": Image(),
        "mask": Image(),
        "image_id": Value("string"),
        "label": ClassLabel(names=["left", "right"]),
        "objects": {"bbox": List(List(Value("float32"), length=4)), "category": List(Value("int64"))},
        "patient_id": Value("string"),
    }
)


def make(folder: Path, num: int, first: int = 0) -> Dataset:
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(first, first + num):
        frame = np.random.default_rng(number).integers(0, 255, (8, 10)).astype(np.uint8)
        path = folder / f"{number}.png"
        PillowImage.fromarray(frame).save(path)
        boxes = [[1.0, 2.0, 3.0, float(number)]] * (number % 3)
        rows.append(
            {
                "image": {"path": str(path), "bytes": None},
                "mask": {"path": None, "bytes": encode_label_png(frame > 99)},
                "image_id": f"set/{number}",
                "label": number % 2,
                "objects": {"bbox": boxes, "category": [0] * len(boxes)},
                "patient_id": None,
            }
        )
    return Dataset.from_list(rows, features=FEATURES)


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_gives_every_column_of_every_configuration_and_split(tmp_path: Path, streaming: bool):
    train, test = make(tmp_path / "frames", 5), make(tmp_path / "frames", 2, first=5)
    output = tmp_path / "out"
    report = export_dataset({"a": {"train": train, "test": test}, "b": {"test": test}}, output, about="# Mine")
    assert len(report) == 0
    cache = {} if streaming else {"cache_dir": str(tmp_path / "cache")}
    for config, split, original in [("a", "train", train), ("a", "test", test), ("b", "test", test)]:
        loaded = load_dataset(str(output), config, split=split, streaming=streaming, **cache)
        assert loaded.features == FEATURES
        rows = list(loaded)
        assert len(rows) == len(original)
        for row, expected in zip(rows, original, strict=True):
            for name in ("image", "mask"):
                assert np.array_equal(np.asarray(row.pop(name)), np.asarray(expected.pop(name)))
            assert row == expected
    assert "# Mine" in (output / "README.md").read_text()


def test_files_are_put_in_byte_for_byte_without_their_folders(tmp_path: Path):
    dataset = make(tmp_path / "of-a-patient", 3)
    export_dataset({"a": {"train": dataset}}, tmp_path / "out", about="")
    kept = (tmp_path / "out" / "a" / "data" / "train-00000-of-00001.parquet").read_bytes()
    assert b"of-a-patient" not in kept
    loaded = load_dataset(str(tmp_path / "out"), "a", split="train", cache_dir=str(tmp_path / "cache"))
    stored = loaded.cast_column("image", Image(decode=False))[2]["image"]
    assert stored == {"path": "2.png", "bytes": (tmp_path / "of-a-patient" / "2.png").read_bytes()}


def test_the_same_data_may_be_exported_again_and_other_data_not(tmp_path: Path):
    dataset = make(tmp_path / "frames", 4)
    export_dataset({"a": {"train": dataset}}, tmp_path / "out", about="")
    shard = tmp_path / "out" / "a" / "data" / "train-00000-of-00001.parquet"
    before = shard.stat().st_mtime_ns
    export_dataset({"a": {"train": make(tmp_path / "frames", 4)}}, tmp_path / "out", about="")
    assert shard.stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="different export"):
        export_dataset({"a": {"train": dataset.select([0, 1, 3])}}, tmp_path / "out", about="")
    with pytest.raises(FileExistsError, match="different export"):
        export_dataset({"b": {"train": dataset}}, tmp_path / "out", about="")
    (tmp_path / "frames2").mkdir()
    (tmp_path / "frames2" / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="README.md"):
        export_dataset({"b": {"train": dataset}}, tmp_path / "frames2", about="")


def test_a_damaged_or_missing_file_of_a_finished_export_is_noticed(tmp_path: Path):
    dataset = make(tmp_path / "frames", 4)
    export_dataset({"a": {"train": dataset}}, tmp_path / "out", about="")
    shard = tmp_path / "out" / "a" / "data" / "train-00000-of-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RuntimeError, match="train-00000-of-00001.parquet is missing or damaged"):
        export_dataset({"a": {"train": dataset}}, tmp_path / "out", about="")
    shard.unlink()
    with pytest.raises(RuntimeError, match="is missing or damaged"):
        export_dataset({"a": {"train": dataset}}, tmp_path / "out", about="")


def test_a_finished_export_holds_nothing_but_its_data(tmp_path: Path):
    export_dataset({"a": {"train": make(tmp_path / "of-a-patient", 3)}}, tmp_path / "out", about="")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["README.md", "export.json", "train-00000-of-00001.parquet"]
    assert all(b"of-a-patient" not in path.read_bytes() for path in files)


def test_the_digest_is_that_of_the_content(tmp_path: Path):
    dataset = make(tmp_path / "frames", 4)
    digest = dataset_digest(dataset)
    assert digest == dataset_digest(make(tmp_path / "copy", 4))
    changed = dataset.map(lambda row: {"patient_id": "x"}, features=FEATURES)
    assert digest != dataset_digest(changed)
    (tmp_path / "frames" / "2.png").write_bytes((tmp_path / "frames" / "2.png").read_bytes() + b" ")
    assert digest != dataset_digest(dataset)
