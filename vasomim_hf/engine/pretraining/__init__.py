"""Pre-training of VasoMIM and training of its segmentor."""

from typing import TYPE_CHECKING

from ...import_utils import lazy_names


if TYPE_CHECKING:
    from .segmentor_training import train_segmentor as train_segmentor
    from .vasomim_training import pretrain as pretrain


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
