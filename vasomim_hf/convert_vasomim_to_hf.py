"""Convert checkpoints of the original VasoMIM code, and MAE checkpoints of the same layout, to model folders.

Original tensor names appear only here: every tensor of our models is looked up under its original name. Nothing is
registered with transformers, because it would then also save models under the original names.
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

# (prefix in our names, original prefix with {} for the index, offset of the index)
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
    """Convert a checkpoint of the original code to a folder that `from_pretrained` loads.

    Args:
        checkpoint (`str` or `Path`):
            A `.pth`, `.pt`, `.bin` or `.safetensors` file, see [`load_original`] for supported contents.
        output_dir (`str` or `Path`):
            Folder for `config.json`, `model.safetensors` and `preprocessor_config.json`; written atomically.
        segmentor (`UNeXtForVesselSegmentation`, `str` or `Path`, *optional*):
            Segmentor to use in the pre-training model, as in [`load_original`].
        strict (`bool`, defaults to `False`):
            Whether unexpected tensors, such as the head of a fine-tuned model, are an error. By default they are
            skipped with a warning, as in `from_pretrained`.
        overwrite (`bool`, defaults to `False`):
            Whether an existing model folder is replaced.
        config_overrides:
            Configuration values that cannot be inferred from the weights, such as `num_attention_heads=4`.

    Returns:
        `PreTrainedModel`: The converted model, in evaluation mode: [`VasoMIMForPreTraining`], [`VasoMIMModel`] or
        [`UNeXtForVesselSegmentation`].

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        FileExistsError: If `output_dir` is not empty and must not be replaced.
        ValueError: As for [`load_original`].
    """
    checkpoint, output_dir = Path(checkpoint), Path(output_dir)
    if overwrite and output_dir.resolve() in checkpoint.resolve().parents:
        raise ValueError(f"{output_dir} contains the checkpoint and would be replaced. Choose another folder.")
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
    """Load a checkpoint of the original code.

    The kind of model (pre-training model with or without segmentor, encoder, or segmentor) and its sizes are inferred
    from the names and shapes of the tensors. The number of attention heads cannot be inferred: it is taken from the
    overrides, otherwise from the preset with the same width (16 heads for a decoder of width 512), and for a decoder
    of any other width from the encoder. `mask_ratio` and `norm_pix_loss` are read from the training arguments in the
    checkpoint, if present.

    A model without a segmentor is configured with `filter_weight=1` and `consistency_loss_weight=0`.

    Args:
        checkpoint (`str` or `Path`):
            As in [`convert`].
        segmentor (`UNeXtForVesselSegmentation`, `str` or `Path`, *optional*):
            Replaces the segmentor of a pre-training checkpoint, or adds one: a model, its folder, or a checkpoint of
            the original code. The original code re-initialises part of its segmentor when it builds the model, so the
            segmentor inside a pre-training checkpoint is not the trained one.
        strict (`bool`, defaults to `False`):
            As in [`convert`].
        config_overrides:
            As in [`convert`].

    Returns:
        `PreTrainedModel`: In evaluation mode, float32.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file cannot be read without executing code, is something else, has missing or unexpected
        tensors, or an override contradicts the shapes.
    """
    weights, settings = read_checkpoint(checkpoint)
    build = _recognise(weights, checkpoint)
    if build is _pretraining_model:
        weights = _with_segmentor(weights, segmentor)
        model, weights = _pretraining_model(weights, {**settings, **config_overrides})
    else:
        if segmentor is not None:
            raise ValueError(f"{checkpoint} is not a pre-training checkpoint; `segmentor` does not apply.")
        model, weights = build(weights, config_overrides)
    _fill(model, weights, strict)
    _report_positions(model)
    return model.eval()


def original_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """State dict of a model under the original names, for comparison with the original code.

    Args:
        model (`PreTrainedModel`): [`VasoMIMForPreTraining`], [`VasoMIMModel`] or [`UNeXtForVesselSegmentation`].

    Returns:
        `dict[str, torch.Tensor]`: Tensors by original name; query, key and value are concatenated as in the original
        code.
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
    """Original name of one of our tensors.

    Args:
        name (`str`): Key in the state dict of one of our models.

    Returns:
        `tuple[str, int | None]`: The original key, and the third of that tensor: 0 query, 1 key, 2 value, `None` for
        the whole tensor.

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
    """Create the image processor for a model, with the image size of the model if it has one."""
    if not hasattr(model.config, "image_height_width"):
        return VasoMIMImageProcessor()
    height, width = model.config.image_height_width
    return VasoMIMImageProcessor(size={"height": height, "width": width})


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], Settings]:
    """Load the tensors of a checkpoint without executing code in it.

    Args:
        path (`str` or `Path`): A `.pth`, `.pt`, `.bin` or `.safetensors` file.

    Returns:
        `tuple[dict, dict]`: Tensors by name, on the CPU, taken from `"model"` or `"state_dict"`, without
        DataParallel's `module.` prefix; and the model settings found in the training arguments (`mask_ratio`,
        `norm_pix_loss`).

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint {path} does not exist. Pass a .pth, .pt, .bin or .safetensors file.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    settings = _settings(content)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{path} does not contain named tensors, got {_summary(content)}. Expected a state dict.")
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
        # the original code saves its command line as a Namespace, which contains only plain values
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
        f"{path} contains Python objects ({', '.join(found)}) that could execute code when loaded; only tensors, "
        "plain values and argparse.Namespace are accepted. If you trust the source of the file, save its weights "
        "separately:\n"
        f'    content = torch.load("{path.name}", map_location="cpu", weights_only=False)\n'
        '    torch.save({"model": content["model"]}, "weights.pth")\n'
        "and convert weights.pth."
    )


