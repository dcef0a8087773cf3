"""The image processor against Pillow, numpy and the library's ViT processor, on every kind of input and every guard."""

import json
import logging
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessorPil
from transformers.image_utils import load_image
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import is_torchvision_available
from transformers.utils import logging as transformers_logging

from vasomim_hf import (
    configuration_unext,
    image_processing_boxes,
    image_processing_reading,
    image_processing_vasomim,
)
from vasomim_hf.image_processing_reading import read_frames, scale_to_8_bit
from vasomim_hf.image_processing_vasomim import (
    VasoMIMImageProcessor,
    VasoMIMImageProcessorKwargs,
    VasoMIMImageProcessorPil,
    polarity_skewness,
)


MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
CLASSES = [VasoMIMImageProcessorPil] + ([VasoMIMImageProcessor] if is_torchvision_available() else [])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=CLASSES)
def processor(request: pytest.FixtureRequest) -> VasoMIMImageProcessorPil:
    return request.param(size={"height": 32, "width": 32})


@pytest.fixture
def pil() -> VasoMIMImageProcessorPil:
    return VasoMIMImageProcessorPil(size={"height": 32, "width": 32})


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the modules warn of, each message as often as it is asked for."""
    caught: list[str] = []
    for logger in (image_processing_vasomim.logger, image_processing_reading.logger):
        monkeypatch.setattr(logger, "warning_once", caught.append)
        monkeypatch.setattr(logger, "warning", caught.append)
    return caught


def frame_of(rng: np.random.Generator, height: int = 64, width: int = 48) -> np.ndarray:
    """A frame with dark lines on a bright ground."""
    frame = rng.normal(160, 4, (height, width))
    frame[:, width // 3 : width // 3 + 3] = 60
    frame[height // 2 : height // 2 + 2] = 80
    return np.clip(frame, 0, 255).astype(np.uint8)


def vessels(seed: int = 0) -> np.ndarray:
    """A frame of 512 x 512 with a tree of thin dark curves and a black collimator."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:512, :512]
    frame = 150 + 30 * np.sin(rows / 150 + seed) + rng.normal(0, 5, (512, 512))
    for _ in range(8):
        centre = rng.uniform(60, 450) + 40 * np.sin(rows / rng.uniform(30, 90))
        frame -= 50 * np.exp(-(((columns - centre) / 4) ** 2))
    frame[:, :30] = 0
    return np.clip(frame, 0, 255).astype(np.uint8)


