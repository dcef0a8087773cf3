"""Frames of XA-170K are found in every layout, read as they were written, and what is amiss is named."""

import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import zipfile

import numpy as np
import pytest
from miniatures.hub_server import hub_server
from miniatures.xa170k import (
    COUNTS,
    SIZE,
    authors_files,
    authors_frames,
    drawn,
    frame,
    write_authors_folder,
    write_authors_zip,
    write_cadica,
    write_coronarydominance,
    write_files,
    write_originals,
    write_syntax,
    write_xcad,
    write_xcad_zip,
    write_zip,
)
from PIL import Image

from vasomim_hf.data.parquet.png import encode_mask_png, encode_png
from vasomim_hf.data.reading.files import UNREADABLE, FrameReadError
from vasomim_hf.data.xa170k.layouts import ids_from_name
from vasomim_hf.data.xa170k.series import SeriesReader
from vasomim_hf.data.xa170k.sources import XA170KOptions, open_xa170k_source


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


def pixels(source):
    return {item.name: source.read(item) for item in source.items}


def check(source, frames):
    """The same names in order, and the same pixels."""
    assert [item.name for item in source.items] == sorted(frames)
    for item in source.items:
        read = source.read(item)
        assert read.dtype == np.uint8 and np.array_equal(read, frames[item.name]), item.name
        assert item.name.startswith(f"{item.source}/")


def reasons(source):
    return {fault.name: fault.reason for fault in source.report}


@pytest.fixture
def authors(tmp_path):
    """Files of the authors' layout, and a function that writes them as a zip and opens it."""

    def opened(files, prefix="dataset/", **options):
        return open_xa170k_source(write_zip(tmp_path / "xa170k.zip", files, prefix), XA170KOptions(**options))

    return opened


# Layouts


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_every_layout_is_known_by_looking_and_read_as_it_was_written(name, tmp_path):
    frames = WRITERS[name](tmp_path / name)
    source = open_xa170k_source(tmp_path / name)
    check(source, frames)
    assert list(source.report) == []


@pytest.mark.parametrize("prefix", ["dataset/", "", "XA-170K/dataset/", "./dataset/", "dataset\\"])
def test_a_zip_may_have_another_folder_around_the_collections_or_none(prefix, authors):
    files = authors_files()
    if "\\" in prefix:
        files = {name.replace("/", "\\"): data for name, data in files.items()}
    source = authors(files, prefix)
    check(source, authors_frames())
    assert len(source.report) == 0


def test_only_key_frames_of_cadica_are_taken_unless_all_are_wanted(tmp_path):
    frames = write_cadica(tmp_path / "CADICA", every_frame=True)
    assert len(open_xa170k_source(tmp_path / "CADICA").items) == 4
    source = open_xa170k_source(tmp_path / "CADICA", XA170KOptions(all_cadica_frames=True))
    check(source, frames)
    assert len(frames) == 15


def test_ids_come_from_the_paths(tmp_path):
    write_originals(tmp_path)
    ids = {i.name: (i.patient_id, i.study_id, i.frame_index) for i in open_xa170k_source(tmp_path).items}
    assert ids["cadica/selectedVideos/p2/v7/input/p2_v7_00003.png"] == ("p2", "p2_v7", 3)
    assert ids["coronarydominance/Right_Dominance/Study00010_5/RCA/1.npz#00004"] == (None, "Study00010_5", 4)
    assert ids["xcad/train/trainB/1.png"] == ids["syntax/c.png"] == (None, None, None)


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("p12_v3_00045.png", ("p12", "p12_v3", 45)),
        ("Study00012_34_RCA_5_7.png", (None, "Study00012_34", 7)),
        ("Right_Dominance_Study00012_34_LCA_5-0007.png", (None, "Study00012_34", 7)),
        # what follows the number may be the frame: the study must not become one for each frame
        ("Study00012_7.png", (None, "Study00012", None)),
        ("xp1_v2_3.png", (None, None, None)),
        ("0001.png", (None, None, None)),
    ],
)
def test_names_of_flat_frames_tell_what_is_sure(name, ids):
    assert tuple(ids_from_name(f"coronarydominance/{name}")) == ids


