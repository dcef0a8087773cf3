"""Configuration of UNeXt-S, the small vessel segmentor that guides VasoMIM."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


# Here, in the file that every published folder has. In label maps, pixels that count neither in losses nor in metrics (transformers' `semantic_loss_ignore_index`)
IGNORED_LABEL = 255


@strict
class UNeXtConfig(PreTrainedConfig):
    r"""Architecture of UNeXt (Valanarasu and Patel, arXiv:2203.04967). Defaults: the UNeXt-S that VasoMIM uses.

    Args:
        num_channels (`int`, defaults to 3):
            Channels of `pixel_values`.
        conv_hidden_sizes (`tuple[int, int, int]`, defaults to `(8, 16, 32)`):
            Channels of the three convolutional stages, from full resolution downwards; each halves the resolution.
        token_hidden_sizes (`tuple[int, int]`, defaults to `(64, 128)`):
            Channels of the two tokenised MLP stages; each halves the resolution.
        shift_size (`int`, defaults to 5):
            Number of channel groups in the shifted MLP, shifted by `-(shift_size // 2) ... shift_size // 2` pixels;
            odd.
        layer_norm_eps (`float`, defaults to 1e-5):
            Epsilon of the layer norms of the tokenised stages.
        id2label (`dict[int, str]`, *optional*):
            Class names, including the background. Defaults to `{0: "background", 1: "vessel"}`. A single name, as in
            older checkpoints, is that of class 1.

    Raises:
        ValueError: If a size is not positive, `shift_size` is even, or the number of stages is wrong.

    Example:
        >>> UNeXtConfig().token_hidden_sizes, UNeXtConfig().num_logits
        ((64, 128), 1)
    """

    model_type = "vasomim_unext"

    num_channels: int = 3
    conv_hidden_sizes: tuple[int, ...] | list[int] = (8, 16, 32)
    token_hidden_sizes: tuple[int, ...] | list[int] = (64, 128)
    shift_size: int = 5
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any):
        self._name_background(kwargs)
        super().__post_init__(**kwargs)
        self.validate_architecture()

    @property
    def num_logits(self) -> int:
        """Channels of the logits: one for the binary task, otherwise one per class."""
        return 1 if self.num_labels == 2 else self.num_labels

    def _name_background(self, kwargs: dict[str, object]) -> None:
        """Complete a single class name, as written by older checkpoints, with the background."""
        names = list((self.id2label or {0: "vessel"}).values())
        if len(names) == 1 and kwargs.get("num_labels") in (None, 1):
            kwargs.pop("num_labels", None)
            self.id2label = {0: "background", 1: names[0]}
            self.label2id = {"background": 0, names[0]: 1}

    def validate_architecture(self) -> None:
        """Reject invalid sizes."""
        for name, length in (("conv_hidden_sizes", 3), ("token_hidden_sizes", 2)):
            sizes = getattr(self, name)
            if len(sizes) != length or min(sizes) < 1:
                raise ValueError(
                    f"`{name}` must be {length} positive integers, got {tuple(sizes)}. UNeXt-S has (8, 16, 32) and "
                    "(64, 128)."
                )
        if self.shift_size < 1 or self.shift_size % 2 == 0:
            raise ValueError(
                "`shift_size` must be a positive odd number, so that the shifts are symmetric, got "
                f"{self.shift_size}. The paper uses 5."
            )
        if self.num_channels < 1:
            raise ValueError(
                f"`num_channels` must be at least 1, got {self.num_channels}. The image processor repeats grey "
                "frames to 3."
            )


__all__ = ["UNeXtConfig"]
