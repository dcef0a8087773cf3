"""The frame cache: what it is built from, when it is built anew, what it refuses, and crops that depend on nothing else."""

import json
import logging
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vasomim_hf.data import frame_cache as module
from vasomim_hf.data.frame_cache import FrameCache, FrameCacheDataset, build_frame_cache
from vasomim_hf.data.sources import DatasetSource, FolderSource, SourceOptions, open_source, read_frame_list
from vasomim_hf.data.vesselness import vessel_mask


def frame(seed, height=90, width=77):
    """A dark line on a soft background."""
    noise = np.random.default_rng(seed).integers(150, 200, (height // 6 + 1, width // 6 + 1), dtype=np.uint8)
    image = np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    image[25 : height - 25, width // 2 - 2 : width // 2 + 2] //= 3
    return image


@pytest.fixture
def folder(tmp_path):
    """Five frames of different sizes in two sub-folders."""
    root = tmp_path / "frames"
    for number, size in enumerate([(90, 77), (64, 64), (70, 101), (90, 77), (128, 96)]):
        path = root / ("a" if number < 3 else "b/images") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame(number, *size)).save(path)
    return root


def build(folder, tmp_path, **options):
    return build_frame_cache(FolderSource(folder), tmp_path / "cache", show_progress=False, **options)


def cache_folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_the_cache_returns_every_frame_and_its_vesselness(folder, tmp_path):
    cache = build(folder, tmp_path)
    assert cache.names == ["a/0.png", "a/1.png", "a/2.png", "b/images/3.png", "b/images/4.png"]
    for index, name in enumerate(cache.names):
        expected = np.asarray(Image.open(folder / name))
        np.testing.assert_array_equal(cache.frame(index), expected)
        np.testing.assert_array_equal(cache.vesselness(index), vessel_mask(expected))
        np.testing.assert_array_equal(cache.vesselness(index, 30, 7), vessel_mask(expected)[30:37])
    assert any(cache.vesselness(index).any() for index in range(5))
    # decoded frames of patients are for their owner alone
    assert cache.folder.stat().st_mode & 0o077 == 0
    assert cache.size(2) == (70, 101) and not cache.skipped


def test_an_equal_source_takes_the_cache_there_is(folder, tmp_path, monkeypatch):
    first = build(folder, tmp_path)
    monkeypatch.setattr(module, "vessel_mask", None)
    assert build(folder, tmp_path).key == first.key
    assert cache_folders(tmp_path) == [first.key]


def test_a_changed_frame_or_option_makes_another_cache(folder, tmp_path):
    keys = [build(folder, tmp_path).key, build(folder, tmp_path, vesselness_options={"border": 3}).key]
    Image.fromarray(frame(9)).save(folder / "a/0.png")
    keys.append(build(folder, tmp_path).key)
    (folder / "a/1.png").unlink()
    keys.append(build(folder, tmp_path).key)
    assert len(set(keys)) == 4 and cache_folders(tmp_path) == sorted(keys)


def test_an_option_at_its_default_is_the_same_as_none(folder, tmp_path):
    assert build(folder, tmp_path).key == build(folder, tmp_path, vesselness_options={"border": 20}).key


def test_a_copy_with_other_times_takes_the_same_cache(folder, tmp_path):
    first = build(folder, tmp_path).key
    os.utime(folder / "a/0.png", ns=(1, 1))
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy)
    assert build(folder, tmp_path).key == build(tmp_path / "copy", tmp_path).key == first


@pytest.mark.parametrize("place", [150, 100_000, -1])
def test_a_frame_changed_in_place_makes_another_cache(tmp_path, place):
    (tmp_path / "frames").mkdir()
    path = tmp_path / "frames" / "0.png"
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
    keys = []
    for value in (10, 11):
        pixels.flat[place] = value
        Image.fromarray(pixels).save(path, compress_level=0)
        keys.append((path.stat().st_size, json.dumps(FolderSource(tmp_path / "frames").signature())))
    assert keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1]


def test_unreadable_frames_are_reported_and_left_out(folder, tmp_path, caplog):
    (folder / "a/1.png").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        cache = build(folder, tmp_path)
    assert len(cache) == 4 and list(cache.skipped) == ["a/1.png"]
    assert "1 of 5 frames cannot be read and are skipped: a/1.png" in caplog.text
    np.testing.assert_array_equal(cache.frame(1), np.asarray(Image.open(folder / "a/2.png")))


