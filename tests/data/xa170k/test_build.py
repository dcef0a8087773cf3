"""XA-170K becomes Parquet that holds every frame with its mask and its group, whatever interrupts the build."""

import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from miniatures.xa170k import write_authors_folder, write_authors_zip, write_coronarydominance
from PIL import Image

from vasomim_hf.data.faults import Fault, FaultReport
from vasomim_hf.data.parquet import write as parquet_shards
from vasomim_hf.data.reading.files import read_frame
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram
from vasomim_hf.data.vesselness import VesselnessOptions, vessel_mask
from vasomim_hf.data.xa170k import build as xa170k_build
from vasomim_hf.data.xa170k import dataset as xa170k
from vasomim_hf.data.xa170k import sources as xa170k_sources
from vasomim_hf.data.xa170k import survey as xa170k_survey
from vasomim_hf.data.xa170k.archives import ZipStore
from vasomim_hf.data.xa170k.card import xa170k_card
from vasomim_hf.data.xa170k.dataset import (
    XA170KBuildOptions,
    build_xa170k,
    load_xa170k,
    verify_xa170k,
    xa170k_features,
)
from vasomim_hf.data.xa170k.report import BuildReport, without_places


ROOT = Path(__file__).parents[3]
SIZE = 48
COUNTS = {"cadica": 5, "syntax": 3, "coronarydominance": 4}
OPTIONS = XA170KBuildOptions(vesselness=VesselnessOptions(border=4), frames_per_shard=2, num_workers=1)


def frames_of(source: str, number: int) -> list[np.ndarray]:
    seed = 100 * list(COUNTS).index(source)
    return [synthetic_angiogram(seed + i, size=SIZE).image for i in range(number)]


@pytest.fixture(scope="module")
def pictures() -> dict[str, list[np.ndarray]]:
    return {source: frames_of(source, number) for source, number in COUNTS.items()}


@pytest.fixture
def folder(tmp_path: Path, pictures: dict[str, list[np.ndarray]]) -> Path:
    """The authors' layout, unpacked."""
    root = tmp_path / "dataset"
    for source, frames in pictures.items():
        (root / source).mkdir(parents=True)
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(root / source / f"p{number}_v{number % 2}_0000{number}.png")
    return root


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(folder: Path, cache: Path, *arguments: str):
    return load_dataset(str(folder), *arguments, split="train", cache_dir=str(cache))


def test_every_frame_is_a_row_with_its_mask_and_what_is_known_of_it(folder: Path, tmp_path: Path, pictures: dict):
    report = build_xa170k(folder, tmp_path / "out", OPTIONS)
    rows = load(tmp_path / "out", tmp_path / "cache")
    assert rows.features == xa170k_features()
    assert rows["source"][:] == [source for source, number in COUNTS.items() for _ in range(number)]
    expected = [frame for frames in pictures.values() for frame in frames]
    for row, frame in zip(rows, expected, strict=True):
        assert np.array_equal(np.asarray(row["image"]), frame)
        assert row["vesselness"].mode == "1"
        assert np.array_equal(np.asarray(row["vesselness"]), vessel_mask(frame, border=4))
        assert (row["width"], row["height"]) == (SIZE, SIZE)
        assert row["sha256"] == hashlib.sha256(f"{SIZE}x{SIZE}:uint8".encode() + frame.tobytes()).hexdigest()
    ids = [(row["patient_id"], row["study_id"], row["frame_index"]) for row in rows.select([1])]
    assert ids == [("p1", "p1_v1", 1)]
    assert report.num_rows == len(rows) == 12
    assert BuildReport.read(tmp_path / "out") == report


def test_a_file_holds_frames_of_one_collection_and_each_collection_loads_alone(folder: Path, tmp_path: Path):
    report = build_xa170k(folder, tmp_path / "out", OPTIONS)
    assert [(file.source, file.num_rows) for file in report.files] == [
        ("cadica", 2),
        ("cadica", 2),
        ("cadica", 1),
        ("syntax", 2),
        ("syntax", 1),
        ("coronarydominance", 2),
        ("coronarydominance", 2),
    ]
    assert [file.path for file in report.files][-1] == "data/train-00006-of-00007.parquet"
    for source, number in COUNTS.items():
        rows = load(tmp_path / "out", tmp_path / "cache", source)
        assert rows["source"][:] == [source] * number
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "build_report.json", "data"]


