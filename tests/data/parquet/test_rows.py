"""Rows become a data set, on disk or streamed, and nothing is left behind that was not asked for."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Features, Image, Value

from vasomim_hf.data.parquet.png import encode_png
from vasomim_hf.data.parquet.rows import _remove_folders_of_killed_processes, to_dataset


FEATURES = Features({"image": Image(), "level": Value("int64")})


def rows(levels: Sequence[int]) -> Iterator[dict]:
    for level in levels:
        if level < 0:
            continue
        frame = np.full((4, 6), level, dtype=np.uint8)
        yield {"image": {"path": None, "bytes": encode_png(frame)}, "level": level}


@pytest.mark.parametrize("streaming", [False, True])
def test_every_item_becomes_its_row_in_order(streaming: bool):
    dataset = to_dataset(rows, [3, 1, -1, 200], FEATURES, streaming=streaming)
    assert [row["level"] for row in dataset] == [3, 1, 200]
    assert [np.asarray(row["image"])[0, 0] for row in dataset] == [3, 1, 200]
    assert dataset.features == FEATURES


def test_streaming_makes_no_row_before_it_is_asked_for():
    asked = []

    def watched(levels: Sequence[int]) -> Iterator[dict]:
        for row in rows(levels):
            asked.append(row["level"])
            yield row

    dataset = to_dataset(watched, [1, 2, 3], FEATURES, streaming=True)
    assert asked == []
    assert next(iter(dataset))["level"] == 1
    assert len(asked) < 3


def test_workers_of_a_loader_share_out_the_items():
    dataset = to_dataset(rows, list(range(10)), FEATURES, streaming=True).select_columns(["level"])
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert sorted(int(row["level"]) for row in loader) == list(range(10))


def test_a_named_folder_keeps_the_rows_and_the_private_one_goes_with_the_process(tmp_path: Path):
    to_dataset(rows, [1], FEATURES, cache_dir=tmp_path / "kept")
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".arrow"]
    code = "from test_rows import *\nprint(to_dataset(rows, [1, 2], FEATURES).cache_files[0]['filename'], end='')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert result.stdout.endswith(".arrow")
    assert not Path(result.stdout).parent.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there, asking whether a process lives would end it")
def test_the_private_folder_of_a_killed_process_is_removed_by_the_next_one():
    code = (
        "from test_rows import *\nimport os, signal\n"
        "print(to_dataset(rows, [1, 2], FEATURES).cache_files[0]['filename'], end='', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    left = Path(result.stdout).parent
    assert left.is_dir() and left.name.startswith("vasomim-rows-")
    own = Path(to_dataset(rows, [1], FEATURES).cache_files[0]["filename"]).parent
    _remove_folders_of_killed_processes()
    assert not left.exists() and own.is_dir()


def test_the_private_folder_is_closed_to_others():
    path = Path(to_dataset(rows, [1], FEATURES).cache_files[0]["filename"])
    assert path.parent.stat().st_mode & 0o077 == 0


def test_no_rows_are_an_error_and_leave_no_file(tmp_path: Path):
    with pytest.raises(ValueError, match="None of the items could be used"):
        to_dataset(rows, [-1, -2], FEATURES, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="[Nn]o items found"):
        to_dataset(rows, [], FEATURES, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_a_row_leaves_no_file(tmp_path: Path):
    def broken(levels: Sequence[int]) -> Iterator[dict]:
        yield from rows(levels)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        to_dataset(broken, [1, 2], FEATURES, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
