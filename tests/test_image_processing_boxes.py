"""Boxes follow their frames into the model's labels, and come back out of its output in the pixels of the image."""

import numpy as np
import pytest
import torch
from transformers.image_transforms import center_to_corners_format, corners_to_center_format
from transformers.utils import ModelOutput

from vasomim_hf import VasoMIMImageProcessorPil
from vasomim_hf.image_processing_boxes import pairwise_iou, suppress_overlaps


FRAME = (60, 100)  # height and width


def frame_with(box: tuple[float, float, float, float]) -> np.ndarray:
    """A dark frame with a bright box (left, top, width, height) of whole pixels."""
    frame = np.full(FRAME, 40, dtype=np.uint8)
    left, top, width, height = (int(value) for value in box)
    frame[top : top + height, left : left + width] = 240
    return frame


def annotation(*boxes: tuple[float, ...], category_id: int = 0) -> dict:
    return {"image_id": 7, "annotations": [{"bbox": list(box), "category_id": category_id} for box in boxes]}


def process(frames, annotations, return_tensors="pt", **settings):
    processor = VasoMIMImageProcessorPil(**{"do_check_input": False, **settings})
    return processor(frames, annotations=annotations, return_tensors=return_tensors)


def corners_in_pixels(label) -> np.ndarray:
    height, width = label["size"].tolist()
    return center_to_corners_format(label["boxes"]).numpy() * np.array([width, height, width, height])


def bright_corners(pixel_values: torch.Tensor) -> np.ndarray:
    """Left, top, right and bottom of what is bright in a frame."""
    rows, columns = np.nonzero((pixel_values[0] > 0.5).numpy())
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False},
        {"size": {"height": 96, "width": 96}},
        {"size": {"height": 90, "width": 240}},
        {"size": {"shortest_edge": 90}},
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 41, "width": 63}},
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 75, "width": 121}},
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 75, "width": 63}},
        {"do_resize": False, "do_pad": True, "pad_size": {"height": 70, "width": 130}},
        {
            "size": {"height": 120, "width": 200},
            "do_center_crop": True,
            "crop_size": {"height": 100, "width": 110},
            "do_pad": True,
            "pad_size": {"height": 128, "width": 144},
        },
    ],
    ids=lambda settings: "-".join(settings),
)
def test_box_is_where_what_it_surrounds_is_after_the_frame_was_changed(settings):
    box = (36, 22, 24, 12)
    settings = {"do_normalize": False, **settings}
    features = process([frame_with(box)], [annotation(box)], **settings)
    (label,) = features["labels"]
    assert label["size"].tolist() == list(features["pixel_values"].shape[-2:])
    assert label["orig_size"].tolist() == list(FRAME)
    assert np.abs(corners_in_pixels(label)[0] - bright_corners(features["pixel_values"][0])).max() <= 1


def test_labels_have_the_form_that_detectors_of_the_library_take():
    (label,) = process(frame_with((10, 10, 20, 20)), annotation((10, 6, 20, 30), category_id=3))["labels"]
    assert label["class_labels"].tolist() == [3] and label["class_labels"].dtype == torch.int64
    assert label["boxes"].dtype == torch.float32
    assert torch.allclose(label["boxes"], torch.tensor([[0.2, 0.35, 0.2, 0.5]]))
    assert label["image_id"].tolist() == [7]


def test_labels_without_tensors_are_arrays():
    (label,) = process(frame_with((10, 10, 20, 20)), annotation((10, 6, 20, 30)), return_tensors=None)["labels"]
    assert isinstance(label["boxes"], np.ndarray) and label["boxes"].shape == (1, 4)


def test_name_of_an_image_that_is_no_number_is_left_out():
    named = annotation((10, 6, 20, 30)) | {"image_id": "stenosis/train/1"}
    assert "image_id" not in process(frame_with((10, 10, 20, 20)), named)["labels"][0]


def test_frame_without_boxes_gets_empty_labels():
    (label,) = process(frame_with((10, 10, 20, 20)), {"image_id": 1, "annotations": []})["labels"]
    assert label["boxes"].shape == (0, 4) and label["class_labels"].shape == (0,)
    assert label["class_labels"].dtype == torch.int64


def test_boxes_are_cut_at_the_edges_of_the_frame():
    (label,) = process(frame_with((10, 10, 20, 20)), annotation((-10, -5, 30, 15), (90, 50, 40, 40)))["labels"]
    assert np.allclose(
        center_to_corners_format(label["boxes"]), [[0, 0, 0.2, 10 / 60], [0.9, 50 / 60, 1, 1]], atol=1e-6
    )


