"""DICOM runs: levels, what is known of them, streaming, privacy, damage."""

import logging
import shutil
import sys
import tracemalloc
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vasomim_hf.data.reading import dicom_jpeg as frames_jpeg
from vasomim_hf.data.reading.dicom import KEPT_TAGS, is_dicom
from vasomim_hf.data.reading.dicom_grey_levels import Lookup, PixelLayout, Transformation, level_table
from vasomim_hf.data.reading.files import read_frames
from vasomim_hf.data.reading.frame import Frame, FrameReadError, ReadOptions
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram


pydicom = pytest.importorskip("pydicom")

IMPLICIT, EXPLICIT, DEFLATED, BIG = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2"))
RLE, JPEG_LOSSLESS, JPEG_LS, JPEG_2000 = (f"1.2.840.10008.1.2.{end}" for end in ("5", "4.70", "4.80", "4.90"))
SALT = "a salt of sixteen letters"
SYNTAXES = {
    "RLE": "RLE Lossless",
    "JPLL": "JPEG Lossless",
    "JLSL": "JPEG-LS Lossless",
    "JLSN": "JPEG-LS Lossy",
    "J2KR": "JPEG 2000",
    "J2KI": "JPEG 2000",
    "JPLY": "JPEG Extended",
}
LOSSLESS = ("RLE", "JPLL", "JLSL", "J2KR")


@cache
def drawn(size: int) -> np.ndarray:
    return synthetic_angiogram(0, size=size).image


def levels(bits: int = 12, num_frames: int = 4, size: int = 48) -> np.ndarray:
    """A run of the full range, each frame another one."""
    angiogram = drawn(size) + np.random.default_rng(0).random((size, size))
    angiogram = (angiogram - angiogram.min()) / np.ptp(angiogram) * ((1 << bits) - 1)
    return np.stack([np.roll(np.rint(angiogram).astype(np.uint16), i, axis=0) for i in range(num_frames)])


