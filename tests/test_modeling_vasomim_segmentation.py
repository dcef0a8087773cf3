"""The segmentation model: sizes, losses against other code, what it refuses, and that it can learn."""

import warnings

import numpy as np
import pytest
import torch
from miniatures.models import SMALL as SIZES
from miniatures.models import SMALL_HEADS, angiograms, class_names, normalized, numbered_classes
from miniatures.overfitting import OVERFITTED, overfit
from scipy import ndimage
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from vasomim_hf import VasoMIMConfig, VasoMIMForPreTraining, VasoMIMForSemanticSegmentation
from vasomim_hf.modeling_vasomim_segmentation import (
    VasoMIMGroupNorm,
    check_segmentation_labels,
    soft_cl_dice_loss,
    soft_dice_loss,
    soft_skeleton,
)


NAMES = class_names("background", "vessel")
SMALL = {**SIZES, **SMALL_HEADS, "num_hidden_layers": 4}


def small_config(**changes: object) -> VasoMIMConfig:
    return VasoMIMConfig(**{**SMALL, **NAMES, **changes})


@pytest.fixture
def model() -> VasoMIMForSemanticSegmentation:
    return VasoMIMForSemanticSegmentation(small_config()).eval()


def frames_and_masks(number: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised synthetic angiograms (B, 3, H, W) and their vessels (B, H, W)."""
    made = angiograms(number, size)
    masks = torch.from_numpy(np.stack([one.vessel_mask for one in made])).long()
    return normalized(made), masks


def random_case(num_labels: int = 2, size: tuple[int, int] = (24, 20)) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2, K, H, W) and ids (2, H, W) in blobs."""
    logits = torch.randn(2, num_labels, *size) * 2
    labels = nn.functional.avg_pool2d(torch.randn(2, num_labels, *size), 5, 1, 2).argmax(dim=1)
    return logits, labels


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (50, 70), (17, 100), (128, 48)])
def test_logits_have_the_size_of_the_frame(model, size):
    assert model(torch.rand(2, 3, *size)).logits.shape == (2, 2, *size)


@pytest.mark.parametrize("patch_size", [4, 8, 14, 32])
def test_other_patch_sizes_give_logits_of_full_size(patch_size):
    config = small_config(patch_size=patch_size, image_size=2 * patch_size)
    model = VasoMIMForSemanticSegmentation(config).eval()
    assert model(torch.rand(1, 3, 65, 40)).logits.shape == (1, 2, 65, 40)


def test_padding_repeats_the_edge_and_is_cut_off(model):
    frame = torch.rand(1, 3, 50, 70)
    padded = nn.functional.pad(frame, (0, 10, 0, 14), mode="replicate")
    torch.testing.assert_close(model(frame).logits, model(padded).logits[..., :50, :70])


def test_stem_and_encoder_both_reach_the_logits():
    frame = torch.rand(1, 3, 64, 64)
    for part in ("stem", "pyramid"):
        model = VasoMIMForSemanticSegmentation(small_config()).eval()
        before = model(frame).logits
        for parameter in getattr(model.decode_head, part).parameters():
            parameter.data.add_(0.1)
        assert not torch.allclose(before, model(frame).logits, atol=1e-3)


def test_each_of_the_four_layers_reaches_the_logits(model):
    frame = torch.rand(1, 3, 64, 64)
    before = model(frame).logits
    for level in range(4):
        bias = model.decode_head.pyramid.projections[level].weight
        kept = bias.clone()
        bias.data.neg_()
        assert not torch.allclose(before, model(frame).logits, atol=1e-4)
        bias.data.copy_(kept)


def test_layers_above_the_last_one_asked_for_are_not_run():
    model = VasoMIMForSemanticSegmentation(small_config(segmentation_layers=[1, 1, 2, 3])).eval()
    frame = torch.rand(1, 3, 32, 32)
    assert len(model(frame, output_hidden_states=True).hidden_states) == 4
    before = model(frame).logits
    model.vasomim.layers[3].mlp.fc1.weight.data.zero_()
    assert torch.equal(before, model(frame).logits)


