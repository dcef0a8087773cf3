"""VasoMIM for object detection: a simple feature pyramid on the encoder and a dense anchor-free head.

The pyramid follows ViTDet (arXiv:2203.16527): every level is computed from the encoder's last feature map. The head is
shared between levels and predicts class scores and the distances to the four sides of the box for each location.
Target assignment and losses are in `modeling_vasomim_detection_loss.py`. Shapes: B batch size, D hidden size, C
channels, K classes, L locations of all levels, H and W height and width of the frames in pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.image_transforms import corners_to_center_format
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_vasomim import VasoMIMConfig
from .image_processing_boxes import pairwise_iou
from .modeling_unext import reject_unknown_arguments
from .modeling_vasomim import VasoMIMModel, VasoMIMPreTrainedModel, grid_of
from .modeling_vasomim_detection_loss import (
    AssignmentRule,
    BoxTargets,
    assign_boxes,
    candidate_locations,
    check_box_labels,
    detection_loss,
    pad_box_labels,
)


GROUPS = 8
# Initial score of every location (prior probability of RetinaNet).
PRIOR_PROBABILITY = 0.01
# Upper bound of the log distance, in strides: far above any frame, far below overflow.
MAX_LOG_DISTANCE = 8.0


@dataclass
class VasoMIMForObjectDetectionOutput(ModelOutput):
    """Output of [`VasoMIMForObjectDetection`]; each query is a location of the pyramid.

    Args:
        loss (`torch.Tensor`, scalar): Classification loss + `config.detection_box_loss_weight` x box loss.
        loss_dict (`dict[str, torch.Tensor]`): The two losses, `class_loss` and `box_loss`, detached.
        logits (`torch.Tensor` of shape `(batch_size, num_queries, num_labels)`): Sigmoid gives the scores. There is no
            background class.
        pred_boxes (`torch.Tensor` of shape `(batch_size, num_queries, 4)`): Centre x, centre y, width and height relative
            to `pixel_values`, clipped to [0, 1]; float32.
        hidden_states, attentions (`tuple[torch.Tensor]`): Of the encoder, if requested.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class VasoMIMDetectionConvolution(nn.Conv2d):
    """Convolution that keeps the size, or divides it by `stride`; Xavier-initialised over its whole kernel."""

    _init_fan_in_out: tuple[int, int]

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=(kernel_size - stride + 1) // 2)
        self._init_fan_in_out = (in_channels * kernel_size**2, out_channels * kernel_size**2)


class VasoMIMDetectionPredictor(nn.Conv2d):
    """Last convolution of a branch, initialised to a nearly constant output."""

    initial_bias: float

    def __init__(self, in_channels: int, out_channels: int, initial_bias: float):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)
        self.initial_bias = initial_bias


