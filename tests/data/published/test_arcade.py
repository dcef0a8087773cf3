"""ARCADE by every task, from both layouts, with what is wrong named and the rest loaded."""

import json
import logging
import pickle
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from miniatures.arcade import FOLDERS, NUM_FRAMES, write_arcade
from miniatures.downstream import SECTIONS
from PIL import Image

from vasomim_hf.data.faults import FaultReport
from vasomim_hf.data.published.arcade import PARTS, arcade_labels, arcade_splits, export_arcade, load_arcade
from vasomim_hf.data.synthetic.angiogram import RIGHT_SEGMENTS, SEGMENT_IDS, SEGMENT_NAMES, SyntheticAngiogram


datasets = pytest.importorskip("datasets")
pytest.importorskip("cv2")

COMMON = {
    "image",
    "image_id",
    "width",
    "height",
    "split",
    "near_duplicate_group",
    "patient_id",
    "study_id",
    "frame_index",
}
SIZE = 96


@pytest.fixture(scope="session", params=["final", "challenge"])
def miniature(request, tmp_path_factory) -> tuple[Path, dict[str, SyntheticAngiogram]]:
    root = tmp_path_factory.mktemp(request.param)
    return root, write_arcade(root, request.param, SIZE)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> tuple[Path, dict[str, SyntheticAngiogram]]:
    root = tmp_path_factory.mktemp("pristine")
    return root, write_arcade(root, "final", SIZE)


@pytest.fixture
def own(pristine, tmp_path) -> Path:
    """A miniature that a test may spoil."""
    return Path(shutil.copytree(pristine[0], tmp_path / "arcade"))


def load(root, *args, **options):
    report = FaultReport()
    data = load_arcade(root, *args, report=report, **options)
    return data, [f"{fault.name}: {fault.reason}" for fault in report]


def change(root: Path, folder: str, name: str, edit) -> None:
    """Rewrite an annotation file; `edit` changes its content in place."""
    path = root / folder / "annotations" / name
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def labels_of(row) -> np.ndarray:
    return np.asarray(row["mask"])


# Tasks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("task", PARTS)
def test_every_task_and_split_loads_from_both_layouts(miniature, task, split):
    root, drawn = miniature
    data, faults = load(root, task, split)
    assert faults == []
    assert data["image_id"] == [f"{PARTS[task]}/{split}/{number}" for number in range(1, NUM_FRAMES[split] + 1)]
    target = {"side": "label", "stenosis_boxes": "objects"}.get(task, "mask")
    assert set(data.column_names) == COMMON | {target}
    for row in data:
        assert (row["width"], row["height"], row["split"]) == (SIZE, SIZE, split)
        assert np.array_equal(np.asarray(row["image"]), drawn[row["image_id"]].image)
        assert row["patient_id"] is row["study_id"] is row["frame_index"] is row["near_duplicate_group"] is None


def test_vessel_masks_are_ones_on_every_segment(pristine):
    root, drawn = pristine
    for row in load_arcade(root, "vessel"):
        labels, wanted = labels_of(row), drawn[row["image_id"]].segment_mask > 0
        assert labels.dtype == np.uint8 and labels.max() == 1
        # outlines have no holes, the tree may have
        assert (labels[wanted] == 1).all() and (labels > 0)[~wanted].mean() < 0.02


def test_segment_masks_hold_the_ids_of_the_categories(pristine):
    root, drawn = pristine
    seen = set()
    for row in load_arcade(root, "segments"):
        labels, wanted = labels_of(row), drawn[row["image_id"]].segment_mask
        assert labels.dtype == np.uint8
        seen |= set(np.unique(labels).tolist())
        assert (labels == wanted).mean() > 0.99
    assert {0, 1, 5} <= seen <= set(range(26))


def test_stenosis_masks_are_ones_on_every_lesion_and_empty_without_one(pristine):
    root, drawn = pristine
    sums = []
    for row in load_arcade(root, "stenosis", "train+val"):
        assert np.array_equal(labels_of(row), drawn[row["image_id"]].stenosis_mask)
        sums.append(int(labels_of(row).sum()))
    assert min(sums) == 0 < max(sums)


