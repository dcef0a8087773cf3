"""Boxes that go with frames: from COCO annotations to what a detector learns, and from what it says to boxes.

The file travels to the Hub beside the image processor. Corners are left, top, right and bottom.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from transformers.image_transforms import center_to_corners_format
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Keeps the quotient of two boxes without an area at zero.
EPSILON = 1e-9
SHORTEST_SIDE = 1.0  # of a box, in pixels that the model sees
# Boxes of an image that compete in the suppression; the weaker ones cannot be among the best hundred of a sane detector.
MAX_CANDIDATES = 500

Annotation = Mapping[str, Any]


@dataclass(frozen=True)
class FrameGeometry:
    """What happened to a frame on its way to the model; all pairs are (height, width) or (top, left) in pixels.

    Args:
        original (`tuple[int, int]`): Size as read.
        resized (`tuple[int, int]`): Size after resizing.
        shift (`tuple[int, int]`): Down and to the right, by a center crop; negative where the crop cuts.
        cropped (`tuple[int, int]`): Size after the crop.
        output (`tuple[int, int]`): Size after padding at the bottom and right.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    shift: tuple[int, int]
    cropped: tuple[int, int]
    output: tuple[int, int]


def list_annotations(annotations: Annotation | Sequence[Annotation], num_frames: int) -> list[Annotation]:
    """One annotation in COCO form for each frame.

    Args:
        annotations (`dict` or sequence of `dict`): `{"image_id": ..., "annotations": [{"bbox": [x, y, width, height],
            "category_id": ...}]}`, the box in pixels of the frame as it is passed.
        num_frames (`int`): Number of frames.

    Returns:
        `list[dict]`: As many as frames.

    Raises:
        ValueError: If the number or the form does not fit.
    """
    listed = [annotations] if isinstance(annotations, Mapping) else list(annotations)
    if len(listed) != num_frames:
        raise ValueError(f"Expected one annotation for each frame, got {len(listed)} for {num_frames} frames.")
    for number, annotation in enumerate(listed):
        if not isinstance(annotation, Mapping) or "annotations" not in annotation:
            raise ValueError(
                f'Annotation {number} must be {{"image_id": ..., "annotations": [{{"bbox": [x, y, width, height], '
                f'"category_id": ...}}]}}, got {_short(annotation)}.'
            )
    return listed


def labels_of_frames(annotations: Sequence[Annotation], geometries: Sequence[FrameGeometry]) -> list[dict[str, Any]]:
    """What a detector learns from each frame, where boxes went the way of their frames.

    Boxes are cut at the edges of the frame. Those without an area, outside the frame or shorter than a pixel after
    resizing are left out with a warning; those that a center crop cuts to less than a pixel, and crowds (`iscrowd`),
    without one.

    Args:
        annotations (sequence of `dict`): From [`list_annotations`].
        geometries (sequence of `FrameGeometry`): Of the frames.

    Returns:
        `list[dict]`: For each frame `class_labels` of shape `(n,)`, int64; `boxes` of shape `(n, 4)`, float32, centre x,
        centre y, width and height as shares of the frame that the model sees, padding included; `orig_size` and `size`,
        height and width before and after; and `image_id`, where it is a whole number.

    Raises:
        ValueError: If a box is not four finite numbers, or a category not a whole number >= 0.
    """
    labels, left_out = [], []
    for number, (annotation, geometry) in enumerate(zip(annotations, geometries, strict=True)):
        objects = [one for one in annotation["annotations"] if not one.get("iscrowd", 0)]
        boxes = np.array([_bounding_box(number, one) for one in objects], dtype=np.float64).reshape(-1, 4)
        categories = np.array([_category(number, one) for one in objects], dtype=np.int64)
        resized, is_box = _resize_boxes(boxes, geometry)
        left_out += [f"{_rounded(box)} of frame {number}" for box in boxes[~is_box]]
        corners, is_seen = _crop_boxes(resized[is_box], geometry)
        label = {"class_labels": categories[is_box][is_seen], "boxes": _shares(corners[is_seen], geometry.output)}
        labels.append(label | _about(annotation, geometry))
    if left_out:
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        logger.warning(
            f"Boxes left out, since they have no area, lie outside their frame or are shorter than {SHORTEST_SIDE:g} pixel "
            f"after resizing: {', '.join(left_out[:5])}{more}."
        )
    return labels