def test_maps_are_those_of_the_encoder_after_its_last_norm(model):
    frame = torch.rand(1, 3, 48, 64)
    maps = model._encode(frame, interpolate_pos_encoding=True)
    states = model.vasomim(frame, output_hidden_states=True).hidden_states
    assert [tuple(one.shape) for one in maps] == [(1, 32, 3, 4)] * 4
    for one, number in zip(maps, model.config.segmentation_layer_numbers, strict=True):
        patch = model.vasomim.layernorm(states[number])[0, 1 + 1 * 4 + 2]
        torch.testing.assert_close(one[0, :, 1, 2], patch)


def test_control_without_encoder_has_none_and_sees_a_neighbourhood_only():
    model = VasoMIMForSemanticSegmentation(small_config(segmentation_use_encoder=False)).eval()
    assert not [name for name, _ in model.named_parameters() if not name.startswith("decode_head.")]
    assert model(torch.rand(2, 3, 50, 70)).logits.shape == (2, 2, 50, 70)


def test_head_without_stem_has_no_stem():
    model = VasoMIMForSemanticSegmentation(small_config(detail_stem_channels=0)).eval()
    assert not [name for name, _ in model.named_parameters() if "stem" in name]
    assert model(torch.rand(1, 3, 50, 70)).logits.shape == (1, 2, 50, 70)


@pytest.mark.parametrize("channels", [8, 16, 20, 24, 28, 36, 40, 64, 128])
def test_groups_divide_the_channels(channels):
    norm = VasoMIMGroupNorm(channels)
    assert channels % norm.num_groups == 0 and norm.num_groups <= 8
    assert norm(torch.rand(1, channels, 4, 4)).shape == (1, channels, 4, 4)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_saved_model_comes_back_bit_for_bit_through_the_auto_class(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is VasoMIMForSemanticSegmentation
    assert loaded.config.id2label == NAMES["id2label"]
    frame = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(frame).logits, model(frame).logits)


def test_encoder_of_a_pretraining_folder_is_taken_over(tmp_path):
    pretrained = VasoMIMForPreTraining(small_config())
    pretrained.save_pretrained(tmp_path)
    model, report = VasoMIMForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    for name, weight in pretrained.vasomim.state_dict().items():
        assert torch.equal(weight, model.vasomim.state_dict()[name]), name
    assert not report["unexpected_keys"]
    assert all(name.startswith("decode_head.") for name in report["missing_keys"])


def test_control_without_encoder_is_built_from_a_pretraining_folder_too(tmp_path):
    VasoMIMForPreTraining(small_config()).save_pretrained(tmp_path)
    options = {"segmentation_use_encoder": False, "output_loading_info": True}
    model, report = VasoMIMForSemanticSegmentation.from_pretrained(tmp_path, **options)
    assert not report["unexpected_keys"]
    model.save_pretrained(tmp_path / "control")
    loaded = VasoMIMForSemanticSegmentation.from_pretrained(tmp_path / "control")
    frame = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(frame).logits, model(frame).logits)


def test_convolutions_are_drawn_at_the_start_by_the_values_that_meet_in_one():
    model = VasoMIMForSemanticSegmentation(small_config(segmentation_hidden_size=64))
    head = model.decode_head
    expected = {
        head.blocks[0].conv2.weight: (6 / (9 * 64 + 9 * 64)) ** 0.5,
        head.pyramid.upscalings[0].weight: (6 / (64 + 64)) ** 0.5,
    }
    for weight, bound in expected.items():
        assert bound * 0.95 < weight.abs().max() <= bound


# --- training --------------------------------------------------------------------------------------------------------


def test_four_frames_are_overfitted():
    frames, masks = frames_and_masks(4, size=48)
    model = VasoMIMForSemanticSegmentation(small_config(num_hidden_layers=2)).train()
    assert overfit(model, lambda: model(frames, labels=masks).loss, steps=100, learning_rate=0.01) < OVERFITTED


def test_gradients_reach_every_parameter(model):
    frames, masks = frames_and_masks(2)
    model.train()(frames, labels=masks).loss.backward()
    # a key's bias moves all weights of a query alike, so softmax takes it out; rounding may leave nothing at all
    silent = [
        n for n, p in model.named_parameters() if "k_proj.bias" not in n and (p.grad is None or not p.grad.any())
    ]
    assert silent == []


