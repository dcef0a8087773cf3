"""All metrics of masks, boxes and classes in one namespace."""

from .calibration import expected_calibration_error
from .classification_metrics import auprc, auroc, classification_measures
from .detection_metrics import detection_measures
from .mask_metrics import (
    betti0_error,
    cl_dice,
    dice,
    hd95,
    iou,
    mask_metrics,
    precision,
    sensitivity,
    specificity,
)


__all__ = [
    "auprc",
    "auroc",
    "betti0_error",
    "cl_dice",
    "classification_measures",
    "detection_measures",
    "dice",
    "expected_calibration_error",
    "hd95",
    "iou",
    "mask_metrics",
    "precision",
    "sensitivity",
    "specificity",
]
