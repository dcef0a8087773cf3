"""Synthetic angiograms: repeatable, correctly annotated, and like real ones in what can be counted."""

import ast
import doctest
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vasomim_hf.data.synthetic import anatomy as synthetic_anatomy
from vasomim_hf.data.synthetic import angiogram as synthetic
from vasomim_hf.data.synthetic.angiogram import (
    RIGHT_SEGMENTS,
    SEGMENT_IDS,
    SEGMENT_NAMES,
    SyntheticAngiogram,
    synthetic_angiogram,
    synthetic_angiograms,
    write_folder,
)


FIELDS = ("image", "vessel_mask", "segment_mask", "centre_line", "boxes", "stenosis_mask")


@pytest.fixture(scope="module")
def frames() -> list[SyntheticAngiogram]:
    return list(synthetic_angiograms(40, size=192))


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


def grain(image: np.ndarray) -> float:
    """Strength of the finest detail: median size of second differences, in grey levels."""
    inner = image[40:-40, 40:-40].astype(float)
    return float(np.median(np.abs(inner[:, 2:] - 2 * inner[:, 1:-1] + inner[:, :-2])))


def test_same_seed_gives_the_same_frame_and_another_seed_another_one():
    first, again, other = (synthetic_angiogram(seed, size=96) for seed in (7, 7, 8))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.side == again.side
    assert (first.image != other.image).mean() > 0.5
    assert (first.vessel_mask != other.vessel_mask).any()


def test_numpy_integers_are_accepted_as_seed_and_size():
    first = synthetic_angiogram(3, size=48).image
    np.testing.assert_array_equal(first, synthetic_angiogram(np.int64(3), size=np.int32(48)).image)


def test_same_seed_at_another_size_gives_the_same_scene():
    for seed in range(4):
        large, small = synthetic_angiogram(seed, size=256), synthetic_angiogram(seed, size=128)
        share = large.vessel_mask.reshape(128, 2, 128, 2).mean(axis=(1, 3)) >= 0.5
        overlap = (share & small.vessel_mask).sum() / (share | small.vessel_mask).sum()
        assert overlap > 0.75
        assert large.side == small.side
        np.testing.assert_allclose(large.image.mean(), small.image.mean(), atol=2)


@pytest.mark.parametrize(
    ("size", "shape"), [(64, (64, 64)), ((48, 80), (48, 80)), ([80, 33], (80, 33)), (32, (32, 32))]
)
def test_shapes_and_dtypes_are_as_stated_for_square_and_other_frames(size, shape):
    frame = synthetic_angiogram(1, size=size)
    types = {"image": "uint8", "vessel_mask": "bool", "segment_mask": "uint8", "centre_line": "bool"}
    for name, dtype in {**types, "stenosis_mask": "bool"}.items():
        array = getattr(frame, name)
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype)), name
    assert frame.boxes.dtype == np.float64
    assert frame.boxes.ndim == 2
    assert frame.boxes.shape[1] == 4


def test_a_wide_frame_is_filled_with_background_to_its_ends():
    frame = synthetic_angiogram(2, size=(64, 400))
    assert frame.image[:, :100].std() > 2
    assert frame.image[:, -100:].std() > 2


@pytest.mark.parametrize("size", [0, 8, -1, 31, 5000, 64.0, "64", None, True, (64,), (64, 64, 3), (64, 0), (64.0, 64)])
def test_illegal_sizes_are_refused_with_what_was_expected(size):
    with pytest.raises(ValueError, match=r"`size` must be an integer .*, got .*\."):
        synthetic_angiogram(0, size=size)


@pytest.mark.parametrize("seed", [-1, 0.5, None, "0", 2**63, False])
def test_illegal_seeds_are_refused(seed):
    with pytest.raises(ValueError, match=r"`seed` must be an integer from 0 to"):
        synthetic_angiogram(seed, size=64)


def test_the_iterator_refuses_a_bad_count_at_once_and_counts_seeds_up():
    with pytest.raises(ValueError, match="`num` must be an integer from 0"):
        synthetic_angiograms(-1)
    with pytest.raises(ValueError, match="`size` must be an integer from 32"):
        synthetic_angiograms(1, size=0)
    second = list(synthetic_angiograms(2, seed=4, size=48))[1]
    np.testing.assert_array_equal(second.image, synthetic_angiogram(5, size=48).image)
    assert list(synthetic_angiograms(0)) == []


def test_segment_names_are_the_categories_of_arcade():
    assert list(SEGMENT_NAMES) == list(range(1, 27))
    assert len(set(SEGMENT_NAMES.values())) == 26
    assert (SEGMENT_NAMES[10], SEGMENT_NAMES[11], SEGMENT_NAMES[24], SEGMENT_NAMES[26]) == (
        "9a",
        "10",
        "12b",
        "stenosis",
    )
    assert SEGMENT_IDS["16"] == 20


