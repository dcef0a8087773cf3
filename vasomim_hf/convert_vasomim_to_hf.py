"""Conversion of checkpoints of the original VasoMIM code, and of MAE checkpoints of the same layout, to a model folder.

The original names are known only here: every tensor of a model of ours is looked up under its original name. Nothing is
registered with transformers, since it would then write the original names too.
"""

import argparse
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.modeling_utils import PreTrainedModel

from .configuration_unext import UNeXtConfig
from .configuration_vasomim import VasoMIMConfig
from .folders import new_folder
from .image_processing_vasomim import VasoMIMImageProcessor
from .modeling_unext import UNeXtForVesselSegmentation
from .modeling_vasomim import VasoMIMModel, sine_cosine_positions
from .modeling_vasomim_pretraining import VasoMIMForPreTraining
from .presets import load_preset, preset_names


logger = logging.getLogger(__name__)

Weights = dict[str, torch.Tensor]
Settings = dict[str, Any]

SEGMENTOR_PREFIX = "seg_model."

# (start of our name, start of the original one with {} for the number, what to add to the number)
_ORIGINAL_NAMES = [
    (r"embeddings\.cls_token", "cls_token", 0),
    (r"(?:embeddings\.)?position_embeddings", "pos_embed", 0),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj", 0),
    (r"layers\.(\d+)\.attention\.[qkv]_proj", "blocks.{}.attn.qkv", 0),
    (r"layers\.(\d+)\.attention\.o_proj", "blocks.{}.attn.proj", 0),
    (r"layers\.(\d+)\.layernorm_before", "blocks.{}.norm1", 0),
    (r"layers\.(\d+)\.layernorm_after", "blocks.{}.norm2", 0),
    (r"layers\.(\d+)\.mlp", "blocks.{}.mlp", 0),
    (r"layernorm", "norm", 0),
    (r"embed\b", "embed", 0),
    (r"predictor", "pred", 0),
    (r"conv_stages\.(\d+)\.conv", "encoder{}", 1),
    (r"conv_stages\.(\d+)\.norm", "ebn{}", 1),
    (r"downsamples\.(\d+)\.projection", "patch_embed{}.proj", 3),
    (r"downsamples\.(\d+)\.layernorm", "patch_embed{}.norm", 3),
    (r"token_stages\.(\d+)\.layernorm_before", "block{}.0.norm2", 1),
    (r"token_stages\.(\d+)\.mlp\.depthwise_conv", "block{}.0.mlp.dwconv.dwconv", 1),
    (r"token_stages\.(\d+)\.mlp", "block{}.0.mlp", 1),
    (r"token_stages\.(\d+)\.layernorm_after", "norm{}", 3),
    (r"decoder_conv_stages\.(\d+)\.conv", "decoder{}", 1),
    (r"decoder_conv_stages\.(\d+)\.norm", "dbn{}", 1),
    (r"decoder_token_stages\.(\d+)\.layernorm_before", "dblock{}.0.norm2", 1),
    (r"decoder_token_stages\.(\d+)\.mlp\.depthwise_conv", "dblock{}.0.mlp.dwconv.dwconv", 1),
    (r"decoder_token_stages\.(\d+)\.mlp", "dblock{}.0.mlp", 1),
    (r"decoder_token_stages\.(\d+)\.layernorm_after", "dnorm{}", 3),
    (r"classifier", "final", 0),
]


def convert(
    checkpoint: str | Path,
    output_dir: str | Path,
    *,
    segmentor: UNeXtForVesselSegmentation | str | Path | None = None,
    strict: bool = False,
    overwrite: bool = False,
    **config_overrides: object,
) -> PreTrainedModel:
    """Write a checkpoint of the original code as a folder that `from_pretrained` loads.

    Args:
        checkpoint (`str` or `Path`):
            A `.pth`, `.pt`, `.bin` or `.safetensors` file, see [`load_original`] for what it may hold.
        output_dir (`str` or `Path`):
            Folder for `config.json`, `model.safetensors` and `preprocessor_config.json`. It appears when all is written.
        segmentor (`UNeXtForVesselSegmentation`, `str` or `Path`, *optional*):
            Segmentor to put into the pre-training model, as in [`load_original`].
        strict (`bool`, defaults to `False`):
            Whether tensors that the model has no place for, such as the head of a fine-tuned model, are an error. By
            default a warning names them, as `from_pretrained` does, and they are left out.
        overwrite (`bool`, defaults to `False`):
            Whether a model folder that is there already is replaced.
        config_overrides:
            Values of the configuration, for what weights cannot tell, such as `num_attention_heads=4`.

    Returns:
        `PreTrainedModel`: The model that was written, in evaluation mode: [`VasoMIMForPreTraining`], [`VasoMIMModel`] or
        [`UNeXtForVesselSegmentation`].

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        FileExistsError: If `output_dir` has files in it that may not be replaced.
        ValueError: As [`load_original`].
    """
    checkpoint, output_dir = Path(checkpoint), Path(output_dir)
    if overwrite and output_dir.resolve() in checkpoint.resolve().parents:
        raise ValueError(f"{output_dir} would be replaced, and the checkpoint in it lost. Name another folder.")
    with new_folder(output_dir, overwrite) as folder:
        model = load_original(checkpoint, segmentor=segmentor, strict=strict, **config_overrides)
        model.save_pretrained(folder)
        image_processor_for(model).save_pretrained(folder)
    return model


