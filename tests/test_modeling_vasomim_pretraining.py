"""The pre-training model: losses, masks, the frozen segmentor, what it refuses."""

import pytest
import torch
from miniatures.models import SMALL as ONE_LAYER
from miniatures.models import frame_with_one_vessel, segmentor_with_signal
from miniatures.overfitting import OVERFITTED, overfit
from torch import nn
from transformers import AutoModel, AutoModelForPreTraining, ViTMAEConfig, ViTMAEForPreTraining

from vasomim_hf import UNeXtConfig, UNeXtForVesselSegmentation, VasoMIMConfig, VasoMIMForPreTraining, VasoMIMModel
from vasomim_hf.modeling_vasomim_pretraining import patchify, unpatchify


SMALL = {**ONE_LAYER, "decoder_num_hidden_layers": 2}
WITHOUT_SEGMENTOR = {**SMALL, "filter_weight": 1, "consistency_loss_weight": 0}
VIT_MAE_NAMES = {
    "vit.": "vasomim.",
    "decoder_embed": "embed",
    "decoder_pos_embed": "position_embeddings",
    "decoder_layers": "layers",
    "decoder_norm": "layernorm",
    "decoder_pred": "predictor",
}


@pytest.fixture
def model() -> VasoMIMForPreTraining:
    return VasoMIMForPreTraining(VasoMIMConfig(**SMALL)).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.randn(2, 3, 64, 64),
        "vesselness": (torch.rand(2, 1, 64, 64) > 0.9).float(),
        "noise": torch.rand(2, 16),
    }


# --- output ----------------------------------------------------------------------------------------------------------


def test_output_has_the_documented_shapes(model, batch):
    output = model(**batch, progress=0.5)
    assert output.logits.shape == (2, 16, 768)
    assert output.reconstruction.shape == (2, 3, 64, 64)
    assert output.mask.shape == (2, 16)
    assert output.mask.sum(dim=1).tolist() == [8, 8]
    assert set(output.mask.unique().tolist()) == {0, 1}
    torch.testing.assert_close(output.loss, output.reconstruction_loss + output.consistency_loss)


def test_output_is_decided_by_the_noise(model, batch):
    first, second = model(**batch, progress=0.5), model(**batch, progress=0.5)
    assert torch.equal(first.loss, second.loss)
    batch["noise"] = torch.rand(2, 16)
    assert not torch.equal(first.mask, model(**batch, progress=0.5).mask)


def test_patches_survive_cutting_and_joining():
    frames = torch.rand(2, 3, 32, 48)
    patches = patchify(frames, 16)
    assert patches.shape == (2, 6, 768)
    assert torch.equal(patches[0, 4].reshape(16, 16, 3), frames[0, :, 16:32, 16:32].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches, 16, (2, 3)), frames)


def test_sizes_other_than_that_of_the_grid_are_accepted(model):
    output = model(torch.randn(1, 3, 48, 96), vesselness=torch.zeros(1, 48, 96), progress=1.0)
    assert output.reconstruction.shape == (1, 3, 48, 96)
    assert output.mask.shape == (1, 18)


def test_it_is_a_masked_autoencoder_where_guidance_and_consistency_are_switched_off(batch):
    sizes = {key: value for key, value in SMALL.items() if key != "segmentor_config"}
    reference = ViTMAEForPreTraining(
        ViTMAEConfig(**sizes, mask_ratio=0.5, norm_pix_loss=True, layer_norm_eps=1e-6)
    ).eval()
    model = VasoMIMForPreTraining(VasoMIMConfig(**WITHOUT_SEGMENTOR)).eval()
    renamed = {}
    for name, value in reference.state_dict().items():
        for old, new in VIT_MAE_NAMES.items():
            name = name.replace(old, new)
        renamed[name] = value
    model.load_state_dict(renamed)
    expected = reference(batch["pixel_values"], noise=batch["noise"])
    output = model(batch["pixel_values"], noise=batch["noise"])
    assert torch.equal(output.mask, expected.mask)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.loss, expected.loss)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_reconstruction_loss_looks_at_hidden_patches_alone(model):
    target, mask = torch.zeros(1, 4, 6), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    logits = torch.zeros(1, 4, 6)
    logits[0, 0], logits[0, 1] = 2.0, 100.0
    assert model.reconstruction_loss(logits, target, mask).item() == pytest.approx(4 / 2)


def test_reconstruction_target_is_normalised_by_the_unbiased_variance(model):
    frames = torch.randn(1, 3, 64, 64)
    target, mean, std = model.reconstruction_target(frames)
    patch = patchify(frames, 16)[0, 3]
    assert mean[0, 3].item() == pytest.approx(patch.mean().item())
    assert std[0, 3].item() == pytest.approx((patch.var(unbiased=True).item() + 1e-6) ** 0.5)
    torch.testing.assert_close(target * std + mean, patchify(frames, 16))


