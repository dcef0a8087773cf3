"""Crops of a batch on the device against Pillow and against the crops of single frames."""

import numpy as np
import pytest
import torch
from PIL import Image

from vasomim_hf.data.crops import Crop, crop_vesselness, random_crop
from vasomim_hf.data.device_crops import crop_batch
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def batch_of(frames):
    pixels = torch.from_numpy(np.stack(frames))[:, None]
    return pixels, pixels < 100


def pillow_crop(frame, crop, size):
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    resized = Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else resized).astype(int)


def noise(seed, height, width):
    """The hardest frame: every pixel independent, with sharp edges between black and white."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("height, width, size", [(96, 128, (56, 56)), (64, 64, (100, 48)), (17, 23, (17, 23))])
def test_frames_differ_from_pillows_by_one_grey_level_at_most(height, width, size, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = np.random.default_rng(0)
    frames = [noise(seed, height, width) for seed in range(24)]
    crops = [random_crop((height, width), generator) for _ in frames[3:]]
    crops += [Crop(0, 0, height, width), Crop(height - 1, width - 1, 1, 1), Crop(0, 0, height, 5, flip=True)]
    pixels, vesselness = (tensor.to(device) for tensor in batch_of(frames))
    resized, _ = crop_batch(pixels, vesselness, crops, size)
    assert resized.shape == (24, 1, *size) and resized.dtype == torch.uint8 and resized.device == pixels.device
    for frame, crop, out in zip(frames, crops, resized.cpu().numpy()[:, 0], strict=True):
        difference = np.abs(out.astype(int) - pillow_crop(frame, crop, size))
        assert difference.max() <= 1 and np.mean(difference > 0) < 0.002


def test_angiograms_agree_with_pillow_at_the_size_of_training():
    frames = [synthetic_angiogram(seed, size=512).image for seed in range(3)]
    crops = [Crop(3, 50, 460, 410, flip=True), Crop(100, 0, 240, 300), Crop(0, 0, 512, 512)]
    resized, _ = crop_batch(*batch_of(frames), crops, (224, 224))
    for frame, crop, out in zip(frames, crops, resized.numpy()[:, 0], strict=True):
        assert np.abs(out.astype(int) - pillow_crop(frame, crop, (224, 224))).max() <= 1


@pytest.mark.parametrize("num_out", [1, 7, 32, 224])
def test_masks_take_the_pixels_that_single_crops_take_for_every_length(num_out):
    # The mask holds where it was taken from, in two bytes
    for length in range(1, 600, 3):
        row = np.arange(length)
        places = [np.tile((row >> shift).astype(np.uint8), (2, 1)) for shift in (0, 8)]
        crop = Crop(0, 0, 1, length, flip=bool(length % 3))
        expected = [crop_vesselness(place, crop, (1, num_out)) for place in places]
        masks = torch.from_numpy(np.stack(places))[:, None]
        _, found = crop_batch(masks, masks, [crop, crop], (1, num_out))
        np.testing.assert_array_equal(found[:, 0].numpy(), np.stack(expected))


def test_random_crops_of_masks_equal_those_of_single_frames():
    generator = np.random.default_rng(1)
    frames = [noise(seed, 101, 90) for seed in range(40)]
    crops = [random_crop((101, 90), generator) for _ in frames]
    _, found = crop_batch(*batch_of(frames), crops, (33, 40))
    expected = [crop_vesselness(frame < 100, crop, (33, 40)) for frame, crop in zip(frames, crops, strict=True)]
    assert found.dtype == torch.bool and {crop.flip for crop in crops} == {True, False}
    np.testing.assert_array_equal(found[:, 0].numpy(), np.stack(expected))


def test_autocast_does_not_make_the_levels_coarse():
    frames = batch_of([noise(0, 64, 64)])
    expected = crop_batch(*frames, [Crop(0, 0, 60, 50)], (32, 32))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(crop_batch(*frames, [Crop(0, 0, 60, 50)], (32, 32))[0], expected)


def test_the_number_of_operations_does_not_grow_with_the_batch_and_none_waits(counted_operations):
    crop_batch(*batch_of([noise(0, 32, 32)]), [Crop(0, 0, 20, 20)], (16, 16))  # makes what is kept between batches
    counts = []
    for number in (2, 16):
        frames = batch_of([noise(0, 32, 32)] * number)
        counted_operations.names.clear()
        with counted_operations:
            crop_batch(*frames, [Crop(0, 0, 20, 20)] * number, (16, 16))
        counts.append(len(counted_operations.names))
    assert counts[0] == counts[1] < 150 and not counted_operations.waiting


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pixels": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "grey frames of shape"),
        ({"pixels": torch.zeros(2, 1, 8, 8)}, "before normalisation"),
        ({"vesselness": torch.zeros(2, 1, 8, 9, dtype=torch.bool)}, "vessel masks of the frames' shape"),
        ({"vesselness": torch.zeros(2, 1, 8, 8)}, "uint8 or bool"),
        ({"crops": [Crop(0, 0, 8, 8)]}, "2 frames, got 1"),
        ({"crops": [Crop(0, 0, 8, 8), Crop(1, 0, 8, 8)]}, "frame of 8×8"),
        ({"crops": [Crop(0, 0, 8, 8), Crop(0, -1, 4, 4)]}, "frame of 8×8"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    given = {"pixels": torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "crops": [Crop(0, 0, 8, 8)] * 2}
    given = {"vesselness": given["pixels"], **given, **changes}
    with pytest.raises(ValueError, match=message):
        crop_batch(size=(4, 4), **given)