def test_boxes_lie_around_the_lesions(pristine):
    root, drawn = pristine
    numbers = []
    data = load_arcade(root, "stenosis_boxes", "train+val")
    assert data.features["objects"]["category"].feature.names == ["stenosis"]
    for row in data:
        boxes, wanted = row["objects"]["bbox"], drawn[row["image_id"]].boxes
        assert row["objects"]["category"] == [0] * len(boxes)
        numbers.append(len(boxes))
        if boxes:  # the miniature's outlines lie a sixth of a pixel inside the pixels' edges
            assert np.allclose(np.array(boxes), wanted + [1 / 6, 1 / 6, -1 / 3, -1 / 3], atol=0.02)
    assert numbers == [len(drawn[name].boxes) for name in data["image_id"]] and 0 in numbers and max(numbers) > 1


def test_sides_follow_from_the_segments(pristine):
    root, drawn = pristine
    data = load_arcade(root, "side", "train+val+test")
    names = data.features["label"].names
    assert names == ["left", "right"]
    sides = [names[label] for label in data["label"]]
    assert sides == [drawn[name].side for name in data["image_id"]] and set(sides) == {"left", "right"}


def test_a_frame_with_both_sides_or_none_has_no_side_and_is_named(own):
    def edit(content):
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 2]
        other = "5" if content["annotations"][0]["category_id"] in RIGHT_SEGMENTS else "1"
        content["annotations"].append(content["annotations"][0] | {"image_id": 3, "category_id": SEGMENT_IDS[other]})
        both = {"1": "5"}.get(other, "1")
        content["annotations"].append(content["annotations"][0] | {"image_id": 3, "category_id": SEGMENT_IDS[both]})

    change(own, "syntax/train", "train.json", edit)
    data, faults = load(own, "side")
    assert data["image_id"] == ["syntax/train/1"]
    assert faults == [
        "syntax/train/2: has segments of no side; left out",
        "syntax/train/3: has segments of both sides; left out",
    ]
    assert len(load_arcade(own, "vessel")) == 3


def test_where_outlines_overlap_the_later_one_counts(own):
    square = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]

    def edit(content):
        first = content["annotations"][0] | {"image_id": 1, "segmentation": square}
        content["annotations"] = [first | {"category_id": i, "id": i} for i in (7, 25, 10)]

    change(own, "syntax/train", "train.json", edit)
    assert np.unique(labels_of(load_arcade(own, "segments")[0])).tolist() == [0, 10]


def test_a_stenosis_among_the_segments_is_no_vessel(own):
    before = [labels_of(row) for row in load_arcade(own)]

    def edit(content):
        outline = [[0.0, 0.0, 96.0, 0.0, 96.0, 96.0, 0.0, 96.0]]
        extra = {"id": "a", "category_id": 26, "segmentation": outline, "bbox": [0, 0, 96, 96]}
        content["annotations"].append(content["annotations"][0] | extra)

    change(own, "syntax/train", "train.json", edit)
    for task in ("vessel", "segments"):
        after = [labels_of(row) for row in load_arcade(own, task)]
        assert all(np.array_equal(a > 0, b > 0) for a, b in zip(before, after, strict=True))
    assert len(load_arcade(own, "side")) == 3


def test_names_of_categories_count_and_not_their_ids(own):
    def edit(content):
        content["categories"] = [{"id": 99 - entry["id"], "name": entry["name"]} for entry in content["categories"]]
        content["categories"].reverse()
        for entry in content["annotations"]:
            entry["category_id"] = 99 - entry["category_id"]

    before = [labels_of(row) for row in load_arcade(own, "segments")]
    change(own, "syntax/train", "train.json", edit)
    assert all(np.array_equal(a, labels_of(b)) for a, b in zip(before, load_arcade(own, "segments"), strict=True))


def test_a_file_that_names_only_the_stenosis_is_read(own):
    before = load_arcade(own, "stenosis_boxes")["objects"]

    def edit(content):
        content["categories"] = [{"id": 1, "name": "stenosis"}]
        for entry in content["annotations"]:
            entry["category_id"] = 1

    change(own, "stenosis/train", "train.json", edit)
    data, faults = load(own, "stenosis_boxes")
    assert data["objects"] == before and faults == []


