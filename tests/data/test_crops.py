"""Paired crops against Pillow, the statistics of the boxes, alignment of frame and mask, normalisation."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from vasomim_hf.data import crops as transforms
from vasomim_hf.data.crops import Crop, crop_frame, crop_vesselness, normalize_frames, random_crop
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram


SIZE = (224, 224)


def smooth_frame(height=512, width=512, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def pillow_crop(frame, crop):
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    resized = Image.fromarray(frame).crop(box).resize(SIZE[::-1], Image.Resampling.BICUBIC)
    return np.asarray(resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flip else resized)


def root_mean_square(a, b):
    return math.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2))


def test_crops_of_real_frames_agree_with_pillows_bicubic(shared_data):
    paths = sorted((shared_data / "arcade_sample").rglob("*.png"))[:20]
    generator = np.random.default_rng(0)
    errors = []
    for path in paths:
        frame = np.asarray(Image.open(path).convert("L"))
        for _ in range(5):
            crop = random_crop(frame.shape, generator)
            errors.append(root_mean_square(crop_frame(frame, crop, SIZE), pillow_crop(frame, crop)))
    # Of 255 grey levels; rounding alone makes 0.4
    assert len(paths) == 20 and np.mean(errors) < 1.0 and np.max(errors) < 4.0


def gradient_energy(image):
    return np.mean(np.diff(image, axis=0) ** 2) + np.mean(np.diff(image, axis=1) ** 2)


def check_statistics(frames):
    """The stated tolerance: what a model sees of a crop is what it would see of Pillow's antialiased bicubic.

    Mean within 0.3 of 255 levels; a pixel within 0.8 on average; standard deviation within 2 %; energy of the gradient within
    25 % in each crop, and within 6 % on average.
    """
    generator = np.random.default_rng(0)
    energies = []
    for frame in frames:
        for _ in range(5):
            crop = random_crop(frame.shape, generator)
            fast, exact = crop_frame(frame, crop, SIZE).astype(float), pillow_crop(frame, crop).astype(float)
            assert abs(fast.mean() - exact.mean()) < 0.3 and np.abs(fast - exact).mean() < 0.8
            assert fast.std() / exact.std() == pytest.approx(1, abs=0.02)
            energies.append(gradient_energy(fast) / gradient_energy(exact))
    assert np.abs(np.array(energies) - 1).max() < 0.25 and np.mean(energies) == pytest.approx(1, abs=0.06)


def test_crops_of_real_frames_have_the_statistics_of_pillows(shared_data):
    paths = sorted((shared_data / "arcade_sample").rglob("*.png"))[:16]
    check_statistics([np.asarray(Image.open(path).convert("L")) for path in paths])


def test_crops_of_synthetic_frames_have_the_statistics_of_pillows():
    check_statistics([synthetic_angiogram(seed, size=512).image for seed in range(6)])


def test_a_crop_without_antialiasing_has_other_statistics(monkeypatch):
    monkeypatch.setattr(transforms, "_interpolation", lambda cv2, crop, size: cv2.INTER_CUBIC)
    with pytest.raises(AssertionError):
        test_crops_of_synthetic_frames_have_the_statistics_of_pillows()


@pytest.mark.parametrize("side", [100, 224, 240, 300, 350, 420, 512])
def test_crops_agree_with_pillows_bicubic_at_every_scale(side):
    frame = smooth_frame()
    crop = Crop(0, 512 - side, side, side, flip=side % 200 == 0)
    assert root_mean_square(crop_frame(frame, crop, SIZE), pillow_crop(frame, crop)) < 2.0


def test_crops_do_not_alias():
    # Stripes of one pixel carry no information at half the resolution: the right answer is plain grey
    frame = np.tile(np.array([[0, 255]], np.uint8), (512, 256))
    assert crop_frame(frame, Crop(0, 0, 512, 512), (224, 224)).std() < 32 < frame.std() / 3


def test_boxes_have_the_stated_areas_and_ratios():
    generator = np.random.default_rng(1)
    crops = [random_crop((512, 512), generator) for _ in range(4000)]
    areas = np.array([c.height * c.width for c in crops]) / 512**2
    ratios = np.array([c.width / c.height for c in crops])
    assert areas.min() > 0.195 and areas.max() <= 1 and ratios.min() > 0.745 and ratios.max() < 1.345
    # A box of area a fits when |log ratio| <= -log a, else it is drawn anew: large areas are rarer than small ones
    a = np.linspace(0.2, 1, 10_001)
    accepted = np.minimum(1, -np.log(a) / math.log(4 / 3))
    assert areas.mean() == pytest.approx(np.average(a, weights=accepted), abs=0.012)
    assert np.mean(areas > 0.75) == pytest.approx(accepted[a > 0.75].sum() / accepted.sum(), abs=0.03)
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.01)
    assert np.mean([c.flip for c in crops]) == pytest.approx(0.5, abs=0.03)
    assert all(0 <= c.top <= 512 - c.height and 0 <= c.left <= 512 - c.width for c in crops)


def test_positions_cover_the_frame_evenly():
    generator = np.random.default_rng(2)
    crops = [random_crop((512, 512), generator) for _ in range(2000)]
    where = [c.top / (512 - c.height) for c in crops if c.height < 400]
    assert np.mean(where) == pytest.approx(0.5, abs=0.03) and np.std(where) == pytest.approx(12**-0.5, abs=0.02)


def test_a_frame_too_narrow_for_the_ratio_gets_its_central_box():
    crop = random_crop((1000, 30), np.random.default_rng(0), scale=(0.9, 1.0))
    assert (crop.top, crop.left, crop.height, crop.width) == (480, 0, 40, 30)
    crop = random_crop((30, 1000), np.random.default_rng(0), scale=(0.9, 1.0))
    assert (crop.top, crop.left, crop.height, crop.width) == (0, 480, 30, 40)


def test_a_frame_of_one_pixel_is_cropped_to_itself():
    assert random_crop((1, 1), np.random.default_rng(0), flip_probability=0) == Crop(0, 0, 1, 1)


def test_equal_seeds_give_equal_boxes():
    assert random_crop((300, 400), np.random.default_rng(5)) == random_crop((300, 400), np.random.default_rng(5))


def test_frame_and_vesselness_stay_aligned():
    generator = np.random.default_rng(3)
    frame = smooth_frame(seed=4)
    vesselness = frame < 100
    for _ in range(50):
        crop = random_crop(frame.shape, generator)
        pixels, mask = crop_frame(frame, crop, SIZE), crop_vesselness(vesselness, crop, SIZE)
        assert set(np.unique(mask)) <= {0, 1}
        assert np.mean((pixels < 100) == mask) > 0.96
    assert np.mean((pixels < 100) == mask[:, ::-1]) < 0.9


def test_the_mask_takes_the_pixel_under_each_centre():
    vesselness = (np.arange(36).reshape(6, 6) % 5 == 0).astype(np.uint8)
    out = crop_vesselness(vesselness, Crop(0, 0, 6, 6), (2, 2))
    assert out.tolist() == vesselness[1::3, 1::3].tolist()


def test_normalisation_equals_the_image_processors_formula():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    out = normalize_frames(pixels, mean, std)
    expected = (pixels.double() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert out.dtype == torch.float32 and out.shape == (1, 3, 16, 16)
    torch.testing.assert_close(out.double(), expected.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "shape, dtype", [((2, 3, 4, 4), torch.uint8), ((2, 1, 4, 4), torch.float32), ((4, 4), torch.uint8)]
)
def test_normalisation_refuses_what_is_not_a_batch_of_grey_frames(shape, dtype):
    with pytest.raises(ValueError, match="grey frames of shape"):
        normalize_frames(torch.zeros(shape, dtype=dtype), [0.5], [0.5])