def _settings(content: object) -> dict[str, object]:
    arguments = content.get("args") if isinstance(content, dict) else None
    if not isinstance(arguments, argparse.Namespace):
        return {}
    found = {key: getattr(arguments, key) for key in ("mask_ratio", "norm_pix_loss") if hasattr(arguments, key)}
    logger.info("Using settings from the training arguments in the checkpoint: %s", found)
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
        f"{checkpoint} is not a checkpoint of VasoMIM, MAE or UNeXt with original tensor names: it contains "
        f"{_summary(weights)}. Expected patch_embed.proj.weight and blocks.0.norm1.weight, or encoder1.weight and "
        "final.weight."
    )


def _encoder(weights: Weights, overrides: Settings) -> tuple[VasoMIMModel, Weights]:
    sizes = _encoder_sizes(weights, overrides)
    config = _configure(VasoMIMConfig, sizes, overrides)
    if "norm.weight" not in weights and "fc_norm.weight" in weights:
        # fc_norm is applied after mean pooling and cannot replace the norm of the patch tokens
        raise ValueError(
            "The checkpoint was fine-tuned with mean pooling: it has fc_norm, applied after pooling, but no norm "
            "for the patch tokens. Convert the checkpoint that it was fine-tuned from."
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
            "The checkpoint has no segmentor (%s*). The model is written without one (filter_weight=1 and "
            "consistency_loss_weight=0) unless you set these. To add one, pass `segmentor`.",
            SEGMENTOR_PREFIX,
        )
        overrides = {"filter_weight": 1.0, "consistency_loss_weight": 0.0, **overrides}
    config = _configure(VasoMIMConfig, sizes, overrides)
    if config.has_segmentor and not segmentor_weights:
        logger.warning(
            "Your settings require a segmentor, but the checkpoint has none. It has random weights: train or "
            "replace it."
        )
        weights = _with_segmentor(weights, UNeXtForVesselSegmentation(config.segmentor_config))
    elif segmentor_weights and not config.has_segmentor:
        logger.warning("Your settings do not use a segmentor. The one in the checkpoint is skipped.")
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
    # cloned, so later training of the segmentor does not change this model
    added = {SEGMENTOR_PREFIX + name: value.clone() for name, value in original_state_dict(segmentor).items()}
    return kept | added


