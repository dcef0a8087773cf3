"""Bounding boxes: COCO annotations to detection labels, and detector outputs to boxes.

Copied to the Hub together with the image processor. Corners are left, top, right and bottom.
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

# avoids 0 / 0 in the IoU of boxes with zero area
EPSILON = 1e-9
SHORTEST_SIDE = 1.0  # minimum side of a box, in pixels after resizing
# maximum number of boxes per image that enter non-maximum suppression; far more than the 100 boxes returned by default
MAX_CANDIDATES = 500

Annotation = Mapping[str, Any]


@dataclass(frozen=True)
class FrameGeometry:
    """Geometric transformation of a frame by the image processor; pairs are (height, width) or (top, left) in pixels.

    Args:
        original (`tuple[int, int]`): Original size.
        resized (`tuple[int, int]`): Size after resizing.
        shift (`tuple[int, int]`): Offset down and to the right by the center crop; negative where it cuts.
        cropped (`tuple[int, int]`): Size after the crop.
        output (`tuple[int, int]`): Size after padding at the bottom and right.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    shift: tuple[int, int]
    cropped: tuple[int, int]
    output: tuple[int, int]


def list_annotations(annotations: Annotation | Sequence[Annotation], num_frames: int) -> list[Annotation]:
    """Normalise annotations to a list with one COCO annotation per frame.

    Args:
        annotations (`dict` or sequence of `dict`): `{"image_id": ..., "annotations": [{"bbox": [x, y, width, height],
            "category_id": ...}]}`, boxes in pixels of the original frame.
        num_frames (`int`): Number of frames.

    Returns:
        `list[dict]`: One per frame.

    Raises:
        ValueError: If the number or the format is wrong.
    """
    listed = [annotations] if isinstance(annotations, Mapping) else list(annotations)
    if len(listed) != num_frames:
        raise ValueError(f"Expected one annotation per frame, got {len(listed)} for {num_frames} frames.")
    for number, annotation in enumerate(listed):
        if not isinstance(annotation, Mapping) or "annotations" not in annotation:
            raise ValueError(
                f'Annotation {number} must be {{"image_id": ..., "annotations": [{{"bbox": [x, y, width, height], '
                f'"category_id": ...}}]}}, got {_short(annotation)}.'
            )
    return listed


def labels_of_frames(annotations: Sequence[Annotation], geometries: Sequence[FrameGeometry]) -> list[dict[str, Any]]:
    """Convert annotations to detection labels in the coordinates of the processed frames.

    Boxes are clipped to the frame. Boxes that have zero area, lie outside the frame or are shorter than a pixel after
    resizing are skipped with a warning; boxes that a center crop cuts to less than a pixel, and crowds (`iscrowd`),
    are skipped silently.

    Args:
        annotations (sequence of `dict`): From [`list_annotations`].
        geometries (sequence of `FrameGeometry`): One per frame.

    Returns:
        `list[dict]`: For each frame `class_labels` of shape `(n,)`, int64; `boxes` of shape `(n, 4)`, float32, centre
        x, centre y, width and height relative to the processed frame, padding included; `orig_size` and `size`, height
        and width before and after processing; and `image_id`, if it is an integer.

    Raises:
        ValueError: If a box is not four finite numbers, or a category is not an integer >= 0.
    """
    labels, left_out = [], []
    for number, (annotation, geometry) in enumerate(zip(annotations, geometries, strict=True)):
        objects = [one for one in annotation["annotations"] if not one.get("iscrowd", 0)]
        boxes = np.array([_bounding_box(number, one) for one in objects], dtype=np.float64).reshape(-1, 4)
        categories = np.array([_category(number, one) for one in objects], dtype=np.int64)
        resized, is_box = _resize_boxes(boxes, geometry)
        left_out += [f"{_rounded(box)} of frame {number}" for box in boxes[~is_box]]
        corners, is_seen = _crop_boxes(resized[is_box], geometry)
        label = {
            "class_labels": categories[is_box][is_seen],
            "boxes": _relative_boxes(corners[is_seen], geometry.output),
        }
        labels.append(label | _sizes_and_id(annotation, geometry))
    if left_out:
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        logger.warning(
            f"Skipped boxes with zero area, outside their frame or shorter than {SHORTEST_SIDE:g} pixel after "
            f"resizing: {', '.join(left_out[:5])}{more}."
        )
    return labels


def _bounding_box(number: int, annotation: Annotation) -> list[float]:
    box = annotation.get("bbox")
    values = np.asarray([] if box is None else box, dtype=np.float64)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise ValueError(
            f"`bbox` must be four finite numbers, left, top, width and height in pixels, got {_short(box)} in the "
            f"annotation of frame {number}. Correct or remove it."
        )
    return values.tolist()


def _category(number: int, annotation: Annotation) -> int:
    category = annotation.get("category_id")
    if not isinstance(category, Integral) or int(category) < 0:
        raise ValueError(
            f"`category_id` must be an integer >= 0, got {_short(category)} in the annotation of frame {number}. "
            "Number the classes as in the model's `id2label`."
        )
    return int(category)


def _resize_boxes(boxes: np.ndarray, geometry: FrameGeometry) -> tuple[np.ndarray, np.ndarray]:
    """Corners after resizing, clipped to the frame, and whether each box is still valid."""
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
    # tolerance for boxes of exactly the minimum size
    return (corners[:, 2:] - corners[:, :2] >= SHORTEST_SIDE - 1e-6).all(axis=1)


