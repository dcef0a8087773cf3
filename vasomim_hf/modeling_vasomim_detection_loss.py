"""Which locations of a dense detector learn which box, and what they learn: task-aligned assignment and its losses.

Written from the papers: TOOD (arXiv:2108.07755) for the assignment, VarifocalNet (arXiv:2008.13367) and generalised IoU
(arXiv:1902.09630) for the losses. Everything is done for the whole batch at once and waits for no device.

Shapes: B batch size, N most boxes of an image in the batch, L locations, K classes. Corners are left, top, right and
bottom in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.image_transforms import center_to_corners_format

from .image_processing_boxes import EPSILON, box_areas


@dataclass(frozen=True, eq=False)
class BoxTargets:
    """Annotated boxes of a batch, filled up to the image with the most.

    Args:
        corners (`torch.Tensor` of shape `(batch_size, max_boxes, 4)`): In pixels, float32; zeros where there is none.
        class_labels (`torch.LongTensor` of shape `(batch_size, max_boxes)`): In [0, num_labels); 0 where there is none.
        is_box (`torch.BoolTensor` of shape `(batch_size, max_boxes)`): Where there is one.
    """

    corners: torch.Tensor
    class_labels: torch.Tensor
    is_box: torch.Tensor


@dataclass(frozen=True, eq=False)
class Assignment:
    """What each location learns.

    Args:
        is_positive (`torch.BoolTensor` of shape `(batch_size, num_locations)`): Whether it learns a box.
        box_index (`torch.LongTensor` of shape `(batch_size, num_locations)`): Which one; 0 where it learns none.
        quality (`torch.Tensor` of shape `(batch_size, num_locations)`):
            The score it should give, in [0, 1]: its alignment, scaled so that the best location of a box gets the
            highest IoU any of them has. 0 where it learns no box.
    """

    is_positive: torch.Tensor
    box_index: torch.Tensor
    quality: torch.Tensor


@dataclass(frozen=True)
class AssignmentRule:
    """How locations are chosen.

    Args:
        num_locations (`int`): Most locations of a box.
        score_exponent, iou_exponent (`float`): Alignment is score ** score_exponent * IoU ** iou_exponent.
    """

    num_locations: int = 10
    score_exponent: float = 1.0
    iou_exponent: float = 6.0


def check_box_labels(labels: Sequence[Mapping[str, torch.Tensor]], batch_size: int, num_labels: int) -> None:
    """Refuse labels that a detector cannot learn from.

    Args:
        labels (sequence of `dict`): One for each image, see [`pad_box_labels`]. What lies on an accelerator is not
            looked at for its values, since that would wait for it.
        batch_size (`int`): Number of images.
        num_labels (`int`): Number of classes.

    Raises:
        ValueError: If a number, a shape, a box or a class does not fit.
    """
    if len(labels) != batch_size:
        raise ValueError(
            f"`labels` must hold one dictionary for each image, got {len(labels)} for {batch_size} images."
        )
    for number, label in enumerate(labels):
        missing = {"boxes", "class_labels"} - set(label)
        if missing:
            raise ValueError(
                f"`labels` of image {number} has no {sorted(missing)[0]!r}. Expected `boxes` and `class_labels`, as the image "
                "processor makes them from `annotations`."
            )
        boxes, classes = label["boxes"], label["class_labels"]
        if boxes.numel() != 4 * classes.numel() or (boxes.numel() and boxes.shape != (*classes.shape, 4)):
            raise ValueError(
                f"`labels` of image {number} must have `class_labels` of shape (n,) and `boxes` of shape (n, 4), got "
                f"{tuple(classes.shape)} and {tuple(boxes.shape)}."
            )
        if boxes.device.type == "cpu" and boxes.numel() and not torch.compiler.is_compiling():
            _check_values(number, boxes, classes, num_labels)


def _check_values(number: int, boxes: torch.Tensor, classes: torch.Tensor, num_labels: int) -> None:
    sound = torch.isfinite(boxes).all(dim=1) & (boxes[:, 2:] > 0).all(dim=1) & (boxes >= 0).all(dim=1)
    sound = sound & (boxes <= 1 + 1e-4).all(dim=1)
    if not sound.all():
        first = boxes[~sound][0].tolist()
        raise ValueError(
            f"A box of image {number} is degenerate: {[round(value, 4) for value in first]}. Expected centre, width and "
            "height as shares of the image, in [0, 1], width and height above 0. Pass pixels to the image processor as "
            "`annotations`; it converts them and leaves out boxes without an area."
        )
    if classes.min() < 0 or classes.max() >= num_labels:
        raise ValueError(
            f"`class_labels` of image {number} must be in [0, {num_labels}), got {classes.min().item()} to "
            f"{classes.max().item()}. Number the classes from 0, or set `num_labels` in the configuration."
        )


def pad_box_labels(
    labels: Sequence[Mapping[str, torch.Tensor]], size: tuple[int, int], device: torch.device
) -> BoxTargets:
    """Put the boxes of a batch side by side.

    Args:
        labels (sequence of `dict`):
            For each image `boxes` of shape `(n, 4)`, centre x, centre y, width and height as shares of the image, and
            `class_labels` of shape `(n,)`; n may be 0.
        size (`tuple[int, int]`):
            Height and width of the images in pixels.
        device (`torch.device`):
            Where the boxes are wanted.

    Returns:
        `BoxTargets`: With at least one place for a box. A box without an area does not count as one.
    """
    height, width = size
    # one box that is none makes room in a batch without boxes, so that it needs no path of its own
    most = max(1, *(label["boxes"].numel() // 4 for label in labels))
    # put together where they are, so that they travel once
    boxes = torch.zeros(len(labels), most, 4, device=labels[0]["boxes"].device)
    classes = torch.zeros(len(labels), most, dtype=torch.long, device=boxes.device)
    for number, label in enumerate(labels):
        count = label["boxes"].numel() // 4
        boxes[number, :count] = label["boxes"].reshape(-1, 4)
        classes[number, :count] = label["class_labels"].reshape(-1)
    boxes, classes = boxes.to(device), classes.to(device)
    is_box = torch.isfinite(boxes).all(dim=-1) & (boxes[..., 2:] > 0).all(dim=-1)
    boxes = torch.where(is_box.unsqueeze(-1), boxes, 0.0)
    corners = center_to_corners_format(boxes) * boxes.new_tensor([width, height, width, height])
    return BoxTargets(corners, classes, is_box)


def generalized_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Generalised IoU of boxes, pair by pair: IoU minus the share of the enclosing box that neither covers.

    Args:
        boxes, others (`torch.Tensor` of shape `(..., 4)`): Corners, in the same unit.

    Returns:
        `torch.Tensor` of shape `(...)`: In [-1, 1].

    Example:
        >>> generalized_iou(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 4.0, 1.0])).item()
        -0.5
    """
    shared = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    shared = shared.clamp(min=0).prod(dim=-1)
    union = box_areas(boxes) + box_areas(others) - shared
    hull = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    hull = hull.prod(dim=-1)
    return shared / union.clamp(min=EPSILON) - (hull - union) / hull.clamp(min=EPSILON)


