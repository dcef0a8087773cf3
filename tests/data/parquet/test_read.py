"""Frames and crops straight from Parquet: the same as from a cache, shared out without overlap, resumed at any place."""

import copy
import json
import pickle
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from miniatures.hub_server import hub_server
from PIL import Image
from torch.utils.data import DataLoader

from vasomim_hf.data.frame_cache import FrameCacheDataset, build_frame_cache
from vasomim_hf.data.parquet import read as parquet_frames
from vasomim_hf.data.parquet.png import encode_mask_png, encode_png
from vasomim_hf.data.parquet.read import ParquetCropStream, ParquetFrames, find_shards
from vasomim_hf.data.parquet.row_order import StreamOptions
from vasomim_hf.data.reading.files import FrameReadError
from vasomim_hf.data.sources import FolderSource
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram


pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("datasets")

NUM_ROWS, IN_SHARD, IN_GROUP = 50, 30, 4
# Each frame's first pixel is its number
SIZES = [(48, 40), (33, 57), (64, 64)]


@lru_cache
def drawn(seed):
    return synthetic_angiogram(seed, size=64).image


@lru_cache
def frame(number):
    height, width = SIZES[number % len(SIZES)]
    image = np.resize(drawn(number % 5), (height, width)).copy()
    image[0, 0] = number
    return image


def row(number):
    image = frame(number)
    return {
        "image": {"bytes": encode_png(image), "path": None},
        "vesselness": {"bytes": encode_mask_png(image < 100), "path": None},
        "source": "drawn",
    }


