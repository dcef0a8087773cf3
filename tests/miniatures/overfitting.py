"""Training on one batch, over and over: a model that learns at all brings its loss down to almost nothing.

The bound is ten times above what was seen over ten seeds (a model of masks: four times), so that neither the processor nor
the number of threads decides; a part of the model that no gradient reaches stays above it.
"""

from collections.abc import Callable
from typing import Any

import torch


OVERFITTED = 0.2


def overfit(model: torch.nn.Module, loss_of: Callable[[], torch.Tensor], steps: int, learning_rate: float) -> float:
    """Train on what `loss_of` computes and return the last loss as a fraction of the first.

    The learning rate rises and falls once, so that training ends in small steps.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule: Any = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    losses = []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses[-1] / losses[0]
