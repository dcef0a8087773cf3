"""Near copies are found whatever was done to them, other pictures are not, and every pair is compared."""

import io
import json
import math
import tracemalloc

import cv2
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PillowImage

from vasomim_hf.data import near_duplicates
from vasomim_hf.data.near_duplicates import (
    HASH_BITS,
    SIGNATURE_SIZE,
    NearDuplicateThreshold,
    dataset_signatures,
    drop_near_duplicates,
    frame_signature,
    group_near_duplicates,
    has_structure,
    join_rows,
    near_duplicate_groups,
)
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram


HASH_SIZE = HASH_BITS // 8


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return [synthetic_angiogram(seed, size=256).image for seed in range(6)]


def groups_of(*frames: np.ndarray) -> list[int]:
    return group_near_duplicates(np.stack([frame_signature(np.ascontiguousarray(frame)) for frame in frames])).tolist()


def jpeg(frame: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 92])[1], 0)


def resized(frame: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(frame, (size, size), interpolation=cv2.INTER_CUBIC)


def noisy(frame: np.ndarray) -> np.ndarray:
    return (frame + np.random.default_rng(0).normal(0, 5, frame.shape)).clip(0, 255).astype(np.uint8)


def moved(frame: np.ndarray, pixels: int) -> np.ndarray:
    return cv2.warpAffine(
        frame, np.float32([[1, 0, pixels], [0, 1, 0]]), frame.shape[::-1], borderMode=cv2.BORDER_REFLECT
    )


def random_signatures(num: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    signatures = generator.normal(128, 40, (num, SIGNATURE_SIZE)).clip(1, 255).astype(np.uint8)
    signatures[:, :HASH_SIZE] = generator.integers(0, 256, (num, HASH_SIZE))
    return signatures


def brute_force(signatures: np.ndarray, threshold: NearDuplicateThreshold) -> list[int]:
    """The definition, pair by pair."""
    levels = signatures[:, HASH_SIZE:].astype(int) - 128
    groups = list(range(len(signatures)))
    for i in range(len(signatures)):
        for j in range(i):
            bits = np.bitwise_count(signatures[i, :HASH_SIZE] ^ signatures[j, :HASH_SIZE]).sum()
            norm = math.sqrt(int(levels[i] @ levels[i]) * int(levels[j] @ levels[j]))
            if (
                norm
                and bits <= threshold.max_hash_distance
                and levels[i] @ levels[j] >= threshold.min_correlation * norm
            ):
                low, high = sorted((groups[i], groups[j]))
                groups = [low if group == high else group for group in groups]
    return groups


# Signatures


def test_a_signature_is_small_and_the_same_each_time(frames):
    signature = frame_signature(frames[0])
    assert signature.shape == (SIGNATURE_SIZE,) == (1088,)
    assert signature.dtype == np.uint8
    assert np.array_equal(signature, frame_signature(frames[0].copy()))
    assert (signature[HASH_SIZE:] > 0).all()  # centred, no level is beyond 127, on which exact sums rest


CHANGES = {
    "re-encoded": jpeg,
    "twice as large": lambda frame: resized(frame, 512),
    "half as large": lambda frame: cv2.resize(frame, (128, 128), interpolation=cv2.INTER_AREA),
    "larger and back": lambda frame: resized(resized(frame, 512), 256),
    "brighter": lambda frame: cv2.add(frame, 8.0),
    "of less contrast": lambda frame: cv2.convertScaleAbs(frame, alpha=0.8),
    "noisy": noisy,
    "moved by 4 of 256 pixels": lambda frame: moved(frame, 4),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_copy_is_grouped_with_its_original_when_it_is(change, frames):
    assert groups_of(*frames, *map(change, frames)) == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]


OTHERS = {
    "mirrored": lambda frame: frame[:, ::-1],
    "upside down": lambda frame: frame[::-1],
    "turned": np.rot90,
    "inverted": lambda frame: 255 - frame,
    "moved by a quarter": lambda frame: moved(frame, 64),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_a_frame_is_no_copy_when_it_is(change, frames):
    assert groups_of(*frames, *map(change, frames)) == list(range(12))


def test_different_pictures_behind_the_same_collimator_are_no_copies(frames):
    y, x = abs(np.mgrid[:256, :256] - 127.5)
    for mask in ((y < 55) & (x < 55), (y < 60) & (x < 115), x**2 + y**2 < 100**2):
        assert groups_of(*(frame * mask for frame in frames)) == list(range(6))


def test_a_copy_behind_the_same_collimator_is_a_copy(frames):
    closed = np.zeros_like(frames[0])
    closed[70:200, 60:190] = frames[0][70:200, 60:190]
    assert groups_of(closed, jpeg(closed), noisy(closed)) == [0, 0, 0]


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 4), np.uint16), np.zeros((3, 4, 4), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_a_frame_of_another_kind_is_refused(frame):
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(height, width\), got uint.*to_uint8"):
        frame_signature(frame)


def test_black_and_flat_frames_are_alone(frames):
    flat = [
        np.zeros((256, 256), np.uint8),
        np.full((256, 256), 90, np.uint8),
        noisy(np.full((512, 512), 20, np.uint8)),
    ]
    signatures = np.stack([frame_signature(frame) for frame in [*flat, *flat, frames[0], frames[0]]])
    assert has_structure(signatures).tolist() == [False] * 6 + [True, True]
    assert group_near_duplicates(signatures).tolist() == [0, 1, 2, 3, 4, 5, 6, 6]


@pytest.mark.parametrize("size", [1, 3, 20])
def test_small_frames_have_a_signature_too(size):
    assert frame_signature(np.arange(size * size).reshape(size, size).astype(np.uint8)).shape == (SIGNATURE_SIZE,)


# Groups


def near_and_far(num: int = 60) -> np.ndarray:
    """Random signatures with copies of each at growing distances in hash and in pixels."""
    generator = np.random.default_rng(1)
    signatures = random_signatures(num)
    for row in range(num // 3, num):
        source = signatures[generator.integers(0, row)]
        flipped = generator.choice(HASH_BITS, size=generator.integers(40, 120), replace=False)
        bits = np.unpackbits(source[:HASH_SIZE])
        bits[flipped] ^= 1
        signatures[row, :HASH_SIZE] = np.packbits(bits)
        share = generator.uniform(0.4, 1)
        levels = 128 + share * (source[HASH_SIZE:] - 128.0) + (1 - share) * (signatures[row, HASH_SIZE:] - 128.0)
        signatures[row, HASH_SIZE:] = levels.clip(1, 255)
    return signatures


@pytest.mark.parametrize("threshold", [(80, 0.6), (100, 0.8), (60, 0.7), (120, 0.5)])
@pytest.mark.parametrize(("block", "pairs", "dense"), [(2048, 8192, 0.02), (7, 3, 1.0), (16, 4, 0.0)])
def test_groups_are_those_of_the_definition_whatever_the_blocks(threshold, block, pairs, dense, monkeypatch):
    for name, value in (("_BLOCK", block), ("_PAIRS", pairs), ("_DENSE_FRACTION", dense)):
        monkeypatch.setattr(near_duplicates, name, value)
    signatures = near_and_far()
    expected = brute_force(signatures, NearDuplicateThreshold(*threshold))
    assert 5 < len(set(expected)) < 60
    assert group_near_duplicates(signatures, NearDuplicateThreshold(*threshold)).tolist() == expected


def test_a_threshold_counts_bits_exactly():
    signatures = np.repeat(random_signatures(1), 2, axis=0)
    bits = np.unpackbits(signatures[1, :HASH_SIZE])
    bits[:80] ^= 1
    signatures[1, :HASH_SIZE] = np.packbits(bits)
    assert group_near_duplicates(signatures, NearDuplicateThreshold(80)).tolist() == [0, 0]
    assert group_near_duplicates(signatures, NearDuplicateThreshold(79)).tolist() == [0, 1]


def test_groups_do_not_depend_on_the_order_of_the_frames():
    signatures = near_and_far()
    order = np.random.default_rng(2).permutation(len(signatures))
    groups, shuffled = group_near_duplicates(signatures), group_near_duplicates(signatures[order])
    assert ((groups[order][:, None] == groups[order]) == (shuffled[:, None] == shuffled)).all()


def test_a_group_is_named_by_its_first_frame():
    groups = group_near_duplicates(near_and_far())
    assert groups.dtype == np.int64
    assert (groups <= np.arange(len(groups))).all()
    assert (groups[groups] == groups).all()


def test_a_run_that_drifts_is_one_group_though_its_ends_differ(frames):
    run = [moved(resized(frames[0], 512), pixels) for pixels in range(0, 65, 8)]
    assert groups_of(run[0], run[-1]) == [0, 1]
    assert groups_of(*run) == [0] * len(run)


def test_thousands_of_copies_take_little_time_and_memory(monkeypatch):
    signatures = np.repeat(random_signatures(3), 1500, axis=0)
    signatures[::2, SIGNATURE_SIZE - 1] ^= 1
    monkeypatch.setattr(near_duplicates, "_BLOCK", 512)
    monkeypatch.setattr(near_duplicates, "_PAIRS", 1024)
    tracemalloc.start()
    groups = group_near_duplicates(signatures)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.unique(groups, return_counts=True)[1].tolist() == [1500, 1500, 1500]
    assert peak < 60 * 2**20  # all pairs would take 38 MiB for one bit of knowledge each, 2 GiB for their thumbnails


def test_no_frames_have_no_groups():
    assert group_near_duplicates(np.zeros((0, SIGNATURE_SIZE), np.uint8)).shape == (0,)


def test_signatures_of_another_shape_or_type_are_refused():
    for wrong in (np.zeros((2, 5), np.uint8), np.zeros(SIGNATURE_SIZE, np.uint8), np.zeros((2, SIGNATURE_SIZE))):
        with pytest.raises(ValueError, match=r"must be uint8 of shape \(num_frames, 1088\), got"):
            group_near_duplicates(wrong)


@pytest.mark.parametrize(
    ("values", "message"), [((-1, 0.5), "max_hash_distance"), ((256, 0.5), "max_hash"), ((80, 0), "min_correlation")]
)
def test_thresholds_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        NearDuplicateThreshold(*values)


def test_joined_rows_point_to_the_first_of_their_group_in_one_call():
    parents = np.arange(2000)
    order = np.random.default_rng(0).permutation(np.arange(0, 1998))
    join_rows(parents, order, order + 2)
    assert (parents == np.arange(2000) % 2).all()


# Data sets


def png(frame: np.ndarray) -> dict:
    buffer = io.BytesIO()
    PillowImage.fromarray(frame).save(buffer, "PNG")
    return {"path": None, "bytes": buffer.getvalue()}


def data_set(images: list) -> Dataset:
    return Dataset.from_dict(
        {"image": images, "row": list(range(len(images)))},
        features=Features({"image": Image(), "row": Value("int64")}),
    )


def test_a_data_set_gets_a_column_of_groups_and_keeps_the_first_of_each(frames):
    images = [frames[0], frames[1], noisy(frames[0]), frames[2], jpeg(frames[1])]
    grouped = near_duplicate_groups(data_set([png(image) for image in images]))
    assert grouped.features["near_duplicate_group"] == Value("int64")
    assert grouped["near_duplicate_group"][:] == [0, 1, 0, 3, 1]
    assert np.array_equal(np.asarray(grouped[3]["image"]), frames[2])
    assert drop_near_duplicates(grouped)["row"][:] == [0, 1, 3]


def test_signatures_of_a_data_set_are_those_of_its_frames(frames, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), frames[0])
    deep = (frames[2].astype(np.uint16) << 8) + frames[2]
    images = [{"path": str(tmp_path / "a.png"), "bytes": None}, png(np.stack([frames[1]] * 3, -1)), png(deep)]
    expected = [frame_signature(frame) for frame in frames[:3]]
    assert np.array_equal(dataset_signatures(data_set(images), num_threads=2), expected)


def test_grouping_a_selection_copies_no_images_to_disk(frames, tmp_path):
    data_set([png(frames[n]) for n in (0, 1, 2, 1)]).save_to_disk(tmp_path / "set")
    dataset = Dataset.load_from_disk(str(tmp_path / "set"))
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    grouped = near_duplicate_groups(dataset.select([3, 2, 1]))
    assert grouped["near_duplicate_group"][:] == [0, 1, 0]
    assert grouped["row"][:] == [3, 2, 1]
    assert drop_near_duplicates(grouped)["row"][:] == [3, 2]
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before


def test_a_column_of_groups_that_is_there_is_replaced(frames):
    dataset = data_set([png(frames[0])] * 2).add_column("near_duplicate_group", [7, 8])
    assert near_duplicate_groups(dataset)["near_duplicate_group"][:] == [0, 0]


def test_of_shuffled_rows_the_first_of_each_group_is_kept():
    dataset = Dataset.from_dict({"near_duplicate_group": [4, 0, 4, 0, 9]})
    assert drop_near_duplicates(dataset)["near_duplicate_group"][:] == [4, 0, 9]


def test_a_row_without_a_readable_image_is_named(frames):
    with pytest.raises(ValueError, match="Row 1 has no image"):
        near_duplicate_groups(data_set([png(frames[0]), None]))
    with pytest.raises(ValueError, match="image of row 1 cannot be read"):
        near_duplicate_groups(data_set([png(frames[0]), {"path": None, "bytes": b"no image"}]))


def test_a_column_that_is_missing_or_no_image_is_named():
    dataset = Dataset.from_dict({"row": [0]})
    with pytest.raises(ValueError, match="`image` is not an image column.*row"):
        near_duplicate_groups(dataset)
    with pytest.raises(ValueError, match=r"`near_duplicate_group` .*\['row'\]"):
        drop_near_duplicates(dataset)
    with pytest.raises(ValueError, match="null in 1 of 2 rows"):
        drop_near_duplicates(Dataset.from_dict({"near_duplicate_group": [0, None]}))


@pytest.mark.parametrize("function", [near_duplicate_groups, drop_near_duplicates])
def test_streamed_data_sets_and_dictionaries_of_splits_are_refused(function):
    dataset = Dataset.from_dict({"near_duplicate_group": [0]})
    with pytest.raises(TypeError, match="got IterableDataset. Load it with streaming=False"):
        function(dataset.to_iterable_dataset())
    with pytest.raises(TypeError, match="got DatasetDict"):
        function(DatasetDict(train=dataset))


# Real frames


def test_twins_of_real_angiograms_are_found_and_little_else(shared_data):
    root = shared_data / "arcade"
    twins = json.loads((root / "twins.json").read_text())["twins"][:60]
    names = [name for group in twins for name in group]
    paths = [root / "/".join(name.split("/")[:2]) / "images" / f"{name.split('/')[2]}.jpg" for name in names]
    groups = groups_of(*(cv2.imread(str(path), 0) for path in paths))
    listed = [number for number, group in enumerate(twins) for _ in group]
    assert all(groups[names.index(name)] == groups[names.index(group[0])] for group in twins for name in group)
    assert len(set(groups)) >= 0.95 * len(set(listed))  # a few twins are frames of one run
