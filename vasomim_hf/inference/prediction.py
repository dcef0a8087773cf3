"""Predictions of masks, boxes and classes, with test-time augmentation."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from .sliding_window import SlidingWindow, sliding_window_logits
from .views import IDENTITY, View, undo_on_boxes, undo_on_maps, view_frames


AUTO = "auto"
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class InferenceOptions:
    """Options of inference.

    Args:
        views (`tuple[View, ...]`): Views of test-time augmentation; by default only the original frame.
        window (`SlidingWindow`, *optional*): Sliding window for segmentation; `None` predicts whole frames.
        mixed_precision (`str`): `"no"`, `"bf16"` or `"fp16"`.

    Raises:
        ValueError: If there are no views or the precision is unknown.
    """

    views: tuple[View, ...] = (IDENTITY,)
    window: SlidingWindow | None = None
    mixed_precision: str = "no"

    def __post_init__(self) -> None:
        if not self.views:
            raise ValueError("`views` must have at least one view. Omit it to use only the original frame.")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(
                f"`mixed_precision` must be one of {', '.join(PRECISIONS)}, got {self.mixed_precision!r}."
            )

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """Autocast context for the model."""
        dtype = PRECISIONS[self.mixed_precision]
        return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def resolve_precision(name: str, device: torch.device | None = None) -> str:
    """Precision that `auto` stands for on a device.

    Args:
        name (`str`): `"auto"`, `"no"`, `"bf16"` or `"fp16"`.
        device (`torch.device`, *optional*): Defaults to the accelerator, or else the CPU.

    Returns:
        `str`: `name`, or for `"auto"` `"bf16"` where [`has_fast_bf16`], else `"no"`.

    Raises:
        ValueError: If the precision is unknown.
    """
    if name not in (AUTO, *PRECISIONS):
        raise ValueError(f"`mixed_precision` must be one of {', '.join((AUTO, *PRECISIONS))}, got {name!r}.")
    if name != AUTO:
        return name
    device = device or torch.accelerator.current_accelerator() or torch.device("cpu")
    return "bf16" if has_fast_bf16(device) else "no"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is fast: on any accelerator, and on CPUs with instructions for it.

    Args:
        device (`torch.device`): Device of the model.

    Returns:
        `bool`: Also `True` on non-x86 CPUs, for which torch does not report capabilities.
    """
    if device.type != "cpu":
        return True
    find_capabilities = getattr(torch.cpu, "get_capabilities", None)
    found = {} if find_capabilities is None else find_capabilities()
    return found.get("architecture") != "x86_64" or bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def predict_masks(
    model: nn.Module,
    pixel_values: torch.Tensor,
    target_sizes: Sequence[tuple[int, int]],
    options: InferenceOptions | None = None,
) -> list[torch.Tensor]:
    """Class probabilities of each pixel, averaged over the views.

    Logits are resized bilinearly to the frame before the softmax, as in `post_process_semantic_segmentation`; with one
    view, `argmax` over the classes gives the same result.

    Args:
        model (`nn.Module`): Returns `logits` of shape `(batch_size, num_labels, height, width)`; a single label is
            foreground against background.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalised frames.
        target_sizes (sequence of `tuple[int, int]`): Original height and width of each frame.
        options (`InferenceOptions`, *optional*): Options of inference.

    Returns:
        `list[torch.Tensor]`, each of shape `(num_labels, height, width)`: float32, summing to 1 over the labels; at least
        two labels.

    Raises:
        ValueError: If the model returns non-finite values.
    """
    options = options or InferenceOptions()
    totals: list[Any] = [0] * len(pixel_values)
    for view in options.views:
        logits = undo_on_maps(_mask_logits(model, view_frames(pixel_values, view), options), view)
        for number, size in enumerate(target_sizes):
            totals[number] = totals[number] + _mask_probabilities(logits[number], size)
    return [total / len(options.views) for total in totals]


def predict_boxes(
    model: nn.Module, pixel_values: torch.Tensor, options: InferenceOptions | None = None
) -> ModelOutput:
    """Predict boxes for every view, to be merged by `post_process_object_detection`, which keeps the highest-scoring of
    overlapping ones.

    Args:
        model (`nn.Module`): Returns `logits` of shape `(batch_size, num_queries, num_labels)` and `pred_boxes` of shape
            `(batch_size, num_queries, 4)`.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalised frames.
        options (`InferenceOptions`, *optional*): Options of inference.

    Returns:
        `ModelOutput`: `logits` and `pred_boxes` of shapes `(batch_size, num_views * num_queries, ...)`, float32.

    Raises:
        ValueError: If the model returns non-finite values.
    """
    options = options or InferenceOptions()
    logits, boxes = [], []
    for view in options.views:
        output = _run_model(model, view_frames(pixel_values, view), options)
        logits.append(output.logits.float())
        boxes.append(undo_on_boxes(output.pred_boxes.float(), view))
    return ModelOutput(logits=torch.cat(logits, dim=1), pred_boxes=torch.cat(boxes, dim=1))


def predict_classes(
    model: nn.Module, pixel_values: torch.Tensor, options: InferenceOptions | None = None
) -> torch.Tensor:
    """Class probabilities of each frame, averaged over the views.

    Args:
        model (`nn.Module`): Returns `logits` of shape `(batch_size, num_labels)`.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalised frames.
        options (`InferenceOptions`, *optional*): Options of inference.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels)`: float32, summing to 1.

    Raises:
        ValueError: If the model returns non-finite values.
    """
    options = options or InferenceOptions()
    found = [_run_model(model, view_frames(pixel_values, view), options).logits for view in options.views]
    return torch.stack([logits.float().softmax(dim=1) for logits in found]).mean(dim=0)


def _run_model(model: nn.Module, pixel_values: torch.Tensor, options: InferenceOptions) -> Any:
    with torch.inference_mode(), options.autocast(pixel_values.device):
        output = model(pixel_values=pixel_values)
    if not output.logits.isfinite().all():
        raise ValueError(
            "The model returned values that are not finite (NaN or infinity). Its weights are invalid, or too large "
            f"for `mixed_precision` {options.mixed_precision!r}: try 'no'."
        )
    return output


def _mask_logits(model: nn.Module, pixel_values: torch.Tensor, options: InferenceOptions) -> torch.Tensor:
    if options.window is None:
        return _run_model(model, pixel_values, options).logits.float()
    return sliding_window_logits(lambda windows: _window_logits(model, windows, options), pixel_values, options.window)


def _window_logits(model: nn.Module, windows: torch.Tensor, options: InferenceOptions) -> torch.Tensor:
    """Logits resized to the windows; many models return a lower resolution."""
    logits = _run_model(model, windows, options).logits.float()
    if logits.shape[-2:] == windows.shape[-2:]:
        return logits
    return torch.nn.functional.interpolate(logits, size=windows.shape[-2:], mode="bilinear", align_corners=False)


def _mask_probabilities(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    logits = torch.nn.functional.interpolate(logits[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
    if len(logits) > 1:
        return logits.softmax(dim=0)
    foreground = logits.sigmoid()
    return torch.cat([1 - foreground, foreground])
