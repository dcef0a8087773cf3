"""Configuration of VasoMIM: everything a checkpoint defines, and nothing about the training run."""

import difflib
import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .configuration_unext import UNeXtConfig


@strict
class VasoMIMConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Architecture and training objective of VasoMIM (arXiv:2602.11536). Defaults: VasoMIM-B/16 as in the paper.

    Args:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size (`int`):
            Width, depth, attention heads and MLP width of the encoder.
        hidden_act (`str`, defaults to `"gelu"`):
            Activation function of the MLP.
        hidden_dropout_prob, attention_probs_dropout_prob (`float`, default to 0):
            Dropout probabilities, in [0, 1).
        initializer_range (`float`, defaults to 0.02):
            Standard deviation with which the class token and the mask token are initialised.
        layer_norm_eps (`float`, defaults to 1e-6):
            Epsilon of the layer norms.
        image_size (`int` or pair of `int`, defaults to 224):
            Height and width in pixels of the input that the position embeddings are built for; they are interpolated
            for other sizes.
        patch_size (`int`, defaults to 16):
            Side length of a patch in pixels.
        num_channels (`int`, defaults to 3):
            Channels of `pixel_values`. The image processor repeats grey frames.
        qkv_bias (`bool`, defaults to `True`):
            Whether the query, key and value projections have a bias.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size (`int`):
            Width, depth, attention heads and MLP width of the pre-training decoder.
        mask_ratio (`float`, defaults to 0.5):
            Fraction of patches masked in pre-training, in (0, 1).
        guidance_ratio_start, guidance_ratio_end (`float`, default to 0 and 0.5):
            Fraction of the masked patches that is sampled by vesselness at the first and the last training step, in
            [0, 1]; linear in between (beta_0 and beta_E in the paper).
        filter_weight (`float`, defaults to 0.5):
            Weight of the filter's vesselness in the guidance map, in [0, 1]; the segmentor's prediction has weight `1
            - filter_weight` (eta in the paper). 1 gives the first version of the method.
        consistency_loss_weight (`float`, defaults to 1):
            Weight of the anatomical consistency loss relative to the reconstruction loss, >= 0. With 0 and
            `filter_weight=1` the model has no segmentor.
        norm_pix_loss (`bool`, defaults to `True`):
            Whether reconstruction targets are normalised by the mean and standard deviation of each patch.
        segmentor_config (`UNeXtConfig` or `dict`, *optional*):
            Architecture of the frozen vessel segmentor. Defaults to UNeXt-S.
        detection_scale_factors (`list[float]`, defaults to 2, 1 and 0.5):
            Pyramid levels of `VasoMIMForObjectDetection`, from fine to coarse: resolution relative to the patch grid,
            each a power of two. With 16-pixel patches, 2, 1 and 0.5 are strides of 8, 16 and 32 pixels.
        detection_channels, detection_num_convs (`int`, default to 128 and 2):
            Channels of the pyramid and the head, and number of convolutions in each of the two branches of the head.
        detection_detail_stem_channels (`int`, defaults to 0):
            Channels of the convolutional stem that adds image detail to the pyramid; 0 disables it.
        detection_assigned_locations (`int`, defaults to 10):
            Maximum number of positive locations per box: those with the highest score ** `detection_score_exponent` x
            IoU ** `detection_iou_exponent`.
        detection_score_exponent, detection_iou_exponent (`float`, default to 1 and 6):
            Exponents of this alignment metric, >= 0 (alpha and beta of TOOD, arXiv:2108.07755).
        detection_box_loss_weight (`float`, defaults to 2):
            Weight of the GIoU loss relative to the classification loss, >= 0.
        drop_path_rate (`float`, defaults to 0):
            Stochastic depth rate of the last encoder layer, in [0, 1): probability of dropping each of its two
            residual branches for an image. Increases linearly from 0 at the first layer.
        freeze_encoder (`bool`, defaults to `False`):
            Whether the encoder of a model with a head is frozen: no gradients, and evaluation mode during training.
            Saved with the configuration, so a linear probe is still one after loading.
        classifier_pooling (`str`, defaults to `"mean"`):
            Features used for classification: `"mean"`, the mean of the patch tokens after the final layer norm, or
            `"cls"`, the class token.
        segmentation_layers (`list` of 4 `int`, *optional*):
            Encoder layers used by the segmentation head, counted from 1, from the finest to the coarsest level.
            Defaults to four layers evenly spaced over the depth, including the last.
        segmentation_hidden_size (`int`, defaults to 64):
            Channels of the segmentation head at strides of 4 and above, divisible by 16.
        segmentation_use_encoder (`bool`, defaults to `True`):
            Whether the segmentation model has an encoder. Without one it consists of the detail stem and the decoder
            only, a baseline that shows what the encoder adds.
        detail_stem_channels (`int`, defaults to 24):
            Channels at stride 1 of the detail stem, a convolutional branch on the grey image; divisible by 8. 0
            disables it.
        dice_weight, cl_dice_weight (`float`, default to 1 and 0):
            Weights of the soft Dice and soft clDice losses relative to the cross entropy, >= 0.
        cl_dice_iterations (`int`, defaults to 5):
            Number of erosions in the soft skeleton of clDice; half the width in pixels of the widest vessel.
        out_features, out_indices (`list`, *optional*):
            Layers whose feature maps `VasoMIMBackbone` returns: `"stem"`, `"stage1"`, ... or their indices.

    Raises:
        ValueError: If values are invalid or inconsistent.

    Example:
        >>> config = VasoMIMConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
        >>> config.mask_ratio, config.has_segmentor
        (0.5, True)
    """

    model_type = "vasomim"
    sub_configs_defaults = {"segmentor_config": UNeXtConfig}
    # outputs that Trainer must not collect as predictions
    keys_to_ignore_at_inference = [
        "hidden_states",
        "attentions",
        "cross_entropy_loss",
        "dice_loss",
        "cl_dice_loss",
        "loss_dict",
    ]

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float | int = 0.5
    guidance_ratio_start: float | int = 0.0
    guidance_ratio_end: float | int = 0.5
    filter_weight: float | int = 0.5
    consistency_loss_weight: float | int = 1.0
    norm_pix_loss: bool = True
    segmentor_config: dict | PreTrainedConfig | None = None
    detection_scale_factors: list[float | int] | tuple[float | int, ...] = (2, 1, 0.5)
    detection_channels: int = 128
    detection_num_convs: int = 2
    detection_detail_stem_channels: int = 0
    detection_assigned_locations: int = 10
    detection_score_exponent: float | int = 1.0
    detection_iou_exponent: float | int = 6.0
    detection_box_loss_weight: float | int = 2.0
    drop_path_rate: float | int = 0.0
    freeze_encoder: bool = False
    classifier_pooling: str = "mean"
    segmentation_layers: list[int] | tuple[int, ...] | None = None
    segmentation_hidden_size: int = 64
    segmentation_use_encoder: bool = True
    detail_stem_channels: int = 24
    dice_weight: float | int = 1.0
    cl_dice_weight: float | int = 0.0
    cl_dice_iterations: int = 5
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any):
        self._reject_misspelt_names(kwargs)
        if self.segmentor_config is None:
            self.segmentor_config = UNeXtConfig(num_channels=self.num_channels)
        elif isinstance(self.segmentor_config, dict):
            self.segmentor_config = UNeXtConfig(**{"num_channels": self.num_channels, **self.segmentor_config})
        self.validate_architecture()
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        super().__post_init__(**kwargs)

    def _reject_misspelt_names(self, kwargs: dict) -> None:
        # transformers stores unknown keywords as attributes, so a typo would otherwise go unnoticed
        names = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        for key in kwargs:
            close = [] if hasattr(type(self), key) else difflib.get_close_matches(key, names, n=1, cutoff=0.88)
            if close:
                raise ValueError(f"VasoMIMConfig has no `{key}`. Did you mean `{close[0]}`?")

    @property
    def image_height_width(self) -> tuple[int, int]:
        """Height and width in pixels that the position embeddings are built for."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid at `image_size`."""
        height, width = self.image_height_width
        return height // self.patch_size, width // self.patch_size

    @property
    def has_segmentor(self) -> bool:
        """Whether the pre-training model needs the segmentor, for guidance or for the consistency loss."""
        return self.filter_weight < 1 or self.consistency_loss_weight > 0

    @property
    def segmentation_layer_numbers(self) -> list[int]:
        """The four encoder layers of the segmentation head, counted from 1."""
        if self.segmentation_layers is not None:
            return list(self.segmentation_layers)
        # rounding up repeats layers in encoders with fewer than four
        return [-(-self.num_hidden_layers * level // 4) for level in range(1, 5)]

    def validate_architecture(self) -> None:
        """Reject combinations that cannot be built or trained."""
        self._validate_sizes()
        self._validate_objective()
        self._validate_heads()
        self._validate_detection()

    def _validate_sizes(self) -> None:
        for prefix in ("", "decoder_"):
            size, heads = getattr(self, f"{prefix}hidden_size"), getattr(self, f"{prefix}num_attention_heads")
            if heads < 1 or size < 4 or size % heads or size % 4:
                raise ValueError(
                    f"`{prefix}hidden_size` must be divisible by `{prefix}num_attention_heads` and by 4 (for the "
                    f"sine-cosine position embeddings), got {size} with {heads} heads. Change one of the two."
                )
        counts = ("patch_size", "num_channels", "num_hidden_layers", "intermediate_size")
        for name in (*counts, "decoder_num_hidden_layers", "decoder_intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is a probability and must be in [0, 1), got {getattr(self, name)}.")
        if not self.initializer_range > 0 or not self.layer_norm_eps > 0:
            raise ValueError(
                "`initializer_range` and `layer_norm_eps` must be > 0, got "
                f"{self.initializer_range} and {self.layer_norm_eps}."
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {', '.join(ACT2FN)}, got {self.hidden_act!r}.")
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(f"`image_size` must be an integer or (height, width), got {self.image_size}.")
        height, width = self.image_height_width
        if min(height, width) < self.patch_size or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"`image_size` must be divisible by patch_size={self.patch_size}, got {self.image_size}. Nearest "
                f"size: {max(1, round(height / self.patch_size)) * self.patch_size}."
            )

    def _validate_objective(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(
                f"`mask_ratio` must be in (0, 1), got {self.mask_ratio}: 0 leaves nothing to reconstruct and 1 "
                "nothing to reconstruct it from. The paper uses 0.5."
            )
        for name in ("guidance_ratio_start", "guidance_ratio_end", "filter_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is a fraction and must be in [0, 1], got {getattr(self, name)}.")
        if not 0 <= self.consistency_loss_weight < float("inf"):
            raise ValueError(
                f"`consistency_loss_weight` must be a finite number >= 0, got {self.consistency_loss_weight}. "
                "Use 0 to disable the consistency loss."
            )
        segmentor = self.segmentor_config
        if self.has_segmentor and (segmentor.num_channels != self.num_channels or segmentor.num_logits != 1):
            raise ValueError(
                f"The segmentor must accept {self.num_channels} channels and return one logit per pixel, got "
                f"num_channels={segmentor.num_channels} and num_logits={segmentor.num_logits} in `segmentor_config`."
            )
        if self.norm_pix_loss and self.patch_size**2 * self.num_channels < 2:
            raise ValueError(
                "`norm_pix_loss` needs at least two values in a patch, got patches of one. Set it to False."
            )

    def _validate_heads(self) -> None:
        if self.classifier_pooling not in ("mean", "cls"):
            raise ValueError(f"`classifier_pooling` must be 'mean' or 'cls', got {self.classifier_pooling!r}.")
        layers = self.segmentation_layer_numbers
        if len(layers) != 4 or layers != sorted(layers) or not 1 <= layers[0] <= layers[-1] <= self.num_hidden_layers:
            raise ValueError(
                f"`segmentation_layers` must be four layers from 1 to {self.num_hidden_layers} in ascending order, "
                f"got {layers}."
            )
        if self.segmentation_hidden_size < 16 or self.segmentation_hidden_size % 16:
            raise ValueError(
                "`segmentation_hidden_size` must be a multiple of 16 (it is halved twice and group-normalised), got "
                f"{self.segmentation_hidden_size}."
            )
        if self.detail_stem_channels < 0 or self.detail_stem_channels % 8:
            raise ValueError(
                "`detail_stem_channels` must be a multiple of 8, or 0 to disable the stem, got "
                f"{self.detail_stem_channels}."
            )
        if not self.segmentation_use_encoder and not self.detail_stem_channels:
            raise ValueError(
                "A segmentation model needs an encoder, a detail stem or both: set `segmentation_use_encoder` to True "
                "or `detail_stem_channels` above 0."
            )
        for name in ("dice_weight", "cl_dice_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be a finite number >= 0, got {getattr(self, name)}.")
        if self.cl_dice_iterations < 1:
            raise ValueError(f"`cl_dice_iterations` must be at least 1, got {self.cl_dice_iterations}.")

    def _validate_detection(self) -> None:
        factors = list(self.detection_scale_factors)
        if (
            not factors
            or factors != sorted(set(factors), reverse=True)
            or any(not _is_power_of_two(f) for f in factors)
        ):
            raise ValueError(
                f"`detection_scale_factors` must be distinct powers of two in descending order, got {factors}. "
                "Use [2, 1, 0.5], or [4, 2, 1, 0.5] for smaller boxes."
            )
        if self.detection_channels < 8 or self.detection_channels % 8:
            raise ValueError(
                "`detection_channels` must be a multiple of 8 (its group norms have 8 groups), got "
                f"{self.detection_channels}."
            )
        for name, least in (
            ("detection_num_convs", 0),
            ("detection_detail_stem_channels", 0),
            ("detection_assigned_locations", 1),
            ("detection_score_exponent", 0),
            ("detection_iou_exponent", 0),
            ("detection_box_loss_weight", 0),
        ):
            if not least <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be a finite number >= {least}, got {getattr(self, name)}.")


def _is_power_of_two(factor: float) -> bool:
    return factor > 0 and math.frexp(factor)[0] == 0.5


__all__ = ["VasoMIMConfig"]
