"""Layer-wise learning rates: the nearer to the image, the smaller, as in BEiT (arXiv:2106.08254)."""

import re

import torch
from torch import nn

from ...optimization import decays


_LAYER = re.compile(r"(?:^|\.)vasomim\.layers\.(\d+)\.")
_EMBEDDINGS = re.compile(r"(?:^|\.)vasomim\.embeddings\.")


def layer_number(name: str, num_layers: int) -> int:
    """Which layer a parameter belongs to: 0 are the embeddings, 1 to `num_layers` the encoder's layers, then all the rest.

    The last norm of the encoder counts as head, as in BEiT.

    Args:
        name (`str`): Of the parameter.
        num_layers (`int`): Layers of the encoder.

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
    """Groups of the trainable parameters for an optimiser.

    Args:
        model (`nn.Module`): One with an encoder called `vasomim`; others have one rate.
        learning_rate (`float`): Peak rate of the head.
        layer_decay (`float`): Rate of a layer over that of the next, in (0, 1].
        weight_decay (`float`): Not applied to biases and norms.

    Returns:
        `list[dict]`: With `params`, `lr` and `weight_decay`.

    Raises:
        ValueError: If nothing is trainable.
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
        raise ValueError(f"{type(model).__name__} has no trainable parameter: every one has requires_grad=False.")
    # the head first: its rate is the one that Trainer logs
    return [groups[key] for key in sorted(groups, reverse=True)]


class LayerWiseAdamW:
    """Makes an AdamW with layer-wise rates of a model; `Trainer` takes a class that is no optimiser for a factory."""

    def __call__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        layer_decay: float = 1.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> torch.optim.AdamW:
        """Make the optimiser.

        Args:
            model (`nn.Module`): Whose trainable parameters it takes.
            lr (`float`): Peak rate of the head.
            layer_decay (`float`): Rate of a layer over that of the next.
            weight_decay (`float`): Not applied to biases and norms.
            betas (`tuple[float, float]`): Of AdamW.

        Returns:
            `torch.optim.AdamW`: With a group for each layer and kind of parameter.
        """
        groups = layer_wise_groups(model, lr, layer_decay, weight_decay)
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