def test_segment_names_agree_with_arcades_own_annotation_files(shared_data):
    text = (shared_data / "arcade_sample/syntax/train/annotations/train.json").read_text()
    assert {entry["id"]: entry["name"] for entry in json.loads(text)["categories"]} == SEGMENT_NAMES


def test_segments_lie_on_vessels_and_belong_to_the_side(frames):
    for frame in frames:
        present = set(np.unique(frame.segment_mask)) - {0}
        assert present
        assert frame.vessel_mask[frame.segment_mask > 0].all()
        assert present <= set(SEGMENT_NAMES) - {26}
        assert (present <= RIGHT_SEGMENTS) if frame.side == "right" else not (present & RIGHT_SEGMENTS)


def test_every_vessel_segment_occurs_and_the_main_ones_are_always_there():
    labels = {"left": [], "right": []}
    for seed in range(60):
        tree = synthetic_anatomy.coronary_tree(np.random.default_rng(seed))
        labels[tree.side].append(set(np.concatenate([vessel.label for vessel in tree.vessels]).tolist()))
    assert set.union(*labels["left"], *labels["right"]) == set(range(26))
    assert set.intersection(*labels["right"]) >= {SEGMENT_IDS[name] for name in "123"}
    assert set.intersection(*labels["left"]) >= {SEGMENT_IDS[name] for name in "5678"}


def test_most_vessel_pixels_belong_to_named_segments_but_not_all(frames):
    named = np.mean([(frame.segment_mask > 0).sum() / frame.vessel_mask.sum() for frame in frames])
    assert 0.5 < named < 0.95


def test_centre_line_is_thin_and_runs_inside_the_vessels(frames):
    for frame in frames:
        assert frame.vessel_mask[frame.centre_line].all()
        assert 0.05 < frame.centre_line.sum() / frame.vessel_mask.sum() < 0.95
        # No vessel pixel is further from a centre line than the widest vessel's radius allows.
        assert grown(frame.centre_line, 7)[frame.vessel_mask].all()
    large = synthetic_angiogram(0)
    assert large.centre_line.sum() < 0.4 * large.vessel_mask.sum()


def test_boxes_are_inside_the_frame_and_tight_around_the_lesions(frames):
    for frame in frames:
        covered = np.zeros_like(frame.stenosis_mask)
        for left, top, width, height in frame.boxes.astype(int):
            assert min(left, top) >= 0
            assert min(width, height) >= 1
            assert left + width <= 192
            assert top + height <= 192
            part = frame.stenosis_mask[top : top + height, left : left + width]
            assert all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))
            covered[top : top + height, left : left + width] = True
        assert covered[frame.stenosis_mask].all()
        assert frame.vessel_mask[frame.stenosis_mask].all()
        assert frame.stenosis_mask.any() == (len(frame.boxes) > 0)


def test_both_sides_and_frames_with_and_without_stenoses_occur(frames):
    assert {frame.side for frame in frames} == {"left", "right"}
    narrowed = sum(len(frame.boxes) > 0 for frame in frames)
    assert 8 <= narrowed <= 32
    assert max(len(frame.boxes) for frame in frames) >= 2


def test_a_stenosis_narrows_the_vessel_by_30_to_95_percent_with_smooth_shoulders():
    seen = 0
    for seed in range(40):
        for vessel in synthetic_anatomy.coronary_tree(np.random.default_rng(seed)).vessels:
            for number in set(vessel.lesion.tolist()) - {0}:
                inside = np.flatnonzero(vessel.lesion == number)
                throat = vessel.radius[inside].min() / vessel.radius[[inside[0] - 1, inside[-1] + 1]].mean()
                assert 0.03 < throat < 0.8
                assert np.abs(np.diff(vessel.radius[inside[0] - 1 : inside[-1] + 2])).max() < 0.6
                seen += 1
    assert seen >= 15


def test_vessels_taper_and_branches_are_thinner_than_their_parents():
    for seed in range(20):
        vessels = synthetic_anatomy.coronary_tree(np.random.default_rng(seed)).vessels
        main = vessels[0]
        assert main.radius[-5:].mean() < 0.8 * main.radius[:5].mean()
        assert all(vessel.radius[0] < main.radius[:5].max() for vessel in vessels[1:])


def test_branches_start_on_the_centre_line_of_another_vessel():
    for seed in range(10):
        vessels = synthetic_anatomy.coronary_tree(np.random.default_rng(seed)).vessels
        for number, vessel in enumerate(vessels[1:], start=1):
            others = np.concatenate([other.points for other in vessels[:number]])
            assert np.sqrt(((others - vessel.points[0]) ** 2).sum(axis=1)).min() < 1e-9


def test_vessels_are_darker_than_their_surroundings(frames):
    for frame in frames:
        around = grown(frame.vessel_mask, 6) & ~grown(frame.vessel_mask, 2) & (frame.image > 25)
        assert frame.image[frame.vessel_mask].mean() < 0.95 * frame.image[around].mean()


