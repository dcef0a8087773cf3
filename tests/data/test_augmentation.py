"""Augmentation moves labels with their frame, depends on nothing but its seed, and leaves out what it is told to."""

import dataclasses

import numpy as np
import pytest

from vasomim_hf.data.augmentation import (
    FLIP_PROBABILITY,
    AugmentationOptions,
    Size,
    augment_boxes,
    augment_frame,
    augment_label_map,
    augment_soft_mask,
    draw_augmentation,
)
from vasomim_hf.data.synthetic.angiogram import synthetic_angiogram


NOTHING = AugmentationOptions(**dict.fromkeys((f.name for f in dataclasses.fields(AugmentationOptions)), 0))
GEOMETRY = dataclasses.replace(NOTHING, rotation=30, scale=0.3, translation=0.1, flip_probability=0.5)
SQUARE = Size(96, 96)


def disc(size: Size, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: size.height, : size.width] + 0.5
    return ((columns - x) ** 2 + (rows - y) ** 2 <= radius**2).astype(np.uint8)


def centre_of(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)[::-1] + 0.5


def test_without_any_change_a_frame_comes_back_as_it_was():
    frame = synthetic_angiogram(0, size=96).image
    nothing = draw_augmentation(NOTHING, 0, 0, 0)
    assert np.array_equal(augment_frame(frame, nothing, SQUARE), frame)
    boxes = np.array([[0.1, 0.2, 0.5, 0.4]])
    moved, kept = augment_boxes(boxes, nothing, SQUARE, 0.5)
    assert kept.all() and moved == pytest.approx(boxes, abs=1e-6)


@pytest.mark.parametrize("index", range(6))
def test_frame_mask_labels_and_box_move_together(index):
    frame = Size(120, 90)
    mask = disc(frame, 70, 40, 9)
    drawn = draw_augmentation(GEOMETRY, 3, 1, index)
    seen = augment_frame(mask * np.uint8(200), drawn, SQUARE) >= 100
    binary = augment_soft_mask(mask * np.uint8(255), drawn, SQUARE)
    ids = augment_label_map(mask * np.uint8(17), drawn, SQUARE)
    assert binary.sum() > 50 and set(np.unique(binary)) == {0, 1} and set(np.unique(ids)) == {0, 17}
    for other in (seen, ids == 17):
        assert centre_of(other) == pytest.approx(centre_of(binary), abs=0.5)
    box = np.array([[61, 31, 79, 49]]) / [*frame, *frame]
    moved, kept = augment_boxes(box, drawn, frame, 0.4)
    assert kept.all()
    rows, columns = np.nonzero(binary)
    around = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert moved[0] * 96 == pytest.approx(around, abs=1.5)


def test_a_turned_box_is_the_one_around_its_ellipse():
    drawn = dataclasses.replace(draw_augmentation(NOTHING, 0, 0, 0), angle=90.0)
    moved, _ = augment_boxes(np.array([[0.4, 0.3, 0.6, 0.7]]), drawn, SQUARE, 0.5)
    assert moved[0] == pytest.approx([0.3, 0.4, 0.7, 0.6], abs=1e-6)
    drawn = dataclasses.replace(drawn, angle=45.0)
    moved, _ = augment_boxes(np.array([[0.4, 0.4, 0.6, 0.6]]), drawn, SQUARE, 0.5)
    # a circle keeps its box, which turned corners would make 1.41 times as wide
    assert moved[0] == pytest.approx([0.4, 0.4, 0.6, 0.6], abs=1e-6)


def test_a_box_that_leaves_the_frame_is_dropped_and_one_at_the_edge_is_cut():
    drawn = dataclasses.replace(draw_augmentation(NOTHING, 0, 0, 0), shift=(0.2, 0.0))
    boxes = np.array([[0.9, 0.1, 1.0, 0.2], [0.6, 0.1, 0.9, 0.2], [0.1, 0.1, 0.2, 0.2]])
    moved, kept = augment_boxes(boxes, drawn, SQUARE, 0.4)
    assert kept.tolist() == [False, True, True]
    assert moved[0] == pytest.approx([0.8, 0.1, 1.0, 0.2], abs=1e-6)


def test_boxes_of_a_frame_without_any_stay_none():
    moved, kept = augment_boxes(np.zeros((0, 4)), draw_augmentation(GEOMETRY, 0, 0, 0), SQUARE, 0.4)
    assert moved.shape == (0, 4) and kept.shape == (0,)


def test_what_is_drawn_depends_on_seed_epoch_and_index_alone():
    frame = synthetic_angiogram(1, size=96).image
    options = dataclasses.replace(AugmentationOptions(), degrade_probability=1)
    same = [augment_frame(frame, draw_augmentation(options, 1, 2, 3), SQUARE) for _ in range(2)]
    assert np.array_equal(*same)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not np.array_equal(augment_frame(frame, draw_augmentation(options, *other), SQUARE), same[0])


def test_a_flip_exchanges_left_and_right():
    drawn = draw_augmentation(dataclasses.replace(NOTHING, flip_probability=1), 0, 0, 0)
    frame = synthetic_angiogram(2, size=96).image
    assert np.array_equal(augment_frame(frame, drawn, SQUARE), frame[:, ::-1])
    moved, _ = augment_boxes(np.array([[0.1, 0.2, 0.3, 0.4]]), drawn, SQUARE, 0.4)
    assert moved[0] == pytest.approx([0.7, 0.2, 0.9, 0.4], abs=1e-6)


def test_left_and_right_are_not_exchanged_where_a_label_hangs_on_them():
    assert FLIP_PROBABILITY["side"] == FLIP_PROBABILITY["segments"] == 0
    assert FLIP_PROBABILITY["vessel"] == FLIP_PROBABILITY["stenosis_boxes"] == 0.5


def test_grey_levels_keep_their_order():
    tables = [draw_augmentation(AugmentationOptions(), 0, 0, index).table.astype(int) for index in range(20)]
    assert all((np.diff(table) >= 0).all() for table in tables)
    assert len({tuple(table) for table in tables}) == 20


def test_numbers_stay_within_what_was_asked_for():
    drawn = [draw_augmentation(AugmentationOptions(), 5, 0, index) for index in range(300)]
    assert max(abs(d.angle) for d in drawn) == pytest.approx(15, rel=0.05)
    assert max(d.zoom for d in drawn) == pytest.approx(1.25, rel=0.01)
    assert min(d.zoom for d in drawn) == pytest.approx(0.8, rel=0.01)
    assert 0.1 < np.mean([d.noise > 0 for d in drawn]) < 0.3 and not any(d.flip for d in drawn)


@pytest.mark.parametrize(("name", "value"), [("rotation", -1), ("translation", 1.5), ("gamma", "0.2"), ("blur", True)])
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a number from 0 to"):
        AugmentationOptions(**{name: value})
