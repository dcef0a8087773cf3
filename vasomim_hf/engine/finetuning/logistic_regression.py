"""Multinomial logistic regression on features of frames, as one linear layer."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ...import_utils import require


_MOST_ITERATIONS = 10_000
_TOLERANCE = 1e-6
# Of a class that no frame has. The logits of the others add up to 0, so that its probability stays below 3e-9
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
        """Those of some frames, by their numbers of shape `(num_chosen,)`."""
        chosen = torch.from_numpy(indices)
        return Features(self.values[chosen], self.labels[chosen])


def fit_logistic_regression(features: Features, num_labels: int, weight_decay: float) -> nn.Linear:
    """Multinomial logistic regression on standardised features, fitted to the end.

    Minimises mean cross entropy + `weight_decay` / 2 x the sum of the squared weights; the bias is not penalised.

    Args:
        features (`Features`): To learn from; of at least two classes.
        num_labels (`int`): Number of classes.
        weight_decay (`float`): >= 0.

    Returns:
        `nn.Linear`: For features as they are: the standardisation is in its weights.

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
    # scikit-learn minimises the sum of the losses x C + the penalty; of two classes it fits one difference of weights,
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
