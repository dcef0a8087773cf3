"""Evaluation of a fine-tuned model on a labelled data set."""

from typing import TYPE_CHECKING

from ...import_utils import lazy_names


if TYPE_CHECKING:
    from .evaluate import evaluate_model as evaluate_model
    from .request import EvaluationRequest as EvaluationRequest


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
