"""VasoMIM for semantic segmentation: a top-down pyramid on four encoder layers and a convolutional detail stem.

A 16-pixel patch can contain several vessels: the encoder provides semantics, the detail stem precise localisation.
Shapes: B batch size, D hidden size, C channels, K classes, H and W height and width in pixels.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_unext import IGNORED_LABEL
from .configuration_vasomim import VasoMIMConfig
from .modeling_unext import reject_unknown_arguments
from .modeling_vasomim import VasoMIMModel, VasoMIMPreTrainedModel, grid_of


def check_segmentation_labels(labels: torch.Tensor, num_labels: int, frames: tuple[int, ...] | None = None) -> None:
    """Raise an error for masks that do not match their frames or contain class ids that do not exist.

    Args:
        labels (`torch.Tensor` of shape `(batch_size, height, width)`):
            Integer or bool. Values on an accelerator are not checked.
        num_labels (`int`):
            Number of classes, including the background.
        frames (`tuple[int, ...]`, *optional*):
            Shape of `pixel_values`, `(batch_size, num_channels, height, width)`.

    Raises:
        ValueError: If the shape or dtype is wrong, or an id is neither in [0, num_labels) nor 255.
    """
    expected = (frames[0], *frames[-2:]) if frames is not None else None
    if labels.ndim != 3 or (expected is not None and tuple(labels.shape) != expected):
        raise ValueError(
            f"`labels` must have shape {expected or '(batch_size, height, width)'}, one class per pixel of the "
            f"frames, got {tuple(labels.shape)}. Pass the masks to the image processor together with the frames."
        )
    if labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise ValueError(f"`labels` must be integers or bool, got {labels.dtype}. Pass class ids, not probabilities.")
    if labels.device.type != "cpu" or labels.numel() == 0 or torch.compiler.is_compiling():
        return
    # numpy keeps this check out of traced and compiled graphs
    ids = labels.detach().numpy()
    lowest, highest = int(ids.min()), int(ids.max())
    if highest == IGNORED_LABEL:
        highest = int(ids.max(initial=0, where=ids != IGNORED_LABEL))
    if lowest < 0 or highest >= num_labels:
        raise ValueError(
            f"`labels` must be ids from 0 to {num_labels - 1}, or {IGNORED_LABEL} for pixels to ignore, got ids from "
            f"{lowest} to {highest}. Compare the masks with `config.id2label`; pass `mask > 0` for a binary mask."
        )


def soft_dice_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 - soft Dice coefficient over the whole batch, averaged over the classes present in it.

    Computed over the batch because a single frame may lack a class. Classes absent from the batch are left to the
    cross entropy. The background is excluded.

    Args:
        probabilities (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`):
            Float in [0, 1].
        labels (`torch.Tensor` of shape `(batch_size, height, width)`):
            Integer ids; 255 is ignored.

    Returns:
        `torch.Tensor`: scalar in [0, 1]; 0 if no class is present.

    Example:
        >>> labels = torch.tensor([[[0, 1], [1, 255]]])
        >>> soft_dice_loss(torch.full((1, 2, 2, 2), 0.5), labels)
        tensor(0.4286)
    """
    classes = torch.arange(1, probabilities.shape[1], device=labels.device).view(1, -1, 1, 1)
    targets = (labels.unsqueeze(1) == classes).to(probabilities.dtype)
    probabilities = probabilities[:, 1:] * (labels != IGNORED_LABEL).unsqueeze(1)
    sizes = targets.sum(dim=(0, 2, 3))
    overlap = (probabilities * targets).sum(dim=(0, 2, 3))
    dice = 2 * overlap / (probabilities.sum(dim=(0, 2, 3)) + sizes).clamp(min=1)
    occurs = (sizes > 0).to(dice.dtype)
    return ((1 - dice) * occurs).sum() / occurs.sum().clamp(min=1)


