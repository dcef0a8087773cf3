"""The ridge filter against scikit-image and the original masks; options, bad input and the making of many files."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vasomim_hf.data import vesselness
from vasomim_hf.data.vesselness import (
    VesselnessOptions,
    sato_response,
    vessel_mask,
    vesselness_files,
    vesselness_response,
)
from vasomim_hf.image_processing_vasomim import VasoMIMImageProcessorPil


sato = pytest.importorskip("skimage.filters").sato


def vessels(height: int = 128, width: int = 160, seed: int = 0) -> np.ndarray:
    """A noisy grey frame with one wide and one thin dark vessel that do not touch, the thin one darker."""
    rows, columns = np.indices((height, width))
    frame = 170 + 20 * np.sin(columns / 40) + np.random.default_rng(seed).normal(0, 2, (height, width))
    frame -= 50 * np.exp(-(((rows - height * 0.3 - 4 * np.sin(columns / 15)) / 4) ** 2))
    frame -= 110 * np.exp(-(((rows - height * 0.7) / 1.5) ** 2)) * (columns > width * 0.6)
    return frame.clip(0, 255).astype(np.uint8)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width), dtype=np.uint8)


def original_mask(frame: np.ndarray, border: int = 20, percentile: float = 92) -> np.ndarray:
    """The method as it is described: Sato on float64, floor, border, percentile, growth from the brightest pixel."""
    levels = sato(frame, sigmas=[1, 2, 3, 4], black_ridges=True, mode="reflect", cval=0).astype(np.uint8)
    if border:
        levels[:border] = levels[-border:] = levels[:, :border] = levels[:, -border:] = 0
    kept = np.where(levels >= np.percentile(levels, percentile), levels, 0)
    mask = np.zeros(frame.shape, bool)
    if not kept.any():
        return mask
    stack = [np.unravel_index(kept.argmax(), kept.shape)]
    while stack:
        row, column = stack.pop()
        if 0 <= row < frame.shape[0] and 0 <= column < frame.shape[1] and kept[row, column] and not mask[row, column]:
            mask[row, column] = True
            stack += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    return mask


def reference_frames(shared_data: Path, reference: Path, ending: str) -> list[tuple[np.ndarray, Path]]:
    pairs = []
    for path in sorted((reference / "vesselness").glob(f"*{ending}")):
        task, split, number = path.name.removesuffix(ending).split("_")
        with Image.open(shared_data / "arcade_sample" / task / split / "images" / f"{number}.png") as image:
            pairs.append((np.array(image.convert("L")), path))
    return pairs


# The response


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 50), (37, 101), (128, 96), (200, 200)])
def test_sato_response_agrees_with_scikit_image_on_noise_of_any_size(shape: tuple[int, int]) -> None:
    frame = noise(*shape)
    expected = sato(frame, sigmas=[1, 2, 3, 4], black_ridges=True, mode="reflect")
    np.testing.assert_allclose(sato_response(frame), expected, atol=4e-5)
    np.testing.assert_allclose(sato_response(frame.astype(np.float64)), expected, atol=1e-10)


@pytest.mark.parametrize("sigmas", [(0.5,), (1,), (1.5, 6), (12,)])
def test_sato_response_agrees_with_scikit_image_at_any_scale(sigmas: tuple[float, ...]) -> None:
    frame = vessels()
    expected = sato(frame, sigmas=sigmas, black_ridges=True, mode="reflect")
    np.testing.assert_allclose(sato_response(frame, sigmas), expected, atol=4e-5)


def test_sato_response_agrees_with_scikit_image_at_the_edges_of_the_frame() -> None:
    frame = np.tile(np.arange(0, 255, 3, dtype=np.uint8), (60, 1))
    expected = sato(frame, sigmas=[1, 2, 3, 4], black_ridges=True, mode="reflect")
    assert expected[:, :5].max() > 1
    np.testing.assert_allclose(sato_response(frame), expected, atol=4e-5)


@pytest.mark.parametrize("sigmas", [(1, 2, 3, 4), (4, 1.5, 2.5), (2, 2, 3), (3,), (0.7, 2.1, 2.2)])
@pytest.mark.parametrize("frame", [noise(90, 140), noise(41, 41), (noise(120, 100) > 127) * np.uint8(255), vessels()])
@pytest.mark.parametrize("border", [8, 20])
def test_sato_response_agrees_with_scikit_image_right_up_to_any_border(
    frame: np.ndarray, sigmas: tuple[float, ...], border: int
) -> None:
    frame = frame.copy()
    frame[: border - 2], frame[:, : border - 2] = 0, 255  # an edge's reflection that reached too far would show
    expected = sato(frame, sigmas=sigmas, black_ridges=True, mode="reflect")[border:-border, border:-border]
    for dtype, tolerance in ((np.uint8, 4e-5), (np.float64, 1e-10)):
        response = sato_response(frame.astype(dtype), sigmas, border)
        np.testing.assert_allclose(response[border:-border, border:-border], expected, atol=tolerance)
        assert not response[:border].any() and not response[:, -border:].any()


def test_sato_response_is_float32_for_8_bits_and_keeps_float64() -> None:
    assert sato_response(vessels()).dtype == np.float32
    assert sato_response(vessels().astype(np.float64)).dtype == np.float64


def test_the_filter_responds_to_dark_and_not_to_bright_vessels() -> None:
    frame = vessels()
    on_vessel = frame < 100
    dark, bright = sato_response(frame), sato_response(255 - frame)
    assert dark[on_vessel].mean() > 20
    assert bright[on_vessel].mean() < 1


def test_a_flat_frame_has_no_response_at_all() -> None:
    assert not sato_response(np.full((50, 60), 200, np.uint8)).any()
    assert not vesselness_response(np.full((50, 60), 200.3)).any()
    assert not vessel_mask(np.full((100, 90), 255, np.uint8)).any()


def test_sato_response_clears_the_border() -> None:
    whole, cleared = sato_response(noise(60, 70)), sato_response(noise(60, 70), border=7)
    assert np.array_equal(cleared[7:-7, 7:-7], whole[7:-7, 7:-7])
    assert np.count_nonzero(cleared) == np.count_nonzero(whole[7:-7, 7:-7])


def test_vesselness_response_is_the_response_scaled_to_the_unit_range() -> None:
    frame = vessels()
    response, scaled = sato_response(frame, border=20), vesselness_response(frame)
    assert scaled.dtype == np.float32
    assert scaled.max() == 1 and scaled.min() == 0
    np.testing.assert_allclose(scaled * response.max(), response, rtol=1e-5)


def test_responses_equal_the_original_ones_on_real_frames(shared_data: Path, shared_reference: Path) -> None:
    pairs = reference_frames(shared_data, shared_reference, "_sato_float.npy")
    assert len(pairs) == 3
    for frame, path in pairs:
        np.testing.assert_allclose(sato_response(frame), np.load(path), atol=4e-5)
        np.testing.assert_allclose(sato_response(frame.astype(np.float64)), np.load(path), atol=1e-10)


# The mask


@pytest.mark.parametrize("border", [20, 3])
def test_masks_are_identical_to_the_original_ones_on_real_frames(
    shared_data: Path, shared_reference: Path, border: int
) -> None:
    pairs = reference_frames(shared_data, shared_reference, f"_border{border}.png")
    assert len(pairs) == 40
    for frame, path in pairs:
        with Image.open(path) as image:
            assert np.array_equal(vessel_mask(frame, border), np.array(image) > 0), path.name


@pytest.mark.parametrize("border", [0, 3, 20])
@pytest.mark.parametrize("shape", [(128, 160), (90, 61)])
def test_masks_are_identical_to_the_described_method_on_made_up_frames(shape: tuple[int, int], border: int) -> None:
    for seed in range(3):
        frame = vessels(*shape, seed=seed)
        assert vessel_mask(frame, border).any()
        assert np.array_equal(vessel_mask(frame, border), original_mask(frame, border))


@pytest.mark.parametrize("border", [0, 20])
def test_no_pixel_is_floored_to_another_level_than_in_float64(border: int) -> None:
    options = VesselnessOptions(border=border)
    floored_in_float32 = 0
    for seed in range(6):
        frame = np.random.default_rng(seed).integers(0, 2, (400, 400), dtype=np.uint8) * 255
        exact = sato_response(frame.astype(np.float64), border=border).astype(np.uint8)
        response = sato_response(frame, border=border)
        floored_in_float32 += np.count_nonzero(response.astype(np.uint8) != exact)
        assert np.array_equal(vesselness._whole_levels(frame, response, options), exact)
    assert floored_in_float32 > 0, "these frames do not tell the two ways apart"


def test_doubtful_pixels_are_decided_one_by_one_also_at_the_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = noise(60, 50)
    exact = sato_response(frame.astype(np.float64)).astype(np.uint8)
    monkeypatch.setattr(vesselness, "_ROUNDING_MARGIN", 0.4)
    monkeypatch.setattr(vesselness, "_MAX_EXACT_PIXELS", frame.size)
    levels = vesselness._whole_levels(frame, sato_response(frame), VesselnessOptions(border=0))
    assert np.array_equal(levels, exact)


@pytest.mark.parametrize("percentile", [0, 33.3, 50, 92, 99.9, 100])
def test_the_threshold_keeps_what_numpys_percentile_keeps(percentile: float) -> None:
    generator = np.random.default_rng(0)
    for size in (1, 2, 101, 1001):
        levels = generator.poisson(1.5, (1, size)).astype(np.uint8)
        kept = levels >= vesselness._threshold(levels, percentile)
        assert np.array_equal(kept, levels >= np.percentile(levels, percentile))


def test_brightest_and_largest_region_differ_where_a_wire_is_darker_than_the_vessel() -> None:
    frame = vessels()
    brightest, largest = vessel_mask(frame), vessel_mask(frame, region="largest")
    everything = vessel_mask(frame, region="all")
    assert brightest[85:94].any() and not brightest[:60].any()
    assert largest[30:50].any() and not largest[85:94].any()
    assert largest.sum() > brightest.sum()
    assert not ((brightest | largest) & ~everything).any()


def test_regions_are_4_connected() -> None:
    response = np.zeros((6, 6), np.uint8)
    response[0, 0], response[1, 1], response[1, 2], response[2, 2] = 9, 5, 5, 5
    assert vesselness._region(response, 1, "brightest").sum() == 1
    assert vesselness._region(response, 1, "largest").sum() == 3
    assert vesselness._region(response, 1, "all").sum() == 4


def test_without_the_floor_the_percentile_is_met_exactly() -> None:
    frame = vessels()
    kept = vessel_mask(frame, region="all", floor=False).mean()
    assert 0.079 < kept < 0.081
    assert vessel_mask(frame, region="all").mean() != kept


def test_sigmas_and_percentile_change_the_mask() -> None:
    frame = vessels()
    assert vessel_mask(frame, region="all", percentile=97).sum() < vessel_mask(frame, region="all").sum()
    assert not np.array_equal(vessel_mask(frame, sigmas=(1,)), vessel_mask(frame))


@pytest.mark.parametrize("shape", [(1, 1), (40, 300), (300, 40), (39, 39)])
def test_a_frame_that_is_all_border_has_an_empty_mask(shape: tuple[int, int]) -> None:
    mask = vessel_mask(noise(*shape))
    assert mask.shape == shape and mask.dtype == bool and not mask.any()


def test_vessel_mask_changes_neither_the_frame_nor_opencvs_threads_and_may_run_in_threads() -> None:
    cv2 = pytest.importorskip("cv2")
    frames = [vessels(seed=seed) for seed in range(8)]
    copies, threads = [frame.copy() for frame in frames], cv2.getNumThreads()
    alone = [vessel_mask(frame) for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(vessel_mask, frames))
    assert all(np.array_equal(*pair) for pair in zip(alone, together, strict=True))
    assert all(np.array_equal(*pair) for pair in zip(frames, copies, strict=True))
    assert cv2.getNumThreads() == threads


def test_vessel_mask_takes_read_only_and_strided_frames() -> None:
    frame = vessels()
    frame.flags.writeable = False
    twice = np.repeat(frame, 2, axis=1)[:, ::2]
    assert np.array_equal(vessel_mask(twice), vessel_mask(frame))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((50, 50), np.float32), "must be uint8"),
        (np.zeros((50, 50), np.uint16), "must be uint8"),
        (np.zeros((50, 50, 3), np.uint8), r"got shape \(50, 50, 3\)"),
        (np.zeros(50, np.uint8), r"got shape \(50,\)"),
        (np.zeros((0, 50), np.uint8), "at least one pixel"),
        ([[1, 2]], "must be a numpy array, got list"),
    ],
)
def test_vessel_mask_refuses_what_is_no_8_bit_grey_frame(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vessel_mask(image)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_responses_refuse_pixels_that_are_not_finite(value: float) -> None:
    frame = vessels().astype(np.float32)
    frame[3, 4] = value
    for function in (sato_response, vesselness_response):
        with pytest.raises(ValueError, match="NaN or infinite"):
            function(frame)


def test_sato_response_refuses_complex_and_boolean_frames() -> None:
    for dtype in (complex, bool):
        with pytest.raises(ValueError, match="real dtype"):
            sato_response(np.ones((9, 9), dtype))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"border": -1}, "`border`"),
        ({"border": 2.5}, "`border`"),
        ({"region": "biggest"}, "brightest, largest, all, got 'biggest'"),
        ({"sigmas": ()}, "at least one scale"),
        ({"sigmas": (1, 0)}, "each > 0"),
        ({"sigmas": (np.nan,)}, "each > 0"),
        ({"percentile": 101}, r"in \[0, 100\], got 101"),
    ],
)
def test_options_out_of_range_are_refused(option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vessel_mask(vessels(), **option)


# Many files


def save(path: Path, frame: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame).save(path)
    return path


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_files_keep_their_sub_folders_and_damaged_ones_are_reported(tmp_path: Path) -> None:
    frames, output = tmp_path / "frames", tmp_path / "masks"
    for number, name in enumerate(("a/1.png", "b/1.PNG", "b/c/2.jpg")):
        save(frames / name, vessels(seed=number))
    (frames / "b/notes.txt").write_text("not a frame")
    (frames / ".DS_Store").write_bytes(b"\0")
    whole = (frames / "a/1.png").read_bytes()
    (frames / "a/cut.png").write_bytes(whole[: len(whole) // 2])
    report = vesselness_files(frames, output)
    assert names(output) == {"a/1.png", "b/1.png", "b/c/2.png"}
    assert len(report.written) == 3 and not report.skipped
    assert list(report.failed) == [frames / "a/cut.png"]
    assert "cannot be read" in report.failed[frames / "a/cut.png"]
    with Image.open(output / "a/1.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.array(image), vessel_mask(vessels(seed=0)) * np.uint8(255))
    assert str(report) == "3 masks written, 0 already exist, 1 frames failed"


def test_masks_that_exist_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    frame, output = save(tmp_path / "1.png", vessels()), tmp_path / "masks"
    mask = save(output / "1.png", np.zeros((3, 3), np.uint8))
    report = vesselness_files(frame, output)
    assert report.skipped == [mask] and not report.written
    assert size_of(mask) == (3, 3)
    assert vesselness_files(frame, output, overwrite=True).written == [mask]
    assert size_of(mask) == (160, 128)


def test_several_processes_write_what_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for number in range(4):
        save(tmp_path / f"frames/{number}.png", vessels(seed=number))
    (tmp_path / "frames/bad.png").write_bytes(b"nothing")
    one = vesselness_files(tmp_path / "frames", tmp_path / "one", num_workers=1)
    two = vesselness_files(tmp_path / "frames", tmp_path / "two", num_workers=2)
    assert len(one.written) == len(two.written) == 4
    assert one.failed == two.failed and len(one.failed) == 1
    for name in names(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_options_reach_the_files(tmp_path: Path) -> None:
    frame = save(tmp_path / "1.png", vessels())
    vesselness_files([frame], tmp_path / "masks", region="largest")
    with Image.open(tmp_path / "masks/1.png") as image:
        assert np.array_equal(np.array(image) > 0, vessel_mask(vessels(), region="largest"))


def test_a_response_is_written_in_256_steps_that_the_image_processor_reads_back(tmp_path: Path) -> None:
    frame, options = save(tmp_path / "1.png", vessels()), {"border": 3, "sigmas": [1.5, 2.5]}
    report = vesselness_files(frame, tmp_path / "maps", kind="response", **options)
    assert str(report) == "1 responses written, 0 already exist, 0 frames failed"
    with Image.open(tmp_path / "maps/1.png") as image:
        assert image.mode == "L" and image.getextrema() == (0, 255)
    processor = VasoMIMImageProcessorPil(do_resize=False)
    read = processor(frame, vesselness=tmp_path / "maps/1.png", return_tensors="np").vesselness[0, 0]
    np.testing.assert_allclose(read, vesselness_response(vessels(), **options), atol=1 / 510 + 1e-6)
    assert len(np.unique(read)) > 100


def test_options_that_a_response_would_ignore_and_other_kinds_are_refused(tmp_path: Path) -> None:
    frame = save(tmp_path / "1.png", vessels())
    for option in ({"region": "all"}, {"percentile": 90}, {"floor": False}):
        with pytest.raises(ValueError, match=f"`{next(iter(option))}` only applies to masks"):
            vesselness_files(frame, tmp_path / "maps", kind="response", **option)
    with pytest.raises(ValueError, match="`kind` must be one of mask, response, got 'float'"):
        vesselness_files(frame, tmp_path / "maps", kind="float")
    with pytest.raises(ValueError, match="`border` "):
        vesselness_files(frame, tmp_path / "maps", kind="response", border=-1)
    assert not (tmp_path / "maps").exists()


def test_frames_that_would_share_a_mask_are_reported_and_none_is_written(tmp_path: Path) -> None:
    first, second = save(tmp_path / "x/1.png", vessels()), save(tmp_path / "x/1.jpg", vessels(seed=1))
    other, third = save(tmp_path / "y/1.png", vessels()), save(tmp_path / "x/2.png", vessels())
    report = vesselness_files([tmp_path / "x", other, third], tmp_path / "masks")
    assert names(tmp_path / "masks") == {"2.png"}
    assert set(report.failed) == {first, second, other}
    assert all("Rename one" in reason for reason in report.failed.values())


def test_a_mask_never_replaces_a_frame(tmp_path: Path) -> None:
    frame = save(tmp_path / "frames/1.png", vessels())
    before = frame.read_bytes()
    with pytest.raises(ValueError, match="is also an input"):
        vesselness_files(tmp_path / "frames", tmp_path / "frames", overwrite=True)
    with pytest.raises(ValueError, match="would replace a frame"):
        vesselness_files(frame, tmp_path / "frames", overwrite=True)
    assert frame.read_bytes() == before


def test_masks_inside_the_input_folder_do_not_become_frames(tmp_path: Path) -> None:
    save(tmp_path / "1.png", vessels())
    for _ in range(2):
        vesselness_files(tmp_path, tmp_path / "masks")
    assert names(tmp_path) == {"1.png", "masks/1.png"}


def test_no_half_file_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = save(tmp_path / "1.png", vessels())

    def full_disk(image: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        vesselness_files(frame, tmp_path / "masks")
    assert names(tmp_path / "masks") == set()


def test_an_old_mask_survives_when_writing_the_new_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame, mask = save(tmp_path / "1.png", vessels()), save(tmp_path / "masks/1.png", np.zeros((3, 3), np.uint8))

    def refuse(*_: object) -> None:
        raise PermissionError("not allowed")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        vesselness_files(frame, tmp_path / "masks", overwrite=True)
    assert names(tmp_path / "masks") == {"1.png"} and size_of(mask) == (3, 3)


def test_inputs_that_hold_nothing_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.png` does not exist"):
        vesselness_files(tmp_path / "nowhere.png", tmp_path / "masks")
    with pytest.raises(ValueError, match="contains no frames"):
        vesselness_files(tmp_path, tmp_path / "masks")
    with pytest.raises(ValueError, match="no frames found"):
        vesselness_files([], tmp_path / "masks")
    with pytest.raises(ValueError, match="`num_workers` must be at least 1, got 0"):
        vesselness_files(tmp_path, tmp_path / "masks", num_workers=0)