def test_shadow_of_a_tube_keeps_its_weight_down_to_a_fraction_of_a_pixel():
    distance = np.abs(np.arange(-12, 13) + 0.3)
    for radius in (0.1, 0.4, 1.0, 2.7, 9.0):
        length, covered = synthetic._tube(distance, np.full(25, radius))
        np.testing.assert_allclose(length.sum(), np.pi * radius**2, rtol=1e-9)
        np.testing.assert_allclose(covered.sum(), 2 * radius, rtol=1e-9)


def test_distances_to_a_line_and_places_on_it_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    line = np.cumsum(rng.normal(0, 3, (20, 2)), axis=0) + 16
    near = synthetic._near_line(line, 4.0, (32, 40))
    dense = np.stack([np.interp(np.linspace(0, 19, 20000), np.arange(20), column) for column in line.T], axis=1)
    y, x = np.divmod(np.arange(32 * 40), 40)
    pixels = np.stack([x, y], axis=1) + 0.5
    expected = np.sqrt(((pixels[:, None] - dense[None, ::5]) ** 2).sum(axis=2)).min(axis=1)
    assert set(near.pixels) == set(np.flatnonzero(expected < 4.0))
    np.testing.assert_allclose(near.distance, expected[near.pixels], atol=2e-2)
    places = np.stack([np.interp(near.place, np.arange(20), column) for column in line.T], axis=1)
    np.testing.assert_allclose(np.hypot(*(pixels[near.pixels] - places).T), near.distance, atol=1e-9)


def test_what_the_collimator_hides_is_dark_and_in_no_annotation(monkeypatch):
    def left_half_closed(rng, scene):
        return np.where(np.arange(scene.shape[1]) < 96, 0.0, 1.0) * np.ones((scene.shape[0], 1))

    seen = [synthetic_angiogram(seed, size=192) for seed in range(6)]
    monkeypatch.setattr(synthetic, "_collimator", left_half_closed)
    for seed, before in enumerate(seen):
        frame = synthetic_angiogram(seed, size=192)
        assert before.vessel_mask[:, :96].any()
        assert frame.image[:, :90].max() < 40
        for name in ("vessel_mask", "segment_mask", "centre_line", "stenosis_mask"):
            assert not getattr(frame, name)[:, :96].any(), name
        assert (frame.boxes[:, 0] >= 96).all()


def test_share_of_vessel_pixels_is_that_of_angiograms(frames):
    shares = [frame.vessel_mask.mean() for frame in frames]
    assert 0.03 < np.mean(shares) < 0.09
    assert min(shares) > 0.01
    assert max(shares) < 0.15


def test_grey_levels_and_grain_are_near_those_of_real_angiograms(shared_data):
    files = sorted((shared_data / "arcade_sample").glob("*/*/images/*.png"))
    real = [np.asarray(Image.open(path).convert("L")) for path in files]
    drawn = [frame.image for frame in synthetic_angiograms(9, seed=300)]
    for measure, low, high in ((np.mean, 0.75, 1.33), (np.std, 0.6, 1.6), (grain, 0.6, 1.6)):
        ratio = np.median([measure(image) for image in drawn]) / np.median([measure(image) for image in real])
        assert low < ratio < high, measure.__name__


def test_a_folder_holds_the_frames_as_png_with_masks_beside_it(tmp_path):
    paths = write_folder(tmp_path / "frames", 2, seed=5, size=(40, 64), with_masks=True)
    assert [path.name for path in paths] == ["synthetic_000005.png", "synthetic_000006.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames", "frames_masks"]
    for folder in tmp_path.iterdir():
        assert sorted(path.name for path in folder.iterdir()) == [path.name for path in paths]
    frame = synthetic_angiogram(6, size=(40, 64))
    np.testing.assert_array_equal(np.asarray(Image.open(paths[1])), frame.image)
    mask = np.asarray(Image.open(tmp_path / "frames_masks" / paths[1].name))
    np.testing.assert_array_equal(mask, frame.vessel_mask * np.uint8(255))


def test_no_half_written_file_is_left_when_writing_fails(tmp_path, monkeypatch):
    def broken(self, file, format=None):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path, 1, size=32)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_argument_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="`num` must be"):
        write_folder(tmp_path / "new", 1.5)
    assert not (tmp_path / "new").exists()


def test_the_generator_needs_numpy_and_pillow_only():
    allowed = {
        "numpy",
        "PIL",
        "folders",
        "collections",
        "dataclasses",
        "numbers",
        "pathlib",
        "typing",
        "anatomy",
    }
    for module in (synthetic, synthetic_anatomy):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed


def test_the_examples_in_the_docstrings_hold():
    for module in (synthetic, synthetic_anatomy):
        assert doctest.testmod(module).failed == 0