def test_the_layout_of_syntax_is_said_to_be_unknown(tmp_path, caplog):
    write_syntax(tmp_path / "SYNTAX")
    with caplog.at_level(logging.WARNING):
        open_xa170k_source(tmp_path / "SYNTAX")
    assert "layout of SYNTAX is unknown" in caplog.text


def test_a_folder_of_images_of_another_name_needs_to_be_called_by_its_collection(tmp_path):
    frames = write_syntax(tmp_path / "pictures")
    with pytest.raises(ValueError, match="`layout`"):
        open_xa170k_source(tmp_path / "pictures")
    check(open_xa170k_source(tmp_path / "pictures", XA170KOptions(layout="syntax")), frames)


def test_the_folder_syntax_of_arcade_is_not_taken_for_syntax(tmp_path):
    write_authors_folder(tmp_path)
    write_files(tmp_path / "dataset" / "syntax", {"train/images/7.png": encode_png(frame(7))})
    write_files(tmp_path / "dataset" / "syntax", {"train/annotations/train.json": b"{}"})
    source = open_xa170k_source(tmp_path)
    assert {item.source for item in source.items} == {"cadica", "xcad", "coronarydominance"}
    assert any("ARCADE" in fault.reason for fault in source.report)


def test_several_archives_of_one_collection_are_joined_and_one_that_is_there_already_is_left_out(tmp_path):
    frames = write_xcad(tmp_path / "XCAD")
    write_xcad_zip(tmp_path / "XCAD.zip")
    for name, seed in (("part1", 1), ("part2", 2)):
        write_zip(tmp_path / "syntax" / f"{name}.zip", {f"{name}.png": encode_png(frame(seed))}, "")
    source = open_xa170k_source(tmp_path)
    frames |= {"syntax/part1/part1.png": frame(1), "syntax/part2/part2.png": frame(2)}
    check(source, frames)
    assert "found elsewhere" in reasons(source)["XCAD.zip"]


def test_only_wanted_collections_are_taken(authors):
    source = authors(authors_files(), sources=("xcad", "cadica"))
    assert {item.source for item in source.items} == {"xcad", "cadica"}
    assert len(source.report) == 0
    with pytest.raises(ValueError, match="no collection 'arcade'"):
        XA170KOptions(sources=("arcade",))


# Masks


@pytest.mark.parametrize("spelling", ["frangi", "filter_92"])
@pytest.mark.parametrize("as_zip", [True, False])
def test_ready_masks_beside_the_frames_are_used_unless_they_are_not_wanted(spelling, as_zip, tmp_path):
    place = tmp_path / ("a.zip" if as_zip else "a")
    frames = (write_authors_zip if as_zip else write_authors_folder)(place, masks=spelling)
    source = open_xa170k_source(place)
    check(source, frames)
    assert len(source.report) == 0
    by_name = dict(zip(frames, range(len(frames)), strict=True))
    for item in source.items:
        assert np.array_equal(source.read_vesselness(item, (SIZE, SIZE)), drawn(by_name[item.name]).vessel_mask)
    without = open_xa170k_source(place, XA170KOptions(use_masks=False))
    assert all(without.read_vesselness(item, (SIZE, SIZE)) is None for item in without.items)


def test_a_missing_mask_is_reported_and_one_that_does_not_fit_is_an_error(authors):
    files = authors_files(masks="frangi")
    del files["xcad_frangi/1.png"]
    files["xcad_frangi/2.png"] = encode_mask_png(np.zeros((SIZE, SIZE + 1), dtype=bool))
    files["syntax_frangi/1.png"] = files["syntax_frangi/1.png"][:60]
    files["syntax_frangi/other.png"] = files["syntax_frangi/2.png"]
    files["syntax_frangi/2.png"] = encode_png(frame(0))
    source = authors(files)
    items = {item.name: item for item in source.items}
    assert source.read_vesselness(items["xcad/1.png"], (SIZE, SIZE)) is None
    assert "has no mask in xcad_frangi" in reasons(source)["xcad/1.png"]
    assert reasons(source)["dataset/syntax_frangi/other.png"] == "is a mask without a frame"
    assert len(source.report) == 2
    for name, message in [("xcad/2.png", "64×65"), ("syntax/1.png", "cannot be read"), ("syntax/2.png", "levels 33")]:
        with pytest.raises(ValueError, match=message):
            source.read_vesselness(items[name], (SIZE, SIZE))


