"""Pictures of an evaluation say what they show: legends, counts, a colour for each class, nothing cut off."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage.color import rgb2lab

from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram
from vasomim_hf.engine.evaluating import pictures
from vasomim_hf.engine.tasks import painting
from vasomim_hf.engine.tasks.registry import find_task
from vasomim_hf.engine.tasks.task import ScoredFrame
from vasomim_hf.evaluation.detection_metrics import Boxes
from vasomim_hf.evaluation.results import EvaluationResults, ResultRow


FRAME = synthetic_angiogram(0, size=96).image
SEGMENTS = ["background", *(f"segment {number}" for number in range(1, 26))]


def results_of(kind, labels):
    return EvaluationResults(kind, "task", "model", "data", "val", labels, [], {})


def one_hot(ids, num_labels):
    return np.eye(num_labels, dtype=np.float32)[ids].transpose(2, 0, 1)


def segmentation_frame(target, found, num_labels, name="frame"):
    return ScoredFrame(name, FRAME, target, one_hot(found, num_labels))


def detection_frame(corners, scores, name="frame"):
    target = Boxes(np.array([[20.0, 30.0, 40.0, 50.0], [50.0, 50.0, 60.0, 60.0]]), np.zeros(2, dtype=int))
    return ScoredFrame(
        name, FRAME, target, Boxes(np.array(corners), np.zeros(len(corners), dtype=int), np.array(scores))
    )


def drawn(frame, values, results):
    numbers = described(frame, ResultRow(frame.image_id, None, values), results)
    return pictures._case(panels_of(frame, results), frame.image_id, numbers)


def described(frame, row, results):
    return find_task(results.kind).describe(frame, row, results.labels)


def panels_of(frame, results):
    return find_task(results.kind).panels(frame, results.labels)


def has_colour(image, colour):
    return bool((np.asarray(image).reshape(-1, 3) == colour).all(axis=1).any())


def test_colours_of_25_classes_are_distinguishable_over_a_frame():
    colours = painting.class_colours(26)
    assert colours.shape == (26, 3) and not colours[0].any()
    over_grey = rgb2lab((0.8 * colours[1:] / 255 + 0.2 * 0.45)[None])[0]
    distances = np.linalg.norm(over_grey[:, None] - over_grey[None], axis=2) + 1e3 * np.eye(25)
    assert distances.min() > 25


@pytest.mark.parametrize("num_labels", [1, 2, 3, 40, 255])
def test_every_class_has_a_colour_of_its_own(num_labels):
    colours = painting.class_colours(num_labels)
    assert colours.shape == (num_labels, 3) and len({tuple(colour) for colour in colours.tolist()}) == num_labels


def test_masks_hold_ids_and_show_colours(tmp_path):
    ids = np.zeros(FRAME.shape, dtype=np.uint8)
    ids[:10], ids[10:20] = 1, 25
    pictures.MapWriter(tmp_path)(segmentation_frame(ids, ids, 26))
    with Image.open(tmp_path / "frame_mask.png") as mask:
        assert mask.mode == "P" and np.array_equal(np.asarray(mask), ids)
        shown = np.asarray(mask.convert("RGB"))
    assert np.array_equal(shown, painting.class_colours(26)[ids])


def test_a_single_class_is_white_in_masks(tmp_path):
    ids = (synthetic_angiogram(0, size=96).segment_mask > 0).astype(np.uint8)
    pictures.MapWriter(tmp_path)(segmentation_frame(ids, ids, 2))
    with Image.open(tmp_path / "frame_mask.png") as mask:
        assert np.array_equal(np.asarray(mask.convert("L")), ids * 255)


def test_several_classes_are_drawn_as_annotated_and_as_found_with_their_names():
    target, found = np.zeros((2, *FRAME.shape), dtype=int)
    target[30:60, 30:60], found[30:60, 30:60] = 3, 7
    target[:8] = 255
    results = results_of("segmentation", SEGMENTS)
    frame = segmentation_frame(target, found, len(SEGMENTS))
    grey, annotated, seen = (np.asarray(panel).astype(int) for panel in panels_of(frame, results))
    centre = tuple(side // 2 for side in grey.shape[:2])
    for panel, number in ((annotated, 3), (seen, 7)):
        expected = 0.8 * painting.class_colours(26)[number] + 0.2 * grey[centre]
        assert np.abs(panel[centre] - expected).max() < 12, number
    assert np.array_equal(annotated[:20], grey[:20]), "pixels to ignore stay grey"
    assert find_task(results.kind).drawn_classes(frame, results.labels) == {3, 7}
    colours = painting.class_colours(26).tolist()
    legend = find_task(results.kind).legend(results.labels, {7, 3})
    assert legend[0] == (None, "left: the frame; middle: annotated; right: predicted")
    assert legend[1:] == [(tuple(colours[3]), "segment 3"), (tuple(colours[7]), "segment 7")]


@pytest.mark.parametrize("kind, colours", [("segmentation", 3), ("detection", 2), ("classification", 0)])
def test_pictures_have_a_legend_with_all_of_their_colours(kind, colours):
    legend = find_task(kind).legend(["background", "vessel"], set())
    assert len(legend) == colours and all(text for _, text in legend)
    picture = pictures._stack([Image.new("RGB", (320, 352), "white")], legend)
    assert all(has_colour(picture, colour) for colour, _ in legend)


def test_a_long_legend_wraps_without_clipping():
    colours = painting.class_colours(26).tolist()
    names = [f"segment {number} of the coronary tree" for number in range(1, 26)]
    legend = [(tuple(colour), name) for colour, name in zip(colours[1:], [*names[:24], "x" * 900], strict=True)]
    picture = pictures._stack([Image.new("RGB", (968, 352), "white")] * 2, legend)
    assert all(has_colour(picture, colour) for colour, _ in legend)
    margin = np.asarray(picture)[2 * 352 :, -8:]
    assert (margin == 255).all()


def test_boxes_below_the_threshold_are_not_counted_as_found():
    results = results_of("detection", ["stenosis"])
    frame = detection_frame([[20.0, 30.0, 40.0, 50.0]], [0.25])
    row = ResultRow("frame", None, {"num_targets": 2.0})
    assert described(frame, row, results) == "2 annotated, 0 predicted (score >= 0.3)"
    assert not has_colour(panels_of(frame, results)[1], painting.FALSE)
    frame = detection_frame([[20.0, 30.0, 40.0, 50.0]], [0.3])
    assert described(frame, row, results) == "2 annotated, 1 predicted (score >= 0.3)"
    panel = panels_of(frame, results)[1]
    share = 320 / 96
    around = panel.crop((int(20 * share) - 5, int(30 * share) - 5, int(40 * share) + 5, int(50 * share) + 5))
    assert has_colour(around, painting.FALSE) and has_colour(around, painting.MISSED), "one does not hide the other"


@pytest.mark.parametrize("corners", [(0, 0, 8, 8), (88, 0, 96, 96), (0, 88, 8, 96), (88, 88, 96, 96)])
def test_scores_at_the_edge_of_a_frame_are_not_cut_off(corners, monkeypatch):
    places = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, place, *given, **keys: places.append((place, given[0])) or text(self, place, *given, **keys),
    )
    frame = detection_frame([corners], [0.5])
    panel = painting.draw_boxes(
        Image.new("RGB", (320, 320)), 96, frame.target, frame.prediction, ["stenosis", "occlusion"]
    )
    ((left, top), shown) = places[0]
    assert shown == "stenosis 0.50" and left >= 0 and top >= 0
    assert left + painting.font().getlength(shown) <= panel.width and top + 16 <= panel.height


def test_a_class_of_the_frame_is_drawn_on_one_frame_alone():
    results = results_of("classification", ["left", "right"])
    frame = ScoredFrame("frame", FRAME, 0, np.array([0.25, 0.75]))
    values = {"predicted": 1.0, "target": 0.0, "confidence": 0.75}
    assert len(panels_of(frame, results)) == 1
    assert described(frame, ResultRow("frame", None, values), results) == "predicted right (0.75), annotated left"
    cases = [drawn(frame, values, results)] * 4
    assert pictures._stack(cases, []).size == (4 * 320 + 3 * 8, cases[0].height + 4)


@pytest.mark.parametrize("shape", [(96, 96), (40, 200), (200, 40), (1, 300)])
def test_frames_of_any_shape_fit_and_long_ids_lose_their_middle(shape):
    results = results_of("segmentation", ["background", "vessel"])
    ids = np.zeros(shape, dtype=int)
    name = "begin" + "0123456789abcdef" * 20 + "end"
    frame = ScoredFrame(name, np.full(shape, 120, dtype=np.uint8), ids, one_hot(ids, 2))
    case = drawn(frame, {"dice": 0.5, "cl_dice": 0.25}, results)
    assert case.size == (2 * 320 + 4, 352)
    assert (np.asarray(case)[320:, -2:] == 255).all()
    shown = painting.shortened(name, 300)
    assert shown.startswith("begin0") and shown.endswith("fend") and "..." in shown
    assert 250 < painting.font().getlength(shown) <= 300


def test_frames_of_a_training_are_drawn_in_order_with_what_is_known_of_each():
    ids = np.zeros(FRAME.shape, dtype=int)
    ids[10:40, 10:40] = 1
    frames = [segmentation_frame(ids, ids, 2, str(number)) for number in range(3)]
    scorer = SimpleNamespace(
        task=find_task("segmentation"), labels=["background", "vessel"], frames=lambda rows: frames
    )
    picture = pictures.draw_frames(scorer, None)
    assert picture.size == (2 * 644 + 8, 2 * (352 + 4) + 16) and has_colour(picture, painting.HIT)
    assert find_task("segmentation").caption(frames[0], SEGMENTS) == "all classes merged: Dice 1.000"


def test_what_is_drawn_has_the_legend_of_what_was_scored(tmp_path):
    ids = np.zeros(FRAME.shape, dtype=int)
    ids[10:40, 10:40] = 4
    values = {"dice": 1.0, "cl_dice": 1.0}
    rows = [ResultRow(str(number), None, values) for number in range(2)]
    results = EvaluationResults("segmentation", "segments", "m", "d", "val", SEGMENTS, rows, {})
    frames = {str(number): segmentation_frame(ids, ids, len(SEGMENTS), str(number)) for number in range(2)}
    scorer = SimpleNamespace(task=find_task(results.kind), frames=lambda chosen: [frames[name] for name in chosen])
    table = SimpleNamespace(image_ids=["0", "1"], select=lambda numbers: [str(number) for number in numbers])
    written = pictures.draw_cases(tmp_path, results, scorer, table)
    assert [path.name for path in written] == ["best.png", "median.png", "worst.png"]
    with Image.open(written[0]) as picture:
        assert picture.size == (3 * 320 + 2 * 4, 2 * (352 + 4) + 16)
        assert has_colour(picture, painting.class_colours(26)[4]), "the square of the legend has the pure colour"
