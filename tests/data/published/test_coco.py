"""COCO files: what is read, what is left out and named, and masks from outlines and runs."""

import json
import re

import numpy as np
import pytest
from miniatures.arcade import outlines

from vasomim_hf.data.faults import FaultReport
from vasomim_hf.data.published.coco import CocoObject, RunLengths, paint, read_coco
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram


pytest.importorskip("pycocotools")

SQUARE = [10.0, 12.0, 20.0, 12.0, 20.0, 30.0, 10.0, 30.0]


def file_of(annotations: list, images: list | None = None, categories: list | None = None) -> dict:
    return {
        "images": [image()] if images is None else images,
        "annotations": annotations,
        "categories": [{"id": 26, "name": "stenosis"}] if categories is None else categories,
    }


def image(number: object = 1, **changes: object) -> dict:
    return {"id": number, "file_name": f"{number}.png", "width": 64, "height": 48} | changes


def annotation(**changes: object) -> dict:
    return {"id": 7, "image_id": 1, "category_id": 26, "segmentation": [SQUARE], "bbox": [10, 12, 10, 18]} | changes


def read(folder, content, **options):
    path = folder / "train.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    report = FaultReport()
    return read_coco(path, report, **options), [f"{fault.name}: {fault.reason}" for fault in report]


def painted(item: CocoObject, height: int = 48, width: int = 64) -> np.ndarray:
    return paint(np.zeros((height, width), bool), [(True, item)])


# Masks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("polygon", "rows", "columns"),
    [
        ([3.0, 2.0, 7.0, 2.0, 7.0, 9.0, 3.0, 9.0], (2, 9), (3, 7)),
        ([-5.0, -4.0, 7.0, -4.0, 7.0, 9.0, -5.0, 9.0], (0, 9), (0, 7)),
        ([3.6, 2.6, 4.4, 2.6, 4.4, 3.4, 3.6, 3.4], (0, 0), (0, 0)),
    ],
    ids=["along the edges of pixels", "partly outside the frame", "between the centres of pixels"],
)
def test_a_polygon_holds_the_pixels_whose_centres_lie_inside(polygon, rows, columns):
    item = CocoObject("stenosis", (np.array(polygon).reshape(-1, 2),), None, (0, 0, 1, 1))
    expected = np.zeros((12, 10), bool)
    expected[slice(*rows), slice(*columns)] = True
    assert np.array_equal(painted(item, 12, 10), expected)


def test_outlines_of_a_mask_give_the_mask_back(tmp_path):
    frame = synthetic_angiogram(seed=26, size=96)
    segment = frame.segment_mask == np.unique(frame.segment_mask)[1]
    (read_frame,), faults = read(
        tmp_path, file_of([annotation(segmentation=outlines(segment))], [image(width=96, height=96)])
    )
    assert faults == []
    assert np.array_equal(painted(read_frame.objects[0], 96, 96), segment)


def test_an_object_is_the_union_of_its_polygons(tmp_path):
    overlapping = [SQUARE, [15.0, 20.0, 40.0, 20.0, 40.0, 25.0, 15.0, 25.0]]
    (frame,), _ = read(tmp_path, file_of([annotation(segmentation=overlapping)]))
    mask = painted(frame.objects[0])
    assert mask[12:30, 10:20].all() and mask[20:25, 15:40].all() and mask.sum() == 18 * 10 + 5 * 20


def test_a_later_object_is_painted_over_an_earlier_one(tmp_path):
    entries = [annotation(), annotation(id=8, segmentation=[[15.0, 12.0, 25.0, 12.0, 25.0, 30.0, 15.0, 30.0]])]
    (frame,), _ = read(tmp_path, file_of(entries))
    labels = paint(np.zeros((48, 64), np.uint8), [(3, frame.objects[0]), (2, frame.objects[1])])
    assert labels[20].tolist() == [0] * 10 + [3] * 5 + [2] * 10 + [0] * 39