def candidate_locations(locations: torch.Tensor, strides: torch.Tensor, targets: BoxTargets) -> torch.Tensor:
    """Locations that may learn a box: those inside it, and the one of the finest level whose cell holds its centre.

    The latter is there for boxes so small that they lie between the locations.

    Args:
        locations (`torch.Tensor` of shape `(num_locations, 2)`): x and y in pixels.
        strides (`torch.Tensor` of shape `(num_locations,)`): Distance between locations of the level, in pixels.
        targets (`BoxTargets`): Annotated boxes.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, max_boxes, num_locations)`.
    """
    lowest, highest = targets.corners[..., None, :2], targets.corners[..., None, 2:]
    is_inside = ((locations > lowest) & (locations < highest)).all(dim=-1)
    from_cell = (lowest + highest) / 2 - locations + strides[:, None] / 2
    holds_centre = ((from_cell >= 0) & (from_cell < strides[:, None])).all(dim=-1) & (strides == strides.min())
    return (is_inside | holds_centre) & targets.is_box.unsqueeze(-1)


def assign_boxes(
    scores: torch.Tensor, ious: torch.Tensor, candidates: torch.Tensor, rule: AssignmentRule
) -> Assignment:
    """Task-aligned assignment: each box goes to the candidates that score it and place it best.

    A location that several boxes chose learns the one it overlaps most.

    Args:
        scores (`torch.Tensor` of shape `(batch_size, max_boxes, num_locations)`): For the class of the box, in [0, 1].
        ious (`torch.Tensor` of shape `(batch_size, max_boxes, num_locations)`): Of the predicted with the true box.
        candidates (`torch.BoolTensor` of shape `(batch_size, max_boxes, num_locations)`): From [`candidate_locations`].
        rule (`AssignmentRule`): How many, and what counts.

    Returns:
        `Assignment`.
    """
    alignment = scores**rule.score_exponent * ious**rule.iou_exponent
    # ranked below every candidate, also below one without overlap
    ranked = torch.where(candidates, alignment, -1.0)
    best = ranked.topk(min(rule.num_locations, ranked.shape[-1]), dim=-1).indices
    chosen = torch.zeros_like(candidates).scatter_(-1, best, True) & candidates
    # shift by one: a location without overlap must not fall to a box that did not choose it
    wanted = torch.where(chosen, ious + 1, 0.0)
    overlap, box_index = wanted.max(dim=1)
    is_positive = overlap > 0
    kept = chosen & (box_index.unsqueeze(1) == torch.arange(wanted.shape[1], device=chosen.device)[:, None])
    alignment, ious = torch.where(kept, alignment, 0.0), torch.where(kept, ious, 0.0)
    highest_alignment, highest_iou = alignment.amax(dim=-1, keepdim=True), ious.amax(dim=-1, keepdim=True)
    # tiny alignments are common at the start (IoU ** 6), so nothing may be added to the divisor
    quality = torch.where(highest_alignment > 0, alignment / highest_alignment, 0.0) * highest_iou
    return Assignment(is_positive, box_index, quality.sum(dim=1))


