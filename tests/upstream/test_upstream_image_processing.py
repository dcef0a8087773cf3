"""transformers' common tests of image processors and of their post-processing."""

import unittest

from transformers.utils import is_torchvision_available
from transformers_tests.test_image_processing_common import (
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)

from vasomim_hf.image_processing_vasomim import VasoMIMImageProcessor, VasoMIMImageProcessorPil


class VasoMIMImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase):
        # the guard is for angiograms, and these images are noise
        settings = {"size": {"height": 18, "width": 20}, "do_check_input": False, "num_labels": 3}
        super().__init__(parent, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5], **settings)

    def _get_image_processing_classes(self) -> dict[str, type]:
        backends = {"pil": VasoMIMImageProcessorPil}
        return backends | ({"torchvision": VasoMIMImageProcessor} if is_torchvision_available() else {})


class VasoMIMImageProcessingTest(
    ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin, unittest.TestCase
):
    image_processor_tester_class = VasoMIMImageProcessingTester
    test_cast_dtype = True

    @unittest.skipUnless(is_torchvision_available(), "a rule for the library itself; here torchvision may be absent")
    def test_new_models_require_torchvision_backend(self):
        super().test_new_models_require_torchvision_backend()
