"""Runs in NPZ files and in films: levels, what is known of them, streaming, damage."""

import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vasomim_hf.data.reading.files import read_frames
from vasomim_hf.data.reading.frame import Frame, FrameReadError, ReadOptions
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram


@cache
def run(num_frames: int = 5, size: int = 64) -> np.ndarray:
    image = synthetic_angiogram(0, size=size).image
    return np.stack([np.roll(image, 8 * i, axis=1) for i in range(num_frames)])


def read(path: Path, **options: Any) -> list[Frame]:
    return list(read_frames(path, ReadOptions(**options)))


def stack(frames: list[Frame]) -> np.ndarray:
    return np.stack([frame.pixels for frame in frames])


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


# Arrays


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32, ">u2"])
def test_array_frames_are_read_for_every_dtype(tmp_path: Path, dtype: Any) -> None:
    frames = read(save(tmp_path / "run.npz", pixel_array=run().astype(dtype)))
    assert np.array_equal(stack(frames), run()) and stack(frames).dtype == np.uint8
    assert [frame.index for frame in frames] == list(range(5))
    assert {(frame.bits_stored, frame.metadata.num_frames) for frame in frames} == {(8, 5)}


def test_deep_arrays_have_one_depth_for_the_whole_run(tmp_path: Path) -> None:
    pixels = run().astype(np.uint16)
    pixels[3, 0, 0] = 4000
    path = save(tmp_path / "run.npz", pixel_array=pixels)
    frames = read(path)
    assert np.array_equal(stack(frames), pixels) and {frame.bits_stored for frame in frames} == {12}
    assert {frame.bits_stored for frame in read(path, bits_stored=14)} == {14}
    with pytest.raises(FrameReadError, match=r"run.npz`: levels reach 4000, which 10 bits cannot hold"):
        read(path, bits_stored=10)


def test_floats_in_the_unit_range_are_spread_over_16_bits(tmp_path: Path) -> None:
    frames = read(save(tmp_path / "run.npz", pixel_array=run() / 255))
    assert {frame.bits_stored for frame in frames} == {16}
    assert np.array_equal(stack(frames), run().astype(np.uint16) * 257)


def test_a_single_frame_and_one_stored_column_by_column_are_read(tmp_path: Path) -> None:
    image = run()[0, :40]
    for pixels in (image, np.asfortranarray(image)):
        (frame,) = read(save(tmp_path / "run.npz", pixel_array=pixels))
        assert np.array_equal(frame.pixels, image)


def test_a_single_array_is_found_by_shape_and_several_need_a_key(tmp_path: Path) -> None:
    assert len(read(save(tmp_path / "a.npz", frames=run(), fps=15.0))) == 5
    several = save(tmp_path / "b.npz", frames=run(), other=run(2))
    with pytest.raises(FrameReadError, match=r"no array 'pixel_array', only \['frames', 'other'\].*`npz_key`"):
        read(several)
    assert len(read(several, npz_key="other")) == 2
    with pytest.raises(FrameReadError, match="no array 'nothing'"):
        read(several, npz_key="nothing")