def soft_skeleton(image: torch.Tensor, iterations: int) -> torch.Tensor:
    """Soft skeleton by repeated erosion and opening (Shit et al., clDice, arXiv:2003.07311, algorithm 1).

    Args:
        image (`torch.Tensor` of shape `(batch_size, 1, height, width)`):
            Float in [0, 1].
        iterations (`int`):
            Number of erosions after the first opening; at least half the width of the widest structure.

    Returns:
        `torch.Tensor` of the same shape: float in [0, 1].
    """
    skeleton = nn.functional.relu(image - _dilate(_erode(image)))
    for _ in range(iterations):
        image = _erode(image)
        ridge = nn.functional.relu(image - _dilate(_erode(image)))
        skeleton = skeleton + nn.functional.relu(ridge - skeleton * ridge)
    return skeleton


def _erode(image: torch.Tensor) -> torch.Tensor:
    # with a cross rather than a square, as in the authors' code: diagonal vessels keep their thickness
    negative = -image
    columns = nn.functional.max_pool2d(negative, (3, 1), stride=1, padding=(1, 0))
    rows = nn.functional.max_pool2d(negative, (1, 3), stride=1, padding=(0, 1))
    return -torch.maximum(columns, rows)


def _dilate(image: torch.Tensor) -> torch.Tensor:
    return nn.functional.max_pool2d(image, 3, stride=1, padding=1)


def soft_cl_dice_loss(probabilities: torch.Tensor, labels: torch.Tensor, iterations: int) -> torch.Tensor:
    """1 - soft clDice of the foreground: how much of each skeleton lies inside the other mask.

    All classes except the background are merged into one vessel tree, because a skeleton cut where the segment label changes is not meaningful. Computed over the batch, smoothed by 1 as in the authors' code (Shit et al.,
    arXiv:2003.07311).

    Args:
        probabilities (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`):
            Float in [0, 1].
        labels (`torch.Tensor` of shape `(batch_size, height, width)`):
            Integer ids; 255 is ignored.
        iterations (`int`):
            See [`soft_skeleton`].

    Returns:
        `torch.Tensor`: scalar in [0, 1].
    """
    counted = (labels != IGNORED_LABEL).unsqueeze(1)
    predicted = (1 - probabilities[:, :1]) * counted
    target = ((labels != 0).unsqueeze(1) & counted).to(predicted.dtype)
    predicted_skeleton, target_skeleton = soft_skeleton(predicted, iterations), soft_skeleton(target, iterations)
    precision = ((predicted_skeleton * target).sum() + 1) / (predicted_skeleton.sum() + 1)
    sensitivity = ((target_skeleton * predicted).sum() + 1) / (target_skeleton.sum() + 1)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)