def expected(frame: np.ndarray, size: int = 32) -> np.ndarray:
    """By hand: Pillow's bicubic resize of an 8-bit grey or RGB (H, W, C) frame, then mean and standard deviation."""
    resized = np.asarray(Image.fromarray(frame).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    return ((resized / 255 - MEAN) / STD).transpose(2, 0, 1)


def pixels(processor: VasoMIMImageProcessorPil, images: object, **kwargs: object) -> torch.Tensor:
    return processor(images, return_tensors="pt", **kwargs).pixel_values


def assert_pixels(actual: torch.Tensor, wanted: list[np.ndarray], levels: int = 1) -> None:
    assert actual.dtype == torch.float32 and tuple(actual.shape) == (len(wanted), *wanted[0].shape)
    # One grey level is 0.0175, and torchvision's resize differs from Pillow's by one here and there.
    np.testing.assert_allclose(actual.numpy(), np.stack(wanted), atol=0.018 * levels)
    assert np.abs(actual.numpy() - np.stack(wanted)).mean() < (1e-3 if levels == 1 else 6e-3)


# Against outside references


@pytest.mark.parametrize("size", [32, 224, 300])
def test_grey_and_colour_frames_equal_pillow_and_the_formula(pil, rng, size):
    colour = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
    for frame in (frame_of(rng), colour):
        actual = pixels(pil, frame, size={"height": size, "width": size}, do_convert_grayscale=False)[0].numpy()
        np.testing.assert_allclose(actual, expected(frame, size), atol=1e-6)


def test_8_bit_frames_equal_the_vit_processor_of_the_library_to_the_last_bit(rng):
    vit = ViTImageProcessorPil(resample=3, image_mean=list(MEAN), image_std=list(STD))
    colour = [Image.fromarray(rng.integers(0, 256, (101, 77, 3), dtype=np.uint8)) for _ in range(3)]
    grey = [Image.fromarray(frame_of(rng, 90, 120)) for _ in range(3)]
    processor = VasoMIMImageProcessorPil()
    assert torch.equal(pixels(processor, colour, do_convert_grayscale=False), pixels(vit, colour))
    assert torch.equal(pixels(processor, colour), pixels(vit, [image.convert("L").convert("RGB") for image in colour]))
    assert torch.equal(pixels(processor, grey), pixels(vit, [image.convert("RGB") for image in grey]))


@pytest.mark.parametrize("size", [{"shortest_edge": 40}, {"shortest_edge": 40, "longest_edge": 50}])
def test_sizes_by_the_shortest_edge_are_those_of_the_vit_processor(processor, rng, size):
    vit = ViTImageProcessorPil(resample=3, image_mean=list(MEAN), image_std=list(STD), size=size)
    for shape in ((64, 48), (48, 64), (50, 50), (33, 97)):
        image = Image.fromarray(frame_of(rng, *shape))
        assert_pixels(pixels(processor, image, size=size), [pixels(vit, image.convert("RGB"))[0].numpy()])


def test_deep_frames_equal_a_float_resize_without_rounding(processor, rng):
    frame = rng.integers(0, 4096, (64, 48), dtype=np.uint16)
    resized = np.asarray(Image.fromarray(frame.astype(np.float32)).resize((32, 32), Image.Resampling.BICUBIC))
    wanted = (resized[None] / 4095 - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(pixels(processor, frame, bits_stored=12)[0].numpy(), wanted, atol=2e-5)


def test_grey_frames_equal_the_route_over_three_channels(processor, rng):
    frame = frame_of(rng)
    assert torch.equal(pixels(processor, frame), pixels(processor, np.stack([frame] * 3)))
    deep = rng.integers(0, 4096, (64, 48), dtype=np.uint16)
    repeated = pixels(processor, np.stack([deep] * 3), bits_stored=12)
    torch.testing.assert_close(pixels(processor, deep, bits_stored=12), repeated, rtol=0, atol=1e-6)


# Every kind of input


def kinds_of(frame: np.ndarray) -> dict[str, object]:
    deep = frame.astype(np.uint16)
    image = Image.fromarray(frame)
    palette = Image.fromarray(frame)
    palette.putpalette([value for grey in range(256) for value in (grey, grey, grey)])
    return {
        "PIL L": image,
        "PIL RGB": image.convert("RGB"),
        "PIL RGBA": image.convert("RGBA"),
        "PIL P": palette,
        "PIL LA": image.convert("LA"),
        "PIL I": image.convert("I"),
        "PIL I;16": Image.fromarray(deep),
        "PIL I;16B": Image.frombytes("I;16B", image.size, deep.astype(">u2").tobytes()),
        "PIL F": image.convert("F"),
        "PIL CMYK": image.convert("RGB").convert("CMYK"),
        "(H, W)": frame,
        "(H, W, 1)": frame[..., None],
        "(1, H, W)": frame[None],
        "(H, W, 3)": np.stack([frame] * 3, axis=-1),
        "(3, H, W)": np.stack([frame] * 3),
        "(4, H, W)": np.stack([frame] * 4),
        "(1, 3, H, W)": np.stack([frame] * 3)[None],
        "(1, H, W, 3)": np.stack([frame] * 3, axis=-1)[None],
        "uint16": deep,
        "big-endian": deep.astype(">u2"),
        "int16": frame.astype(np.int16),
        "int32": frame.astype(np.int32),
        "int64": frame.astype(np.int64),
        "float16": frame.astype(np.float16),
        "float32": frame.astype(np.float32),
        "float64 in [0, 1]": frame / 255,
        "torch uint8": torch.from_numpy(frame),
        "torch (3, H, W)": torch.from_numpy(np.stack([frame] * 3)),
        "torch int16": torch.from_numpy(frame.astype(np.int16)),
        "torch float in [0, 1]": torch.from_numpy(frame / 255),
        "torch bfloat16": torch.from_numpy(frame).bfloat16(),
        "not contiguous": np.asfortranarray(frame),
        "list": [frame],
        "nested list": [[frame]],
        "tuple": (frame,),
    }


@pytest.mark.parametrize("kind", kinds_of(np.zeros((2, 2), dtype=np.uint8)))
def test_every_kind_of_input_gives_the_pixels_of_the_frame(processor, rng, kind):
    frame = frame_of(rng)
    # Floats are not rounded to 8 bits after the resize, which is worth a quarter of a grey level on average.
    rounded = not ("float" in kind or kind == "PIL F")
    assert_pixels(pixels(processor, kinds_of(frame)[kind]), [expected(frame)], levels=1 if rounded else 2)


def test_binary_images_and_arrays_are_black_and_white(processor, rng):
    binary = frame_of(rng) > 128
    wanted = [expected(binary.astype(np.uint8) * 255)]
    for image in (binary, torch.from_numpy(binary), Image.fromarray(binary)):
        assert_pixels(pixels(processor, image), wanted)
    assert Image.fromarray(binary).mode == "1"


@pytest.mark.parametrize(
    "shape", ["(T, H, W)", "(T, H, W, 1)", "(T, 1, H, W)", "(T, H, W, 3)", "(T, 3, H, W)", "torch"]
)
def test_a_cine_gives_its_frames_in_order(processor, rng, shape):
    cine = np.stack([frame_of(rng) // (index + 1) for index in range(5)])
    images = {
        "(T, H, W)": cine,
        "(T, H, W, 1)": cine[..., None],
        "(T, 1, H, W)": cine[:, None],
        "(T, H, W, 3)": np.stack([cine] * 3, axis=-1),
        "(T, 3, H, W)": np.stack([cine] * 3, axis=1),
        "torch": torch.from_numpy(cine),
    }[shape]
    assert_pixels(pixels(processor, images), [expected(frame) for frame in cine])


def test_a_mixed_list_flattens_to_frames_and_a_cine_in_it_to_its_own(processor, rng, tmp_path):
    one, cine = frame_of(rng), np.stack([frame_of(rng, 60, 60), frame_of(rng, 60, 60)])
    Image.fromarray(one).save(tmp_path / "one.png")
    images = [Image.fromarray(one), cine, str(tmp_path / "one.png"), [tmp_path / "one.png"]]
    assert_pixels(pixels(processor, images), [expected(frame) for frame in (one, cine[0], cine[1], one, one)])


def test_palette_and_transparent_images_become_grey_by_luma(processor, rng):
    colour = Image.fromarray(rng.integers(0, 256, (64, 48, 3), dtype=np.uint8))
    palette = colour.quantize(16)
    wanted = [expected(np.asarray(palette.convert("RGB").convert("L")))]
    assert_pixels(pixels(processor, palette), wanted)
    palette.info["transparency"] = bytes([0, 128] + [255] * 14)
    assert_pixels(pixels(processor, palette), wanted)
    transparent = colour.copy()
    transparent.putalpha(40)
    assert_pixels(pixels(processor, transparent), [expected(np.asarray(colour.convert("L")))])


def test_16_bit_files_keep_their_depth_where_the_library_saturates(processor, rng, tmp_path):
    ramp = np.linspace(0, 65535, 64 * 48).reshape(64, 48).astype(np.uint16)
    for name in ("ramp.png", "ramp.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        actual = pixels(processor, str(tmp_path / name), bits_stored=16, do_resize=False)[0].numpy()
        wanted = (ramp[None] / 65535 - MEAN[:, None, None]) / STD[:, None, None]
        np.testing.assert_allclose(actual, wanted, atol=1e-5)
        assert len(np.unique(actual[0])) > 3000


def test_a_file_of_several_pages_is_a_cine(processor, rng, tmp_path):
    cine = rng.integers(0, 1024, (5, 64, 48), dtype=np.uint16)
    first, *rest = [Image.fromarray(frame) for frame in cine]
    first.save(tmp_path / "cine.tif", save_all=True, append_images=rest)
    assert torch.equal(
        pixels(processor, tmp_path / "cine.tif", bits_stored=10), pixels(processor, cine, bits_stored=10)
    )


def test_a_file_with_pages_of_different_sizes_is_refused(pil, rng, tmp_path):
    page = Image.fromarray(frame_of(rng))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page.resize((20, 20))])
    with pytest.raises(ValueError, match="pages of different shapes"):
        pil(tmp_path / "pages.tif")


def test_axes_are_read_by_the_documented_rule_and_by_input_data_format(pil, rng):
    rgb = np.stack([frame_of(rng)] * 3)
    assert len(pixels(pil, rgb)) == 1
    assert len(pixels(pil, rgb[..., None])) == 3
    assert len(pixels(pil, list(rgb))) == 3
    assert len(pixels(pil, rgb, input_data_format="channels_first")) == 1
    assert len(pixels(pil, frame_of(rng)[:, :3], input_data_format="channels_last")) == 1
    narrow = np.moveaxis(rgb, 0, -1)[:3]  # (3, W, 3): first axis unless said otherwise
    wanted = pixels(pil, Image.fromarray(narrow))
    assert torch.equal(pixels(pil, narrow, input_data_format="channels_last"), wanted)
    assert pixels(pil, narrow).shape == wanted.shape and not torch.equal(pixels(pil, narrow), wanted)


def test_grey_stays_one_channel_without_conversion_and_statistics_must_fit(processor, rng):
    frame = frame_of(rng)
    grey = pixels(processor, frame, do_convert_rgb=False, image_mean=[0.5], image_std=[0.25])
    assert grey.shape == (1, 1, 32, 32)
    assert pixels(processor, frame, do_convert_rgb=False, do_normalize=False).max() <= 1
    with pytest.raises(ValueError, match="`image_mean` has 3 values for frames of \\[1\\] channels"):
        processor(frame, do_convert_rgb=False)


def test_floats_are_taken_as_they_are_without_rescaling(processor, rng, messages):
    frame = frame_of(rng) / np.float32(255)
    plain = pixels(processor, frame, do_rescale=False, do_resize=False)
    torch.testing.assert_close(plain, pixels(processor, frame, do_resize=False), rtol=0, atol=1e-5)
    untouched = pixels(processor, frame - 0.5, do_rescale=False, do_normalize=False, do_resize=False)
    np.testing.assert_allclose(untouched[0, 0].numpy(), frame - 0.5, atol=1e-6)


def test_crop_and_padding_treat_frames_and_maps_alike(processor, rng):
    frame = frame_of(rng, 60, 40)
    ids = (frame > 128).astype(np.uint8)
    cropped = processor(frame, ids, return_tensors="pt", do_resize=False, do_center_crop=True, crop_size=30)
    assert_pixels(cropped.pixel_values, [expected(frame[15:45, 5:35], 30)])
    np.testing.assert_array_equal(cropped.labels[0].numpy(), ids[15:45, 5:35])
    padded = processor(frame, ids, ids, return_tensors="pt", do_resize=False, do_pad=True, pad_size=64)
    assert padded.pixel_values.shape == (1, 3, 64, 64)
    assert (padded.labels[0, 60:] == 255).all() and (padded.labels[0, :, 40:] == 255).all()
    np.testing.assert_array_equal(padded.labels[0, :60, :40].numpy(), ids)
    assert (padded.vesselness[0, 0, 60:] == 0).all()


def test_input_is_never_changed_and_output_never_shares_its_memory(pil, rng):
    frame = frame_of(rng).astype(np.float32)
    before = frame.copy()
    output = pil(frame, frame.round(), do_resize=False, do_rescale=False, do_normalize=False)
    for array in (*output.pixel_values, *output.labels):
        array += 1
    np.testing.assert_array_equal(frame, before)


# Bit depth


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bit_depth_is_inferred_as_the_smallest_that_holds_the_maximum_and_said(messages, bits):
    highest = (1 << bits) - 1
    array = np.array([[0, highest]], dtype=np.int32)
    np.testing.assert_allclose(scale_to_8_bit(array), [[0, 255]])
    assert len(messages) == 1 and f"{bits} bits are assumed" in messages[0]
    scale_to_8_bit(array, do_check_input=False)
    scale_to_8_bit(array, bits_stored=bits)
    assert len(messages) == 1


def test_stated_bit_depth_scales_without_clipping_or_rounding():
    array = np.arange(0, 4096, dtype=np.uint16)
    scaled = scale_to_8_bit(array, bits_stored=12)
    assert scaled.dtype == np.float32 and len(np.unique(scaled)) == 4096
    np.testing.assert_allclose(scaled, array.astype(np.float64) * 255 / 4095, rtol=1e-6)
    np.testing.assert_allclose(scale_to_8_bit(array.astype(np.float64), bits_stored=12), scaled, rtol=1e-6)


def test_8_bit_pixels_come_back_as_8_bit_integers():
    array = np.arange(256, dtype=np.uint8)
    assert scale_to_8_bit(array, bits_stored=12) is array
    for same in (array.astype(np.int64), array.astype(np.uint16)):
        assert scale_to_8_bit(same, bits_stored=8).dtype == np.uint8
        np.testing.assert_array_equal(scale_to_8_bit(same, bits_stored=8), array)


def test_the_depth_of_a_cine_is_judged_as_a_whole(pil):
    cine = np.stack([np.full((32, 32), value, dtype=np.uint16) for value in (200, 4000)])
    levels = pixels(pil, cine, do_normalize=False, do_check_input=False)[:, 0, 0, 0].numpy()
    np.testing.assert_allclose(levels, [200 / 4095, 4000 / 4095], rtol=1e-5)


@pytest.mark.parametrize(
    ("array", "bits_stored", "message"),
    [
        (np.array([5000], dtype=np.uint16), 12, "reach 5000, which 12 bits cannot hold"),
        (np.array([5000.0]), 12, "reach 5000, which 12 bits cannot hold"),
        (np.array([1e300]), None, "which 16 bits cannot hold"),
        (np.array([70000]), None, "reach 70000, which 16 bits cannot hold"),
        (np.array([-1, 300], dtype=np.int16), None, "must be >= 0, got a minimum of -1 in int16"),
        (np.array([1], dtype=np.uint16), 7, "must be in 8..32"),
        (np.array([1], dtype=np.uint16), 0, "must be in 8..32"),
        (np.array([1j]), None, "bool, integers or floats, got complex128"),
        (np.array([np.nan, 1.0]), None, "must be finite, got 1 NaN or infinite of 2"),
        (np.array([np.inf, 1.0]), None, "must be finite, got 1 NaN or infinite of 2"),
        (np.array([-2.1, 2.3], dtype=np.float32), None, "looks already normalised"),
        (np.array([-2.1, -0.3], dtype=np.float32), None, "looks already normalised"),
    ],
)
def test_pixels_that_can_only_be_a_mistake_are_refused(array, bits_stored, message):
    with pytest.raises(ValueError, match=message):
        scale_to_8_bit(array, bits_stored)


def test_rounding_noise_below_zero_is_no_mistake():
    assert scale_to_8_bit(np.array([-1e-7, 1.0])).max() == 255


# Guard


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "got an empty list"),
        ([[], []], "got an empty list"),
        (np.zeros((1, 1), dtype=np.uint8), "at least 2 x 2 pixels, got 1 x 1"),
        (np.zeros((64, 1), dtype=np.uint8), "at least 2 x 2 pixels, got 64 x 1"),
        (np.zeros((0, 64), dtype=np.uint8), "at least 2 x 2 pixels, got 0 x 64"),
        (np.zeros((0, 64, 64), dtype=np.uint8), "\\(0 frames\\)"),
        (np.zeros((64, 64, 2), dtype=np.uint8), "must have 1, 3 or 4 channels"),
        (np.zeros((64, 64, 5), dtype=np.uint8), "must have 1, 3 or 4 channels"),
        (np.zeros((2, 2, 64, 64), dtype=np.uint8), "must have 1, 3 or 4 channels"),
        (np.zeros((2, 3, 2, 64, 64), dtype=np.uint8), "2 to 4 axes"),
        (np.zeros(64, dtype=np.uint8), "2 to 4 axes"),
        (np.full((64, 64), np.nan, dtype=np.float32), "must be finite"),
        (torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0)), "looks already normalised"),
        ("https://example.org/frame.png", "Expected a local path"),
    ],
)
def test_input_that_cannot_be_used_is_refused(processor, images, message):
    with pytest.raises(ValueError, match=message):
        processor(images)


