"""Teaches transformers' tables of names about our classes: its common tests decide by name who has labels."""

from transformers.models.auto import modeling_auto

import vasomim_hf


NAMES = {
    "MODEL_MAPPING_NAMES": {"vasomim": "VasoMIMModel"},
    "MODEL_FOR_BACKBONE_MAPPING_NAMES": {"vasomim": "VasoMIMBackbone"},
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES": {"vasomim": "VasoMIMForPreTraining"},
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES": {
        "vasomim": "VasoMIMForSemanticSegmentation",
        "vasomim_unext": "UNeXtForVesselSegmentation",
    },
    "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES": {"vasomim": "VasoMIMForObjectDetection"},
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": {"vasomim": "VasoMIMForImageClassification"},
}
for table, names in NAMES.items():
    for model_type, name in names.items():
        getattr(vasomim_hf, name)
        getattr(modeling_auto, table)[model_type] = name
