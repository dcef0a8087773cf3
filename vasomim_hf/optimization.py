"""Learning-rate schedules, parameter groups and training progress for the guidance schedule.

All are functions of the step alone, so a resumed run needs no scheduler state.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


REFERENCE_BATCH_SIZE = 256


def absolute_learning_rate(base_learning_rate: float, batch_size: int) -> float:
    """Scale a base learning rate, defined for a batch of 256 images, to another batch size.

    Args:
        base_learning_rate (`float`): Rate for 256 images, >= 0.
        batch_size (`int`): Images per optimiser step: per process x processes x accumulated steps.

    Returns:
        `float`: `base_learning_rate * batch_size / 256`, the linear rule of MAE (arXiv:2111.06377, appendix A).

    Raises:
        ValueError: If the rate is negative or the batch is empty.

    Example:
        >>> absolute_learning_rate(1.5e-4, batch_size=2048)
        0.0012
    """
    if base_learning_rate < 0 or batch_size < 1:
        raise ValueError(
            f"Expected a learning rate >= 0 and a batch size >= 1, got {base_learning_rate} and {batch_size}."
        )
    return base_learning_rate * batch_size / REFERENCE_BATCH_SIZE


def cosine_learning_rate(
    step: int,
    *,
    steps_per_epoch: int,
    num_epochs: float,
    warmup_epochs: float,
    peak: float,
    minimum: float = 0.0,
) -> float:
    """Learning rate of an optimiser step: linear warm-up, then a half cosine, updated every step (as in MAE).

    Args:
        step (`int`): Optimiser steps completed, >= 0.
        steps_per_epoch (`int`): Optimiser steps per epoch.
        num_epochs (`float`): Length of training.
        warmup_epochs (`float`): Length of the warm-up, in [0, num_epochs]; 0 disables it.
        peak (`float`): Absolute rate at the end of the warm-up.
        minimum (`float`, defaults to 0): Final rate of the cosine. The warm-up always starts at 0.

    Returns:
        `float`: Learning rate.

    Raises:
        ValueError: If the warm-up is longer than training.

    Example:
        >>> [cosine_learning_rate(s, steps_per_epoch=1, num_epochs=6, warmup_epochs=2, peak=1.0) for s in (0, 1, 2, 4)]
        [0.0, 0.5, 1.0, 0.5]
    """
    if steps_per_epoch < 1 or not 0 <= warmup_epochs <= num_epochs:
        raise ValueError(
            f"The warm-up must be shorter than training, got warmup_epochs={warmup_epochs} of "
            f"num_epochs={num_epochs} with {steps_per_epoch} steps each. Shorten the warm-up."
        )
    # Same order of additions as the original code: the reference values match to the last digit.
    epoch = step // steps_per_epoch + (step % steps_per_epoch) / steps_per_epoch
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    if num_epochs == warmup_epochs:
        return peak
    share = min((epoch - warmup_epochs) / (num_epochs - warmup_epochs), 1.0)
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * share))


def polynomial_learning_rate(
    step: int, *, steps_per_epoch: int, num_epochs: int, peak: float, power: float = 0.9
) -> float:
    """Learning rate of the segmentor: `peak * (1 - epoch / num_epochs) ** power`, constant within an epoch.

    Args:
        step (`int`): Optimiser steps completed, >= 0.
        steps_per_epoch (`int`): Optimiser steps per epoch.
        num_epochs (`int`): Length of training.
        peak (`float`): Rate of the first epoch.
        power (`float`, defaults to 0.9): Exponent, > 0.

    Returns:
        `float`: Learning rate; 0 after the last epoch.

    Example:
        >>> round(polynomial_learning_rate(5, steps_per_epoch=5, num_epochs=2, peak=1e-3), 6)
        0.000536
    """
    epoch = min(step // steps_per_epoch, num_epochs)
    return peak * (1.0 - epoch / num_epochs) ** power


def learning_rate_scheduler(
    optimizer: torch.optim.Optimizer, rate: Callable[[int], float], first_step: int = 0
) -> LambdaLR:
    """Create a scheduler that sets the learning rate of each group to its initial `lr` times `rate(step)`.

    Args:
        optimizer (`torch.optim.Optimizer`): Built with the peak rate; layer-wise scales stay in its groups.
        rate (`Callable[[int], float]`): Maps a step to a factor of the peak, e.g. `cosine_learning_rate` with
        `peak=1`.
        first_step (`int`, defaults to 0): Step to start from when training is resumed.

    Returns:
        `LambdaLR`: Call `step()` once per optimiser step.
    """
    return LambdaLR(optimizer, lambda step: rate(first_step + step))


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter: not for biases, norms and other one-dimensional tensors.

    As in MAE, `cls_token` and `mask_token` have three dimensions, `(1, 1, hidden_size)`, and are decayed.
    """
    return parameter.ndim > 1 and not name.endswith(".bias") and name != "bias"


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split the trainable parameters of a model into groups without and with weight decay.

    Args:
        model (`nn.Module`): Frozen parameters, such as those of the segmentor, are skipped.
        weight_decay (`float`): Weight decay of the second group, >= 0.

    Returns:
        `list[dict]`: Groups for an optimiser, with the keys `params` and `weight_decay`; empty groups are omitted.

    Raises:
        ValueError: If no parameter is trainable.

    Example:
        >>> [len(group["params"]) for group in parameter_groups(nn.Linear(2, 2), 0.05)]
        [1, 1]
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"{type(model).__name__} has no trainable parameters: all have requires_grad=False.")
    plain = [parameter for name, parameter in trainable if not decays(name, parameter)]
    decayed = [parameter for name, parameter in trainable if decays(name, parameter)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    return [group for group in groups if group["params"]]


def training_progress(step: int, num_steps: int) -> float:
    """Fraction of training completed when a step begins, used by the guidance schedule.

    The paper uses e / E for epoch e of E, the authors' code (e + 1) / E, both constant within an epoch. Here it
    increases with every step, `step / num_steps`: equal to the paper's value at the start of each epoch, and
    independent of the length of an epoch.

    Args:
        step (`int`): Optimiser steps completed, >= 0.
        num_steps (`int`): Total number of optimiser steps, > 0.

    Returns:
        `float`: Fraction in [0, 1].

    Example:
        >>> training_progress(30, num_steps=120)
        0.25
    """
    return min(step / num_steps, 1.0)