@pytest.mark.parametrize("channels", [2, 5])
def test_a_wrong_number_of_channels_is_refused_where_the_format_is_given(pil, channels):
    with pytest.raises(ValueError, match=f"got shape \\({channels}, 64, 64\\)"):
        pil(np.zeros((channels, 64, 64), dtype=np.uint8), input_data_format="channels_first")


def test_things_that_are_no_images_are_refused(pil, tmp_path):
    for thing in (None, 3, [[1, 2], [3, 4]], {"image": 1}, b"bytes"):
        with pytest.raises(TypeError, match="must be a PIL image"):
            pil(thing)
    with pytest.raises(FileNotFoundError, match="absent.png"):
        pil(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="is no image that Pillow opens"):
        pil(tmp_path / "text.png")


def test_a_truncated_file_is_refused_by_name(pil, rng, tmp_path):
    path = tmp_path / "whole.png"
    Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(OSError, match="whole.png' cannot be read"):
        pil(path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (vessels() / 255, "Float frames in \\[0, 1\\]"),
        (vessels().astype(np.uint16) * 16, "12 bits are assumed"),
        (np.full((64, 64), 100, dtype=np.uint8), "Frame 0 of 1 looks constant"),
        (np.zeros((64, 64), dtype=np.uint8), "Frame 0 of 1 looks constant"),
        (vessels() // 20, "Frame 0 of 1 looks nearly black"),
        (np.full((64, 64), 255, dtype=np.uint8), "Frame 0 of 1 looks saturated"),
        (np.minimum(vessels().astype(np.uint16) * 2, 255).astype(np.uint8), "Frame 0 of 1 looks saturated"),
        (np.stack([vessels(0), vessels(1), vessels(2)]), "channels that differ"),
        (255 - vessels(), "Frame 0 of 1 looks inverted"),
        (255 - np.stack([vessels(seed) for seed in range(20)]), "Frames 0-19 of 20 look inverted"),
    ],
)
def test_suspicious_input_is_named_and_the_switch_turns_it_off(processor, messages, image, message):
    pixels(processor, image)
    assert len(set(messages)) == 1 and re.search(message, messages[0])
    messages.clear()
    pixels(processor, image, do_check_input=False)
    assert messages == []


