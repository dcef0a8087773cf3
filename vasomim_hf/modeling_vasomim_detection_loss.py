"""Target assignment and losses of the dense detector: task-aligned assignment, varifocal loss and GIoU loss.

Implemented from the papers: TOOD (arXiv:2108.07755) for the assignment, VarifocalNet (arXiv:2008.13367) and
generalised IoU (arXiv:1902.09630) for the losses. Everything is batched and free of device synchronisations.

Shapes: B batch size, N maximum number of boxes per image in the batch, L locations, K classes. Corners are left, top,
right and bottom in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.image_transforms import center_to_corners_format

from .image_processing_boxes import EPSILON, box_areas


@dataclass(frozen=True, eq=False)
class BoxTargets:
    """Annotated boxes of a batch, padded to the largest number per image.

    Args:
        corners (`torch.Tensor` of shape `(batch_size, max_boxes, 4)`): In pixels, float32; zeros for padding.
        class_labels (`torch.LongTensor` of shape `(batch_size, max_boxes)`): In [0, num_labels); 0 for padding.
        is_box (`torch.BoolTensor` of shape `(batch_size, max_boxes)`): `False` for padding.
    """

    corners: torch.Tensor
    class_labels: torch.Tensor
    is_box: torch.Tensor


@dataclass(frozen=True, eq=False)
class Assignment:
    """Training target of each location.

    Args:
        is_positive (`torch.BoolTensor` of shape `(batch_size, num_locations)`): Whether a box is assigned to it.
        box_index (`torch.LongTensor` of shape `(batch_size, num_locations)`): Index of that box; 0 for negatives.
        quality (`torch.Tensor` of shape `(batch_size, num_locations)`):
            Target score in [0, 1]: the alignment, scaled so that the maximum per box equals the highest IoU of its
            locations. 0 for negatives.
    """

    is_positive: torch.Tensor
    box_index: torch.Tensor
    quality: torch.Tensor


@dataclass(frozen=True)
class AssignmentRule:
    """Parameters of the assignment.

    Args:
        num_locations (`int`): Maximum number of positive locations per box.
        score_exponent, iou_exponent (`float`): Alignment is score ** score_exponent * IoU ** iou_exponent.
    """

    num_locations: int = 10
    score_exponent: float = 1.0
    iou_exponent: float = 6.0


def check_box_labels(labels: Sequence[Mapping[str, torch.Tensor]], batch_size: int, num_labels: int) -> None:
    """Raise an error for invalid detection labels.

    Args:
        labels (sequence of `dict`): One per image, see [`pad_box_labels`]. Values on an accelerator are not checked,
            because that would force a synchronisation.
        batch_size (`int`): Number of images.
        num_labels (`int`): Number of classes.

    Raises:
        ValueError: If a length, shape, box or class id is invalid.
    """
    if len(labels) != batch_size:
        raise ValueError(f"`labels` must hold one dictionary per image, got {len(labels)} for {batch_size} images.")
    for number, label in enumerate(labels):
        missing = {"boxes", "class_labels"} - set(label)
        if missing:
            raise ValueError(
                f"`labels` of image {number} has no {sorted(missing)[0]!r}. Expected `boxes` and `class_labels`, as "
                "created by the image processor from `annotations`."
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
            f"Image {number} has an invalid box: {[round(value, 4) for value in first]}. Expected centre, width and "
            "height relative to the image, in [0, 1], width and height > 0. Pass boxes in pixels to the image "
            "processor as `annotations`; it converts them and skips boxes with zero area."
        )
    if classes.min() < 0 or classes.max() >= num_labels:
        raise ValueError(
            f"`class_labels` of image {number} must be in [0, {num_labels}), got {classes.min().item()} to "
            f"{classes.max().item()}. Count classes from 0, or set `num_labels` in the configuration."
        )


def pad_box_labels(
    labels: Sequence[Mapping[str, torch.Tensor]], size: tuple[int, int], device: torch.device
) -> BoxTargets:
    """Stack the boxes of a batch into padded tensors.

    Args:
        labels (sequence of `dict`):
            For each image `boxes` of shape `(n, 4)`, centre x, centre y, width and height relative to the image, and
            `class_labels` of shape `(n,)`; n may be 0.
        size (`tuple[int, int]`):
            Height and width of the images in pixels.
        device (`torch.device`):
            Device of the result.

    Returns:
        `BoxTargets`: Padded to at least one box. Boxes with zero area are marked as padding.
    """
    height, width = size
    # at least one padded box, so batches without boxes need no special case
    most = max(1, *(label["boxes"].numel() // 4 for label in labels))
    # assembled on the source device and transferred once
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
    """Generalised IoU, element-wise: IoU minus the fraction of the enclosing box that neither box covers.

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
    """Candidate locations of each box: those inside it, and the finest-level cell that contains its centre.

    The latter covers boxes so small that no location lies inside them.

    Args:
        locations (`torch.Tensor` of shape `(num_locations, 2)`): x and y in pixels.
        strides (`torch.Tensor` of shape `(num_locations,)`): Stride of the level, in pixels.
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
    """Task-aligned assignment: each box takes the candidates with the best combination of score and IoU.

    A location selected by several boxes is assigned to the one it overlaps most.

    Args:
        scores (`torch.Tensor` of shape `(batch_size, max_boxes, num_locations)`): For the class of the box, in [0, 1].
        ious (`torch.Tensor` of shape `(batch_size, max_boxes, num_locations)`): Between predicted and annotated boxes.
        candidates (`torch.BoolTensor` of shape `(batch_size, max_boxes, num_locations)`): From [`candidate_locations`].
        rule (`AssignmentRule`): Number of locations and exponents.

    Returns:
        `Assignment`.
    """
    alignment = scores**rule.score_exponent * ious**rule.iou_exponent
    # below every candidate, including those without overlap
    ranked = torch.where(candidates, alignment, -1.0)
    best = ranked.topk(min(rule.num_locations, ranked.shape[-1]), dim=-1).indices
    chosen = torch.zeros_like(candidates).scatter_(-1, best, True) & candidates
    # + 1 so that a location without overlap is not assigned to a box that did not select it
    wanted = torch.where(chosen, ious + 1, 0.0)
    overlap, box_index = wanted.max(dim=1)
    is_positive = overlap > 0
    kept = chosen & (box_index.unsqueeze(1) == torch.arange(wanted.shape[1], device=chosen.device)[:, None])
    alignment, ious = torch.where(kept, alignment, 0.0), torch.where(kept, ious, 0.0)
    highest_alignment, highest_iou = alignment.amax(dim=-1, keepdim=True), ious.amax(dim=-1, keepdim=True)
    # early in training alignments are tiny (IoU ** 6), so no epsilon in the denominator
    quality = torch.where(highest_alignment > 0, alignment / highest_alignment, 0.0) * highest_iou
    return Assignment(is_positive, box_index, quality.sum(dim=1))


def varifocal_loss(
    logits: torch.Tensor, quality: torch.Tensor, is_class: torch.Tensor, alpha: float = 0.75, gamma: float = 2.0
) -> torch.Tensor:
    """Varifocal loss: cross entropy with the quality as target; negatives are weighted by their predicted score.

    Args:
        logits (`torch.Tensor` of shape `(...)`): Any real number.
        quality (`torch.Tensor` of shape `(...)`): Target score in [0, 1].
        is_class (`torch.BoolTensor` of shape `(...)`): Whether the location has an object of the class.
        alpha (`float`, defaults to 0.75): Weight of negatives.
        gamma (`float`, defaults to 2): Exponent of the predicted score in the weight of negatives.

    Returns:
        `torch.Tensor` of shape `(...)`: float32, >= 0.
    """
    logits = logits.float()
    weight = torch.where(is_class, quality, alpha * logits.detach().sigmoid() ** gamma)
    return weight * nn.functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def detection_loss(
    logits: torch.Tensor, assignment: Assignment, targets: BoxTargets, corners: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classification and box losses, each divided by the sum of qualities in the batch (at least 1).

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_locations, num_labels)`): Predicted logits.
        assignment (`Assignment`): Targets of the locations.
        targets (`BoxTargets`): Annotated boxes.
        corners (`torch.Tensor` of shape `(batch_size, num_locations, 4)`): Predicted boxes in pixels, float32.

    Returns:
        `tuple` of two scalars, float32: varifocal loss, and `1 - GIoU` weighted by quality. Both are finite and
        differentiable for batches without boxes.
    """
    quality, index = assignment.quality, assignment.box_index
    classes = targets.class_labels.gather(1, index)
    # not `one_hot`, which inspects its input and synchronises
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