def load_original(
    checkpoint: str | Path,
    *,
    segmentor: UNeXtForVesselSegmentation | str | Path | None = None,
    strict: bool = False,
    **config_overrides: object,
) -> PreTrainedModel:
    """Read a checkpoint of the original code.

    The names and shapes of the tensors tell what it is: a pre-training checkpoint (encoder and decoder, with or without
    the segmentor), an encoder, or the segmentor; and its sizes. They do not tell the number of attention heads. Where no
    override does, the presets do, by the width of the encoder and of the decoder (16 heads at width 512); a decoder of
    another width is taken to have as many heads as its encoder. `mask_ratio` and `norm_pix_loss` are read from the
    checkpoint's training arguments, if it has them.

    Without a segmentor the model is configured to need none: `filter_weight=1` and `consistency_loss_weight=0`.

    Args:
        checkpoint (`str` or `Path`):
            As in [`convert`].
        segmentor (`UNeXtForVesselSegmentation`, `str` or `Path`, *optional*):
            Replaces the segmentor of a pre-training checkpoint, or adds one: a model, its folder, or a checkpoint of the
            original code. That code draws part of its segmentor anew when it builds the model, so that the one inside a
            pre-training checkpoint is not the one that was trained.
        strict (`bool`, defaults to `False`):
            As in [`convert`].
        config_overrides:
            As in [`convert`].

    Returns:
        `PreTrainedModel`: In evaluation mode, float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read without running code in it, holds something else, lacks a tensor or has one
            too many, or an override contradicts its shapes.
    """
    weights, settings = read_checkpoint(checkpoint)
    build = _recognise(weights, checkpoint)
    if build is _pretraining_model:
        weights = _with_segmentor(weights, segmentor)
        model, weights = _pretraining_model(weights, {**settings, **config_overrides})
    else:
        if segmentor is not None:
            raise ValueError(f"{checkpoint} is no pre-training checkpoint, so that `segmentor` has no place in it.")
        model, weights = build(weights, config_overrides)
    _fill(model, weights, strict)
    _report_positions(model)
    return model.eval()


def original_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of a model under the names of the original code, for comparison with it.

    Args:
        model (`PreTrainedModel`): [`VasoMIMForPreTraining`], [`VasoMIMModel`] or [`UNeXtForVesselSegmentation`].

    Returns:
        `dict[str, torch.Tensor]`: query, key and value are joined, as the original code has them.
    """
    state: Weights = {}
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        original, part = original_name(name)
        if part is None:
            state[original] = tensor
        else:
            parts.setdefault(original, {})[part] = tensor
    return state | {name: torch.cat([part[i] for i in range(3)]) for name, part in parts.items()}


def original_name(name: str) -> tuple[str, int | None]:
    """Name of one of our tensors in the original code.

    Args:
        name (`str`): Key of the state dict of a model of ours.

    Returns:
        `tuple[str, int | None]`: the original key, and which third of that tensor it is: 0 query, 1 key, 2 value, `None`
        for a whole tensor.

    Example:
        >>> original_name("vasomim.layers.0.attention.k_proj.bias")
        ('blocks.0.attn.qkv.bias', 1)
        >>> original_name("segmentor.conv_stages.2.norm.weight")
        ('seg_model.ebn3.weight', None)
    """
    match = re.search(r"\.attention\.([qkv])_proj\.", name)
    part = "qkv".index(match[1]) if match else None
    if name.startswith("segmentor."):
        return SEGMENTOR_PREFIX + _renamed(name.removeprefix("segmentor.")), part
    if name == "decoder.mask_token":
        return "mask_token", part
    if name.startswith("decoder."):
        return "decoder_" + _renamed(name.removeprefix("decoder.")), part
    return _renamed(name.removeprefix("vasomim.")), part


def _renamed(name: str) -> str:
    for pattern, template, offset in _ORIGINAL_NAMES:
        match = re.match(pattern, name)
        if match:
            number = int(match[1]) + offset if match.groups() else ""
            return template.format(number) + name[match.end() :]
    return name


def image_processor_for(model: PreTrainedModel) -> VasoMIMImageProcessor:
    """The image processor that fits a model: frames of the size of its grid of positions, if it has one."""
    if not hasattr(model.config, "image_height_width"):
        return VasoMIMImageProcessor()
    height, width = model.config.image_height_width
    return VasoMIMImageProcessor(size={"height": height, "width": width})


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], Settings]:
    """Read the tensors of a checkpoint without running code in it.

    Args:
        path (`str` or `Path`): A `.pth`, `.pt`, `.bin` or `.safetensors` file.

    Returns:
        `tuple[dict, dict]`: tensors by name, on the CPU, taken out of `"model"` or `"state_dict"` and without the
        `module.` that DataParallel puts before every name; and the settings of the training arguments that belong to a
        checkpoint, `mask_ratio` and `norm_pix_loss`, as far as they are there.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}. Name a .pth, .pt, .bin or .safetensors file.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    settings = _settings(content)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no tensors by name, got {_summary(content)}. Expected a state dict.")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return content, settings


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}. Is the file complete?") from error