def _bounding_box(number: int, annotation: Annotation) -> list[float]:
    box = annotation.get("bbox")
    values = np.asarray([] if box is None else box, dtype=np.float64)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise ValueError(
            f"`bbox` must be four finite numbers, left, top, width and height in pixels, got {_short(box)} in the annotation "
            f"of frame {number}. Correct it or leave it out."
        )
    return values.tolist()


def _category(number: int, annotation: Annotation) -> int:
    category = annotation.get("category_id")
    if not isinstance(category, Integral) or int(category) < 0:
        raise ValueError(
            f"`category_id` must be a whole number from 0 on, got {_short(category)} in the annotation of frame {number}. "
            "Number the classes as in the model's `id2label`."
        )
    return int(category)


def _resize_boxes(boxes: np.ndarray, geometry: FrameGeometry) -> tuple[np.ndarray, np.ndarray]:
    """Corners after resizing, cut at the edges, and which of them are still boxes."""
    height, width = geometry.original
    frame = np.array([width, height, width, height], dtype=np.float64)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).clip(0, frame)
    scale = np.array([geometry.resized[1] / width, geometry.resized[0] / height] * 2)
    corners = corners * scale
    return corners, _has_sides(corners) & (boxes[:, 2:] > 0).all(axis=1)


def _crop_boxes(corners: np.ndarray, geometry: FrameGeometry) -> tuple[np.ndarray, np.ndarray]:
    down, right = geometry.shift
    height, width = geometry.cropped
    corners = (corners + np.array([right, down] * 2)).clip(0, np.array([width, height] * 2))
    return corners, _has_sides(corners)


def _has_sides(corners: np.ndarray) -> np.ndarray:
    # a hair less, so that rounding does not decide over a box of exactly that size
    return (corners[:, 2:] - corners[:, :2] >= SHORTEST_SIDE - 1e-6).all(axis=1)


def _shares(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    centres, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    return (np.concatenate([centres, sides], axis=1) / np.array([size[1], size[0]] * 2)).astype(np.float32)


def _about(annotation: Annotation, geometry: FrameGeometry) -> dict[str, np.ndarray]:
    about = {"orig_size": np.array(geometry.original), "size": np.array(geometry.output)}
    image_id = annotation.get("image_id")
    return about | ({"image_id": np.array([image_id])} if isinstance(image_id, Integral) else {})


def _rounded(box: np.ndarray) -> list[float]:
    return [round(float(value), 2) for value in box]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def pairwise_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every box with every other one.

    Args:
        boxes (`torch.Tensor` of shape `(..., num_boxes, 4)`): Corners, in any unit.
        others (`torch.Tensor` of shape `(..., num_others, 4)`): Corners, in the same unit.

    Returns:
        `torch.Tensor` of shape `(..., num_boxes, num_others)`: In [0, 1]; 0 where both are without an area.

    Example:
        >>> pairwise_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]])).item()
        0.3333333432674408
    """
    shared = torch.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    shared = (shared - torch.maximum(boxes[..., :, None, :2], others[..., None, :, :2])).clamp(min=0).prod(dim=-1)
    union = box_areas(boxes)[..., :, None] + box_areas(others)[..., None, :] - shared
    return shared / union.clamp(min=EPSILON)


def box_areas(corners: torch.Tensor) -> torch.Tensor:
    """Areas, of shape `(...)`, of boxes given by their corners, of shape `(..., 4)`; 0 where a side is negative."""
    return (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(dim=-1)


def suppress_overlaps(corners: torch.Tensor, labels: torch.Tensor, nms_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression: of boxes of a class that overlap, the surest stays.

    Args:
        corners (`torch.Tensor` of shape `(..., num_boxes, 4)`): Surest first, in any unit.
        labels (`torch.Tensor` of shape `(..., num_boxes)`): Classes; boxes of different ones do not compete.
        nms_threshold (`float`): IoU above which two boxes are one, in [0, 1].

    Returns:
        `torch.BoolTensor` of shape `(..., num_boxes)`: Which boxes stay.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
        >>> suppress_overlaps(boxes, torch.tensor([0, 0, 0]), nms_threshold=0.5)
        tensor([ True, False,  True])
    """
    same = labels[..., :, None] == labels[..., None, :]
    # [..., i, j]: i is surer than j and overlaps it
    beats = ((pairwise_iou(corners, corners) > nms_threshold) & same).triu(diagonal=1)
    stays = torch.ones_like(labels, dtype=torch.bool)
    # Each round settles at least the next box down the list, commonly all at once: when nothing changes, this is
    # what the loop over boxes would have kept.
    for _ in range(labels.shape[-1]):
        still = ~(beats & stays[..., :, None]).any(dim=-2)
        if torch.equal(still, stays):
            break
        stays = still
    return stays


