"""VasoMIM for pre-training: encoder, decoder, the frozen vessel segmentor and both losses.

Shapes: B batch size, N number of patches, P values per patch (`patch_size**2 * num_channels`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_vasomim import VasoMIMConfig
from .masking_vasomim import guided_order, patch_scores
from .modeling_unext import UNeXtForVesselSegmentation, at_least_float32, check_vesselness, reject_unknown_arguments
from .modeling_vasomim import (
    VasoMIMLayer,
    VasoMIMModel,
    VasoMIMPreTrainedModel,
    grid_of,
    interpolate_positions,
    sine_cosine_positions,
    take_patches,
)


@dataclass
class VasoMIMForPreTrainingOutput(ModelOutput):
    """Output of [`VasoMIMForPreTraining`].

    Args:
        loss (`torch.Tensor`):
            Scalar: reconstruction loss + `consistency_loss_weight` × consistency loss.
        reconstruction_loss (`torch.Tensor`):
            Scalar: mean squared error over the masked patches.
        consistency_loss (`torch.Tensor`):
            Scalar: cross entropy between the segmentor's predictions for the frame and for its reconstruction; zero
            without a segmentor.
        logits (`torch.Tensor` of shape `(batch_size, num_patches, patch_size**2 * num_channels)`):
            Predicted values of every patch, normalised per patch with `norm_pix_loss`.
        mask (`torch.Tensor` of shape `(batch_size, num_patches)`):
            1 for masked patches, 0 for visible ones.
        ids_restore (`torch.LongTensor` of shape `(batch_size, num_patches)`):
            Rank of each patch in the order from visible to masked.
        reconstruction (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            All predicted patches assembled into a frame, on the scale of `pixel_values`.
        hidden_states, attentions (`tuple[torch.Tensor]`, *optional*):
            Of the encoder, if requested.
    """

    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    consistency_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def patchify(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Split frames into flattened patches.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Height and width divisible by `patch_size`.
        patch_size (`int`):
            Side length of a patch in pixels.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches, patch_size**2 * num_channels)`: patches in row-major order,
        each flattened as rows, columns, channels, as in MAE.
    """
    patches = pixel_values.unflatten(2, (-1, patch_size)).unflatten(4, (-1, patch_size))
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: torch.Tensor, patch_size: int, grid: tuple[int, int]) -> torch.Tensor:
    """Assemble patches into frames, the inverse of [`patchify`].

    Args:
        patches (`torch.Tensor` of shape `(batch_size, rows * columns, patch_size**2 * num_channels)`):
            Patches in row-major order.
        patch_size (`int`):
            Side length of a patch in pixels.
        grid (`tuple[int, int]`):
            Rows and columns of patches.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_channels, rows * patch_size, columns * patch_size)`.
    """
    patches = patches.unflatten(1, grid).unflatten(3, (patch_size, patch_size, -1))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class VasoMIMDecoderLayerConfig:
    """View of a model configuration with the decoder's sizes in place of the encoder's.
    Not a copy: a change of the attention implementation must reach the decoder too.
    """

    _renamed = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")

    def __init__(self, config: VasoMIMConfig):
        self._config = config

    def __getattr__(self, name: str) -> object:
        if name == "_config":  # copy and pickle look it up before it is set
            raise AttributeError(name)
        return getattr(self._config, f"decoder_{name}" if name in self._renamed else name)


