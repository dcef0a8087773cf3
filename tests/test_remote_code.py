"""A published folder loads with every Auto class: by its own code where the package cannot be imported, else by the package."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)

import vasomim_hf
from vasomim_hf import (
    UNeXtConfig,
    UNeXtForVesselSegmentation,
    VasoMIMBackbone,
    VasoMIMForImageClassification,
    VasoMIMForObjectDetection,
    VasoMIMForPreTraining,
    VasoMIMForSemanticSegmentation,
    VasoMIMModel,
)
from vasomim_hf.image_processing_vasomim import VasoMIMImageProcessor
from vasomim_hf.model_card import model_card
from vasomim_hf.presets import load_preset
from vasomim_hf.publishing import export


# Runs where the package cannot be imported: loads everything by the folders' own code and keeps the outputs.
CLEAN_PROCESS = """
import re
import sys
from pathlib import Path


class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "vasomim_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Block())

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

torch.set_num_threads(1)
published = Path(sys.argv[1])
frame = Image.open(published / "frame.png")
noise = torch.arange(4.0).expand(1, 4) / 4
outputs = {}


def load(auto_class, name):
    loaded = auto_class.from_pretrained(published / name, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
    return loaded


with torch.no_grad():
    for name in ("encoder", "pretraining"):
        pixel_values = load(AutoImageProcessor, name)(frame, return_tensors="pt").pixel_values
        outputs[f"{name}.pixel_values"] = pixel_values
        outputs[f"{name}.features"] = load(AutoModel, name)(pixel_values).last_hidden_state
        backbone = AutoBackbone.from_config(load(AutoConfig, name), trust_remote_code=True)
        reference = "modeling_vasomim.VasoMIMBackbone"
        same = get_class_from_dynamic_module(reference, str(published / name))
        assert type(backbone).__name__ == same.__name__ == "VasoMIMBackbone"
        backbone = same.from_pretrained(published / name)
        outputs[f"{name}.feature_map"] = backbone(pixel_values).feature_maps[0].contiguous()
    model = load(AutoModelForPreTraining, "pretraining")
    assert not any(parameter.requires_grad for parameter in model.segmentor.parameters())
    output = model(pixel_values, noise=noise)
    outputs |= {"pretraining.loss": output.loss, "pretraining.reconstruction": output.reconstruction.contiguous()}
    for name, auto_class in (
        ("segmentation", AutoModelForSemanticSegmentation),
        ("detection", AutoModelForObjectDetection),
        ("classification", AutoModelForImageClassification),
    ):
        outputs[f"{name}.logits"] = load(auto_class, name)(pixel_values).logits.contiguous()
        outputs[f"{name}.features"] = load(AutoModel, name)(pixel_values).last_hidden_state
    load(AutoConfig, "unext")
    pixel_values = load(AutoImageProcessor, "unext")(frame, return_tensors="pt").pixel_values
    for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
        logits = load(auto_class, "unext")(pixel_values).logits
        outputs[f"unext.{auto_class.__name__}"] = logits.contiguous()
save_file(outputs, published / "outputs.safetensors")

for name in ("encoder", "pretraining", "segmentation", "detection", "classification", "unext"):
    examples = re.findall(r"```python\\n(.*?)```", (published / name / "README.md").read_text(), re.DOTALL)
    exec(examples[1], {})
"""


HEADS = {
    "segmentation": VasoMIMForSemanticSegmentation,
    "detection": VasoMIMForObjectDetection,
    "classification": VasoMIMForImageClassification,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Folders of an encoder, a pre-training model, one of each head and a segmentor, and a frame."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("published")
    sizes = {"num_hidden_layers": 2, "decoder_num_hidden_layers": 1, "image_size": 32}
    pretraining = VasoMIMForPreTraining(load_preset("tiny", **sizes)).eval()
    segmentor = UNeXtForVesselSegmentation(UNeXtConfig()).eval()
    models = {"encoder": pretraining.vasomim, "pretraining": pretraining, "unext": segmentor}
    names = {"id2label": {0: "background", 1: "vessel"}, "label2id": {"background": 0, "vessel": 1}}
    models |= {name: head(load_preset("tiny", **sizes, **names)).eval() for name, head in HEADS.items()}
    for name, model in models.items():
        processor = VasoMIMImageProcessor(size={"height": 32, "width": 32})
        export(model, processor, folder / name, card=model_card(model, repo_id=str(folder / name)))
    pixels = np.random.default_rng(0).integers(60, 200, (48, 40)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "frame.png")
    return folder


@pytest.fixture(scope="module")
def remote_outputs(published) -> dict[str, torch.Tensor]:
    script = published / "clean_process.py"
    script.write_text(CLEAN_PROCESS)
    environment = {**os.environ, "HF_HOME": str(published / "hf_home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    # -I: neither the working folder nor the user's packages are importable
    result = subprocess.run(
        [sys.executable, "-I", "-W", "error", str(script), str(published)],
        cwd=published,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return load_file(published / "outputs.safetensors")


@pytest.fixture(scope="module")
def pixel_values(published) -> torch.Tensor:
    processor = VasoMIMImageProcessor.from_pretrained(published / "encoder")
    return processor(Image.open(published / "frame.png"), return_tensors="pt").pixel_values


@torch.no_grad()
def test_published_folder_loads_with_every_auto_class_in_a_clean_process(published, remote_outputs, pixel_values):
    expected = {}
    for name in ("encoder", "pretraining"):
        expected[f"{name}.pixel_values"] = pixel_values
        expected[f"{name}.features"] = VasoMIMModel.from_pretrained(published / name)(pixel_values).last_hidden_state
        backbone = VasoMIMBackbone.from_pretrained(published / name)
        expected[f"{name}.feature_map"] = backbone(pixel_values).feature_maps[0]
    model = VasoMIMForPreTraining.from_pretrained(published / "pretraining")
    output = model(pixel_values, noise=torch.arange(4.0).expand(1, 4) / 4)
    expected |= {"pretraining.loss": output.loss, "pretraining.reconstruction": output.reconstruction}
    for name, head in HEADS.items():
        model = head.from_pretrained(published / name)
        expected[f"{name}.logits"] = model(pixel_values).logits
        expected[f"{name}.features"] = model.vasomim(pixel_values).last_hidden_state
    logits = UNeXtForVesselSegmentation.from_pretrained(published / "unext")(pixel_values).logits
    expected |= {"unext.AutoModel": logits, "unext.AutoModelForSemanticSegmentation": logits}
    assert remote_outputs.keys() == expected.keys()
    for name, tensor in expected.items():
        # another process may use another number of threads, hence another order of summation
        torch.testing.assert_close(remote_outputs[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("trust_remote_code", [None, True])
@pytest.mark.parametrize(
    "auto_class, folder, expected",
    [
        (AutoConfig, "encoder", "VasoMIMConfig"),
        (AutoModel, "encoder", "VasoMIMModel"),
        (AutoModel, "pretraining", "VasoMIMModel"),
        (AutoModelForPreTraining, "pretraining", "VasoMIMForPreTraining"),
        (AutoImageProcessor, "pretraining", "VasoMIMImageProcessor"),
        (AutoModelForSemanticSegmentation, "segmentation", "VasoMIMForSemanticSegmentation"),
        (AutoModelForObjectDetection, "detection", "VasoMIMForObjectDetection"),
        (AutoModelForImageClassification, "classification", "VasoMIMForImageClassification"),
        (AutoConfig, "unext", "UNeXtConfig"),
        (AutoModel, "unext", "UNeXtForVesselSegmentation"),
        (AutoModelForSemanticSegmentation, "unext", "UNeXtForVesselSegmentation"),
        (AutoImageProcessor, "unext", "VasoMIMImageProcessor"),
    ],
)
def test_the_installed_package_is_preferred_to_the_folders_own_code(
    published, auto_class, folder, expected, trust_remote_code
):
    loaded = auto_class.from_pretrained(published / folder, trust_remote_code=trust_remote_code)
    assert type(loaded).__module__.startswith("vasomim_hf.")
    assert type(loaded).__name__ in (expected, f"{expected}Pil")


def test_backbone_of_the_package_is_built_from_the_published_configuration(published):
    backbone = AutoBackbone.from_config(AutoConfig.from_pretrained(published / "encoder"))
    assert type(backbone) is VasoMIMBackbone


@pytest.mark.parametrize("folder", ["encoder", "pretraining", *HEADS, "unext"])
def test_the_cards_example_runs_with_the_package(published, folder, monkeypatch):
    monkeypatch.chdir(published)
    example = re.findall(r"```python\n(.*?)```", (published / folder / "README.md").read_text(), re.DOTALL)[0]
    names = {}
    exec(example, names)
    assert names["vasomim_hf"] is vasomim_hf
    assert type(names["model"]).__module__.startswith("vasomim_hf.")
    assert torch.isfinite(names["output"][0]).all()


@pytest.mark.parametrize("folder", ["pretraining", *HEADS])
def test_encoder_of_every_folder_loads_without_a_word_about_the_rest(published, folder):
    for encoder in (VasoMIMModel, VasoMIMBackbone):
        _, report = encoder.from_pretrained(published / folder, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
