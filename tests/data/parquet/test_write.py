"""Shards hold their rows, whatever interrupts their writing, and name what is left out."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, Value, load_dataset

import vasomim_hf.data.parquet.write as module
from vasomim_hf.data.parquet.png import encode_png
from vasomim_hf.data.parquet.write import ShardPlan, build_lock, read_record, write_shards


FEATURES = Features({"image": Image(), "number": Value("int64")})
PLAN = ShardPlan(num_items=25, items_per_shard=10, key="numbers")


@dataclass
class Rows:
    """A row for each item but those that are broken or passed over."""

    broken: tuple[int, ...] = ()
    passed: tuple[int, ...] = ()
    slow_from: int | None = None

    def __call__(self, index: int) -> dict | None:
        if self.slow_from is not None and index >= self.slow_from:
            time.sleep(1)
        if index in self.broken:
            raise ValueError(f"number {index} is broken")
        if index in self.passed:
            return None
        frame = np.random.default_rng(index).integers(0, 255, (8, 8)).astype(np.uint8)
        return {"image": {"path": f"{index}.png", "bytes": encode_png(frame)}, "number": index}

    def name(self, index: int) -> str:
        return f"item {index}"


class VanishingRows(Rows):
    """Ends its process."""

    def __call__(self, index: int) -> dict | None:
        os._exit(1)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(folder: Path, streaming: bool = False):
    cache = {} if streaming else {"cache_dir": str(folder / "cache")}
    return load_dataset(str(folder), split="train", streaming=streaming, **cache)


@pytest.mark.parametrize("streaming", [False, True])
def test_every_row_is_there_once_in_order_with_its_image(tmp_path: Path, streaming: bool):
    report = write_shards(Rows(), PLAN, tmp_path / "out", FEATURES)
    assert len(report) == 0
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert names == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    rows = list(load(tmp_path / "out", streaming))
    assert [row["number"] for row in rows] == list(range(25))
    expected = np.random.default_rng(24).integers(0, 255, (8, 8)).astype(np.uint8)
    assert np.array_equal(np.asarray(rows[24]["image"]), expected)


def test_row_groups_hold_a_hundred_rows_packed_by_zstd_with_checksums(tmp_path: Path):
    plan = ShardPlan(num_items=230, items_per_shard=230)
    write_shards(Rows(), plan, tmp_path, FEATURES, num_workers=1)
    path = tmp_path / "data" / plan.name(0)
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100, 100, 30]
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="[Cc]hecksum|CRC|crc"):
        pq.read_table(path, page_checksum_verification=True)


def test_what_is_broken_or_passed_over_moves_no_other_row(tmp_path: Path):
    report = write_shards(Rows(broken=(3, 12), passed=(24,)), PLAN, tmp_path, FEATURES)
    assert [tuple(fault) for fault in report] == [
        ("item 3", "ValueError: number 3 is broken"),
        ("item 12", "ValueError: number 12 is broken"),
    ]
    counts = [pq.read_metadata(tmp_path / "data" / PLAN.name(shard)).num_rows for shard in range(3)]
    assert counts == [9, 9, 4]


def test_an_item_may_have_many_rows_and_those_before_a_fault_stay(tmp_path: Path):
    class Runs(Rows):
        def __call__(self, index: int):
            for _ in range(index):
                yield super().__call__(index)
            if index == 3:
                raise ValueError("the run ends in the middle of a frame")

    plan = ShardPlan(num_items=5, items_per_shard=2)
    report = write_shards(Runs(), plan, tmp_path, FEATURES)
    assert [fault.name for fault in report] == ["item 3"]
    assert load(tmp_path)["number"] == [1, 2, 2, 3, 3, 3, 4, 4, 4, 4]


def test_a_row_that_does_not_fit_the_columns_is_no_fault_of_the_item(tmp_path: Path):
    class Wrong(Rows):
        def __call__(self, index: int) -> dict | None:
            return {"image": None, "number": "many"}

    with pytest.raises(ValueError, match="many"):
        write_shards(Wrong(), PLAN, tmp_path, FEATURES)


def test_splits_share_a_folder(tmp_path: Path):
    write_shards(Rows(), PLAN, tmp_path, FEATURES)
    write_shards(Rows(), replace(PLAN, split="test", num_items=5), tmp_path, FEATURES)
    assert len(load(tmp_path)) == 25
    assert len(load_dataset(str(tmp_path), split="test", streaming=False, cache_dir=str(tmp_path / "cache"))) == 5


def test_workers_write_the_same_bytes_as_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MIN_ITEMS_FOR_PROCESSES", 1)
    broken = Rows(broken=(3,))
    first = write_shards(broken, PLAN, tmp_path / "a", FEATURES, num_workers=1)
    second = write_shards(broken, PLAN, tmp_path / "b", FEATURES, num_workers=2)
    assert list(first) == list(second)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_worker_that_vanishes_is_answered_with_the_usual_causes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MIN_ITEMS_FOR_PROCESSES", 1)
    with pytest.raises(RuntimeError, match="if __name__ == .*ran out of memory.*num_workers=1"):
        write_shards(VanishingRows(), PLAN, tmp_path, FEATURES, num_workers=2)
    assert not [path for path in (tmp_path / "data").iterdir() if not path.name.startswith(".")]


def test_a_finished_build_makes_no_row_again_and_keeps_its_report(tmp_path: Path):
    write_shards(Rows(broken=(3,)), PLAN, tmp_path, FEATURES)
    before = digests(tmp_path)
    report = write_shards(Rows(broken=tuple(range(25))), PLAN, tmp_path, FEATURES)
    assert [fault.name for fault in report] == ["item 3"]
    assert digests(tmp_path) == before


def test_a_shard_without_record_or_of_another_size_is_written_again(tmp_path: Path):
    write_shards(Rows(), PLAN, tmp_path, FEATURES)
    before = digests(tmp_path)
    (tmp_path / ".build" / "train-00000-of-00003.json").unlink()
    shard = tmp_path / "data" / PLAN.name(1)
    shard.write_bytes(shard.read_bytes()[:-10])
    (tmp_path / ".build" / "train-00002-of-00003.json").write_text("{")
    assert [read_record(tmp_path, PLAN, number) for number in range(3)] == [None, None, None]
    write_shards(Rows(), PLAN, tmp_path, FEATURES)
    assert digests(tmp_path) == before


def test_a_killed_build_goes_on_to_the_bytes_of_an_uninterrupted_one(tmp_path: Path):
    plan = replace(PLAN, num_items=400, items_per_shard=40)
    write_shards(Rows(), plan, tmp_path / "whole", FEATURES, num_workers=1)
    code = (
        "from test_write import *\n"
        "plan = replace(PLAN, num_items=400, items_per_shard=40)\n"
        "if __name__ == '__main__':\n"
        f"    write_shards(Rows(slow_from=80), plan, {str(tmp_path / 'cut')!r}, FEATURES, num_workers=2)\n"
    )
    script = tmp_path / "build.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, start_new_session=True)
    records = tmp_path / "cut" / ".build"
    deadline = time.monotonic() + 60
    while not list(records.glob("train-*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(list(records.glob("train-*.json"))) < plan.num_shards
    # workers end with the killed process, in the middle of their shards of 40 seconds
    deadline = time.monotonic() + 15
    while _members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _members(process.pid)
    write_shards(Rows(), plan, tmp_path / "cut", FEATURES, num_workers=1)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def _members(session: int) -> list[str]:
    """Living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def test_a_full_disk_leaves_whole_shards_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_shards(Rows(), PLAN, tmp_path / "whole", FEATURES)
    original, calls = module._ShardJob._write, []

    def full(self, path: Path, rows) -> int:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, path, rows)

    monkeypatch.setattr(module._ShardJob, "_write", full)
    with pytest.raises(OSError, match="1 of 3 parts are written"):
        write_shards(Rows(), PLAN, tmp_path / "out", FEATURES)
    assert [path.name for path in (tmp_path / "out" / "data").iterdir()] == [PLAN.name(0)]
    write_shards(Rows(), PLAN, tmp_path / "out", FEATURES)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_full_disk_seen_by_the_reader_is_no_fault_of_the_item(tmp_path: Path):
    class Full(Rows):
        def __call__(self, index: int) -> dict | None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="disk is full"):
        write_shards(Full(), PLAN, tmp_path, FEATURES)