def test_angles_are_kept_and_ids_hashed(tmp_path: Path) -> None:
    tags = {"primary_angle": -30.0, "secondary_angle": 25, "studyid": "1.2.3.77", "seriesid": "1.2.3.78"}
    path = save(tmp_path / "run.npz", pixel_array=run(), **tags)
    known = read(path, salt="a salt of sixteen letters")[0].metadata
    assert (known.primary_angle, known.secondary_angle) == (-30, 25)
    assert len(known.study_id) == len(known.series_id) == 32 and known.study_id != known.series_id
    assert "1.2.3" not in repr(known) and read(path)[0].metadata.study_id is None


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), r"shape \(2, 4, 4, 3\).*expected grey levels of shape"),
        (np.zeros((40, 40, 3), np.uint8), r"shape \(40, 40, 3\)"),
        (np.zeros(9, np.uint8), r"shape \(9,\)"),
        (np.zeros((0, 4, 4), np.uint8), r"shape \(0, 4, 4\)"),
        (np.zeros((2, 4, 4), np.complex64), "type complex64"),
        (np.zeros((2, 4, 4), bool), "type bool"),
        (np.asfortranarray(np.zeros((2, 4, 5), np.uint8)), "Fortran order"),
        (np.full((2, 5, 5), -3), "levels are -3 to -3"),
        (np.full((2, 5, 5), 1.5), "levels are 1.5 to 1.5"),
        (np.full((2, 5, 5), np.nan), "must be finite"),
        (np.full((2, 5, 5), 70000), "reach 70000"),
    ],
)
def test_arrays_that_hold_no_frames_are_named(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    with pytest.raises(FrameReadError, match=message) as error:
        read(save(tmp_path / "run.npz", pixel_array=pixels))
    assert "run.npz" in str(error.value)


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_pickled_objects_are_refused_and_never_loaded(tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    with pytest.raises(FrameReadError, match="pickled objects are not loaded"):
        read(save(tmp_path / "a.npz", pixel_array=trap))
    frames = read(save(tmp_path / "b.npz", pixel_array=run(), primary_angle=trap, studyid=trap), salt="x" * 16)
    assert frames[0].metadata.primary_angle is None and frames[0].metadata.study_id is None
    assert not (tmp_path / "sprung").exists()


def test_frames_before_the_damage_are_yielded_and_the_error_names_the_file(tmp_path: Path) -> None:
    for name, content in {"a.npz": b"", "b.npz": b"hello", "c.npz": b"PK\x03\x04" + bytes(50)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FrameReadError, match=rf"{name}` cannot be read as NPZ"):
            read(tmp_path / name)
    path = tmp_path / "run.npz"
    np.savez(path, pixel_array=run(40))
    content = bytearray(path.read_bytes())
    content[-3000] ^= 0xFF
    path.write_bytes(content)
    found, frames = [], read_frames(path)
    with pytest.raises(FrameReadError, match=r"frame \d+ of 40 cannot be read \(BadZipFile.*are intact"):
        while True:
            found.append(next(frames).pixels)
    assert 30 < len(found) < 40 and np.array_equal(found, run(40)[: len(found)])


def test_an_array_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    frames = np.repeat(run(1), 500, axis=0).astype(np.uint16)
    path = save(tmp_path / "run.npz", pixel_array=frames)
    read(save(tmp_path / "warm.npz", pixel_array=frames[:1]))
    tracemalloc.start()
    count = sum(1 for _ in read_frames(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 500 and peak < 0.1 * frames.nbytes


# Films


def film(path: Path, frames: np.ndarray, code: str, rate: float = 12.5) -> Path:
    cv2 = pytest.importorskip("cv2")
    height, width = frames.shape[1:3]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), rate, (width, height))
    if not writer.isOpened():
        pytest.skip(f"OpenCV has no encoder for {code} here")
    for frame in frames:
        writer.write(frame if frame.ndim == 3 else np.dstack([frame] * 3))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("name", "code", "tolerance"), [("a.avi", "FFV1", 0), ("a.avi", "MJPG", 4), ("a.mp4", "mp4v", 8)]
)
def test_a_film_is_read_frame_by_frame(tmp_path: Path, name: str, code: str, tolerance: float) -> None:
    frames = read(film(tmp_path / name, run(), code))
    difference = np.abs(stack(frames).astype(int) - run())
    assert len(frames) == 5 and difference.mean() <= tolerance
    for i, frame in enumerate(frames):
        assert np.abs(run().astype(int) - frame.pixels).mean(axis=(1, 2)).argmin() == i
        assert frame.index == i and frame.bits_stored == 8 and frame.pixels.dtype == np.uint8
        assert frame.metadata.frame_time_ms == pytest.approx(80) and frame.metadata.num_frames == 5


def test_red_counts_as_red_and_blue_as_blue(tmp_path: Path) -> None:
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    frames[0, ..., 2], frames[1, ..., 0] = 255, 255  # OpenCV writes blue first
    red, blue = (frame.pixels.mean() for frame in read(film(tmp_path / "a.avi", frames, "FFV1")))
    assert red == pytest.approx(76, abs=2) and blue == pytest.approx(29, abs=2)


def test_films_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    for name, content in {"a.mp4": b"", "b.avi": b"hello" * 100}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FrameReadError, match=rf"{name}` cannot be read as a video"):
            read(tmp_path / name)
    with pytest.raises(FrameReadError, match="is not a file"):
        read(tmp_path / "nowhere_%02d.avi")


def test_frames_before_the_damage_of_a_truncated_video_are_yielded(tmp_path: Path) -> None:
    path = film(tmp_path / "a.avi", run(20), "MJPG")
    whole = read(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, frames = [], read_frames(path)
    with pytest.raises(FrameReadError, match=r"a.avi` ends after \d+ of 20 frames"):
        while True:
            found.append(next(frames).pixels)
    assert 5 < len(found) < 15 and np.array_equal(found[:-1], stack(whole)[: len(found) - 1])
