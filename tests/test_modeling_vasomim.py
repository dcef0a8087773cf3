"""The encoder and the backbone: shapes, positions, hidden patches, attention implementations, dtypes."""

import pytest
import torch
from miniatures.models import SMALL as TWO_LAYERS
from safetensors.torch import load_file
from transformers import AttentionInterface, AutoBackbone, AutoModel

from vasomim_hf import VasoMIMBackbone, VasoMIMConfig, VasoMIMModel
from vasomim_hf.modeling_vasomim import interpolate_positions, sine_cosine_positions, visible_patches


SMALL = {**TWO_LAYERS, "num_hidden_layers": 3, "segmentor_config": None}


@pytest.fixture
def config() -> VasoMIMConfig:
    return VasoMIMConfig(**SMALL)


@pytest.fixture
def model(config) -> VasoMIMModel:
    return VasoMIMModel(config).eval()


# --- sizes and positions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "grid"), [((64, 64), 16), ((64, 128), 32), ((80, 48), 15), ((16, 16), 1)])
def test_encoder_takes_any_height_and_width(model, size, grid):
    output = model(torch.rand(2, 3, *size))
    assert output.last_hidden_state.shape == (2, 1 + grid, 32)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])


def test_encoder_completes_the_last_patches_by_repeating_the_edge(model):
    frame = torch.rand(1, 3, 50, 70)
    padded = torch.nn.functional.pad(frame, (0, 10, 0, 14), mode="replicate")
    torch.testing.assert_close(model(frame).last_hidden_state, model(padded).last_hidden_state)


@pytest.mark.parametrize("size", [(1, 1), (15, 64), (64, 3)])
def test_encoder_refuses_frames_smaller_than_a_patch(model, size):
    with pytest.raises(ValueError, match=rf"at least one patch of 16×16 pixels, got {size[0]}×{size[1]}"):
        model(torch.rand(1, 3, *size))


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (1, 4, 64, 64), (3, 64, 64)])
def test_encoder_refuses_another_number_of_channels(model, shape):
    with pytest.raises(ValueError, match=r"must have shape \(batch_size, 3, height, width\), got"):
        model(torch.rand(*shape))


def test_encoder_refuses_other_sizes_where_interpolation_is_switched_off(model):
    with pytest.raises(ValueError, match="must be 64×64 with interpolate_pos_encoding=False, got 64×80"):
        model(torch.rand(1, 3, 64, 80), interpolate_pos_encoding=False)


def test_positions_are_the_sine_and_cosine_of_column_and_row():
    positions = sine_cosine_positions((4, 6), 32)
    assert positions[0, 0].abs().sum() == 0
    row, column = 2, 5
    patch = positions[0, 1 + row * 6 + column]
    frequencies = 1 / 10000 ** (torch.arange(8) / 8)
    expected = [f(place * frequencies) for place in (column, row) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(patch, torch.cat(expected))


def test_positions_are_those_of_the_original(shared_reference):
    weights = load_file(shared_reference / "tiny_mae_weights.safetensors")
    for key in ("pos_embed", "decoder_pos_embed"):
        torch.testing.assert_close(sine_cosine_positions((14, 14), weights[key].shape[-1]), weights[key])


def test_positions_are_not_touched_at_their_own_size():
    positions = sine_cosine_positions((4, 6), 32)
    assert interpolate_positions(positions, (4, 6), (4, 6)) is positions


def test_positions_of_another_grid_are_interpolated_by_rows_and_columns():
    positions = sine_cosine_positions((8, 8), 32)
    taller = interpolate_positions(positions, (8, 8), (16, 8))
    assert taller.shape == (1, 129, 32)
    torch.testing.assert_close(taller[:, :1], positions[:, :1])
    # the first half holds the column alone, so it must stay the same in every row
    columns = taller[0, 1:, :16].reshape(16, 8, 16)
    torch.testing.assert_close(columns, columns[:1].expand(16, -1, -1), atol=1e-5, rtol=0)


def test_non_square_pretraining_grid_is_supported():
    model = VasoMIMModel(VasoMIMConfig(**{**SMALL, "image_size": [64, 96]}))
    assert model.embeddings.position_embeddings.shape == (1, 25, 32)
    assert model(torch.rand(1, 3, 64, 96), interpolate_pos_encoding=False).last_hidden_state.shape == (1, 25, 32)


# --- hidden patches --------------------------------------------------------------------------------------------------


def test_hidden_patches_do_not_reach_the_encoder(model):
    frames = torch.rand(2, 3, 64, 64)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, ::2] = True
    changed = frames.clone()
    changed[..., :16, :16] = 7.0  # patch 0 is hidden
    first = model(frames, bool_masked_pos=hidden).last_hidden_state
    assert first.shape == (2, 9, 32)
    assert torch.equal(first, model(changed, bool_masked_pos=hidden).last_hidden_state)
    changed[..., :16, 16:32] = 7.0  # patch 1 is not
    assert not torch.equal(first, model(changed, bool_masked_pos=hidden).last_hidden_state)