def test_a_damaged_mask_is_named_as_a_mask_and_its_frame_left_out(folder, tmp_path, caplog):
    write_masks(folder, tmp_path / "masks")
    for name, size in (("a/0.png", 60), ("a/1.png", 5)):
        (tmp_path / "masks" / name).write_bytes((tmp_path / "masks" / name).read_bytes()[:size])
    cache = build_frame_cache(FolderSource(folder, masks=tmp_path / "masks"), tmp_path / "cache")
    assert cache.names == ["a/2.png", "b/images/3.png", "b/images/4.png"]
    assert all(f"mask {tmp_path / 'masks' / name} cannot be read" in cache.skipped[name] for name in cache.skipped)
    assert "2 of 5 frames cannot be read and are skipped: a/0.png: UnreadableMaskError: The mask" in caplog.text


def test_a_folder_of_nothing_but_unreadable_frames_is_refused(folder, tmp_path):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 5 frames"):
        build(folder, tmp_path)
    assert cache_folders(tmp_path) == []


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "frames").mkdir()
    with pytest.raises(ValueError, match="contains no frames"):
        build(tmp_path / "frames", tmp_path)


def test_processes_make_the_same_cache(folder, tmp_path, monkeypatch):
    alone = build(folder, tmp_path)
    kept = {name: (alone.folder / name).read_bytes() for name in ("frames.bin", "vesselness.bin", "index.json")}
    shutil.rmtree(alone.folder)
    monkeypatch.setattr(module, "MIN_FRAMES_FOR_PROCESSES", 1)
    together = build(folder, tmp_path, num_workers=2)
    assert kept == {name: (together.folder / name).read_bytes() for name in kept}


def test_an_interrupted_build_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "vessel_mask", fail)
    with pytest.raises(KeyboardInterrupt):
        build(folder, tmp_path)
    assert cache_folders(tmp_path) == []


def test_a_cache_cut_short_is_refused(folder, tmp_path):
    cache = build(folder, tmp_path)
    with open(cache.folder / "frames.bin", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="has 100 bytes instead of"):
        FrameCache(cache.folder)


def test_a_folder_without_an_index_and_another_format_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="frame cache"):
        FrameCache(folder)
    cache = build(folder, tmp_path)
    index = json.loads((cache.folder / "index.json").read_text())
    (cache.folder / "index.json").write_text(json.dumps({**index, "format": 99}))
    with pytest.raises(ValueError, match="format 99, this version reads 1"):
        FrameCache(cache.folder)


def test_a_selection_shares_the_files_and_travels_to_other_processes(folder, tmp_path):
    cache = build(folder, tmp_path)
    cache.frame(0)
    chosen = pickle.loads(pickle.dumps(cache.select([4, 1])))
    assert len(chosen) == 2 and chosen.name(0) == "b/images/4.png" and chosen.select([1]).name(0) == "a/1.png"
    np.testing.assert_array_equal(chosen.frame(1), cache.frame(1))
    assert len(pickle.dumps(cache)) < 10_000


# Ready masks


def write_masks(folder, masks, values=(0, 255)):
    for path in folder.rglob("*.png"):
        target = masks / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        mask = np.asarray(Image.open(path)) < 100
        Image.fromarray(np.where(mask, values[1], values[0]).astype(np.uint8)).save(target)


@pytest.mark.parametrize("values", [(0, 255), (0, 1)])
def test_ready_masks_take_the_place_of_the_filter(folder, tmp_path, values, monkeypatch):
    write_masks(folder, tmp_path / "masks", values)
    monkeypatch.setattr(module, "vessel_mask", None)
    cache = build_frame_cache(FolderSource(folder, masks=tmp_path / "masks"), tmp_path / "cache")
    for index in range(5):
        np.testing.assert_array_equal(cache.vesselness(index), cache.frame(index) < 100)


def test_masks_inside_the_data_folder_are_no_frames(folder, tmp_path):
    write_masks(folder, tmp_path / "masks")
    shutil.move(tmp_path / "masks", folder / "masks")
    assert len(FolderSource(folder, masks=folder / "masks")) == 5 and len(FolderSource(folder)) == 10


def test_masks_that_do_not_fit_are_refused_by_name(folder, tmp_path):
    masks = tmp_path / "masks"
    write_masks(folder, masks)
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(masks / "a/1.png")
    with pytest.raises(ValueError, match=r"1\.png has the levels 7"):
        build_frame_cache(FolderSource(folder, masks=masks), tmp_path / "cache")
    Image.fromarray(np.zeros((64, 65), np.uint8)).save(masks / "a/1.png")
    with pytest.raises(ValueError, match=r"1\.png is 64×65, its frame 64×64"):
        build_frame_cache(FolderSource(folder, masks=masks), tmp_path / "cache")
    (masks / "a/1.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 5 frames have no mask .*a/1\.png"):
        FolderSource(folder, masks=masks)