def write(path: Path, pixels: np.ndarray, syntax: str = EXPLICIT, **tags: Any) -> Path:
    """A run of shape (num_frames, height, width[, 3]) as XA; tags are added or replaced, `None` takes one out."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = EXPLICIT if syntax == RLE else syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.12.1", "1.2.3.4"
    bits = 8 * pixels.itemsize
    known = {
        "Modality": "XA",
        "NumberOfFrames": len(pixels),
        "Rows": pixels.shape[1],
        "Columns": pixels.shape[2],
        "SamplesPerPixel": 3 if pixels.ndim == 4 else 1,
        "PhotometricInterpretation": "RGB" if pixels.ndim == 4 else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": 12 if bits == 16 else 8,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    } | tags
    for name, value in known.items():
        if value is not None:
            setattr(dataset, name, value)
    if "HighBit" not in tags:
        dataset.HighBit = dataset.BitsStored - 1
    if pixels.ndim == 4 and "PlanarConfiguration" not in tags:
        dataset.PlanarConfiguration = 0
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">" if syntax == BIG else "<")).tobytes()
    dataset["PixelData"].VR = "OW" if bits == 16 else "OB"
    if syntax == RLE:
        dataset.compress(RLE)
    with pydicom.config.disable_value_validation():
        dataset.save_as(path, enforce_file_format=True)
    return path


def read(path: Path, **options: Any) -> list[Frame]:
    return list(read_frames(path, ReadOptions(**options)))


def stack(frames: list[Frame]) -> np.ndarray:
    return np.stack([frame.pixels for frame in frames])


# Runs


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, BIG, RLE])
@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_a_run_of_12_bits_is_read_frame_by_frame_with_black_as_0(tmp_path: Path, syntax: str, polarity: str) -> None:
    path = write(tmp_path / "run.dcm", levels(), syntax, PhotometricInterpretation=polarity, FrameTime=66.7)
    frames = read(path)
    assert np.array_equal(stack(frames), levels() if polarity == "MONOCHROME2" else 4095 - levels())
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    for frame in frames:
        assert frame.pixels.dtype == np.uint16 and frame.pixels.dtype.isnative and frame.bits_stored == 12
        assert frame.metadata.num_frames == 4 and frame.metadata.frame_time_ms == 66.7
        assert frame.metadata.photometric_interpretation == polarity and frame.metadata.modality == "XA"


@pytest.mark.parametrize("bits", [8, 10, 14, 16])
def test_other_depths_keep_every_level(tmp_path: Path, bits: int) -> None:
    for dtype in (np.uint8, np.uint16) if bits == 8 else (np.uint16,):
        frames = read(write(tmp_path / "run.dcm", levels(bits).astype(dtype), BitsStored=bits))
        assert np.array_equal(stack(frames), levels(bits))
        assert frames[0].bits_stored == bits and frames[0].pixels.dtype == (np.uint8 if bits == 8 else np.uint16)


def recode(source: Path, target: Path, syntax: str) -> Path:
    gdcm = pytest.importorskip("gdcm")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_LS, JPEG_2000])
def test_compressed_runs_equal_the_run_they_were_made_of(tmp_path: Path, syntax: str) -> None:
    path = recode(write(tmp_path / "raw.dcm", levels(size=64)), tmp_path / "packed.dcm", syntax)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(stack(read(path)), levels(size=64))


def test_a_run_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    num_frames, pixels = 500, levels(num_frames=1, size=64)
    one = write(tmp_path / "packed.dcm", pixels, RLE)
    read(one)
    packed = pydicom.dcmread(one)
    packed.NumberOfFrames = num_frames
    packed.PixelData = pydicom.encaps.encapsulate(list(pydicom.encaps.generate_frames(packed.PixelData)) * num_frames)
    packed.save_as(one)
    for path in (one, write(tmp_path / "raw.dcm", np.repeat(pixels, num_frames, axis=0))):
        frames = read_frames(path)
        next(frames)  # builds the look-up table
        tracemalloc.start()
        count = sum(frame.pixels.shape == (64, 64) for frame in frames)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == num_frames - 1
        assert peak < 0.05 * num_frames * pixels[0].nbytes


def test_frames_are_decoded_as_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    original = pydicom.pixels.iter_pixels

    def counting(*args: Any, **kwargs: Any):
        for pixels in original(*args, **kwargs):
            decoded.append(1)
            yield pixels

    monkeypatch.setattr("pydicom.pixels.iter_pixels", counting)
    frames = read_frames(write(tmp_path / "run.dcm", levels()))
    next(frames)
    assert len(decoded) == 1
    frames.close()


def test_a_file_without_ending_is_known_by_its_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "IM000001", levels())
    assert is_dicom(path) and len(read(path)) == 4
    other = write(tmp_path / "1.2.840.17", levels())
    assert len(read(other)) == 4
    assert not is_dicom(tmp_path / "nowhere")


# From stored values to levels


def test_signed_pixels_move_up_so_that_the_lowest_possible_is_0(tmp_path: Path) -> None:
    pixels = levels().astype(np.int16) - 2048
    frames = read(write(tmp_path / "run.dcm", pixels))
    assert np.array_equal(stack(frames), levels()) and frames[0].bits_stored == 12
    assert frames[0].metadata.level_offset == 2048
    frames = read(write(tmp_path / "run.dcm", pixels, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(stack(frames), 4095 - levels())


def test_rescaling_is_applied_and_levels_below_zero_move_up(tmp_path: Path) -> None:
    frames = read(write(tmp_path / "a.dcm", levels(), RescaleSlope=2, RescaleIntercept=10))
    assert np.array_equal(stack(frames), 2 * levels() + 10) and frames[0].bits_stored == 14
    assert frames[0].metadata.rescale_slope == 2 and frames[0].metadata.rescale_intercept == 10
    frames = read(write(tmp_path / "b.dcm", levels(), RescaleSlope=1, RescaleIntercept=-1024))
    assert np.array_equal(stack(frames), levels()) and frames[0].bits_stored == 12
    assert frames[0].metadata.level_offset == 1024


def test_a_negative_slope_turns_levels_round_and_a_broken_one_spreads_them(tmp_path: Path) -> None:
    frames = read(write(tmp_path / "a.dcm", levels(), RescaleSlope=-1, RescaleIntercept=4095))
    assert np.array_equal(stack(frames), 4095 - levels())
    frames = read(write(tmp_path / "b.dcm", levels(), RescaleSlope=0.25, RescaleIntercept=0))
    assert frames[0].bits_stored == 16
    np.testing.assert_allclose(stack(frames), levels() * (65535 / 4095), atol=0.5)
    with pytest.raises(FrameReadError, match="Rescale Slope is 0"):
        read(write(tmp_path / "c.dcm", levels(), RescaleSlope=0, RescaleIntercept=0))


def lookup_item(first: int, bits: int, entries: np.ndarray) -> Any:
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new("LUTData", "US", entries.tolist())
    return item


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_a_modality_table_is_applied_but_not_one_that_leads_back_to_intensities(tmp_path: Path, vr: str) -> None:
    entries = np.arange(4096, dtype="<u2")[::-1] // 4
    item = lookup_item(0, 10, entries)
    if vr == "OW":
        item["LUTData"] = pydicom.DataElement("LUTData", "OW", entries.tobytes())
    frames = read(write(tmp_path / "a.dcm", levels(), ModalityLUTSequence=[item]))
    assert np.array_equal(stack(frames), entries[levels()]) and frames[0].bits_stored == 10
    tags = {"ModalityLUTSequence": [item], "PixelIntensityRelationship": "LOG"}
    assert np.array_equal(stack(read(write(tmp_path / "b.dcm", levels(), **tags))), levels())


def test_bits_outside_of_bits_stored_are_dropped(tmp_path: Path) -> None:
    overlay = (np.indices(levels().shape).sum(axis=0) % 2).astype(np.uint16) << 15
    for syntax in (EXPLICIT, RLE):
        assert np.array_equal(stack(read(write(tmp_path / "a.dcm", levels() | overlay, syntax))), levels())
    shifted = levels() << 4 | 5
    assert np.array_equal(stack(read(write(tmp_path / "b.dcm", shifted, HighBit=15))), levels())


def test_lossy_levels_beyond_the_range_are_clipped_and_do_not_wrap() -> None:
    table = level_table(PixelLayout(16, 10, is_lossy=True), Transformation())
    assert table.apply(np.array([[0, 1023, 1030, 4095]], np.uint16)).tolist() == [[0, 1023, 1023, 1023]]
    table = level_table(PixelLayout(16, 10, is_signed=True, is_lossy=True), Transformation())
    assert table.apply(np.array([[-600, -512, 511, 600]], np.int16)).tolist() == [[0, 0, 1023, 1023]]


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_becomes_black_in_either_polarity(tmp_path: Path, polarity: str) -> None:
    pixels = levels()
    pixels[:, :5] = 4000
    tags = {"PixelPaddingValue": 4000, "PhotometricInterpretation": polarity}
    frames = stack(read(write(tmp_path / "run.dcm", pixels, **tags)))
    assert not frames[:, :5].any() and frames[:, 5:].any()
    tags["PixelPaddingRangeLimit"] = 3900
    frames = stack(read(write(tmp_path / "run.dcm", pixels, **tags)))
    assert not frames[(pixels >= 3900) & (pixels <= 4000)].any()


@pytest.mark.parametrize("planes", [0, 1])
def test_colour_becomes_grey_and_grey_in_colour_keeps_its_levels(tmp_path: Path, planes: int) -> None:
    grey = levels(8, num_frames=2).astype(np.uint8)
    colour = np.stack([grey] * 3, axis=-1)
    stored = colour if planes == 0 else np.moveaxis(colour, -1, 1).reshape(colour.shape)
    frames = read(write(tmp_path / "a.dcm", stored, PlanarConfiguration=planes))
    assert np.array_equal(stack(frames), grey) and frames[0].bits_stored == 8
    colour = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(colour[0]).convert("L"))
    assert np.array_equal(read(write(tmp_path / "b.dcm", colour))[0].pixels, expected)


# Windows


def windowed(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """The ordinary window, written as the three cases of the standard (PS3.3 C.11.2.1.2.1)."""
    inside = ((values - (center - 0.5)) / (width - 1) + 0.5) * 4095
    low, high = values <= center - 0.5 - (width - 1) / 2, values > center - 0.5 + (width - 1) / 2
    return np.where(low, 0, np.where(high, 4095, inside))


def test_a_window_is_applied_only_if_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "run.dcm", levels(), WindowCenter=[1500, 10], WindowWidth=[800, 20])
    frames = read(path)
    assert np.array_equal(stack(frames), levels())
    assert (frames[0].metadata.window_center, frames[0].metadata.window_width) == (1500, 800)
    frames = read(path, apply_window=True)
    np.testing.assert_allclose(stack(frames), windowed(levels().astype(float), 1500, 800), atol=0.5001)
    assert frames[0].bits_stored == 12


def test_a_window_counts_in_rescaled_levels_and_comes_before_the_inversion(tmp_path: Path) -> None:
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1000, "PhotometricInterpretation": "MONOCHROME1"}
    path = write(tmp_path / "run.dcm", levels(), WindowCenter=500, WindowWidth=800, **tags)
    expected = 4095 - windowed(levels() - 1000.0, 500, 800)
    np.testing.assert_allclose(stack(read(path, apply_window=True)), expected, atol=0.5001)


@pytest.mark.parametrize(("function", "at_center"), [("SIGMOID", 0.5), ("LINEAR_EXACT", 0.5)])
def test_other_functions_of_a_window_are_known(tmp_path: Path, function: str, at_center: float) -> None:
    pixels = np.array([[[0, 1500, 4095, 1700]]], np.uint16)
    tags = {"WindowCenter": 1500, "WindowWidth": 800, "VOILUTFunction": function}
    frame = read(write(tmp_path / "run.dcm", pixels, **tags), apply_window=True)[0].pixels[0] / 4095
    steep = 1 / (1 + np.exp(-4 * 200 / 800)) if function == "SIGMOID" else 200 / 800 + 0.5
    np.testing.assert_allclose(frame, [0, at_center, 1, steep], atol=1e-3)


def test_the_voi_lut_takes_precedence_over_the_window(tmp_path: Path) -> None:
    entries = np.arange(256, dtype="<u2") ** 2 // 255
    tags = {"VOILUTSequence": [lookup_item(1000, 8, entries)], "WindowCenter": 1, "WindowWidth": 2}
    frames = read(write(tmp_path / "run.dcm", levels(), **tags), apply_window=True)
    expected = entries[np.clip(levels().astype(int) - 1000, 0, 255)] / 255 * 4095
    np.testing.assert_allclose(stack(frames), expected, atol=0.5)


def test_a_window_without_width_is_an_error_only_where_it_is_applied(tmp_path: Path) -> None:
    path = write(tmp_path / "run.dcm", levels(), WindowCenter=100, WindowWidth=0)
    assert len(read(path)) == 4
    with pytest.raises(FrameReadError, match="Window Width is 0"):
        read(path, apply_window=True)


def test_an_empty_table_is_an_error() -> None:
    for lookup in (Lookup(0, 8, ()), Lookup(0, 0, (1, 2))):
        with pytest.raises(ValueError, match=f"{len(lookup.entries)} entries of {lookup.bits} bits"):
            level_table(PixelLayout(16, 12), Transformation(lookup=lookup))


# What is known of a run


def test_spacing_angles_and_steps_are_read(tmp_path: Path) -> None:
    tags = {
        "ImagerPixelSpacing": [0.3, 0.4],
        "PixelSpacing": [0.2, 0.25],
        "PixelSpacingCalibrationType": "FIDUCIAL",
        "PositionerPrimaryAngle": -30.5,
        "PositionerSecondaryAngle": 20,
        "FrameTimeVector": [0, 60, 70, 80],
        "LossyImageCompression": "01",
    }
    frames = read(write(tmp_path / "run.dcm", levels(), **tags))
    known = frames[0].metadata
    assert known.imager_pixel_spacing_mm == (0.3, 0.4) and known.pixel_spacing_mm == (0.2, 0.25)
    assert known.pixel_spacing_calibration == "FIDUCIAL" and known.is_lossy is True
    assert (known.primary_angle, known.secondary_angle) == (-30.5, 20)
    assert [frame.metadata.frame_time_ms for frame in frames] == [0, 60, 70, 80]


def test_a_copy_of_the_spacing_at_the_detector_is_not_taken_for_a_calibrated_one(tmp_path: Path) -> None:
    same = {"ImagerPixelSpacing": [0.3, 0.3], "PixelSpacing": [0.3, 0.3]}
    assert read(write(tmp_path / "a.dcm", levels(), **same))[0].metadata.pixel_spacing_mm is None
    same["PixelSpacingCalibrationType"] = "GEOMETRY"
    assert read(write(tmp_path / "b.dcm", levels(), **same))[0].metadata.pixel_spacing_mm == (0.3, 0.3)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, None),
        ({"CineRate": 15}, 1000 / 15),
        ({"RecommendedDisplayFrameRate": 30}, 1000 / 30),
        ({"FrameTime": 40, "CineRate": 15}, 40),
        ({"FrameTime": 0, "CineRate": 0}, None),
    ],
)
def test_the_frame_time_is_read_from_the_most_specific_tag(
    tmp_path: Path, tags: dict[str, Any], expected: float | None
) -> None:
    assert read(write(tmp_path / "run.dcm", levels(), **tags))[1].metadata.frame_time_ms == expected


def sequence(**tags: Any) -> list[Any]:
    item = pydicom.Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return [item]


def test_an_enhanced_run_has_its_own_window_for_each_frame(tmp_path: Path) -> None:
    windows = [(1000, 400), (2000, 800), (3000, 600), (500, 300)]
    own = [
        sequence(
            FrameVOILUTSequence=sequence(WindowCenter=center, WindowWidth=width),
            PositionerPositionSequence=sequence(PositionerPrimaryAngle=float(i), PositionerSecondaryAngle=-2.0),
        )[0]
        for i, (center, width) in enumerate(windows)
    ]
    shared = sequence(FramePixelDataPropertiesSequence=sequence(ImagerPixelSpacing=[0.15, 0.15]))
    tags = {"PerFrameFunctionalGroupsSequence": own, "SharedFunctionalGroupsSequence": shared}
    path = write(tmp_path / "run.dcm", levels(), SOPClassUID="1.2.840.10008.5.1.4.1.1.12.1.1", **tags)
    frames = read(path, apply_window=True)
    for i, (frame, (center, width)) in enumerate(zip(frames, windows, strict=True)):
        np.testing.assert_allclose(frame.pixels, windowed(levels()[i].astype(float), center, width), atol=0.5001)
        assert (frame.metadata.window_center, frame.metadata.primary_angle) == (center, i)
        assert frame.metadata.imager_pixel_spacing_mm == (0.15, 0.15) and frame.metadata.secondary_angle == -2


# Privacy

SECRETS = {
    "PatientName": "Zebediah^Quux",
    "PatientID": "PID-778899",
    "PatientBirthDate": "19310203",
    "PatientAddress": "Elm Street 13",
    "OtherPatientIDs": "OTHER-4711",
    "StudyInstanceUID": "1.2.826.0.1.55555.1",
    "SeriesInstanceUID": "1.2.826.0.1.55555.2",
    "SOPInstanceUID": "1.2.826.0.1.55555.3",
    "FrameOfReferenceUID": "1.2.826.0.1.55555.4",
    "StudyDate": "20240229",
    "AcquisitionDateTime": "20240229134501",
    "StudyID": "STUDY-31337",
    "AccessionNumber": "ACC-90210",
    "InstitutionName": "Saint Nowhere Hospital",
    "ReferringPhysicianName": "Doktor^Faust",
    "OperatorsName": "Igor^Operator",
    "StationName": "CATHLAB-66",
    "DeviceSerialNumber": "SN-123321",
    "ImageComments": "Comment about Zebediah",
    "StudyDescription": "Zebediah before PCI",
    "ProtocolName": "Protocol-Zebediah",
}
PRIVATE_TEXT = "private text on Quux"


def secret_words() -> list[str]:
    words = [part for value in SECRETS.values() for part in value.split("^")]
    return [*words, PRIVATE_TEXT, "Quux_Zebediah", "55555"]


def identifying(folder: Path, **tags: Any) -> Path:
    """A run that names its patient in every place that was thought of."""
    folder.mkdir(parents=True)
    path = write(folder / "Quux_Zebediah_19310203.dcm", levels(), **(SECRETS | tags))
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x0029, "Quux private", create=True).add_new(0x01, "LO", PRIVATE_TEXT)
    dataset.SharedFunctionalGroupsSequence = sequence(
        FrameVOILUTSequence=sequence(WindowCenter=100, WindowWidth=50, WindowCenterWidthExplanation="Zebediah"),
        FrameContentSequence=sequence(FrameAcquisitionDateTime="20240229134501", FrameComments="Zebediah"),
    )
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("salt", [None, SALT])
def test_nothing_that_identifies_a_patient_leaves_the_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, salt: str | None
) -> None:
    caplog.set_level(logging.DEBUG)
    path = identifying(tmp_path / "19310203" / "Zebediah")
    options = ReadOptions(salt=salt)
    frames = list(read_frames(path, options))
    told = " ".join([repr(frames), repr(options), str([asdict(frame.metadata) for frame in frames]), caplog.text])
    assert [word for word in secret_words() if word in told] == []
    assert len(frames) == 4 and SALT not in told


def test_ids_are_the_same_under_one_salt_and_others_under_another(tmp_path: Path) -> None:
    one, two = identifying(tmp_path / "a"), identifying(tmp_path / "b", SeriesInstanceUID="1.2.826.0.1.55555.9")
    first, second = (read(path, salt=SALT)[0].metadata for path in (one, two))
    assert first.patient_id == second.patient_id and first.study_id == second.study_id
    assert first.series_id != second.series_id and len({first.patient_id, first.study_id, first.series_id}) == 3
    assert read(one, salt=SALT + "!")[0].metadata.patient_id != first.patient_id
    same = read(identifying(tmp_path / "c", StudyInstanceUID="1.2.3", PatientID="1.2.3"), salt=SALT)[0].metadata
    assert same.patient_id != same.study_id
    assert len(first.patient_id) == 32 and int(first.patient_id, 16)


def test_without_a_salt_or_an_id_there_is_no_id(tmp_path: Path) -> None:
    known = read(identifying(tmp_path / "a"))[0].metadata
    assert (known.patient_id, known.study_id, known.series_id) == (None, None, None)
    assert read(write(tmp_path / "b.dcm", levels(), PatientID="  "), salt=SALT)[0].metadata.patient_id is None


def test_kept_tags_name_no_person_place_time_or_object() -> None:
    unwanted = (
        "Name",
        "Date",
        "Birth",
        "InstanceUID",
        "Comments",
        "Description",
        "Institution",
        "Serial",
        "Address",
        "PatientID",
    )
    assert [tag for tag in KEPT_TAGS if any(word in tag for word in unwanted)] == []
    assert [tag for tag in KEPT_TAGS if pydicom.datadict.tag_for_keyword(tag) is None] == []


def ill_formed(path: Path, *names: str) -> Path:
    """A run with text where numbers should be."""
    dataset = pydicom.dcmread(write(path, levels()))
    for name in names:
        tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(name))
        vr = pydicom.datadict.dictionary_VR(tag)
        dataset._dict[tag] = pydicom.dataelem.RawDataElement(tag, vr, 8, b"Zebediah", 0, False, True)
    dataset.save_as(path)
    return path


def test_ill_formed_values_count_as_unknown_and_are_not_quoted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("FrameTime", "WindowCenter", "PixelSpacing", "RescaleSlope", "PositionerPrimaryAngle")
    frames = read(ill_formed(tmp_path / "a.dcm", *names))
    known = frames[0].metadata
    assert np.array_equal(stack(frames), levels()) and "Zebediah" not in repr(frames) + caplog.text
    assert {known.frame_time_ms, known.window_center, known.pixel_spacing_mm, known.primary_angle} == {None}


def test_errors_do_not_quote_file_contents(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("BitsStored", "BitsAllocated", "NumberOfFrames", "Rows"):
        with pytest.raises(FrameReadError) as error:
            read(ill_formed(tmp_path / "a.dcm", name))
        assert "Zebediah" not in str(error.value) + caplog.text


def test_a_file_marked_as_having_burned_in_text_is_rejected_unless_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "run.dcm", levels(), BurnedInAnnotation="YES")
    with pytest.raises(FrameReadError, match="Burned In Annotation"):
        read(path)
    assert len(read(path, allow_burned_in=True)) == 4
    assert len(read(write(tmp_path / "run.dcm", levels(), BurnedInAnnotation="NO"))) == 4


# What cannot be read


def test_another_modality_is_an_error_that_can_be_overridden(tmp_path: Path) -> None:
    path = write(tmp_path / "run.dcm", levels(), Modality="RF")
    with pytest.raises(FrameReadError, match="modality 'RF', expected XA"):
        read(path)
    assert len(read(path, modalities=("XA", "RF"))) == len(read(path, modalities=None)) == 4
    with pytest.raises(FrameReadError, match="modality None"):
        read(write(tmp_path / "none.dcm", levels(), Modality=None))
    with pytest.raises(ValueError, match="must be a tuple"):
        ReadOptions(modalities="XA")


def test_a_file_without_pixels_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "run.dcm", levels())
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    with pytest.raises(FrameReadError, match=r"run.dcm` is a DICOM file without pixels"):
        read(path)


def test_text_with_a_dicom_suffix_and_a_truncated_header_are_errors(tmp_path: Path) -> None:
    whole = write(tmp_path / "run.dcm", levels()).read_bytes()
    for name, content in {"text.dcm": b"hello", "empty.dcm": b"", "cut.dcm": whole[:200]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FrameReadError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE, JPEG_LOSSLESS, JPEG_LS, JPEG_2000])
def test_frames_before_the_damage_of_a_truncated_cine_are_yielded(tmp_path: Path, syntax: str) -> None:
    path = write(tmp_path / "raw.dcm", levels(size=64), syntax if syntax == RLE else EXPLICIT)
    if syntax not in (EXPLICIT, RLE):
        path = recode(path, tmp_path / "packed.dcm", syntax)
    whole = path.read_bytes()
    for share in (0.4, 0.65, 0.97):
        path.write_bytes(whole[: int(len(whole) * share)])
        found = []
        frames = read_frames(path)
        with pytest.raises(FrameReadError, match="ends after . of 4 frames"):
            while True:
                found.append(next(frames).pixels)
        assert len(found) == {0.4: 1, 0.65: 2, 0.97: 3}[share]
        assert np.array_equal(found, levels(size=64)[: len(found)])


# Where a byte of the head of a stream was changed: bits, a marker, a table, the size; and what begins a stream
HEADS = {
    JPEG_LOSSLESS: (b"\xff\xd8\xff", (3, 6, 8, 15, 16)),
    JPEG_LS: (b"\xff\xd8\xff", (3, 6, 8)),
    JPEG_2000: (b"\xff\x4f\xff\x51", (1, 11, 41, 42, 43)),
}


@pytest.mark.parametrize("syntax", HEADS)
def test_a_stream_with_a_damaged_header_is_never_passed_to_a_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    path = recode(write(tmp_path / "raw.dcm", levels(num_frames=2)), tmp_path / "packed.dcm", syntax)
    whole, (mark, places) = path.read_bytes(), HEADS[syntax]
    start = whole.index(mark, whole.index(mark) + 1)  # of the second frame
    for place in places:
        content = bytearray(whole)
        content[start + place] ^= 0x5A
        path.write_bytes(content)
        frames = read_frames(path)
        assert np.array_equal(next(frames).pixels, levels()[0])
        # some of these end the process in GDCM
        with monkeypatch.context() as patch, pytest.raises(FrameReadError, match="ends after 1 of 2 .*does not match"):
            patch.setattr("vasomim_hf.data.reading.dicom._frame", lambda *_: pytest.fail("decoded"))
            next(frames)


def test_a_frame_that_cannot_be_decoded_is_named_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "run.dcm", levels(), RLE)
    dataset = pydicom.dcmread(path)
    fragments = list(pydicom.encaps.generate_fragments(dataset.PixelData))[1:]
    fragments[2] = fragments[2][:64] + bytes(len(fragments[2]) - 64)
    dataset.PixelData = pydicom.encaps.encapsulate(fragments)
    dataset.save_as(path)
    with pytest.raises(
        FrameReadError, match=r"RLE Lossless.*frame 2 of 4 cannot be decoded.*the 2 before it are intact"
    ):
        read(path)


def test_a_film_in_dicom_and_an_unknown_syntax_are_named(tmp_path: Path) -> None:
    for syntax, name in (("1.2.840.10008.1.2.4.102", "MPEG-4"), ("1.2.826.0.1.77", "1.2.826.0.1.77")):
        path = write(tmp_path / "run.dcm", levels())
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = pydicom.encaps.encapsulate([b"film"])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path, implicit_vr=False, little_endian=True)
        with pytest.raises(FrameReadError, match=f"stored as .*{name}.*, which is not supported"):
            read(path)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"BitsStored": 17}, "Bits Stored .17.*Bits Allocated .16"),
        ({"HighBit": 3}, "High Bit .3"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"BitsAllocated": 32}, "1 samples of 32 bits"),
        ({"BitsAllocated": None, "BitsStored": 12}, "does not state its pixel format|header is damaged"),
    ],
)
def test_errors_describe_unsupported_pixel_formats(tmp_path: Path, tags: dict[str, Any], message: str) -> None:
    with pytest.raises(FrameReadError, match=message):
        read(write(tmp_path / "run.dcm", levels(), **tags))


def test_a_missing_decoder_is_named_with_the_transfer_syntax_and_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recode(write(tmp_path / "raw.dcm", levels()), tmp_path / "packed.dcm", JPEG_LS)
    decoder = pydicom.pixels.get_decoder(JPEG_LS)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(FrameReadError, match=r"JPEG-LS Lossless .*4\.80.*pip install python-gdcm.*extra `dicom`"):
        read(path)


# The published samples


def sample(shared_data: Path, name: str) -> np.ndarray:
    if name == "JPLY":
        pytest.importorskip("gdcm")
    (frame,) = read(shared_data / "odd" / f"XA1_{name}.dcm")
    assert frame.bits_stored == 10 and frame.pixels.dtype == np.uint16
    return frame.pixels


@pytest.mark.parametrize("name", SYNTAXES)
def test_every_sample_reads_and_the_lossless_ones_equal_the_deep_exports(shared_data: Path, name: str) -> None:
    pixels = sample(shared_data, name)
    for other in ("png", "tif"):
        (export,) = read(shared_data / "odd" / f"XA1_10bit_in_16.{other}", bits_stored=10)
        difference = np.abs(pixels.astype(int) - export.pixels)
        assert difference.max() == 0 if name in LOSSLESS else 0 < difference.mean() < 3


def test_12_bit_jpeg_without_gdcm_names_the_package_to_install(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = pydicom.pixels.get_decoder(frames_jpeg.JPEG_EXTENDED)
    monkeypatch.setattr(decoder, "_available", {"pillow": decoder._available["pillow"]})
    monkeypatch.setitem(sys.modules, "gdcm", None)
    with pytest.raises(FrameReadError, match=r"JPEG Extended.*pip install python-gdcm"):
        read(shared_data / "odd" / "XA1_JPLY.dcm")


@pytest.mark.parametrize("name", SYNTAXES)
def test_a_cut_sample_is_an_error_and_never_half_a_picture(shared_data: Path, tmp_path: Path, name: str) -> None:
    path = Path(shutil.copy(shared_data / "odd" / f"XA1_{name}.dcm", tmp_path))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(FrameReadError, match="ends after 0 of 1 frames"):
        read(path)
