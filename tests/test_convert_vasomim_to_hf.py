"""The converter, and through it the models, against values that the original code computed."""

import argparse
import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vasomim_hf import UNeXtForVesselSegmentation, VasoMIMForPreTraining, VasoMIMModel
from vasomim_hf.convert_vasomim_to_hf import convert, load_original, original_name, original_state_dict
from vasomim_hf.presets import load_preset


CASES = ["mr0.5_normpix0", "mr0.5_normpix1", "mr0.75_normpix0", "mr0.75_normpix1"]


def tiny_pretraining_model(**overrides) -> VasoMIMForPreTraining:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "decoder_hidden_size": 8,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 12,
        "image_size": 32,
    }
    return VasoMIMForPreTraining(load_preset("tiny", **{**sizes, **overrides})).eval()


@pytest.fixture
def original() -> dict[str, torch.Tensor]:
    """A small pre-training checkpoint under the original names."""
    return {name: tensor.clone() for name, tensor in original_state_dict(tiny_pretraining_model()).items()}


def without(weights: dict[str, torch.Tensor], *prefixes: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}


def encoder_of(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return without(weights, "decoder_", "mask_token", "seg_model.")


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


# Parity with the original code


def reference_weights(folder: Path) -> dict[str, torch.Tensor]:
    weights = without(load_file(folder / "tiny_mae_weights.safetensors"), "seg_model")
    segmentor = load_file(folder / "unext_s_weights.safetensors")
    return weights | {f"seg_model.{name}": tensor for name, tensor in segmentor.items()}


@pytest.fixture(scope="module")
def reference_checkpoint(shared_reference, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.safetensors"
    save_file(reference_weights(shared_reference), path)
    return path


@pytest.fixture(scope="module", params=CASES)
def parity(request, shared_reference, reference_checkpoint, tmp_path_factory):
    """Output and gradients of a converted and reloaded model in float64, and the float32 values of the original code."""
    mask_ratio, norm_pix = (
        float(part[2:]) if i == 0 else part[-1] == "1" for i, part in enumerate(request.param.split("_"))
    )
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(reference_checkpoint, folder, num_attention_heads=4, mask_ratio=mask_ratio, norm_pix_loss=norm_pix)
    model = VasoMIMForPreTraining.from_pretrained(folder).double().train()
    inputs = in_float64(load_file(shared_reference / "tiny_mae_inputs.safetensors"))
    # with progress 0 the visible patches are those of smallest noise, so that their ranks as noise give the order
    noise = (inputs["ids_shuffle"].argsort(dim=1) + 0.5) / inputs["ids_shuffle"].shape[1]
    output = model(inputs["imgs"], vesselness=inputs["filters"], noise=noise)
    output.loss.backward()
    manifest = json.loads((shared_reference / "manifest.json").read_text())["tiny_mae"]["cases"]
    path = shared_reference / f"tiny_mae_seg-clean_{request.param}.safetensors"
    return {
        "model": model,
        "inputs": inputs,
        "noise": noise,
        "output": output,
        "case": manifest[f"seg-clean_{request.param}"],
        "tensors": load_file(path) if path.is_file() else None,
    }


def in_float64(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def assert_within(name: str, actual: torch.Tensor, expected: torch.Tensor, float32_error: float) -> None:
    """Float64 values against the original's float32 values, which are off by `float32_error` from its own float64 ones.

    Float64 leaves no room for rounding: a window of a max pool has the same winner on every processor. What is added to
    the stated error covers the rounding of the file's float32 values and of the stated number.
    """
    limit = 1.01 * float32_error + 2.0**-24 * expected.abs().max().item()
    difference = (actual.detach() - expected.double()).abs().max().item()
    assert actual.dtype == torch.float64
    assert difference <= limit, f"{name}: {difference:.3g} > {limit:.3g}"


def assert_parity(name: str, actual: torch.Tensor, expected: torch.Tensor, case: dict) -> None:
    assert_within(name, actual, expected, case["max_abs_diff_fp32_fp64"][name])


# the files of mask ratio 0.75 leave out what the mask does not change
def tensors_of(parity: dict) -> dict[str, torch.Tensor]:
    if parity["tensors"] is None:
        pytest.skip("the reference has only losses and the gradient norm for this case")
    return parity["tensors"]


def test_losses_agree_with_the_original_code(parity):
    output, case = parity["output"], parity["case"]
    for name, loss in (
        ("loss_total", output.loss),
        ("loss_rec", output.reconstruction_loss),
        ("loss_consistency", output.consistency_loss),
    ):
        assert_parity(name, loss, torch.tensor(case[name]), case)


def test_gradient_norm_agrees_with_the_original_code(parity):
    gradients = [parameter.grad for parameter in parity["model"].parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert_parity("grad_norm_all", norm, torch.tensor(parity["case"]["grad_norm"]), parity["case"])


def test_predictions_masks_and_reconstructions_agree_with_the_original_code(parity):
    tensors, output, case = tensors_of(parity), parity["output"], parity["case"]
    assert torch.equal(output.mask, tensors["mask"])
    assert torch.equal(output.ids_restore, tensors["ids_restore"])
    assert_parity("pred", output.logits, tensors["pred"], case)
    if "recon_imgs" in tensors:
        assert_parity("recon_imgs", output.reconstruction, tensors["recon_imgs"], case)


def test_encoder_states_agree_with_the_original_code_with_and_without_mask(parity):
    tensors, model, inputs, case = tensors_of(parity), parity["model"], parity["inputs"], parity["case"]
    with torch.no_grad():
        seen = model.vasomim(inputs["imgs"]).last_hidden_state
        num_visible = tensors["encoder_masked"].shape[1] - 1
        visible = model.vasomim(inputs["imgs"], ids_keep=inputs["ids_shuffle"][:, :num_visible]).last_hidden_state
        patches = model.vasomim.embeddings.patch_embeddings(inputs["imgs"])
    assert_parity("encoder_masked", visible, tensors["encoder_masked"], case)
    if "encoder_nomask" in tensors:
        assert_parity("encoder_nomask", seen, tensors["encoder_nomask"], case)
        assert_parity("patch_embed", patches, tensors["patch_embed"], case)


def test_guidance_and_the_segmentor_agree_with_the_original_code(parity):
    tensors, model, inputs, case = tensors_of(parity), parity["model"], parity["inputs"], parity["case"]
    if "seg_logits" not in tensors:
        pytest.skip("the same segmentor and frames as in the cases of mask ratio 0.5, which hold its output")
    logits = model.segment(inputs["imgs"])
    guidance = model.guidance_map(inputs["imgs"], inputs["filters"], logits)
    assert_parity("seg_logits", logits, tensors["seg_logits"], case)
    assert_parity("guidance_map", guidance, tensors["guidance_map"], case)


def test_gradients_agree_with_the_original_code(parity):
    tensors, case = tensors_of(parity), parity["case"]
    gradients, parts = {}, {}
    for name, parameter in parity["model"].named_parameters():
        original, part = original_name(name)
        if part is None:
            gradients[original] = parameter.grad
        else:
            parts.setdefault(original, [None] * 3)[part] = parameter.grad
    gradients |= {name: torch.cat(part) for name, part in parts.items()}
    names = [name.removeprefix("grad.") for name in tensors if name.startswith("grad.")]
    assert len(names) == 15
    for name in names:
        assert_parity(f"grad.{name}", gradients[name], tensors[f"grad.{name}"], case)


def test_the_segmentor_of_a_converted_model_stays_frozen_and_unchanged(parity, shared_reference):
    segmentor = parity["model"].segmentor
    expected = load_file(shared_reference / "unext_s_weights.safetensors")
    assert not segmentor.training and not any(parameter.requires_grad for parameter in segmentor.parameters())
    state = original_state_dict(segmentor)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("size", [224, 256, 512])
def test_segmentor_logits_agree_with_the_original_code(shared_reference, tmp_path, size):
    convert(shared_reference / "unext_s_weights.safetensors", tmp_path / "unext")
    model = UNeXtForVesselSegmentation.from_pretrained(tmp_path / "unext").double()
    reference = load_file(shared_reference / "unext_s.safetensors")
    expected = reference[f"logits_{size}"]
    error = json.loads((shared_reference / "manifest.json").read_text())["unext_fp32_vs_fp64_maxabs"][str(size)]
    with torch.no_grad():
        actual = model(reference[f"input_{size}"].double()).logits
    assert_within("logits", actual, expected, error)


@pytest.mark.parametrize(
    "preset, reference", [("base", "base_patch16"), ("large", "large_patch16"), ("huge", "huge_patch14")]
)
def test_names_and_shapes_map_one_to_one_onto_those_of_the_original_code(shared_reference, preset, reference):
    shapes = json.loads((shared_reference / "param_shapes.json").read_text())[f"mae_vit_{reference}"]
    with torch.device("meta"):
        model = VasoMIMForPreTraining(load_preset(preset))
    state = original_state_dict(model)
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {
        name: list(shape) for name, shape in shapes["state_dict"].items()
    }
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == shapes["n_trainable"]


# What kind of checkpoint it is


def test_conversion_gives_back_every_tensor_of_the_original(original, tmp_path):
    convert(saved(tmp_path / "model.pth", original), tmp_path / "model", num_attention_heads=2)
    model = VasoMIMForPreTraining.from_pretrained(tmp_path / "model")
    back = original_state_dict(model)
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], original[name]) for name in original)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_conversion_returns_the_model_that_it_wrote(original, tmp_path):
    written = convert(saved(tmp_path / "model.pth", original), tmp_path / "model", num_attention_heads=2)
    frames, noise = torch.rand(2, 3, 32, 32), torch.rand(2, 4)
    loaded = VasoMIMForPreTraining.from_pretrained(tmp_path / "model")
    assert not written.training
    assert torch.equal(written(frames, noise=noise).loss, loaded(frames, noise=noise).loss)


@pytest.mark.parametrize("nest", [lambda w: {"model": w, "epoch": 1}, lambda w: {"state_dict": w}, lambda w: w])
def test_weights_are_found_inside_a_training_checkpoint(original, tmp_path, nest):
    parallel = {f"module.{name}": tensor for name, tensor in original.items()}
    model = load_original(saved(tmp_path / "model.pt", nest(parallel)), num_attention_heads=2)
    assert isinstance(model, VasoMIMForPreTraining)


def test_an_encoder_alone_becomes_an_encoder(original, tmp_path):
    model = convert(saved(tmp_path / "e.pth", encoder_of(original)), tmp_path / "encoder", num_attention_heads=2)
    assert type(model) is VasoMIMModel
    assert model.config.image_size == 32 and model.config.num_hidden_layers == 2
    reloaded, report = VasoMIMModel.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(reloaded.layers[1].attention.v_proj.weight, original["blocks.1.attn.qkv.weight"][32:])


def test_a_checkpoint_without_segmentor_gives_a_model_that_needs_none(original, tmp_path, caplog):
    model = load_original(saved(tmp_path / "mae.pth", without(original, "seg_model.")), num_attention_heads=2)
    assert model.segmentor is None
    assert (model.config.filter_weight, model.config.consistency_loss_weight) == (1, 0)
    assert "has no segmentor" in caplog.text


def test_a_segmentor_that_is_asked_for_and_absent_is_said_to_be_untrained(original, tmp_path, caplog):
    path = saved(tmp_path / "mae.pth", without(original, "seg_model."))
    model = load_original(path, num_attention_heads=2, filter_weight=0.5)
    assert "random weights" in caplog.text
    assert all(not tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize("had_one", [True, False])
def test_a_given_segmentor_takes_the_place_of_the_one_in_the_checkpoint(original, tmp_path, had_one):
    torch.manual_seed(1)
    segmentor = UNeXtForVesselSegmentation(load_preset("tiny").segmentor_config)
    path = saved(tmp_path / "m.pth", original if had_one else without(original, "seg_model."))
    segmentor.save_pretrained(tmp_path / "folder")
    save_file(original_state_dict(segmentor), tmp_path / "unext.safetensors")
    expected = {name: tensor.clone() for name, tensor in segmentor.state_dict().items()}
    for given in (tmp_path / "folder", tmp_path / "unext.safetensors", segmentor):
        model = load_original(path, segmentor=given, num_attention_heads=2)
        if given is segmentor:
            segmentor.classifier.weight.data.zero_()
        assert model.config.has_segmentor
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.segmentor.state_dict().items())


def test_a_segmentor_that_the_settings_do_not_need_is_left_out(original, tmp_path, caplog):
    path = saved(tmp_path / "m.pth", original)
    model = load_original(path, num_attention_heads=2, filter_weight=1, consistency_loss_weight=0)
    assert model.segmentor is None and "segmentor" in caplog.text


def test_an_encoder_takes_no_segmentor(original, tmp_path):
    path = saved(tmp_path / "e.pth", encoder_of(original))
    with pytest.raises(ValueError, match="pre-training checkpoint"):
        load_original(path, segmentor=tmp_path, num_attention_heads=2)


def test_half_precision_weights_are_written_as_float32(original, tmp_path):
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in original.items()}
    model = load_original(saved(tmp_path / "half.pth", half), num_attention_heads=2)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}


