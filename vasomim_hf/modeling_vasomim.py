"""VasoMIM's encoder: a plain Vision Transformer with fixed sine-cosine position embeddings, also as a backbone.

Shapes: B batch size, N number of patches, D hidden size, H and W height and width in pixels.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.models.vit.modeling_vit import ViTAttention, ViTLayer
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_vasomim import VasoMIMConfig
from .modeling_unext import reject_unknown_arguments


# Parameters of pre-training and task checkpoints that are not part of the encoder.
NON_ENCODER_KEYS = [
    r"^decoder\.",
    r"^segmentor\.",
    r"^decode_head\.",
    r"^pyramid\.",
    r"^detection_head\.",
    r"^classifier\.",
]


def sine_cosine_positions(grid: tuple[int, int], hidden_size: int) -> torch.Tensor:
    """Fixed sine-cosine position embeddings for a class token (zeros) and a grid of patches.

    Args:
        grid (`tuple[int, int]`):
            Rows and columns of patches.
        hidden_size (`int`):
            Divisible by 4.

    Returns:
        `torch.Tensor` of shape `(1, 1 + rows * columns, hidden_size)`, in the default dtype. The first half encodes
        the columns and the second the rows: MAE's code swapped the two, and its weights depend on that order.
    """
    table = build_2d_sinusoidal_position_embedding(*grid, embed_dim=hidden_size, cls_token=True)
    rows, columns = table.chunk(2, dim=-1)
    # not float32: from_pretrained builds the model with the dtype of the weights as default
    return torch.cat([columns, rows], dim=-1).unsqueeze(0).to(torch.get_default_dtype())


def interpolate_positions(positions: torch.Tensor, old_grid: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Resize position embeddings to another patch grid (bicubic, as in DINO and ViT).

    Args:
        positions (`torch.Tensor` of shape `(1, 1 + old_rows * old_columns, hidden_size)`):
            Class token first, then the patches in row-major order.
        old_grid, grid (`tuple[int, int]`):
            Rows and columns of `positions` and of the result.

    Returns:
        `torch.Tensor` of shape `(1, 1 + rows * columns, hidden_size)`.
    """
    # an exported program must work for every size, so it always interpolates
    if grid == old_grid and not torch.compiler.is_exporting():
        return positions
    class_position, patch_positions = positions[:, :1], positions[:, 1:]
    patch_positions = patch_positions.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    patch_positions = nn.functional.interpolate(patch_positions, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([class_position, patch_positions.flatten(2).transpose(1, 2)], dim=1)


class VasoMIMPatchEmbeddings(nn.Module):
    """Embed patches: frames of shape (B, C, H, W) to (B, N, D), row by row; with `ids_keep`, only those patches."""

    def __init__(self, config: VasoMIMConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.num_channels = config.num_channels
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        # MAE initialises this kernel like a linear layer on the flattened patch
        self.projection._init_fan_in_out = (config.num_channels * config.patch_size**2, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor, ids_keep: torch.Tensor | None = None) -> torch.Tensor:
        pixel_values = self._pad(pixel_values).to(self.projection.weight.dtype)
        if ids_keep is None:
            return self.projection(pixel_values).flatten(2).transpose(1, 2)
        # equivalent to the convolution, but computed for the visible patches only
        size = self.patch_size
        patches = pixel_values.unflatten(2, (-1, size)).unflatten(4, (-1, size)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        patches = take_patches(patches.flatten(1, 2), ids_keep)
        return nn.functional.linear(patches, self.projection.weight.flatten(1), self.projection.bias)

    def _pad(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"`pixel_values` must have shape (batch_size, {self.num_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}. The image processor repeats grey frames to three channels."
            )
        height, width = pixel_values.shape[-2:]
        if height < self.patch_size or width < self.patch_size:
            raise ValueError(
                f"A frame must be at least one patch of {self.patch_size}×{self.patch_size} pixels, got "
                f"{height}×{width}. Resize it with the image processor."
            )
        bottom, right = -height % self.patch_size, -width % self.patch_size
        if bottom or right:
            pixel_values = nn.functional.pad(pixel_values, (0, right, 0, bottom), mode="replicate")
        return pixel_values


class VasoMIMEmbeddings(nn.Module):
    """Patch embeddings with a class token and position embeddings; masked patches are dropped."""

    position_embeddings: torch.Tensor

    def __init__(self, config: VasoMIMConfig):
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = VasoMIMPatchEmbeddings(config)
        # a buffer rather than a frozen parameter: from_pretrained makes every floating-point parameter trainable
        self.register_buffer("position_embeddings", sine_cosine_positions(config.patch_grid, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        pixel_values: torch.Tensor,
        ids_keep: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = True,
    ) -> torch.Tensor:
        embeddings = self.patch_embeddings(pixel_values, ids_keep)
        positions = self._positions(pixel_values, interpolate_pos_encoding)
        patch_positions = positions[:, 1:].expand(len(embeddings), -1, -1)
        embeddings = embeddings + (patch_positions if ids_keep is None else take_patches(patch_positions, ids_keep))
        cls_token = (self.cls_token + positions[:, :1]).expand(len(embeddings), -1, -1)
        return self.dropout(torch.cat([cls_token, embeddings], dim=1))

    def _positions(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> torch.Tensor:
        size = tuple(pixel_values.shape[-2:])
        if not interpolate_pos_encoding and size != self.config.image_height_width:
            height, width = self.config.image_height_width
            raise ValueError(
                f"`pixel_values` must be {height}×{width} with interpolate_pos_encoding=False, got "
                f"{size[0]}×{size[1]}."
            )
        grid = grid_of(pixel_values, self.config.patch_size)
        return interpolate_positions(self.position_embeddings, self.config.patch_grid, grid)


def grid_of(pixel_values: torch.Tensor, patch_size: int) -> tuple[int, int]:
    """Rows and columns of the patch grid of frames of shape (B, C, H, W), including padded patches."""
    height, width = pixel_values.shape[-2:]
    return -(-height // patch_size), -(-width // patch_size)


def take_patches(patches: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Select patches of shape (B, N, D) by indices of shape (B, M); returns shape (B, M, D)."""
    return patches.gather(1, ids.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


def visible_patches(bool_masked_pos: torch.Tensor) -> torch.Tensor:
    """Indices of the visible patches in row-major order.

    Args:
        bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`):
            `True` for masked patches; the same number in every image.

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_visible)`.

    Raises:
        ValueError: If the number of masked patches differs between images.
    """
    hidden = bool_masked_pos.flatten(1).bool()
    num_hidden = hidden.sum(dim=1)
    if (num_hidden != num_hidden[0]).any():
        raise ValueError(
            "Every image of a batch must have the same number of masked patches, got between "
            f"{num_hidden.min().item()} and {num_hidden.max().item()}. Create `bool_masked_pos` with `guided_mask`."
        )
    return hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, : hidden.shape[1] - num_hidden[0].item()]


class VasoMIMAttention(ViTAttention):
    """Attention of transformers' ViT, with a workaround for slow `sdpa` when training in bf16 on a CPU.

    There the backward pass of `scaled_dot_product_attention` takes three times as long as that of the plain matrix
    products (measured by `benchmarks/benchmark_model.py`).
    """

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if attention_mask is not None or not self._sdpa_is_slow(hidden_states):
            return super().forward(hidden_states, attention_mask, **kwargs)
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (projection(hidden_states).view(shape).transpose(1, 2) for projection in projections)
        weights = torch.matmul(query * self.scaling, key.transpose(2, 3)).softmax(dim=-1)
        attended = torch.matmul(weights, value).transpose(1, 2).flatten(2)
        return self.o_proj(attended), None

    def _sdpa_is_slow(self, hidden_states: torch.Tensor) -> bool:
        if self.config._attn_implementation != "sdpa" or hidden_states.device.type != "cpu":
            return False
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden_states.dtype
        return dtype == torch.bfloat16 and torch.is_grad_enabled() and not (self.training and self.attention_dropout)


class VasoMIMDropPath(nn.Module):
    """Dropout at the end of a residual branch, followed by drop path (stochastic depth) per image."""

    def __init__(self, dropout: float, drop_path_rate: float):
        super().__init__()
        self.dropout = dropout
        self.drop_path_rate = drop_path_rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return hidden_states
        hidden_states = nn.functional.dropout(hidden_states, self.dropout)
        # dropout of one value per image; kept branches are scaled by 1 / (1 - rate)
        kept = torch.ones_like(hidden_states[:, :1, :1])
        return (
            hidden_states * nn.functional.dropout(kept, self.drop_path_rate) if self.drop_path_rate else hidden_states
        )

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}, drop_path_rate={self.drop_path_rate:.3g}"


class VasoMIMLayer(ViTLayer):
    """Layer of transformers' ViT with MAE's initialisation and stochastic depth."""

    def __init__(self, config: VasoMIMConfig, drop_path_rate: float = 0.0):
        super().__init__(config)
        self.attention = VasoMIMAttention(config)
        # ViTLayer applies this to both branches before the residual addition
        self.dropout = VasoMIMDropPath(config.hidden_dropout_prob, drop_path_rate)
        # MAE has a single matrix for query, key and value and initialises it as a whole
        size = config.hidden_size
        for projection in (self.attention.q_proj, self.attention.k_proj, self.attention.v_proj):
            projection._init_fan_in_out = (size, 3 * size)


def encoder_layers(config: VasoMIMConfig) -> nn.ModuleList:
    """The encoder layers, with a stochastic depth rate that increases linearly from 0 to `config.drop_path_rate`."""
    last = max(config.num_hidden_layers - 1, 1)
    rates = [config.drop_path_rate * number / last for number in range(config.num_hidden_layers)]
    return nn.ModuleList([VasoMIMLayer(config, rate) for rate in rates])


class VasoMIMPreTrainedModel(PreTrainedModel):
    config: VasoMIMConfig
    base_model_prefix = "vasomim"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VasoMIMEmbeddings", "VasoMIMLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": VasoMIMLayer, "attentions": VasoMIMAttention}
    _input_embed_layer = "patch_embeddings"

    def train(self, mode: bool = True) -> "VasoMIMPreTrainedModel":
        """Set the training mode; an encoder frozen by `config.freeze_encoder` stays in evaluation mode."""
        super().train(mode)
        # from_pretrained makes every floating-point parameter trainable and calls this method last
        if self.config.freeze_encoder:
            self._freeze_base_model()
        return self

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Freeze or unfreeze the encoder below a head. The state is saved with the configuration.

        Args:
            frozen (`bool`, defaults to `True`):
                `True` disables gradients and keeps the encoder in evaluation mode during training.
        """
        self.config.freeze_encoder = frozen
        self.base_model.requires_grad_(not frozen)
        self.train(self.training)

    def _freeze_base_model(self) -> None:
        if self.base_model is not self:
            self.base_model.requires_grad_(False).eval()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            self._init_xavier_uniform(module)
        elif isinstance(module, VasoMIMEmbeddings):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            positions = sine_cosine_positions(self.config.patch_grid, self.config.hidden_size)
            init.copy_(module.position_embeddings, positions)

    def _init_xavier_uniform(self, module: nn.Linear | nn.Conv2d) -> None:
        # not xavier_uniform_ on a view: a view loses the flag that marks loaded weights
        fan_in, fan_out = getattr(module, "_init_fan_in_out", module.weight.shape[1::-1])
        bound = (6.0 / (fan_in + fan_out)) ** 0.5
        init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            init.zeros_(module.bias)


class VasoMIMModel(VasoMIMPreTrainedModel):
    """VasoMIM's encoder: a Vision Transformer without a task head.

    Example:
        >>> from vasomim_hf.presets import load_preset
        >>> model = VasoMIMModel(load_preset("tiny"))
        >>> model(torch.zeros(1, 3, 224, 224)).last_hidden_state.shape
        torch.Size([1, 197, 192])
    """

    _keys_to_ignore_on_load_unexpected = NON_ENCODER_KEYS

    def __init__(self, config: VasoMIMConfig):
        super().__init__(config)
        self.embeddings = VasoMIMEmbeddings(config)
        self.layers = encoder_layers(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        ids_keep: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode frames.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised frames from the image processor; each side at least one patch. Sides that `patch_size` does
                not divide are padded at the right and bottom by repeating the edge.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`, *optional*):
                `True` for masked patches, which are dropped from the sequence; the same number in every image.
                Counting them forces a device synchronisation; `ids_keep` does not.
            ids_keep (`torch.LongTensor` of shape `(batch_size, num_visible)`, *optional*):
                Indices of the patches to encode, in sequence order; an alternative to `bool_masked_pos`.
            interpolate_pos_encoding (`bool`, defaults to `True`):
                Whether sizes other than `config.image_size` are accepted.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` of shape `(batch_size, 1 + num_visible, hidden_size)`,
            after the final layer norm, class token first; `pooler_output` of shape `(batch_size, hidden_size)`, the
            class token.

        Raises:
            ValueError: If a shape does not match.
            TypeError: If an argument is unknown.
        """
        reject_unknown_arguments(self, kwargs)
        if bool_masked_pos is not None:
            ids_keep = self._visible_patches(pixel_values, bool_masked_pos, ids_keep)
        hidden_states = self.embeddings(pixel_values, ids_keep, interpolate_pos_encoding)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])

    def _visible_patches(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor, ids_keep: torch.Tensor | None
    ) -> torch.Tensor:
        if ids_keep is not None:
            raise ValueError("Pass one of `bool_masked_pos` and `ids_keep`, got both.")
        rows, columns = grid_of(pixel_values, self.config.patch_size)
        if bool_masked_pos.flatten(1).shape != (len(pixel_values), rows * columns):
            raise ValueError(
                f"`bool_masked_pos` must have shape ({len(pixel_values)}, {rows * columns}), one flag per patch of "
                f"{rows}×{columns}, got {tuple(bool_masked_pos.shape)}."
            )
        return visible_patches(bool_masked_pos)


class VasoMIMBackbone(BackboneMixin, VasoMIMPreTrainedModel):
    """The encoder as a backbone: returns one feature map for each of `config.out_features`.

    Example:
        >>> from vasomim_hf.presets import load_preset
        >>> backbone = VasoMIMBackbone(load_preset("tiny", out_indices=[6, 12]))
        >>> [tuple(feature_map.shape) for feature_map in backbone(torch.zeros(1, 3, 224, 320)).feature_maps]
        [(1, 192, 14, 20), (1, 192, 14, 20)]
    """

    _keys_to_ignore_on_load_unexpected = NON_ENCODER_KEYS

    def __init__(self, config: VasoMIMConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.embeddings = VasoMIMEmbeddings(config)
        self.layers = encoder_layers(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Compute feature maps.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                As for [`VasoMIMModel`].

        Returns:
            `BackboneOutput`: `feature_maps`, a tuple of tensors of shape `(batch_size, hidden_size, rows, columns)`,
            each after the final layer norm.
        """
        hidden_states = self.embeddings(pixel_values)
        stages = [hidden_states]
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
            stages.append(hidden_states)
        grid = grid_of(pixel_values, self.config.patch_size)
        named = zip(self.stage_names, stages, strict=True)
        return BackboneOutput(
            feature_maps=tuple(self._feature_map(stage, grid) for name, stage in named if name in self.out_features)
        )

    def _feature_map(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        patches = self.layernorm(hidden_states)[:, 1:]
        return patches.transpose(1, 2).reshape(len(patches), -1, *grid)


__all__ = ["VasoMIMBackbone", "VasoMIMModel", "VasoMIMPreTrainedModel"]
