"""VasoMIM, a foundation model for X-ray angiograms, for the Hugging Face stack.

Importing this package registers its models with the Auto classes of transformers.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)
from transformers.utils import is_torchvision_available

from .configuration_unext import UNeXtConfig
from .configuration_vasomim import VasoMIMConfig
from .image_processing_vasomim import VasoMIMImageProcessor, VasoMIMImageProcessorPil
from .modeling_unext import UNeXtForVesselSegmentation
from .modeling_vasomim import VasoMIMBackbone, VasoMIMModel
from .modeling_vasomim_classification import VasoMIMForImageClassification
from .modeling_vasomim_detection import VasoMIMForObjectDetection
from .modeling_vasomim_pretraining import VasoMIMForPreTraining
from .modeling_vasomim_segmentation import VasoMIMForSemanticSegmentation
from .version import __version__


AutoConfig.register("vasomim", VasoMIMConfig, exist_ok=True)
AutoConfig.register("vasomim_unext", UNeXtConfig, exist_ok=True)
AutoModel.register(VasoMIMConfig, VasoMIMModel, exist_ok=True)
AutoModel.register(UNeXtConfig, UNeXtForVesselSegmentation, exist_ok=True)
AutoBackbone.register(VasoMIMConfig, VasoMIMBackbone, exist_ok=True)
AutoModelForPreTraining.register(VasoMIMConfig, VasoMIMForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(VasoMIMConfig, VasoMIMForImageClassification, exist_ok=True)
AutoModelForObjectDetection.register(VasoMIMConfig, VasoMIMForObjectDetection, exist_ok=True)
AutoModelForSemanticSegmentation.register(VasoMIMConfig, VasoMIMForSemanticSegmentation, exist_ok=True)
AutoModelForSemanticSegmentation.register(UNeXtConfig, UNeXtForVesselSegmentation, exist_ok=True)

_image_processors = {"pil": VasoMIMImageProcessorPil}
if is_torchvision_available():
    _image_processors["torchvision"] = VasoMIMImageProcessor
for _config in (UNeXtConfig, VasoMIMConfig):
    AutoImageProcessor.register(_config, image_processor_classes=_image_processors, exist_ok=True)


__all__ = [
    "UNeXtConfig",
    "UNeXtForVesselSegmentation",
    "VasoMIMBackbone",
    "VasoMIMConfig",
    "VasoMIMForImageClassification",
    "VasoMIMForObjectDetection",
    "VasoMIMForPreTraining",
    "VasoMIMForSemanticSegmentation",
    "VasoMIMImageProcessor",
    "VasoMIMImageProcessorPil",
    "VasoMIMModel",
    "__version__",
]