def test_boxes_without_an_area_or_outside_are_left_out_with_a_warning(caplog):
    boxes = [(10, 10, 0, 5), (10, 10, 5, -3), (200, 10, 5, 5), (10, 10, 8, 8), (10, 10, 0.2, 8)]
    (label,) = process(frame_with((10, 10, 8, 8)), annotation(*boxes), do_resize=False)["labels"]
    assert len(label["boxes"]) == len(label["class_labels"]) == 1
    (record,) = [record for record in caplog.records if "zero area" in record.message]
    assert "[10.0, 10.0, 0.0, 5.0] of frame 0" in record.message and record.message.count("of frame 0") == 4


def test_boxes_that_a_crop_takes_away_are_left_out_silently(caplog):
    boxes = annotation((0, 0, 10, 10), (45, 25, 10, 10))
    crop = {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 20, "width": 40}}
    (label,) = process(frame_with((45, 25, 10, 10)), boxes, **crop)["labels"]
    assert torch.allclose(label["boxes"], torch.tensor([[20 / 40, 10 / 20, 10 / 40, 10 / 20]]))
    assert not [record for record in caplog.records if "zero area" in record.message]


def test_crowds_are_left_out():
    boxes = annotation((10, 10, 20, 20), (40, 10, 20, 20))
    boxes["annotations"][0]["iscrowd"] = 1
    (label,) = process(frame_with((40, 10, 20, 20)), boxes)["labels"]
    assert torch.allclose(label["boxes"][:, 0], torch.tensor([0.5]))


def test_padding_of_a_batch_scales_the_boxes_of_the_smaller_frame():
    frames = [np.full((40, 40), 9, dtype=np.uint8), np.full((80, 60), 9, dtype=np.uint8)]
    boxes = [annotation((10, 10, 20, 20)), annotation((10, 10, 20, 20))]
    small, large = process(frames, boxes, do_resize=False, do_pad=True)["labels"]
    assert torch.allclose(small["boxes"], large["boxes"])
    assert torch.allclose(large["boxes"], torch.tensor([[20 / 60, 20 / 80, 20 / 60, 20 / 80]]))


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([annotation(), annotation()], "frame, got 2 for 1 frames"),
        ([{"boxes": [[1, 2, 3, 4]]}], 'Annotation 0 must be {"image_id"'),
        ([[1, 2, 3, 4]], "Annotation 0 must be"),
        (annotation((1, 2, 3)), "`bbox` must be four finite numbers"),
        (annotation((1, 2, float("nan"), 4)), "`bbox` must be four finite numbers.*frame 0"),
        (annotation((1, 2, 3, 4), category_id=-1), "`category_id` must be .* -1"),
        ({"annotations": [{"bbox": [1, 2, 3, 4]}]}, "`category_id` must be .* None"),
    ],
)
def test_annotations_that_cannot_be_read_are_refused(annotations, message):
    with pytest.raises(ValueError, match=message):
        process(frame_with((10, 10, 20, 20)), annotations)


def test_masks_and_boxes_together_are_refused():
    frame = frame_with((10, 10, 20, 20))
    with pytest.raises(ValueError, match="Give one of `segmentation_maps` and `annotations`"):
        VasoMIMImageProcessorPil()(frame, segmentation_maps=frame > 100, annotations=annotation())


# Post-processing ----------------------------------------------------------------------------------------------------


def output_of(corners, probabilities) -> ModelOutput:
    """Output of a detector of one image: corners as shares of it, and a probability for each class."""
    boxes = corners_to_center_format(torch.tensor(corners, dtype=torch.float32))
    return ModelOutput(logits=torch.tensor(probabilities).logit()[None], pred_boxes=boxes[None])