# Bad input


def test_a_download_that_broke_off_is_told_from_another_file(tmp_path):
    path = tmp_path / "xa170k.zip"
    write_authors_zip(path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="`curl -L -C -"):
            open_xa170k_source(path)
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match="is not a zip .* 15 bytes"):
        open_xa170k_source(path)


def test_a_broken_zip_among_others_is_reported_and_the_rest_is_done(tmp_path):
    frames = write_originals(tmp_path)
    path = tmp_path / "XCAD.zip"
    path.write_bytes(path.read_bytes()[:-50])
    source = open_xa170k_source(tmp_path)
    check(source, {name: data for name, data in frames.items() if not name.startswith("xcad")})
    assert "incomplete" in reasons(source)["XCAD.zip"]
    assert "expected 1621 frames" in reasons(source)["xcad"]


def test_a_missing_collection_is_reported_with_the_number_of_frames_expected(authors):
    files = {name: data for name, data in authors_files().items() if not name.startswith("coronary")}
    source = authors(files)
    assert reasons(source) == {"coronarydominance": "is missing: expected 160320 frames"}
    assert len(source.items) == sum(COUNTS.values()) - COUNTS["coronarydominance"]


def test_a_damaged_member_is_an_error_when_it_is_read_and_the_others_are_not(tmp_path):
    path = tmp_path / "xa170k.zip"
    files = authors_files()
    files["xcad/1.png"] = files["xcad/1.png"][:200]
    write_zip(path, files)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("dataset/syntax/1.png")
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(member.filename) + member.compress_size // 2] ^= 0xFF
    path.write_bytes(data)
    source, failed = open_xa170k_source(path), []
    for item in source.items:
        try:
            assert np.array_equal(source.read(item), authors_frames()[item.name])
        except UNREADABLE as error:
            assert isinstance(error, FrameReadError) and item.name.split("/", 1)[1] in str(error)
            failed.append(item.name)
    assert failed == ["syntax/1.png", "xcad/1.png"]