def test_frozen_encoder_gets_no_gradient_and_comes_back_frozen(model, tmp_path):
    frames, masks = frames_and_masks(2)
    model.freeze_encoder()
    model.train().save_pretrained(tmp_path)
    for frozen in (model, VasoMIMForSemanticSegmentation.from_pretrained(tmp_path).train()):
        frozen(frames, labels=masks).loss.backward()
        assert all(parameter.grad is None for parameter in frozen.vasomim.parameters())
        assert all(parameter.grad is not None for parameter in frozen.decode_head.parameters())
        assert not frozen.vasomim.training and frozen.decode_head.training


def test_evaluation_is_deterministic_and_training_with_drop_path_is_not():
    model = VasoMIMForSemanticSegmentation(small_config(drop_path_rate=0.5, hidden_dropout_prob=0.1)).eval()
    frame = torch.rand(4, 3, 64, 64)
    assert torch.equal(model(frame).logits, model(frame).logits)
    model.train()
    assert not torch.equal(model(frame).logits, model(frame).logits)


def test_bf16_autocast_agrees_with_fp32(model):
    frames, masks = frames_and_masks(2)
    expected = model(frames, labels=masks)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(frames, labels=masks)
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    assert torch.cosine_similarity(output.logits.float().flatten(), expected.logits.flatten(), dim=0) > 0.999
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)


def test_model_loaded_in_bf16_takes_float_frames(model, tmp_path):
    model.save_pretrained(tmp_path)
    half = VasoMIMForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(torch.rand(1, 3, 50, 70)).logits.dtype == torch.bfloat16


def test_model_compiles_to_one_graph(model):
    frame = torch.rand(1, 3, 50, 70)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(frame).logits, model(frame).logits)


def test_step_does_not_wait_for_a_device(counted_operations):
    model = VasoMIMForSemanticSegmentation(small_config(cl_dice_weight=0.5)).train()
    frames, masks = frames_and_masks(2)
    with counted_operations:
        model(frames, labels=masks).loss.backward()
    assert counted_operations.waiting == set()


def test_hidden_states_and_attentions_are_given_when_asked_for(model):
    model.set_attn_implementation("eager")
    output = model(torch.rand(2, 3, 64, 64), output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(2, 17, 32)] * 5
    assert [attention.shape for attention in output.attentions] == [(2, 4, 17, 17)] * 4


# --- losses ----------------------------------------------------------------------------------------------------------


def test_loss_is_that_of_a_hand_computation():
    # two pixels with vessel probabilities 0.8 (a vessel) and 0.4 (background), and one that is ignored
    probability = torch.tensor([0.8, 0.4, 0.9])
    logits = torch.stack([(1 - probability).log(), probability.log()])[None, :, None, :]
    labels = torch.tensor([[[1, 0, 255]]])
    model = VasoMIMForSemanticSegmentation(small_config(dice_weight=2.0))
    parts = model.loss_parts(logits, labels)
    cross_entropy = -(np.log(0.8) + np.log(0.6)) / 2
    dice = 1 - 2 * 0.8 / (0.8 + 0.4 + 1)
    assert parts["cross_entropy_loss"].item() == pytest.approx(cross_entropy, abs=1e-6)
    assert parts["dice_loss"].item() == pytest.approx(dice, abs=1e-6)
    assert parts["loss"].item() == pytest.approx(cross_entropy + 2 * dice, abs=1e-6)
    assert "cl_dice_loss" not in parts


def test_cross_entropy_of_two_classes_is_the_binary_one_of_the_difference():
    logits, labels = random_case()
    parts = VasoMIMForSemanticSegmentation(small_config()).loss_parts(logits, labels)
    expected = nn.functional.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], labels.float())
    torch.testing.assert_close(parts["cross_entropy_loss"], expected)


@pytest.mark.parametrize("num_labels", [2, 5])
def test_dice_loss_agrees_with_monai(num_labels):
    losses = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    logits, labels = random_case(num_labels)
    settings = {"include_background": False, "to_onehot_y": True, "softmax": True, "batch": True}
    expected = losses.DiceLoss(**settings, smooth_nr=0, smooth_dr=1e-8)(logits, labels.unsqueeze(1))
    torch.testing.assert_close(soft_dice_loss(logits.softmax(dim=1), labels), expected)


