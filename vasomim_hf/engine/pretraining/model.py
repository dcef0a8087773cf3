"""Creation of the model of a pre-training run, with its segmentor and initial weights."""

import json
from pathlib import Path

import torch

from ...configuration_unext import UNeXtConfig
from ...configuration_vasomim import VasoMIMConfig
from ...modeling_vasomim_pretraining import VasoMIMForPreTraining
from ...presets import load_config_file, load_preset
from ..run_config import SCRATCH, PretrainRun, RunConfigError


def build_config(run: PretrainRun) -> VasoMIMConfig:
    """Configuration of the model of a run: a preset or a file, the keys under `model`, the sizes of the segmentor."""
    overrides = dict(run.model)
    if run.segmentor is not None and "segmentor_config" not in overrides:
        overrides["segmentor_config"] = UNeXtConfig.from_pretrained(_existing(run.segmentor, "segmentor"))
    if run.model_config is not None:
        return load_config_file(run.model_config, **overrides)
    return load_preset(str(run.preset), **overrides)


def build_model(run: PretrainRun) -> VasoMIMForPreTraining:
    """Create the model of a run with the weights of its segmentor.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ValueError: If the model needs a segmentor and none is given, or `init` does not match the configuration.
    """
    config = build_config(run)
    torch.manual_seed(run.seed)
    model = (
        VasoMIMForPreTraining(config) if run.init == SCRATCH else _load_initial(_existing(run.init, "init"), config)
    )
    if run.segmentor is not None:
        model.load_segmentor(run.segmentor)
    elif config.has_segmentor and not (run.init != SCRATCH and _holds_segmentor(Path(run.init))):
        raise RunConfigError(
            "This model needs a trained vessel segmentor, but the run has none. Train one with "
            "training/train_segmentor.py and pass its folder as --segmentor, or disable it: "
            "--model.filter_weight 1 --model.consistency_loss_weight 0"
        )
    if run.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model


def _existing(folder: str, key: str) -> str:
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"`{key}`: {folder} is not a model folder: it has no config.json.")
    return folder


def _load_initial(folder: str, config: VasoMIMConfig) -> VasoMIMForPreTraining:
    model, info = VasoMIMForPreTraining.from_pretrained(
        folder, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    fresh = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    # initialising the encoder alone is intended; a partially initialised encoder is a mistake
    broken = [name for name in fresh if "vasomim." in name]
    if broken:
        raise RunConfigError(
            f"`init`: {folder} does not match the model: {len(broken)} encoder weights differ: {broken[:3]}"
        )
    return model


def _holds_segmentor(folder: Path) -> bool:
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        if any(name.startswith("segmentor.") for name in header):
            return True
    return False
