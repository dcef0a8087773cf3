"""What an exported folder holds, and that damage to it is found."""

import ast
import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from vasomim_hf import (
    UNeXtConfig,
    UNeXtForVesselSegmentation,
    VasoMIMForImageClassification,
    VasoMIMForObjectDetection,
    VasoMIMForPreTraining,
    VasoMIMForSemanticSegmentation,
    VasoMIMModel,
    publishing,
)
from vasomim_hf.image_processing_vasomim import VasoMIMImageProcessor
from vasomim_hf.presets import load_preset


PACKAGE = Path(publishing.__file__).parent
NOT_CODE = {"README.md", "checksums.json", "config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.fixture(scope="module")
def model() -> VasoMIMForPreTraining:
    config = load_preset("tiny", num_hidden_layers=1, decoder_num_hidden_layers=1, image_size=32)
    return VasoMIMForPreTraining(config).eval()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return publishing.export(model.vasomim, VasoMIMImageProcessor(), tmp_path / "exported")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def needed_files(entries: set[str]) -> set[str]:
    """The files named by relative imports, found by the parser and not by the package."""
    found, waiting = set(), set(entries)
    while waiting:
        name = waiting.pop()
        found.add(name)
        for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                waiting |= {f"{node.module}.py"} - found
    return found


@pytest.mark.parametrize("model_type", publishing.AUTO_CLASSES)
def test_code_files_are_exactly_those_that_the_auto_classes_need(model_type):
    entries = {f"{reference.split('.')[0]}.py" for reference in publishing.AUTO_CLASSES[model_type].values()}
    expected = needed_files(entries | {"image_processing_vasomim.py"})
    assert {path.name for path in publishing.code_files(model_type)} == expected


@pytest.mark.parametrize("model_type", publishing.AUTO_CLASSES)
def test_auto_classes_are_those_that_importing_the_package_registers(model_type):
    config_class = CONFIG_MAPPING[model_type]
    autos = {name: auto for name, auto in vars(modeling_auto).items() if name.startswith("Auto")}
    tables = {name: getattr(auto, "_model_mapping", None) for name, auto in autos.items()}
    content = {name: getattr(table, "_extra_content", {}) for name, table in tables.items()}
    registered = {name: classes[config_class] for name, classes in content.items() if config_class in classes}
    registered["AutoConfig"] = config_class
    expected = {name: f"{value.__module__}.{value.__name__}" for name, value in registered.items()}
    assert {
        name: f"vasomim_hf.{reference}" for name, reference in publishing.AUTO_CLASSES[model_type].items()
    } == expected


def test_image_processor_classes_are_those_of_the_package():
    for backend, reference in publishing.IMAGE_PROCESSOR_CLASSES["AutoImageProcessor"].items():
        module, name = reference.split(".")
        assert hasattr(importlib.import_module(f"vasomim_hf.{module}"), name), backend


def test_exported_encoder_has_code_card_and_checksums_and_no_decoder_or_segmentor(folder):
    code = {path.name for path in publishing.code_files("vasomim")}
    assert names(folder) == NOT_CODE | code
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert not [name for name in list(weights.keys()) if name.startswith(("decoder", "segmentor"))]
    assert (folder / "README.md").read_text().startswith("---\n")


def test_exported_segmentor_has_no_code_of_the_encoder(tmp_path):
    folder = publishing.export(UNeXtForVesselSegmentation(UNeXtConfig()), VasoMIMImageProcessor(), tmp_path / "unext")
    processor = {f"image_processing_{name}.py" for name in ("vasomim", "boxes", "reading")}
    assert names(folder) == NOT_CODE | {"configuration_unext.py", "modeling_unext.py"} | processor


def test_auto_map_is_complete_whatever_class_was_saved(model, tmp_path):
    for name, saved in (("encoder", model.vasomim), ("pretraining", model)):
        folder = publishing.export(saved, VasoMIMImageProcessor(), tmp_path / name)
        assert json.loads((folder / "config.json").read_text())["auto_map"] == publishing.AUTO_CLASSES["vasomim"]
        processor = json.loads((folder / "preprocessor_config.json").read_text())
        assert set(processor["auto_map"]["AutoImageProcessor"]) == {"pil", "torchvision"}


@pytest.mark.parametrize(
    "head", [VasoMIMForSemanticSegmentation, VasoMIMForObjectDetection, VasoMIMForImageClassification]
)
def test_exported_head_has_its_card_its_labels_and_the_map_of_all_classes(head, tmp_path):
    names = {"id2label": {0: "nothing", 1: "stenosis"}, "label2id": {"nothing": 0, "stenosis": 1}}
    fine_tuned = head(load_preset("tiny", num_hidden_layers=1, image_size=32, **names))
    folder = publishing.export(fine_tuned, VasoMIMImageProcessor(), tmp_path / "head")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [head.__name__]
    assert config["auto_map"] == publishing.AUTO_CLASSES["vasomim"]
    assert config["id2label"] == {"0": "nothing", "1": "stenosis"}
    assert "nothing, stenosis" in (folder / "README.md").read_text()
    publishing.verify(folder)


def test_export_leaves_the_model_and_its_configuration_as_they_were(model, folder):
    assert not hasattr(model.config, "auto_map")
    assert type(model)._auto_class is None


def test_given_card_is_the_readme(model, tmp_path):
    folder = publishing.export(
        model, VasoMIMImageProcessor(), tmp_path / "model", card="---\nlicense: mit\n---\n# Mine\n"
    )
    assert (folder / "README.md").read_text() == "---\nlicense: mit\n---\n# Mine\n"


def test_exported_weights_are_the_models_in_its_dtype(model, tmp_path):
    half = VasoMIMModel(model.config).to(torch.bfloat16)
    folder = publishing.export(half, VasoMIMImageProcessor(), tmp_path / "half")
    loaded = VasoMIMModel.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in half.state_dict().items())