def test_an_image_that_is_a_file_is_put_into_the_shard(tmp_path: Path):
    class Paths(Rows):
        def __call__(self, index: int) -> dict | None:
            row = super().__call__(index)
            path = tmp_path / row["image"]["path"]
            path.write_bytes(row["image"]["bytes"])
            return {**row, "image": {"path": str(path), "bytes": None}}

    write_shards(Paths(), PLAN, tmp_path / "out", FEATURES)
    table = pq.read_table(tmp_path / "out" / "data" / PLAN.name(0)).column("image").to_pylist()
    assert table[7]["path"] == "7.png"
    assert table[7]["bytes"] == (tmp_path / "7.png").read_bytes()


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path):
    write_shards(Rows(), PLAN, tmp_path / "out", FEATURES)
    before = digests(tmp_path / "out")
    with pytest.raises(FileExistsError, match="different build|no build"):
        write_shards(Rows(), replace(PLAN, key="letters"), tmp_path / "out", FEATURES)
    assert digests(tmp_path / "out") == before
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "a.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no build of a data set"):
        write_shards(Rows(), PLAN, tmp_path / "papers", FEATURES)
    assert [path.name for path in (tmp_path / "papers").iterdir()] == ["a.txt"]


def test_two_processes_do_not_build_in_one_folder(tmp_path: Path):
    with build_lock(tmp_path), pytest.raises(RuntimeError, match="Another process is building"):
        write_shards(Rows(), PLAN, tmp_path, FEATURES)


@pytest.mark.parametrize("wrong", [{"num_items": 0}, {"num_items": 5, "items_per_shard": 0}])
def test_an_empty_plan_is_refused(wrong: dict):
    with pytest.raises(ValueError, match="at least one item"):
        ShardPlan(**wrong)


def test_records_hold_what_the_files_are(tmp_path: Path):
    write_shards(Rows(passed=(1,)), PLAN, tmp_path, FEATURES)
    record = read_record(tmp_path, PLAN, 0)
    path = tmp_path / "data" / PLAN.name(0)
    assert record is not None
    assert (record.num_rows, record.num_bytes) == (9, path.stat().st_size)
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads((tmp_path / ".build" / "plan-train.json").read_text())["key"] == "numbers"
