"""A folder of own files becomes Parquet with masks, and is trained from as it is."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vasomim_hf.data.own_frames import export_frames, load_frames
from vasomim_hf.data.parquet.read import ParquetFrames, find_shards
from vasomim_hf.data.reading.files import to_uint8
from vasomim_hf.data.reading.frame import ReadOptions
from vasomim_hf.data.sources import open_source
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram, write_folder
from vasomim_hf.data.vesselness import VesselnessOptions, vessel_mask

from .test_own_frames import SALT, dicom


datasets = pytest.importorskip("datasets")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    write_folder(folder, 3, size=96)
    run = np.stack([synthetic_angiogram(seed, size=96).image for seed in range(2)])
    np.savez(folder / "run.npz", pixel_array=run)
    dicom(folder / "Smith John" / "run.dcm")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("mine")
    return folder


def load(folder: Path, split: str = "train"):
    return datasets.load_dataset(str(folder), split=split, cache_dir=str(folder.parent / "datasets"))


def test_rows_are_those_of_load_frames_with_the_mask_of_the_filter(source: Path, tmp_path: Path):
    options = ReadOptions(salt=SALT)
    report = export_frames(source, tmp_path / "out", options=options, vesselness=VesselnessOptions(border=4))
    assert [fault.name for fault in report] == ["notes.txt", "broken.png"]
    expected = load_frames(source, options=options)
    rows = load(tmp_path / "out")
    assert len(rows) == len(expected) == 8
    for row, other in zip(rows, expected, strict=True):
        mask = np.asarray(row.pop("vesselness"))
        pixels = np.asarray(row.pop("image"))
        assert np.array_equal(pixels, np.asarray(other.pop("image")))
        assert np.array_equal(mask, vessel_mask(to_uint8(pixels, row["bits_stored"]), border=4))
        assert row == other
    assert "8" in (tmp_path / "out" / "README.md").read_text()


def test_no_name_of_a_folder_gets_into_the_files(source: Path, tmp_path: Path):
    export_frames(source, tmp_path / "out", options=ReadOptions(salt=SALT))
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(path.name for path in written) == ["README.md", "export.json", "train-00000-of-00001.parquet"]
    for path in written:
        content = path.read_bytes()
        assert not any(word.encode() in content for word in ("Smith", SALT, str(tmp_path), "broken"))
    export_frames(source, tmp_path / "named", keep_names=True)
    assert "Smith John/run.dcm" in load(tmp_path / "named")["name"]


def test_text_inside_a_picture_file_does_not_get_in_even_with_names(tmp_path: Path):
    (tmp_path / "source").mkdir()
    picture = Image.fromarray(synthetic_angiogram(0, size=96).image)
    exif = Image.Exif()
    exif[270] = "MUSTER^MARIA"
    picture.save(tmp_path / "source" / "a.jpg", exif=exif)
    export_frames(tmp_path / "source", tmp_path / "out", keep_names=True)
    assert all(b"MUSTER" not in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert load(tmp_path / "out")["name"] == ["a.jpg"]


def test_an_edited_file_of_the_same_size_is_another_export(tmp_path: Path):
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "a.bmp"
    pixels = synthetic_angiogram(0, size=256).image.copy()
    Image.fromarray(pixels).save(path)
    export_frames(tmp_path / "source", tmp_path / "out")
    pixels[20, 20] ^= 255
    Image.fromarray(pixels).save(path)
    with pytest.raises(FileExistsError, match="something else|different"):
        export_frames(tmp_path / "source", tmp_path / "out")


def test_an_export_is_trained_from_with_and_without_a_cache(source: Path, tmp_path: Path):
    export_frames(source, tmp_path / "out")
    frames = open_source(str(tmp_path / "out"))
    stored = ParquetFrames(find_shards(str(tmp_path / "out")))
    assert len(frames) == len(stored) == 8
    for index in (0, 4, 7):
        frame = frames.frame(index)
        assert frame.dtype == np.uint8
        assert np.array_equal(stored.frame(index), frame)
        assert np.array_equal(stored.vesselness(index) > 0, frames.vesselness(index, frame.shape))


def test_deep_frames_are_scaled_by_the_depth_that_the_file_states(tmp_path: Path):
    # 12 bits of which the levels fill 9: inferred, they would be scaled to eight times the brightness
    dark = (synthetic_angiogram(0, size=96).image.astype(np.uint16)) * 2
    (tmp_path / "source").mkdir()
    Image.fromarray(dark).save(tmp_path / "source" / "a.png")
    export_frames(tmp_path / "source", tmp_path / "out", options=ReadOptions(bits_stored=12))
    expected = to_uint8(dark, 12)
    assert np.array_equal(open_source(str(tmp_path / "out")).frame(0), expected)
    assert np.array_equal(ParquetFrames(find_shards(str(tmp_path / "out"))).frame(0), expected)
    stated = ParquetFrames(find_shards(str(tmp_path / "out")), bits_stored=16)
    assert np.array_equal(stated.frame(0), to_uint8(dark, 16))


def test_a_second_call_does_nothing_and_other_frames_or_options_are_refused(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    export_frames(source, tmp_path / "out", options=ReadOptions(salt=SALT))
    (shard,) = (tmp_path / "out" / "data").iterdir()
    before = shard.stat().st_mtime_ns
    with caplog.at_level(logging.WARNING):
        assert len(export_frames(source, tmp_path / "out", options=ReadOptions(salt=SALT))) == 0
    assert "already exported; 1 faults" in caplog.text
    assert shard.stat().st_mtime_ns == before
    for changed in (
        {"options": ReadOptions(salt=SALT + "!")},
        {"options": ReadOptions(salt=SALT), "keep_names": True},
    ):
        with pytest.raises(FileExistsError, match="something else|different"):
            export_frames(source, tmp_path / "out", **changed)
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(source / "synthetic_000000.png")
    with pytest.raises(FileExistsError, match="something else|different"):
        export_frames(source, tmp_path / "out", options=ReadOptions(salt=SALT))


def test_a_folder_without_readable_frames_is_an_error_with_the_reason(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="no readable frames.*broken.png"):
        export_frames(tmp_path / "a", tmp_path / "out")
    (tmp_path / "a" / "broken.png").unlink()
    with pytest.raises(ValueError, match="no image, array, video or DICOM"):
        export_frames(tmp_path / "a", tmp_path / "out2")


def test_a_missing_decoder_stops_the_export_before_it_begins(source: Path, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as hidden:
        hidden.setitem(sys.modules, "pydicom", None)
        with pytest.raises(ImportError, match=r"pip install -e '.\[dicom\]'"):
            export_frames(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_frames(source, tmp_path / "out")
    assert len(load(tmp_path / "out")) == 8
