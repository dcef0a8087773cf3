"""Layer-wise learning-rate decay: smaller rates for layers closer to the image, as in BEiT (arXiv:2106.08254)."""

import re

import torch
from torch import nn

from ...optimization import decays


_LAYER = re.compile(r"(?:^|\.)vasomim\.layers\.(\d+)\.")
_EMBEDDINGS = re.compile(r"(?:^|\.)vasomim\.embeddings\.")


def layer_number(name: str, num_layers: int) -> int:
    """Layer index of a parameter: 0 for embeddings, 1 to `num_layers` for encoder layers, then everything else.

    The final norm of the encoder counts as head, as in BEiT.

    Args:
        name (`str`): Name of the parameter.
        num_layers (`int`): Number of encoder layers.

    Returns:
        `int`: From 0 to `num_layers + 1`.

    Example:
        >>> [layer_number(name, 12) for name in ("vasomim.embeddings.cls_token", "vasomim.layers.0.mlp.fc1.bias", "head.bias")]
        [0, 1, 13]
    """
    found = _LAYER.search(name)
    if found is not None:
        return int(found[1]) + 1
    return 0 if _EMBEDDINGS.search(name) else num_layers + 1


def layer_wise_groups(model: nn.Module, learning_rate: float, layer_decay: float, weight_decay: float) -> list[dict]:
    """Create optimiser groups for the trainable parameters.

    Args:
        model (`nn.Module`): Model with an encoder named `vasomim`; other models get a single rate.
        learning_rate (`float`): Peak rate of the head.
        layer_decay (`float`): Rate of a layer relative to the next one, in (0, 1].
        weight_decay (`float`): Not applied to biases and norms.

    Returns:
        `list[dict]`: Groups with `params`, `lr` and `weight_decay`.

    Raises:
        ValueError: If no parameter is trainable.
    """
    num_layers = getattr(getattr(model, "config", None), "num_hidden_layers", 0)
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, is_decayed = layer_number(name, num_layers), decays(name, parameter)
        rate = learning_rate * layer_decay ** (num_layers + 1 - layer)
        empty = {"params": [], "lr": rate, "weight_decay": weight_decay if is_decayed else 0.0}
        groups.setdefault((layer, is_decayed), empty)["params"].append(parameter)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameters: all have requires_grad=False.")
    # the head comes first: Trainer logs the rate of the first group
    return [groups[key] for key in sorted(groups, reverse=True)]


class LayerWiseAdamW:
    """Factory for AdamW with layer-wise rates; `Trainer` accepts a non-optimiser class as a factory."""

    def __call__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        layer_decay: float = 1.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> torch.optim.AdamW:
        """Create the optimiser.

        Args:
            model (`nn.Module`): Model whose trainable parameters are optimised.
            lr (`float`): Peak rate of the head.
            layer_decay (`float`): Rate of a layer relative to the next one.
            weight_decay (`float`): Not applied to biases and norms.
            betas (`tuple[float, float]`): Betas of AdamW.

        Returns:
            `torch.optim.AdamW`: With one group per layer and kind of parameter.
        """
        groups = layer_wise_groups(model, lr, layer_decay, weight_decay)
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
