"""Image processor of VasoMIM: frames of any bit depth to `pixel_values`.

Pixel statistics (mean, standard deviation, scale, size) are only defined here and in the `preprocessor_config.json`
that it writes. Copied to the Hub next to the weights, together with the file for reading images; only needs Pillow. If
torchvision is installed, a second backend does the same on tensors.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import is_torchvision_available, logging

from .configuration_unext import IGNORED_LABEL
from .image_processing_boxes import (
    Annotation,
    BoxSelection,
    FrameGeometry,
    labels_of_frames,
    list_annotations,
    post_process_boxes,
)
from .image_processing_reading import (
    ImageLike,
    ImagesLike,
    MaskRule,
    check_floats,
    check_mask,
    flatten,
    looks_normalised,
    normalised_message,
    read_frames,
    scale_to_8_bit,
    to_grey,
)


logger = logging.get_logger(__name__)

# the input check uses a thumbnail of this size
THUMBNAIL = 128
NEARLY_BLACK = 16.0  # of 255; 12-bit pixels read as 16-bit ones reach 15.9
COLOUR_DIFFERENCE = 2.0  # of 255, mean absolute difference between channels
# Fraction of pixels at 255. None of 600 real frames (ARCADE) exceeds it; all of 200 with 10 or 12 bits clipped to 8
# do.
SATURATED_SHARE = 0.1
INVERTED_SKEWNESS = 0.2

# completes warnings that start with "Frames 3, 7 of 40 look"
SUSPICIONS = {
    "coloured": "with channels that differ, while angiograms are grey and the model expects one channel repeated. If the "
    "axis of 3 or 4 is time, pass the cine as (T, H, W, 1) or as a list of frames.",
    "saturated": "with more than a tenth of the pixels at the top of the range. Check how it was read or windowed; "
    "pipelines and conversion to RGB clip images deeper than 8 bits: convert these to 8 bits with `scale_to_8_bit` "
    "first.",
    "constant": "with nothing to see. Check how it was read or windowed.",
    "nearly black": "with no pixel brighter than a sixteenth of the range. Check how it was read; for images deeper than "
    "8 bits, pass the true depth as `bits_stored`.",
    "inverted": "with bright vessels where dark ones are expected. Pass the inverse (DICOM: MONOCHROME1), or "
    "`do_check_input=False` if it is right.",
}
BINARY_MASK = (
    "A segmentation map holds 0 and 255 only; ids are not changed, and 255 is commonly the id that a loss ignores. "
    "Pass `mask > 0` if it is a binary mask."
)


def polarity_skewness(thumbnail: np.ndarray) -> float | None:
    """Skewness of fine detail: negative if thin bright lines dominate, positive if thin dark lines do.

    The thumbnail is stretched to 0..255; detail is the difference to a 5 x 5 box blur. The margin and areas around almost
    black or white pixels are excluded, because the edge of a collimator outweighs all vessels. Inverting the frame inverts
    the sign, so one threshold suffices.

    Measured at the threshold of -0.2 on real coronary angiograms of 512 x 512 (ARCADE): false alarms on 0 of 40 lossless
    frames and 1 of 200 JPEG frames (5 of all 2,400, 0.2 %); of the same frames inverted, 38 of 40 and 191 of 200 are
    detected (2,306 of 2,400, 96 %).

    Args:
        thumbnail (`np.ndarray` of shape `(128, 128)`): Grey frame, float, any range, downscaled by area averaging.

    Returns:
        `float` or `None`: Skewness of (blurred - frame), dimensionless; `None` if too few pixels remain.
    """
    lowest, highest = thumbnail.min(), thumbnail.max()
    stretched = np.rint((thumbnail - lowest) * (255 / max(highest - lowest, 1e-6))).astype(np.uint8)
    margin = THUMBNAIL // 16
    extreme = ((stretched < 24) | (stretched > 231)).astype(np.uint8) * np.uint8(255)
    judged = np.asarray(Image.fromarray(extreme).filter(ImageFilter.BoxBlur(4))) == 0
    judged = judged[margin:-margin, margin:-margin]
    blurred = np.asarray(Image.fromarray(stretched).filter(ImageFilter.BoxBlur(2))).astype(np.float32)
    detail = (blurred - stretched)[margin:-margin, margin:-margin][judged]
    if detail.size < THUMBNAIL * THUMBNAIL // 16:
        return None
    detail -= detail.mean()
    squared = detail * detail
    variance = float(squared.mean())
    # not `detail**3`, which makes the function five times slower
    return float(np.mean(squared * detail)) / variance**1.5 if variance > 0 else None


def _suspicions(frame: np.ndarray) -> list[str]:
    """Suspicious properties of a frame (C, H, W) in 0..255, as keys of `SUSPICIONS`."""
    sample = frame[:3, ::8, ::8].astype(np.float32)
    found = ["coloured"] if np.abs(sample - sample[:1]).mean(axis=(1, 2)).max() > COLOUR_DIFFERENCE else []
    if frame.min() == frame.max():
        return [*found, "saturated" if frame.max() >= 255 else "constant"]
    plane = Image.fromarray(np.ascontiguousarray(frame[len(frame) // 2]))
    thumbnail = np.asarray(plane.resize((THUMBNAIL, THUMBNAIL), PILImageResampling.BOX)).astype(np.float32)
    if thumbnail.max() < NEARLY_BLACK:
        return [*found, "nearly black"]
    skewness = polarity_skewness(thumbnail)
    if skewness is not None and skewness < -INVERTED_SKEWNESS:
        return [*found, "inverted"]
    return [*found, "saturated"] if (sample[0] >= 255).mean() > SATURATED_SHARE else found


def _check_frames(frames: list[np.ndarray]) -> None:
    """Warn about suspicious frames in every call: the next call has other frames."""
    suspects: dict[str, list[int]] = {}
    for number, frame in enumerate(frames):
        for suspicion in _suspicions(frame):
            suspects.setdefault(suspicion, []).append(number)
    for suspicion, numbers in suspects.items():
        logger.warning(f"{_who_looks(numbers, len(frames))} {suspicion}, {SUSPICIONS[suspicion]}")


def _who_looks(numbers: list[int], total: int) -> str:
    """Subject and verb, such as "Frames 3, 7-9 of 40 look", counted from 0."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    named = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    return f"Frames {named} of {total} look" if len(numbers) > 1 else f"Frame {named} of {total} looks"


