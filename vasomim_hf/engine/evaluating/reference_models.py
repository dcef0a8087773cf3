"""A standard U-Net as a reference model, trained and evaluated like the models of this package.

MONAI's `BasicUNet` (Falk et al., "U-Net: deep learning for cell counting, detection, and morphometry", 2019), without
pre-trained weights. Not required by the package; MONAI is in the extra `dev`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from ...import_utils import require
from ...modeling_vasomim_segmentation import IGNORED_LABEL, check_segmentation_labels, soft_dice_loss


MONAI_UNET = "monai_unet"
# MONAI's defaults in two dimensions: 2 million parameters
FEATURES = (32, 32, 64, 128, 256, 32)


def monai_unet() -> Any:
    """MONAI's class; raises `ImportError` with the install command."""
    return require("monai.networks.nets", "dev").BasicUNet


class ReferenceUNet(nn.Module):
    """MONAI's U-Net with the same inputs, outputs and loss as [`VasoMIMForSemanticSegmentation`].

    Args:
        num_labels (`int`): Number of classes, including the background.
        num_channels (`int`): Channels of `pixel_values`.
    """

    main_input_name = "pixel_values"
    accepts_loss_kwargs = False

    def __init__(self, num_labels: int, num_channels: int = 3):
        super().__init__()
        self.num_labels = num_labels
        self.unet = monai_unet()(spatial_dims=2, in_channels=num_channels, out_channels=num_labels, features=FEATURES)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> SemanticSegmenterOutput:
        """Segment frames.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalised frames.
            labels (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*): Class ids; 255 is ignored.

        Returns:
            `SemanticSegmenterOutput`: `logits` of shape `(batch_size, num_labels, height, width)`, and `loss` if
            labels are given: cross entropy + Dice loss, the default of the VasoMIM head.
        """
        logits = self.unet(pixel_values)
        if labels is None:
            return SemanticSegmenterOutput(logits=logits)
        check_segmentation_labels(labels, self.num_labels, tuple(pixel_values.shape))
        labels = labels.long()
        cross_entropy = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL)
        return SemanticSegmenterOutput(
            loss=cross_entropy + soft_dice_loss(logits.float().softmax(dim=1), labels), logits=logits
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Save weights and sizes. The folder can only be loaded by this class, not by Auto classes."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / "model.safetensors"
        )
        content = {"model_type": MONAI_UNET, "num_labels": self.num_labels, "features": FEATURES}
        (folder / "config.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