def varifocal_loss(
    logits: torch.Tensor, quality: torch.Tensor, is_class: torch.Tensor, alpha: float = 0.75, gamma: float = 2.0
) -> torch.Tensor:
    """Varifocal loss: cross entropy with the quality as target, where wrong scores of the background count by their size.

    Args:
        logits (`torch.Tensor` of shape `(...)`): Any real number.
        quality (`torch.Tensor` of shape `(...)`): Wanted score in [0, 1].
        is_class (`torch.BoolTensor` of shape `(...)`): Where there is an object of the class.
        alpha (`float`, defaults to 0.75): Weight of the background.
        gamma (`float`, defaults to 2): Power of the score that weighs the background.

    Returns:
        `torch.Tensor` of shape `(...)`: float32, >= 0.
    """
    logits = logits.float()
    weight = torch.where(is_class, quality, alpha * logits.detach().sigmoid() ** gamma)
    return weight * nn.functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def detection_loss(
    logits: torch.Tensor, assignment: Assignment, targets: BoxTargets, corners: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of classes and of boxes, each divided by the sum of the qualities in the batch (at least 1).

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_locations, num_labels)`): Of the classes.
        assignment (`Assignment`): What each location learns.
        targets (`BoxTargets`): Annotated boxes.
        corners (`torch.Tensor` of shape `(batch_size, num_locations, 4)`): Predicted, in pixels, float32.

    Returns:
        `tuple` of two scalars, float32: varifocal loss, and `1 - GIoU` weighted by quality; both are finite and have a
        gradient where no image has a box.
    """
    quality, index = assignment.quality, assignment.box_index
    classes = targets.class_labels.gather(1, index)
    # written out, since `one_hot` looks at its input
    is_class = classes.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
    is_class = is_class & assignment.is_positive.unsqueeze(-1)
    class_loss = varifocal_loss(logits, quality.unsqueeze(-1) * is_class, is_class).sum()
    wanted = targets.corners.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    box_loss = ((1 - generalized_iou(corners, wanted)) * quality).sum()
    total = quality.sum().clamp(min=1)
    return class_loss / total, box_loss / total


__all__ = [
    "Assignment",
    "AssignmentRule",
    "BoxTargets",
    "assign_boxes",
    "candidate_locations",
    "check_box_labels",
    "detection_loss",
    "generalized_iou",
    "pad_box_labels",
    "varifocal_loss",
]