def test_perfect_reconstruction_leaves_the_entropy_of_the_segmentor(model, batch):
    vessel_logits = model.segment(batch["pixel_values"])
    probability = vessel_logits.sigmoid()
    entropy = nn.functional.binary_cross_entropy(probability, probability)
    torch.testing.assert_close(model.consistency_loss(batch["pixel_values"], vessel_logits), entropy)
    worse = model.consistency_loss(torch.randn(2, 3, 64, 64), vessel_logits)
    assert worse > entropy


def test_consistency_loss_counts_as_much_as_its_weight(batch):
    config = VasoMIMConfig(**SMALL, consistency_loss_weight=0.25)
    output = VasoMIMForPreTraining(config)(**batch)
    torch.testing.assert_close(output.loss, output.reconstruction_loss + 0.25 * output.consistency_loss)


def test_both_losses_reach_encoder_and_decoder_and_nothing_reaches_the_segmentor(model, batch):
    model.train()
    for loss in ("reconstruction_loss", "consistency_loss"):
        model.zero_grad()
        getattr(model(**batch), loss).backward()
        for name, parameter in model.named_parameters():
            if name.startswith("segmentor."):
                assert parameter.grad is None
            else:
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{loss} does not reach {name}"


# --- guidance --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_vessel() -> dict:
    """A model whose segmentor sees the vessel of one frame, and that frame as its input."""
    torch.manual_seed(0)
    frame, mask = frame_with_one_vessel()
    sizes = {**SMALL, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 64}
    model = VasoMIMForPreTraining(VasoMIMConfig(**sizes)).train()
    model.segmentor.load_state_dict(segmentor_with_signal().state_dict())
    seen = model.segment(frame)
    lowest = nn.functional.binary_cross_entropy_with_logits(seen, seen.sigmoid())
    return {
        "model": model,
        "inputs": {"pixel_values": frame, "vesselness": mask, "noise": torch.rand(1, 16), "progress": 0.5},
        "lowest_consistency_loss": lowest,
    }


def test_consistency_loss_alone_reaches_every_layer_of_decoder_and_encoder(one_vessel):
    model = one_vessel["model"]
    output = model(**one_vessel["inputs"])
    assert output.consistency_loss - one_vessel["lowest_consistency_loss"] > 0.02, "nothing left to learn"
    model.zero_grad()
    output.consistency_loss.backward()
    reached = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert {f"{part}.weight" for part in ("decoder.predictor", "decoder.embed")} <= reached
    for layers in ("decoder.layers.", "vasomim.layers."):
        weights = [name for name, _ in model.named_parameters() if layers in name and name.endswith("_proj.weight")]
        assert weights and set(weights) <= reached
    assert not any(name.startswith("segmentor") for name in reached)


def test_one_frame_is_overfitted_by_both_losses(one_vessel):
    model, inputs, lowest = (one_vessel[name] for name in ("model", "inputs", "lowest_consistency_loss"))
    with torch.no_grad():
        first = model(**inputs)
    overfit(model, lambda: model(**inputs).loss, steps=150, learning_rate=5e-3)
    with torch.no_grad():
        last = model(**inputs)
    assert last.reconstruction_loss < OVERFITTED * first.reconstruction_loss
    assert last.consistency_loss - lowest < OVERFITTED * (first.consistency_loss - lowest)


def test_guidance_map_mixes_filter_and_segmentor(model, batch):
    vessel_logits = model.segment(batch["pixel_values"])
    guidance = model.guidance_map(batch["pixel_values"], batch["vesselness"], vessel_logits)
    torch.testing.assert_close(guidance, 0.5 * batch["vesselness"] + 0.5 * vessel_logits.sigmoid())
    alone = model.guidance_map(batch["pixel_values"], None, vessel_logits)
    torch.testing.assert_close(alone, vessel_logits.sigmoid())
    assert torch.equal(model.guidance_map(batch["pixel_values"], batch["vesselness"], None), batch["vesselness"])
    assert model.guidance_map(batch["pixel_values"], None, None).sum() == 0


def test_vessels_are_hidden_more_often_as_training_goes_on():
    config = VasoMIMConfig(**{**WITHOUT_SEGMENTOR, "guidance_ratio_end": 1.0})
    model = VasoMIMForPreTraining(config).eval()
    vesselness = torch.zeros(64, 1, 64, 64)
    vesselness[:, :, :32, :16] = 1  # two of sixteen patches
    frames = torch.randn(64, 3, 64, 64)

    def hidden_share(progress: float) -> float:
        mask = model(frames, vesselness, progress=progress).mask
        return mask[:, [0, 4]].mean().item()

    assert hidden_share(0.0) == pytest.approx(0.5, abs=0.15)
    assert hidden_share(1.0) == 1.0


def test_vesselness_is_taken_as_bool_or_number_and_with_or_without_a_channel(model, batch):
    expected = model(**batch, progress=1.0).mask
    for vesselness in (batch["vesselness"].bool(), batch["vesselness"].to(torch.uint8), batch["vesselness"][:, 0]):
        mask = model(**{**batch, "vesselness": vesselness}, progress=1.0).mask
        assert torch.equal(mask, expected)


# --- the segmentor ---------------------------------------------------------------------------------------------------


