"""Configurations: what they hold, what they refuse, and that they survive a round trip."""

import json

import pytest
from transformers import AutoConfig

from vasomim_hf import UNeXtConfig, VasoMIMConfig
from vasomim_hf.presets import load_config_file, load_preset, preset_names


SIZES = {
    "tiny": (192, 12, 3, 16),
    "small": (384, 12, 6, 16),
    "base": (768, 12, 12, 16),
    "large": (1024, 24, 16, 16),
    "huge": (1280, 32, 16, 14),
}


@pytest.mark.parametrize("name", SIZES)
def test_preset_has_the_sizes_of_the_paper_and_its_recipe(name):
    config = load_preset(name)
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.patch_size)
    assert sizes == SIZES[name]
    assert config.intermediate_size == 4 * config.hidden_size
    recipe = (config.mask_ratio, config.guidance_ratio_start, config.guidance_ratio_end, config.filter_weight)
    assert recipe == (0.5, 0.0, 0.5, 0.5)
    assert config.norm_pix_loss and config.consistency_loss_weight == 1


def test_preset_names_are_the_five_sizes():
    assert preset_names() == list(SIZES)


def test_preset_of_unknown_name_is_answered_with_the_known_names():
    with pytest.raises(ValueError, match="no preset 'gigantic'. Use one of tiny, small, base, large, huge"):
        load_preset("gigantic")


def test_config_survives_saving_and_loading(tmp_path):
    config = VasoMIMConfig(
        hidden_size=32,
        num_attention_heads=2,
        mask_ratio=0.6,
        out_indices=[2, 4],
        segmentor_config={"token_hidden_sizes": [16, 24]},
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, VasoMIMConfig)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.mask_ratio == 0.6
    assert isinstance(loaded.segmentor_config, UNeXtConfig)
    assert loaded.segmentor_config.token_hidden_sizes == [16, 24]
    assert loaded.out_features == ["stage2", "stage4"]


def test_config_file_takes_overrides(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(load_preset("tiny").to_dict()))
    assert load_config_file(path, mask_ratio=0.75).mask_ratio == 0.75


@pytest.mark.parametrize(
    ("depth", "layers"), [(12, [3, 6, 9, 12]), (24, [6, 12, 18, 24]), (3, [1, 2, 3, 3]), (1, [1, 1, 1, 1])]
)
def test_segmentation_looks_at_four_layers_spread_over_the_depth(depth, layers):
    assert VasoMIMConfig(num_hidden_layers=depth).segmentation_layer_numbers == layers


def test_numbers_of_the_heads_survive_saving_and_loading(tmp_path):
    numbers = {
        "drop_path_rate": 0.1,
        "freeze_encoder": True,
        "classifier_pooling": "cls",
        "segmentation_layers": [2, 4, 6, 8],
        "segmentation_hidden_size": 32,
        "segmentation_use_encoder": False,
        "detail_stem_channels": 16,
        "dice_weight": 0.5,
        "cl_dice_weight": 0.25,
        "cl_dice_iterations": 3,
        "id2label": {0: "background", 1: "vessel"},
    }
    VasoMIMConfig(**numbers, label2id={"background": 0, "vessel": 1}).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in numbers} == numbers
    assert loaded.segmentation_layer_numbers == [2, 4, 6, 8]