class VasoMIMDetectionConv(nn.Sequential):
    """Convolution, group norm (batches are small) and SiLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1):
        convolution = VasoMIMDetectionConvolution(in_channels, out_channels, kernel_size, stride)
        super().__init__(convolution, nn.GroupNorm(GROUPS, out_channels), nn.SiLU())


class VasoMIMDetectionUpsample(nn.Sequential):
    """Transposed convolution that doubles the resolution, group norm and SiLU."""

    def __init__(self, in_channels: int, out_channels: int):
        convolution = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        super().__init__(convolution, nn.GroupNorm(GROUPS, out_channels), nn.SiLU())


class VasoMIMDetectionLevel(nn.Module):
    """One pyramid level: the encoder map (B, D, rows, columns) resampled, with C channels."""

    def __init__(self, config: VasoMIMConfig, scale_factor: float):
        super().__init__()
        channels = config.detection_channels
        doublings = round(math.log2(scale_factor))
        self.pool_size = 2 ** max(0, -doublings)
        widths = [config.hidden_size] + [channels] * max(0, doublings)
        self.upsample = nn.Sequential(
            *(VasoMIMDetectionUpsample(*pair) for pair in zip(widths[:-1], widths[1:], strict=True))
        )
        self.project = VasoMIMDetectionConv(widths[-1], channels, kernel_size=1)
        self.smooth = VasoMIMDetectionConv(channels, channels)

    def forward(self, feature_map: torch.Tensor, detail: torch.Tensor | None) -> torch.Tensor:
        hidden_states = self.project(pool(self.upsample(feature_map), self.pool_size))
        return self.smooth(hidden_states if detail is None else hidden_states + detail)


def pool(feature_map: torch.Tensor, size: int) -> torch.Tensor:
    """Max-pool with cells of `size` x `size`; cells at the right and bottom edge may be partial.

    Args:
        feature_map (`torch.Tensor` of shape `(batch_size, channels, rows, columns)`): Any float.
        size (`int`): Side length of a cell; 1 is the identity.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, ceil(rows / size), ceil(columns / size))`.
    """
    return nn.functional.max_pool2d(feature_map, size, ceil_mode=True) if size > 1 else feature_map


class VasoMIMDetailStem(nn.Module):
    """Stride-2 convolutions on frames (B, channels, H, W); returns a map of C channels for each pyramid level."""

    def __init__(self, config: VasoMIMConfig):
        super().__init__()
        channels, width = config.detection_channels, config.detection_detail_stem_channels
        # not coarser than a patch, so a frame of one patch has at least one cell in every layer
        finest = config.patch_size / max(1, config.detection_scale_factors[0])
        halvings = max(1, math.floor(math.log2(finest)))
        widths = [config.num_channels, *(GROUPS * -(-width * 2**i // GROUPS) for i in range(halvings))]
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nn.Sequential(*(VasoMIMDetectionConv(*pair, kernel_size=4, stride=2) for pair in pairs))
        self.project = VasoMIMDetectionConvolution(widths[-1], channels, kernel_size=1)
        self.downsample = nn.ModuleList(
            [VasoMIMDetectionConv(channels, channels) for _ in config.detection_scale_factors[1:]]
        )

    def forward(self, pixel_values: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        hidden_states = self.project(self.layers(pixel_values.to(self.project.weight.dtype)))
        details = [self._resize(hidden_states, sizes[0])]
        for layer, size in zip(self.downsample, sizes[1:], strict=True):
            details.append(self._resize(layer(pool(details[-1], 2)), size))
        return details

    def _resize(self, feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        # sizes differ if the patch size is not a power of two or the finest level is coarser than the patches
        if feature_map.shape[-2:] == size:
            return feature_map
        return nn.functional.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)


class VasoMIMFeaturePyramid(nn.Module):
    """Maps of C channels at each of `config.detection_scale_factors`, from the last encoder map and the frames."""

    def __init__(self, config: VasoMIMConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.scale_factors = list(config.detection_scale_factors)
        self.levels = nn.ModuleList([VasoMIMDetectionLevel(config, factor) for factor in self.scale_factors])
        self.detail_stem = VasoMIMDetailStem(config) if config.detection_detail_stem_channels else None

    @property
    def strides(self) -> list[float]:
        """Stride of each level in pixels."""
        return [self.patch_size / factor for factor in self.scale_factors]

    def forward(self, last_hidden_state: torch.Tensor, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        grid = grid_of(pixel_values, self.patch_size)
        feature_map = last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, grid)
        details = self._details(pixel_values, grid)
        return [level(feature_map, detail) for level, detail in zip(self.levels, details, strict=True)]

    def _details(self, pixel_values: torch.Tensor, grid: tuple[int, int]) -> Sequence[torch.Tensor | None]:
        if self.detail_stem is None:
            return [None] * len(self.levels)
        rows, columns = grid
        height, width = pixel_values.shape[-2:]
        missing = (0, columns * self.patch_size - width, 0, rows * self.patch_size - height)
        pixel_values = nn.functional.pad(pixel_values, missing, mode="replicate") if any(missing) else pixel_values
        sizes = [(math.ceil(rows * factor), math.ceil(columns * factor)) for factor in self.scale_factors]
        return self.detail_stem(pixel_values, sizes)


class VasoMIMDetectionHead(nn.Module):
    """Predicts scores and distances at every location, with weights shared by all levels."""

    def __init__(self, config: VasoMIMConfig):
        super().__init__()
        channels = config.detection_channels
        layers = range(config.detection_num_convs)
        self.class_convs = nn.Sequential(*(VasoMIMDetectionConv(channels, channels) for _ in layers))
        self.box_convs = nn.Sequential(*(VasoMIMDetectionConv(channels, channels) for _ in layers))
        prior = math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY))
        self.classifier = VasoMIMDetectionPredictor(channels, config.num_labels, initial_bias=prior)
        self.box_regressor = VasoMIMDetectionPredictor(channels, 4, initial_bias=0.0)

    def forward(self, pyramid: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict scores and distances.

        Args:
            pyramid (sequence of `torch.Tensor` of shape `(batch_size, channels, rows, columns)`): From fine to coarse.

        Returns:
            `tuple`: Logits of shape `(batch_size, num_locations, num_labels)`, and distances to the left, top, right
            and bottom side, of shape `(batch_size, num_locations, 4)`, float32, > 0, in strides. Levels are
            concatenated, each in row-major order.
        """
        logits = [self.classifier(self.class_convs(level)).flatten(2) for level in pyramid]
        logarithms = [self.box_regressor(self.box_convs(level)).flatten(2) for level in pyramid]
        # in float32: at position 1000, the resolution of bfloat16 is 4 pixels
        distances = torch.cat(logarithms, dim=2).transpose(1, 2).float().clamp(max=MAX_LOG_DISTANCE).exp()
        return torch.cat(logits, dim=2).transpose(1, 2), distances


def locations_of(pyramid: Sequence[torch.Tensor], strides: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of all locations of a pyramid: the centres of their cells.

    Args:
        pyramid (sequence of `torch.Tensor` of shape `(batch_size, channels, rows, columns)`): Maps of the levels.
        strides (sequence of `float`): Stride of each level in pixels.

    Returns:
        `tuple`: x and y in pixels, of shape `(num_locations, 2)`, and the strides, of shape `(num_locations,)`; float32.

    Example:
        >>> locations_of([torch.zeros(1, 1, 1, 2)], [8])[0].tolist()
        [[4.0, 4.0], [12.0, 4.0]]
    """
    points, steps = [], []
    for level, stride in zip(pyramid, strides, strict=True):
        rows, columns = (torch.arange(side, device=level.device) + 0.5 for side in level.shape[-2:])
        y, x = torch.meshgrid(rows * stride, columns * stride, indexing="ij")
        points.append(torch.stack([x, y], dim=-1).flatten(0, 1).float())
        steps.append(torch.full_like(points[-1][:, 0], stride))
    return torch.cat(points), torch.cat(steps)


class VasoMIMForObjectDetection(VasoMIMPreTrainedModel):
    """Object detection with the encoder, a feature pyramid and a dense head, for example of stenoses.

    Example:
        >>> from vasomim_hf.presets import load_preset
        >>> model = VasoMIMForObjectDetection(load_preset("tiny", id2label={0: "stenosis"}, label2id={"stenosis": 0}))
        >>> labels = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.1, 0.2]])}]
        >>> output = model(torch.zeros(1, 3, 256, 256), labels=labels)
        >>> output.logits.shape, output.pred_boxes.shape, sorted(output.loss_dict)
        (torch.Size([1, 1344, 1]), torch.Size([1, 1344, 4]), ['box_loss', 'class_loss'])
    """

    accepts_loss_kwargs = False
    _no_split_modules = [
        "VasoMIMEmbeddings",
        "VasoMIMLayer",
        "VasoMIMFeaturePyramid",
        "VasoMIMDetectionHead",
    ]
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^segmentor\."]

    def __init__(self, config: VasoMIMConfig):
        super().__init__(config)
        self.vasomim = VasoMIMModel(config)
        self.pyramid = VasoMIMFeaturePyramid(config)
        self.detection_head = VasoMIMDetectionHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VasoMIMDetectionPredictor):
            init.normal_(module.weight, std=0.01)
            init.constant_(module.bias, module.initial_bias)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: Sequence[Mapping[str, torch.Tensor]] | None = None,
        interpolate_pos_encoding: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VasoMIMForObjectDetectionOutput:
        """Detect objects.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised frames from the image processor; each side at least one patch.
            labels (sequence of `dict`, *optional*):
                One per image: `class_labels` of shape `(n,)`, integer in [0, num_labels), and `boxes` of shape `(n,
                4)`, centre x, centre y, width and height relative to `pixel_values`; n may be 0. The image processor
                creates them from `annotations`.
            interpolate_pos_encoding (`bool`, defaults to `True`):
                Whether sizes other than `config.image_size` are accepted.

        Returns:
            `VasoMIMForObjectDetectionOutput`.

        Raises:
            ValueError: If a shape does not match, or `labels` contains an invalid box or class.
            TypeError: If an argument is unknown.
        """
        reject_unknown_arguments(self, kwargs)
        if labels is not None:
            check_box_labels(labels, len(pixel_values), self.config.num_labels)
        outputs = self.vasomim(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        pyramid = self.pyramid(outputs.last_hidden_state, pixel_values)
        logits, distances = self.detection_head(pyramid)
        locations, strides = locations_of(pyramid, self.pyramid.strides)
        corners = self.corners(locations, distances * strides[:, None])
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        losses = {} if labels is None else self.losses(logits, corners, (locations, strides), labels, size)
        return VasoMIMForObjectDetectionOutput(
            loss=self.total_loss(losses) if losses else None,
            loss_dict={name: value.detach() for name, value in losses.items()} or None,
            logits=logits,
            pred_boxes=self.relative_boxes(corners, size),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def corners(self, locations: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        """Left, top, right and bottom, (B, L, 4), from locations (L, 2) and distances (B, L, 4), all in pixels."""
        return torch.cat([locations - distances[..., :2], locations + distances[..., 2:]], dim=-1)

    def relative_boxes(self, corners: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Convert corners (B, L, 4) in pixels to clipped centre and size relative to a (height, width) frame, in [0,
        1]."""
        height, width = size
        shares = corners / corners.new_tensor([width, height, width, height])
        return corners_to_center_format(shares.clamp(0, 1))

    def losses(
        self,
        logits: torch.Tensor,
        corners: torch.Tensor,
        locations: tuple[torch.Tensor, torch.Tensor],
        labels: Sequence[Mapping[str, torch.Tensor]],
        size: tuple[int, int],
    ) -> dict[str, torch.Tensor]:
        """Compute the classification and box losses.

        Args:
            logits (`torch.Tensor` of shape `(batch_size, num_locations, num_labels)`): Predicted logits.
            corners (`torch.Tensor` of shape `(batch_size, num_locations, 4)`): Predicted boxes in pixels.
            locations (`tuple`): Positions of shape `(num_locations, 2)` and strides of shape `(num_locations,)`.
            labels (sequence of `dict`): As for `forward`.
            size (`tuple[int, int]`): Height and width of the frames.

        Returns:
            `dict[str, torch.Tensor]`: `class_loss` and `box_loss`, scalars, float32, unweighted.
        """
        targets = pad_box_labels(labels, size, logits.device)
        with torch.no_grad():
            candidates = candidate_locations(*locations, targets)
            scores = self._scores_of_targets(logits, targets)
            ious = pairwise_iou(targets.corners, corners)
            assignment = assign_boxes(scores, ious, candidates, self._assignment_rule())
        class_loss, box_loss = detection_loss(logits, assignment, targets, corners)
        return {"class_loss": class_loss, "box_loss": box_loss}

    def total_loss(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return losses["class_loss"] + self.config.detection_box_loss_weight * losses["box_loss"]

    def _scores_of_targets(self, logits: torch.Tensor, targets: BoxTargets) -> torch.Tensor:
        """Score of every location for the class of every box, (B, N, L), float32."""
        index = targets.class_labels.unsqueeze(-1).expand(-1, -1, logits.shape[1])
        return logits.float().sigmoid().transpose(1, 2).gather(1, index)

    def _assignment_rule(self) -> AssignmentRule:
        config = self.config
        return AssignmentRule(
            config.detection_assigned_locations, config.detection_score_exponent, config.detection_iou_exponent
        )


# The pipeline only looks up this table, not the registered classes, and otherwise warns that the model is unsupported.
# Done here so that it also works for a checkpoint loaded with remote code.
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES["vasomim"] = "VasoMIMForObjectDetection"

__all__ = ["VasoMIMForObjectDetection", "VasoMIMForObjectDetectionOutput"]