def write(rows, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"row_group_size": IN_GROUP, "compression": "zstd", **options}
    pq.write_table(pa.Table.from_pylist(rows), path, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two shards of a training set, the second row groups of which do not come out even, and one of a test set."""
    root = tmp_path_factory.mktemp("parquet")
    rows = [row(number) for number in range(NUM_ROWS)]
    write(rows[:IN_SHARD], root / "data/train-00000-of-00002.parquet")
    write(rows[IN_SHARD:], root / "data/train-00001-of-00002.parquet")
    write(rows[:3], root / "data/test-00000-of-00001.parquet")
    return root


@pytest.fixture(scope="module")
def frames(folder):
    return ParquetFrames(find_shards(str(folder)))


def show_numbers(stream):
    """Let a stream yield the numbers of its rows, in place of crops, together with the epoch."""
    stream.crops = _Numbers()
    return stream


class _Numbers:
    def __getitem__(self, key):
        return {"key": torch.tensor(key)}


def keys_of(loader):
    return [tuple(key) for batch in loader for key in batch["key"].reshape(-1, 2).tolist()]


# Frames


def test_every_frame_and_mask_is_there_and_only_of_the_split(folder, frames):
    assert len(frames) == NUM_ROWS and len(ParquetFrames(find_shards(str(folder), "test"))) == 3
    for number in [*range(NUM_ROWS), 3, 49, 0]:
        np.testing.assert_array_equal(frames.frame(number), frame(number))
        np.testing.assert_array_equal(frames.vesselness(number), frame(number) < 100)
        np.testing.assert_array_equal(frames.vesselness(number, 5, 20), (frame(number) < 100)[5:25])
        assert frames.size(number) == SIZES[number % 3]
    assert frames.row_groups == (4,) * 7 + (2,) + (4,) * 5
    assert frames.name(33) == "data/train-00001-of-00002.parquet, row 3"


def test_one_file_may_be_named(folder):
    path = folder / "data/train-00001-of-00002.parquet"
    assert find_shards(str(path)) == {path.name: str(path)} and len(ParquetFrames(find_shards(str(path)))) == 20


def test_crops_equal_those_of_a_cache_of_the_same_frames(frames, tmp_path):
    for number in range(6):
        for name, image in (("frames", frame(number)), ("masks", frame(number) < 100)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / name / f"{number}.png")
    source = FolderSource(tmp_path / "frames", masks=tmp_path / "masks")
    cached = FrameCacheDataset(build_frame_cache(source, tmp_path / "cache", show_progress=False), (32, 32), seed=5)
    streamed = FrameCacheDataset(frames, (32, 32), seed=5)
    for key in ((0, 0), (3, 5), (9, 2)):
        for name in ("pixel", "vesselness"):
            assert torch.equal(cached[key][name], streamed[key][name])


def test_usual_images_and_plain_bytes_are_read_too(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(frame(2)).convert("RGB").save(path)
    for kind in (pa.binary(), pa.large_binary()):
        mask = encode_mask_png(frame(2) < 100)
        table = pa.table({"frame": pa.array([path.read_bytes()], kind), "mask": pa.array([mask], kind)})
        pq.write_table(table, tmp_path / "a.parquet")
        found = ParquetFrames(find_shards(str(tmp_path / "a.parquet")), "frame", "mask")
        np.testing.assert_array_equal(found.frame(0), np.asarray(Image.open(path).convert("L")))
        assert found.size(0) == (64, 64) and found.vesselness(0).shape == (64, 64)


def test_a_selection_keeps_its_order_and_counts_its_row_groups(frames):
    chosen = frames.select([40, 3, 2, 1, 7]).select([1, 2, 3, 4, 0])
    assert [int(chosen.frame(i)[0, 0]) for i in range(5)] == [3, 2, 1, 7, 40]
    assert chosen.row_groups == (3, 1, 1) and frames.select(range(10)).row_groups == (4, 4, 2)
    assert len(frames) == NUM_ROWS


def test_few_row_groups_stay_in_memory(folder):
    frames = ParquetFrames(find_shards(str(folder)), max_row_groups=2)
    for number in (0, 5, 9, 1):
        frames.frame(number)
    assert list(frames._loaded) == [2, 0]
    for number in (0, 2, 3):
        frames.frame(number)
    assert list(frames._loaded) == [2]


def test_a_copy_for_another_process_holds_no_open_files(frames):
    frames.frame(0)
    other = pickle.loads(pickle.dumps(frames))
    assert not other._files and not other._loaded
    np.testing.assert_array_equal(other.frame(49), frame(49))


def test_a_process_after_a_fork_opens_its_own_files(frames, monkeypatch):
    frames.frame(0)
    opened = dict(frames._files)
    monkeypatch.setattr(parquet_frames.os, "getpid", lambda: -1)
    frames.frame(1)
    assert opened and frames._files[0] is not opened[0]


def test_the_key_is_that_of_the_content_not_of_the_place(folder, frames, tmp_path):
    again = tmp_path / "copy/data"
    again.mkdir(parents=True)
    for path in (folder / "data").iterdir():
        (again / path.name).write_bytes(path.read_bytes())
    shards = find_shards(str(tmp_path / "copy"))
    assert ParquetFrames(shards).key == frames.key
    other_rows = [row(number) for number in range(1, IN_SHARD + 1)]
    write(other_rows, again / "train-00000-of-00002.parquet")
    assert ParquetFrames(shards).key != frames.key
    assert ParquetFrames(shards, bits_stored=10).key != ParquetFrames(shards).key


# Faults


def test_what_cannot_be_streamed_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder nowhere"):
        find_shards("nowhere")
    with pytest.raises(ValueError, match=r"has no split"):
        find_shards(str(folder), "val")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match="Parquet"):
        find_shards(str(tmp_path / "text"))
    path = tmp_path / "a.parquet"
    write([{"image": row(0)["image"], "vesselness": 3}], path)
    with pytest.raises(ValueError, match="`vesselness` of a.parquet holds int64, and images"):
        ParquetFrames(find_shards(str(path)))
    write([{"image": row(0)["image"]}], path)
    with pytest.raises(
        ValueError, match=r"a.parquet has no column `vesselness`, but \['image'\].* without `streaming`"
    ):
        ParquetFrames(find_shards(str(path)))
    pq.write_table(pa.Table.from_pylist([row(0)]).slice(0, 0), path)
    with pytest.raises(ValueError, match="have no rows"):
        ParquetFrames(find_shards(str(path)))


def test_a_bad_row_is_named_and_the_others_are_read(tmp_path):
    rows = [row(number) for number in range(6)]
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:500]
    rows[2]["image"]["bytes"] = None
    rows[3]["vesselness"] = None
    rows[4]["vesselness"] = row(0)["vesselness"]
    damaged = bytearray(rows[5]["image"]["bytes"])
    damaged[700] ^= 1
    rows[5]["image"]["bytes"] = bytes(damaged)
    write(rows, tmp_path / "a.parquet")
    frames = ParquetFrames(find_shards(str(tmp_path / "a.parquet")))
    dataset = FrameCacheDataset(frames, (16, 16))
    assert dataset[0]["pixel"].shape == (1, 16, 16)
    for number, message in [
        (1, "column `image` cannot be read"),
        (2, r"column `image` cannot be read \(it is empty in this row"),
        (3, r"column `vesselness` cannot be read \(it is empty in this row"),
        (4, r"column `vesselness` cannot be read .*48×40, its frame 33×57"),
        (5, "column `image` cannot be read .*cannot be read as an image"),
    ]:
        with pytest.raises(FrameReadError, match=rf"a.parquet, row {number}: the {message}"):
            dataset[number]


def test_a_truncated_shard_is_an_error_at_once(folder, tmp_path):
    data = (folder / "data/test-00000-of-00001.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:-100])
    with pytest.raises((ValueError, OSError)):
        ParquetFrames(find_shards(str(tmp_path / "a.parquet")))


# Streams


def stream_of(frames, epoch=0, **options):
    stream = ParquetCropStream(frames, (32, 32), StreamOptions(**options))
    stream.set_epoch(epoch)
    return stream


def test_a_stream_yields_what_a_map_of_the_same_rows_does(frames):
    stream = stream_of(frames, epoch=2, seed=7)
    order = stream._own_rows(2)
    dataset = FrameCacheDataset(frames, (32, 32), seed=7)
    for item, index in zip(stream, order.tolist(), strict=True):
        expected = dataset[2, index]
        assert item["pixel"].dtype == item["vesselness"].dtype == torch.uint8
        assert torch.equal(item["pixel"], expected["pixel"])
        assert torch.equal(item["vesselness"], expected["vesselness"])
    assert len(stream) == NUM_ROWS


@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_and_loader_processes_read_each_row_once_and_their_number_changes_nothing(frames, world_size):
    seen = {}
    for num_workers in (0, 1, 2):
        ranks = []
        for rank in range(world_size):
            stream = show_numbers(stream_of(frames, epoch=1, rank=rank, world_size=world_size, batch_size=4))
            ranks.append(keys_of(DataLoader(stream, batch_size=4, num_workers=num_workers)))
        seen[num_workers] = ranks
        assert sorted(key for rank in ranks for key in rank) == [(1, index) for index in range(NUM_ROWS)]
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("num_workers", [3, 4, 7])
def test_more_loader_processes_than_cores_share_the_batches_in_turn(frames, monkeypatch, num_workers):
    whole = [tuple(item["key"].tolist()) for item in show_numbers(stream_of(frames, batch_size=4))]
    parts = []
    for number in range(num_workers):
        worker = SimpleNamespace(id=number, num_workers=num_workers)
        monkeypatch.setattr(parquet_frames, "get_worker_info", lambda worker=worker: worker)
        parts.append([tuple(item["key"].tolist()) for item in show_numbers(stream_of(frames, batch_size=4))])
    turns = [parts[batch % num_workers][batch // num_workers * 4 :][:4] for batch in range(-(-NUM_ROWS // 4))]
    assert [key for turn in turns for key in turn] == whole and sum(map(len, parts)) == NUM_ROWS


def test_loader_processes_deliver_the_same_pixels(frames):
    loaders = [DataLoader(stream_of(frames, batch_size=8), batch_size=8, num_workers=n) for n in (0, 2)]
    batches = [torch.cat([batch["pixel"] for batch in loader]) for loader in loaders]
    assert len(batches[0]) == NUM_ROWS and torch.equal(*batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_interrupted_epoch_goes_on_at_the_same_place_and_reads_nothing_before(frames, num_workers):
    whole = keys_of(DataLoader(show_numbers(stream_of(frames, epoch=3, batch_size=4)), batch_size=4))
    stream = show_numbers(stream_of(frames, epoch=3, batch_size=4))
    stream.skip_to(20)
    assert keys_of(DataLoader(stream, batch_size=4, num_workers=num_workers)) == whole[20:]
    with pytest.raises(ValueError, match="multiple of batch_size=4, got 21"):
        stream.skip_to(21)
    stream.set_epoch(4)
    assert len(keys_of(DataLoader(stream, batch_size=4))) == NUM_ROWS


def test_skipping_decodes_nothing(frames, monkeypatch):
    read = []
    decode = parquet_frames.decode_frame
    monkeypatch.setattr(parquet_frames, "decode_frame", lambda *arguments: read.append(1) or decode(*arguments))
    stream = stream_of(copy.copy(frames), batch_size=2)
    stream.skip_to(46)
    list(stream)
    assert len(read) == 4


def test_a_state_taken_in_the_middle_restores_the_rest(frames):
    stream = show_numbers(stream_of(frames, epoch=5))
    iterator = iter(stream)
    before = [next(iterator) for _ in range(13)]
    state = json.loads(json.dumps(stream.state_dict()))
    rest = [tuple(item["key"].tolist()) for item in iterator]
    other = show_numbers(stream_of(frames))
    other.load_state_dict(state)
    assert [tuple(item["key"].tolist()) for item in other] == rest and len(before) + len(rest) == NUM_ROWS
    # and the next epoch is whole again
    other.set_epoch(6)
    assert len(list(other)) == NUM_ROWS


def test_loader_processes_that_live_on_see_the_next_epoch(frames):
    stream = show_numbers(stream_of(frames, batch_size=5))
    loader = DataLoader(stream, batch_size=5, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        epochs.append(keys_of(loader))
    assert [{epoch for epoch, _ in keys} for keys in epochs] == [{0}, {1}]
    assert [index for _, index in epochs[0]] != [index for _, index in epochs[1]]


# Other places


def test_shards_on_another_file_system_are_read_by_range(folder, frames):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    shards = {}
    for name, path in find_shards(str(folder)).items():
        memory.pipe_file(f"/shards/{name}", Path(path).read_bytes())
        shards[name] = f"memory://shards/{name}"
    remote = ParquetFrames(shards)
    assert remote.key == frames.key
    for number in (0, 31, 49):
        np.testing.assert_array_equal(remote.frame(number), frame(number))
        np.testing.assert_array_equal(remote.vesselness(number), frame(number) < 100)


@pytest.mark.hub
def test_a_dataset_on_the_hub_is_streamed_without_a_copy_on_disk(folder, frames, tmp_path):
    code = """
        import json, pathlib
        from vasomim_hf.data.parquet.read import ParquetCropStream, ParquetFrames, find_shards
        from vasomim_hf.data.parquet.row_order import StreamOptions
        from torch.utils.data import DataLoader
        frames = ParquetFrames(find_shards("hf://datasets/tester/frames"))
        stream = ParquetCropStream(frames, (32, 32), StreamOptions(batch_size=10))
        sums = [int(batch["pixel"].long().sum()) for batch in DataLoader(stream, batch_size=10, num_workers=2)]
        print(json.dumps([frames.key, len(frames), sums, frames.name(49)]))
    """
    with hub_server() as hub:
        for path in sorted((folder / "data").iterdir()):
            hub.put("tester/frames", f"data/{path.name}", path.read_bytes())
        result = hub.run(code)
        assert result.returncode == 0, result.stderr
        # One for each footer and row group, and a second for groups that two lanes or the last batches share
        assert sum("/lfs/" in request for request in hub.requests) <= 2 + 2 * len(frames.row_groups)
        home = Path(hub.environment["HF_HOME"])
        assert not [path for path in home.rglob("*") if path.suffix in (".parquet", ".arrow")]
    key, length, sums, name = json.loads(result.stdout.splitlines()[-1])
    expected = DataLoader(stream_of(frames, batch_size=10), batch_size=10)
    assert (key, length, name) == (frames.key, NUM_ROWS, frames.name(49))
    assert sums == [int(batch["pixel"].long().sum()) for batch in expected]
