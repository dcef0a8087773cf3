"""Callbacks for `Trainer`: progress, log and pictures, stopping on a signal, and saving a batch with a diverged
loss."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...folders import atomic_file
from ...progress import Progress, TrainingProgress, shorten_values
from ..evaluating.pictures import draw_frames
from ..evaluating.scoring import FrameScorer
from ..pretraining.loop import TrainingDivergedError
from ..stopping import StopSignal
from ..tracking import RunLog
from .decoded import FinetuneDataset
from .rows import TaskData
from .run import FinetuneRun


logger = logging.getLogger(__name__)

INPUTS_NAME = "inputs.safetensors"


class LogCallback(TrainerCallback):
    """Shows and logs progress, and measures training speed without evaluations and checkpoints.

    Args:
        folder (`Path`): Folder of the run.
        tensorboard (`bool`): Whether to write a TensorBoard log as well.
        frames_per_step (`int`): Frames per optimiser step.
        draw (`Callable`, *optional*): Draws the picture of an evaluation from the number of completed epochs (`None`: with
            the final weights); returns `None` if no picture is due.
    """

    def __init__(
        self,
        folder: Path,
        tensorboard: bool,
        frames_per_step: int,
        draw: Callable[[float | None], Image.Image | None] | None = None,
    ):
        self.folder = folder
        self.tensorboard = tensorboard
        self.frames_per_step = frames_per_step
        self.draw = draw
        self.kind = "evaluation"
        self.seconds, self.steps = 0.0, 0
        self._log: RunLog | None = None
        self._bar: Progress | None = None
        self._evaluation_bar: Progress | None = None
        self._mark = 0.0

    @property
    def frames_per_second(self) -> float:
        """Training frames per second, including loading."""
        return self.steps * self.frames_per_step / self.seconds if self.seconds else 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the log, after the steps of the checkpoint."""
        self._log = RunLog(self.folder, state.is_world_process_zero, self.tensorboard, state.global_step)
        is_shown = state.is_world_process_zero
        self._bar = TrainingProgress(state.max_steps, state.global_step, self.frames_per_step, is_shown)
        self._start(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count the step and its time."""
        now = time.perf_counter()
        self.seconds, self.steps, self._mark = self.seconds + now - self._mark, self.steps + 1, now
        if self._bar is not None:
            self._bar.update()

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Count an evaluation batch."""
        if self._evaluation_bar is None:
            is_shown = state.is_world_process_zero
            total = None if eval_dataloader is None else len(eval_dataloader)
            self._evaluation_bar = Progress(what="validation", total=total, unit="batches", is_shown=is_shown)
        self._evaluation_bar.update()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict | None = None,
        **_: Any,
    ) -> None:
        """Write the validation metrics."""
        self._close_evaluation_bar()
        values = {
            name.removeprefix("eval_"): value
            for name, value in (metrics or {}).items()
            if not name.endswith(("_runtime", "_per_second"))
        }
        where = f"step {state.global_step}/{state.max_steps}"
        if self.kind == "final" and args.load_best_model_at_end:
            where = f"best weights (step {state.best_global_step} by {args.metric_for_best_model})"
        if state.is_world_process_zero:
            numbers = {name: value for name, value in values.items() if isinstance(value, float) and name != "epoch"}
            logger.info("%s", shorten_values(where, numbers))
            self._record(state, values)
        self._mark = time.perf_counter()

    def _record(self, state: TrainerState, values: dict[str, Any]) -> None:
        if self._log is None:
            return
        self._log.write(self.kind, state.global_step, values)
        is_final = self.kind == "final"
        picture = None if self.draw is None else self.draw(None if is_final else state.epoch or 0.0)
        if picture is not None:
            name = "final" if is_final else f"step_{state.global_step:06d}"
            self._log.picture("final_predictions" if is_final else "predictions", state.global_step, picture, name)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **_: Any,
    ) -> None:
        """Log loss, learning rate and gradient norm."""
        if self._log is not None and self._bar is not None and logs and "loss" in logs:
            speed = round(self.frames_per_second, 2)
            self._log.write("step", state.global_step, {**logs, "frames_per_second": speed})
            self._bar.show({"loss": logs["loss"]})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar; the log stays open for the final evaluation."""
        if self._bar is not None:
            self._bar.close()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Close log and progress bars at the end of the block, also after an error."""
        try:
            yield
        finally:
            self._close_evaluation_bar()
            for opened in (self._bar, self._log):
                if opened is not None:
                    opened.close()

    def _close_evaluation_bar(self) -> None:
        if self._evaluation_bar is not None:
            self._evaluation_bar.close()
            self._evaluation_bar = None

    def _start(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._mark = time.perf_counter()

    on_save = _start


class ValidationPictures:
    """Draws predictions for some validation frames.

    Args:
        run (`FinetuneRun`): Run configuration; sets how many frames, and how often.
        model (`nn.Module`): Model in training.
        image_processor: Image processor of the model.
        data (`TaskData`): Data with the validation frames.
    """

    def __init__(self, run: FinetuneRun, model: nn.Module, image_processor: object, data: TaskData):
        labels = [data.id2label[number] for number in sorted(data.id2label)]
        self.scorer = FrameScorer(run.kind, model, image_processor, labels)
        total = len(data.validation)
        self.rows = data.validation.select(
            [i * total // run.num_pictures for i in range(min(run.num_pictures, total))]
        )
        self.every = run.picture_every_epochs
        self._due = 0.0

    def __call__(self, epoch: float | None) -> Image.Image | None:
        """Picture after a number of epochs, `None` if none is due; of the final weights for `None`."""
        if self.every == 0 or (epoch is not None and epoch < self._due):
            return None
        self._due = (epoch or 0.0) + self.every
        return draw_frames(self.scorer, self.rows)


class EpochCallback(TrainerCallback):
    """Sets the epoch of the data set.

    Not done through `set_epoch`, which accelerate does not call when training resumes within an epoch.

    Args:
        dataset (`FinetuneDataset`): Data set whose `epoch` is set.
        steps_per_epoch (`int`): Optimiser steps per epoch.
    """

    def __init__(self, dataset: FinetuneDataset, steps_per_epoch: int):
        self.dataset = dataset
        self.steps_per_epoch = steps_per_epoch

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the epoch before loader processes start."""
        self.dataset.epoch = state.global_step // self.steps_per_epoch


class StopCallback(TrainerCallback):
    """Stops training with a checkpoint after the step in which SIGINT or SIGTERM was received."""

    def __init__(self) -> None:
        self.signal = StopSignal()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save and stop unless training is finished."""
        if self.signal.came and state.global_step < state.max_steps:
            # a pending evaluation still runs: it may select the best weights or end training early
            control.should_save = control.should_training_stop = True
            logger.info("stopping at step %d of %d on request", state.global_step, state.max_steps)


class LossGuard(TrainerCallback):
    """Checks each loss before the weights are updated; if it is not finite, saves and reports the batch.

    Also removes `frame_indices` from the arguments of `forward`, which models do not accept.

    Args:
        folder (`Path`): Folder of the run.
        image_ids (sequence of `str`): Ids of the training frames.
    """

    def __init__(self, folder: Path, image_ids: Sequence[str]):
        self.folder = folder
        self.image_ids = list(image_ids)
        self.step = 0
        self._indices: torch.Tensor | None = None

    def attach(self, model: nn.Module) -> None:
        """Register hooks on a model."""
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after, with_kwargs=True)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remember the step."""
        self.step = state.global_step + 1

    def _before(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        rest = dict(kwargs)
        self._indices = rest.pop("frame_indices", None)
        return args, rest

    def _after(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        loss = getattr(output, "loss", None)
        if not model.training or loss is None or bool(torch.isfinite(loss)):
            return
        folder = self.folder / f"diverged_step_{self.step:08d}"
        names = [] if self._indices is None else [self.image_ids[index] for index in self._indices.tolist()]
        weights = (
            ""
            if self._save(folder, model, kwargs, names)
            else " The weights were already not finite, because of an earlier gradient."
        )
        raise TrainingDivergedError(
            f"The loss of step {self.step} is not a finite number. Its batch "
            f"({', '.join(names[:4])}{', ...' * (len(names) > 4)}) is in {folder}.{weights} Lower learning_rate, set "
            "clip_grad_norm: 1.0, or train with mixed_precision: bf16 or no instead of fp16."
        )

    def _save(self, folder: Path, model: nn.Module, inputs: dict[str, Any], names: list[str]) -> bool:
        """Save the arguments of `forward`, and the model if its weights are finite; returns whether they are."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = dict(_tensors("", inputs))
        with atomic_file(folder / INPUTS_NAME) as temporary:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        is_finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
        about = {"step": self.step, "frames": names, "weights_are_finite": is_finite}
        with atomic_file(folder / "about.json") as temporary:
            temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
        if is_finite and isinstance(model, PreTrainedModel):
            model.save_pretrained(folder / "model")
        return is_finite


def _tensors(prefix: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in nested arguments with dotted names, such as `labels.0.boxes`."""
    if isinstance(value, torch.Tensor):
        yield prefix, value
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    for key, item in items:
        yield from _tensors(f"{prefix}.{key}" if prefix else str(key), item)


def load_diverged_batch(folder: str | Path) -> dict[str, Any]:
    """Load the arguments of `forward` for which the loss diverged.

    Args:
        folder (`str` or `Path`): `diverged_step_...` of a run. If the weights were finite, they are in its folder `model`, and
            `model.train()(**load_diverged_batch(folder))` repeats the step.

    Returns:
        `dict[str, Any]`: Arguments of the model: tensors such as `pixel_values`, and `labels` of a detector as a list.
    """
    arguments: dict[str, Any] = {}
    for name, tensor in load_file(Path(folder) / INPUTS_NAME).items():
        key, _, rest = name.partition(".")
        if not rest:
            arguments[key] = tensor
            continue
        number, _, field = rest.partition(".")
        arguments.setdefault(key, {}).setdefault(int(number), {})[field] = tensor
    return {
        key: [value[number] for number in sorted(value)] if isinstance(value, dict) else value
        for key, value in arguments.items()
    }