def _read_torch(path: Path) -> object:
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise ValueError(f"{path} must end in .pth, .pt, .bin or .safetensors.")
    try:
        # the original code keeps its command line beside the weights, as a Namespace, which holds values and no code
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        found = sorted(set(re.findall(r"GLOBAL (\S+) was not an allowed global", str(error))))
        if found:
            raise ValueError(_unsafe_message(path, found)) from error
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} cannot be read as a PyTorch checkpoint: {reason} Is the file complete?") from error


def _unsafe_message(path: Path, found: list[str]) -> str:
    return (
        f"{path} holds Python objects ({', '.join(found)}) that could run code while they are read; only tensors, plain "
        "values and argparse.Namespace are accepted. If you trust the file's origin, write its weights alone once:\n"
        f'    content = torch.load("{path.name}", map_location="cpu", weights_only=False)\n'
        '    torch.save({"model": content["model"]}, "weights.pth")\n'
        "and convert weights.pth."
    )


def _settings(content: object) -> dict[str, object]:
    arguments = content.get("args") if isinstance(content, dict) else None
    if not isinstance(arguments, argparse.Namespace):
        return {}
    found = {key: getattr(arguments, key) for key in ("mask_ratio", "norm_pix_loss") if hasattr(arguments, key)}
    logger.info("Taken from the training arguments in the checkpoint: %s", found)
    return found


def _summary(content: object, limit: int = 5) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    names = [str(name) for name in content]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _recognise(
    weights: Weights, checkpoint: str | Path
) -> Callable[[Weights, Settings], tuple[PreTrainedModel, Weights]]:
    if "decoder_embed.weight" in weights and "patch_embed.proj.weight" in weights:
        return _pretraining_model
    if "patch_embed.proj.weight" in weights and "blocks.0.norm1.weight" in weights:
        return _encoder
    if "encoder1.weight" in weights and "final.weight" in weights:
        return _segmentor
    raise ValueError(
        f"{checkpoint} is not a checkpoint of VasoMIM, MAE or UNeXt under their original names: it holds "
        f"{_summary(weights)}. Expected patch_embed.proj.weight and blocks.0.norm1.weight, or encoder1.weight and "
        "final.weight."
    )


def _encoder(weights: Weights, overrides: Settings) -> tuple[VasoMIMModel, Weights]:
    sizes = _encoder_sizes(weights, overrides)
    config = _configure(VasoMIMConfig, sizes, overrides)
    if "norm.weight" not in weights and "fc_norm.weight" in weights:
        # fc_norm follows the mean over the patches and cannot stand in for the norm of each patch
        raise ValueError(
            "The checkpoint was fine-tuned with mean pooling: it has fc_norm, after the mean, and no norm of the patches. "
            "Convert the checkpoint that it was fine-tuned from."
        )
    return _build(VasoMIMModel, config), weights