def test_differences_from_the_known_counts_are_reported(folder: Path, tmp_path: Path):
    report = build_xa170k(folder, tmp_path / "out", OPTIONS)
    (cadica, syntax, xcad, dominance) = report.counts
    assert (cadica.num_known, syntax.num_known, xcad.num_known, dominance.num_known) == (6594, 2943, 1621, 160320)
    assert [count.num_rows for count in report.counts] == [5, 3, 0, 4]
    assert "xcad: expected 1,621 frames, found 0" in report.differences
    content = json.loads((tmp_path / "out" / "build_report.json").read_text())
    assert content["differences"] == report.differences and len(report.differences) == 4
    assert "cadica: expected 6,594 frames, found 5" in (tmp_path / "out" / "README.md").read_text()


def test_groups_name_the_first_row_of_the_same_picture_in_all_collections(
    folder: Path, tmp_path: Path, pictures: dict
):
    first = pictures["cadica"][1]
    Image.fromarray(first).save(folder / "syntax" / "z.png")
    Image.fromarray((first * 0.9 + 5).astype(np.uint8)).save(folder / "coronarydominance" / "z.png")
    report = build_xa170k(folder, tmp_path / "out", OPTIONS)
    rows = load(tmp_path / "out", tmp_path / "cache")
    groups = rows["near_duplicate_group"][:]
    assert (groups[8], groups[13]) == (1, 1)
    assert [row for row, group in enumerate(groups) if row != group and row not in (8, 13)] == []
    assert (report.num_groups, report.largest_group, report.num_crossing_groups) == (12, 3, 1)
    assert [count.num_copies for count in report.counts] == [0, 1, 0, 0]
    kept = load_xa170k(tmp_path / "out", drop_near_duplicates=True, options=in_cache(tmp_path))
    assert len(kept) == 12 and 1 in kept["near_duplicate_group"][:]


def in_cache(tmp_path: Path) -> XA170KBuildOptions:
    source = dataclasses.replace(OPTIONS.source, cache_dir=str(tmp_path / "cache"))
    return dataclasses.replace(OPTIONS, source=source)


def test_what_cannot_be_read_is_named_and_the_rest_is_done(folder: Path, tmp_path: Path):
    broken = sorted((folder / "cadica").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:300])
    (folder / "syntax" / "notes.txt").write_text("no frame")
    report = build_xa170k(folder, tmp_path / "out", OPTIONS)
    assert report.num_rows == 11
    assert [fault.name for fault in report.faults if broken.name in fault.name] != []
    assert "cadica: expected 6,594 frames, found 4, 1 more are unreadable" in report.differences
    assert len(load(tmp_path / "out", tmp_path / "cache")) == 11
    assert len(verify_xa170k(tmp_path / "out")) == 0


def test_a_source_without_a_readable_frame_is_an_error_that_says_why(tmp_path: Path):
    (tmp_path / "dataset" / "xcad").mkdir(parents=True)
    (tmp_path / "dataset" / "xcad" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"None of the 1 frames of .* can be read: xcad/a.png"):
        build_xa170k(tmp_path / "dataset", tmp_path / "out", OPTIONS)
    with pytest.raises(FileNotFoundError):
        build_xa170k(tmp_path / "nothing", tmp_path / "other", OPTIONS)


def write_masks(folder: Path, source: str) -> Path:
    masks = folder / f"{source}_frangi"
    masks.mkdir()
    for path in (folder / source).iterdir():
        mask = read_frame(path) > 128
        Image.fromarray(mask.astype(np.uint8) * 255).save(masks / path.name)
    return masks


def test_ready_masks_are_taken_and_those_that_do_not_fit_are_made_anew(folder: Path, tmp_path: Path, pictures: dict):
    masks = sorted(write_masks(folder, "syntax").iterdir())
    masks[1].unlink()
    Image.new("L", (7, 7)).save(masks[2])
    report = build_xa170k(folder, tmp_path / "out", OPTIONS)
    rows = load(tmp_path / "out", tmp_path / "cache", "syntax")
    found = [np.asarray(mask) for mask in rows["vesselness"]]
    assert np.array_equal(found[0], pictures["syntax"][0] > 128)
    for number in (1, 2):
        assert np.array_equal(found[number], vessel_mask(pictures["syntax"][number], border=4))
    assert report.counts[1].num_ready_masks == 1
    told = " ".join(f"{fault.name} {fault.reason}" for fault in report.faults)
    assert masks[1].stem in told and masks[2].stem in told


