"""Frames and masks from the bytes of image files: the quick way equals Pillow, and damage is seen."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from vasomim_hf.data.parquet import png_reading
from vasomim_hf.data.parquet.png import encode_mask_png, encode_png
from vasomim_hf.data.parquet.png_reading import decode_frame, decode_mask, read_header
from vasomim_hf.data.reading.files import UNREADABLE
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, **{"format": "PNG", **options})
    return memoryview(file.getvalue())


def noise(height, width, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width), dtype=dtype, endpoint=True)


@pytest.fixture
def without_pillow(monkeypatch):
    """Only the quick way is left."""
    monkeypatch.setattr(png_reading, "_open_image", lambda data: pytest.fail("Pillow was asked"))


@pytest.mark.parametrize("height, width", [(1, 1), (1, 40), (15, 9), (16, 8), (17, 7), (96, 100), (300, 301)])
def test_stored_frames_and_masks_are_decoded_without_pillow(height, width, without_pillow):
    frame = noise(height, width)
    data = memoryview(encode_png(frame))
    np.testing.assert_array_equal(decode_frame(data), frame)
    assert read_header(data) == (height, width, 8)
    mask = memoryview(encode_mask_png(frame > 100))
    decoded = decode_mask(mask, (height, width))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, frame > 100)
    np.testing.assert_array_equal(decode_mask(mask, (height, width), slice(3, 11)), (frame > 100)[3:11])


@pytest.mark.parametrize("options", [{}, {"compress_level": 0}, {"optimize": True}, {"format": "BMP"}])
def test_usual_files_are_decoded_as_by_pillow(options):
    image = Image.fromarray(synthetic_angiogram(0, size=(90, 112)).image)
    np.testing.assert_array_equal(decode_frame(saved(image, **options)), image)
    mask = Image.fromarray(np.asarray(image) > 100)
    for kind in (mask, mask.convert("L")):
        np.testing.assert_array_equal(decode_mask(saved(kind, **options), (90, 112)), np.asarray(image) > 100)


def test_rows_that_are_stored_as_they_are_need_no_sum(without_pillow):
    frame = noise(20, 300)
    lines = np.zeros((20, 301), np.uint8)
    lines[:, 1:] = frame
    plain = encode_png(frame)
    start, length = 41, int.from_bytes(plain[33:37], "big")
    data = plain[:start] + zlib.compress(lines, level=0) + plain[start + length :]
    np.testing.assert_array_equal(decode_frame(memoryview(data)), frame)


def test_several_pieces_of_pixels_are_joined(without_pillow):
    data = encode_png(noise(200, 200))
    start, length = 41, int.from_bytes(data[33:37], "big")
    pieces = [data[start : start + 1000], data[start + 1000 : start + length]]
    chunks = b"".join(len(p).to_bytes(4, "big") + b"IDAT" + p + bytes(4) for p in pieces)
    np.testing.assert_array_equal(decode_frame(memoryview(data[:33] + chunks + data[-12:])), noise(200, 200))


def test_colour_becomes_grey_and_deep_frames_are_scaled():
    colour = np.stack([noise(9, 8, seed) for seed in range(3)], axis=2)
    expected = np.asarray(Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(decode_frame(saved(Image.fromarray(colour))), expected)
    deep = noise(9, 8, dtype=np.uint16) >> 6
    np.testing.assert_array_equal(decode_frame(memoryview(encode_png(deep)), 10), np.rint(deep * (255 / 1023)))


def test_every_flipped_byte_is_noticed_or_changes_nothing():
    frame = synthetic_angiogram(1, size=64).image
    data = encode_png(frame)
    generator = np.random.default_rng(0)
    noticed = 0
    for place in [*range(60), *generator.integers(60, len(data), 200)]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(generator.integers(8))
        try:
            decoded = decode_frame(memoryview(bytes(damaged)))
        except (*UNREADABLE, zlib.error):
            noticed += 1
        else:
            np.testing.assert_array_equal(decoded, frame)
    assert noticed > 230


@pytest.mark.parametrize("length", [0, 5, 32, 40, 60, 1000])
def test_a_truncated_file_is_an_error(length):
    with pytest.raises((*UNREADABLE, zlib.error)):
        decode_frame(memoryview(encode_png(noise(64, 64))[:length]))


def test_a_mask_of_another_size_or_with_other_values_is_refused():
    with pytest.raises(ValueError, match="is 8×9, its frame 9×8"):
        decode_mask(memoryview(encode_mask_png(noise(8, 9) > 99)), (9, 8))
    with pytest.raises(ValueError, match="values besides 0, 1 and 255"):
        decode_mask(memoryview(encode_png(noise(8, 9))), (8, 9))
