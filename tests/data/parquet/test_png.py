"""PNG files for Parquet: read by everyone, without loss, and packed well by zstd."""

import io

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vasomim_hf.data.parquet.png import encode_label_png, encode_mask_png, encode_png
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram


def readers(file: bytes) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(file))),
        cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED),
    ]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (33, 65)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_two_independent_readers_give_every_grey_level_back(shape: tuple[int, int], dtype: type):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    for read in readers(encode_png(pixels)):
        assert read.dtype == dtype
        assert np.array_equal(read, pixels)


def test_a_view_and_a_big_endian_frame_are_encoded_as_what_they_mean():
    pixels = np.random.default_rng(0).integers(0, 65536, (8, 12)).astype(np.uint16)
    assert encode_png(pixels[::2, ::3]) == encode_png(pixels[::2, ::3].copy())
    for read in readers(encode_png(pixels.astype(">u2"))):
        assert np.array_equal(read, pixels)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 64])
def test_two_independent_readers_give_a_mask_back(width: int):
    mask = np.random.default_rng(0).random((5, width)) < 0.5
    pillow, opencv = readers(encode_mask_png(mask))
    assert pillow.dtype == bool
    assert np.array_equal(pillow, mask)
    assert np.array_equal(opencv > 0, mask)


def test_labels_come_back_as_their_ids():
    labels = np.random.default_rng(0).integers(0, 27, (20, 30)).astype(np.uint8)
    for read in readers(encode_label_png(labels)):
        assert np.array_equal(read, labels)
    assert np.array_equal(readers(encode_label_png(labels > 3))[0], labels > 3)


def test_zstd_packs_a_frame_to_about_the_size_of_an_ordinary_png():
    frame = synthetic_angiogram(0, size=256).image
    ordinary = io.BytesIO()
    Image.fromarray(frame).save(ordinary, format="PNG")
    packed = pa.Codec("zstd", compression_level=1).compress(encode_png(frame), asbytes=True)
    assert len(packed) < 1.15 * len(ordinary.getvalue())
    assert len(packed) < 0.75 * frame.size


@pytest.mark.parametrize(
    ("encode", "wrong"),
    [
        (encode_png, np.zeros((2, 2), np.float32)),
        (encode_png, np.zeros((2, 2, 3), np.uint8)),
        (encode_png, np.zeros((0, 2), np.uint8)),
        (encode_mask_png, np.zeros((2, 2), np.uint8)),
        (encode_label_png, np.zeros((2, 2), np.int64)),
    ],
)
def test_other_arrays_are_refused_with_what_they_are(encode, wrong: np.ndarray):
    with pytest.raises(ValueError, match=rf"got .*{wrong.dtype}"):
        encode(wrong)
