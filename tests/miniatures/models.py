"""Models small enough for a test, and frames for them: the one place for the sizes of a tiny VasoMIM."""

from typing import Any

import numpy as np
import torch

from vasomim_hf import UNeXtConfig, UNeXtForVesselSegmentation, VasoMIMConfig
from vasomim_hf.data.synthetic import SyntheticAngiogram, synthetic_angiograms

from .overfitting import overfit


SIDE = 64
SEGMENTOR = {"conv_hidden_sizes": [4, 6, 8], "token_hidden_sizes": [10, 12]}
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": SIDE,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "segmentor_config": SEGMENTOR,
}
SMALL_HEADS = {
    "segmentation_hidden_size": 16,
    "detail_stem_channels": 8,
    "detection_channels": 16,
    "detection_num_convs": 1,
}


def class_names(*names: str) -> dict[str, dict]:
    """`id2label` and `label2id` of a configuration."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def numbered_classes(number: int, word: str = "class") -> dict[str, dict]:
    return class_names(*(f"{word} {i}" for i in range(number)))


def small_config(**changes: Any) -> VasoMIMConfig:
    return VasoMIMConfig(**{**SMALL, **SMALL_HEADS, **changes})


def normalized(frames: list[SyntheticAngiogram]) -> torch.Tensor:
    """Frames as a model takes them, of shape (B, 3, H, W)."""
    values = torch.from_numpy(np.stack([frame.image for frame in frames])).float().div(255).sub(0.45).div(0.22)
    return values.unsqueeze(1).expand(-1, 3, -1, -1)


def angiograms(number: int, size: int = SIDE) -> list[SyntheticAngiogram]:
    return list(synthetic_angiograms(number, seed=3, size=size))


def frame_with_one_vessel() -> tuple[torch.Tensor, torch.Tensor]:
    """A dark curved vessel, of shape (1, 3, 64, 64), normalised, and its mask, of shape (1, 1, 64, 64), in {0, 1}."""
    line = torch.linspace(-1, 1, SIDE)
    distance = (line[None] - 0.4 * torch.sin(3 * line[:, None])).abs()
    frame = 0.5 - 2 * torch.exp(-((distance / 0.12) ** 2))
    return frame.expand(1, 3, SIDE, SIDE).contiguous(), (distance < 0.12).float()[None, None]


def segmentor_with_signal() -> UNeXtForVesselSegmentation:
    """A tiny segmentor that finds the vessel of `frame_with_one_vessel`, and so has something to be consistent with."""
    frame, mask = frame_with_one_vessel()
    segmentor = UNeXtForVesselSegmentation(UNeXtConfig(**SEGMENTOR)).train()
    overfit(segmentor, lambda: segmentor(frame, labels=mask).loss, steps=60, learning_rate=2e-2)
    return segmentor.eval()
