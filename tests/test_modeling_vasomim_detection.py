"""The detection model: where its boxes are, what its locations learn, what it refuses, and that it can learn."""

import warnings

import numpy as np
import pytest
import torch
from miniatures.models import SMALL as SIZES
from miniatures.models import SMALL_HEADS, normalized, numbered_classes
from miniatures.overfitting import OVERFITTED, overfit
from transformers import AutoModelForObjectDetection
from transformers.image_transforms import center_to_corners_format, corners_to_center_format

from vasomim_hf import VasoMIMConfig, VasoMIMForPreTraining, VasoMIMImageProcessorPil
from vasomim_hf.data.synthetic.angiogram import synthetic_angiograms
from vasomim_hf.image_processing_boxes import pairwise_iou
from vasomim_hf.modeling_vasomim_detection import VasoMIMForObjectDetection, locations_of
from vasomim_hf.modeling_vasomim_detection_loss import (
    Assignment,
    AssignmentRule,
    BoxTargets,
    assign_boxes,
    candidate_locations,
    detection_loss,
    generalized_iou,
    pad_box_labels,
    varifocal_loss,
)


SMALL = {**SIZES, **SMALL_HEADS}


def small_config(num_labels: int = 1, **changes: object) -> VasoMIMConfig:
    return VasoMIMConfig(**{**SMALL, **numbered_classes(num_labels, "kind"), **changes})


@pytest.fixture
def model() -> VasoMIMForObjectDetection:
    return VasoMIMForObjectDetection(small_config())


def label(*boxes: tuple[float, ...], classes: list[int] | None = None) -> dict[str, torch.Tensor]:
    """Boxes as centre x, centre y, width and height."""
    ids = classes if classes is not None else [0] * len(boxes)
    return {"class_labels": torch.tensor(ids, dtype=torch.long), "boxes": torch.tensor(boxes).reshape(-1, 4)}


def painted_frames(corners: list[tuple[int, int, int, int]], size: tuple[int, int]):
    """Frames (B, 3, H, W) of noise with a dark box each, and the labels; corners in pixels."""
    generator = torch.Generator().manual_seed(0)
    frames = 1 + 0.05 * torch.randn(len(corners), 1, *size, generator=generator)
    for frame, (left, top, right, bottom) in zip(frames, corners, strict=True):
        frame[:, top:bottom, left:right] -= 2
    shares = torch.tensor(corners, dtype=torch.float32) / torch.tensor([size[1], size[0]] * 2)
    return frames.expand(-1, 3, -1, -1).clone(), [
        label(tuple(box.tolist())) for box in corners_to_center_format(shares)
    ]


