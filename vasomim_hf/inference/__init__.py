"""Inference: from a model and normalised frames to probabilities, boxes and classes at the requested size."""

from typing import TYPE_CHECKING

from ..import_utils import lazy_names


if TYPE_CHECKING:
    from .prediction import InferenceOptions as InferenceOptions
    from .prediction import predict_boxes as predict_boxes
    from .prediction import predict_classes as predict_classes
    from .prediction import predict_masks as predict_masks
    from .prediction import resolve_precision as resolve_precision
    from .sliding_window import SlidingWindow as SlidingWindow
    from .sliding_window import sliding_window_logits as sliding_window_logits
    from .views import VIEWS as VIEWS
    from .views import View as View


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
