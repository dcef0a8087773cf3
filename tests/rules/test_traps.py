"""The ways in which models of the installed transformers, accelerate and Trainer go wrong without a word.

Each test fails when this package walks into one of them. Those of the image processor (deep images saturated by path
loading, label maps resized with the image filter), of publishing (a map of Auto classes that names one class, files that
are not copied) and of two processes on one machine stand with those parts; `TRAPS` names them all.
"""

import ast
from pathlib import Path

import pytest
import torch
from miniatures.models import SMALL
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoBackbone,
    AutoModelForPreTraining,
    Trainer,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

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
from vasomim_hf.modeling_vasomim import sine_cosine_positions


def saved_model(folder: Path) -> VasoMIMForPreTraining:
    model = VasoMIMForPreTraining(VasoMIMConfig(**SMALL)).eval()
    model.save_pretrained(folder)
    return model


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    expected = first.state_dict()
    found = second.state_dict()
    return expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def test_segmentor_does_not_come_back_trainable_from_a_folder(tmp_path):
    saved_model(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert not any(parameter.requires_grad for parameter in loaded.segmentor.parameters())
    assert not any(module.training for module in loaded.train().segmentor.modules())
    assert "position_embeddings" not in {name.split(".")[-1] for name, _ in loaded.named_parameters()}
    assert loaded.vasomim.embeddings.cls_token.requires_grad


def test_weights_are_not_drawn_anew_when_the_backbone_sits_in_a_framework_of_the_library(tmp_path):
    config = UperNetConfig(
        backbone_config=VasoMIMConfig(**SMALL, out_indices=[1, 2]),
        hidden_size=16,
        pool_scales=[1],
        use_auxiliary_head=False,
        num_labels=2,
    )
    model = UperNetForSemanticSegmentation(config).eval()
    # values that no initialisation draws
    for parameter in model.parameters():
        parameter.data.add_(3.0)
    model.save_pretrained(tmp_path)
    assert same_weights(model, UperNetForSemanticSegmentation.from_pretrained(tmp_path))


def test_initialisation_reaches_modules_without_parameters_of_their_own():
    # custom code is never asked to initialise these: what they want is marked on the leaf that owns the tensor
    config = VasoMIMConfig(**{**SMALL, "hidden_size": 128})
    model = VasoMIMForPreTraining(config)
    kernel = model.vasomim.embeddings.patch_embeddings.projection.weight
    query = model.vasomim.layers[0].attention.q_proj.weight
    assert kernel.std().item() == pytest.approx((6 / (3 * 256 + 128) / 3) ** 0.5, rel=0.05)
    assert query.std().item() == pytest.approx((6 / (4 * 128) / 3) ** 0.5, rel=0.05)


@pytest.mark.parametrize("missing", [False, True])
def test_position_tables_are_right_after_loading_also_from_a_file_without_them(tmp_path, missing):
    saved_model(tmp_path)
    if missing:
        weights = load_file(tmp_path / "model.safetensors")
        kept = {name: value for name, value in weights.items() if not name.endswith("position_embeddings")}
        assert len(kept) == len(weights) - 2
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = VasoMIMForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(loaded.vasomim.embeddings.position_embeddings, sine_cosine_positions((4, 4), 32))
    assert torch.equal(loaded.decoder.position_embeddings, sine_cosine_positions((4, 4), 16))


@pytest.mark.parametrize("missing", [False, True])
def test_model_loaded_in_bf16_has_no_tensor_of_another_dtype(tmp_path, missing):
    saved_model(tmp_path)
    if missing:
        weights = load_file(tmp_path / "model.safetensors")
        kept = {name: value for name, value in weights.items() if not name.endswith("position_embeddings")}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = VasoMIMForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)
    dtypes = {value.dtype for value in loaded.state_dict().values() if value.is_floating_point()}
    assert dtypes == {torch.bfloat16}
    output = loaded(torch.randn(1, 3, 64, 64).bfloat16(), torch.zeros(1, 64, 64))
    assert torch.isfinite(output.loss)


def test_files_hold_the_names_of_this_package(tmp_path):
    # a registered conversion mapping would be reversed on every save
    model = saved_model(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(model.state_dict())


def test_backbone_loads_from_a_local_folder_by_the_documented_route(tmp_path):
    # AutoBackbone.from_pretrained asks the Hub whether a local folder exists there
    model = saved_model(tmp_path)
    backbone = VasoMIMBackbone.from_pretrained(tmp_path, out_indices=[1])
    assert same_weights(backbone, model.vasomim)
    assert isinstance(AutoBackbone.from_config(backbone.config), VasoMIMBackbone)


class TwoFrames(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        frame = torch.rand(3, 32, 32, generator=generator)
        return {"pixel_values": frame, "labels": (frame[0] > 0.5).long()}


@pytest.mark.parametrize(
    "model_class",
    [
        UNeXtForVesselSegmentation,
        VasoMIMForImageClassification,
        VasoMIMForObjectDetection,
        VasoMIMForPreTraining,
        VasoMIMForSemanticSegmentation,
    ],
)
def test_models_do_not_claim_to_divide_by_the_number_of_items(model_class):
    assert model_class.accepts_loss_kwargs is False


def test_trainer_steps_the_same_with_and_without_gradient_accumulation(tmp_path):
    def loss_and_gradient(steps: int) -> tuple[float, float]:
        torch.manual_seed(0)
        config = UNeXtConfig(**SMALL["segmentor_config"])
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps,
            max_steps=1,
            logging_steps=1,
            learning_rate=0.0,
            max_grad_norm=1e9,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(UNeXtForVesselSegmentation(config), arguments, train_dataset=TwoFrames())
        trainer.train()
        return trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]

    whole, accumulated = loss_and_gradient(1), loss_and_gradient(4)
    # batch norm and the Dice over a batch differ a little; a fourfold loss would be 300 % off
    assert accumulated[0] == pytest.approx(whole[0], rel=0.1)
    assert accumulated[1] < 2 * whole[1]


def test_encoder_of_a_pretraining_folder_is_trainable_and_complete(tmp_path):
    model = saved_model(tmp_path)
    encoder = VasoMIMModel.from_pretrained(tmp_path)
    assert same_weights(encoder, model.vasomim)
    assert all(parameter.requires_grad for parameter in encoder.parameters())


TRAPS = {
    1: "test_segmentor_does_not_come_back_trainable_from_a_folder",
    2: "test_weights_are_not_drawn_anew_when_the_backbone_sits_in_a_framework_of_the_library",
    3: "test_initialisation_reaches_modules_without_parameters_of_their_own",
    4: "test_position_tables_are_right_after_loading_also_from_a_file_without_them",
    5: "test_model_loaded_in_bf16_has_no_tensor_of_another_dtype",
    6: "test_files_hold_the_names_of_this_package",
    7: "test_backbone_loads_from_a_local_folder_by_the_documented_route",
    8: "test_trainer_steps_the_same_with_and_without_gradient_accumulation",
    9: "test_16_bit_files_keep_their_depth_where_the_library_saturates",
    10: "test_segmentation_maps_are_resized_by_nearest_neighbour_with_ids_unchanged",
    11: "test_auto_map_is_complete_whatever_class_was_saved",
    12: "test_two_processes_on_one_machine_train_as_one",
    13: "test_published_folder_loads_with_every_auto_class_in_a_clean_process",
}


def test_every_trap_has_its_test():
    names = set()
    for path in Path(__file__).parents[1].rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert set(TRAPS) == set(range(1, 14))
    assert not set(TRAPS.values()) - names