def test_files_that_runs_write_are_no_frames(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name in ("runs/one/pictures/epoch_0001.png", "runs/cache/x/y.png"):
        (folder / name).parent.mkdir(parents=True)
        Image.fromarray(frame(1)).save(folder / name)
    assert len(FolderSource(folder)) == 7
    source = FolderSource(folder, leave_out=[folder / "runs/one", folder / "runs/../runs/cache", folder, tmp_path])
    assert len(source) == 5 and "2 images in" in caplog.text and "are not used as frames" in caplog.text


# Lists of frames


def test_a_list_chooses_frames_by_path_by_stem_and_without_the_images_folder(folder, tmp_path):
    (tmp_path / "list.txt").write_text("# chosen\nb/4\na/0.png  # first\n\nb/images/3\nb/4\n")
    assert FolderSource(folder, tmp_path / "list.txt").names == ["b/images/4.png", "a/0.png", "b/images/3.png"]


def test_a_list_in_a_json_object_is_found_by_its_key(folder, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"note": "text", "pool": ["a/2"], "other": ["a/1"]}))
    assert FolderSource(folder, path, "pool").names == ["a/2.png"]
    with pytest.raises(ValueError, match=r"frame_list_key to one of \['pool', 'other'\]"):
        read_frame_list(path)
    path.write_text(json.dumps(["a/1"]))
    assert read_frame_list(path) == ["a/1"]


@pytest.mark.parametrize(
    "text, message", [("[]", "names no frames"), ("[1]", "must contain a list"), ('{"a": 1}', "has no list of names")]
)
def test_a_json_file_without_names_is_refused(tmp_path, text, message):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_frame_list(tmp_path / "list.json")


