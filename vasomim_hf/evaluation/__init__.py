"""Metrics with confidence intervals, comparison of models, and result files.

Covers segmentation, detection and classification metrics, calibration and statistics.
"""

from typing import TYPE_CHECKING

from ..import_utils import lazy_names


if TYPE_CHECKING:
    from .calibration import expected_calibration_error as expected_calibration_error
    from .classification_metrics import auprc as auprc
    from .classification_metrics import auroc as auroc
    from .comparison import build_results as build_results
    from .comparison import compare_results as compare_results
    from .mask_metrics import betti0_error as betti0_error
    from .mask_metrics import cl_dice as cl_dice
    from .mask_metrics import dice as dice
    from .mask_metrics import hd95 as hd95
    from .mask_metrics import iou as iou
    from .mask_metrics import precision as precision
    from .mask_metrics import sensitivity as sensitivity
    from .mask_metrics import specificity as specificity
    from .results import EvaluationResults as EvaluationResults
    from .results import format_results as format_results
    from .results import read_results as read_results
    from .results import write_results as write_results
    from .statistics import bootstrap_interval as bootstrap_interval
    from .statistics import paired_test as paired_test


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