def _refuse_normalised(items: list[np.ndarray]) -> None:
    """Reject negative floats, naming all such frames of a call; items are (T, C, H, W)."""
    suspects = [looks_normalised(item) for item in items]
    if any(suspects):
        verdicts = [
            is_suspect and bool(frame.min() < 0)
            for item, is_suspect in zip(items, suspects, strict=True)
            for frame in item
        ]
        numbers = [number for number, verdict in enumerate(verdicts) if verdict]
        first = items[suspects.index(True)]
        raise ValueError(normalised_message(_who_looks(numbers, len(verdicts)), first))


def _each(function: Callable[[Any], np.ndarray], items: list[Any]) -> list[np.ndarray]:
    """Apply a function to all images of a call; with several, its errors name the image."""
    results = []
    for number, item in enumerate(items):
        try:
            results.append(function(item))
        except ValueError as error:
            if len(items) == 1:
                raise
            raise ValueError(f"Image {number} of {len(items)}: {error}") from error
    return results


def _to_ids(frames: np.ndarray) -> np.ndarray:
    """Label maps (T, C, H, W) to ids (T, H, W), int32; a grey image stored as RGB counts as one channel."""
    ids = frames[:, 0]
    if (frames[:, 1:3] != frames[:, :1]).any():
        raise ValueError(
            f"A segmentation map must have one channel of ids, got {frames.shape[1]} channels that differ. "
            "Translate the colours into ids first."
        )
    whole = ids.dtype.kind in "bui" or (ids.dtype.kind == "f" and bool(np.all(np.mod(ids, 1) == 0)))
    if not whole or int(ids.max()) >= 2**31 or int(ids.min()) < -(2**31):
        raise ValueError(
            f"A segmentation map must hold integers that fit in 32 bits, got {ids.dtype}. Round or renumber it first."
        )
    return ids.astype(np.int32)