def test_runs_are_read_whether_compressed_or_not(tmp_path):
    wanted = synthetic_angiogram(seed=3, size=(48, 64)).vessel_mask
    compressed = pytest.importorskip("pycocotools.mask").encode(np.asfortranarray(wanted.astype(np.uint8)))
    packed = {"size": [48, 64], "counts": compressed["counts"].decode()}
    flat = wanted.T.reshape(-1)
    changes = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    plain = {"size": [48, 64], "counts": np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()}
    rows, columns = np.nonzero(wanted)
    for runs in (packed, plain):
        (frame,), faults = read(tmp_path, file_of([annotation(segmentation=runs, bbox=None)]))
        assert faults == []
        assert np.array_equal(painted(frame.objects[0]), wanted)
        box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert frame.objects[0].bbox == box


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ({"size": [64, 48], "counts": [48 * 64]}, r"size \[64, 48\], its image \[48, 64\]"),
        ({"size": [48, 64], "counts": [100, 5]}, "sum to 105 pixels, its image has 3072"),
        ({"size": [48, 64], "counts": [-1, 3073]}, "integers >= 0"),
        ({"size": [48, 64], "counts": [3071.5, 0.5]}, "integers >= 0"),
        ({"size": [48, 64], "counts": "ä"}, "invalid character"),
        ({"size": [48, 64], "counts": "o"}, "in the middle of a number"),
        ({"size": [48, 64], "counts": "o" * 40}, "in the middle of a number"),
        ({"size": [48, 64]}, "got None"),
    ],
)
def test_runs_that_do_not_fit_are_named_and_the_box_is_kept(tmp_path, runs, reason):
    (frame,), (fault,) = read(tmp_path, file_of([annotation(segmentation=runs)]))
    assert re.search(reason, fault) and "train.json: annotation 7" in fault
    assert frame.objects[0].bbox == (10, 12, 10, 18) and not painted(frame.objects[0]).any()


# Reading ------------------------------------------------------------------------------------------------------------


def test_frames_and_objects_keep_the_order_of_the_file(tmp_path):
    content = file_of(
        [annotation(image_id="b"), annotation(image_id=1), annotation(image_id="b", bbox=[1, 2, 3, 4])],
        [image("b"), image(1)],
    )
    frames, faults = read(tmp_path, content)
    assert faults == []
    assert [(frame.file_name, frame.stem, frame.width, frame.height) for frame in frames] == [
        ("b.png", "b", 64, 48),
        ("1.png", "1", 64, 48),
    ]
    assert [item.bbox for item in frames[0].objects] == [(10, 12, 10, 18), (1, 2, 3, 4)]
    assert [item.category for item in frames[1].objects] == ["stenosis"]


def test_an_image_without_annotations_is_a_frame_without_objects(tmp_path):
    (frame,), faults = read(tmp_path, file_of([]))
    assert frame.objects == () and faults == []


def test_categories_are_those_that_the_file_names(tmp_path):
    names = [{"id": 5, "name": " 9a "}, {"id": 10, "name": 4}]
    (frame,), faults = read(
        tmp_path, file_of([annotation(category_id=10), annotation(category_id=5)], categories=names)
    )
    assert [item.category for item in frame.objects] == ["4", "9a"] and faults == []


def test_without_a_list_of_categories_the_given_names_count_and_that_is_said(tmp_path):
    content = file_of([annotation()], categories=[])
    (frame,), (fault,) = read(tmp_path, content, categories={26: "stenosis"})
    assert frame.objects[0].category == "stenosis" and "the file has none" in fault
    (frame,), (fault,) = read(tmp_path, content)
    assert frame.objects == () and "is not in the file" in fault


def test_a_name_cannot_lead_out_of_the_folder_of_images(tmp_path):
    frames, _ = read(tmp_path, file_of([], [image(1, file_name="../../a/1.png"), image(2, file_name="b\\2.png")]))
    assert [frame.file_name for frame in frames] == ["1.png", "2.png"]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1.0, 2.0, 3.0, 4.0]], "at least 3 points, got 4 numbers"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]], "at least 3 points, got 7 numbers"),
        ([[70.0, 2.0, 90.0, 2.0, 80.0, 9.0]], "is outside the frame of 64x48 pixels"),
        ([[5.0, -2.0, 9.0, -2.0, 8.0, -9.0]], "is outside the frame of 64x48 pixels"),
        ([[1.0, 2.0, 3.0, float("nan"), 5.0, 6.0]], "list of numbers"),
        ([[1.0, 2.0, 3.0, 1e300, 5.0, 6.0]], "list of numbers of at most 100000"),
        ([[1.0, 2.0, 3.0, 10**400, 5.0, 6.0]], "list of numbers of at most 100000"),
        ([[1.0, 2.0, "3", 4.0, 5.0, 6.0]], "list of numbers"),
        ([5.0], "list of numbers"),
        ([], "no polygon"),
        (None, "no polygon"),
        ("abc", "no polygon"),
    ],
)
def test_a_polygon_that_cannot_be_used_is_named_and_the_rest_of_the_object_kept(tmp_path, segmentation, reason):
    (frame,), (fault,) = read(tmp_path, file_of([annotation(segmentation=segmentation)]))
    assert fault.startswith("train.json: annotation 7: ") and reason in fault
    assert frame.objects[0].outlines == () and frame.objects[0].bbox == (10, 12, 10, 18)
    if segmentation and isinstance(segmentation, list):
        (frame,), (fault,) = read(tmp_path, file_of([annotation(segmentation=[*segmentation, SQUARE])]))
        assert reason in fault and painted(frame.objects[0]).sum() == 180


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([10, 12, 0, 18], "width and height > 0"),
        ([10, 12, 10], "left, top, width and height"),
        ([70, 12, 10, 18], "outside the frame"),
        ([-20, 12, 10, 18], "outside the frame"),
        ("box", "list of numbers"),
    ],
)
def test_a_box_that_cannot_be_used_is_named_and_made_from_the_outline(tmp_path, box, reason):
    (frame,), (fault,) = read(tmp_path, file_of([annotation(bbox=box)]))
    assert reason in fault and frame.objects[0].bbox == (10, 12, 10, 18)
    (frame,), faults = read(tmp_path, file_of([annotation(bbox=box, segmentation=[])]))
    assert frame.objects == () and "no valid polygon or box" in faults[-1]