def test_labels_are_those_of_arcade():
    assert arcade_labels("segments") == {0: "background"} | {i: n for i, n in SEGMENT_NAMES.items() if n != "stenosis"}
    assert arcade_labels("segments")[10] == "9a" and len(arcade_labels("segments")) == 26
    assert arcade_labels("vessel") == {0: "background", 1: "vessel"}
    assert arcade_labels("stenosis") == {0: "background", 1: "stenosis"}
    assert arcade_labels("stenosis_boxes") == {0: "stenosis"} and arcade_labels("side") == {0: "left", 1: "right"}
    with pytest.raises(ValueError, match="must be one of vessel, segments, stenosis, stenosis_boxes, side, got 'ves'"):
        arcade_labels("ves")


def test_the_card_has_the_sections_of_all_cards_and_names_every_column_and_task(pristine):
    card = (Path(__file__).parents[3] / "model_cards/data/arcade.md").read_text()
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == SECTIONS
    tables = card.split("## Columns")[1].split("## ")[0].split("What a task has")
    columns = [
        name for line in re.findall(r"^\| (`.*?) \|", tables[0], re.MULTILINE) for name in re.findall(r"`(\w+)`", line)
    ]
    assert columns == load_arcade(pristine[0]).column_names
    assert dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", tables[1], re.MULTILINE)) == PARTS
    names = re.search(r"^\| name \| 1–9 \| (.*) \|$", card, re.MULTILINE)[1].split(" | ")
    assert names == [SEGMENT_NAMES[number] for number in range(10, 27)]


# Storage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", PARTS)
def test_streaming_gives_the_same_rows(pristine, task):
    def known(row):
        return {k: np.asarray(v).tolist() if isinstance(v, Image.Image) else v for k, v in row.items()}

    streamed = load_arcade(pristine[0], task, streaming=True)
    assert isinstance(streamed, datasets.IterableDataset)
    assert [known(row) for row in streamed] == [known(row) for row in load_arcade(pristine[0], task)]


def test_streaming_shares_the_frames_out_to_workers(pristine):
    loader = pytest.importorskip("torch.utils.data").DataLoader(
        load_arcade(pristine[0], "side", "train+val", streaming=True).select_columns(["image_id"]),
        batch_size=None,
        num_workers=2,
    )
    names = [row["image_id"] for row in loader]
    assert sorted(names) == sorted(load_arcade(pristine[0], "side", "train+val")["image_id"])


def test_streaming_draws_nothing_before_it_is_asked(pristine, monkeypatch):
    drawn = []
    monkeypatch.setattr("vasomim_hf.data.published.arcade.paint", lambda canvas, objects: drawn.append(1) or canvas)
    rows = iter(load_arcade(pristine[0], "vessel", streaming=True))
    assert drawn == []
    next(rows)
    assert drawn == [1]


def test_rows_are_written_where_the_user_says(pristine, tmp_path):
    load_arcade(pristine[0], "vessel", cache_dir=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".arrow"]


def test_rows_go_through_parquet(pristine, tmp_path):
    data = load_arcade(pristine[0], "segments")
    storage = pytest.importorskip("datasets.table").embed_table_storage
    data.with_format("arrow").map(storage, batched=True).with_format(None).to_parquet(str(tmp_path / "a.parquet"))
    again = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert again.features == data.features
    for before, after in zip(data, again, strict=True):
        assert np.array_equal(labels_of(before), labels_of(after))
        assert np.array_equal(np.asarray(before["image"]), np.asarray(after["image"]))


def test_frames_can_be_sent_to_other_processes(pristine):
    stream = load_arcade(pristine[0], "vessel", streaming=True)
    assert len(list(pickle.loads(pickle.dumps(stream)))) == 3


# Layouts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("above", ["", "arcade", "downloads/arcade"])
def test_the_root_may_be_up_to_two_folders_above(pristine, tmp_path, above):
    shutil.copytree(pristine[0], tmp_path / above, dirs_exist_ok=True)
    assert len(load_arcade(tmp_path, "vessel")) == 3


def test_where_both_layouts_are_found_the_final_one_is_used_and_that_is_said(own, caplog):
    write_arcade(own / "arcade_challenge_datasets", "challenge", 32)
    with caplog.at_level(logging.WARNING):
        data = load_arcade(own, "vessel")
    assert data[0]["width"] == SIZE
    assert "the final layout (Zenodo 10390295) in" in caplog.text and "is not" in caplog.text