def _is_binary_mask(ids: np.ndarray) -> bool:
    return ids.max() == IGNORED_LABEL and bool(((ids == 0) | (ids == IGNORED_LABEL)).all())


def _to_vesselness(frames: np.ndarray) -> np.ndarray:
    """Vesselness maps (T, C, H, W) to (T, H, W), float32 in [0, 1]; integers above 1 are treated as 0..255."""
    values = frames[:, 0].astype(np.float32)
    if frames.dtype.kind in "iu" and values.max() > 1:
        values = values / 255
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"Vesselness must be in [0, 1], or 0..255 as integers, got {frames.dtype} from {frames.min()} to "
            f"{frames.max()}. Pass the map itself, not a normalised image."
        )
    return values


def _output_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """Height and width after resizing, as computed by the backends of transformers."""
    if size.shortest_edge and size.longest_edge:
        return get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge)
    if size.shortest_edge:
        short, long = sorted((height, width))
        scaled = int(size.shortest_edge * long / short)
        return (size.shortest_edge, scaled) if height <= width else (scaled, size.shortest_edge)
    if size.height and size.width:
        return size.height, size.width
    raise ValueError(
        f"`size` must hold `height` and `width`, or `shortest_edge`, got {dict(size)}. Pass one of these."
    )


def _resize_plane(plane: np.ndarray, size: SizeDict, resample: int) -> np.ndarray:
    """Resize (H, W) or (H, W, 3) of a dtype that Pillow supports: uint8, int32 or float32."""
    height, width = _output_size(*plane.shape[:2], size)
    if plane.shape[:2] == (height, width):
        return plane
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), resample))


def _resize_frame(frame: np.ndarray, size: SizeDict, resample: int) -> np.ndarray:
    """Resize (C, H, W): 8-bit colour at once, others channel by channel, with equal results."""
    if len(frame) == 3 and frame.dtype == np.uint8:
        return np.moveaxis(_resize_plane(np.moveaxis(frame, 0, -1), size, resample), -1, 0)
    return np.stack([_resize_plane(plane, size, resample) for plane in frame])


class VasoMIMImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    bits_stored (`int`, *optional*, defaults to `self.bits_stored`):
        Number of bits used per pixel for images with more than 8 bits: see `scale_to_8_bit`. `None` infers it for each
        array or file, with a warning.
    do_check_input (`bool`, *optional*, defaults to `self.do_check_input`):
        Whether to check the input, warn about suspicious frames and reject input that looks normalised.
    do_convert_grayscale (`bool`, *optional*, defaults to `self.do_convert_grayscale`):
        Whether colour is converted to grey by `to_grey`, as in pre-training and evaluation. `False` keeps colour, for
        models of natural images.
    num_labels (`int`, *optional*, defaults to `self.num_labels`):
        Number of classes of the segmentation maps. If set, maps are validated like mask files (`data.reading.masks`):
        with two classes, 0 is background and 1 or 255 foreground. `None` accepts any ids.
    ignore_white (`bool`, *optional*, defaults to `self.ignore_white`):
        Whether 255 in two-class maps marks pixels to ignore.
    """

    bits_stored: int | None
    do_check_input: bool | None
    do_convert_grayscale: bool | None
    num_labels: int | None
    ignore_white: bool | None


class _VasoMIMImageProcessing:
    """Shared by both backends: reading, input checks, maps and post-processing."""

    valid_kwargs = VasoMIMImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    do_convert_grayscale = True
    num_labels = None
    ignore_white = False
    bits_stored = None
    do_check_input = True
    model_input_names = ["pixel_values"]

    def preprocess(
        self,
        images: ImagesLike,
        segmentation_maps: ImagesLike | None = None,
        vesselness: ImagesLike | None = None,
        annotations: Annotation | list[Annotation] | None = None,
        **kwargs: Unpack[VasoMIMImageProcessorKwargs],
    ) -> BatchFeature:
        """Prepare frames, and their maps or boxes, for the model.

        Args:
            images (PIL image, `np.ndarray`, `torch.Tensor`, local path, or lists of these, nested or not):
                Frames. Arrays may be (H, W), (C, H, W), (H, W, C), (T, H, W), (T, C, H, W) or (T, H, W, C) with 1, 3
                or 4 channels C and T frames of a cine; a multi-page file is a cine. All frames are returned in one
                flat batch, in order. For three axes, the first matching rule applies: 1, 3 or 4 on the first axis are
                channels; 1, 3 or 4 on the last axis are channels; otherwise the first axis is time. Pass a cine of 3
                frames as (T, H, W, 1) or as a list; `input_data_format` sets the channel axis explicitly.
            segmentation_maps (as `images`, *optional*):
                One id map per frame, of the size of the frame. (T, H, W) is T maps, also for T = 3. For palette
                images, the palette indices are used.
            vesselness (as `images`, *optional*):
                One vesselness map per frame, of the size of the frame: floats in [0, 1], or integers 0..255.
            annotations (`dict` or list of these, *optional*):
                One per frame, in COCO format: `{"image_id": ..., "annotations": [{"bbox": [x, y, width, height],
                "category_id": ...}]}`, boxes in pixels of the frame, categories from 0. Cannot be combined with
                `segmentation_maps`, because both become `labels`.
            kwargs:
                Settings of the processor for this call only.

        Returns:
            `BatchFeature`: `pixel_values` of shape `(batch_size, 3, height, width)`, float32, normalised; with maps
            `labels` of shape `(batch_size, height, width)`, int64, ids unchanged (nearest neighbour), and `vesselness`
            of shape `(batch_size, 1, height, width)`, float32 in [0, 1] (nearest neighbour). Lists of arrays without
            `return_tensors`. With annotations, `labels` is a list of one dictionary per frame, see
            [`labels_of_frames`], which also describes clipped and empty boxes.

        Raises:
            TypeError: If an item is not an image.
            ValueError: If an item is invalid: pixels (see `scale_to_8_bit`), axes or channels, frames below 2 x 2 pixels, no
                frames, maps that do not match the frames in number or size, annotations that are not in COCO format.
        """
        return super().preprocess(images, segmentation_maps, vesselness, annotations, **kwargs)

    def _preprocess_image_like_inputs(
        self,
        images: ImagesLike,
        segmentation_maps: ImagesLike | None = None,
        vesselness: ImagesLike | None = None,
        annotations: Annotation | list[Annotation] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        if annotations is not None and segmentation_maps is not None:
            raise ValueError("Give one of `segmentation_maps` and `annotations`, got both: each becomes `labels`.")
        frames = self._read_frames(images, kwargs)
        if kwargs["do_check_input"] and kwargs["do_rescale"]:
            _check_frames(frames)
        if kwargs["do_convert_grayscale"]:
            frames = [to_grey(frame, axis=0)[None] if len(frame) > 1 else frame for frame in frames]
        data = {"pixel_values": self._preprocess(frames, **kwargs)}
        targets = [pixels.shape[-2:] for pixels in data["pixel_values"]]
        if segmentation_maps is not None:
            maps = [self._ids(number, item, kwargs) for number, item in enumerate(flatten(segmentation_maps))]
            planes = self._follow_frames("segmentation_maps", maps, frames, kwargs)
            data["labels"] = [_pad(*pair, np.int64(IGNORED_LABEL)) for pair in zip(planes, targets, strict=True)]
        if vesselness is not None:
            maps = [_to_vesselness(read_frames(item, keep_ids=True)) for item in flatten(vesselness)]
            planes = self._follow_frames("vesselness", maps, frames, kwargs)
            data["vesselness"] = [_pad(*pair, np.float32(0))[None] for pair in zip(planes, targets, strict=True)]
        features = BatchFeature(data=data, tensor_type=kwargs["return_tensors"])
        if annotations is not None:
            geometries = [self._geometry(*pair, kwargs) for pair in zip(frames, targets, strict=True)]
            labels = labels_of_frames(list_annotations(annotations, len(frames)), geometries)
            features["labels"] = [BatchFeature(label, tensor_type=kwargs["return_tensors"]) for label in labels]
        return features

    def _ids(self, number: int, item: ImageLike, options: dict[str, Any]) -> np.ndarray:
        """Ids of one map, (T, H, W), int32, validated as a mask if the number of classes is set."""
        ids = _to_ids(read_frames(item, keep_ids=True))
        if options["num_labels"] is not None:
            rule = MaskRule(options["num_labels"], bool(options["ignore_white"]))
            return check_mask(ids, f"number {number}", rule).astype(np.int32)
        if options["do_check_input"] and _is_binary_mask(ids):
            logger.warning_once(BINARY_MASK)
        return ids

    def _geometry(self, frame: np.ndarray, output: tuple[int, int], options: dict[str, Any]) -> FrameGeometry:
        original = resized = cropped = (frame.shape[-2], frame.shape[-1])
        if options["do_resize"]:
            resized = cropped = _output_size(*original, options["size"])
        shift = (0, 0)
        if options["do_center_crop"]:
            cropped = (options["crop_size"].height, options["crop_size"].width)
            shift = (self._crop_shift(resized[0], cropped[0]), self._crop_shift(resized[1], cropped[1]))
        return FrameGeometry(original, resized, shift, cropped, (int(output[0]), int(output[1])))

    def _crop_shift(self, side: int, cropped: int) -> int:
        """Offset of the center crop in pixels; for smaller frames, of the border it adds."""
        return -((side - cropped) // 2)

    def _read_frames(self, images: ImagesLike, options: dict[str, Any]) -> list[np.ndarray]:
        """All frames of a call, each (C, H, W), `uint8` or `float32` in 0..255."""
        items = list(flatten(images))
        if not items:
            raise ValueError("Expected at least one image, got an empty list. Pass a frame, a cine or a list of them.")
        read = partial(read_frames, data_format=options["input_data_format"], bits_stored=options["bits_stored"])
        arrays = _each(read, items)
        if options["do_check_input"] and (options["do_rescale"] or options["do_normalize"]):
            _refuse_normalised(arrays)
        scaled = _each(partial(self._scale, options=options), arrays)
        return [frame for item in scaled for frame in (item[:, :3] if options["do_convert_rgb"] else item)]

    def _scale(self, item: np.ndarray, options: dict[str, Any]) -> np.ndarray:
        if item.dtype.kind == "f" and not options["do_rescale"]:
            # floats are already scaled by the caller, as in all image processors of transformers
            check_floats(item, may_be_negative=not (options["do_normalize"] and options["do_check_input"]))
            return item.astype(np.float32, copy=False)
        return scale_to_8_bit(item, options["bits_stored"], bool(options["do_check_input"]))

    def _follow_frames(
        self, name: str, maps: list[np.ndarray], frames: list[np.ndarray], options: dict[str, Any]
    ) -> list[np.ndarray]:
        """Resize and crop maps like their frames, with nearest-neighbour interpolation."""
        planes = [plane for item in maps for plane in item]
        if len(planes) != len(frames):
            raise ValueError(
                f"Expected one map for each frame, got {len(planes)} in `{name}` for {len(frames)} frames."
            )
        for plane, frame in zip(planes, frames, strict=True):
            if plane.shape != frame.shape[-2:]:
                raise ValueError(
                    f"A map of `{name}` has size {plane.shape}, its frame {frame.shape[-2:]}. "
                    "Pass maps at the size of the frames, before either is resized."
                )
        if options["do_resize"]:
            planes = [_resize_plane(plane, options["size"], PILImageResampling.NEAREST) for plane in planes]
        if options["do_center_crop"]:
            planes = [self._crop_plane(plane, options["crop_size"]) for plane in planes]
        return planes

    def _output_channels(self, frames: list[np.ndarray], options: dict[str, Any]) -> list[int]:
        channels = [3 if options["do_convert_rgb"] else len(frame) for frame in frames]
        for name in ("image_mean", "image_std"):
            value = options[name]
            if options["do_normalize"] and not isinstance(value, float | int) and {len(value)} != set(channels):
                raise ValueError(
                    f"`{name}` has {len(value)} values for frames of {sorted(set(channels))} channels. Pass one "
                    "value for each channel, or `do_convert_rgb=True` to have grey frames repeated."
                )
        return channels

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
        threshold: float = 0.5,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Convert logits to an id map per image.

        Args:
            outputs (output with `logits`, or the logits):
                `logits` of shape `(batch_size, num_labels, height, width)`. One logit is vessel against background.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(batch_size, 2)`, *optional*):
                (height, width) of each map; logits are resized to it bilinearly before thresholding.
            return_segmentation_scores (`bool`, *optional*, defaults to `False`):
                Whether to return the resized logits as well.
            threshold (`float`, *optional*, defaults to 0.5):
                Probability in (0, 1) above which a pixel gets id 1; with more than two labels the most probable one is
                used.

        Returns:
            `list[torch.Tensor]`: Maps of shape `(height, width)`, int64; or a list of
            `SemanticSegmentationPostProcessorOutput` with `segmentation` and `segmentation_scores`, the latter of shape
            `(num_labels, height, width)`.

        Raises:
            ValueError: If the logits do not have four axes, or `target_sizes` or `threshold` is invalid.

        Example:
            >>> logits = torch.tensor([[[[-1.0, 3.0]]]])
            >>> VasoMIMImageProcessorPil().post_process_semantic_segmentation(logits)
            [tensor([[0, 1]])]
        """
        logits = getattr(outputs, "logits", outputs)
        if logits.ndim != 4:
            raise ValueError(
                f"Expected logits of shape (batch_size, num_labels, height, width), got {tuple(logits.shape)}. "
                "Pass the output of a segmentation model."
            )
        if not 0 < threshold < 1:
            raise ValueError(f"`threshold` must be in (0, 1), got {threshold}. Pass a probability.")
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(
                f"Expected one target size for each image, got {len(target_sizes)} for {len(logits)} images."
            )
        scores = list(logits)
        if target_sizes is not None:
            sizes = [(int(height), int(width)) for height, width in target_sizes]
            scores = [_resize_scores(score, size) for score, size in zip(scores, sizes, strict=True)]
        segmentations = [_decide(score, threshold) for score in scores]
        if not return_segmentation_scores:
            return segmentations
        return [
            SemanticSegmentationPostProcessorOutput(data={"segmentation": ids, "segmentation_scores": score})
            for ids, score in zip(segmentations, scores, strict=True)
        ]

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        top_k: int = 100,
        nms_threshold: float = 0.5,
    ) -> list[dict[str, torch.Tensor]]:
        """Convert the output of a detection model to boxes, with non-maximum suppression per class.

        Args:
            outputs (output with `logits` and `pred_boxes`):
                Logits of shape `(batch_size, num_queries, num_labels)` and boxes of shape `(batch_size, num_queries, 4)`,
                centre x, centre y, width and height relative to the frame.
            threshold (`float`, *optional*, defaults to 0.5):
                Minimum score, exclusive, in [0, 1].
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(batch_size, 2)`, *optional*):
                Original (height, width) of each image. With `None`, boxes are relative to the frame. For cropped or
                padded frames, boxes refer to the cropped or padded frame.
            top_k (`int`, *optional*, defaults to 100):
                Maximum number of boxes per image, at most 500.
            nms_threshold (`float`, *optional*, defaults to 0.5):
                IoU in [0, 1] above which the lower-scoring of two boxes of a class is removed.

        Returns:
            `list[dict[str, torch.Tensor]]`: For each image `scores` of shape `(n,)`, in descending order, `labels` of
            shape `(n,)`, int64, and `boxes` of shape `(n, 4)`, left, top, right and bottom.

        Raises:
            ValueError: If the output is not that of a detector, or a value is invalid.
        """
        return post_process_boxes(outputs, target_sizes, BoxSelection(threshold, nms_threshold, top_k))