def test_dice_loss_is_over_the_classes_that_occur():
    logits, labels = random_case(4)
    labels = labels.clamp(max=2)
    probabilities = logits.softmax(dim=1)
    overlap = [(probabilities[:, k] * (labels == k)).sum() for k in (1, 2)]
    sizes = [(probabilities[:, k] + (labels == k)).sum() for k in (1, 2)]
    expected = 1 - sum(2 * a / b for a, b in zip(overlap, sizes, strict=True)) / 2
    torch.testing.assert_close(soft_dice_loss(probabilities, labels), expected)


@pytest.mark.parametrize("label", [0, 255])
def test_batch_without_a_vessel_has_a_finite_loss_and_gradient(label):
    model = VasoMIMForSemanticSegmentation(small_config(cl_dice_weight=1.0))
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    parts = model.loss_parts(logits, torch.full((2, 8, 8), label))
    parts["loss"].backward()
    assert parts["dice_loss"] == 0
    assert torch.isfinite(parts["loss"]) and torch.isfinite(logits.grad).all()


def test_ignored_pixels_do_not_count_in_any_part():
    model = VasoMIMForSemanticSegmentation(small_config(cl_dice_weight=1.0, **numbered_classes(4)))
    logits, labels = random_case(4)
    labels[:, :, 10:] = 255
    changed = logits.clone()
    # beyond the reach of the last counted pixel's skeleton, which sees its neighbours
    changed[..., 10:] = torch.randn_like(changed[..., 10:]) * 5
    first, second = model.loss_parts(logits, labels), model.loss_parts(changed, labels)
    assert first.keys() == {"loss", "cross_entropy_loss", "dice_loss", "cl_dice_loss"}
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=name)


def skeleton_by_scipy(image: np.ndarray, iterations: int) -> np.ndarray:
    """The algorithm of the clDice paper with grey morphology of scipy: eroded by a cross, dilated by a square."""
    cross = ndimage.generate_binary_structure(2, 1)

    def opened(picture: np.ndarray) -> np.ndarray:
        return ndimage.grey_dilation(eroded(picture), size=(3, 3), mode="constant", cval=-np.inf)

    def eroded(picture: np.ndarray) -> np.ndarray:
        return ndimage.grey_erosion(picture, footprint=cross, mode="constant", cval=np.inf)

    skeleton = np.maximum(image - opened(image), 0)
    for _ in range(iterations):
        image = eroded(image)
        ridge = np.maximum(image - opened(image), 0)
        skeleton = skeleton + np.maximum((1 - skeleton) * ridge, 0)
    return skeleton


def test_soft_skeleton_agrees_with_scipy():
    image = np.random.default_rng(0).random((2, 1, 30, 23))
    found = soft_skeleton(torch.from_numpy(image), 3).numpy()
    for i in range(2):
        np.testing.assert_allclose(found[i, 0], skeleton_by_scipy(image[i, 0], 3), atol=1e-12)


def test_soft_cl_dice_loss_agrees_with_monai():
    losses = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    _, masks = frames_and_masks(1)
    target = masks[:, None].double()
    probability = nn.functional.avg_pool2d(target, 3, 1, 1)
    # MONAI takes each frame by itself, and smooths the mean of the two shares once more
    expected = losses.SoftclDiceLoss(iter_=3, smooth=1e-12)(input=probability, target=target)
    found = soft_cl_dice_loss(torch.cat([1 - probability, probability], dim=1), masks, 3)
    torch.testing.assert_close(found, expected)


def test_cl_dice_of_several_classes_takes_them_for_one_tree():
    logits, labels = random_case(4)
    probabilities = logits.softmax(dim=1)
    tree = torch.stack([probabilities[:, 0], probabilities[:, 1:].sum(dim=1)], dim=1)
    expected = soft_cl_dice_loss(tree, (labels > 0).long(), 2)
    torch.testing.assert_close(soft_cl_dice_loss(probabilities, labels, 2), expected)


