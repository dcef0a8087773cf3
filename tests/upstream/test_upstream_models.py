"""transformers' common tests of models, backbones and configurations, on our classes in small sizes."""

import unittest

import torch
from torch import nn
from transformers.testing_utils import torch_device
from transformers_tests.test_backbone_common import BackboneTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin

from vasomim_hf import (
    UNeXtConfig,
    UNeXtForVesselSegmentation,
    VasoMIMBackbone,
    VasoMIMConfig,
    VasoMIMForImageClassification,
    VasoMIMForObjectDetection,
    VasoMIMForPreTraining,
    VasoMIMForSemanticSegmentation,
    VasoMIMModel,
)


class VasoMIMTester:
    """Small configuration and random frames; the attributes are what the common tests ask for."""

    batch_size = 3
    num_channels = 3
    image_size = 32
    patch_size = 8
    num_masks = 8
    mask_length = 16
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    intermediate_size = 37
    mask_ratio = 0.5
    num_patches = (image_size // patch_size) ** 2
    seq_length = 1 + num_patches
    is_training = False

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent

    def get_config(self) -> VasoMIMConfig:
        return VasoMIMConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_channels=self.num_channels,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            decoder_hidden_size=self.hidden_size,
            decoder_num_hidden_layers=self.num_hidden_layers,
            decoder_num_attention_heads=self.num_attention_heads,
            decoder_intermediate_size=self.intermediate_size,
            mask_ratio=self.mask_ratio,
            segmentor_config=UNeXtTester.sizes,
            segmentation_hidden_size=16,
            detail_stem_channels=8,
            detection_channels=16,
        )

    def pixel_values(self) -> torch.Tensor:
        return torch.randn(self.batch_size, self.num_channels, self.image_size, self.image_size, device=torch_device)

    def prepare_config_and_inputs_for_common(self) -> tuple[VasoMIMConfig, dict]:
        return self.get_config(), {"pixel_values": self.pixel_values()}


class VasoMIMPreTrainingTester(VasoMIMTester):
    seq_length = 1 + VasoMIMTester.num_patches // 2
    is_training = True

    def prepare_config_and_inputs_for_common(self) -> tuple[VasoMIMConfig, dict]:
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["vesselness"] = torch.rand(self.batch_size, 1, self.image_size, self.image_size, device=torch_device)
        inputs["progress"] = 0.5
        # drawn once, so that two calls hide the same patches
        inputs["noise"] = torch.rand(self.batch_size, self.num_patches, device=torch_device)
        return config, inputs


class VasoMIMHeadTester(VasoMIMTester):
    is_training = True


class UNeXtTester:
    batch_size = 3
    num_channels = 3
    image_size = 64
    num_hidden_layers = 2
    hidden_size = 16
    is_training = True
    sizes = {"conv_hidden_sizes": [4, 6, 8], "token_hidden_sizes": [10, 16]}

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent

    def get_config(self) -> UNeXtConfig:
        return UNeXtConfig(num_channels=self.num_channels, **self.sizes)

    def prepare_config_and_inputs_for_common(self) -> tuple[UNeXtConfig, dict]:
        shape = (self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": torch.randn(shape, device=torch_device)}


class VisionModelTests(ModelTesterMixin):
    """What every model of ours shares: it takes pixels, and has no tokens whose embeddings could be resized."""

    test_resize_embeddings = False
    # run for every model, whatever year its file was written in
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        self.model_tester = self.model_tester_class(self)

    @unittest.skip("a vision model takes pixels, not embeddings")
    def test_inputs_embeds(self):
        pass

    @unittest.skip("a vision model takes pixels, not embeddings")
    def test_inputs_embeds_matches_input_ids(self):
        pass

    def test_model_get_set_embeddings(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            self.assertIsInstance(model.get_input_embeddings(), nn.Module)
            self.assertIsNone(model.get_output_embeddings())


class VasoMIMModelTest(VisionModelTests, unittest.TestCase):
    all_model_classes = (VasoMIMModel, VasoMIMBackbone)
    model_tester_class = VasoMIMTester

    def test_config(self):
        ConfigTester(self, config_class=VasoMIMConfig, has_text_modality=False, hidden_size=36).run_common_tests()


class VasoMIMForPreTrainingTest(VisionModelTests, unittest.TestCase):
    all_model_classes = (VasoMIMForPreTraining,)
    model_tester_class = VasoMIMPreTrainingTester


class VasoMIMForSemanticSegmentationTest(VisionModelTests, unittest.TestCase):
    all_model_classes = (VasoMIMForSemanticSegmentation,)
    model_tester_class = VasoMIMHeadTester


class VasoMIMForImageClassificationTest(VisionModelTests, unittest.TestCase):
    all_model_classes = (VasoMIMForImageClassification,)
    model_tester_class = VasoMIMHeadTester


class VasoMIMForObjectDetectionTest(VisionModelTests, unittest.TestCase):
    all_model_classes = (VasoMIMForObjectDetection,)
    model_tester_class = VasoMIMHeadTester

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=False)
        if return_labels:
            box = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.4, 0.3, 0.2]])}
            inputs["labels"] = [{key: value.to(torch_device) for key, value in box.items()}] * len(
                inputs["pixel_values"]
            )
        return inputs


class VasoMIMBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (VasoMIMBackbone,)
    config_class = VasoMIMConfig

    def setUp(self) -> None:
        self.model_tester = VasoMIMTester(self)


class UNeXtModelTest(VisionModelTests, unittest.TestCase):
    all_model_classes = (UNeXtForVesselSegmentation,)
    model_tester_class = UNeXtTester
    has_attentions = False

    @unittest.skip("the segmentor is convolutional and offers no hidden states")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("the segmentor is convolutional and offers no hidden states")
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @unittest.skip("the segmentor has no embeddings")
    def test_model_get_set_embeddings(self):
        pass

    def test_config(self):
        # a convolutional network: sizes by stage, no heads
        common = ["conv_hidden_sizes", "token_hidden_sizes"]
        sizes = {"layer_norm_eps": 1e-4}
        ConfigTester(self, UNeXtConfig, has_text_modality=False, common_properties=common, **sizes).run_common_tests()
