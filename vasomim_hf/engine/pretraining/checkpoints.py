"""Checkpoints: one folder each, written atomically, limited in number, without pickle.

`checkpoints/step_00001234` contains `model/` (written by `save_pretrained`, so it can be loaded separately),
`optimizer.safetensors` and `state.json`. It is written under a hidden name and renamed once complete.
"""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ...folders import new_folder
from ..run_config import RunConfigError, TrainingRun


CHECKPOINTS_NAME = "checkpoints"
STATE_NAME, OPTIMIZER_NAME, MODEL_NAME = "state.json", "optimizer.safetensors", "model"
CHECKPOINT_FORMAT = 1
_STEP_NAME = re.compile(r"step_(\d{8,})")


def save_checkpoint(output_dir: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, state: dict) -> Path:
    """Save a checkpoint.

    Args:
        output_dir (`Path`): Folder of the training run.
        model (`PreTrainedModel`): Unwrapped model.
        optimizer (`torch.optim.Optimizer`): Its moments are saved by parameter name; learning rates are not, because they
            belong to the run configuration.
        state (`dict`): JSON-serialisable; must contain `step`, the number of completed optimiser steps.

    Returns:
        `Path`: Folder of the checkpoint.
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
    """Load model weights and optimiser state from a checkpoint.

    Args:
        folder (`Path`): Folder of the checkpoint.
        model (`PreTrainedModel`): Unwrapped model of the same configuration.
        optimizer (`torch.optim.Optimizer`): Optimiser to restore; its learning rates and weight decay do not change.

    Returns:
        `dict`: The state passed to [`save_checkpoint`].

    Raises:
        FileNotFoundError: If the folder is not a complete checkpoint.
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
    """State of a checkpoint; `None` if a file is missing or truncated."""
    try:
        state = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
        is_complete = all((folder / name).stat().st_size == size for name, size in state["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return state if is_complete and state["format"] == CHECKPOINT_FORMAT else None


def newest_checkpoint(output_dir: Path) -> Path | None:
    """Complete checkpoint with the highest step in the folder of a run, if any."""
    return next((folder for folder in _by_step(output_dir) if read_state(folder) is not None), None)


def checkpoint_to_resume(run: TrainingRun) -> Path | None:
    """Checkpoint that `resume` refers to, or `None` to start from scratch.

    Raises:
        FileNotFoundError: If a named checkpoint is missing or incomplete.
        ValueError: If training would start in a folder that already has checkpoints.
    """
    newest = newest_checkpoint(Path(run.output_dir))
    if run.resume == "auto":
        return newest
    if run.resume != "never":
        folder = Path(run.resume)
        if read_state(folder) is None:
            raise FileNotFoundError(
                f"{folder} is not a complete checkpoint. Use --resume auto to find the newest one."
            )
        return folder
    if newest is not None:
        raise RunConfigError(
            f"{run.output_dir} already has a run, up to {newest.name}. Resume it with --resume auto, or choose "
            "another output_dir."
        )
    return None


def remove_old_checkpoints(output_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and leftovers of interrupted saves; 0 keeps all."""
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
    # large models are saved in several shards
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
        # load_state_dict moves each tensor to the device and dtype that the optimiser needs
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