def test_a_split_that_is_missing_is_not_taken_from_the_other_layout(own):
    write_arcade(own / "arcade_challenge_datasets", "challenge", 32)
    shutil.rmtree(own / "syntax/test")
    with pytest.raises(ValueError, match=r"Found of syntax in this final layout .*: train, val\. Unpack"):
        load_arcade(own, "vessel", "test")


def test_a_root_with_two_copies_is_refused(pristine, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(pristine[0], tmp_path / name)
    with pytest.raises(ValueError, match="holds ARCADE more than once: .*a, .*b. Pass one of them"):
        load_arcade(tmp_path)


def test_a_wrong_root_is_answered_with_what_is_there_and_what_is_expected(tmp_path):
    (tmp_path / "CADICA").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError) as error:
        load_arcade(tmp_path)
    assert "which holds CADICA/, notes.txt." in str(error.value)
    for folder, _ in [*FOLDERS["final"].values(), *FOLDERS["challenge"].values()]:
        assert folder in str(error.value)
    with pytest.raises(ValueError, match="which holds nothing"):
        load_arcade(tmp_path / "CADICA")
    with pytest.raises(ValueError, match="is no folder"):
        load_arcade(tmp_path / "nowhere")


@pytest.mark.parametrize("task", ["vessels", "", None])
def test_an_unknown_task_is_refused(pristine, task):
    with pytest.raises(ValueError, match="`task` must be one of vessel, segments"):
        load_arcade(pristine[0], task)


@pytest.mark.parametrize("split", ["validation", "", "train+train", "train,val", None])
def test_an_unknown_split_is_refused(pristine, split):
    with pytest.raises(ValueError, match="`split` must be one of train, val, test, or several"):
        load_arcade(pristine[0], "vessel", split)


def test_endings_may_differ_between_the_annotations_and_the_disk(own):
    for path in (own / "syntax/train/images").iterdir():
        path.rename(path.with_suffix(".PNG") if path.stem == "2" else path.with_suffix(".jpg"))
    data, faults = load(own, "vessel")
    assert len(data) == 3 and faults == []


def test_the_file_of_the_very_name_goes_before_one_with_another_ending(own):
    images = own / "syntax/train/images"
    for ending in ("bmp", "jpg"):
        Image.new("L", (SIZE, SIZE)).save(images / f"1.{ending}")
    data, faults = load(own)
    assert np.asarray(data[0]["image"]).any() and faults == []
    for name, is_drawn in {"1.gif": True, "1.jpg": False}.items():
        change(own, "syntax/train", "train.json", lambda content, n=name: content["images"][0].update(file_name=n))
        data, faults = load(own)
        assert np.asarray(data[0]["image"]).any() == is_drawn and faults == []


def test_the_only_json_file_of_a_folder_is_read_whatever_its_name(own):
    folder = own / "syntax/train/annotations"
    (folder / "train.json").rename(folder / "train.JSON")
    assert len(load_arcade(own, "vessel")) == 3
    (folder / "train.JSON").rename(folder / "instances_default.json")
    assert len(load_arcade(own, "vessel")) == 3
    (folder / "other.json").touch()
    with pytest.raises(ValueError, match="found instances_default.json, other.json"):
        load_arcade(own, "vessel")


# Twins --------------------------------------------------------------------------------------------------------------


def test_twins_share_a_group_and_every_other_frame_has_its_own(own):
    twins = [["syntax/train/2", "stenosis/val/1"], ["syntax/train/3", "syntax/val/1"]]
    (own / "twins.json").write_text(json.dumps({"note": "", "twins": twins}))
    assert load_arcade(own, "vessel")["near_duplicate_group"] == ["syntax/train/1", "stenosis/val/1", "syntax/train/3"]
    assert load_arcade(own, "vessel", "val")["near_duplicate_group"] == ["syntax/train/3", "syntax/val/2"]
    assert load_arcade(own, "stenosis", "val")["near_duplicate_group"] == ["stenosis/val/1", "stenosis/val/2"]