# What weights cannot tell


def test_heads_follow_from_the_widths_of_the_presets(tmp_path):
    with torch.device("meta"):
        model = VasoMIMForPreTraining(load_preset("huge", num_hidden_layers=1, decoder_num_hidden_layers=1))
    weights = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in original_state_dict(model).items()}
    config = load_original(saved(tmp_path / "huge.pth", weights)).config
    assert (config.num_attention_heads, config.decoder_num_attention_heads, config.patch_size) == (16, 16, 14)


def test_an_unknown_width_asks_for_the_number_of_heads(original, tmp_path):
    with pytest.raises(ValueError, match="Pass `num_attention_heads`"):
        load_original(saved(tmp_path / "m.pth", original))


def test_a_decoder_of_unknown_width_has_as_many_heads_as_the_encoder_and_says_so(original, tmp_path, caplog):
    path = saved(tmp_path / "m.pth", original)
    assert load_original(path, num_attention_heads=4).config.decoder_num_attention_heads == 4
    assert "decoder_num_attention_heads=4" in caplog.text
    assert (
        load_original(path, num_attention_heads=4, decoder_num_attention_heads=1).config.decoder_num_attention_heads
        == 1
    )


def test_training_arguments_in_the_checkpoint_give_the_objective_and_overrides_win(original, tmp_path):
    arguments = argparse.Namespace(mask_ratio=0.6, norm_pix_loss=False, device="cuda")
    path = saved(tmp_path / "m.pth", {"model": original, "args": arguments})
    config = load_original(path, num_attention_heads=2).config
    assert (config.mask_ratio, config.norm_pix_loss) == (0.6, False)
    assert load_original(path, num_attention_heads=2, mask_ratio=0.75).config.mask_ratio == 0.75