def test_a_missing_box_is_made_from_all_outlines(tmp_path):
    polygons = [SQUARE, [40.0, 5.0, 50.0, 5.0, 50.5, 9.0]]
    (frame,), faults = read(tmp_path, file_of([annotation(bbox=None, segmentation=polygons)]))
    assert frame.objects[0].bbox == (10, 5, 40.5, 25) and faults == []


def test_a_box_is_cut_at_the_edges_of_the_frame(tmp_path):
    entries = [annotation(bbox=[-5, -6, 20, 30]), annotation(bbox=[60.5, 40.25, 10, 10])]
    (frame,), faults = read(tmp_path, file_of(entries))
    assert [item.bbox for item in frame.objects] == [(0, 0, 15, 24), (60.5, 40.25, 3.5, 7.75)] and faults == []


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (annotation(image_id=99), "image_id 99 is not in the file"),
        (annotation(image_id=[1]), r"image_id [1] is not in the file"),
        (annotation(category_id=3), "category_id 3 is not in the file"),
        (annotation(category_id=None), "category_id None is not in the file"),
        (["a"], "expected an object"),
    ],
)
def test_an_annotation_that_belongs_nowhere_is_named_and_left_out(tmp_path, entry, reason):
    (frame,), (fault,) = read(tmp_path, file_of([entry, annotation(id=8)]))
    assert reason in fault and len(frame.objects) == 1


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (image(2, width=0), "`width` must be an integer from 1 to 65535, got 0"),
        (image(2, height=None), "`height` must be an integer"),
        (image(2, height=True), "`height` must be an integer"),
        (image(2, file_name=None), "expected a `file_name`"),
        (image(2, file_name=".."), "expected a `file_name`"),
        (image(2, file_name="1.jpg"), "duplicate image name"),
        (image(1, file_name="2.png"), "duplicate image id 1"),
        ({"file_name": "2.png"}, "expected an object with an `id`"),
        (3, "expected an object with an `id`"),
    ],
)
def test_an_image_that_cannot_be_used_is_named_once_and_left_out(tmp_path, entry, reason):
    of_both = [annotation(), annotation(image_id=entry.get("id", 1) if isinstance(entry, dict) else 1)]
    (frame,), (fault,) = read(tmp_path, file_of(of_both, [image(), entry]))
    assert reason in fault and frame.file_name == "1.png"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"images": [', "is"),
        ("", "is"),
        ("[" * 100_000, "is"),
        ("[]", "expected an object with the lists `images` and `annotations`, got list"),
        ('{"images": [], "info": {}}', r"got \['images', 'info'\]"),
    ],
)
def test_a_file_that_is_no_coco_file_is_refused(tmp_path, text, reason):
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, text)


def test_the_report_takes_the_name_that_is_given(tmp_path):
    _, (fault,) = read(tmp_path, file_of([annotation(image_id=99)]), name="syntax/train")
    assert fault.startswith("syntax/train: annotation 7: ")


def test_an_object_of_runs_without_a_pixel_has_no_box(tmp_path):
    runs = {"size": [48, 64], "counts": [48 * 64]}
    (frame,), (fault,) = read(tmp_path, file_of([annotation(segmentation=runs, bbox=None)]))
    assert frame.objects == () and "no valid polygon or box" in fault


def test_runs_count_down_the_columns():
    item = CocoObject("stenosis", (), RunLengths(np.array([2, 3, 1]), 3, 2), (0, 0, 2, 3))
    assert painted(item, 3, 2).astype(int).tolist() == [[0, 1], [0, 1], [1, 0]]