def test_twins_may_be_listed_in_the_root_above(pristine, tmp_path):
    shutil.copytree(pristine[0], tmp_path / "downloads/arcade")
    (tmp_path / "twins.json").write_text('{"twins": [["syntax/train/3", "stenosis/val/1"]]}')
    groups = ["syntax/train/1", "syntax/train/2", "stenosis/val/1"]
    assert load_arcade(tmp_path)["near_duplicate_group"] == groups


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is no whole JSON file"),
        ('{"a": 1}', "one list of image ids for each group"),
        ('[["a", "b"]]', "one list of image ids for each group"),
        ('{"twins": ["ab"]}', "one list of image ids for each group"),
        ('{"twins": [["a", "b"], ["b", "c"]]}', "names b twice. Join the groups"),
    ],
)
def test_a_list_of_twins_that_cannot_be_read_is_refused(own, text, reason):
    (own / "twins.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        load_arcade(own)


# Bad input ----------------------------------------------------------------------------------------------------------


def spoil_missing(root: Path) -> None:
    (root / "syntax/train/images/2.png").unlink()


def spoil_truncated(root: Path) -> None:
    path = root / "syntax/train/images/2.png"
    path.write_bytes(path.read_bytes()[:1000])


def spoil_other_kind(root: Path) -> None:
    (root / "syntax/train/images/2.png").write_text("no image")


def spoil_size(root: Path) -> None:
    Image.new("L", (SIZE, SIZE + 1)).save(root / "syntax/train/images/2.png")


def spoil_entry(root: Path) -> None:
    change(root, "syntax/train", "train.json", lambda content: content["images"][1].pop("width"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_missing, "syntax/train/2: no file 2.png"),
        (spoil_truncated, "syntax/train/2: .*cannot be read as an image.*Left out"),
        (spoil_other_kind, "syntax/train/2: .*cannot be read as an image.*Left out"),
        (spoil_size, "syntax/train/2: 2.png has 96x97 pixels, its annotations are for 96x96; left out"),
        (spoil_entry, "syntax/train: image 2.png: `width` must be an integer"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_frame_that_cannot_be_used_is_named_and_the_rest_loaded(own, caplog, spoil, reason, streaming):
    spoil(own)
    with caplog.at_level(logging.WARNING):
        data, faults = load(own, "vessel", streaming=streaming)
        names = [row["image_id"] for row in data]
    assert names == ["syntax/train/1", "syntax/train/3"]
    assert re.search(reason, caplog.text)
    if not streaming:
        assert re.search(reason, faults[0])


def test_annotations_that_belong_nowhere_are_named(own):
    def edit(content):
        first = content["annotations"][0]
        content["annotations"] += [first | {"id": "a", "image_id": 77}, first | {"id": "b", "category_id": 40}]
        content["categories"].append({"id": 50, "name": "catheter"})
        content["annotations"].append(first | {"id": "c", "category_id": 50, "image_id": 1})
        content["images"].append(content["images"][0] | {"id": 12})

    before = [labels_of(row) for row in load_arcade(own)]
    change(own, "syntax/train", "train.json", edit)
    data, faults = load(own)
    assert faults == [
        "syntax/train: image 1.png: duplicate image name; skipped with its annotations",
        "syntax/train: annotation a: its image_id 77 is not in the file; skipped",
        "syntax/train: annotation b: its category_id 40 is not in the file; skipped",
        "syntax/train/1: holds categories that ARCADE does not have: catheter; their objects are skipped",
    ]
    assert all(np.array_equal(a, labels_of(b)) for a, b in zip(before, data, strict=True))


def test_images_that_no_annotation_file_names_are_named_and_other_files_passed_over(own):
    images = own / "syntax/train/images"
    shutil.copy(images / "1.png", images / "9.png")
    (images / "Thumbs.db").touch()
    shutil.copy(images / "1.png", images / "._1.png")
    data, faults = load(own)
    assert faults == ["syntax/train: 9.png: is not named in train.json; left out"] and len(data) == 3


def test_a_broken_annotation_file_is_named(own):
    path = own / "syntax/train/annotations/train.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match="train.json is not valid JSON"):
        load_arcade(own)


def test_where_nothing_is_left_the_reasons_are_still_told(own, caplog):
    for path in (own / "syntax/val/images").iterdir():
        path.write_text("no image")
    report = FaultReport()
    with pytest.raises(ValueError, match="None of the items could be used"):
        load_arcade(own, "vessel", "val", report=report)
    assert len(report) == 2 and "2 faults in 2 frames of ARCADE (vessel, val)" in caplog.text


# Real frames --------------------------------------------------------------------------------------------------------


def pycocotools_mask(segmentation: list, height: int, width: int) -> np.ndarray:
    mask = pytest.importorskip("pycocotools.mask")
    with warnings.catch_warnings():  # its compiled part has not caught up with numpy 2
        warnings.simplefilter("ignore", DeprecationWarning)
        return mask.decode(mask.merge(mask.frPyObjects(segmentation, height, width))).astype(bool)


def reference_labels(entries: list[dict], task: str, height: int, width: int) -> np.ndarray:
    labels = np.zeros((height, width), np.uint8)
    for entry in entries:
        value = entry["category_id"] if task == "segments" else 1
        labels[pycocotools_mask(entry["segmentation"], height, width)] = value
    return labels


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("task", ["vessel", "segments", "stenosis"])
def test_masks_of_real_frames_in_the_original_layout_equal_those_of_pycocotools(shared_data, task, split):
    folder = shared_data / "arcade_sample" / PARTS[task] / split
    content = json.loads((folder / f"annotations/{split}.json").read_text())
    data, faults = load(shared_data / "arcade_sample", task, split)
    assert faults == [] and len(data) == len(content["images"]) == {"train": 16, "val": 4}[split]
    for row, entry in zip(data, content["images"], strict=True):
        entries = [found for found in content["annotations"] if found["image_id"] == entry["id"]]
        assert row["image_id"].split("/")[-1] == Path(entry["file_name"]).stem
        assert np.array_equal(labels_of(row), reference_labels(entries, task, 512, 512))
        with Image.open(folder / "images" / entry["file_name"]) as image:
            assert np.array_equal(np.asarray(row["image"]), np.asarray(image))


@pytest.mark.parametrize(("split", "number"), [("train", 1000), ("val", 200)])
@pytest.mark.parametrize("task", ["side", "stenosis_boxes"])
def test_all_real_frames_load(shared_data, task, split, number):
    data, faults = load(shared_data / "arcade", task, split)
    assert len(data) == len(set(data["image_id"])) == number and faults == []
    groups = json.loads((shared_data / "arcade/twins.json").read_text())["twins"]
    twins = {name: min(group) for group in groups for name in group}
    assert data["near_duplicate_group"] == [twins.get(name, name) for name in data["image_id"]]
    if task == "side":
        assert np.bincount(data["label"]).tolist() == {"train": [625, 375], "val": [134, 66]}[split]
    else:
        assert sum(len(objects["bbox"]) for objects in data["objects"]) == {"train": 1625, "val": 406}[split]


@pytest.mark.slow
@pytest.mark.parametrize(("split", "number"), [("train", 1000), ("val", 200)])
@pytest.mark.parametrize("task", ["vessel", "segments", "stenosis"])
def test_masks_of_all_real_frames_equal_those_of_pycocotools(shared_data, task, split, number):
    content = json.loads((shared_data / f"arcade/{PARTS[task]}/{split}/annotations/{split}.json").read_text())
    entries: dict = {}
    for entry in content["annotations"]:
        entries.setdefault(entry["image_id"], []).append(entry)
    data, faults = load(shared_data / "arcade", task, split)
    assert len(data) == number and faults == []
    masks = data.select_columns(["mask"])
    for row, entry in zip(masks, content["images"], strict=True):
        wanted = reference_labels(entries.get(entry["id"], []), task, entry["height"], entry["width"])
        assert np.array_equal(labels_of(row), wanted)


def test_what_was_exported_is_what_was_loaded(own, tmp_path):
    (own / "syntax" / "train" / "images" / "1.png").write_bytes(b"no image")
    shutil.rmtree(own / "stenosis" / "test")
    assert arcade_splits(own, "segments") == ["train", "val", "test"]
    assert arcade_splits(own, "stenosis_boxes") == ["train", "val"]
    report = export_arcade(own, tmp_path / "out", tasks=["segments", "stenosis_boxes"], num_workers=1)
    assert [fault.name for fault in report] == ["syntax/train/1"]
    for task in ("segments", "stenosis_boxes"):
        for split in arcade_splits(own, task):
            loaded = load_arcade(own, task, split)
            exported = datasets.load_dataset(
                str(tmp_path / "out"), task, split=split, cache_dir=str(tmp_path / "cache")
            )
            assert exported.features == loaded.features
            for row, expected in zip(exported, loaded, strict=True):
                images = [(row.pop(name), expected.pop(name)) for name in ("image", "mask") if name in row]
                assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in images)
                assert row == expected
