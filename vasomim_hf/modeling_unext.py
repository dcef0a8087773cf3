"""UNeXt-S, the small vessel segmentor used for VasoMIM's masking guidance and consistency loss.

Implemented from the paper (Valanarasu and Patel, UNeXt: MLP-based rapid medical image segmentation network,
arXiv:2203.04967). Shapes: B batch size, C channels, H and W height and width of the stage.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_unext import UNeXtConfig


def check_vesselness(name: str, vesselness: torch.Tensor) -> None:
    """Raise an error if a vesselness map has values outside [0, 1].

    Args:
        name (`str`): Name of the argument, for the message.
        vesselness (`torch.Tensor` of any shape): Not checked on an accelerator, because that would force a
            synchronisation.

    Raises:
        ValueError: If a value is outside [0, 1] or NaN.
    """
    if vesselness.device.type != "cpu" or vesselness.numel() == 0 or torch.compiler.is_compiling():
        return
    # numpy keeps this check out of traced and compiled graphs
    values = vesselness.detach().float().numpy()
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"`{name}` must be in [0, 1], got values from {values.min():.3g} to {values.max():.3g}. "
            "Divide a 0/255 mask by 255."
        )


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Values of any shape for a loss: half precision and integers become float32, float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def reject_unknown_arguments(model: nn.Module, arguments: dict[str, object]) -> None:
    """Reject unknown keyword arguments, for example misspelt ones.

    Args:
        model (`nn.Module`): Model whose `forward` received them.
        arguments (`dict[str, object]`): Keyword arguments that `forward` does not name.

    Raises:
        TypeError: If an argument is not one that transformers passes through.
    """
    # transformers passes `use_cache` to every model with activation checkpointing; it has no meaning here
    unknown = sorted(set(arguments) - set(TransformersKwargs.__annotations__) - {"use_cache"})
    if unknown:
        raise TypeError(f"{type(model).__name__}.forward() has no argument {unknown[0]!r}.")


def vessel_segmentation_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean of binary cross entropy and Dice loss, the training loss of the segmentor.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, 1, height, width)`):
            Any real numbers; 0 is a vessel probability of one half.
        labels (`torch.Tensor` of shape `(batch_size, 1, height, width)` or `(batch_size, height, width)`):
            Vesselness, bool, integer or float in [0, 1].

    Returns:
        `torch.Tensor`: scalar, float32. The Dice term is computed over the whole batch, smoothed by 1e-5.

    Raises:
        ValueError: If the sizes differ, or a label is outside [0, 1].
    """
    check_vesselness("labels", labels)
    labels = labels.reshape(labels.shape[0], -1, *labels.shape[-2:]).to(torch.float32)
    if labels.shape != logits.shape:
        raise ValueError(
            f"`labels` must have the size of the logits, {tuple(logits.shape)}, got {tuple(labels.shape)}. "
            "Crop and resize the vesselness map together with the frame."
        )
    logits = at_least_float32(logits)
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, labels)
    probability = logits.sigmoid()
    dice = (2 * (probability * labels).sum() + 1e-5) / (probability.sum() + labels.sum() + 1e-5)
    return 0.5 * cross_entropy + 0.5 * (1 - dice)


class UNeXtConvStage(nn.Module):
    """3×3 convolution, followed by a batch norm except in the last stage; the caller changes the resolution."""

    def __init__(self, in_channels: int, out_channels: int, has_norm: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels) if has_norm else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # not folded into the weights: the rounding would flip ReLUs and change the gradient of the consistency loss
        return self.norm(self.conv(hidden_states))


class UNeXtLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of a feature map of shape (B, C, H, W)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class UNeXtDownsample(nn.Module):
    """Overlapping patch embedding: a 3×3 convolution of stride 2 and a layer norm."""

    def __init__(self, in_channels: int, out_channels: int, eps: float):
        super().__init__()
        self.projection = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.layernorm = UNeXtLayerNorm(out_channels, eps=eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.layernorm(self.projection(hidden_states))


def shift_channels(hidden_states: torch.Tensor, shift_size: int, dim: int) -> torch.Tensor:
    """Shift groups of channels by different distances along one spatial axis, filling with zeros.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
            Float; the channels are split into `shift_size` groups.
        shift_size (`int`):
            Number of groups; group g is shifted by `g - shift_size // 2` pixels.
        dim (`int`):
            2 for height, 3 for width.

    Returns:
        `torch.Tensor` of the same shape.
    """
    reach = shift_size // 2
    padding = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
    groups = nn.functional.pad(hidden_states, padding).chunk(shift_size, dim=1)
    length = hidden_states.shape[dim]
    return torch.cat([group.narrow(dim, 2 * reach - i, length) for i, group in enumerate(groups)], dim=1)


class UNeXtShiftedMLP(nn.Module):
    """Shift along the height, linear layer, depth-wise convolution, shift along the width, linear layer."""

    def __init__(self, channels: int, shift_size: int):
        super().__init__()
        self.shift_size = shift_size
        self.fc1 = nn.Linear(channels, channels)
        self.depthwise_conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        self.fc2 = nn.Linear(channels, channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = shift_channels(hidden_states, self.shift_size, dim=2)
        hidden_states = self._linear(self.fc1, hidden_states)
        hidden_states = nn.functional.gelu(self.depthwise_conv(hidden_states))
        hidden_states = shift_channels(hidden_states, self.shift_size, dim=3)
        return self._linear(self.fc2, hidden_states)

    def _linear(self, layer: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
        return layer(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class UNeXtTokenStage(nn.Module):
    """Shifted MLP with a residual connection, followed by the layer norm of the stage."""

    def __init__(self, channels: int, config: UNeXtConfig):
        super().__init__()
        self.layernorm_before = UNeXtLayerNorm(channels, eps=config.layer_norm_eps)
        self.mlp = UNeXtShiftedMLP(channels, config.shift_size)
        self.layernorm_after = UNeXtLayerNorm(channels, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.mlp(self.layernorm_before(hidden_states))
        return self.layernorm_after(hidden_states)


class UNeXtPreTrainedModel(PreTrainedModel):
    config: UNeXtConfig
    base_model_prefix = "unext"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = False
    _no_split_modules = ["UNeXtTokenStage"]
    # UNeXt has no attention; a model that contains it may use any implementation
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
            init.zeros_(module.bias)


class UNeXtForVesselSegmentation(UNeXtPreTrainedModel):
    """UNeXt with one logit per pixel, a differentiable substitute for the vesselness filter.

    Example:
        >>> model = UNeXtForVesselSegmentation(UNeXtConfig())
        >>> model(torch.zeros(1, 3, 64, 96)).logits.shape
        torch.Size([1, 1, 64, 96])
    """

    accepts_loss_kwargs = False
    # the resolution is halved five times
    size_divisor = 32

    def __init__(self, config: UNeXtConfig):
        super().__init__(config)
        conv1, conv2, conv3 = config.conv_hidden_sizes
        token1, token2 = config.token_hidden_sizes
        self.conv_stages = nn.ModuleList(
            [UNeXtConvStage(config.num_channels, conv1), UNeXtConvStage(conv1, conv2), UNeXtConvStage(conv2, conv3)]
        )
        self.downsamples = nn.ModuleList(
            [
                UNeXtDownsample(conv3, token1, config.layer_norm_eps),
                UNeXtDownsample(token1, token2, config.layer_norm_eps),
            ]
        )
        self.token_stages = nn.ModuleList([UNeXtTokenStage(token1, config), UNeXtTokenStage(token2, config)])
        decoder_sizes = [token2, token1, conv3, conv2, conv1]
        self.decoder_conv_stages = nn.ModuleList(
            [UNeXtConvStage(a, b) for a, b in zip(decoder_sizes[:-1], decoder_sizes[1:], strict=True)]
            + [UNeXtConvStage(conv1, conv1, has_norm=False)]
        )
        self.decoder_token_stages = nn.ModuleList([UNeXtTokenStage(token1, config), UNeXtTokenStage(conv3, config)])
        self.classifier = nn.Conv2d(conv1, config.num_logits, kernel_size=1)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> SemanticSegmenterOutput:
        """Segment vessels.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised frames from the image processor. Sides that 32 does not divide are padded at the right and
                bottom by repeating the edge; the logits are cropped back.
            labels (`torch.Tensor` of shape `(batch_size, 1, height, width)` or `(batch_size, height, width)`, *optional*):
                Vesselness in [0, 1], see [`vessel_segmentation_loss`].

        Returns:
            `SemanticSegmenterOutput`: `logits` of shape `(batch_size, config.num_logits, height, width)`, and `loss`
            if `labels` are given.

        Raises:
            ValueError: If the number of channels or the size of the labels does not match.
        """
        reject_unknown_arguments(self, kwargs)
        height, width = pixel_values.shape[-2:]
        hidden_states = self._pad(pixel_values)
        hidden_states, skips = self._encode(hidden_states)
        logits = self.classifier(self._decode(hidden_states, skips))[..., :height, :width]
        loss = vessel_segmentation_loss(logits, labels) if labels is not None else None
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    def _pad(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"`pixel_values` must have shape (batch_size, {self.config.num_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}. The image processor repeats grey frames to three channels."
            )
        height, width = pixel_values.shape[-2:]
        bottom, right = -height % self.size_divisor, -width % self.size_divisor
        if bottom or right:
            pixel_values = nn.functional.pad(pixel_values, (0, right, 0, bottom), mode="replicate")
        return pixel_values.to(self.classifier.weight.dtype)

    def _encode(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips = []
        for stage in self.conv_stages:
            hidden_states = nn.functional.relu(nn.functional.max_pool2d(stage(hidden_states), 2))
            skips.append(hidden_states)
        for downsample, stage in zip(self.downsamples, self.token_stages, strict=True):
            hidden_states = stage(downsample(hidden_states))
            skips.append(hidden_states)
        return skips.pop(), skips

    def _decode(self, hidden_states: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        for level, stage in enumerate(self.decoder_conv_stages):
            hidden_states = nn.functional.relu(self._double(stage(hidden_states)))
            if skips:
                hidden_states = hidden_states + skips.pop()
            if level < len(self.decoder_token_stages):
                hidden_states = self.decoder_token_stages[level](hidden_states)
        return hidden_states

    def _double(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(hidden_states, scale_factor=2, mode="bilinear", align_corners=False)


# The pipeline only looks up this table, not the registered classes, and otherwise warns that the model is unsupported.
# Done here so that it also works for a checkpoint loaded with remote code.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["vasomim_unext"] = "UNeXtForVesselSegmentation"

__all__ = ["UNeXtForVesselSegmentation", "UNeXtPreTrainedModel"]
