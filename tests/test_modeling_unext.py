"""The segmentor: agreement with the original, sizes, loss."""

import json

import pytest
import torch
from miniatures.overfitting import OVERFITTED, overfit
from safetensors.torch import load_file

from vasomim_hf import UNeXtConfig, UNeXtForVesselSegmentation
from vasomim_hf.convert_vasomim_to_hf import load_original
from vasomim_hf.modeling_unext import shift_channels, vessel_segmentation_loss


SMALL = {"conv_hidden_sizes": [4, 6, 8], "token_hidden_sizes": [10, 12]}


@pytest.fixture
def model() -> UNeXtForVesselSegmentation:
    return UNeXtForVesselSegmentation(UNeXtConfig(**SMALL)).eval()


def test_default_segmentor_has_the_number_of_parameters_of_the_original():
    with torch.device("meta"):
        model = UNeXtForVesselSegmentation(UNeXtConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 253_561
    assert len(model.state_dict()) == 101


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (33, 70), (1, 1)])
def test_segmentor_gives_one_logit_for_each_pixel_of_any_size(model, size):
    assert model(torch.rand(2, 3, *size)).logits.shape == (2, 1, *size)


def test_segmentor_pads_by_repeating_the_edge(model):
    frame = torch.rand(1, 3, 64, 40)
    padded = torch.cat([frame, frame[..., -1:].expand(-1, -1, -1, 24)], dim=-1)
    torch.testing.assert_close(model(frame).logits, model(padded).logits[..., :40])


def test_segmentor_does_not_depend_on_the_memory_format(model):
    frame = torch.rand(2, 3, 64, 64)
    channels_last = model(frame.contiguous(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(model(frame).logits, channels_last, rtol=1e-4, atol=1e-5)


def test_shift_moves_the_middle_group_nowhere_and_fills_with_zeros():
    maps = torch.arange(1.0, 6.0).reshape(1, 5, 1, 1).expand(1, 5, 5, 5).contiguous()
    down = shift_channels(maps, shift_size=5, dim=2)
    assert torch.equal(down[:, 2], maps[:, 2])
    assert down[0, 0, :, 0].tolist() == [1, 1, 1, 0, 0]
    assert down[0, 4, :, 0].tolist() == [0, 0, 5, 5, 5]
    assert torch.equal(shift_channels(maps, 5, dim=3), down.transpose(2, 3))


def test_loss_is_half_cross_entropy_and_half_dice_over_the_batch():
    logits, labels = torch.randn(2, 1, 8, 8), (torch.rand(2, 1, 8, 8) > 0.5).float()
    probability = 1 / (1 + torch.exp(-logits))
    entropy = -(labels * probability.log() + (1 - labels) * (1 - probability).log()).mean()
    dice = (2 * (probability * labels).sum() + 1e-5) / (probability.sum() + labels.sum() + 1e-5)
    torch.testing.assert_close(vessel_segmentation_loss(logits, labels), 0.5 * entropy + 0.5 * (1 - dice))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_loss_takes_labels_of_every_kind_with_and_without_a_channel(model, dtype):
    frames, labels = torch.rand(2, 3, 32, 32), (torch.rand(2, 32, 32) > 0.5).to(dtype)
    torch.testing.assert_close(model(frames, labels=labels).loss, model(frames, labels=labels[:, None]).loss)


def test_two_frames_are_overfitted():
    model = UNeXtForVesselSegmentation(UNeXtConfig()).train()
    labels = torch.zeros(2, 1, 32, 32)
    labels[0, :, 10:14], labels[1, :, :, 20:25] = 1, 1
    frames = torch.rand(2, 3, 32, 32) * 0.1 - labels
    assert overfit(model, lambda: model(frames, labels=labels).loss, steps=60, learning_rate=1e-2) < OVERFITTED


def test_labels_of_another_size_are_refused(model):
    with pytest.raises(ValueError, match=r"size of the logits, \(2, 1, 32, 32\), got \(2, 1, 16, 16\)"):
        model(torch.rand(2, 3, 32, 32), labels=torch.zeros(2, 16, 16))


@pytest.mark.parametrize("value", [255.0, -0.5, float("nan")])
def test_labels_outside_0_and_1_are_refused_with_the_remedy(model, value):
    labels = torch.zeros(2, 32, 32)
    labels[0, 3, 3] = value
    with pytest.raises(ValueError, match=r"`labels` must be in \[0, 1\]"):
        model(torch.rand(2, 3, 32, 32), labels=labels)


def test_misspelt_argument_is_refused_instead_of_giving_no_loss(model):
    with pytest.raises(TypeError, match="has no argument 'label'"):
        model(torch.rand(2, 3, 32, 32), label=torch.zeros(2, 32, 32))


def test_grey_frames_are_refused_with_the_remedy(model):
    with pytest.raises(ValueError, match="image processor repeats grey frames"):
        model(torch.rand(2, 1, 32, 32))


def test_segmentor_survives_saving_and_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = UNeXtForVesselSegmentation.from_pretrained(tmp_path)
    frames = torch.rand(1, 3, 32, 32)
    assert not loaded.training
    assert torch.equal(model(frames).logits, loaded(frames).logits)


def test_segmentor_compiles_to_one_graph(model):
    frames = torch.rand(1, 3, 40, 64)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(frames).logits, model(frames).logits)


@pytest.mark.parametrize("size", [224, 256, 512])
def test_segmentor_has_the_logits_of_the_original(shared_reference, size):
    reference = load_file(shared_reference / "unext_s.safetensors")
    manifest = json.loads((shared_reference / "manifest.json").read_text())
    model = load_original(shared_reference / "unext_s_weights.safetensors")
    with torch.no_grad():
        logits = model(reference[f"input_{size}"]).logits
    expected = reference[f"logits_{size}"]
    tolerance = max(3 * manifest["unext_fp32_vs_fp64_maxabs"][str(size)], 1e-4 * expected.abs().max().item())
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)


def test_a_folder_with_one_name_gets_one_for_the_background_too(tmp_path):
    model = UNeXtForVesselSegmentation(UNeXtConfig(**SMALL))
    assert model.config.id2label == {0: "background", 1: "vessel"} and model.config.num_logits == 1
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    older = {**content, "id2label": {"0": "artery"}, "label2id": {"artery": 0}}
    (tmp_path / "config.json").write_text(json.dumps(older))
    loaded = UNeXtForVesselSegmentation.from_pretrained(tmp_path)
    assert loaded.config.id2label == {0: "background", 1: "artery"}
    assert loaded.config.label2id == {"background": 0, "artery": 1}
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


@pytest.mark.parametrize(("num_labels", "channels"), [(1, 1), (2, 1), (3, 3)])
def test_two_ids_need_one_logit(num_labels, channels):
    model = UNeXtForVesselSegmentation(UNeXtConfig(**SMALL, num_labels=num_labels))
    assert model.classifier.out_channels == channels
    assert len(model.config.id2label) == max(2, num_labels)