@dataclass
class VasoMIMForSemanticSegmentationOutput(ModelOutput):
    """Output of [`VasoMIMForSemanticSegmentation`].

    Args:
        loss (`torch.Tensor`):
            Scalar, if labels are given: cross entropy + `dice_weight` × Dice loss + `cl_dice_weight` × clDice loss.
        logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`):
            At the size of the input.
        cross_entropy_loss, dice_loss, cl_dice_loss (`torch.Tensor`):
            Scalars, the unweighted terms of the loss; `None` for terms with weight 0.
        hidden_states, attentions (`tuple[torch.Tensor]`):
            Of the encoder, if requested.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cross_entropy_loss: torch.Tensor | None = None
    dice_loss: torch.Tensor | None = None
    cl_dice_loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class VasoMIMGroupNorm(nn.GroupNorm):
    """Group norm with up to 8 groups of at least 4 channels; batches are too small for batch norm."""

    def __init__(self, num_channels: int):
        most = max(1, min(8, num_channels // 4))
        super().__init__(next(n for n in range(most, 0, -1) if num_channels % n == 0), num_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # on a CPU, the bf16 backward pass of torch is eight times slower with channels-last tensors; a copy costs less
        if (
            hidden_states.requires_grad
            and hidden_states.device.type == "cpu"
            and hidden_states.dtype == torch.bfloat16
        ):
            hidden_states = hidden_states.contiguous()
        return super().forward(hidden_states)


class VasoMIMConv2d(nn.Conv2d):
    """Convolution with Xavier initialisation that counts the kernel area in the fan.
    `fan_out` is the number of output channels, given where a pixel shuffle follows.
    """

    _init_fan_in_out: tuple[int, int]

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, fan_out: int | None = None):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        area = kernel_size**2
        self._init_fan_in_out = (area * in_channels, area * (fan_out or out_channels))


class VasoMIMConvBlock(nn.Module):
    """Two blocks of 3×3 convolution, group norm and GELU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = VasoMIMConv2d(in_channels, out_channels, kernel_size=3)
        self.norm1 = VasoMIMGroupNorm(out_channels)
        self.conv2 = VasoMIMConv2d(out_channels, out_channels, kernel_size=3)
        self.norm2 = VasoMIMGroupNorm(out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            # convert here once: the result may be used in two places
            hidden_states = _channels_last(nn.functional.gelu(norm(conv(_channels_last(hidden_states)))))
        return hidden_states


def _channels_last(hidden_states: torch.Tensor) -> torch.Tensor:
    # convolutions with few channels on large maps are two to four times faster in this layout
    return hidden_states.contiguous(memory_format=torch.channels_last)


class VasoMIMDetailStem(nn.Module):
    """Grey image of shape (B, 1, H, W) to feature maps at strides 1, 2 and 4."""

    channels: tuple[int, ...]

    def __init__(self, channels: int):
        super().__init__()
        self.channels = (channels, 2 * channels, 2 * channels)
        ins = (1, *self.channels[:-1])
        self.blocks = nn.ModuleList([VasoMIMConvBlock(a, b) for a, b in zip(ins, self.channels, strict=True)])

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        maps = [self.blocks[0](image)]
        for block in self.blocks[1:]:
            maps.append(block(nn.functional.avg_pool2d(maps[-1], 2)))
        return maps


class VasoMIMTopDownPyramid(nn.Module):
    """Fuses four encoder maps of shape (B, D, rows, columns) into one map of stride 4 with fewer channels.

    The two deepest maps keep the patch resolution, the others are upsampled to strides 8 and 4. From coarse to fine,
    each level is added to the upsampled result of the previous one.
    """

    strides = (4, 8, 16, 16)

    def __init__(self, config: VasoMIMConfig):
        super().__init__()
        size = config.segmentation_hidden_size
        # powers of two: exact for patch sizes 8, 16, 32, ..., the nearest one otherwise
        self.factors = [2 ** max(0, round(math.log2(config.patch_size / stride))) for stride in self.strides]
        self.projections = nn.ModuleList([nn.Conv2d(config.hidden_size, size, kernel_size=1) for _ in self.strides])
        self.norms = nn.ModuleList([VasoMIMGroupNorm(size) for _ in self.strides])
        # followed by a pixel shuffle: a transposed convolution whose kernel equals its stride
        self.upscalings = nn.ModuleList([_upscaling(size, factor) for factor in self.factors])
        self.blocks = nn.ModuleList([VasoMIMConvBlock(size, size) for _ in self.strides[:2]])

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        hidden_states = self._lateral(3, maps)
        for level in (2, 1, 0):
            lateral = self._lateral(level, maps)
            hidden_states = lateral + _resize(hidden_states, lateral.shape[-2:])
            if level < len(self.blocks):
                hidden_states = self.blocks[level](hidden_states)
        return hidden_states

    def _lateral(self, level: int, maps: list[torch.Tensor]) -> torch.Tensor:
        hidden_states = self.norms[level](self.projections[level](maps[level]))
        return nn.functional.pixel_shuffle(self.upscalings[level](hidden_states), self.factors[level])


def _upscaling(channels: int, factor: int) -> nn.Module:
    if factor == 1:
        return nn.Identity()
    return VasoMIMConv2d(channels, channels * factor**2, kernel_size=1, fan_out=channels)


def _resize(hidden_states: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    if hidden_states.shape[-2:] == size:
        return hidden_states
    return nn.functional.interpolate(hidden_states, size=size, mode="bilinear", align_corners=False)


class VasoMIMSegmentationHead(nn.Module):
    """Encoder maps and image to logits of shape (B, K, H, W); both sides must be divisible by 4."""

    def __init__(self, config: VasoMIMConfig):
        super().__init__()
        size, stem = config.segmentation_hidden_size, config.detail_stem_channels
        self.pyramid = VasoMIMTopDownPyramid(config) if config.segmentation_use_encoder else None
        self.stem = VasoMIMDetailStem(stem) if stem else None
        skip1, skip2, skip4 = self.stem.channels if self.stem is not None else (0, 0, 0)
        sizes = (size, size // 2, max(16, size // 4))
        ins = ((size if self.pyramid is not None else 0) + skip4, sizes[0] + skip2, sizes[1] + skip1)
        self.blocks = nn.ModuleList([VasoMIMConvBlock(a, b) for a, b in zip(ins, sizes, strict=True)])
        self.classifier = nn.Conv2d(sizes[-1], config.num_labels, kernel_size=1)

    def forward(self, pixel_values: torch.Tensor, maps: list[torch.Tensor] | None) -> torch.Tensor:
        height, width = pixel_values.shape[-2:]
        skips = self.stem(pixel_values.mean(dim=1, keepdim=True)) if self.stem is not None else []
        parts = [self.pyramid(maps)] if self.pyramid is not None else []
        for block, stride in zip(self.blocks, (4, 2, 1), strict=True):
            parts = [_resize(part, (height // stride, width // stride)) for part in parts] + skips[-1:]
            skips = skips[:-1]
            parts = [block(torch.cat(parts, dim=1))]
        return self.classifier(parts[0])


class VasoMIMForSemanticSegmentation(VasoMIMPreTrainedModel):
    """Semantic segmentation of vessels (2 classes), vessel segments (background and 25) or stenoses.

    Class 0 is the background, also in the binary task: with two classes the softmax equals a sigmoid of the logit
    difference, `argmax` is a threshold of one half, and `pipeline("image-segmentation")` finds a name for every id.
    The loss is cross entropy + `config.dice_weight` × Dice loss + `config.cl_dice_weight` × clDice loss, see
    [`soft_dice_loss`] and [`soft_cl_dice_loss`].

    Example:
        >>> from vasomim_hf.presets import load_preset
        >>> config = load_preset("tiny", id2label={0: "background", 1: "vessel"}, label2id={"background": 0, "vessel": 1})
        >>> model = VasoMIMForSemanticSegmentation(config)
        >>> model(torch.zeros(1, 3, 100, 64)).logits.shape
        torch.Size([1, 2, 100, 64])
    """

    accepts_loss_kwargs = False
    _no_split_modules = ["VasoMIMEmbeddings", "VasoMIMLayer", "VasoMIMSegmentationHead"]
    # part of pre-training checkpoints, not of this model
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^segmentor\."]

    def __init__(self, config: VasoMIMConfig):
        super().__init__(config)
        if config.num_labels < 2:
            raise ValueError(
                f"A segmentation model needs the background and at least one class, got num_labels={config.num_labels}. "
                "For vessels alone set id2label={0: 'background', 1: 'vessel'} and label2id."
            )
        if config.segmentation_use_encoder:
            self.vasomim = VasoMIMModel(config)
        else:
            self._keys_to_ignore_on_load_unexpected = [*type(self)._keys_to_ignore_on_load_unexpected, r"^vasomim\."]
        self.decode_head = VasoMIMSegmentationHead(config)
        self.post_init()

    @can_return_tuple
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VasoMIMForSemanticSegmentationOutput:
        """Segment frames.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised frames from the image processor; each side at least one patch. Sides that `patch_size` (or
                4) does not divide are padded at the right and bottom by repeating the edge; the logits are cropped
                back.
            labels (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
                Class id of each pixel, integer or bool: 0 is the background, 255 is ignored.
            interpolate_pos_encoding (`bool`, defaults to `True`):
                Whether sizes other than `config.image_size` are accepted.

        Returns:
            [`VasoMIMForSemanticSegmentationOutput`]

        Raises:
            ValueError: If a shape does not match, or an id is out of range. Ids on an accelerator are not checked,
            because that would force a synchronisation: call [`check_segmentation_labels`] when building the batch.
            TypeError: If an argument is unknown.
        """
        reject_unknown_arguments(self, kwargs)
        if labels is not None:
            check_segmentation_labels(labels, self.config.num_labels, pixel_values.shape)
        height, width = pixel_values.shape[-2:]
        padded = self._pad(pixel_values)
        maps = (
            self._encode(padded, interpolate_pos_encoding, **kwargs) if self.config.segmentation_use_encoder else None
        )
        logits = self.decode_head(padded, maps)[..., :height, :width]
        parts = self.loss_parts(logits, labels) if labels is not None else {}
        return VasoMIMForSemanticSegmentationOutput(
            loss=parts.get("loss"),
            logits=logits,
            cross_entropy_loss=parts.get("cross_entropy_loss"),
            dice_loss=parts.get("dice_loss"),
            cl_dice_loss=parts.get("cl_dice_loss"),
        )

    def loss_parts(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss and its unweighted terms by output name, in float32.

        Args:
            logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`):
                Any real numbers.
            labels (`torch.Tensor` of shape `(batch_size, height, width)`):
                Integer or bool class ids; 255 is ignored in every term.
        """
        config, labels = self.config, labels.long()
        log_probabilities = nn.functional.log_softmax(logits.float(), dim=1)
        num_counted = (labels != IGNORED_LABEL).sum().clamp(min=1)
        total = nn.functional.nll_loss(log_probabilities, labels, ignore_index=IGNORED_LABEL, reduction="sum")
        parts = {"cross_entropy_loss": total / num_counted}
        loss = parts["cross_entropy_loss"]
        probabilities = log_probabilities.exp()
        if config.dice_weight:
            parts["dice_loss"] = soft_dice_loss(probabilities, labels)
            loss = loss + config.dice_weight * parts["dice_loss"]
        if config.cl_dice_weight:
            parts["cl_dice_loss"] = soft_cl_dice_loss(probabilities, labels, config.cl_dice_iterations)
            loss = loss + config.cl_dice_weight * parts["cl_dice_loss"]
        return {"loss": loss, **parts}

    def _encode(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool, **kwargs: Unpack[TransformersKwargs]
    ) -> list[torch.Tensor]:
        """Maps of shape (B, D, rows, columns) of the four layers, after the encoder's final layer norm."""
        numbers = self.config.segmentation_layer_numbers
        hidden_states = self.vasomim.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        states = [hidden_states]
        for layer in self.vasomim.layers[: numbers[-1]]:
            hidden_states = layer(hidden_states, **kwargs)
            states.append(hidden_states)
        grid = grid_of(pixel_values, self.config.patch_size)
        patches = [self.vasomim.layernorm(states[number])[:, 1:] for number in numbers]
        return [part.transpose(1, 2).unflatten(2, grid) for part in patches]

    def _pad(self, pixel_values: torch.Tensor) -> torch.Tensor:
        channels, size = self.config.num_channels, self.config.patch_size
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"`pixel_values` must have shape (batch_size, {channels}, height, width), got "
                f"{tuple(pixel_values.shape)}. The image processor repeats grey frames to three channels."
            )
        height, width = pixel_values.shape[-2:]
        if height < size or width < size:
            raise ValueError(
                f"A frame must be at least one patch of {size}×{size} pixels, got {height}×{width}. Resize it with "
                "the image processor."
            )
        divisor = math.lcm(size, 4)
        bottom, right = -height % divisor, -width % divisor
        if bottom or right:
            pixel_values = nn.functional.pad(pixel_values, (0, right, 0, bottom), mode="replicate")
        return pixel_values.to(self.decode_head.classifier.weight.dtype)


# The pipeline only looks up this table, not the registered classes, and otherwise warns that the model is unsupported.
# Done here so that it also works for a checkpoint loaded with remote code.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["vasomim"] = "VasoMIMForSemanticSegmentation"

__all__ = [
    "VasoMIMForSemanticSegmentation",
    "VasoMIMForSemanticSegmentationOutput",
    "check_segmentation_labels",
    "soft_cl_dice_loss",
    "soft_dice_loss",
    "soft_skeleton",
]
