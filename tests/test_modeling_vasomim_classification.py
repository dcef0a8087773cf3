"""The classifier: pooling, losses of the three kinds of labels, the linear probe, and that it can learn."""

import pytest
import torch
from miniatures.models import SMALL as SIZES
from miniatures.models import angiograms, class_names, normalized, numbered_classes
from miniatures.overfitting import OVERFITTED, overfit
from torch import nn
from transformers import AutoModelForImageClassification

from vasomim_hf import VasoMIMConfig, VasoMIMForImageClassification, VasoMIMForPreTraining


SMALL = {**SIZES, **class_names("left", "right")}


def small_config(**changes: object) -> VasoMIMConfig:
    return VasoMIMConfig(**{**SMALL, **changes})


@pytest.fixture
def model() -> VasoMIMForImageClassification:
    return VasoMIMForImageClassification(small_config()).eval()


def frames_and_sides(number: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised synthetic angiograms (B, 3, H, W) and 1 where the right coronary artery is filled."""
    made = angiograms(number, size)
    sides = torch.tensor([int(one.side == "right") for one in made])
    return normalized(made), sides


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (50, 70)])
def test_any_size_gives_one_row_of_logits_for_each_frame(model, size):
    assert model(torch.rand(3, 3, *size)).logits.shape == (3, 2)


def test_frame_smaller_than_a_patch_is_refused(model):
    with pytest.raises(ValueError, match="at least one patch of 16×16 pixels, got 15×64"):
        model(torch.rand(1, 3, 15, 64))


def test_pooled_features_are_what_the_linear_layer_sees():
    frames = torch.rand(2, 3, 64, 48)
    for pooling in ("mean", "cls"):
        model = VasoMIMForImageClassification(small_config(classifier_pooling=pooling)).eval()
        states = model.vasomim(frames).last_hidden_state
        expected = states[:, 1:].mean(dim=1) if pooling == "mean" else states[:, 0]
        features = model.pooled_features(frames)
        torch.testing.assert_close(features, expected)
        torch.testing.assert_close(model(frames).logits, model.classifier(features))


def test_saved_model_comes_back_bit_for_bit_through_the_auto_class(tmp_path):
    model = VasoMIMForImageClassification(small_config(classifier_pooling="cls")).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is VasoMIMForImageClassification
    assert loaded.config.id2label == SMALL["id2label"]
    frames = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded(frames).logits, model(frames).logits)


def test_encoder_of_a_pretraining_folder_is_taken_over(tmp_path):
    pretrained = VasoMIMForPreTraining(small_config())
    pretrained.save_pretrained(tmp_path)
    model, report = VasoMIMForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    for name, weight in pretrained.vasomim.state_dict().items():
        assert torch.equal(weight, model.vasomim.state_dict()[name]), name
    assert not report["unexpected_keys"]
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}


# --- training --------------------------------------------------------------------------------------------------------


def test_eight_frames_are_overfitted():
    frames, sides = frames_and_sides(8)
    assert 0 < sides.sum() < 8
    model = VasoMIMForImageClassification(small_config()).train()
    assert overfit(model, lambda: model(frames, labels=sides).loss, steps=60, learning_rate=2e-3) < OVERFITTED
    assert torch.equal(model.eval()(frames).logits.argmax(dim=1), sides)


def test_gradients_reach_every_parameter(model):
    frames, sides = frames_and_sides(2)
    model.train()(frames, labels=sides).loss.backward()
    silent = [
        n for n, p in model.named_parameters() if "k_proj.bias" not in n and (p.grad is None or not p.grad.any())
    ]
    assert silent == []


@pytest.mark.parametrize("by_config", [False, True])
def test_linear_probe_trains_the_classifier_alone_and_comes_back_as_one(tmp_path, by_config):
    frames, sides = frames_and_sides(2)
    model = VasoMIMForImageClassification(small_config(freeze_encoder=by_config, hidden_dropout_prob=0.5))
    if not by_config:
        model.freeze_encoder()
    model.save_pretrained(tmp_path)
    for probe in (model.train(), VasoMIMForImageClassification.from_pretrained(tmp_path).train()):
        trainable = [name for name, parameter in probe.named_parameters() if parameter.requires_grad]
        assert trainable == ["classifier.weight", "classifier.bias"]
        assert probe.training and not any(module.training for module in probe.vasomim.modules())
        assert torch.equal(probe.pooled_features(frames), probe.pooled_features(frames))
        probe(frames, labels=sides).loss.backward()
        assert all(parameter.grad is None for parameter in probe.vasomim.parameters())


def test_encoder_is_set_free_again(model, tmp_path):
    model.freeze_encoder()
    model.freeze_encoder(False)
    model.save_pretrained(tmp_path)
    for free in (model.train(), VasoMIMForImageClassification.from_pretrained(tmp_path).train()):
        assert all(parameter.requires_grad for parameter in free.parameters())
        assert all(module.training for module in free.modules())


def test_evaluation_is_deterministic_and_training_with_drop_path_is_not():
    model = VasoMIMForImageClassification(small_config(drop_path_rate=0.5)).eval()
    frames = torch.rand(4, 3, 64, 64)
    assert torch.equal(model(frames).logits, model(frames).logits)
    model.train()
    assert not torch.equal(model(frames).logits, model(frames).logits)


def test_bf16_autocast_agrees_with_fp32(model):
    frames, sides = frames_and_sides(2)
    expected = model(frames, labels=sides)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(frames, labels=sides)
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.logits.float(), expected.logits, atol=0.03, rtol=0.03)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_ids_give_the_cross_entropy(model):
    frames, sides = frames_and_sides(3)
    output = model(frames, labels=sides)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, sides))
    assert model.config.problem_type == "single_label_classification"
    assert torch.equal(model(frames, labels=sides.to(torch.uint8)).loss, output.loss)


def test_several_labels_of_a_frame_give_the_binary_cross_entropy():
    model = VasoMIMForImageClassification(small_config(problem_type="multi_label_classification")).eval()
    frames, labels = torch.rand(3, 3, 32, 32), torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    output = model(frames, labels=labels)
    expected = nn.functional.binary_cross_entropy_with_logits(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)


def test_one_label_is_a_number_to_predict():
    model = VasoMIMForImageClassification(small_config(**numbered_classes(1))).eval()
    frames, labels = torch.rand(3, 3, 32, 32), torch.tensor([0.5, -1.0, 2.0])
    output = model(frames, labels=labels)
    torch.testing.assert_close(output.loss, (output.logits[:, 0] - labels).square().mean())


@pytest.mark.parametrize("bad", [2, -1, 255])
def test_ids_of_no_class_are_refused(model, bad):
    with pytest.raises(ValueError, match="must be ids from 0 to 1, got ids from"):
        model(torch.rand(2, 3, 32, 32), labels=torch.tensor([0, bad]))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2), ()])
def test_labels_of_another_shape_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"`labels` must have shape \(2,\), or \(2, 2\)"):
        model(torch.rand(2, 3, 32, 32), labels=torch.zeros(shape, dtype=torch.long))


def test_misspelt_argument_is_refused(model):
    with pytest.raises(TypeError, match="has no argument 'label'"):
        model(torch.rand(1, 3, 32, 32), label=torch.zeros(1))


def test_classifier_without_labels_is_refused():
    with pytest.raises(ValueError, match="needs at least one label, got num_labels=0"):
        VasoMIMForImageClassification(small_config(id2label={}, label2id={}))
