"""Initial weights of fine-tuning: pre-trained weights of VasoMIM, of a plain MAE, or none."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, ViTMAEModel

from ...configuration_vasomim import VasoMIMConfig
from ...modeling_vasomim import VasoMIMPreTrainedModel
from ...presets import load_preset
from ..run_config import RunConfigError
from ..tasks.registry import find_task
from .run import MAE, SCRATCH, FinetuneRun


logger = logging.getLogger(__name__)

# pre-trained on ImageNet by the authors of MAE; only downloaded for `init: mae`
MAE_NAME = "facebook/vit-mae-base"
# sizes with the same names in both configurations
_MAE_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
    *("image_size", "patch_size", "num_channels", "qkv_bias"),
)


def build_finetune_model(run: FinetuneRun, id2label: dict[int, str]) -> VasoMIMPreTrainedModel:
    """Create the model of a run with its initial weights. The head is initialised with the seed of the run.

    Args:
        run (`FinetuneRun`): Run configuration.
        id2label (`dict[int, str]`): Class names.

    Returns:
        `VasoMIMPreTrainedModel`: In float32.

    Raises:
        FileNotFoundError: If `init` is neither a folder nor a Hub id.
        ValueError: If its weights do not match the encoder.
    """
    torch.manual_seed(run.seed)
    overrides = {
        **run.model,
        "id2label": dict(id2label),
        "label2id": {name: number for number, name in id2label.items()},
    }
    if run.init == SCRATCH:
        return find_task(run.kind).model_class(load_preset(run.preset, **overrides))
    source = MAE_NAME if run.init == MAE else run.init
    model_type = load_config(source, "`init`").model_type
    if model_type == "vit_mae":
        return _from_mae(run, source, overrides)
    if model_type != VasoMIMConfig.model_type:
        raise RunConfigError(f"`init`: {source} is a {model_type}; expected a vasomim or a vit_mae.")
    return _from_vasomim(run, source, overrides)


def load_config(source: str, what: str) -> PreTrainedConfig:
    """Load the configuration of a saved model. The Hub is only used for `OWNER/NAME` without a local folder `OWNER`.

    Args:
        source (`str`): Folder or Hub id.
        what (`str`): Name of the argument, for messages.

    Returns:
        `PreTrainedConfig`: Configuration; remote code is not executed.

    Raises:
        FileNotFoundError: If the folder does not exist or contains no model.
        OSError: If it cannot be loaded from the Hub.
    """
    folder = Path(source)
    may_be_on_hub = source.count("/") == 1 and not folder.exists() and not folder.parent.is_dir()
    if not may_be_on_hub and not (folder / "config.json").is_file():
        why = "it has no config.json" if folder.is_dir() else "the folder does not exist"
        raise FileNotFoundError(f"{what}: {source} is not a model: {why}. Use OWNER/NAME for the Hub.")
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise OSError(
            f"{what}: {source} cannot be loaded ({reason}). Pass a folder, or download it from the Hub first: "
            f"hf download {source}"
        ) from error


def _from_vasomim(run: FinetuneRun, source: str, overrides: dict[str, Any]) -> VasoMIMPreTrainedModel:
    # a linear probe is a valid starting point, but its encoder must be trainable
    config = VasoMIMConfig.from_pretrained(source, **{"freeze_encoder": False, **overrides})
    with _without_loading_report():
        model, info = find_task(run.kind).model_class.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    fresh = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    # a new head is expected; a partially initialised encoder is a mistake
    broken = [name for name in fresh if "vasomim." in name]
    if broken:
        raise RunConfigError(
            f"`init`: {source} does not match the model: {len(broken)} encoder weights differ: {broken[:3]}. Remove "
            "sizes of the encoder from `config`."
        )
    if info["unexpected_keys"]:
        unused = sorted(info["unexpected_keys"])
        logger.warning("%d unexpected weights in %s, such as %s", len(unused), source, unused[0])
    for name, before, now in info["mismatched_keys"]:
        logger.warning(
            "%s is newly initialised: its shape is %s in %s and %s here", name, tuple(before), source, tuple(now)
        )
    if fresh:
        logger.info("%d tensors of the head are newly initialised with the seed of the run", len(fresh))
    return model


@contextmanager
def _without_loading_report() -> Iterator[None]:
    """Suppress the loading report of transformers, which lists every tensor of a new head."""
    library = logging.getLogger("transformers.modeling_utils")

    # not by log level: from WARNING on, transformers also lists layers without tensor-parallel plan
    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    library.addFilter(is_other)
    try:
        yield
    finally:
        library.removeFilter(is_other)


def _from_mae(run: FinetuneRun, source: str, overrides: dict[str, Any]) -> VasoMIMPreTrainedModel:
    with _without_loading_report():
        encoder, info = ViTMAEModel.from_pretrained(
            source, dtype=torch.float32, mask_ratio=0.0, output_loading_info=True
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise RunConfigError(f"`init`: {source} is missing {len(missing)} encoder weights, such as {missing[0]}.")
    unused = [name for name in info["unexpected_keys"] if not name.startswith("decoder.")]
    if unused:
        logger.warning("%d unexpected weights in %s, such as %s", len(unused), source, min(unused))
    logger.info("loaded the encoder of %s; its decoder is skipped, and the head is newly initialised", source)
    sizes = {name: getattr(encoder.config, name) for name in _MAE_KEYS}
    changed = sorted(name for name in sizes.keys() & overrides.keys() if overrides[name] != sizes[name])
    if changed:
        raise RunConfigError(
            f"`init`: {source} has {changed[0]} {sizes[changed[0]]}, `config` has {overrides[changed[0]]}. Remove "
            "sizes of the encoder from `config`; to change the input size, use `image_size` of the run."
        )
    model = find_task(run.kind).model_class(VasoMIMConfig(**{**sizes, **overrides}))
    base = getattr(model, "vasomim", None)
    if isinstance(base, nn.Module):
        # both use the layers of transformers' ViT, so names and shapes match, including position embeddings
        base.load_state_dict(encoder.state_dict(), strict=True)
    return model