def test_config_knows_when_no_segmentor_is_needed():
    assert VasoMIMConfig().has_segmentor
    assert VasoMIMConfig(consistency_loss_weight=0).has_segmentor
    assert VasoMIMConfig(filter_weight=1).has_segmentor
    assert not VasoMIMConfig(filter_weight=1, consistency_loss_weight=0).has_segmentor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 0}, r"`mask_ratio` must be in \(0, 1\), got 0"),
        ({"mask_ratio": 1}, r"`mask_ratio` must be in \(0, 1\), got 1"),
        ({"mask_ratio": -0.5}, r"`mask_ratio` must be in \(0, 1\), got -0.5"),
        ({"mask_ratio": float("nan")}, r"`mask_ratio` must be in \(0, 1\), got nan"),
        ({"guidance_ratio_end": 1.5}, r"and must be in \[0, 1\], got 1.5"),
        ({"filter_weight": -0.1}, r"`filter_weight` .* got -0.1"),
        ({"consistency_loss_weight": -1}, "`consistency_loss_weight` must be a finite number >= 0"),
        ({"image_size": 100}, "divisible by patch_size=16, got 100. Nearest size: 96"),
        ({"image_size": [224, 100]}, "divisible by patch_size=16"),
        ({"image_size": [224]}, r"or \(height, width\)"),
        ({"image_size": 8}, "divisible by patch_size=16"),
        ({"hidden_size": 770}, "`hidden_size` must be divisible by `num_attention_heads` and by 4"),
        ({"decoder_hidden_size": 500}, "`decoder_hidden_size` must be divisible by `decoder_num_attention_heads`"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must be at least 1, got 0"),
        ({"intermediate_size": 0}, "`intermediate_size` must be at least 1"),
        ({"decoder_num_hidden_layers": -1}, "`decoder_num_hidden_layers` must be at least 1"),
        ({"attention_probs_dropout_prob": -1}, r"`attention_probs_dropout_prob` is a probability"),
        ({"initializer_range": -1.0}, "must be > 0"),
        ({"hidden_act": "gelou"}, "`hidden_act` must be one of .*gelu.*, got 'gelou'"),
        ({"segmentor_config": {"num_labels": 3}}, "pixel, got num_channels=3 and num_logits=3"),
        ({"num_channels": 1, "segmentor_config": {"num_channels": 3}}, "1 channels"),
        ({"patch_size": 1, "num_channels": 1, "image_size": 8}, "`norm_pix_loss` needs at least two values"),
        ({"drop_path_rate": 1}, r"`drop_path_rate` is a probability and must be in \[0, 1\), got 1"),
        ({"classifier_pooling": "max"}, "`classifier_pooling` must be 'mean' or 'cls', got 'max'"),
        ({"segmentation_layers": [3, 6, 12]}, r"four layers from 1 to 12 in"),
        ({"segmentation_layers": [3, 6, 9, 13]}, "four layers from 1 to 12"),
        ({"segmentation_layers": [0, 6, 9, 12]}, "four layers from 1 to 12"),
        ({"segmentation_layers": [6, 3, 9, 12]}, "must be four layers"),
        ({"segmentation_hidden_size": 40}, "`segmentation_hidden_size` must be a multiple of 16 .*, got 40"),
        ({"detail_stem_channels": 12}, "`detail_stem_channels` must be a multiple of 8, .*, got 12"),
        ({"detail_stem_channels": 0, "segmentation_use_encoder": False}, "detail stem or both"),
        ({"dice_weight": -1}, "`dice_weight` must be a finite number >= 0, got -1"),
        ({"cl_dice_weight": float("inf")}, "`cl_dice_weight` must be a finite number >= 0, got inf"),
        ({"cl_dice_iterations": 0}, "`cl_dice_iterations` must be at least 1, got 0"),
        ({"mask_ration": 0.5}, "has no `mask_ration`. Did you mean `mask_ratio`?"),
    ],
)
def test_config_refuses_what_cannot_be_built_or_trained(arguments, message):
    with pytest.raises(ValueError, match=message):
        VasoMIMConfig(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shift_size": 4}, "positive odd number"),
        ({"conv_hidden_sizes": [8, 16]}, "`conv_hidden_sizes` must be 3 positive integers"),
        ({"token_hidden_sizes": [0, 16]}, "`token_hidden_sizes` must be 2 positive integers"),
        ({"num_channels": 0}, "`num_channels` must be at least 1"),
    ],
)
def test_segmentor_config_refuses_what_cannot_be_built(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNeXtConfig(**arguments)


def test_segmentor_takes_the_channels_of_the_frames():
    assert VasoMIMConfig(num_channels=1).segmentor_config.num_channels == 1
    assert VasoMIMConfig(num_channels=1, segmentor_config={"shift_size": 3}).segmentor_config.num_channels == 1


@pytest.mark.parametrize("key", ["masking_ratio", "mask_rate", "guidance_end", "consistency_weight", "norm_pix"])
def test_preset_refuses_overrides_that_are_no_keys(key):
    with pytest.raises(ValueError, match=f"VasoMIMConfig has no `{key}`. Did you mean"):
        load_preset("tiny", **{key: 0.5})


def test_config_accepts_attributes_of_the_user_that_are_no_slip():
    assert VasoMIMConfig(hospital="north").hospital == "north"
