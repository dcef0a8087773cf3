"""Own files as a data set: rows, ids, privacy, and bad files among good ones."""

import hashlib
import io
import json
import logging
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vasomim_hf.data.faults import FaultReport
from vasomim_hf.data.frame_digest import frame_digest
from vasomim_hf.data.own_frames import load_frames
from vasomim_hf.data.reading.frame import ReadOptions
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram


datasets = pytest.importorskip("datasets")
pydicom = pytest.importorskip("pydicom")

SALT = "a salt of sixteen letters"
PLAIN = ["image", "bits_stored", "width", "height", "image_id", "frame_index", "num_frames", "frame_time_ms"]
PLAIN += ["imager_pixel_spacing_mm", "pixel_spacing_mm", "primary_angle", "secondary_angle"]
PLAIN += ["patient_id", "study_id", "series_id", "sha256"]


@cache
def grey(seed: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return synthetic_angiogram(seed, size=size).image


def deep(num_frames: int = 3) -> np.ndarray:
    return np.stack([np.roll(grey().astype(np.uint16) * 16, i, axis=0) for i in range(num_frames)])


def picture(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def dicom(path: Path, **tags: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    pixels = deep()
    known = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.12.1",
        "SOPInstanceUID": "1.2.826.0.1.55555.3",
        "Modality": "XA",
        "PatientID": "PID-778899",
        "StudyInstanceUID": "1.2.826.0.1.55555.1",
        "SeriesInstanceUID": "1.2.826.0.1.55555.2",
        "NumberOfFrames": len(pixels),
        "Rows": pixels.shape[1],
        "Columns": pixels.shape[2],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "FrameTime": 66.0,
        "ImagerPixelSpacing": [0.3, 0.25],
        "PositionerPrimaryAngle": -30.0,
    } | tags
    for name, value in known.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every kind of file, in sub-folders."""
    root = tmp_path / "frames"
    picture(root / "a.png", grey())
    picture(root / "b" / "deep.tif", deep()[0])
    dicom(root / "c" / "run.dcm")
    np.savez(root / "d.npz", pixel_array=np.stack([grey(1), grey(2)]))
    return root


# Rows


def test_a_folder_of_every_kind_becomes_rows_in_the_order_of_names(folder: Path) -> None:
    report = FaultReport()
    rows = load_frames(folder, options=ReadOptions(salt=SALT), report=report)
    assert isinstance(rows, datasets.Dataset) and rows.column_names == PLAIN and not len(report)
    frames = [grey(), deep()[0], *deep(), grey(1), grey(2)]
    assert len(rows) == len(frames)
    for row, frame in zip(rows, frames, strict=True):
        assert np.array_equal(np.asarray(row["image"]), frame)
        assert row["image"].mode == ("L" if frame.dtype == np.uint8 else "I;16")
        assert (row["height"], row["width"]) == frame.shape == (48, 64)
        assert row["sha256"] == frame_digest(frame).hex()
    assert rows["frame_index"][:] == [0, 0, 0, 1, 2, 0, 1] and rows["num_frames"][:] == [1, 1, 3, 3, 3, 2, 2]
    assert rows["bits_stored"][:] == [8, 12, 12, 12, 12, 8, 8]


def test_what_a_run_says_of_itself_is_in_its_rows_and_null_elsewhere(folder: Path) -> None:
    rows = load_frames(folder, options=ReadOptions(salt=SALT))
    run, plain = rows[2], rows[0]
    assert run["frame_time_ms"] == 66 and run["imager_pixel_spacing_mm"] == [0.3, 0.25]
    assert run["primary_angle"] == -30 and run["secondary_angle"] is None and run["pixel_spacing_mm"] is None
    assert len({run["patient_id"], run["study_id"], run["series_id"], None}) == 4
    assert {plain[name] for name in ("frame_time_ms", "primary_angle", "patient_id", "study_id")} == {None}


def test_streaming_gives_the_same_rows(folder: Path) -> None:
    rows = load_frames(folder, streaming=True)
    assert isinstance(rows, datasets.IterableDataset)
    for row, other in zip(rows, load_frames(folder), strict=True):
        assert np.array_equal(np.asarray(row.pop("image")), np.asarray(other.pop("image"))) and row == other


def test_streaming_reads_nothing_before_it_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vasomim_hf.data.own_frames.read_frames", lambda *_: pytest.fail("read"))
    load_frames(folder, streaming=True)


def test_a_single_file_is_a_data_set_too(folder: Path) -> None:
    assert len(load_frames(folder / "c" / "run.dcm")) == 3
    assert len(load_frames(str(folder / "a.png"))) == 1


def test_the_hash_is_that_of_size_type_and_levels() -> None:
    expected = hashlib.sha256(b"48x64:uint16" + deep()[0].astype("<u2").tobytes()).hexdigest()
    assert frame_digest(deep()[0]).hex() == frame_digest(np.asfortranarray(deep()[0])).hex() == expected


def test_rows_keep_no_metadata_of_the_picture_files(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Patient", "Zebediah")
    picture(tmp_path / "a.png", grey(), pnginfo=text)
    rows = load_frames(tmp_path).cast_column("image", datasets.Image(decode=False))
    assert rows[0]["image"]["path"] is None and b"Zebediah" not in rows[0]["image"]["bytes"]


# Names and ids


def test_names_are_kept_on_request_and_plain_files_are_then_not_copied(folder: Path) -> None:
    picture(folder / "e.jpg", grey(3))
    picture(folder / "f.jpg", grey(3), exif=turned())
    rows = load_frames(folder, keep_names=True)
    assert rows.column_names == [*PLAIN, "name"]
    assert rows["name"][:] == ["a.png", "b/deep.tif", *["c/run.dcm"] * 3, "d.npz", "d.npz", "e.jpg", "f.jpg"]
    stored = rows.cast_column("image", datasets.Image(decode=False))["image"][:]
    assert [image["path"] is not None for image in stored] == [True, *[False] * 6, True, False]
    for row in rows:
        assert frame_digest(np.asarray(row["image"])).hex() == row["sha256"]


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("salt", [None, SALT])
def test_image_ids_are_unique_and_the_same_wherever_the_folder_lies(folder: Path, salt: str | None) -> None:
    shutil.copy(folder / "a.png", folder / "copy.png")
    options = ReadOptions(salt=salt)
    ids = load_frames(folder, options=options)["image_id"][:]
    assert len(set(ids)) == len(ids) == 8
    shutil.copytree(folder, folder.parent / "moved")
    assert load_frames(folder.parent / "moved", options=options)["image_id"][:] == ids
    (folder / "0.png").write_bytes((folder / "a.png").read_bytes())
    assert load_frames(folder, options=options)["image_id"][1:] == ids


def test_image_ids_cannot_be_guessed_from_names(tmp_path: Path) -> None:
    ids = set()
    for i, pixels in enumerate((grey(1), grey(2))):
        ids |= {load_frames(picture(tmp_path / str(i) / "Zebediah.png", pixels))["image_id"][0]}
    ids |= {load_frames(tmp_path / "0", options=ReadOptions(salt=salt))["image_id"][0] for salt in (SALT, SALT + "!")}
    assert len(ids) == 4


def test_a_missing_and_a_short_salt_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_frames(folder)["patient_id"][2] is None
    assert "No salt was given" in caplog.text
    caplog.clear()
    load_frames(folder, options=ReadOptions(salt="pepper"))
    assert "The salt has 6 characters" in caplog.text and "pepper" not in caplog.text
    caplog.clear()
    load_frames(folder, options=ReadOptions(salt=SALT))
    load_frames(folder / "a.png")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


SECRETS = {
    "PatientName": "Quux^Zebediah",
    "PatientBirthDate": "19310203",
    "StudyDate": "20240229",
    "InstitutionName": "Saint Nowhere Hospital",
    "AccessionNumber": "ACC-90210",
    "ImageComments": "seen by Faustus",
}
WORDS = ("Quux", "Zebediah", "19310203", "20240229", "Nowhere", "90210", "Faustus", "778899", "55555", "WARD-9")


@pytest.mark.parametrize("salt", [None, SALT])
@pytest.mark.parametrize("streaming", [False, True])
def test_nothing_that_identifies_a_patient_is_in_rows_files_or_logs(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    salt: str | None,
    streaming: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    root, cache = tmp_path / "in", tmp_path / "cache"
    path = dicom(root / "WARD-9" / "19310203" / "Quux_Zebediah.dcm", **SECRETS)
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x0029, "Quux private", create=True).add_new(0x01, "LO", "of Zebediah")
    dataset.save_as(path)
    rows = load_frames(root, streaming=streaming, cache_dir=cache, options=ReadOptions(salt=salt))
    raw = rows.cast_column("image", datasets.Image(decode=False))
    told = [repr(list(rows)), repr(list(raw)), repr(rows), caplog.text, *capfd.readouterr()]
    written = [path for path in cache.rglob("*") if path.is_file()] if cache.exists() else []
    told += [path.read_bytes().decode("latin-1") for path in written] + [str(path) for path in written]
    assert len(list(rows)) == 3 and bool(written) != streaming
    assert [word for word in WORDS if any(word in text for text in told)] == []


# Bad files among good ones


def bad_folder(root: Path) -> dict[str, str]:
    """Files that cannot be used, with a part of the reason for each."""
    whole = picture(root / "good.png", grey()).read_bytes()
    dicom(root / "bare.dcm")
    dataset = pydicom.dcmread(root / "bare.dcm")
    del dataset.PixelData
    dataset.save_as(root / "bare.dcm")
    dicom(root / "modality.dcm", Modality="CT")
    dicom(root / "film.dcm")
    dataset = pydicom.dcmread(root / "film.dcm")
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
    dataset.PixelData = pydicom.encaps.encapsulate([b"film"])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(root / "film.dcm", implicit_vr=False, little_endian=True)
    (root / "broken.dcm").write_bytes(b"hello")
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "notes.txt").write_text("hello")
    (root / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(100))
    np.savez(root / "key.npz", other=np.zeros(3))
    np.savez(root / "shape.npz", pixel_array=np.zeros((2, 3, 4, 5, 6)))
    np.savez(root / "object.npz", pixel_array=np.array([{}], dtype=object))
    (root / "bad.mp4").write_bytes(b"hello" * 100)
    (root / ".hidden.png").write_bytes(b"")
    return {
        "bare.dcm": "without pixels",
        "modality.dcm": "modality 'CT'",
        "film.dcm": "MPEG-4",
        "broken.dcm": "cannot be read as DICOM",
        "cut.png": "cannot be read as an image",
        "notes.txt": "is not an image, array, video or DICOM",
        "DICOMDIR": "is not an image, array, video or DICOM",
        "key.npz": "has no array",
        "shape.npz": "expected grey levels of shape",
        "object.npz": "pickled objects",
        "bad.mp4": "cannot be read as a video",
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_every_bad_file_is_named_with_its_reason_and_the_rest_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, streaming: bool
) -> None:
    pytest.importorskip("cv2")
    expected, report = bad_folder(tmp_path / "in"), FaultReport()
    rows = list(load_frames(tmp_path / "in", streaming=streaming, report=report))
    assert len(rows) == 1 and np.array_equal(np.asarray(rows[0]["image"]), grey())
    reasons = {fault.name: fault.reason for fault in report}
    if not streaming:
        assert reasons.keys() == expected.keys() and len(report) == len(expected)
        assert all(expected[name] in reason for name, reason in reasons.items())
        assert f"{len(expected)} faults in {len(expected) + 1} files" in caplog.text
        report.write(tmp_path / "report.json")
        assert len(json.loads((tmp_path / "report.json").read_text())) == len(expected)
    else:
        told = [name for name in expected if name in caplog.text or name in reasons]
        assert told == list(expected)


def test_of_a_cut_run_the_frames_before_the_damage_are_used_and_the_report_says_so(folder: Path) -> None:
    path = folder / "c" / "run.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    report = FaultReport()
    rows = load_frames(folder, report=report)
    assert len(rows) == 6 and rows["frame_index"][2:4] == [0, 1]
    ((name, reason),) = report
    assert name == "c/run.dcm" and "ends after 2 of 3 frames" in reason


def test_a_missing_package_is_a_fault_of_the_files_that_need_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    report = FaultReport()
    assert len(load_frames(folder, report=report)) == 4
    ((name, reason),) = report
    assert name == "c/run.dcm" and "pip install -e '.[dicom]'" in reason


def test_the_error_for_no_readable_frames_gives_the_reason(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"contains no readable frames.*cut.png: FrameReadError.*as an image"):
        load_frames(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no readable frames"):
        load_frames(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere. does not exist"):
        load_frames(tmp_path / "nowhere")


def test_rows_go_to_parquet_and_back_with_every_level(folder: Path, tmp_path: Path) -> None:
    load_frames(folder).to_parquet(str(tmp_path / "rows.parquet"))
    rows = datasets.load_dataset(
        str(tmp_path), data_files="rows.parquet", split="train", cache_dir=str(tmp_path / "c")
    )
    for row in rows:
        assert frame_digest(np.asarray(row["image"])).hex() == row["sha256"]
        buffer = io.BytesIO()
        row["image"].save(buffer, format="PNG")


def test_the_published_samples_are_eleven_frames(shared_data: Path) -> None:
    pytest.importorskip("gdcm")
    report = FaultReport()
    rows = load_frames(shared_data / "odd", report=report, options=ReadOptions(salt=SALT), keep_names=True)
    assert len(rows) == 11 and not len(report)
    same = [row["name"] for row in rows.remove_columns("image") if row["sha256"].startswith("e0067dd7d7a3")]
    assert same == [
        "XA1_10bit_in_16.png",
        "XA1_10bit_in_16.tif",
        "XA1_J2KR.dcm",
        "XA1_JLSL.dcm",
        "XA1_JPLL.dcm",
        "XA1_RLE.dcm",
    ]