def naive_suppression(corners: torch.Tensor, labels: torch.Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in range(len(corners)):
        overlaps = [pairwise_iou(corners[i][None], corners[j][None]).item() for j in kept if labels[i] == labels[j]]
        if all(overlap <= threshold for overlap in overlaps):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_suppression_keeps_what_a_loop_over_the_boxes_keeps(threshold):
    generator = torch.Generator().manual_seed(1)
    start = torch.rand(3, 60, 2, generator=generator)
    corners = torch.cat([start, start + 0.05 + 0.4 * torch.rand(3, 60, 2, generator=generator)], dim=-1)
    labels = torch.randint(0, 2, (3, 60), generator=generator)
    kept = suppress_overlaps(corners, labels, threshold)
    for number in range(3):
        assert kept[number].nonzero().flatten().tolist() == naive_suppression(
            corners[number], labels[number], threshold
        )


def test_suppression_follows_a_chain_of_boxes_to_its_end():
    left = torch.arange(7) * 0.3
    corners = torch.stack([left, torch.zeros(7), left + 1, torch.ones(7)], dim=-1)
    assert suppress_overlaps(corners, torch.zeros(7), 0.5).tolist() == [True, False] * 3 + [True]


def test_iou_agrees_with_hand_values():
    box = torch.tensor([[0.0, 0.0, 4.0, 2.0]])
    others = torch.tensor([[0.0, 0.0, 4.0, 2.0], [2.0, 1.0, 6.0, 3.0], [4.0, 0.0, 8.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert torch.allclose(pairwise_iou(box, others), torch.tensor([[1.0, 2 / 14, 0.0, 0.0]]))
    assert pairwise_iou(others[3:], others[3:]).item() == 0


def test_boxes_come_out_in_pixels_of_the_original_surest_first():
    outputs = output_of([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.6, 1.0]], [[0.6, 0.1], [0.2, 0.9]])
    (result,) = VasoMIMImageProcessorPil().post_process_object_detection(outputs, 0.5, [(50, 200)])
    assert torch.allclose(result["scores"], torch.tensor([0.9, 0.6]))
    assert result["labels"].tolist() == [1, 0]
    assert torch.allclose(result["boxes"], torch.tensor([[100.0, 25, 120, 50], [20, 10, 60, 20]]))


def test_boxes_come_out_as_shares_without_target_sizes():
    (result,) = VasoMIMImageProcessorPil().post_process_object_detection(output_of([[0.1, 0.2, 0.3, 0.4]], [[0.6]]))
    assert torch.allclose(result["boxes"], torch.tensor([[0.1, 0.2, 0.3, 0.4]]))


def test_target_sizes_may_be_a_tensor_as_the_pipeline_passes_it():
    outputs = output_of([[0.1, 0.2, 0.3, 0.4]], [[0.6]])
    (result,) = VasoMIMImageProcessorPil().post_process_object_detection(outputs, 0.5, torch.IntTensor([[50, 200]]))
    assert torch.allclose(result["boxes"], torch.tensor([[20.0, 10, 60, 20]]))


def test_overlapping_boxes_of_a_class_become_one_and_of_two_classes_stay():
    corners = [[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.49]]
    process = VasoMIMImageProcessorPil().post_process_object_detection
    assert process(output_of(corners, [[0.6], [0.7]]))[0]["scores"].tolist() == pytest.approx([0.7])
    assert len(process(output_of(corners, [[0.6, 0.1], [0.1, 0.7]]))[0]["scores"]) == 2
    assert len(process(output_of(corners, [[0.6], [0.7]]), nms_threshold=0.99)[0]["scores"]) == 2


def test_no_more_than_top_k_boxes_come_out_and_they_are_the_surest():
    corners = [[i / 10, 0.0, i / 10 + 0.05, 0.1] for i in range(8)]
    outputs = output_of(corners, [[0.5 + i / 20] for i in range(8)])
    (result,) = VasoMIMImageProcessorPil().post_process_object_detection(outputs, 0.5, top_k=3)
    assert torch.allclose(result["scores"], torch.tensor([0.85, 0.8, 0.75]))


def test_boxes_without_an_area_and_weak_ones_do_not_come_out():
    outputs = output_of([[0.0, 0.1, 0.0, 0.5], [0.1, 0.1, 0.5, 0.5]], [[0.9], [0.4]])
    assert len(VasoMIMImageProcessorPil().post_process_object_detection(outputs, 0.5)[0]["scores"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "`threshold` must be in"),
        ({"nms_threshold": -0.1}, "`nms_threshold` must be in"),
        ({"top_k": 0}, "`top_k` must be .*500, got 0"),
        ({"target_sizes": [(1, 1), (2, 2)]}, "image, got 2 for 1"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VasoMIMImageProcessorPil().post_process_object_detection(
            output_of([[0.1, 0.2, 0.3, 0.4]], [[0.6]]), **arguments
        )


def test_output_of_another_model_is_refused():
    with pytest.raises(ValueError, match="Pass the output of a detection model"):
        VasoMIMImageProcessorPil().post_process_object_detection(ModelOutput(logits=torch.zeros(1, 2, 8, 8)))