class VasoMIMDecoder(nn.Module):
    """Inserts mask tokens for the masked patches and predicts the values of every patch."""

    position_embeddings: torch.Tensor

    def __init__(self, config: VasoMIMConfig):
        super().__init__()
        self.config = config
        size = config.decoder_hidden_size
        layer_config = VasoMIMDecoderLayerConfig(config)
        self.embed = nn.Linear(config.hidden_size, size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size))
        self.register_buffer("position_embeddings", sine_cosine_positions(config.patch_grid, size))
        self.layers = nn.ModuleList([VasoMIMLayer(layer_config) for _ in range(config.decoder_num_hidden_layers)])
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.predictor = nn.Linear(size, config.patch_size**2 * config.num_channels)

    def forward(self, hidden_states: torch.Tensor, ids_restore: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        hidden_states = self._with_mask_tokens(self.embed(hidden_states), ids_restore)
        positions = interpolate_positions(self.position_embeddings, self.config.patch_grid, grid)
        hidden_states = hidden_states + positions
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.predictor(self.layernorm(hidden_states[:, 1:]))

    def _with_mask_tokens(self, hidden_states: torch.Tensor, ids_restore: torch.Tensor) -> torch.Tensor:
        cls_token, visible = hidden_states[:, :1], hidden_states[:, 1:]
        num_hidden = ids_restore.shape[1] - visible.shape[1]
        # under autocast the embeddings may have a lower precision than the token
        mask_tokens = self.mask_token.to(visible.dtype).expand(len(visible), num_hidden, -1)
        patches = torch.cat([visible, mask_tokens], dim=1)
        return torch.cat([cls_token, take_patches(patches, ids_restore)], dim=1)


class VasoMIMForPreTraining(VasoMIMPreTrainedModel):
    """Encoder, decoder and a frozen vessel segmentor, which provides masking guidance and the consistency loss.

    The segmentor starts with random weights: load trained ones with [`VasoMIMForPreTraining.load_segmentor`].

    Example:
        >>> from vasomim_hf.presets import load_preset
        >>> model = VasoMIMForPreTraining(load_preset("tiny"))
        >>> output = model(torch.zeros(2, 3, 224, 224), vesselness=torch.zeros(2, 1, 224, 224), progress=0.5)
        >>> output.mask.sum(dim=1)
        tensor([98., 98.])
    """

    accepts_loss_kwargs = False
    _no_split_modules = ["VasoMIMEmbeddings", "VasoMIMLayer", "VasoMIMDecoder", "UNeXtForVesselSegmentation"]

    def __init__(self, config: VasoMIMConfig):
        super().__init__(config)
        self.vasomim = VasoMIMModel(config)
        self.decoder = VasoMIMDecoder(config)
        self.segmentor = UNeXtForVesselSegmentation(config.segmentor_config) if config.has_segmentor else None
        self.post_init()
        self._freeze_segmentor()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VasoMIMDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            positions = sine_cosine_positions(self.config.patch_grid, self.config.decoder_hidden_size)
            init.copy_(module.position_embeddings, positions)

    def train(self, mode: bool = True) -> "VasoMIMForPreTraining":
        """Set the training mode; the segmentor stays frozen and in evaluation mode."""
        super().train(mode)
        # from_pretrained makes every floating-point parameter trainable and calls this method last
        self._freeze_segmentor()
        return self

    def _freeze_segmentor(self) -> None:
        if self.segmentor is not None:
            self.segmentor.requires_grad_(False).eval()

    def load_segmentor(self, segmentor: "UNeXtForVesselSegmentation | str") -> None:
        """Copy the weights of a trained segmentor into this model.

        Args:
            segmentor (`UNeXtForVesselSegmentation` or `str`):
                A model, or its local folder or Hub id.

        Raises:
            ValueError: If this model has no segmentor, or the two architectures differ.
        """
        if self.segmentor is None:
            raise ValueError(
                "This model has no segmentor because filter_weight=1 and consistency_loss_weight=0. Change one of "
                "them."
            )
        trained = (
            segmentor if isinstance(segmentor, nn.Module) else UNeXtForVesselSegmentation.from_pretrained(segmentor)
        )
        try:
            self.segmentor.load_state_dict(trained.state_dict())
        except RuntimeError as error:
            raise ValueError(
                "The segmentor does not match `config.segmentor_config`. Build the model with "
                f"segmentor_config={trained.config.to_diff_dict()}. ({error})"
            ) from error
        self._freeze_segmentor()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        vesselness: torch.Tensor | None = None,
        progress: float | torch.Tensor = 0.0,
        noise: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VasoMIMForPreTrainingOutput:
        """Mask patches, reconstruct them, and compute the reconstruction and consistency losses.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised frames from the image processor; sides divisible by `patch_size`.
            vesselness (`torch.Tensor` of shape `(batch_size, 1, height, width)` or `(batch_size, height, width)`, *optional*):
                Vesselness from the filter, bool, integer or float in [0, 1]. Without it the guidance comes from the
                segmentor alone; without a segmentor as well, the masks are uniform.
            progress (`float` or scalar `torch.Tensor`, defaults to 0):
                Fraction of training completed, in [0, 1]. The guidance ratio is `start + progress * (end - start)`.
            noise (`torch.Tensor` of shape `(batch_size, num_patches)`, *optional*):
                Uniform in [0, 1); determines which patches are masked, see [`guided_mask`].

        Returns:
            [`VasoMIMForPreTrainingOutput`]

        Raises:
            ValueError: If a shape does not match, `progress` or `vesselness` is out of range, or a pixel is not
            finite. Values of tensors on an accelerator are not checked, because that would force a synchronisation.
            TypeError: If an argument is unknown.
        """
        reject_unknown_arguments(self, kwargs)
        self._check_inputs(pixel_values, vesselness, progress)
        grid = grid_of(pixel_values, self.config.patch_size)
        vessel_logits = self.segment(pixel_values)
        order, num_visible = self.draw_order(pixel_values, vesselness, vessel_logits, progress, noise)
        ids_restore = order.argsort(dim=1)
        mask = (ids_restore >= num_visible).float()

        encoded = self.vasomim(pixel_values, ids_keep=order[:, :num_visible], **kwargs)
        logits = self.decoder(encoded.last_hidden_state, ids_restore, grid)
        target, mean, std = self.reconstruction_target(pixel_values)
        reconstruction_loss = self.reconstruction_loss(logits, target, mask)
        reconstruction = unpatchify(at_least_float32(logits) * std + mean, self.config.patch_size, grid)
        consistency_loss = self.consistency_loss(reconstruction, vessel_logits)

        return VasoMIMForPreTrainingOutput(
            loss=reconstruction_loss + self.config.consistency_loss_weight * consistency_loss,
            reconstruction_loss=reconstruction_loss,
            consistency_loss=consistency_loss,
            logits=logits,
            mask=mask,
            ids_restore=ids_restore,
            reconstruction=reconstruction,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    @torch.no_grad()
    def segment(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """Vessel logits of the segmentor, of shape `(batch_size, 1, height, width)`; `None` without a segmentor."""
        if self.segmentor is None:
            return None
        return self.segmentor(pixel_values.contiguous(memory_format=torch.channels_last)).logits

    @torch.no_grad()
    def draw_order(
        self,
        pixel_values: torch.Tensor,
        vesselness: torch.Tensor | None,
        vessel_logits: torch.Tensor | None,
        progress: float | torch.Tensor,
        noise: torch.Tensor | None,
    ) -> tuple[torch.Tensor, int]:
        """Order of the patches from visible to masked, of shape `(batch_size, num_patches)`, and the number of visible
        ones."""
        guidance_map = self.guidance_map(pixel_values, vesselness, vessel_logits)
        scores = patch_scores(guidance_map, self.config.patch_size)
        start, end = self.config.guidance_ratio_start, self.config.guidance_ratio_end
        return guided_order(scores, self.config.mask_ratio, start + progress * (end - start), noise=noise)

    def guidance_map(
        self, pixel_values: torch.Tensor, vesselness: torch.Tensor | None, vessel_logits: torch.Tensor | None
    ) -> torch.Tensor:
        """Combine both sources of guidance: `filter_weight` × filter + `1 - filter_weight` × segmentor (G = ηB +
        (1-η)M).

        Returns:
            `torch.Tensor` of shape `(batch_size, 1, height, width)`: float in [0, 1].
        """
        if vesselness is not None:
            vesselness = at_least_float32(vesselness.reshape(len(pixel_values), 1, *pixel_values.shape[-2:]))
        if vessel_logits is None:
            return torch.zeros_like(pixel_values[:, :1], dtype=torch.float32) if vesselness is None else vesselness
        probability = at_least_float32(vessel_logits).sigmoid()
        if vesselness is None:
            return probability
        return self.config.filter_weight * vesselness + (1 - self.config.filter_weight) * probability

    def reconstruction_target(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patch values of shape (B, N, P), and the mean and standard deviation, (B, N, 1), used to normalise them.

        As in MAE, the variance is unbiased and 1e-6 is added to it.
        """
        patches = patchify(at_least_float32(pixel_values), self.config.patch_size)
        if not self.config.norm_pix_loss:
            return patches, patches.new_zeros(()), patches.new_ones(())
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        std = (variance + 1e-6).sqrt()
        return (patches - mean) / std, mean, std

    def reconstruction_loss(self, logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean squared error per patch, averaged over the masked patches.

        Args:
            logits, target (`torch.Tensor` of shape `(batch_size, num_patches, patch_size**2 * num_channels)`):
                Predicted and target values.
            mask (`torch.Tensor` of shape `(batch_size, num_patches)`):
                1 for masked patches.

        Returns:
            `torch.Tensor`: scalar, float32.
        """
        error = (at_least_float32(logits) - target).square().mean(dim=-1)
        return (error * mask).sum() / mask.sum()

    def consistency_loss(self, reconstruction: torch.Tensor, vessel_logits: torch.Tensor | None) -> torch.Tensor:
        """Cross entropy of the segmentor's prediction for the reconstruction, with that for the frame as soft target.

        As in the authors' code, all patches count. For the visible ones this is the only training signal.

        Args:
            reconstruction (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                On the scale of `pixel_values`.
            vessel_logits (`torch.Tensor` of shape `(batch_size, 1, height, width)`, *optional*):
                Vessel logits of the frame.

        Returns:
            `torch.Tensor`: scalar, float32; zero if the loss weight is zero.
        """
        if self.segmentor is None or vessel_logits is None or self.config.consistency_loss_weight == 0:
            return reconstruction.new_zeros(())
        seen = self.segmentor(reconstruction.contiguous(memory_format=torch.channels_last)).logits
        target = at_least_float32(vessel_logits).sigmoid()
        return nn.functional.binary_cross_entropy_with_logits(at_least_float32(seen), target)

    def _check_inputs(
        self, pixel_values: torch.Tensor, vesselness: torch.Tensor | None, progress: float | torch.Tensor
    ) -> None:
        height, width = pixel_values.shape[-2:]
        if height % self.config.patch_size or width % self.config.patch_size:
            raise ValueError(
                f"Pre-training needs sides divisible by patch_size={self.config.patch_size}, got {height}×{width}. "
                "Crop or resize the frames."
            )
        if not isinstance(progress, torch.Tensor) and not 0 <= progress <= 1:
            raise ValueError(
                f"`progress` is the fraction of training completed and must be in [0, 1], got {progress}."
            )
        self._check_finite(pixel_values)
        if vesselness is None:
            return
        num_pixels = len(pixel_values) * height * width
        if vesselness.shape[-2:] != pixel_values.shape[-2:] or vesselness.numel() != num_pixels:
            raise ValueError(
                f"`vesselness` must have shape ({len(pixel_values)}, 1, {height}, {width}), one map per frame and of "
                f"its size, got {tuple(vesselness.shape)}. Crop the map together with the frame."
            )
        check_vesselness("vesselness", vesselness)

    def _check_finite(self, pixel_values: torch.Tensor) -> None:
        if pixel_values.device.type != "cpu" or torch.compiler.is_compiling():
            return
        # numpy keeps this check out of traced and compiled graphs
        if not np.isfinite(pixel_values.detach().float().numpy().sum(dtype=np.float64)):
            raise ValueError(
                "`pixel_values` has values that are not finite. Find the frame in your data; the image "
                "processor rejects such frames."
            )


__all__ = ["VasoMIMForPreTraining", "VasoMIMForPreTrainingOutput"]