@pytest.mark.parametrize("wrong", [nn.Linear(2, 2), None])
def test_a_model_of_another_package_is_refused(wrong, tmp_path):
    with pytest.raises(ValueError, match="must be one of the models of this package.*VasoMIMForPreTraining"):
        publishing.export(wrong, VasoMIMImageProcessor(), tmp_path / "model")


def test_another_processor_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="`processor` must be a VasoMIMImageProcessor, got a dict"):
        publishing.export(model, {}, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_is_replaced_only_when_asked(model, folder):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        publishing.export(model, VasoMIMImageProcessor(), folder)
    publishing.export(model, VasoMIMImageProcessor(), folder, overwrite=True)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["VasoMIMForPreTraining"]


def test_a_whole_folder_verifies_and_what_the_hub_adds_does_not_matter(folder):
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "x.json").write_text("{}")
    publishing.verify(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "modeling_vasomim.py"])
def test_one_flipped_byte_is_found(folder, name):
    flip_a_byte(folder / name)
    with pytest.raises(ValueError, match=f"{name} .*Download it again"):
        publishing.verify(folder)


def test_missing_and_unlisted_files_are_found(folder):
    (folder / "masking_vasomim.py").unlink()
    (folder / "extra.py").write_text("")
    with pytest.raises(ValueError, match="extra.py is not listed, masking_vasomim.py is missing"):
        publishing.verify(folder)


def test_a_folder_without_checksums_cannot_be_verified(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no checksums.json"):
        publishing.verify(tmp_path)


class FakeHub:
    def __init__(self, calls: list):
        self.calls = calls

    def __call__(self, token: str | None) -> "FakeHub":
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> "FakeHub":
        self.calls.append(("upload", repo_id, Path(folder_path)))
        return self

    commit_url = "https://hub/commit"


def test_push_uploads_a_whole_folder_and_no_damaged_one(folder, monkeypatch):
    calls = []
    monkeypatch.setattr(publishing, "HfApi", FakeHub(calls))
    assert publishing.push_to_hub(folder, "me/model", token="secret") == "https://hub/commit"
    assert calls == [("token", "secret"), ("create", "me/model", True, True), ("upload", "me/model", folder)]
    flip_a_byte(folder / "model.safetensors")
    calls.clear()
    with pytest.raises(ValueError, match="model.safetensors"):
        publishing.push_to_hub(folder, "me/model")
    assert calls == []