def test_sound_frames_pass_in_silence(processor, messages):
    cine = np.stack([vessels(seed) for seed in range(20)])
    pixels(processor, cine)
    pixels(processor, [Image.fromarray(cine[0]).convert("RGB"), cine[1].astype(np.float32)])
    pixels(processor, cine.astype(np.uint16) * 16, bits_stored=12)
    pixels(processor, cine[0] / 255, do_rescale=False)
    pixels(processor, np.random.default_rng(0).normal(128, 20, (512, 512)).astype(np.uint8))  # neither dark nor bright
    assert messages == []


def test_12_bit_pixels_declared_as_16_are_said_to_be_nearly_black(processor, messages):
    pixels(processor, vessels().astype(np.uint16) * 16, bits_stored=16)
    assert len(messages) == 1 and "nearly black" in messages[0]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What reaches the log, as in a process that has said nothing yet."""
    transformers_logging.enable_propagation()
    image_processing_vasomim.logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        yield caplog
    transformers_logging.disable_propagation()


def test_suspicious_frames_are_named_in_each_call_and_assumptions_once_per_process(pil, said):
    first = [vessels()] * 40
    first[3] = first[7] = 255 - vessels()
    first[10:13] = [np.zeros((64, 64), dtype=np.uint8)] * 3
    second = [vessels().astype(np.uint16) * 16, vessels() / 255, 255 - vessels()]
    for images in (first, second, second):
        pil(images)
    texts = [record.message for record in said.records]
    assert [text for text in texts if "look" in text and "inverted" in text] == [
        text for text in texts if text.startswith(("Frames 3, 7 of 40 look inverted,", "Frame 2 of 3 looks inverted,"))
    ]
    assert sum(text.startswith("Frames 3, 7 of 40 look inverted,") for text in texts) == 1
    assert sum(text.startswith("Frame 2 of 3 looks inverted,") for text in texts) == 2
    assert sum(text.startswith("Frames 10-12 of 40 look constant,") for text in texts) == 1
    assert sum("12 bits are assumed" in text for text in texts) == 1
    assert sum("Float frames in [0, 1]" in text for text in texts) == 1
    assert len(texts) == 6


def test_every_inverted_frame_of_a_cine_is_named(pil, messages):
    cine = np.stack([vessels()] * 40)
    cine[[3, 7]] = 255 - vessels()
    pil(cine)
    assert len(messages) == 1 and messages[0].startswith("Frames 3, 7 of 40 look inverted")


def test_frames_that_look_normalised_are_named_by_their_numbers(processor, rng):
    raw, normalised = frame_of(rng).astype(np.float32), rng.normal(size=(64, 48)).astype(np.float32)
    cine = np.stack([raw, normalised, raw, normalised, normalised])
    with pytest.raises(ValueError, match="^Frames 2, 4, 5 of 7 look already normalised: float pixels with minimum -"):
        processor([raw, cine, frame_of(rng)])
    with pytest.raises(ValueError, match="^Frame 0 of 1 looks already normalised"):
        processor(normalised, do_rescale=False)


def test_an_error_names_the_image_where_a_call_has_several(pil, rng):
    with pytest.raises(ValueError, match="^Image 1 of 2: Pixels must be finite"):
        pil([frame_of(rng), np.full((64, 48), np.nan)])
    with pytest.raises(ValueError, match="^Image 0 of 2: A frame must be at least 2 x 2"):
        pil([np.zeros((1, 1), np.uint8), frame_of(rng)])


# What Pillow reads wrongly


def save_deep_colour(path: Path, levels: np.ndarray) -> None:
    """Write a PNG of 16 bits per colour channel, which Pillow cannot."""
    rows, columns = levels.shape
    lines = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", columns, rows, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


@pytest.mark.parametrize("check", [True, False])
def test_a_deep_tiff_with_white_as_0_is_refused(pil, rng, tmp_path, check):
    path = tmp_path / "white.tif"
    Image.fromarray(frame_of(rng).astype(np.uint16) * 16).save(path, tiffinfo={262: 0})
    with pytest.raises(ValueError, match="white.tif': The image stores white as 0"):
        pil(path, do_check_input=check, bits_stored=12)
    with Image.open(path) as image, pytest.raises(ValueError, match="stores white as 0"):
        pil(image, do_check_input=check, bits_stored=12)
    Image.fromarray(frame_of(rng).astype(np.uint16) * 16).save(path)
    pil(path, do_check_input=check, bits_stored=12)


def test_a_later_page_with_white_as_0_is_refused(pil, rng, tmp_path):
    page = Image.fromarray(frame_of(rng).astype(np.uint16) * 16)
    white = page.copy()
    white.encoderinfo = {"tiffinfo": {262: 0}}
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[white])
    with pytest.raises(ValueError, match="stores white as 0"):
        pil(tmp_path / "pages.tif", bits_stored=12)


@pytest.mark.parametrize(("highest", "bits_stored"), [(4095, None), (4095, 12), (4095, 16), (65535, 12)])
def test_colour_of_16_bits_is_refused_where_the_upper_8_do_not_hold_it(pil, tmp_path, highest, bits_stored):
    path = tmp_path / "colour.png"
    save_deep_colour(path, np.linspace(0, highest, 64 * 48).reshape(64, 48).astype(np.uint16))
    with pytest.raises(ValueError, match="colour.png': The image has 16 bits per colour channel"):
        pil(path, bits_stored=bits_stored)
    with Image.open(path) as image, pytest.raises(ValueError, match="16 bits per colour channel"):
        pil(image, bits_stored=bits_stored)


@pytest.mark.parametrize("bits_stored", [None, 16])
def test_colour_of_16_bits_that_uses_them_is_read(pil, tmp_path, bits_stored):
    levels = np.linspace(0, 65535, 64 * 48).reshape(64, 48).astype(np.uint16)
    save_deep_colour(tmp_path / "colour.png", levels)
    wanted = pixels(pil, (levels >> 8).astype(np.uint8))
    assert torch.equal(pixels(pil, tmp_path / "colour.png", bits_stored=bits_stored), wanted)


def test_a_label_map_of_16_bit_colour_is_refused_instead_of_read_as_background(pil, rng, tmp_path):
    save_deep_colour(tmp_path / "ids.png", (frame_of(rng) < 100).astype(np.uint16) * 7)
    with pytest.raises(ValueError, match="ids.png': The image has 16 bits per colour channel"):
        pil(frame_of(rng), segmentation_maps=tmp_path / "ids.png")


def test_normalised_floats_pass_when_the_guard_is_off(processor):
    normalised = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert pixels(processor, normalised, do_check_input=False).isfinite().all()


def test_inverting_a_frame_swaps_the_sign_of_its_polarity():
    for seed in range(5):
        thumbnail = np.asarray(
            Image.fromarray(vessels(seed)).resize((128, 128), Image.Resampling.BOX), dtype=np.float32
        )
        upright, inverted = polarity_skewness(thumbnail), polarity_skewness(255 - thumbnail)
        assert upright > 0.2
        assert inverted == pytest.approx(-upright, abs=0.05)
    assert polarity_skewness(np.tile([0.0, 255.0], (128, 64))) is None
    assert polarity_skewness(np.full((128, 128), 7.0)) is None


def test_polarity_of_real_frames_is_told_at_the_documented_rate(shared_data):
    files = sorted((shared_data / "arcade_sample").rglob("*.png"))
    verdicts = {False: 0, True: 0}
    for path in files:
        frame = np.asarray(Image.open(path).convert("L"))
        for inverted in verdicts:
            image = Image.fromarray(255 - frame if inverted else frame)
            thumbnail = np.asarray(image.resize((128, 128), Image.Resampling.BOX), dtype=np.float32)
            verdicts[inverted] += polarity_skewness(thumbnail) < -0.2
    assert len(files) == 40
    assert verdicts == {False: 0, True: 38}


def test_a_real_10_bit_angiogram_keeps_its_depth(shared_data, messages):
    path = shared_data / "odd" / "XA1_10bit_in_16.png"
    frame = np.asarray(Image.open(path))
    actual = pixels(VasoMIMImageProcessorPil(), path, do_normalize=False, do_resize=False)[0, 0].numpy()
    np.testing.assert_allclose(actual, frame / 1023, atol=1e-5)
    assert len(messages) == 1 and "10 bits are assumed" in messages[0]


# Maps


def map_kinds(ids: np.ndarray) -> dict[str, object]:
    palette = Image.fromarray(ids)
    palette.putpalette([value for grey in range(256) for value in (255 - grey, 0, grey)])
    return {
        "PIL L": Image.fromarray(ids),
        "PIL P": palette,
        "PIL I;16": Image.fromarray(ids.astype(np.uint16)),
        "PIL RGB": Image.fromarray(ids).convert("RGB"),
        "(H, W)": ids,
        "(1, H, W)": ids[None],
        "(H, W, 1)": ids[..., None],
        "(1, 1, H, W)": ids[None, None],
        "int64": ids.astype(np.int64),
        "float": ids.astype(np.float64),
        "torch": torch.from_numpy(ids).long(),
        "list": [ids],
    }


@pytest.mark.parametrize("kind", map_kinds(np.zeros((2, 2), dtype=np.uint8)))
def test_segmentation_maps_are_resized_by_nearest_neighbour_with_ids_unchanged(processor, rng, kind):
    ids = rng.choice(np.array([0, 7, 25, 255], dtype=np.uint8), (8, 6)).repeat(8, axis=0).repeat(8, axis=1)
    output = processor(frame_of(rng), segmentation_maps=map_kinds(ids)[kind], return_tensors="pt")
    wanted = np.asarray(Image.fromarray(ids).resize((32, 32), Image.Resampling.NEAREST))
    assert output.labels.dtype == torch.int64 and output.labels.shape == (1, 32, 32)
    np.testing.assert_array_equal(output.labels[0].numpy(), wanted)
    assert set(output.labels.unique().tolist()) == {0, 7, 25, 255}


def test_maps_of_a_cine_and_of_files_go_with_their_frames(processor, rng, tmp_path):
    cine = np.stack([frame_of(rng)] * 3)
    maps = np.stack([np.full((64, 48), index, dtype=np.uint8) for index in range(3)])
    Image.fromarray(maps[2]).save(tmp_path / "map.png")
    for given in (maps, torch.from_numpy(maps), list(maps), [maps[:2], tmp_path / "map.png"]):
        output = processor(cine[..., None], segmentation_maps=given, return_tensors="pt")
        assert output.labels[:, 0, 0].tolist() == [0, 1, 2]


def test_negative_ignored_ids_survive(processor, rng):
    ids = np.where(frame_of(rng) > 128, -100, 3)
    assert set(processor(frame_of(rng), ids, return_tensors="pt").labels.unique().tolist()) == {-100, 3}


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.zeros((64, 49), dtype=np.uint8), "has size \\(64, 49\\), its frame \\(64, 48\\)"),
        (np.zeros((2, 64, 48), dtype=np.uint8), "got 2 in `segmentation_maps` for 1 frames"),
        ([], "got 0 in `segmentation_maps` for 1 frames"),
        (np.full((64, 48), 0.5), "integers"),
        (np.full((64, 48), np.nan), "integers"),
        (np.full((64, 48), 2**40), "32 bits"),
        (np.stack([np.zeros((64, 48)), np.ones((64, 48)), np.ones((64, 48))], axis=-1), "3 channels that differ"),
    ],
)
def test_maps_that_do_not_fit_are_refused(processor, rng, maps, message):
    with pytest.raises(ValueError, match=message):
        processor(frame_of(rng), segmentation_maps=maps)


def test_a_binary_mask_of_255_is_named(pil, rng, messages):
    mask = (frame_of(rng) < 100).astype(np.uint8)
    pil(frame_of(rng), mask)
    assert messages == []
    output = pil(frame_of(rng), mask * 255, return_tensors="pt")
    assert set(output.labels.unique().tolist()) == {0, 255}
    assert len(messages) == 1 and "0 and 255 only" in messages[0]


def test_vesselness_comes_as_floats_between_0_and_1(processor, rng):
    mask = frame_of(rng) < 100
    wanted = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((32, 32), Image.Resampling.NEAREST))
    for given in (mask, mask.astype(np.uint8), mask.astype(np.uint8) * 255, mask.astype(np.float64), mask[None, None]):
        output = processor(frame_of(rng), vesselness=given, return_tensors="pt").vesselness
        assert output.dtype == torch.float32 and output.shape == (1, 1, 32, 32)
        np.testing.assert_array_equal(output[0, 0].numpy(), wanted)
    half = processor(frame_of(rng), vesselness=np.full((64, 48), 0.5), return_tensors="pt").vesselness
    assert (half == 0.5).all()


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan, np.inf, 300])
def test_vesselness_outside_its_range_is_refused(pil, rng, value):
    with pytest.raises(ValueError, match="Vesselness must be in"):
        pil(frame_of(rng), vesselness=np.full((64, 48), value))


# Post-processing


@pytest.mark.parametrize("labels", [1, 2, 26])
def test_logits_become_maps_of_ids(pil, labels):
    logits = torch.randn(3, labels, 8, 6)
    wanted = (logits.sigmoid() > 0.5).long()[:, 0] if labels == 1 else logits.argmax(dim=1)
    maps = pil.post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits))
    assert torch.equal(torch.stack(maps), wanted) and maps[0].dtype == torch.int64
    scored = pil.post_process_semantic_segmentation(logits, return_segmentation_scores=True)
    assert torch.equal(scored[1].segmentation, wanted[1]) and torch.equal(scored[1].segmentation_scores, logits[1])


@pytest.mark.parametrize("sizes", [[(16, 12), (5, 7)], torch.tensor([[16, 12], [5, 7]])])
def test_logits_are_interpolated_to_the_target_sizes(pil, sizes):
    logits = torch.randn(2, 3, 8, 6)
    maps = pil.post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits), target_sizes=sizes)
    for one, size, ids in zip(logits, [(16, 12), (5, 7)], maps, strict=True):
        wanted = torch.nn.functional.interpolate(one[None], size=size, mode="bilinear", align_corners=False)[0]
        assert torch.equal(ids, wanted.argmax(dim=0))


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_the_threshold_is_a_probability_with_one_label_and_with_two(pil, threshold):
    logits = torch.randn(2, 2, 8, 6)
    maps = pil.post_process_semantic_segmentation(logits, threshold=threshold)
    assert torch.equal(torch.stack(maps), (logits.softmax(dim=1)[:, 1] > threshold).long())
    maps = pil.post_process_semantic_segmentation(logits[:, :1], threshold=threshold)
    assert torch.equal(torch.stack(maps), (logits[:, 0].sigmoid() > threshold).long())


def test_post_processing_refuses_what_does_not_fit(pil):
    with pytest.raises(ValueError, match="got 3 for 2 images"):
        pil.post_process_semantic_segmentation(torch.zeros(2, 2, 4, 4), target_sizes=[(4, 4)] * 3)
    with pytest.raises(ValueError, match="got \\(2, 4, 4\\)"):
        pil.post_process_semantic_segmentation(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="must be in \\(0, 1\\), got 1.0"):
        pil.post_process_semantic_segmentation(torch.zeros(2, 1, 4, 4), threshold=1.0)


# Saving, loading, registering


@pytest.mark.parametrize("cls", CLASSES)
def test_settings_survive_saving_and_loading(cls, tmp_path):
    saved = cls(size=96, bits_stored=12, do_check_input=False, image_mean=[0.5, 0.5, 0.5])
    saved.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["image_processor_type"] == "VasoMIMImageProcessor"
    assert stored["size"] == {"height": 96, "width": 96}
    loaded = cls.from_pretrained(tmp_path)
    assert loaded.to_dict() == saved.to_dict()
    assert loaded.bits_stored == 12 and loaded.do_check_input is False


def test_settings_of_a_wrong_type_or_unknown_are_refused(pil, rng):
    for wrong in ({"bits_stored": "twelve"}, {"do_check_input": "yes"}):
        with pytest.raises(Exception, match=next(iter(wrong))):
            pil(frame_of(rng), **wrong)
    assert VasoMIMImageProcessorPil.valid_kwargs is VasoMIMImageProcessorKwargs


def test_the_plain_name_works_without_torchvision():
    assert VasoMIMImageProcessor is VasoMIMImageProcessorPil or is_torchvision_available()
    assert VasoMIMImageProcessor().backend == ("torchvision" if is_torchvision_available() else "pil")


@pytest.mark.parametrize("cls", CLASSES)
def test_a_saved_processor_loads_with_the_auto_class_once_the_package_is_imported(cls, tmp_path):
    saved = cls(size=64)
    saved.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=saved.backend)
    assert type(loaded) is cls and loaded.to_dict() == saved.to_dict()


LOAD_WITHOUT_THE_PACKAGE = """
import sys
sys.modules["vasomim_hf"] = None  # an import of the package fails
import numpy as np
from transformers import AutoImageProcessor
for backend in (None, "pil", "torchvision"):
    processor = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True, backend=backend)
    assert type(processor).__module__.startswith("transformers_modules"), type(processor)
    output = processor(np.zeros((32, 32), dtype=np.uint8), return_tensors="pt")
    assert output.pixel_values.shape == (1, 3, 64, 64), output.pixel_values.shape