def test_segmentor_is_frozen_and_in_evaluation_mode_from_the_start_and_in_training(model):
    fresh = VasoMIMForPreTraining(VasoMIMConfig(**SMALL))
    for candidate in (fresh, fresh.train(), fresh.eval(), model.train(True)):
        assert not any(parameter.requires_grad for parameter in candidate.segmentor.parameters())
        assert not any(module.training for module in candidate.segmentor.modules())


def test_segmentor_does_not_change_in_a_step_of_training(model, batch):
    before = {name: value.clone() for name, value in model.segmentor.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(**batch).loss.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.segmentor.state_dict().items())


def test_segmentor_weights_are_taken_from_a_folder_or_a_model(model, tmp_path):
    trained = UNeXtForVesselSegmentation(UNeXtConfig(**SMALL["segmentor_config"]))
    trained.save_pretrained(tmp_path)
    for source in (trained, str(tmp_path), tmp_path):
        model.segmentor.classifier.weight.data.zero_()
        model.load_segmentor(source)
        assert torch.equal(model.segmentor.classifier.weight, trained.classifier.weight)
        assert not model.segmentor.classifier.weight.requires_grad


def test_segmentor_of_other_sizes_is_refused_with_the_sizes_to_use(model):
    with pytest.raises(ValueError, match="Build the model with segmentor_config="):
        model.load_segmentor(UNeXtForVesselSegmentation(UNeXtConfig()))


def test_model_without_segmentor_says_so():
    model = VasoMIMForPreTraining(VasoMIMConfig(**WITHOUT_SEGMENTOR))
    assert model.segmentor is None
    with pytest.raises(ValueError, match="This model has no segmentor"):
        model.load_segmentor(UNeXtForVesselSegmentation(UNeXtConfig()))


def test_checkpoint_loads_as_pretraining_model_and_as_encoder(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(again(**batch).loss, model(**batch).loss)
    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(encoder, VasoMIMModel)
    assert not info["missing_keys"]
    frames = batch["pixel_values"]
    assert torch.equal(encoder(frames).last_hidden_state, model.vasomim(frames).last_hidden_state)


def test_saved_encoder_leaves_decoder_and_segmentor_out(model, tmp_path):
    model.vasomim.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)
    names = set(dict(encoder.named_parameters()))
    assert names == set(dict(model.vasomim.named_parameters()))
    assert not any(name.startswith(("decoder", "segmentor")) for name in names)


# --- cost and compilation --------------------------------------------------------------------------------------------


def test_a_training_step_has_no_operation_that_waits_for_the_device(model, batch, counted_operations):
    model.train()
    with counted_operations:
        model(**batch, progress=0.3).loss.backward()
    assert len(counted_operations.names) > 100
    assert not counted_operations.waiting


def test_pretraining_model_compiles_to_one_graph_that_holds_while_progress_changes(model, batch):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for progress in (0.0, 0.25, 0.5, 1.0):
        progress = torch.tensor(progress)
        torch.testing.assert_close(compiled(**batch, progress=progress).loss, model(**batch, progress=progress).loss)
    assert counter.frame_count == 1


def test_attention_implementation_reaches_the_decoder(model, batch):
    expected = model(**batch).logits
    model.set_attn_implementation("eager")
    assert model.decoder.layers[0].attention.config._attn_implementation == "eager"
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-4)
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(**batch).logits, expected)


def test_bf16_autocast_has_the_losses_of_fp32(model, batch):
    expected = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    assert output.loss.dtype == torch.float32
    assert torch.equal(output.mask, expected.mask)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.02, atol=0)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_sides_that_the_patch_does_not_divide_are_refused(model):
    with pytest.raises(ValueError, match="divisible by patch_size=16, got 64×70"):
        model(torch.randn(1, 3, 64, 70))


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_outside_0_and_1_is_refused(model, batch, progress):
    with pytest.raises(ValueError, match="`progress` is the"):
        model(**batch, progress=progress)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 64, 64), (1, 1, 64, 64), (2, 1, 64, 63)])
def test_vesselness_of_another_size_is_refused(model, batch, shape):
    batch["vesselness"] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"`vesselness` must have shape \(2, 1, 64, 64\)"):
        model(**batch)


@pytest.mark.parametrize("value", [255.0, -0.5, float("nan")])
def test_vesselness_outside_0_and_1_is_refused(model, batch, value):
    batch["vesselness"][0, 0, 3, 3] = value
    with pytest.raises(ValueError, match=r"`vesselness` must be in \[0, 1\]"):
        model(**batch)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_are_refused_by_name(model, batch, value):
    batch["pixel_values"][1, 2, 3, 4] = value
    with pytest.raises(ValueError, match="`pixel_values`"):
        model(**batch)


def test_misspelt_argument_is_refused_instead_of_training_without_guidance(model, batch):
    batch["vesselnes"] = batch.pop("vesselness")
    with pytest.raises(TypeError, match="VasoMIMForPreTraining.forward\\(\\) has no argument 'vesselnes'"):
        model(**batch)