def test_a_grid_that_is_no_square_needs_the_image_size(tmp_path):
    weights = original_state_dict(tiny_pretraining_model(image_size=(32, 48)))
    path = saved(tmp_path / "m.pth", weights)
    with pytest.raises(ValueError, match="6 patches"):
        load_original(path, num_attention_heads=2)
    assert load_original(path, num_attention_heads=2, image_size=(32, 48)).config.patch_grid == (2, 3)
    with pytest.raises(ValueError, match="4 patches of 16 pixels, but pos_embed has 6"):
        load_original(path, num_attention_heads=2, image_size=32)


@pytest.mark.parametrize(
    "override, message",
    [
        ({"hidden_size": 32}, "`hidden_size=32` contradicts .* 16"),
        ({"hiden_size": 32}, "VasoMIMConfig has no hiden_size"),
        ({"mask_ratio": 1.5}, "`mask_ratio` must be in"),
    ],
)
def test_an_override_that_cannot_hold_is_refused(original, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        load_original(saved(tmp_path / "m.pth", original), num_attention_heads=2, **override)


def test_positions_that_were_learned_are_kept_and_reported(original, tmp_path, caplog):
    original["pos_embed"] += 0.5
    convert(saved(tmp_path / "m.pth", original), tmp_path / "model", num_attention_heads=2)
    assert "pos_embed differs" in caplog.text and "decoder_pos_embed" not in caplog.text
    encoder = VasoMIMModel.from_pretrained(tmp_path / "model")
    assert torch.equal(encoder.embeddings.position_embeddings, original["pos_embed"])


# Wrong input


def test_unexpected_tensors_are_named_and_left_out_or_refused(original, tmp_path, caplog):
    weights = encoder_of(original) | {"head.weight": torch.zeros(2, 16), "head.bias": torch.zeros(2)}
    path = saved(tmp_path / "m.pth", weights)
    load_original(path, num_attention_heads=2)
    assert "2 tensors: head.bias, head.weight" in caplog.text
    with pytest.raises(ValueError, match="2 tensors: head.bias, head.weight"):
        load_original(path, num_attention_heads=2, strict=True)


def test_a_norm_after_pooling_is_not_taken_for_the_norm_of_the_patches(original, tmp_path):
    weights = without(encoder_of(original), "norm.")
    weights |= {"fc_norm.weight": torch.full((16,), 2.0), "fc_norm.bias": torch.zeros(16)}
    path = saved(tmp_path / "m.pth", weights)
    with pytest.raises(ValueError, match="fine-tuned with mean pooling"):
        load_original(path, num_attention_heads=2)


@pytest.mark.parametrize(
    "gone", ["blocks.1.attn.qkv.bias", "decoder_pred.weight", "seg_model.dbn2.running_var", "pos_embed"]
)
def test_a_missing_tensor_is_named(original, tmp_path, gone):
    del original[gone]
    with pytest.raises(ValueError, match=gone):
        load_original(saved(tmp_path / "m.pth", original), num_attention_heads=2)


def test_a_segmentor_of_two_logits_is_refused(original, tmp_path):
    doubled = {name: original[f"seg_model.final.{name}"].repeat_interleave(2, dim=0) for name in ("weight", "bias")}
    weights = original | {f"seg_model.final.{name}": value for name, value in doubled.items()}
    save_file(weights, tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="two logits"):
        load_original(tmp_path / "checkpoint.safetensors", num_attention_heads=2)


def test_a_tensor_of_another_shape_is_named(original, tmp_path):
    original["blocks.1.mlp.fc2.weight"] = torch.zeros(16, 25)
    with pytest.raises(ValueError, match=r"blocks.1.mlp.fc2.weight has shape \(16, 25\)"):
        load_original(saved(tmp_path / "m.pth", original), num_attention_heads=2)


def test_a_checkpoint_of_something_else_is_refused_with_its_names(tmp_path):
    path = saved(tmp_path / "m.pth", {"conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="conv1.weight. Expected patch_embed"):
        load_original(path)
    with pytest.raises(ValueError, match="got a list"):
        load_original(saved(tmp_path / "l.pth", [1, 2]))


class Unsafe:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused_and_nothing_runs(original, tmp_path):
    path = saved(tmp_path / "m.pth", {"model": original, "extra": Unsafe(tmp_path / "ran")})
    with pytest.raises(ValueError, match="weights.pth") as error:
        convert(path, tmp_path / "model", num_attention_heads=2)
    assert "weights_only=False" in str(error.value)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
def test_a_damaged_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read as .*Is the file complete"):
        load_original(tmp_path / name)


def test_a_cut_file_is_refused(original, tmp_path):
    path = saved(tmp_path / "m.pth", original)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="cannot be read as .*Is the file complete"):
        load_original(path)


def test_other_files_are_refused_by_name(tmp_path):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"must end in .pth"):
        load_original(tmp_path / "m.pkl")
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        load_original(tmp_path / "absent.pth")


# The folder


def test_a_folder_with_files_is_not_touched_and_a_model_folder_only_when_asked(original, tmp_path):
    path, folder = saved(tmp_path / "m.pth", original), tmp_path / "model"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="overwrite=True"):
            convert(path, folder, num_attention_heads=2, overwrite=overwrite)
    assert [item.name for item in folder.iterdir()] == ["notes.txt"]
    (folder / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        convert(path, folder, num_attention_heads=2)
    convert(path, folder, num_attention_heads=2, overwrite=True)
    assert {"config.json", "model.safetensors"} < {item.name for item in folder.iterdir()}
    assert {item.name for item in tmp_path.iterdir()} == {"m.pth", "model"}


def test_a_failed_conversion_leaves_the_old_folder_and_nothing_else(original, tmp_path):
    folder = tmp_path / "model"
    convert(saved(tmp_path / "m.pth", original), folder, num_attention_heads=2)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="Pass `num_attention_heads`"):
        convert(tmp_path / "m.pth", folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == before
    assert {item.name for item in tmp_path.iterdir()} == {"m.pth", "model"}


def test_a_checkpoint_inside_the_folder_to_replace_is_not_lost(original, tmp_path):
    folder = tmp_path / "model"
    convert(saved(tmp_path / "m.pth", original), folder, num_attention_heads=2)
    path = saved(folder / "m.pth", original)
    with pytest.raises(ValueError, match="model contains the checkpoint"):
        convert(path, folder, num_attention_heads=2, overwrite=True)
    assert path.is_file()


def test_nothing_is_warned_of_a_checkpoint_that_is_as_expected(original, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_original(saved(tmp_path / "m.pth", original), num_attention_heads=2, decoder_num_attention_heads=2)
    assert caplog.text == ""