def test_the_same_build_is_found_and_another_is_not_mixed_with_it(folder: Path, tmp_path: Path):
    build_xa170k(folder, tmp_path / "out", OPTIONS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    build_xa170k(folder, tmp_path / "out", OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    other = dataclasses.replace(OPTIONS, vesselness=VesselnessOptions(border=5))
    with pytest.raises(FileExistsError, match="finished build of other frames or with other options"):
        build_xa170k(folder, tmp_path / "out", other)
    path = sorted((folder / "cadica").iterdir())[0]
    Image.fromarray(255 - read_frame(path)).save(path)
    with pytest.raises(FileExistsError, match="finished build of other frames or with other options"):
        build_xa170k(folder, tmp_path / "out", OPTIONS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="no build"):
        build_xa170k(folder, tmp_path / "full", OPTIONS)


def test_an_unfinished_build_is_not_loaded_nor_mixed_with_another(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(xa170k_build, "write_shards", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_xa170k(folder, tmp_path / "out", OPTIONS)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="unfinished build"):
        load_xa170k(tmp_path / "out")
    other = dataclasses.replace(OPTIONS, vesselness=VesselnessOptions(border=5))
    with pytest.raises(FileExistsError, match="unfinished build"):
        build_xa170k(folder, tmp_path / "out", other)


def interrupt(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_records_are_removed_only_while_the_lock_is_held(folder: Path, tmp_path: Path, monkeypatch):
    remove, removed = shutil.rmtree, []

    def rmtree(path: Path, **options: object) -> None:
        with pytest.raises(RuntimeError, match="Another process is building"), parquet_shards.build_lock(path.parent):
            pass
        removed.append(path)
        remove(path, **options)

    monkeypatch.setattr(xa170k_build.shutil, "rmtree", rmtree)
    build_xa170k(folder, tmp_path / "out", OPTIONS)
    records = tmp_path / "out" / ".build"
    assert removed == [records]
    # as of a build that was killed just before: another process that holds the lock is left alone
    records.mkdir()
    with parquet_shards.build_lock(tmp_path / "out"):
        build_xa170k(folder, tmp_path / "out", OPTIONS)
        assert records.is_dir()
    build_xa170k(folder, tmp_path / "out", OPTIONS)
    assert removed == [records] * 2 and not records.exists()


def test_frames_that_change_during_a_build_stop_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = sorted((folder / "syntax").iterdir())[0]
    original = path.read_bytes()

    def write_shards(*arguments, **options):
        Image.fromarray(255 - read_frame(path)).save(path)
        return parquet_shards.write_shards(*arguments, **options)

    monkeypatch.setattr(xa170k_build, "write_shards", write_shards)
    with pytest.raises(RuntimeError, match=f"{path.name} .*different pix"):
        build_xa170k(folder, tmp_path / "out", OPTIONS)
    monkeypatch.undo()
    path.write_bytes(original)
    assert build_xa170k(folder, tmp_path / "out", OPTIONS).num_rows == 12


def test_a_file_that_changes_after_the_build_is_found(folder: Path, tmp_path: Path):
    report = build_xa170k(folder, tmp_path / "out", OPTIONS)
    assert len(verify_xa170k(tmp_path / "out")) == 0
    changed, missing = (tmp_path / "out" / report.files[number].path for number in (1, 3))
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    missing.unlink()
    found = list(verify_xa170k(tmp_path / "out"))
    assert [fault.name for fault in found] == [report.files[1].path, report.files[3].path]
    assert "has changed" in found[0].reason and "is missing" in found[1].reason


def test_rows_that_say_something_else_than_their_frames_are_found(folder: Path, tmp_path: Path):
    report = build_xa170k(folder, tmp_path / "out", OPTIONS)
    path = tmp_path / "out" / report.files[0].path
    table = pq.read_table(path)
    for column, values in {"sha256": ["0" * 64] * 2, "width": [9, 9], "near_duplicate_group": [0, 7]}.items():
        place = table.schema.get_field_index(column)
        changed = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
        pq.write_table(changed, path)
        record = dataclasses.replace(
            report.files[0], num_bytes=path.stat().st_size, sha256=parquet_shards.file_digest(path)
        )
        found = verify_xa170k(tmp_path / "out", dataclasses.replace(report, files=(record,)))
        assert len(found) == 1, column


def test_the_card_in_the_repository_is_what_the_module_writes():
    path = ROOT / "model_cards" / "data" / "xa170k.md"
    assert path.read_text() == xa170k_card(None, xa170k_features()), f"write `xa170k_card(None, ...)` to {path.name}"


def test_the_card_says_what_was_measured_and_no_path_of_this_machine(folder: Path, tmp_path: Path):
    broken = sorted((folder / "cadica").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:99])
    report = build_xa170k(folder, tmp_path / "out", OPTIONS)
    card = (tmp_path / "out" / "README.md").read_text()
    data = yaml.safe_load(card.split("---")[1])
    assert [config["config_name"] for config in data["configs"]] == ["default", *COUNTS]
    assert {info["config_name"]: info["splits"][0]["num_examples"] for info in data["dataset_info"]} == {
        "default": 11,
        "cadica": 4,
        "syntax": 3,
        "coronarydominance": 4,
    }
    assert data["size_categories"] == ["n<1K"] and data["license"] == "other"
    assert "| CADICA | Mendeley Data p9bpx9ctcv, version 5 | 6,594 | 5 | 4 | 0 | 4 | 4 |" in card
    assert f"Built from the folder `dataset`: 11 frames, {report.num_bytes / 1e9:.2f} GB" in card
    assert "without a border of\n4 pixels" in card and broken.name in card
    for path in (tmp_path / "out").rglob("*.[mj]*"):
        assert str(tmp_path) not in path.read_text()


def test_paths_below_the_source_lose_what_concerns_this_machine_alone():
    places = {"/", "/data", "/data/deep"}
    fault = Fault("/data/deep/xcad", "No such file: '/data/deep/xcad/a.png' of /data/x.zip, in b/data/c and /a/data/d")
    kept = "No such file: 'xcad/a.png' of x.zip, in b/data/c and /a/data/d"
    assert list(without_places([fault], places)) == [("xcad", kept)]
    assert list(without_places([fault], set())) == [fault]


@pytest.mark.parametrize("kind", ["zip", "cached", "streamed", "folder of a zip", "linked folder"])
@pytest.mark.parametrize("second_line", [True, False])
def test_no_fault_of_any_source_has_a_path_of_this_machine(tmp_path: Path, monkeypatch, kind: str, second_line: bool):
    if not second_line:
        monkeypatch.setattr(xa170k_build, "without_places", lambda faults, places: faults)
    home = tmp_path / "home"
    source, damaged = damaged_source(kind, home, monkeypatch)
    report = build_xa170k(source, tmp_path / "out", OPTIONS)
    assert any(damaged in fault.name for fault in report.faults)
    for name in ("README.md", "build_report.json"):
        assert str(home) not in (tmp_path / "out" / name).read_text()


def damaged_source(kind: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A source with one item that cannot be read, and the name of that."""
    archive = home / "hub" / "blobs" / "0af3"
    write_authors_zip(archive)
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as members:
        member = members.getinfo("dataset/syntax/1.png")
    data[member.header_offset + 30 + len(member.filename) + member.compress_size // 2] ^= 0xFF
    archive.write_bytes(data)
    link = home / "hub" / "snapshots" / "c" / "xa170k.zip"
    link.parent.mkdir(parents=True)
    link.symlink_to(archive)
    if kind == "zip":
        return str(archive.rename(home / "a.zip")), "syntax/1.png"
    if kind in ("cached", "streamed"):
        opener = partial(io.BytesIO, archive.read_bytes()) if kind == "streamed" else None
        path = "hf://datasets/owner/name@c/xa170k.zip" if opener else str(link)
        monkeypatch.setattr(xa170k_sources, "_hub_archive", lambda *arguments: ZipStore(path, opener))
        return "owner/name", "syntax/1.png"
    write_authors_folder(home / "folder")
    if kind == "folder of a zip":
        archive.write_bytes(data[:-40])
        (home / "folder" / "more.zip").symlink_to(archive)
        return str(home / "folder"), "more.zip"
    (home / "folder" / "dataset" / "xcad" / "gone.png").symlink_to(home / "nowhere.png")
    (home / "link").symlink_to(home / "folder")
    return str(home / "link"), "gone.png"


# Streams


def test_a_stream_makes_the_same_rows_without_building(folder: Path, tmp_path: Path, monkeypatch, caplog):
    build_xa170k(folder, tmp_path / "out", OPTIONS)
    built = load(tmp_path / "out", tmp_path / "cache").remove_columns("near_duplicate_group")
    monkeypatch.chdir(tmp_path)
    before = digests(tmp_path)
    report = FaultReport()
    stream = load_xa170k(folder, streaming=True, options=OPTIONS, report=report)
    rows = list(stream.remove_columns("near_duplicate_group"))
    assert rows == list(built)
    assert {row["near_duplicate_group"] for row in stream} == {None}
    assert digests(tmp_path) == before
    assert [fault.name for fault in report] == ["xcad"]
    path = sorted((folder / "cadica").iterdir())[0]
    path.write_bytes(path.read_bytes()[:99])
    assert len(list(stream)) == 11
    assert path.name in caplog.text


def test_near_duplicates_cannot_be_dropped_from_a_stream(folder: Path):
    with pytest.raises(ValueError, match="cannot be dropped from a stream"):
        load_xa170k(folder, streaming=True, drop_near_duplicates=True)


def test_loading_builds_where_it_is_told_or_in_the_cache_of_datasets(folder: Path, tmp_path: Path, monkeypatch):
    options, report = in_cache(tmp_path), FaultReport()
    assert len(load_xa170k(folder, tmp_path / "out", options=options, report=report)) == 12
    assert (tmp_path / "out" / "build_report.json").is_file() and len(report) == 1
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    assert len(load_xa170k(folder, options=options)) == 12
    (built,) = (tmp_path / "hf" / "vasomim_xa170k").iterdir()
    assert (built / "build_report.json").is_file()


def test_parquet_of_another_data_set_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"XA-170K.*a\.parquet"):
        load_xa170k(tmp_path, options=in_cache(tmp_path))


def test_a_table_beside_the_series_of_an_original_does_not_hide_them(tmp_path: Path):
    frames = write_coronarydominance(tmp_path / "CoronaryDominance")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "CoronaryDominance" / "a.parquet")
    (tmp_path / "CoronaryDominance" / "b.parquet").write_bytes(b"no Parquet")
    rows = load_xa170k(tmp_path / "CoronaryDominance", tmp_path / "out", options=in_cache(tmp_path))
    assert len(rows) == len(frames)


def test_a_build_of_another_kind_is_not_called_an_unfinished_one_of_xa_170k(folder: Path, tmp_path: Path):
    (folder / ".build").mkdir()
    (folder / ".build" / "plan-train.json").write_text("{}")
    assert len(load_xa170k(folder, tmp_path / "out", options=in_cache(tmp_path))) == 12


def response() -> SimpleNamespace:
    """As much of an answer as the errors of the Hub's client look at."""
    return SimpleNamespace(headers={}, request=None)


def test_a_hub_that_fails_is_not_taken_for_one_without_parquet(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def refuse(error: Exception) -> None:
        def list_repo_files(*arguments: object, **options: object) -> None:
            raise error

        monkeypatch.setattr(xa170k.HfApi, "list_repo_files", list_repo_files)

    def open_source(source: str, options: object) -> None:
        asked.append(source)
        raise FileNotFoundError(source)

    monkeypatch.setattr(xa170k, "open_xa170k_source", open_source)
    refuse(HfHubHTTPError("503 Service Unavailable", response=response()))
    with pytest.raises(HfHubHTTPError, match="503"):
        load_xa170k("owner/name")
    assert asked == []
    for kind in (RepositoryNotFoundError, RevisionNotFoundError):
        refuse(kind("not there", response=response()))
        with pytest.raises(FileNotFoundError):
            load_xa170k("owner/name")
    assert asked == ["owner/name"] * 2


# Disks that are too small


def test_a_disk_that_is_too_small_is_noticed_before_the_masks_are_made(folder: Path, tmp_path: Path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(xa170k_build.shutil, "disk_usage", lambda path: usage._replace(free=100))
    monkeypatch.setattr(xa170k_build, "vessel_mask", interrupt)
    with pytest.raises(OSError, match=r"0.0 GB are free.*run it again") as caught:
        build_xa170k(folder, tmp_path / "out", OPTIONS)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert build_xa170k(folder, tmp_path / "out", OPTIONS).num_rows == 12


def test_the_size_of_a_build_is_known_within_a_quarter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "dataset" / "xcad").mkdir(parents=True)
    for seed in range(12):
        Image.fromarray(synthetic_angiogram(seed, size=256).image).save(tmp_path / "dataset" / "xcad" / f"{seed}.png")
    monkeypatch.setattr(xa170k_survey, "FRAMES_PER_CHUNK", 4)
    source = xa170k_build.open_xa170k_source(tmp_path / "dataset")
    (tmp_path / ".build").mkdir()
    estimate = xa170k_survey.survey_frames(source, tmp_path, "0").packed_bytes()
    assert estimate == pytest.approx(build_xa170k(tmp_path / "dataset", tmp_path / "out", OPTIONS).num_bytes, rel=0.25)


@pytest.mark.parametrize("name", ["survey-*.npz", "train-*.parquet", "README.md", "build_report.json"])
def test_a_full_disk_stops_the_build_and_leaves_nothing_half_written(folder: Path, tmp_path: Path, monkeypatch, name):
    build_xa170k(folder, tmp_path / "whole", OPTIONS)
    replace, written = os.replace, []

    def full(source: Path, target: Path) -> None:
        if fnmatch(Path(target).name, name):
            written.append(target)
            if len(written) == min(2, 1 + name.count("*")):
                raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(xa170k_survey, "FRAMES_PER_CHUNK", 4)
    monkeypatch.setattr("vasomim_hf.folders.os.replace", full)
    with pytest.raises(OSError, match=r"disk is full|No space left"):
        build_xa170k(folder, tmp_path / "out", OPTIONS)
    monkeypatch.setattr("vasomim_hf.folders.os.replace", replace)
    assert [path for path in (tmp_path / "out").rglob(".*") if path.name != ".build"] == []
    build_xa170k(folder, tmp_path / "out", OPTIONS)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


# Interruptions

SCRIPT = """
import sys, time
from pathlib import Path
from vasomim_hf.data import vesselness
from vasomim_hf.data.xa170k import build as xa170k_build, report as xa170k_report, survey as xa170k_survey

SLOW = {"survey": (xa170k_survey, "frame_signature"), "shards": (xa170k_build, "vessel_mask"),
        "verify": (xa170k_report, "file_digest")}

def slow(module, name):
    function = getattr(module, name)
    setattr(module, name, lambda *a, **k: (time.sleep(0.3), function(*a, **k))[1])

if __name__ == "__main__":
    source, output, phase = sys.argv[1:]
    xa170k_survey.FRAMES_PER_CHUNK = 4
    slow(*SLOW[phase])
    options = xa170k_build.XA170KBuildOptions(
        vesselness=vesselness.VesselnessOptions(border=4), frames_per_shard=2, num_workers=1)
    xa170k_build.build_xa170k(source, output, options)
"""


@pytest.mark.parametrize(
    ("phase", "mark"), [("survey", "survey-*.npz"), ("shards", "train-*.json"), ("verify", "verified-*.json")]
)
def test_a_killed_build_goes_on_to_the_same_bytes(folder: Path, tmp_path: Path, monkeypatch, phase: str, mark: str):
    monkeypatch.setattr(xa170k_survey, "FRAMES_PER_CHUNK", 4)
    build_xa170k(folder, tmp_path / "whole", OPTIONS)
    cut = tmp_path / "cut"
    script = tmp_path / "build.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script), str(folder), str(cut), phase])
    deadline = time.monotonic() + 100
    while not list((cut / ".build").glob(mark)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in (cut / ".build").glob(mark)}
    shards = {path: path.stat().st_mtime_ns for path in (cut / "data").glob("train-*") if phase != "survey"}
    assert done and not (cut / "build_report.json").exists()
    build_xa170k(folder, cut, OPTIONS)
    again = [path for path, time in shards.items() if path.stat().st_mtime_ns != time]
    assert len(again) <= 1  # one that was complete and not yet on record
    assert digests(cut) == digests(tmp_path / "whole")