def test_listed_frames_that_are_missing_or_ambiguous_are_named(folder, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a/0\na/17\na/18\n")
    with pytest.raises(ValueError, match="2 of the 3 frames in .* the first is 'a/17'"):
        FolderSource(folder, path)
    Image.fromarray(frame(0)).save(folder / "a/0.jpg")
    path.write_text("a/0")
    with pytest.raises(ValueError, match=r"'a/0' in .* is ambiguous.*0\.jpg.*full path"):
        FolderSource(folder, path)


def test_the_published_list_of_real_frames_is_found(shared_data):
    source = FolderSource(shared_data / "arcade", shared_data / "arcade" / "twins.json", "pretrain_pool")
    assert len(source) == 1652 and source.names[0] == "stenosis/train/images/10.jpg"


# Datasets


def make_dataset(folder, with_masks=False):
    datasets = pytest.importorskip("datasets")
    paths = [str(path) for path in sorted(folder.rglob("*.png"))]
    columns = {"image": paths}
    features = {"image": datasets.Image()}
    if with_masks:
        columns["vesselness"] = [{"path": None, "bytes": png(np.asarray(Image.open(path)) < 100)} for path in paths]
        features["vesselness"] = datasets.Image()
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def png(mask):
    import io

    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_dataset_gives_the_same_cache_as_its_folder(folder, tmp_path):
    cache = build_frame_cache(DatasetSource(make_dataset(folder)), tmp_path / "cache")
    expected = build(folder, tmp_path)
    for index in range(5):
        np.testing.assert_array_equal(cache.frame(index), expected.frame(index))
        np.testing.assert_array_equal(cache.vesselness(index), expected.vesselness(index))


def test_a_saved_dataset_is_recognised_and_its_masks_are_used(folder, tmp_path):
    make_dataset(folder, with_masks=True).save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    cache = build_frame_cache(source, tmp_path / "cache")
    np.testing.assert_array_equal(cache.vesselness(0), cache.frame(0) < 100)
    again = build_frame_cache(open_source(str(tmp_path / "saved")), tmp_path / "cache")
    assert again.key == cache.key
    with pytest.raises(ValueError, match="apply to a folder of frames"):
        open_source(str(tmp_path / "saved"), SourceOptions(masks="somewhere"))


def test_a_split_of_a_saved_dataset_is_chosen_by_name(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": make_dataset(folder)}).save_to_disk(tmp_path / "saved")
    assert len(open_source(str(tmp_path / "saved"))) == 5
    with pytest.raises(ValueError, match="has no split 'val', but train"):
        open_source(str(tmp_path / "saved"), SourceOptions(split="val"))


def test_parquet_files_are_read(folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "parquet").mkdir()
    make_dataset(folder).to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    source = open_source(str(tmp_path / "parquet"))
    np.testing.assert_array_equal(source.frame(0), np.asarray(Image.open(folder / "a/0.png")))


def test_a_table_beside_frames_does_not_make_a_dataset_of_them(folder):
    (folder / "labels.parquet").write_bytes(b"PAR1")
    assert len(open_source(str(folder))) == 5


def test_pictures_of_runs_do_not_make_a_folder_of_a_dataset(folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "data/runs").mkdir(parents=True)
    make_dataset(folder).to_parquet(tmp_path / "data" / "train-00000.parquet")
    Image.fromarray(frame(1)).save(tmp_path / "data/runs/epoch.png")
    options = SourceOptions(leave_out=(str(tmp_path / "data/runs"),))
    assert isinstance(open_source(str(tmp_path / "data"), options), DatasetSource)


def test_bad_rows_of_a_dataset_are_reported_and_left_out(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = [path.read_bytes() for path in sorted(folder.rglob("*.png"))]
    images = [whole[0], None, whole[2][:200], b"no picture", whole[4]]
    masks = [None, *[png(np.zeros((90, 77)) > 0)] * 3, png(np.asarray(Image.open(folder / "b/images/4.png")) < 100)]
    features = datasets.Features({"frame": datasets.Image(), "vessels": datasets.Image()})
    columns = {"frame": images, "vessels": masks}
    columns = {name: [data and {"path": None, "bytes": data} for data in rows] for name, rows in columns.items()}
    source = DatasetSource(datasets.Dataset.from_dict(columns, features=features), "frame", "vessels")
    cache = build_frame_cache(source, tmp_path / "cache")
    assert cache.names == ["4"] and list(cache.skipped) == ["0", "1", "2", "3"]
    assert "mask in row 0 of dataset cannot be read" in cache.skipped["0"]
    assert "row 1 has no image in the column `frame`" in cache.skipped["1"]
    np.testing.assert_array_equal(cache.vesselness(0), cache.frame(0) < 100)


@pytest.mark.parametrize("error", [EOFError("end"), Image.DecompressionBombError("too large")])
def test_whatever_a_damaged_row_raises_it_is_left_out(folder, tmp_path, error, monkeypatch):
    source = FolderSource(folder)
    read = source.frame

    def frame_or_error(index):
        if index == 1:
            raise error
        return read(index)

    monkeypatch.setattr(source, "frame", frame_or_error)
    cache = build_frame_cache(source, tmp_path / "cache")
    assert cache.skipped == {"a/1.png": f"{type(error).__name__}: {error}"}


def test_a_dataset_without_the_image_column_is_refused(folder):
    with pytest.raises(ValueError, match=r"no column `frame`, only \['image'\]"):
        DatasetSource(make_dataset(folder), image_column="frame")


def test_a_folder_that_is_not_there_is_answered_with_the_hub_spelling():
    with pytest.raises(FileNotFoundError, match="hf://datasets/OWNER/NAME"):
        open_source("owner/name")


# Crops


def crops(dataset, epochs=(0, 1)):
    return torch.stack([dataset[epoch, index]["pixel"] for epoch in epochs for index in range(len(dataset))])


def test_items_are_paired_uint8_crops(folder, tmp_path):
    dataset = FrameCacheDataset(build(folder, tmp_path), (48, 32))
    item = dataset[3]
    assert {name: (value.shape, value.dtype) for name, value in item.items()} == {
        "pixel": ((1, 48, 32), torch.uint8),
        "vesselness": ((1, 48, 32), torch.uint8),
    }
    assert set(item["vesselness"].unique().tolist()) <= {0, 1}


def test_pixels_and_vesselness_of_a_crop_match(folder, tmp_path):
    write_masks(folder, tmp_path / "masks")
    cache = build_frame_cache(FolderSource(folder, masks=tmp_path / "masks"), tmp_path / "cache")
    dataset = FrameCacheDataset(cache, (64, 64))
    for epoch in range(20):
        item = dataset[epoch, 4]
        assert ((item["pixel"] < 100) == (item["vesselness"] == 1)).float().mean() > 0.95


def test_crops_depend_on_seed_epoch_and_frame_alone(folder, tmp_path):
    cache = build(folder, tmp_path)
    first = crops(FrameCacheDataset(cache, (32, 32), seed=1))
    torch.testing.assert_close(crops(FrameCacheDataset(cache, (32, 32), seed=1)), first)
    assert not torch.equal(crops(FrameCacheDataset(cache, (32, 32), seed=2)), first)
    assert not torch.equal(first[:5], first[5:])


def test_loader_processes_do_not_change_the_data(folder, tmp_path):
    dataset = FrameCacheDataset(build(folder, tmp_path), (32, 32))
    keys = [[(0, 3), (0, 1)], [(1, 3), (7, 4)]]
    alone = list(torch.utils.data.DataLoader(dataset, batch_sampler=keys))
    together = list(torch.utils.data.DataLoader(dataset, batch_sampler=keys, num_workers=2))
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b)


def test_without_augmentation_the_whole_frame_is_resized(folder, tmp_path):
    dataset = FrameCacheDataset(build(folder, tmp_path), (64, 64), augment=False)
    np.testing.assert_array_equal(dataset[5, 1]["pixel"][0].numpy(), dataset.cache.frame(1))
