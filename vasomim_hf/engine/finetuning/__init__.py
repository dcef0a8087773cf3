"""Fine-tuning of task models with transformers' `Trainer`, and the linear probe."""

from typing import TYPE_CHECKING

from ...import_utils import lazy_names


if TYPE_CHECKING:
    from .linear_probe import finetune_classification as finetune_classification
    from .run import ClassificationRun as ClassificationRun
    from .run import DetectionRun as DetectionRun
    from .run import SegmentationRun as SegmentationRun
    from .trainer import finetune as finetune


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