def test_order_of_kept_patches_is_the_order_of_the_sequence(model):
    frames = torch.rand(1, 3, 64, 64)
    ids = torch.tensor([[5, 2, 9]])
    forward = model(frames, ids_keep=ids).last_hidden_state
    backward = model(frames, ids_keep=ids.flip(1)).last_hidden_state
    torch.testing.assert_close(forward[:, 1:], backward[:, 1:].flip(1))


def test_keeping_all_patches_equals_the_convolution(model):
    frames = torch.rand(2, 3, 64, 48)
    ids = torch.arange(12).expand(2, -1)
    torch.testing.assert_close(model(frames, ids_keep=ids).last_hidden_state, model(frames).last_hidden_state)


def test_visible_patches_are_in_reading_order():
    hidden = torch.tensor([[True, False, False, True], [False, True, True, False]])
    assert visible_patches(hidden).tolist() == [[1, 2], [0, 3]]


def test_different_numbers_of_hidden_patches_are_refused():
    hidden = torch.tensor([[True, False, False], [True, True, False]])
    with pytest.raises(ValueError, match="patches, got between 1 and 2"):
        visible_patches(hidden)


@pytest.mark.parametrize("num_flags", [8, 32])
def test_wrong_number_of_flags_is_refused(model, num_flags):
    with pytest.raises(ValueError, match=rf"shape \(1, 16\), .* got \(1, {num_flags}\)"):
        model(torch.rand(1, 3, 64, 64), bool_masked_pos=torch.zeros(1, num_flags, dtype=torch.bool))


def test_hidden_flags_and_kept_indices_together_are_refused(model):
    with pytest.raises(ValueError, match="one of `bool_masked_pos` and `ids_keep`, got both"):
        model(
            torch.rand(1, 3, 64, 64),
            bool_masked_pos=torch.zeros(1, 16, dtype=torch.bool),
            ids_keep=torch.zeros(1, 2, dtype=torch.long),
        )


def test_misspelt_argument_is_refused(model):
    with pytest.raises(TypeError, match="has no argument 'bool_mask_pos'"):
        model(torch.rand(1, 3, 64, 64), bool_mask_pos=torch.zeros(1, 16))


# --- the transformers contract ---------------------------------------------------------------------------------------


def test_attention_implementations_agree(model):
    frames = torch.rand(2, 3, 64, 64)
    sdpa = model(frames).last_hidden_state
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(frames).last_hidden_state, sdpa, atol=1e-5, rtol=1e-4)
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(frames).last_hidden_state, sdpa)


def test_attention_written_by_the_user_is_called(model):
    calls = []

    def attention(module, query, key, value, attention_mask, **kwargs):
        calls.append(query.shape)
        return value.transpose(1, 2).contiguous(), None

    AttentionInterface.register("of_the_user", attention)
    model.set_attn_implementation("of_the_user")
    model(torch.rand(2, 3, 64, 64))
    assert calls == [(2, 4, 17, 8)] * 3


def test_bf16_training_on_a_cpu_agrees_with_sdpa(model, monkeypatch):
    frames = torch.rand(2, 3, 64, 64)

    def gradients() -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(frames).last_hidden_state
        output.float().square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    attention = type(model.layers[0].attention)
    assert attention._sdpa_is_slow(model.layers[0].attention, torch.zeros(1, dtype=torch.bfloat16))
    quick = gradients()
    monkeypatch.setattr(attention, "_sdpa_is_slow", lambda self, hidden_states: False)
    slow = gradients()
    assert not torch.equal(quick, slow)
    assert torch.cosine_similarity(quick, slow, dim=0) > 0.999


def test_hidden_states_and_attentions_are_given_when_asked_for(config):
    model = VasoMIMModel._from_config(config, attn_implementation="eager").eval()
    output = model(torch.rand(2, 3, 64, 64), output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(2, 17, 32)] * 4
    assert [attention.shape for attention in output.attentions] == [(2, 4, 17, 17)] * 3
    torch.testing.assert_close(model.layernorm(output.hidden_states[-1]), output.last_hidden_state)


def test_gradient_checkpointing_does_not_change_gradients(model):
    frames = torch.rand(2, 3, 64, 64)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(frames).last_hidden_state.square().mean().backward()
        return model.layers[0].mlp.fc1.weight.grad.clone()

    model.train()
    plain = gradient()
    model.activation_checkpointing_enable()
    assert model.layers[0].gradient_checkpointing
    torch.testing.assert_close(gradient(), plain)


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_encoder_compiles_to_one_graph(model, size):
    frames = torch.rand(1, 3, *size)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(frames).last_hidden_state, model(frames).last_hidden_state)


