"""Reading frames: which files count, every kind of picture, and deep images that keep their grey levels."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vasomim_hf.data.reading.files import FrameReadError, list_frames, read_frame, read_frames, scan_folder, to_uint8
from vasomim_hf.data.reading.frame import Frame, ReadOptions
from vasomim_hf.image_processing_vasomim import VasoMIMImageProcessorPil


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    logging.Logger.warning_once.cache_clear()  # made by transformers: each text is said once per process


def ramp(levels: int, dtype: type = np.uint16) -> np.ndarray:
    return np.linspace(0, levels - 1, 32 * 40).reshape(32, 40).astype(dtype)


def grey() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 40), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


# Folders


def test_frames_are_listed_sorted_with_sub_folders_and_any_case(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "sub/c.tif", "sub/d.TIFF", "e.jpeg", "f.Bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = ["a.jpg", "b.PNG", "e.jpeg", "f.Bmp", "sub/c.tif", "sub/d.TIFF"]
    assert [path.relative_to(tmp_path).as_posix() for path in list_frames(tmp_path)] == expected


def test_stray_and_hidden_files_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".cache").mkdir()
    for name in ("a.png", ".hidden.png", ".cache/b.png", "notes.txt", "train.json"):
        (tmp_path / name).touch()
    assert [path.name for path in list_frames(tmp_path)] == ["a.png"]
    assert "skipped 3 files that are not frames, e.g. notes.txt" in caplog.text
    scan = scan_folder(tmp_path)
    assert [path.name for path in scan.strays] == ["notes.txt", "train.json"]
    assert [path.name for path in scan.hidden] == [".hidden.png"]


def test_a_folder_with_frames_only_is_listed_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / ".DS_Store").touch()
    assert len(list_frames(tmp_path)) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_folder_without_frames_or_none_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"contains no frames, only 1 other files.*\.png"):
        list_frames(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty` contains no frames, and no other files\..*\.png"):
        list_frames(tmp_path / "empty")
    for path in (tmp_path / "nowhere", tmp_path / "notes.txt"):
        with pytest.raises(NotADirectoryError, match="is not a folder of frames"):
            list_frames(path)


# Pictures of 8 bits


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_a_grey_picture_keeps_its_levels_in_every_mode(tmp_path: Path, suffix: str, mode: str) -> None:
    frame = read_frame(save(tmp_path / f"a.{suffix}", grey(), mode))
    assert frame.dtype == np.uint8 and frame.flags.writeable
    assert np.array_equal(frame, grey())


def test_grey_with_alpha_and_cmyk_are_read(tmp_path: Path) -> None:
    picture = np.dstack([grey(), np.zeros_like(grey())])
    assert np.array_equal(read_frame(save(tmp_path / "a.png", picture)), grey())
    difference = read_frame(save(tmp_path / "a.tif", grey(), "CMYK")).astype(int) - grey()
    assert np.abs(difference).max() <= 1


def test_one_bit_pictures_become_black_and_white(tmp_path: Path) -> None:
    bits = grey() > 127
    assert np.array_equal(read_frame(save(tmp_path / "a.png", bits)), bits * np.uint8(255))


def test_colour_becomes_grey_as_in_pillow(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(colour).convert("L"))
    assert np.array_equal(read_frame(save(tmp_path / "a.png", colour)), expected)


def test_a_jpeg_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", grey(), quality=90)
    with Image.open(path) as image:
        assert np.array_equal(read_frame(str(path)), np.asarray(image))


def test_a_frame_of_one_pixel_is_read(tmp_path: Path) -> None:
    assert read_frame(save(tmp_path / "a.png", np.full((1, 1), 7, np.uint8))).tolist() == [[7]]


# Deep pictures


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_a_deep_ramp_is_scaled_and_not_saturated(tmp_path: Path, suffix: str, bits: int) -> None:
    path = save(tmp_path / f"a.{suffix}", ramp(2**bits))
    for frame in (read_frame(path), read_frame(path, bits_stored=bits)):
        assert frame.min() == 0 and frame.max() == 255
        assert len(np.unique(frame)) == 256
        assert (frame == 255).mean() < 0.01
        np.testing.assert_allclose(frame, ramp(2**bits) * 255.0 / (2**bits - 1), atol=0.5)


def test_a_deep_picture_of_8_bits_keeps_its_levels(tmp_path: Path) -> None:
    assert np.array_equal(read_frame(save(tmp_path / "a.png", grey().astype(np.uint16))), grey())


def test_stated_bits_win_over_inferred_ones(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", ramp(512))
    assert read_frame(path).max() == 127
    assert read_frame(path, bits_stored=12).max() == 32
    assert read_frame(path, bits_stored=9).max() == 255


def test_the_inferred_depth_grows_with_the_first_level_it_does_not_hold() -> None:
    for largest, bits in ((255, 8), (256, 10), (1023, 10), (1024, 12), (4096, 14), (16384, 16), (65535, 16)):
        pixels = np.array([[0, largest]], dtype=np.uint16)
        assert to_uint8(pixels)[0, 1] == round(255 * largest / (2**bits - 1))


def test_floats_just_beyond_the_unit_range_are_clipped_and_do_not_wrap() -> None:
    assert to_uint8(np.array([[-0.001, 0.5, 1.005]], np.float32)).tolist() == [[0, 128, 255]]


def test_an_inferred_depth_is_named_once_and_a_stated_one_never(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "a.png", ramp(1024))
    read_frame(path, bits_stored=10)
    assert not caplog.records
    read_frame(path)
    read_frame(path)
    assert len(caplog.records) == 1 and "10 bits are assumed" in caplog.text and "`bits_stored`" in caplog.text


def test_32_bit_integers_and_floats_are_scaled(tmp_path: Path) -> None:
    expected = np.rint(ramp(4096) * (255 / 4095))
    assert np.array_equal(read_frame(save(tmp_path / "a.tif", ramp(4096, np.int32))), expected)
    assert np.array_equal(read_frame(save(tmp_path / "b.tif", ramp(4096).astype(np.float32))), expected)
    frame = read_frame(save(tmp_path / "c.tif", np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)))
    assert np.array_equal(frame.ravel(), np.arange(256))


@pytest.mark.parametrize(
    ("pixels", "bits", "message"),
    [
        (np.full((4, 4), -3, np.int32), None, "must be >= 0, got a minimum of -3"),
        (np.full((4, 4), 70000, np.int32), None, "reach 70000, which 16 bits cannot hold.*`bits_stored`"),
        (np.full((4, 4), 2000, np.uint16), 10, "reach 2000, which 10 bits cannot hold"),
        (np.full((4, 4), np.nan, np.float32), None, "must be finite, got 16 NaN"),
        (np.full((4, 4), 5, np.uint16), 0, "`bits_stored` must be in 8..32.*got 0"),
    ],
)
def test_deep_pictures_that_cannot_be_scaled_are_named(
    tmp_path: Path, pixels: np.ndarray, bits: int | None, message: str
) -> None:
    path = save(tmp_path / "a.tif", pixels)
    with pytest.raises(FrameReadError, match=message) as error:
        read_frame(path, bits)
    assert str(path) in str(error.value)


def test_a_deep_tiff_with_white_as_0_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", ramp(4096), tiffinfo={262: 0})
    with pytest.raises(FrameReadError, match="stores white as 0"):
        read_frame(path)


def test_colour_of_16_bits_is_read_where_the_upper_8_bits_hold_it_and_refused_elsewhere(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    for name, levels in (("full.png", 65536), ("ten.png", 1024)):
        cv2.imwrite(str(tmp_path / name), np.dstack([ramp(levels)] * 3))
    assert np.array_equal(read_frame(tmp_path / "full.png"), ramp(65536) >> 8)
    for path, bits in ((tmp_path / "ten.png", None), (tmp_path / "full.png", 12)):
        with pytest.raises(FrameReadError, match=f"`{path}`: The image has 16 bits per colour channel"):
            read_frame(path, bits)


def test_read_frame_agrees_with_the_image_processor(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    processor = VasoMIMImageProcessorPil(do_resize=False, do_normalize=False)
    cv2.imwrite(str(tmp_path / "full.png"), np.dstack([ramp(65536)] * 3))
    cv2.imwrite(str(tmp_path / "ten.png"), np.dstack([ramp(1024)] * 3))
    paths = [tmp_path / "full.png", tmp_path / "ten.png", save(tmp_path / "deep.tif", ramp(4096))]
    paths += [save(tmp_path / "white.tif", ramp(4096), tiffinfo={262: 0}), save(tmp_path / "a.png", grey(), "LA")]
    refused = set()
    for path in paths:
        try:
            frame = read_frame(path)
        except FrameReadError:
            refused.add(path.name)
            with pytest.raises(ValueError, match=path.name):
                processor(path)
        else:
            levels = processor(path, return_tensors="np").pixel_values[0, 0] * 255
            np.testing.assert_allclose(frame, levels, atol=0.5001)
    assert refused == {"ten.png", "white.tif"}


def test_real_deep_exports_use_their_ten_bits(shared_data: Path) -> None:
    paths = sorted((shared_data / "odd").glob("XA1_*.[pt][ni][gf]"))
    assert len(paths) == 3
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image)
        frame = read_frame(path, bits_stored=10)
        assert np.array_equal(frame, read_frame(path))
        np.testing.assert_allclose(frame, pixels * (255 / 1023), atol=0.5)


@pytest.mark.parametrize("value", [np.zeros((2, 2), np.uint16), np.zeros((2, 2), np.float32)])
def test_black_deep_frames_stay_black(value: np.ndarray) -> None:
    assert not to_uint8(value).any()


# Damage


def test_errors_name_damaged_files_and_the_problem(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.png", grey()).read_bytes()
    contents = {"empty.png": b"", "text.png": b"hello", "cut.png": whole[: len(whole) // 2], "head.png": whole[:40]}
    contents["flipped.png"] = whole[:30] + b"\xff\x00\xff" + whole[33:]
    contents["cut.tif"] = save(tmp_path / "a.tif", grey()).read_bytes()[:900]
    contents["cut.jpg"] = save(tmp_path / "a.jpg", grey()).read_bytes()[:300]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FrameReadError, match=r"cannot be read as an image \(.*\)\. Restore or remove") as error:
            read_frame(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    "error", [SyntaxError, KeyError, IndexError, TypeError, EOFError, Image.DecompressionBombError]
)
def test_every_pillow_error_on_damage_becomes_a_read_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(_: Image.Image) -> None:
        raise error("broken chunk")

    path = save(tmp_path / "a.png", grey())
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(FrameReadError, match=rf"a.png` cannot be read as an image \({error.__name__}: '?broken"):
        read_frame(path)


def test_a_missing_file_is_a_read_error(tmp_path: Path) -> None:
    with pytest.raises(FrameReadError, match="FileNotFoundError"):
        read_frame(tmp_path / "nowhere.png")


def test_a_file_of_several_frames_is_refused(tmp_path: Path) -> None:
    images = [Image.fromarray(grey()) for _ in range(3)]
    images[0].save(tmp_path / "run.tif", save_all=True, append_images=images[1:])
    with pytest.raises(FrameReadError, match="has 3 frames, expected one"):
        read_frame(tmp_path / "run.tif")


# Files of any kind


def frames_of(path: Path, bits: int | None = None) -> list[Frame]:
    return list(read_frames(path, ReadOptions(bits_stored=bits)))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_a_picture_of_8_bits_is_one_frame(tmp_path: Path, suffix: str) -> None:
    (frame,) = read_frames(save(tmp_path / f"a.{suffix}", grey()))
    assert np.array_equal(frame.pixels, grey()) and frame.pixels.dtype == np.uint8
    assert (frame.bits_stored, frame.index, frame.metadata.num_frames) == (8, 0, 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_colour_is_read_as_by_read_frame(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "a.png", grey(), mode)
    (frame,) = read_frames(path)
    assert np.array_equal(frame.pixels, read_frame(path))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_pictures_keep_every_level(tmp_path: Path, suffix: str, bits: int) -> None:
    path = save(tmp_path / f"a.{suffix}", ramp(2**bits))
    for (frame,) in (frames_of(path), frames_of(path, bits)):
        assert np.array_equal(frame.pixels, ramp(2**bits))
        assert frame.pixels.dtype == np.uint16 and frame.bits_stored == bits
    with pytest.raises(FrameReadError, match=rf"a.{suffix}`: levels reach {2**bits - 1}, which 9 bits cannot hold"):
        frames_of(path, 9)


def test_pages_are_frames_of_one_depth_and_lie_in_order(tmp_path: Path) -> None:
    pages = [ramp(2**bits) for bits in (10, 12, 10)]
    images = [Image.fromarray(page) for page in pages]
    images[0].save(tmp_path / "run.tif", save_all=True, append_images=images[1:])
    frames = frames_of(tmp_path / "run.tif")
    assert [frame.index for frame in frames] == [0, 1, 2] and {frame.bits_stored for frame in frames} == {12}
    assert all(np.array_equal(frame.pixels, page) for frame, page in zip(frames, pages, strict=True))
    assert frames[0].metadata.num_frames == 3
    with pytest.raises(FrameReadError, match="which 10 bits cannot hold"):
        frames_of(tmp_path / "run.tif", 10)


def test_floats_and_32_bit_levels_are_whole_levels_again(tmp_path: Path) -> None:
    for dtype in (np.int32, np.float32):
        (frame,) = read_frames(save(tmp_path / "a.tif", ramp(4096).astype(dtype)))
        assert np.array_equal(frame.pixels, ramp(4096)) and frame.bits_stored == 12
    (frame,) = read_frames(save(tmp_path / "b.tif", ramp(256).astype(np.float32) / 255))
    assert np.array_equal(frame.pixels, ramp(256) * 257) and frame.bits_stored == 16


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((4, 4), -3, np.int32), "must be >= 0"),
        (np.full((4, 4), 70000, np.int32), "reach 70000"),
        (np.full((4, 4), 1.5, np.float32), "levels are 1.5 to 1.5"),
        (np.full((4, 4), np.nan, np.float32), "levels are nan"),
    ],
)
def test_levels_that_are_no_grey_levels_are_named(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    with pytest.raises(FrameReadError, match=rf"a.tif`: .*{message}"):
        frames_of(save(tmp_path / "a.tif", pixels))


def test_files_that_pillow_decodes_incorrectly_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(FrameReadError, match="stores white as 0"):
        frames_of(save(tmp_path / "a.tif", ramp(4096), tiffinfo={262: 0}))
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "ten.png"), np.dstack([ramp(1024)] * 3))
    with pytest.raises(FrameReadError, match="16 bits per colour channel"):
        frames_of(tmp_path / "ten.png")


def test_pages_before_the_damage_are_yielded(tmp_path: Path) -> None:
    images = [Image.fromarray(np.roll(grey(), i)) for i in range(4)]
    path = tmp_path / "run.tif"
    images[0].save(path, save_all=True, append_images=images[1:], compression="tiff_lzw")
    # the strips of the third page: its tag 273 says where they begin
    with Image.open(path) as image:
        image.seek(2)
        (start,) = image.tag_v2[273]
    content = bytearray(path.read_bytes())
    content[start : start + 400] = bytes(400)
    path.write_bytes(content)
    found, frames = [], read_frames(path)
    with pytest.raises(FrameReadError, match="from page 2 on"):
        while True:
            found.append(next(frames).pixels)
    assert len(found) == 2 and np.array_equal(found[1], np.roll(grey(), 1))


def test_files_of_no_known_kind_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FrameReadError, match=r"notes.txt` is not an image.*\.png.*\.npz.*\.dcm"):
        frames_of(tmp_path / "notes.txt")
    for path in (tmp_path, tmp_path / "nowhere.png"):
        with pytest.raises(FrameReadError, match="is not a file"):
            frames_of(path)


def test_options_out_of_range_are_refused() -> None:
    for bits in (7, 17):
        with pytest.raises(ValueError, match=rf"`bits_stored` must be in 8..16.*got {bits}"):
            ReadOptions(bits_stored=bits)
    with pytest.raises(ValueError, match="`salt` must not be empty"):
        ReadOptions(salt="")
