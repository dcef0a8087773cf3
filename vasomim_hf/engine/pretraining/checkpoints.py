"""Checkpoints: a folder each, complete or not there, kept by count, free of pickle.

`checkpoints/step_00001234` holds `model/` (as `save_pretrained` writes it, so it also loads alone),
`optimizer.safetensors` and `state.json`. It is written under a hidden name and renamed when all is on disk.
"""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ...folders import new_folder


CHECKPOINTS_NAME = "checkpoints"
STATE_NAME, OPTIMIZER_NAME, MODEL_NAME = "state.json", "optimizer.safetensors", "model"
CHECKPOINT_FORMAT = 1
_STEP_NAME = re.compile(r"step_(\d{8,})")


def save_checkpoint(output_dir: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, state: dict) -> Path:
    """Write a checkpoint.

    Args:
        output_dir (`Path`): Folder of the run.
        model (`PreTrainedModel`): Unwrapped model.
        optimizer (`torch.optim.Optimizer`): Its moments are saved under the parameters' names; rates are not, since they
            belong to the run.
        state (`dict`): JSON; must hold `step`, the optimiser steps done.

    Returns:
        `Path`: The checkpoint's folder.
    """
    folder = output_dir / CHECKPOINTS_NAME / f"step_{state['step']:08d}"
    if folder.is_dir() and read_state(folder) is None:
        shutil.rmtree(folder)
    with new_folder(folder, overwrite=True, marker=STATE_NAME) as temporary:
        model.save_pretrained(temporary / MODEL_NAME)
        save_file(_optimizer_tensors(model, optimizer), temporary / OPTIMIZER_NAME)
        sizes = {path.relative_to(temporary).as_posix(): path.stat().st_size for path in _files(temporary)}
        content = {"format": CHECKPOINT_FORMAT, **state, "files": sizes}
        (temporary / STATE_NAME).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return folder


def load_checkpoint(folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict:
    """Put a checkpoint's weights and moments into a model and its optimiser.

    Args:
        folder (`Path`): Folder of the checkpoint.
        model (`PreTrainedModel`): Unwrapped model of the same configuration.
        optimizer (`torch.optim.Optimizer`): Keeps its own rates and decay.

    Returns:
        `dict`: The state given to [`save_checkpoint`].

    Raises:
        FileNotFoundError: If the folder is no complete checkpoint.
        ValueError: If it belongs to another model.
    """
    state = read_state(folder)
    if state is None:
        raise FileNotFoundError(f"{folder} is not a complete checkpoint. Use --resume auto to find the newest one.")
    try:
        model.load_state_dict(_load_weights(folder / MODEL_NAME))
    except RuntimeError as error:
        raise ValueError(f"The checkpoint {folder} belongs to another model: {error}") from error
    _load_optimizer_tensors(load_file(folder / OPTIMIZER_NAME), model, optimizer)
    return state


def read_state(folder: Path) -> dict | None:
    """The state in a checkpoint; `None` if a file is missing or cut short."""
    try:
        state = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
        is_complete = all((folder / name).stat().st_size == size for name, size in state["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return state if is_complete and state["format"] == CHECKPOINT_FORMAT else None


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The complete checkpoint of the latest step in a run's folder, if there is one."""
    return next((folder for folder in _by_step(output_dir) if read_state(folder) is not None), None)


def remove_old_checkpoints(output_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what an interrupted save has left; 0 keeps all."""
    for folder in (output_dir / CHECKPOINTS_NAME).glob(".step_*"):
        shutil.rmtree(folder, ignore_errors=True)
    if keep > 0:
        for folder in _by_step(output_dir)[keep:]:
            shutil.rmtree(folder)


def _by_step(output_dir: Path) -> list[Path]:
    folders = [path for path in (output_dir / CHECKPOINTS_NAME).glob("step_*") if _STEP_NAME.fullmatch(path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _load_weights(folder: Path) -> dict[str, torch.Tensor]:
    # Large models are saved in several files
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights.update(load_file(path))
    return weights


def _optimizer_tensors(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}|{key}"] = torch.as_tensor(value).contiguous()
    return tensors


def _load_optimizer_tensors(
    tensors: dict[str, torch.Tensor], model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> None:
    parameters = dict(model.named_parameters())
    numbers = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.partition("|")
        state.setdefault(numbers[id(parameters[name])], {})[key] = tensor
    if state:
        # load_state_dict brings each tensor to the device and type that the optimiser needs
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