def _pretraining_model(weights: Weights, overrides: Settings) -> tuple[VasoMIMForPreTraining, Weights]:
    sizes = _encoder_sizes(weights, overrides) | _transformer_sizes(weights, "decoder_")
    sizes |= _num_heads("decoder_", sizes["decoder_hidden_size"], overrides, sizes["num_attention_heads"])
    segmentor_weights = _of_segmentor(weights)
    if segmentor_weights:
        overrides = {"segmentor_config": _segmentor_sizes(segmentor_weights), **overrides}
    else:
        logger.warning(
            "The checkpoint has no segmentor (%s*). The model is written without one, with filter_weight=1 and "
            "consistency_loss_weight=0, unless you set them. To add one, pass `segmentor`.",
            SEGMENTOR_PREFIX,
        )
        overrides = {"filter_weight": 1.0, "consistency_loss_weight": 0.0, **overrides}
    config = _configure(VasoMIMConfig, sizes, overrides)
    if config.has_segmentor and not segmentor_weights:
        logger.warning("Your settings ask for a segmentor. It is written with random weights: train it or replace it.")
        weights = _with_segmentor(weights, UNeXtForVesselSegmentation(config.segmentor_config))
    elif segmentor_weights and not config.has_segmentor:
        logger.warning("Your settings need no segmentor. The one in the checkpoint is left out.")
        weights = {name: value for name, value in weights.items() if not name.startswith(SEGMENTOR_PREFIX)}
    return _build(VasoMIMForPreTraining, config), weights


def _segmentor(weights: Weights, overrides: Settings) -> tuple[UNeXtForVesselSegmentation, Weights]:
    config = _configure(UNeXtConfig, _segmentor_sizes(weights), overrides)
    return _build(UNeXtForVesselSegmentation, config), weights


def _with_segmentor(weights: Weights, segmentor: UNeXtForVesselSegmentation | str | Path | None) -> Weights:
    if segmentor is None:
        return weights
    if not isinstance(segmentor, torch.nn.Module):
        from_folder = Path(segmentor).is_dir()
        load = UNeXtForVesselSegmentation.from_pretrained if from_folder else load_original
        segmentor = load(segmentor)
    if not isinstance(segmentor, UNeXtForVesselSegmentation):
        raise ValueError(f"`segmentor` must be a UNeXtForVesselSegmentation, got a {type(segmentor).__name__}.")
    kept = {name: value for name, value in weights.items() if not name.startswith(SEGMENTOR_PREFIX)}
    # copies, so that the model does not change with a segmentor that is trained on
    added = {SEGMENTOR_PREFIX + name: value.clone() for name, value in original_state_dict(segmentor).items()}
    return kept | added


def _of_segmentor(weights: Weights) -> Weights:
    length = len(SEGMENTOR_PREFIX)
    return {name[length:]: value for name, value in weights.items() if name.startswith(SEGMENTOR_PREFIX)}


def _segmentor_sizes(weights: Weights) -> Settings:
    names = ("encoder1", "encoder2", "encoder3", "patch_embed3.proj", "patch_embed4.proj", "final")
    missing = [name for name in names if f"{name}.weight" not in weights]
    if missing:
        raise ValueError(f"The segmentor lacks {', '.join(missing)}. Is the file complete?")
    sizes = [weights[f"{name}.weight"].shape[0] for name in names]
    if sizes[5] == 2:
        raise ValueError("The segmentor has two logits for each pixel; expected one, vessel against background.")
    config = {
        "num_channels": weights["encoder1.weight"].shape[1],
        "conv_hidden_sizes": tuple(sizes[:3]),
        "token_hidden_sizes": tuple(sizes[3:5]),
    }
    return config if sizes[5] == 1 else {**config, "num_labels": sizes[5]}


def _encoder_sizes(weights: Weights, overrides: Settings) -> Settings:
    hidden_size, num_channels, patch_size, width = weights["patch_embed.proj.weight"].shape
    if patch_size != width:
        raise ValueError(f"Patches must be square, got {patch_size}×{width} in patch_embed.proj.weight.")
    sizes = _transformer_sizes(weights, "")
    sizes |= {
        "hidden_size": hidden_size,
        "num_channels": num_channels,
        "patch_size": patch_size,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
    }
    sizes |= _num_heads("", hidden_size, overrides)
    return sizes | _image_size(weights, patch_size, overrides)


def _transformer_sizes(weights: Weights, prefix: str) -> dict[str, int]:
    depth = len({match[1] for name in weights if (match := re.match(rf"{prefix}blocks\.(\d+)\.", name))})
    width = weights.get(f"{prefix}blocks.0.mlp.fc1.weight")
    if width is None:
        raise ValueError(f"The checkpoint lacks {prefix}blocks.0.mlp.fc1.weight. Is the file complete?")
    return {
        f"{prefix}hidden_size": width.shape[1],
        f"{prefix}num_hidden_layers": depth,
        f"{prefix}intermediate_size": width.shape[0],
    }


