"""From the raw layouts of XA-170K, on a disk or on a hub, to Parquet, to the Hub, and to a batch of training."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from miniatures.hub_server import Hub, hub_server
from miniatures.xa170k import (
    authors_frames,
    write_authors_folder,
    write_authors_zip,
    write_cadica,
    write_coronarydominance,
    write_originals,
    write_syntax,
    write_xcad,
    write_xcad_zip,
)

from vasomim_hf.data.frame_cache import FrameCacheDataset, build_frame_cache
from vasomim_hf.data.sources import open_source
from vasomim_hf.data.vesselness import VesselnessOptions, vessel_mask
from vasomim_hf.data.xa170k.dataset import XA170KBuildOptions, build_xa170k


WRITERS = {
    "dataset": write_authors_folder,
    "xa170k.zip": write_authors_zip,
    "CADICA": write_cadica,
    "CoronaryDominance": write_coronarydominance,
    "XCAD": write_xcad,
    "XCAD.zip": write_xcad_zip,
    "SYNTAX": write_syntax,
    "originals": write_originals,
}
BORDER = 4
OPTIONS = XA170KBuildOptions(vesselness=VesselnessOptions(border=BORDER), frames_per_shard=3, num_workers=1)


def digest(frame: np.ndarray) -> str:
    return hashlib.sha256(f"{frame.shape[0]}x{frame.shape[1]}:uint8".encode() + frame.tobytes()).hexdigest()


@pytest.mark.parametrize("name", WRITERS)
def test_every_raw_layout_becomes_parquet_and_then_a_batch(name: str, tmp_path: Path):
    frames = WRITERS[name](tmp_path / name)
    report = build_xa170k(tmp_path / name, tmp_path / "out", OPTIONS)
    assert report.num_rows == len(frames)
    rows = list(load_dataset(str(tmp_path / "out"), split="train", streaming=True))
    assert sorted(row["sha256"] for row in rows) == sorted(map(digest, frames.values()))
    for row in rows:
        mask = vessel_mask(np.asarray(row["image"]), border=BORDER)
        assert np.array_equal(np.asarray(row["vesselness"]), mask)
    assert [row["source"] for row in rows] == [file.source for file in report.files for _ in range(file.num_rows)]


def test_a_build_feeds_a_training_batch_with_its_own_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    frames = list(WRITERS["dataset"](tmp_path / "raw").values())
    build_xa170k(tmp_path / "raw", tmp_path / "out", OPTIONS)
    source = open_source(str(tmp_path / "out"))
    cache = build_frame_cache(source, tmp_path / "frames", vesselness_options={"border": 20}, show_progress=False)
    batch = next(iter(torch.utils.data.DataLoader(FrameCacheDataset(cache, (64, 64), augment=False), batch_size=4)))
    assert batch["pixel"].shape == batch["vesselness"].shape == (4, 1, 64, 64)
    for number in range(4):
        assert np.array_equal(batch["pixel"][number, 0].numpy(), frames[number])
        # not those of the options above: the masks come from the Parquet file
        assert np.array_equal(batch["vesselness"][number, 0].numpy(), vessel_mask(frames[number], border=BORDER))


# Over a hub

HEAD = f"""
import dataclasses, json, sys
import numpy as np
from datasets import load_dataset
from vasomim_hf.data.vesselness import VesselnessOptions
from vasomim_hf.data.xa170k.dataset import *

options = XA170KBuildOptions(
    vesselness=VesselnessOptions(border={BORDER}), frames_per_shard=3, num_workers=1, show_progress=False)

def told(rows):
    return [[row["source"], row["sha256"], int(np.asarray(row["vesselness"]).sum())] for row in rows]
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with hub_server() as hub:
        archive = tmp_path_factory.mktemp("hub") / "xa170k.zip"
        write_authors_zip(archive)
        hub.put("authors/XA-170K", "xa170k.zip", archive.read_bytes())
        yield hub


def run(hub: Hub, code: str, folder: Path) -> list:
    result = hub.run(HEAD + code, FOLDER=str(folder))
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line[:1] in '[{"']


def expected() -> list:
    return [
        [name.partition("/")[0], digest(frame), int(vessel_mask(frame, border=BORDER).sum())]
        for name, frame in authors_frames().items()
    ]


@pytest.mark.hub
def test_the_authors_zip_on_a_hub_is_streamed_built_published_and_loaded_by_plain_datasets(hub: Hub, tmp_path: Path):
    code = """
import os
from pathlib import Path
from vasomim_hf.data.sources import open_source

folder = Path(os.environ["FOLDER"])
remote = dataclasses.replace(options, source=XA170KOptions(stream=True))
print(json.dumps(told(load_xa170k("authors/XA-170K", streaming=True, options=remote))))
print(json.dumps([str(path) for path in Path(os.environ["HF_HOME"]).rglob("*.zip")]))
print(json.dumps(told(load_xa170k("authors/XA-170K", folder / "out", options=options))))
try:
    push_xa170k(folder / "out", "authors/XA-170K")
except PermissionError as error:
    print(json.dumps(str(error)))
push_xa170k(folder / "out", "tester/xa170k", private=False)
for streaming in (False, True):
    print(json.dumps(told(load_dataset("tester/xa170k", split="train", streaming=streaming))))
print(json.dumps(told(load_dataset("tester/xa170k", "xcad", split="train"))))
print(json.dumps(told(load_xa170k("hf://datasets/tester/xa170k@main", streaming=True))))
print(json.dumps(len(load_xa170k("tester/xa170k", drop_near_duplicates=True)) * [1]))
source = open_source("hf://datasets/tester/xa170k")
print(json.dumps([int(source.vesselness(i, source.frame(i).shape).sum()) for i in range(len(source))]))
"""
    remote, downloads, built, refusal, plain, streamed, xcad, again, kept, masks = run(hub, code, tmp_path)
    assert remote == built == expected() and downloads == []
    assert "authors/XA-170K already exists and is public" in refusal
    assert plain == streamed == again == expected()
    assert xcad == [row for row in expected() if row[0] == "xcad"]
    assert 0 < len(kept) <= len(built)
    assert masks == [row[2] for row in expected()]
    files = hub.files("tester/xa170k")
    card = files["README.md"].decode()
    assert sorted(path for path in files if path != ".gitattributes") == [
        "README.md",
        "build_report.json",
        *(f"data/train-0000{number}-of-00005.parquet" for number in range(5)),
    ]
    revision = hub.repository("authors/XA-170K").branches["main"]
    assert f"Built from `xa170k.zip` of https://huggingface.co/datasets/authors/XA-170K, revision {revision}" in card
    assert 'load_dataset("tester/xa170k", split="train", streaming=True)' in card


@pytest.mark.hub
def test_a_second_build_replaces_the_files_of_the_first(hub: Hub, tmp_path: Path):
    write_authors_folder(tmp_path / "raw")
    build_xa170k(tmp_path / "raw", tmp_path / "first", OPTIONS)
    wide = XA170KBuildOptions(vesselness=OPTIONS.vesselness, frames_per_shard=100, num_workers=1)
    report = build_xa170k(tmp_path / "raw", tmp_path / "second", wide)
    code = """
import os
from pathlib import Path
for name in ("first", "second"):
    push_xa170k(Path(os.environ["FOLDER"], name), "tester/replaced", private=False)
print(json.dumps(told(load_dataset("tester/replaced", split="train"))))
"""
    (rows,) = run(hub, code, tmp_path)
    assert rows == expected()
    shards = {path for path in hub.files("tester/replaced") if path.endswith(".parquet")}
    assert shards == {file.path for file in report.files}