def test_members_that_lead_out_are_links_or_encrypted_are_never_frames(tmp_path):
    path, picture = tmp_path / "xa170k.zip", encode_png(frame(0))
    files = authors_files({"xcad": 1})
    with zipfile.ZipFile(write_zip(path, files), "a") as archive:
        for name in ("/xcad/a.png", "../xcad/b.png", "xcad/../../c.png", "C:\\xcad\\d.png"):
            archive.writestr(name, picture)
        link = zipfile.ZipInfo("xcad/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("xcad/secret.png", picture)
        archive.filelist[-1].flag_bits |= 1
    source = open_xa170k_source(path, XA170KOptions(sources=("xcad",)))
    check(source, {"xcad/1.png": frame(0)})
    told = [fault.reason.split(". ")[0] for fault in source.report]
    assert told.count("skipped: its path points outside the archive") == 4
    assert "skipped: it is a link" in told and "skipped: it is encrypted" in told
    assert not (tmp_path.parent / "xcad").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_are_there_twice_or_differ_in_case_only_count_once(tmp_path):
    path, files = tmp_path / "xa170k.zip", authors_files({"xcad": 2})
    with zipfile.ZipFile(write_zip(path, files), "a") as archive:
        archive.writestr("dataset/xcad/1.png", encode_png(frame(50)))
        archive.writestr("dataset/xcad/2.PNG", encode_png(frame(51)))
    source = open_xa170k_source(path, XA170KOptions(sources=("xcad",)))
    # as on a disk that does not tell case apart: the later of two equal names, the first of the sorted others
    check(source, {"xcad/1.png": frame(50), "xcad/2.PNG": frame(51)})
    assert "twice in the archive" in reasons(source)["dataset/xcad/1.png"]
    assert "differs only in case" in next(reason for name, reason in reasons(source).items() if "2.png" in name)


def test_files_that_are_no_frames_are_named_and_those_of_macos_only_counted(tmp_path):
    files = authors_files() | {"xcad/notes.txt": b"", "README.md": b"", "loose.png": encode_png(frame(0))}
    files |= {f"xcad/{name}": b"" for name in (".DS_Store", "._1.png", "Thumbs.db")}
    write_files(tmp_path / "a" / "dataset", files)
    write_files(tmp_path / "a" / "__MACOSX" / "dataset", {"xcad/1.png": b""})
    write_zip(tmp_path / "a.zip", files | {"__MACOSX/xcad/1.png": b""}, "")
    for place in ("a", "a.zip"):
        source = open_xa170k_source(tmp_path / place)
        check(source, authors_frames())
        told = {name.removeprefix("dataset/"): reason for name, reason in reasons(source).items()}
        assert told["xcad/notes.txt"] == told["README.md"] == "is not an image"
        assert told["loose.png"] == "is an image outside the folders of the collections"
        assert [reason for reason in told.values() if reason.startswith("4 hidden files")], told
        assert len(told) == 4


def test_packed_series_are_to_be_unpacked_and_the_command_is_named(tmp_path):
    write_files(tmp_path, {"main_normal.7z": b"7z", "CADICA/readme.txt": b""})
    with pytest.raises(ValueError, match="`7z x main_normal.7z`"):
        open_xa170k_source(tmp_path / "main_normal.7z")
    with pytest.raises(ValueError, match="`7z x main_normal.7z`"):
        open_xa170k_source(tmp_path)


def test_videos_of_cadica_without_a_list_and_key_frames_without_an_image_are_reported(tmp_path):
    write_cadica(tmp_path)
    (tmp_path / "selectedVideos/p1/v1/p1_v1_selectedFrames.txt").unlink()
    (tmp_path / "selectedVideos/p2/v7/input/p2_v7_00002.png").unlink()
    source = open_xa170k_source(tmp_path)
    assert [item.frame_index for item in source.items] == [3]
    assert "list *_selectedFrames.txt is missing" in reasons(source)["selectedVideos/p1/v1"]
    assert "image is missing" in reasons(source)["selectedVideos/p2/v7/input/p2_v7_00002"]


def test_series_that_hold_something_else_are_reported_and_the_rest_is_read(tmp_path):
    frames = write_coronarydominance(tmp_path)
    bad = tmp_path / "Left_Dominance" / "Study00009_1" / "LCA"
    bad.mkdir(parents=True)
    np.savez(bad / "1.npz", other=np.zeros((2, 4, 4)))
    np.savez(bad / "2.npz", pixel_array=np.array([{"a": 1}], dtype=object))
    np.savez(bad / "3.npz", pixel_array=np.zeros((2, 4, 4, 3), np.uint8))
    np.savez(bad / "5.npz", pixel_array=np.full((2, 4, 4), 300))
    (bad / "4.npz").write_bytes((tmp_path / "Left_Dominance/Study00001_11/LCA/3.npz").read_bytes()[:-40])
    source = open_xa170k_source(tmp_path)
    assert sorted(name[-5:] for name in reasons(source)) == ["1.npz", "2.npz", "3.npz", "4.npz"]
    too_bright = [item for item in source.items if "5.npz" in item.name]
    for item in too_bright:
        with pytest.raises(FrameReadError, match="from 300 to 300"):
            source.read(item)
    source.items = [item for item in source.items if item not in too_bright]
    check(source, frames)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_series_of_other_number_types_give_the_same_levels(dtype, tmp_path):
    stack = np.stack([frame(1), frame(2)])
    np.savez(tmp_path / "1.npz", pixel_array=stack.astype(dtype))
    np.savez(tmp_path / "2.npz", pixel_array=stack[0].astype(dtype))
    source = open_xa170k_source(tmp_path, XA170KOptions(layout="coronarydominance"))
    assert [np.array_equal(source.read(i), f) for i, f in zip(source.items, [*stack, stack[0]], strict=True)] == [
        True
    ] * 3


def test_a_series_is_unpacked_once_for_all_its_frames_and_a_damaged_one_too(tmp_path, monkeypatch):
    write_coronarydominance(tmp_path)
    path = tmp_path / "Left_Dominance/Study00001_11/LCA/3.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)
    loaded, load = [], np.load
    monkeypatch.setattr(np, "load", lambda file, **options: loaded.append(file) or load(file, **options))
    source, failed = open_xa170k_source(tmp_path), 0
    for item in source.items:
        try:
            source.read(item)
        except FrameReadError:
            failed += 1
    assert (len(source.items), failed, len(loaded)) == (15, 3, 4)


def test_deep_and_coloured_images_are_read_as_frames_are_elsewhere(tmp_path):
    grey = frame(5)
    (tmp_path / "syntax").mkdir()
    Image.fromarray(grey).convert("RGB").save(tmp_path / "syntax" / "rgb.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "syntax" / "deep.tif")
    Image.fromarray(grey).save(tmp_path / "syntax" / "run.tif", save_all=True, append_images=[Image.fromarray(grey)])
    source = open_xa170k_source(tmp_path / "syntax")
    items = {item.name: item for item in source.items}
    assert np.array_equal(source.read(items["syntax/rgb.png"]), grey)
    assert np.array_equal(source.read(items["syntax/deep.tif"]), grey)
    with pytest.raises(FrameReadError, match="has 2 frames"):
        source.read(items["syntax/run.tif"])


@pytest.mark.parametrize("name", ["no such folder", "owner/name/third", "https://example.org/a.zip"])
def test_what_is_neither_here_nor_a_repository_is_not_asked_for_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match="owner/name"):
        open_xa170k_source(name)


# Signature, order, other processes


def test_the_order_does_not_depend_on_that_of_the_files(tmp_path):
    files = list(authors_files().items())
    random.Random(0).shuffle(files)
    source = open_xa170k_source(write_zip(tmp_path / "a.zip", dict(files)))
    check(source, authors_frames())


@pytest.mark.parametrize("name", ["dataset", "xa170k.zip", "originals"])
def test_the_signature_follows_the_content_and_not_the_place(name, tmp_path):
    WRITERS[name](tmp_path / "a" / name)
    first = open_xa170k_source(tmp_path / "a" / name).signature()
    assert json.loads(json.dumps(first)) == first
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in (tmp_path / "b").rglob("*"):
        os.utime(path, (0, 0))
    assert open_xa170k_source(tmp_path / "b" / name).signature() == first


def test_the_signature_tells_a_changed_frame_mask_and_series(tmp_path):
    originals, masked = tmp_path / "originals", tmp_path / "masked"
    write_originals(originals)
    write_authors_folder(masked, {"xcad": 2}, masks="frangi")
    seen = [open_xa170k_source(place).signature() for place in (originals, masked)]
    write_files(originals / "SYNTAX", {"c.png": encode_png(frame(7))})
    series = originals / "CoronaryDominance/Left_Dominance/Study00001_11/LCA/3.npz"
    np.savez_compressed(series, pixel_array=np.zeros((3, 4, 4)))
    write_files(masked / "dataset", {"xcad_frangi/1.png": encode_mask_png(np.zeros((SIZE, SIZE), bool))})
    now = [open_xa170k_source(place).signature() for place in (originals, masked)]
    assert sum(a != b for a, b in zip(seen[0], now[0], strict=True)) == 4
    assert sum(a != b for a, b in zip(seen[1], now[1], strict=True)) == 1


@pytest.mark.parametrize("suffix", [".bmp", ".tif"])
def test_the_signature_tells_a_pixel_that_changed_in_a_file_without_a_check_sum(suffix, tmp_path):
    path = tmp_path / "dataset" / "xcad" / f"1{suffix}"
    path.parent.mkdir(parents=True)
    levels = np.full((200, 200), 90, np.uint8)
    Image.fromarray(levels).save(path)
    seen = open_xa170k_source(tmp_path).signature()
    levels[60, 100] = levels[150, 100] = 91  # neither in the middle nor at the end
    Image.fromarray(levels).save(path)
    assert open_xa170k_source(tmp_path).signature() != seen


def test_a_dangling_link_is_part_of_the_signature_and_an_error_when_it_is_read(tmp_path):
    write_authors_folder(tmp_path / "a", {"xcad": 2})
    link = tmp_path / "a" / "dataset" / "xcad" / "3.png"
    link.symlink_to(tmp_path / "nowhere.png")
    source = open_xa170k_source(tmp_path / "a", XA170KOptions(sources=("xcad",)))
    assert [entry[4:] == [["unreadable"]] for entry in source.signature()] == [False, False, True]
    with pytest.raises(FileNotFoundError, match="'dataset/xcad/3.png'"):
        source.read(source.items[2])


def read_all(source, queue):
    queue.put({item.name: source.read(item) for item in source.items})


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_reads_the_same_and_leaves_the_files_of_this_one_alone(tmp_path):
    frames = write_originals(tmp_path)
    source = open_xa170k_source(tmp_path)
    source.read(source.items[-1])
    # it has this one's open file, and would move its position
    file = source._stores["XCAD.zip"]._open().archive.fp
    place = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=read_all, args=(source, queue))
    process.start()
    read = queue.get(timeout=100)
    process.join()
    assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == place
    assert read.keys() == frames.keys()
    assert all(np.array_equal(read[name], frames[name]) for name in frames)