def _of_segmentor(weights: Weights) -> Weights:
    length = len(SEGMENTOR_PREFIX)
    return {name[length:]: value for name, value in weights.items() if name.startswith(SEGMENTOR_PREFIX)}


def _segmentor_sizes(weights: Weights) -> Settings:
    names = ("encoder1", "encoder2", "encoder3", "patch_embed3.proj", "patch_embed4.proj", "final")
    missing = [name for name in names if f"{name}.weight" not in weights]
    if missing:
        raise ValueError(f"The segmentor has no {', '.join(missing)}. Is the file complete?")
    sizes = [weights[f"{name}.weight"].shape[0] for name in names]
    if sizes[5] == 2:
        raise ValueError("The segmentor has two logits per pixel; expected one.")
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
        raise ValueError(f"The checkpoint has no {prefix}blocks.0.mlp.fc1.weight. Is the file complete?")
    return {
        f"{prefix}hidden_size": width.shape[1],
        f"{prefix}num_hidden_layers": depth,
        f"{prefix}intermediate_size": width.shape[0],
    }


def _image_size(weights: Weights, patch_size: int, overrides: Settings) -> Settings:
    if "pos_embed" not in weights:
        raise ValueError("The checkpoint has no pos_embed (position embeddings). Is the file complete?")
    num_patches = weights["pos_embed"].shape[1] - 1
    size = overrides.get("image_size")
    if size is None:
        side = round(num_patches**0.5)
        if side**2 != num_patches:
            raise ValueError(
                f"pos_embed has {num_patches} patches, which is not a square grid: pass `image_size=(height, width)` "
                "in pixels."
            )
        return {"image_size": side * patch_size}
    height, width = (size, size) if isinstance(size, int) else size
    if (height // patch_size) * (width // patch_size) != num_patches:
        raise ValueError(
            f"image_size={size} gives {(height // patch_size) * (width // patch_size)} patches of {patch_size} "
            f"pixels, but pos_embed has {num_patches}. Omit it: the model interpolates to other sizes."
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
            "The number of attention heads cannot be inferred from the weights, and no preset has "
            f"{prefix}hidden_size={hidden_size}. Pass `{key}`; on the command line --config {key}=N."
        )
    logger.warning("Using %s=%d, as in the encoder: it cannot be inferred from the weights.", key, otherwise)
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
            raise ValueError(
                f"`{key}={overrides[key]}` contradicts the tensor shapes in the checkpoint, which give {value}."
            )
    return config_class(**{**sizes, **overrides})


def _build(model_class: type[PreTrainedModel], config: VasoMIMConfig | UNeXtConfig) -> PreTrainedModel:
    # no initialisation: every tensor is replaced
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
                f"{original} has shape {tuple(value.shape)}, but {name} needs {tuple(wanted.shape)}. "
                "Check that all tensors of the checkpoint belong to the same model."
            )
    if missing:
        raise ValueError(f"The checkpoint is missing {_all_names(missing)}. Is the file complete?")
    _report_unexpected(sorted(set(weights) - used), strict)
    float32 = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    model.load_state_dict(float32, assign=True)


def _third(value: torch.Tensor, part: int) -> torch.Tensor:
    size = value.shape[0] // 3
    return value[part * size : (part + 1) * size]


def _report_unexpected(unexpected: list[str], strict: bool) -> None:
    if not unexpected:
        return
    message = f"Unexpected {_all_names(unexpected)}."
    if strict:
        raise ValueError(f"{message} They are skipped without strict=True.")
    logger.warning("%s They are skipped.", message)


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
                    "%s differs from the fixed sine-cosine position embeddings by up to %.2g; the checkpoint's "
                    "values are kept.",
                    original_name(name)[0],
                    difference,
                )