@dataclass(frozen=True)
class BoxSelection:
    """Which of a detector's boxes are given out.

    Args:
        threshold (`float`, defaults to 0.5): Score above which a box counts, in [0, 1].
        nms_threshold (`float`, defaults to 0.5): IoU above which two boxes of a class are one, in [0, 1].
        top_k (`int`, defaults to 100): Most boxes of an image.

    Raises:
        ValueError: If a number is out of its range.
    """

    threshold: float = 0.5
    nms_threshold: float = 0.5
    top_k: int = 100

    def __post_init__(self) -> None:
        for name in ("threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        if not 1 <= self.top_k <= MAX_CANDIDATES:
            raise ValueError(f"`top_k` must be in 1..{MAX_CANDIDATES}, got {self.top_k}.")


def select_boxes(
    logits: torch.Tensor, pred_boxes: torch.Tensor, frames: torch.Tensor, selection: BoxSelection
) -> list[dict[str, torch.Tensor]]:
    """Boxes of each image, surest first.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_queries, num_labels)`): Of the classes, without a background.
        pred_boxes (`torch.Tensor` of shape `(batch_size, num_queries, 4)`): Centre and size, as shares of the image.
        frames (`torch.Tensor` of shape `(batch_size, 2)`): Height and width of each image in the unit that is wanted.
        selection (`BoxSelection`): Which ones.

    Returns:
        `list[dict]`: `scores` of shape `(n,)`, `labels` of shape `(n,)`, int64, and `boxes` of shape `(n, 4)`, corners.
    """
    num_labels = logits.shape[-1]
    corners = center_to_corners_format(pred_boxes.float())
    scores = logits.float().sigmoid()
    # what the edge of the frame cut to nothing is no box
    scores = torch.where((box_areas(corners) > 0).unsqueeze(-1), scores, -1.0).flatten(1)
    best = scores.topk(min(MAX_CANDIDATES, scores.shape[1]), dim=1)
    labels, queries = best.indices % num_labels, best.indices // num_labels
    corners = corners.gather(1, queries.unsqueeze(-1).expand(-1, -1, 4))
    wanted = best.values > selection.threshold
    wanted &= suppress_overlaps(corners, labels, selection.nms_threshold)
    wanted &= wanted.cumsum(dim=1) <= selection.top_k
    corners = corners * frames.to(corners).flip(1).repeat(1, 2).unsqueeze(1)
    return [
        {"scores": score[one], "labels": label[one], "boxes": box[one]}
        for score, label, box, one in zip(best.values, labels, corners, wanted, strict=True)
    ]


def post_process_boxes(
    outputs: Any, target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None, selection: BoxSelection
) -> list[dict[str, torch.Tensor]]:
    """Boxes of each image in the pixels of its original.

    Args:
        outputs (output with `logits` and `pred_boxes`): As for [`select_boxes`].
        target_sizes (sequence of pairs or `torch.Tensor` of shape `(batch_size, 2)`, *optional*): Height and width of
            each image; `None` gives shares of the image.
        selection (`BoxSelection`): Which boxes.

    Returns:
        `list[dict]`: As from [`select_boxes`].

    Raises:
        ValueError: If the output is not a detector's, or `target_sizes` does not fit.
    """
    logits, pred_boxes = getattr(outputs, "logits", None), getattr(outputs, "pred_boxes", None)
    if logits is None or pred_boxes is None or logits.ndim != 3 or pred_boxes.shape != (*logits.shape[:2], 4):
        raise ValueError(
            "Expected an output with `logits` of shape (batch_size, num_queries, num_labels) and `pred_boxes` of shape "
            f"(batch_size, num_queries, 4), got {type(outputs).__name__}. Pass the output of a detection model."
        )
    if target_sizes is None:
        frames = torch.ones(len(logits), 2)
    elif len(target_sizes) != len(logits):
        raise ValueError(f"Expected one target size for each image, got {len(target_sizes)} for {len(logits)} images.")
    else:
        frames = torch.as_tensor(target_sizes, dtype=torch.float32)
    return select_boxes(logits, pred_boxes, frames, selection)


__all__ = [
    "BoxSelection",
    "FrameGeometry",
    "box_areas",
    "labels_of_frames",
    "list_annotations",
    "pairwise_iou",
    "post_process_boxes",
    "suppress_overlaps",
]