def test_a_broken_vessel_costs_more_cl_dice_than_a_thinner_one():
    mask = torch.zeros(1, 32, 32, dtype=torch.long)
    mask[:, 12:19] = 1
    thinner, broken = mask.clone(), mask.clone()
    thinner[:, [12, 18]] = 0
    broken[:, :, 10:19] = 0

    def loss(found: torch.Tensor) -> float:
        probabilities = torch.stack([1 - found, found], dim=1).float()
        return soft_cl_dice_loss(probabilities, mask, 5).item()

    assert soft_dice_loss(torch.stack([1 - broken, broken], 1).float(), mask) == pytest.approx(0.163, abs=1e-3)
    assert loss(thinner) < 0.02 < 0.1 < loss(broken)


def test_binary_masks_of_any_integer_type_give_the_same_loss(model):
    frames, masks = frames_and_masks(1)
    expected = model(frames, labels=masks).loss
    for dtype in (torch.bool, torch.uint8, torch.int32):
        assert torch.equal(model(frames, labels=masks.to(dtype)).loss, expected)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "message"), [(2, "from 0 to 2"), (-1, "from -1 to"), (254, "from 0 to 254")])
def test_ids_of_no_class_are_refused(model, bad, message):
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[0, 3, 4] = bad
    labels[0, 5, 5] = 255
    with pytest.raises(ValueError, match=rf"must be ids from 0 to 1, or 255 for pixels to ignore, got ids {message}"):
        model(torch.rand(1, 3, 32, 32), labels=labels)


@pytest.mark.parametrize("shape", [(1, 32, 30), (2, 32, 32), (1, 1, 32, 32), (32, 32)])
def test_masks_of_another_size_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"`labels` must have shape \(1, 32, 32\), .* got \("):
        model(torch.rand(1, 3, 32, 32), labels=torch.zeros(shape, dtype=torch.long))


def test_masks_of_floats_are_refused(model):
    with pytest.raises(ValueError, match="integers or bool, got torch.float32. Pass"):
        model(torch.rand(1, 3, 32, 32), labels=torch.zeros(1, 32, 32))


def test_masks_are_checked_without_frames_where_a_batch_is_made():
    check_segmentation_labels(torch.tensor([[[0, 25, 255]]]), num_labels=26)
    check_segmentation_labels(torch.full((1, 2, 2), 255), num_labels=2)
    with pytest.raises(ValueError, match="from 0 to 25"):
        check_segmentation_labels(torch.tensor([[[0, 25, 255]]]), num_labels=25)


def test_one_label_is_refused_with_the_way_to_two():
    with pytest.raises(ValueError, match="got num_labels=1. For vessels alone set id2label"):
        VasoMIMForSemanticSegmentation(small_config(**numbered_classes(1)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 64, 64), r"must have shape \(batch_size, 3, height, width\), got \(1, 1, 64, 64\)"),
        ((3, 64, 64), r"must have shape \(batch_size, 3, height, width\), got \(3, 64, 64\)"),
        ((1, 3, 15, 64), "at least one patch of 16×16 pixels, got 15×64"),
    ],
)
def test_frames_of_wrong_shape_are_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model(torch.rand(*shape))


def test_misspelt_argument_is_refused(model):
    with pytest.raises(TypeError, match="has no argument 'label'"):
        model(torch.rand(1, 3, 32, 32), label=torch.zeros(1, 32, 32))


# --- PEFT ------------------------------------------------------------------------------------------------------------


def test_lora_on_the_encoder_trains_adapters_and_head_alone_and_merges(model):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["decode_head"], r=4)
    # peft asks for a name that transformers deprecates
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        adapted = peft.get_peft_model(model, config).train()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "decode_head.modules_to_save" in name for name in trained)
    assert sum("lora_" in name for name in trained) == 4 * 2 * 2
    frames, masks = frames_and_masks(2)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        adapted(frames, labels=masks).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = adapted.eval()(frames).logits
    merged = adapted.merge_and_unload()
    assert type(merged) is VasoMIMForSemanticSegmentation
    torch.testing.assert_close(merged(frames).logits, expected, atol=1e-4, rtol=1e-4)