def _pad(plane: np.ndarray, target: tuple[int, int], fill: np.number) -> np.ndarray:
    """Pad at the bottom and right to the target size; returns a copy in the dtype of `fill`."""
    padded = np.full(target, fill)
    padded[: plane.shape[0], : plane.shape[1]] = plane
    return padded


def _resize_scores(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]


def _decide(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    if len(scores) > 2:
        return scores.argmax(dim=0)
    # compares logits instead of probabilities, so that 0.5 equals the argmax exactly
    margin = scores[0] if len(scores) == 1 else scores[1] - scores[0]
    return (margin > math.log(threshold / (1 - threshold))).long()


def _standardize(frame: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Rescale and normalise (1 or C, H, W) to (C, H, W) float32, with a table (C, 256) for the values 0..255."""
    if frame.dtype != np.uint8:
        offset = table[:, :1, None]
        return frame * ((table[:, 255:, None] - offset) / np.float32(255)) + offset
    if len(frame) == 1:
        return table.take(frame[0], axis=1)
    return np.stack([row.take(plane) for row, plane in zip(table, frame, strict=True)])


class VasoMIMImageProcessorPil(_VasoMIMImageProcessing, PilBackend):
    r"""Angiogram frames to normalised pixel values, with Pillow and numpy only.

    Each frame is resized (bicubic, in its own dtype), scaled to [0, 1] and normalised. 8-bit frames give exactly the same
    values as the ViT image processor of transformers with the same settings; a grey frame is resized once and repeated
    after normalisation, which gives the same values as converting to RGB first. Frames with more than 8 bits are scaled to
    0..255 as floats without rounding, so they also keep the overshoot of the bicubic filter that 8-bit pixels clip. An
    alpha channel is dropped.

    The input check (`do_check_input`) raises an error for input that is certainly wrong (floats that look normalised), and
    warns in each call about frames that look constant, saturated, nearly black, coloured or inverted, by their index in the
    batch. Polarity is determined from the skewness of fine detail: 1 false alarm on 200 real frames, 191 of the same 200
    detected when inverted (see `polarity_skewness`). It warns once per process about an assumed bit depth, floats in [0, 1]
    and binary masks of 255. With `do_rescale=False` the range is unknown, and only errors remain. Files that Pillow reads
    incorrectly are always rejected: white stored as 0 above 8 bits, and 16-bit colour whose upper 8 bits do not contain the
    values.

    Accepts the settings of every image processor of transformers (defaults: 224 x 224, bicubic, 1/255, ImageNet
    statistics, RGB) and those of `VasoMIMImageProcessorKwargs`.

    Example:
        >>> image_processor = VasoMIMImageProcessorPil()
        >>> cine = np.random.default_rng(0).integers(0, 256, (5, 64, 48), dtype=np.uint8)
        >>> image_processor(cine, return_tensors="pt").pixel_values.shape
        torch.Size([5, 3, 224, 224])
    """

    def _preprocess(self, frames: list[np.ndarray], **options: Any) -> list[np.ndarray]:
        channels = self._output_channels(frames, options)
        table = self._table(max(channels), options)
        pixels = []
        for frame, count in zip(frames, channels, strict=True):
            if options["do_resize"]:
                frame = _resize_frame(frame, options["size"], options["resample"])
            if options["do_center_crop"]:
                frame = self.center_crop(frame, options["crop_size"])
            pixels.append(_standardize(frame, table[:count]))
        return self.pad(pixels, pad_size=options["pad_size"]) if options["do_pad"] else pixels

    def _table(self, channels: int, options: dict[str, Any]) -> np.ndarray:
        """Values of transformers' own functions for 0..255: with this lookup table, 8-bit frames match them
        exactly."""
        values = np.tile(np.arange(256, dtype=np.uint8), (channels, 1, 1))
        if options["do_rescale"]:
            values = self.rescale(values, options["rescale_factor"])
        if options["do_normalize"]:
            values = self.normalize(values, options["image_mean"], options["image_std"])
        return np.ascontiguousarray(values[:, 0], dtype=np.float32)

    def _crop_plane(self, plane: np.ndarray, crop_size: SizeDict) -> np.ndarray:
        return self.center_crop(plane[None], crop_size)[0]


if is_torchvision_available():

    class VasoMIMImageProcessor(_VasoMIMImageProcessing, TorchvisionBackend):
        r"""Equivalent to `VasoMIMImageProcessorPil` on tensors, with torchvision, on any `device`.

        Settings, input, checks, maps and errors are the same; pixel values agree up to the difference between the
        resize functions of Pillow and torchvision: at most one grey level, 0.004 on average, on ten real 8-bit frames.
        """

        def _preprocess(self, frames: list[np.ndarray], **options: Any) -> list[torch.Tensor]:
            channels = self._output_channels(frames, options)
            groups: dict[tuple[tuple[int, ...], str], list[int]] = {}
            for index, frame in enumerate(frames):
                groups.setdefault((frame.shape, frame.dtype.str), []).append(index)
            pixels: dict[int, torch.Tensor] = {}
            for indices in groups.values():
                stacked = torch.from_numpy(np.stack([frames[index] for index in indices])).to(options["device"])
                stacked = self._transform(stacked, channels[indices[0]], options)
                pixels.update(zip(indices, stacked, strict=True))
            ordered = [pixels[index] for index in range(len(frames))]
            return self.pad(ordered, pad_size=options["pad_size"]) if options["do_pad"] else ordered

        def _transform(self, frames: torch.Tensor, channels: int, options: dict[str, Any]) -> torch.Tensor:
            if options["do_resize"]:
                frames = self.resize(frames, options["size"], options["resample"])
            if options["do_center_crop"]:
                frames = self.center_crop(frames, options["crop_size"])
            frames = frames.expand(-1, channels, -1, -1)
            names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
            return self.rescale_and_normalize(frames.float(), *(options[name] for name in names))

        def _crop_plane(self, plane: np.ndarray, crop_size: SizeDict) -> np.ndarray:
            return self.center_crop(torch.from_numpy(plane.copy())[None], crop_size)[0].numpy()

        def _crop_shift(self, side: int, cropped: int) -> int:
            # torchvision's crop rounds differently if it adds a border with an odd number of pixels
            return -int((side - cropped) / 2)

else:
    # without torchvision, the plain name is the Pillow backend, here and in a file loaded from the Hub
    VasoMIMImageProcessor = VasoMIMImageProcessorPil


__all__ = ["VasoMIMImageProcessor", "VasoMIMImageProcessorKwargs", "VasoMIMImageProcessorPil", "scale_to_8_bit"]