"""


def test_a_published_folder_loads_by_its_auto_map_where_the_package_cannot_be_imported(tmp_path):
    processor = VasoMIMImageProcessorPil(size=64)
    processor.auto_map = {
        "AutoImageProcessor": {
            "pil": "image_processing_vasomim.VasoMIMImageProcessorPil",
            "torchvision": "image_processing_vasomim.VasoMIMImageProcessor",
        }
    }
    processor.save_pretrained(tmp_path / "published")
    modules = (image_processing_vasomim, image_processing_boxes, image_processing_reading)
    for module in (*modules, configuration_unext):
        source = Path(module.__file__)
        (tmp_path / "published" / source.name).write_text(source.read_text())
    result = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_THE_PACKAGE, str(tmp_path / "published")],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_file_is_turned_as_its_exif_orientation_says(tmp_path, suffix, orientation):
    path = tmp_path / f"frame.{suffix}"
    pixels = np.random.default_rng(0).integers(40, 200, (32, 48), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    # packed, since Pillow turns a plain TIFF that it opens by name wrongly, as the library does
    packed = {"compression": "tiff_lzw"} if suffix == "tif" else {}
    Image.fromarray(pixels).save(path, exif=exif, **packed)
    found = read_frames(path)[0, 0]
    assert found.shape == ((48, 32) if orientation == 6 else (32, 48))
    np.testing.assert_array_equal(found, np.asarray(load_image(str(path)).convert("L")))


def test_a_deep_file_is_turned_without_losing_bits(tmp_path):
    path = tmp_path / "frame.tif"
    pixels = np.random.default_rng(0).integers(0, 4096, (32, 48), dtype=np.uint16)
    Image.fromarray(pixels).save(path, tiffinfo={0x0112: 6})
    np.testing.assert_array_equal(read_frames(path)[0, 0], np.rot90(pixels, -1))