def _relative_boxes(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    centres, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    return (np.concatenate([centres, sides], axis=1) / np.array([size[1], size[0]] * 2)).astype(np.float32)


def _sizes_and_id(annotation: Annotation, geometry: FrameGeometry) -> dict[str, np.ndarray]:
    about = {"orig_size": np.array(geometry.original), "size": np.array(geometry.output)}
    image_id = annotation.get("image_id")
    return about | ({"image_id": np.array([image_id])} if isinstance(image_id, Integral) else {})


def _rounded(box: np.ndarray) -> list[float]:
    return [round(float(value), 2) for value in box]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def pairwise_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Pairwise intersection over union.

    Args:
        boxes (`torch.Tensor` of shape `(..., num_boxes, 4)`): Corners, in any unit.
        others (`torch.Tensor` of shape `(..., num_others, 4)`): Corners, in the same unit.

    Returns:
        `torch.Tensor` of shape `(..., num_boxes, num_others)`: In [0, 1]; 0 if both have zero area.

    Example:
        >>> pairwise_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]])).item()
        0.3333333432674408
    """
    shared = torch.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    shared = (shared - torch.maximum(boxes[..., :, None, :2], others[..., None, :, :2])).clamp(min=0).prod(dim=-1)
    union = box_areas(boxes)[..., :, None] + box_areas(others)[..., None, :] - shared
    return shared / union.clamp(min=EPSILON)


def box_areas(corners: torch.Tensor) -> torch.Tensor:
    """Areas, of shape `(...)`, of boxes given as corners of shape `(..., 4)`; 0 if a side is negative."""
    return (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(dim=-1)


def suppress_overlaps(corners: torch.Tensor, labels: torch.Tensor, nms_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression: of overlapping boxes of a class, the highest-scoring is kept.

    Args:
        corners (`torch.Tensor` of shape `(..., num_boxes, 4)`): Sorted by descending score, in any unit.
        labels (`torch.Tensor` of shape `(..., num_boxes)`): Class ids; suppression is per class.
        nms_threshold (`float`): IoU above which the lower-scoring box is removed, in [0, 1].

    Returns:
        `torch.BoolTensor` of shape `(..., num_boxes)`: `True` for boxes to keep.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
        >>> suppress_overlaps(boxes, torch.tensor([0, 0, 0]), nms_threshold=0.5)
        tensor([ True, False,  True])
    """
    same = labels[..., :, None] == labels[..., None, :]
    # [..., i, j]: i scores higher than j and overlaps it
    beats = ((pairwise_iou(corners, corners) > nms_threshold) & same).triu(diagonal=1)
    stays = torch.ones_like(labels, dtype=torch.bool)
    # Each iteration settles at least the next box in the list, usually all of them. Once nothing changes, the result
    # equals that of the sequential loop over boxes.
    for _ in range(labels.shape[-1]):
        still = ~(beats & stays[..., :, None]).any(dim=-2)
        if torch.equal(still, stays):
            break
        stays = still
    return stays


@dataclass(frozen=True)
class BoxSelection:
    """Criteria for the boxes that a detector returns.

    Args:
        threshold (`float`, defaults to 0.5): Minimum score, exclusive, in [0, 1].
        nms_threshold (`float`, defaults to 0.5): IoU above which two boxes of a class are duplicates, in [0, 1].
        top_k (`int`, defaults to 100): Maximum number of boxes per image.

    Raises:
        ValueError: If a value is out of range.
    """

    threshold: float = 0.5
    nms_threshold: float = 0.5
    top_k: int = 100

    def __post_init__(self) -> None:
        for name in ("threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        if not 1 <= self.top_k <= MAX_CANDIDATES:
            raise ValueError(f"`top_k` must be between 1 and {MAX_CANDIDATES}, got {self.top_k}.")


def select_boxes(
    logits: torch.Tensor, pred_boxes: torch.Tensor, frames: torch.Tensor, selection: BoxSelection
) -> list[dict[str, torch.Tensor]]:
    """Select the boxes of each image, sorted by descending score.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_queries, num_labels)`): Without a background class.
        pred_boxes (`torch.Tensor` of shape `(batch_size, num_queries, 4)`): Centre and size, relative to the image.
        frames (`torch.Tensor` of shape `(batch_size, 2)`): Height and width of each image in the unit of the result.
        selection (`BoxSelection`): Criteria.

    Returns:
        `list[dict]`: `scores` of shape `(n,)`, `labels` of shape `(n,)`, int64, and `boxes` of shape `(n, 4)`, corners.
    """
    num_labels = logits.shape[-1]
    corners = center_to_corners_format(pred_boxes.float())
    scores = logits.float().sigmoid()
    # boxes that clipping reduced to zero area are not returned
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
    """Select boxes and scale them to the pixels of the original images.

    Args:
        outputs (output with `logits` and `pred_boxes`): As for [`select_boxes`].
        target_sizes (sequence of pairs or `torch.Tensor` of shape `(batch_size, 2)`, *optional*): Height and width of
            each image; with `None`, boxes are relative to the image.
        selection (`BoxSelection`): Criteria.

    Returns:
        `list[dict]`: As from [`select_boxes`].

    Raises:
        ValueError: If the output is not that of a detector, or `target_sizes` does not match.
    """
    logits, pred_boxes = getattr(outputs, "logits", None), getattr(outputs, "pred_boxes", None)
    if logits is None or pred_boxes is None or logits.ndim != 3 or pred_boxes.shape != (*logits.shape[:2], 4):
        raise ValueError(
            "Expected an output with `logits` of shape (batch_size, num_queries, num_labels) and `pred_boxes` of "
            f"shape (batch_size, num_queries, 4), got {type(outputs).__name__}. Pass the output of a detection "
            "model."
        )
    if target_sizes is None:
        frames = torch.ones(len(logits), 2)
    elif len(target_sizes) != len(logits):
        raise ValueError(f"Expected one target size per image, got {len(target_sizes)} for {len(logits)} images.")
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
