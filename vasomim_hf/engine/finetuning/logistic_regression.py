"""Multinomial logistic regression on image features, as a linear layer."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ...import_utils import require


_MOST_ITERATIONS = 10_000
_TOLERANCE = 1e-6
# for classes without frames; the other logits sum to 0, so the probability stays below 3e-9
_LOGIT_OF_ABSENT = -20.0


@dataclass(frozen=True, eq=False)
class Features:
    """Features of frames with their classes.

    Args:
        values (`torch.Tensor` of shape `(num_frames, hidden_size)`): float32.
        labels (`torch.Tensor` of shape `(num_frames,)`): int64.
    """

    values: torch.Tensor
    labels: torch.Tensor

    def select(self, indices: np.ndarray) -> "Features":
        """Select frames by indices of shape `(num_chosen,)`."""
        chosen = torch.from_numpy(indices)
        return Features(self.values[chosen], self.labels[chosen])


def fit_logistic_regression(features: Features, num_labels: int, weight_decay: float) -> nn.Linear:
    """Fit multinomial logistic regression on standardised features until convergence.

    Minimises mean cross entropy + `weight_decay` / 2 x the sum of the squared weights; the bias is not penalised.

    Args:
        features (`Features`): Training data with at least two classes.
        num_labels (`int`): Number of classes.
        weight_decay (`float`): L2 penalty, >= 0.

    Returns:
        `nn.Linear`: For unstandardised features: the standardisation is part of its weights.

    Example:
        >>> features = Features(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1]))
        >>> fit_logistic_regression(features, 2, 1e-3)(features.values).argmax(dim=1).tolist()
        [0, 0, 1, 1]
    """
    scaler = require("sklearn.preprocessing", "training").StandardScaler()
    values = scaler.fit_transform(features.values.double().numpy())
    weight, bias = _fit(values, features.labels.numpy(), num_labels, weight_decay)
    layer = nn.Linear(values.shape[1], num_labels)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight / scaler.scale_))
        layer.bias.copy_(torch.from_numpy(bias - weight / scaler.scale_ @ scaler.mean_))
    return layer


def _fit(
    values: np.ndarray, labels: np.ndarray, num_labels: int, weight_decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of shape `(num_labels, num_features)` and biases of shape `(num_labels,)`."""
    present = np.unique(labels)
    # scikit-learn minimises C x the sum of the losses + the penalty; for two classes it fits a single weight difference,
    # whose penalty is twice that of the two halves
    num_frames = len(labels) if len(present) > 2 else len(labels) / 2
    inverse = 1 / (weight_decay * num_frames) if weight_decay else np.inf
    regression = require("sklearn.linear_model", "training").LogisticRegression
    fitted = regression(C=inverse, tol=_TOLERANCE, max_iter=_MOST_ITERATIONS).fit(values, labels)
    weight, bias = np.zeros((num_labels, values.shape[1])), np.full(num_labels, _LOGIT_OF_ABSENT)
    if len(present) == 2:
        weight[present] = np.array([[-0.5], [0.5]]) * fitted.coef_
        bias[present] = np.array([-0.5, 0.5]) * fitted.intercept_
    else:
        weight[present], bias[present] = fitted.coef_, fitted.intercept_
    return weight, bias