def _image_size(weights: Weights, patch_size: int, overrides: Settings) -> Settings:
    if "pos_embed" not in weights:
        raise ValueError("The checkpoint lacks pos_embed, the table of positions. Is the file complete?")
    num_patches = weights["pos_embed"].shape[1] - 1
    size = overrides.get("image_size")
    if size is None:
        side = round(num_patches**0.5)
        if side**2 != num_patches:
            raise ValueError(
                f"pos_embed has {num_patches} patches, which is no square: pass `image_size=(height, width)` in pixels."
            )
        return {"image_size": side * patch_size}
    height, width = (size, size) if isinstance(size, int) else size
    if (height // patch_size) * (width // patch_size) != num_patches:
        raise ValueError(
            f"image_size={size} has {(height // patch_size) * (width // patch_size)} patches of {patch_size} pixels, but "
            f"pos_embed has {num_patches}. Leave it out: other sizes are interpolated by the model."
        )
    return {"image_size": size}


def _num_heads(prefix: str, hidden_size: int, overrides: Settings, otherwise: int | None = None) -> dict[str, int]:
    key = f"{prefix}num_attention_heads"
    if key in overrides:
        return {key: overrides[key]}
    presets = [load_preset(name) for name in preset_names()]
    known = {getattr(preset, f"{prefix}hidden_size"): getattr(preset, key) for preset in presets}
    if hidden_size in known:
        return {key: known[hidden_size]}
    if otherwise is None or hidden_size % otherwise:
        raise ValueError(
            f"The weights do not tell the number of attention heads, and no preset has {prefix}hidden_size={hidden_size}. "
            f"Pass `{key}`; on the command line --config {key}=N."
        )
    logger.warning("Taking %s=%d, as in the encoder: the weights do not tell it.", key, otherwise)
    return {key: otherwise}


def _configure(
    config_class: type[VasoMIMConfig] | type[UNeXtConfig], sizes: Settings, overrides: Settings
) -> VasoMIMConfig | UNeXtConfig:
    known = {*config_class.__dataclass_fields__, "num_labels", "out_features", "out_indices"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(f"{config_class.__name__} has no {', '.join(unknown)}.")
    for key, value in sizes.items():
        if overrides.get(key, value) != value:
            raise ValueError(f"`{key}={overrides[key]}` contradicts the checkpoint, whose shapes say {value}.")
    return config_class(**{**sizes, **overrides})


def _build(model_class: type[PreTrainedModel], config: VasoMIMConfig | UNeXtConfig) -> PreTrainedModel:
    # every tensor is about to be replaced, so that none is drawn
    with torch.device("meta"):
        return model_class(config)


def _fill(model: PreTrainedModel, weights: Weights, strict: bool) -> None:
    state, used, missing = {}, set(), []
    for name, wanted in model.state_dict().items():
        original, part = original_name(name)
        value = weights.get(original)
        if not isinstance(value, torch.Tensor):
            missing.append(original)
            continue
        used.add(original)
        state[name] = _third(value, part) if part is not None else value
        if state[name].shape != wanted.shape:
            raise ValueError(
                f"{original} has shape {tuple(value.shape)}, which does not give {name} its {tuple(wanted.shape)}. "
                "Do the other tensors of the checkpoint have the same sizes?"
            )
    if missing:
        raise ValueError(f"The checkpoint lacks {_all_names(missing)}. Is the file complete?")
    _name_unexpected(sorted(set(weights) - used), strict)
    float32 = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    model.load_state_dict(float32, assign=True)


def _third(value: torch.Tensor, part: int) -> torch.Tensor:
    size = value.shape[0] // 3
    return value[part * size : (part + 1) * size]


def _name_unexpected(unexpected: list[str], strict: bool) -> None:
    if not unexpected:
        return
    message = f"The model has no place for {_all_names(unexpected)}."
    if strict:
        raise ValueError(f"{message} Without strict=True they are left out.")
    logger.warning("%s They are left out.", message)


def _all_names(names: list[str]) -> str:
    names = sorted(set(names))
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}: {', '.join(names)}"


def _report_positions(model: PreTrainedModel) -> None:
    for name, table in model.named_buffers():
        if name.endswith("position_embeddings"):
            fixed = sine_cosine_positions(model.config.patch_grid, table.shape[-1])
            difference = (table - fixed).abs().max().item()
            if not difference < 1e-4:
                logger.warning(
                    "%s differs from the fixed sine-cosine positions by up to %.2g: kept as in the checkpoint.",
                    original_name(name)[0],
                    difference,
                )