def test_encoder_in_bf16_agrees_with_fp32(model):
    frames = torch.rand(2, 3, 64, 64)
    expected = model(frames).pooler_output
    output = model.to(torch.bfloat16)(frames).pooler_output
    assert output.dtype == torch.bfloat16
    assert torch.cosine_similarity(output.float(), expected).min() > 0.999


def test_encoder_is_drawn_at_the_start_as_in_mae(config):
    torch.manual_seed(0)
    wide = VasoMIMConfig(**{**SMALL, "hidden_size": 128, "intermediate_size": 512})
    model = VasoMIMModel(wide)
    layer = model.layers[0]
    expected = {
        # MAE draws query, key and value as one matrix of 3 × 128 rows, and the patch kernel as a linear layer
        model.layers[0].attention.q_proj: (6 / (128 + 3 * 128)) ** 0.5,
        layer.attention.o_proj: (6 / (128 + 128)) ** 0.5,
        layer.mlp.fc1: (6 / (128 + 512)) ** 0.5,
        model.embeddings.patch_embeddings.projection: (6 / (3 * 256 + 128)) ** 0.5,
    }
    for module, bound in expected.items():
        assert bound * 0.98 < module.weight.abs().max() <= bound
        assert (module.bias == 0).all()
    assert 0.01 < model.embeddings.cls_token.std() < 0.03


# --- backbone --------------------------------------------------------------------------------------------------------


def test_backbone_gives_a_map_for_each_asked_layer(config):
    config.out_indices = [0, 2, 3]
    backbone = VasoMIMBackbone(config).eval()
    output = backbone(torch.rand(2, 3, 64, 96))
    assert [feature_map.shape for feature_map in output.feature_maps] == [(2, 32, 4, 6)] * 3
    assert backbone.channels == [32, 32, 32]
    assert output.hidden_states is None


def test_last_map_of_the_backbone_is_the_output_of_the_encoder(model, tmp_path):
    model.save_pretrained(tmp_path)
    frames = torch.rand(1, 3, 64, 96)
    backbone = VasoMIMBackbone.from_pretrained(tmp_path)
    (feature_map,) = backbone(frames).feature_maps
    tokens = model(frames).last_hidden_state[:, 1:]
    torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), tokens)


def test_auto_classes_know_the_models(config, tmp_path):
    assert isinstance(AutoModel.from_config(config), VasoMIMModel)
    assert isinstance(AutoBackbone.from_config(config), VasoMIMBackbone)
    VasoMIMModel(config).save_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), VasoMIMModel)


# --- stochastic depth ------------------------------------------------------------------------------------------------


def test_drop_path_changes_nothing_in_evaluation_or_at_rate_zero(model):
    frames = torch.rand(2, 3, 64, 64)
    expected = model(frames).last_hidden_state
    assert torch.equal(model.train()(frames).last_hidden_state, expected)
    dropping = VasoMIMModel(VasoMIMConfig(**SMALL, drop_path_rate=0.5)).eval()
    dropping.load_state_dict(model.state_dict())
    assert torch.equal(dropping(frames).last_hidden_state, expected)


def test_drop_path_rate_rises_from_the_first_layer_to_the_last():
    model = VasoMIMModel(VasoMIMConfig(**SMALL, drop_path_rate=0.4))
    assert [layer.dropout.drop_path_rate for layer in model.layers] == [0.0, 0.2, 0.4]
    backbone = VasoMIMBackbone(VasoMIMConfig(**SMALL, drop_path_rate=0.4))
    assert [layer.dropout.drop_path_rate for layer in backbone.layers] == [0.0, 0.2, 0.4]


def test_drop_path_leaves_out_whole_branches_by_image_and_keeps_the_mean():
    dropout = VasoMIMModel(VasoMIMConfig(**SMALL, drop_path_rate=0.25)).layers[2].dropout.train()
    branch = torch.rand(4000, 5, 8) + 1
    factor = dropout(branch) / branch
    torch.testing.assert_close(factor, factor[:, :1, :1].expand_as(factor))
    assert set(factor[:, 0, 0].mul(3).round().tolist()) == {0.0, 4.0}
    assert factor[:, 0, 0].mean().item() == pytest.approx(1, abs=0.04)


def test_two_branches_of_a_layer_are_left_out_independently():
    layer = VasoMIMModel(VasoMIMConfig(**SMALL, drop_path_rate=0.5)).layers[2].train()
    states = torch.rand(1, 3, 32).expand(400, -1, -1)
    outputs = layer(states)
    assert len(torch.unique(outputs[:, 0].mul(1e3).round(), dim=0)) == 4
