"""Label efficiency: scores as a function of the number of labelled frames, for several initialisations."""

from typing import TYPE_CHECKING

from ...import_utils import lazy_names


if TYPE_CHECKING:
    from .compare import compare_label_efficiency as compare_label_efficiency
    from .run import LabelEfficiencyRun as LabelEfficiencyRun


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