def test_a_pickled_source_carries_no_pixels_and_no_open_file_and_reads_the_same(tmp_path):
    frames = write_originals(tmp_path)
    source = open_xa170k_source(tmp_path)
    before = len(pickle.dumps(source))
    check(source, frames)
    assert len(pickle.dumps(source)) == before
    check(pickle.loads(pickle.dumps(source)), frames)
    assert pickle.loads(pickle.dumps(SeriesReader()))._last is None


# The Hub

PUSH = """
from huggingface_hub import HfApi
HfApi().create_repo("tester/XA-170K", repo_type="dataset")
HfApi().upload_file(path_or_fileobj={path!r}, path_in_repo="xa170k.zip", repo_id="tester/XA-170K", repo_type="dataset")
"""
READ = """
import hashlib, json
from vasomim_hf.data.xa170k.sources import XA170KOptions, open_xa170k_source
def read(name, **options):
    try:
        source = open_xa170k_source(name, XA170KOptions(**options))
        frames = {item.name: hashlib.sha256(source.read(item)).hexdigest() for item in source.items}
        masks = sum(source.read_vesselness(item, (64, 64)) is not None for item in source.items)
        return [frames, masks, len(source.report)]
    except Exception as error:
        return [type(error).__name__, str(error)]
"""


def told(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with a miniature of the authors' repository, and what has to be read from it."""
    path = tmp_path_factory.mktemp("zip") / "xa170k.zip"
    frames = write_authors_zip(path, masks="frangi")
    with hub_server() as server:
        whole = path.read_bytes()
        server.put("tester/cut", "xa170k.zip", whole[:-200])
        # as a connection that ends early: fewer bytes come than were announced
        server.put("tester/short", "xa170k.zip", whole + b" ")
        server.blobs[hashlib.sha256(whole + b" ").hexdigest()] = whole
        result = server.run(PUSH.format(path=str(path)))
        assert result.returncode == 0, result.stderr
        server.expected = [{n: hashlib.sha256(f).hexdigest() for n, f in frames.items()}, len(frames), 0]
        yield server


@pytest.mark.hub
def test_the_authors_zip_is_read_from_the_hub_downloaded_offline_and_streamed(hub):
    names = (
        '[read("tester/XA-170K", stream=True), glob.glob(f"{root}/**/*.zip", recursive=True), read("tester/XA-170K")]'
    )
    code = f"import glob, os\nroot = os.environ['HF_HOME']\nprint(json.dumps({names}))"
    assert told(hub.run(READ + code)) == [hub.expected, [], hub.expected]
    hub.requests.clear()
    offline = """print(json.dumps(read("hf://datasets/tester/XA-170K@main")))"""
    assert told(hub.run(READ + offline, HF_HUB_OFFLINE="1")) == hub.expected
    assert hub.requests == []


@pytest.mark.hub
def test_what_is_not_on_the_hub_or_came_damaged_is_told(hub):
    code = """
names = [("tester/none", {}), ("tester/XA-170K@none", {}), ("tester/XA-170K", {"archive": "b.zip"}), ("tester/cut", {})]
print(json.dumps([read(name, stream=stream, **options) for name, options in names for stream in (False, True)]
                 + [read("tester/short")]))
"""
    errors = told(hub.run(READ + code))
    assert [kind for kind, _ in errors] == ["FileNotFoundError"] * 6 + ["ValueError"] * 2 + ["OSError"]
    for _, message in errors[:6]:
        assert "the Hub has no" in message and "Check the name" in message
    assert "incomplete" in errors[6][1] and "blobs" in errors[6][1]
    assert "not a zip" in errors[7][1]
    assert "Consistency check failed" in errors[8][1]