def learn(model, frames, labels, steps: int, rate: float = 5e-3) -> float:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = model(frames, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return model(frames, labels=labels).loss.item()


# Shapes and positions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (50, 90), (17, 33)])
@pytest.mark.parametrize("factors", [[2, 1, 0.5], [4, 2], [0.25]])
@pytest.mark.parametrize("stem", [0, 4])
def test_queries_are_the_locations_of_all_levels_and_boxes_are_shares(size, factors, stem):
    config = small_config(3, detection_scale_factors=factors, detection_detail_stem_channels=stem)
    model = VasoMIMForObjectDetection(config).eval()
    rows, columns = (-(-side // 16) for side in size)
    expected = sum(-int(-rows * factor // 1) * -int(-columns * factor // 1) for factor in factors)
    output = model(torch.randn(2, 3, *size))
    assert output.logits.shape == (2, expected, 3) and output.pred_boxes.shape == (2, expected, 4)
    assert output.loss is None and output.loss_dict is None
    corners = center_to_corners_format(output.pred_boxes)
    assert corners.min() >= -1e-6 and corners.max() <= 1 + 1e-6
    assert output.pred_boxes.min() >= 0 and output.pred_boxes.max() <= 1


def test_boxes_stay_in_the_frame_whatever_the_head_says(model):
    torch.nn.init.constant_(model.detection_head.box_regressor.bias, 1e4)
    boxes = model.eval()(torch.randn(1, 3, 64, 48)).pred_boxes
    assert torch.allclose(boxes, torch.tensor([0.5, 0.5, 1.0, 1.0]))


def test_distances_are_to_the_left_the_top_the_right_and_the_bottom(model):
    corners = model.corners(torch.tensor([[10.0, 20.0]]), torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
    assert corners.tolist() == [[[9.0, 18.0, 13.0, 24.0]]]
    assert model.relative_boxes(corners, (40, 20)).tolist() == [[pytest.approx([11 / 20, 21 / 40, 4 / 20, 6 / 40])]]


def test_locations_are_in_the_middle_of_their_cells_row_by_row():
    pyramid = [torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 2)]
    points, strides = locations_of(pyramid, [8, 16])
    fine = [(4, 4), (12, 4), (20, 4), (4, 12), (12, 12), (20, 12)]
    assert points.tolist() == [list(point) for point in [*fine, (8, 8), (24, 8)]]
    assert strides.tolist() == [8] * 6 + [16] * 2


@pytest.mark.parametrize("patch_size", [4, 14])
@pytest.mark.parametrize("stem", [0, 8])
def test_other_patch_sizes_have_their_own_strides(patch_size, stem):
    sizes = {"patch_size": patch_size, "image_size": patch_size * 4, "detection_detail_stem_channels": stem}
    model = VasoMIMForObjectDetection(small_config(**sizes)).eval()
    assert model.pyramid.strides == [patch_size / 2, patch_size, patch_size * 2]
    assert model(torch.randn(1, 3, patch_size * 4, patch_size * 3)).logits.shape[1] == 8 * 6 + 4 * 3 + 2 * 2


@pytest.mark.parametrize("size", [(64, 64), (72, 100)], ids=["square", "indivisible"])
@pytest.mark.parametrize("stem", [0, 8])
def test_a_painted_box_is_found_where_it_is(size, stem):
    boxes = [(8, 12, 30, 40), (36, 30, 60, 52), (20, 4, 56, 20), (5, 40, 25, 60)]
    frames, labels = painted_frames(boxes, size)
    model = VasoMIMForObjectDetection(small_config(detection_detail_stem_channels=stem))
    learn(model, frames, labels, steps=80)
    results = VasoMIMImageProcessorPil().post_process_object_detection(model(frames), 0.3, [size] * len(frames))
    for result, box in zip(results, boxes, strict=True):
        assert pairwise_iou(result["boxes"][:1], torch.tensor([box], dtype=torch.float32)).item() > 0.8


def test_a_cell_of_the_frame_moves_the_locations_near_it_alone():
    config = small_config(num_hidden_layers=1, detection_scale_factors=[2], detection_num_convs=0)
    model = VasoMIMForObjectDetection(config).eval()
    tokens = torch.zeros(1, 1 + 8 * 12, 32)
    changed = tokens.clone()
    changed[0, 1 + 2 * 12 + 9] = torch.randn(32)  # row 2, column 9 of 8 x 12 patches
    frames = torch.zeros(1, 3, 128, 192)
    convolutions = [module for module in model.pyramid.modules() if isinstance(module, torch.nn.GroupNorm)]
    for norm in convolutions:  # it mixes the whole map
        norm.forward = lambda hidden_states: hidden_states
    before, after = (model.pyramid(one, frames)[0] for one in (tokens, changed))
    rows, columns = (before != after).any(dim=1)[0].nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 6, 17, 20)


# Assignment and losses ----------------------------------------------------------------------------------------------


def targets_of(corners, classes=None) -> BoxTargets:
    corners = torch.tensor(corners, dtype=torch.float32)
    return BoxTargets(corners, torch.zeros(corners.shape[:2], dtype=torch.long), corners[..., 2] > corners[..., 0])


def test_generalized_iou_agrees_with_hand_values():
    box = torch.tensor([0.0, 0.0, 4.0, 2.0]).expand(5, 4)
    others = torch.tensor(
        [[0, 0, 4, 2], [2, 1, 6, 3], [4, 0, 8, 2], [8, 0, 12, 2], [1, 0.5, 3, 1.5]], dtype=torch.float32
    )
    expected = [1.0, 2 / 14 - (18 - 14) / 18, 0.0, -(24 - 16) / 24, 2 / 8]
    assert torch.allclose(generalized_iou(box, others), torch.tensor(expected))


def test_generalized_iou_has_a_gradient_where_boxes_do_not_meet():
    box = torch.tensor([0.0, 0.0, 1.0, 1.0], requires_grad=True)
    generalized_iou(box, torch.tensor([5.0, 5.0, 6.0, 6.0])).backward()
    assert box.grad.abs().min() > 0


def test_locations_inside_a_box_may_learn_it():
    locations, strides = locations_of([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)], [8, 16])
    candidates = candidate_locations(locations, strides, targets_of([[[7, 7, 25, 17], [0, 0, 0, 0]]]))
    points = torch.cat([locations, strides[:, None]], dim=1)[candidates[0, 0]].tolist()
    assert points == [[12, 12, 8], [20, 12, 8], [8, 8, 16], [24, 8, 16]]
    assert not candidates[0, 1].any()


@pytest.mark.parametrize("corner", [(9.0, 9.0), (15.0, 15.0), (15.9, 8.1), (0.2, 62.0)])
def test_a_box_between_the_locations_is_learnt_by_the_cell_of_its_centre(corner):
    locations, strides = locations_of([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)], [8, 16])
    box = [corner[0], corner[1], corner[0] + 0.5, corner[1] + 0.5]
    (index,) = candidate_locations(locations, strides, targets_of([[box]]))[0, 0].nonzero().flatten().tolist()
    centre = torch.tensor(corner) + 0.25
    assert strides[index] == 8 and (locations[index] - centre).abs().max() <= 4


def assign_by_loops(scores, ious, candidates, rule: AssignmentRule):
    """The same as `assign_boxes`, image by image, box by box."""
    batch, boxes, locations = scores.shape
    positive, index = torch.zeros(batch, locations, dtype=torch.bool), torch.zeros(batch, locations, dtype=torch.long)
    quality = torch.zeros(batch, locations)
    for b in range(batch):
        alignment = scores[b] ** rule.score_exponent * ious[b] ** rule.iou_exponent
        chosen = []
        for n in range(boxes):
            able = [i for i in range(locations) if candidates[b, n, i]]
            chosen.append(sorted(able, key=lambda i: -alignment[n, i].item())[: rule.num_locations])
        for i in range(locations):
            claims = [n for n in range(boxes) if i in chosen[n]]
            if claims:
                positive[b, i] = True
                index[b, i] = max(claims, key=lambda n: ious[b, n, i].item())
        for n in range(boxes):
            own = [i for i in range(locations) if positive[b, i] and index[b, i] == n]
            if own:
                best = max(alignment[n, i] for i in own)
                for i in own:
                    quality[b, i] = alignment[n, i] / best * max(ious[b, n, j] for j in own)
    return Assignment(positive, index, quality)


@pytest.mark.parametrize(
    "rule", [AssignmentRule(3, 1.0, 6.0), AssignmentRule(40, 0.5, 2.0), AssignmentRule(1, 1.0, 1.0)]
)
def test_assignment_agrees_with_loops_over_boxes_and_locations(rule):
    generator = torch.Generator().manual_seed(3)
    scores, ious = torch.rand(2, 4, 5, 30, generator=generator)
    candidates = torch.rand(4, 5, 30, generator=generator) < 0.4
    candidates[1, 2] = False
    candidates[3] = False
    found, expected = (assign(scores, ious, candidates, rule) for assign in (assign_boxes, assign_by_loops))
    assert torch.equal(found.is_positive, expected.is_positive) and found.is_positive.any()
    assert torch.equal(found.box_index, expected.box_index)
    assert torch.allclose(found.quality, expected.quality, atol=1e-6)


def test_best_location_of_a_box_gets_the_highest_iou_as_quality_however_small_the_alignment():
    ious, scores = torch.tensor([[[1e-3, 2e-3, 0.0]]]), torch.full((1, 1, 3), 1e-3)
    assignment = assign_boxes(scores, ious, torch.ones(1, 1, 3, dtype=torch.bool), AssignmentRule())
    assert torch.allclose(assignment.quality, torch.tensor([[2e-3 / 64, 2e-3, 0.0]]))
    assert assignment.is_positive.all()


def test_varifocal_loss_agrees_with_hand_values():
    logits, quality = torch.tensor([0.0, 0.0, 2.0]), torch.tensor([0.8, 0.0, 0.0])
    loss = varifocal_loss(logits, quality, torch.tensor([True, False, False]))
    sure = torch.tensor(2.0).sigmoid()
    log2 = torch.tensor(2.0).log()
    assert torch.allclose(loss, torch.stack([0.8 * log2, 0.75 * 0.25 * log2, -0.75 * sure**2 * (1 - sure).log()]))


def test_losses_of_a_perfect_prediction_are_near_zero_and_of_a_wrong_class_are_not():
    targets = targets_of([[[10, 10, 30, 20]]])
    assignment = Assignment(
        torch.tensor([[True, False]]), torch.zeros(1, 2, dtype=torch.long), torch.tensor([[1.0, 0]])
    )
    corners = torch.tensor([[[10.0, 10, 30, 20], [0, 0, 5, 5]]])
    logits = torch.tensor([[[12.0, -12.0], [-12.0, -12.0]]])
    assert max(detection_loss(logits, assignment, targets, corners)) < 1e-4
    class_loss, box_loss = detection_loss(logits.flip(-1), assignment, targets, corners + 2)
    assert class_loss > 10 and 0.1 < box_loss < 0.5


def test_padding_of_labels_keeps_boxes_in_pixels_and_marks_what_is_none():
    labels = [label((0.5, 0.5, 0.5, 0.2), (0.1, 0.1, 0.1, 0.1), classes=[2, 1]), label()]
    targets = pad_box_labels(labels, (40, 80), torch.device("cpu"))
    assert targets.is_box.tolist() == [[True, True], [False, False]]
    assert targets.corners[0, 0].tolist() == pytest.approx([20, 16, 60, 24])
    assert targets.class_labels.tolist() == [[2, 1], [0, 0]] and not targets.corners[1].any()


def test_boxes_added_to_fill_up_change_no_loss(model):
    frames = torch.randn(2, 3, 64, 64)
    few, many = label((0.5, 0.5, 0.3, 0.4)), label(*[(0.2 + 0.1 * i, 0.5, 0.2, 0.3) for i in range(6)])
    model.eval()
    losses = model(frames, labels=[few, many]).loss_dict
    pairs = [(frames[:1], few), (frames[1:], many)]
    alone = [(model(frame, labels=[one]), self_weight(model, frame, one)) for frame, one in pairs]
    for name in ("class_loss", "box_loss"):
        weighted = sum(output.loss_dict[name] * max(weight, 1) for output, weight in alone)
        assert torch.allclose(losses[name], weighted / max(sum(weight for _, weight in alone), 1), rtol=1e-4)


def self_weight(model, frame, one) -> float:
    """Sum of the qualities of a single frame, which its losses are divided by."""
    output = model(frame)
    targets = pad_box_labels([one], (64, 64), frame.device)
    locations, strides = locations_of(
        model.pyramid(model.vasomim(frame).last_hidden_state, frame), model.pyramid.strides
    )
    scores = output.logits.sigmoid().transpose(1, 2).expand(-1, len(one["boxes"]), -1)
    # the boxes are cut at the frame, which these tests' boxes do not reach
    _, distances = model.detection_head(model.pyramid(model.vasomim(frame).last_hidden_state, frame))
    ious = pairwise_iou(targets.corners, model.corners(locations, distances * strides[:, None]))
    rule = AssignmentRule()
    return assign_boxes(scores, ious, candidate_locations(locations, strides, targets), rule).quality.sum().item()


# Learning -----------------------------------------------------------------------------------------------------------


def test_four_frames_are_overfitted():
    made = [one for one in synthetic_angiograms(15, seed=5, size=64) if len(one.boxes)][:4]
    # with a margin of three pixels, as people draw boxes; the lesions themselves are two pixels wide
    boxes = [(one.boxes + np.array([-3, -3, 6, 6])).clip(0, 64) for one in made]
    labels = [label(*(((x + w / 2) / 64, (y + h / 2) / 64, w / 64, h / 64) for x, y, w, h in box)) for box in boxes]
    model = VasoMIMForObjectDetection(
        small_config(detection_scale_factors=[4, 2, 1], detection_detail_stem_channels=8)
    )
    frames = normalized(made)
    assert overfit(model.train(), lambda: model(frames, labels=labels).loss, 140, learning_rate=5e-3) < OVERFITTED


def test_classes_are_told_apart():
    boxes = [(8, 12, 30, 40), (36, 30, 60, 52)]
    frames, labels = painted_frames(boxes, (64, 64))
    frames[1] *= -1
    labels[1]["class_labels"] += 1
    model = VasoMIMForObjectDetection(small_config(2))
    learn(model, frames, labels, steps=60)
    results = VasoMIMImageProcessorPil().post_process_object_detection(model(frames), 0.3)
    assert [result["labels"][0].item() for result in results] == [0, 1]


@pytest.mark.parametrize("labels", [[label(), label()], [label(), label((0.5, 0.5, 0.2, 0.2))]], ids=["all", "one"])
def test_images_without_boxes_have_a_finite_loss_and_gradient(model, labels):
    output = model(torch.randn(2, 3, 64, 64), labels=labels)
    output.loss.backward()
    assert output.loss.item() > 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
    if not len(labels[1]["boxes"]):
        assert output.loss_dict["box_loss"].item() == 0


def test_images_without_boxes_teach_that_there_is_nothing(model):
    frames = torch.randn(2, 3, 64, 64)
    before = model(frames).logits.mean().item()
    learn(model, frames, [label(), label()], steps=10)
    assert model(frames).logits.mean().item() < before


def test_gradients_reach_every_parameter():
    model = VasoMIMForObjectDetection(small_config(detection_detail_stem_channels=8))
    model(torch.randn(2, 3, 64, 64), labels=[label((0.5, 0.5, 0.4, 0.4)), label((0.3, 0.6, 0.2, 0.2))]).loss.backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    # the softmax does not see a number added to all keys
    assert [name for name in without if not name.endswith("k_proj.bias")] == []


def test_head_starts_with_a_small_score_and_boxes_of_two_strides(model):
    output = model.eval()(torch.zeros(1, 3, 64, 64))
    assert output.logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.3)
    widths = output.pred_boxes[0, :64].reshape(8, 8, 4)[2:6, 2:6, 2:] * 64
    assert widths.mean().item() == pytest.approx(16, rel=0.2)


def test_convolutions_are_drawn_by_their_whole_kernel(model):
    weight = model.pyramid.levels[0].smooth[0].weight
    bound = (6 / (9 * 16 + 9 * 16)) ** 0.5
    assert 0.95 * bound < weight.abs().max().item() <= bound


def test_evaluation_is_deterministic_and_training_with_drop_path_is_not():
    frames = torch.randn(4, 3, 64, 64)
    model = VasoMIMForObjectDetection(small_config(drop_path_rate=0.5, hidden_dropout_prob=0.1)).eval()
    for name in ("logits", "pred_boxes"):
        assert torch.equal(model(frames)[name], model(frames)[name])
    model.train()
    assert not torch.equal(model(frames).logits, model(frames).logits)


def test_frozen_encoder_gets_no_gradient_and_comes_back_frozen(model, tmp_path):
    model.freeze_encoder()
    model.train().save_pretrained(tmp_path)
    for frozen in (model, VasoMIMForObjectDetection.from_pretrained(tmp_path).train()):
        frozen(torch.randn(1, 3, 64, 64), labels=[label((0.5, 0.5, 0.4, 0.4))]).loss.backward()
        assert all(parameter.grad is None for parameter in frozen.vasomim.parameters())
        trained = [*frozen.pyramid.parameters(), *frozen.detection_head.parameters()]
        assert all(parameter.grad is not None for parameter in trained)


def test_bf16_autocast_agrees_with_fp32_and_keeps_positions_exact(model):
    frames, labels = torch.randn(2, 3, 64, 64), [label((0.5, 0.5, 0.4, 0.4)), label()]
    exact = model(frames, labels=labels)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(frames, labels=labels)
    rough.loss.backward()
    assert rough.loss.dtype == rough.pred_boxes.dtype == torch.float32
    assert torch.allclose(rough.loss, exact.loss, rtol=0.05)
    assert torch.allclose(rough.pred_boxes, exact.pred_boxes, atol=0.02)


def test_model_loaded_in_bf16_takes_float_frames(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = VasoMIMForObjectDetection.from_pretrained(tmp_path, dtype=torch.bfloat16)
    output = loaded(torch.randn(1, 3, 64, 64), labels=[label((0.5, 0.5, 0.4, 0.4))])
    assert output.logits.dtype == torch.bfloat16 and torch.isfinite(output.loss)
    _, distances = loaded.detection_head([torch.randn(1, 16, 4, 4, dtype=torch.bfloat16)])
    assert distances.dtype == output.pred_boxes.dtype == torch.float32


@pytest.mark.parametrize("stem", [0, 8])
def test_saved_model_comes_back_bit_for_bit_through_the_auto_class(stem, tmp_path):
    model = VasoMIMForObjectDetection(small_config(2, detection_detail_stem_channels=stem)).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert type(loaded) is VasoMIMForObjectDetection
    frames = torch.randn(2, 3, 64, 80)
    for name, value in model(frames).items():
        assert torch.equal(value, loaded(frames)[name]), name


def test_encoder_of_a_pretraining_folder_is_taken_over(tmp_path):
    pretrained = VasoMIMForPreTraining(small_config())
    pretrained.save_pretrained(tmp_path)
    model, info = VasoMIMForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and all(not key.startswith("vasomim.") for key in info["missing_keys"])
    for name, value in pretrained.vasomim.state_dict().items():
        assert torch.equal(model.vasomim.state_dict()[name], value), name


def test_step_does_not_wait_for_a_device(model, counted_operations):
    labels = [label((0.5, 0.5, 0.4, 0.4)), label()]
    targets = pad_box_labels(labels, (64, 64), torch.device("cpu"))
    with counted_operations:
        frames = torch.randn(2, 3, 64, 64)
        pyramid = model.pyramid(model.vasomim(frames).last_hidden_state, frames)
        logits, distances = model.detection_head(pyramid)
        locations, strides = locations_of(pyramid, model.pyramid.strides)
        corners = model.corners(locations, distances * strides[:, None])
        candidates = candidate_locations(locations, strides, targets)
        scores = logits.sigmoid().transpose(1, 2).expand(-1, targets.corners.shape[1], -1)
        assignment = assign_boxes(scores, pairwise_iou(targets.corners, corners), candidates, AssignmentRule())
        sum(detection_loss(logits, assignment, targets, corners)).backward()
    assert not counted_operations.waiting


def test_model_compiles_to_one_graph(model):
    frames = torch.randn(1, 3, 64, 64)
    model.eval()
    expected = model(frames)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        found = compiled(frames)
    assert torch.allclose(found.pred_boxes, expected.pred_boxes, atol=1e-6)


def test_hidden_states_and_attentions_are_given_when_asked_for(model):
    model.set_attn_implementation("eager")
    output = model(torch.randn(1, 3, 64, 64), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([label()], "image, got 1 for 2 images"),
        ([label(), {"boxes": torch.zeros(0, 4)}], "image 1 has no 'class_labels'"),
        ([label(), label((0.5, 0.5, 0.1, 0.1), classes=[0, 0])], "image 1 must have `class_labels` of shape"),
        ([label((0.5, 0.5, 0.0, 0.1)), label()], "Image 0 has an invalid box"),
        ([label((0.5, 0.5, -0.1, 0.1)), label()], "Image 0 has an invalid box"),
        ([label((0.5, float("nan"), 0.1, 0.1)), label()], "Image 0 has an invalid box"),
        (
            [label((120.0, 80.0, 30.0, 30.0)), label()],
            "invalid box: \\[120.0, 80.0",
        ),
        (
            [label((0.5, 0.5, 0.1, 0.1), classes=[1]), label()],
            "`class_labels` of image 0 must be in \\[0, 1\\), got 1",
        ),
        ([label((0.5, 0.5, 0.1, 0.1), classes=[-1]), label()], "must be in \\[0, 1\\), got -1"),
    ],
)
def test_labels_that_nothing_can_be_learnt_from_are_refused(model, labels, message):
    with pytest.raises(ValueError, match=message):
        model(torch.randn(2, 3, 64, 64), labels=labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detection_scale_factors": []}, "powers of two"),
        ({"detection_scale_factors": [1, 2]}, "got \\[1, 2\\]"),
        ({"detection_scale_factors": [3, 1]}, "powers of two"),
        ({"detection_channels": 20}, "multiple of 8"),
        ({"detection_assigned_locations": 0}, "`detection_assigned_locations` must be a finite number >= 1"),
        ({"detection_box_loss_weight": -1}, "`detection_box_loss_weight` must be a finite number >= 0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


def test_misspelt_argument_is_refused(model):
    with pytest.raises(TypeError, match="no argument 'boxes'"):
        model(torch.randn(1, 3, 64, 64), boxes=None)
