"""Training loop of pre-training and segmentor training: steps, logging, checkpoints and stopping.

Differences between the two are in a `Task`. The loop owns the global random state: it is re-seeded from the step before
each forward pass, so that dropout is also reproduced in a resumed run.
"""

import dataclasses
import gc
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, default_collate
from transformers import PreTrainedModel

from ...data.frame_cache import FrameCacheDataset, StoredFrames
from ...folders import atomic_file
from ...import_utils import require
from ...inference.prediction import has_fast_bf16
from ...optimization import learning_rate_scheduler, training_progress
from ...progress import TrainingProgress, shorten_values
from ..run_config import CachedFramesRun, RunConfigError, TrainingRun
from ..stopping import StopSignal
from ..tracking import RunLog, RunningMeans
from .checkpoints import (
    checkpoint_to_resume,
    load_checkpoint,
    newest_checkpoint,
    read_state,
    remove_old_checkpoints,
    save_checkpoint,
)
from .step_plan import StepPlan, StepSampler


if TYPE_CHECKING:
    from accelerate import Accelerator


logger = logging.getLogger(__name__)

# must match when resuming, because they determine the frames of a step
FIXED_BY_CHECKPOINT = ("num_frames", "frames_per_step", "seed", "cache_key", "stream")
# keys that may change when resuming, because they do not affect the weights
FREE_ON_RESUME = (
    *("output_dir", "cache_dir", "resume", "save_every_epochs", "keep_checkpoints", "log_every_steps", "tensorboard"),
    *("num_workers", "num_threads", "picture_every_epochs", "num_pictures", "probe_frames"),
)


class TrainingDivergedError(RuntimeError):
    """The loss is not finite; the message contains the step and the folder with its batch."""


@dataclass(frozen=True)
class ForwardContext:
    """Position of a forward pass in training.

    Args:
        progress (`float`): Fraction of training completed, in [0, 1].
        generator (`torch.Generator`): Random generator of this pass, on the device.
    """

    progress: float
    generator: torch.Generator


class Task(Protocol):
    """Task-specific parts of training."""

    metric_names: tuple[str, ...]
    # tag in TensorBoard
    picture_name: str

    def inputs(self, batch: dict[str, torch.Tensor], context: ForwardContext) -> dict[str, Any]:
        """Arguments of the model's `forward` for a batch on the device."""
        ...

    def metrics(self, output: Any, inputs: dict[str, Any]) -> dict[str, tuple[torch.Tensor, torch.Tensor | float]]:
        """Sum and weight of each metric; must not synchronise with the device."""
        ...

    def epoch_values(self, model: PreTrainedModel, epoch: int, progress: float) -> dict[str, float]:
        """Values that the main process logs per epoch, such as a validation score."""
        ...

    def picture(self, model: PreTrainedModel, epoch: int, progress: float) -> Any:
        """Picture at the end of an epoch, or `None`."""
        ...


@dataclass
class Parts:
    """Components that the loop trains with.

    Args:
        model (`PreTrainedModel`): Model on the CPU.
        optimizer (`torch.optim.Optimizer`): Optimiser of its trainable parameters, built with the peak rate.
        rate (`Callable[[int, StepPlan], float]`): Learning rate of a step, relative to the peak.
        dataset (`FrameCacheDataset`): Crops.
        num_epochs (`int`): Length of training.
    """

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    rate: Callable[[int, StepPlan], float]
    dataset: FrameCacheDataset
    num_epochs: int


@dataclass(frozen=True)
class TrainingResult:
    """Result of training.

    Args:
        finished (`bool`): Whether all epochs are completed; otherwise training was stopped and can be resumed.
        step (`int`): Number of completed optimiser steps.
        folder (`Path`): Final model, or checkpoint to resume from.
        is_main_process (`bool`): Whether this process should report the result.
    """

    finished: bool
    step: int
    folder: Path
    is_main_process: bool


def make_accelerator(run: TrainingRun) -> "Accelerator":
    """Set up devices and processes as the launcher requests; also supports several processes on a CPU.

    Raises:
        RunConfigError: If the processes of the launcher are not connected, or the launcher requests anything other than
            data-parallel training.
    """
    accelerate = require("accelerate", "training")
    if run.num_threads is not None:
        torch.set_num_threads(run.num_threads)
    require("cv2", "data").setNumThreads(1)
    plugin = accelerate.utils.GradientAccumulationPlugin(
        num_steps=run.gradient_accumulation_steps, adjust_scheduler=False, sync_with_dataloader=False
    )
    # one process builds the frame cache while the others wait, which can take hours for a large data set
    patience = accelerate.utils.InitProcessGroupKwargs(timeout=timedelta(hours=12))
    # without cpu=True, processes started by torchrun on a machine without accelerator would train independently
    accelerator = accelerate.Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=run.precision,
        gradient_accumulation_plugin=plugin,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[patience],
    )
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != expected:
        raise RunConfigError(
            f"The launcher started {expected} processes, but only {accelerator.num_processes} train together. On a "
            "machine without accelerator use: ACCELERATE_USE_CPU=1 torchrun --nproc_per_node N training/..."
        )
    if str(accelerator.distributed_type).rpartition(".")[2] not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise RunConfigError(f"{accelerator.distributed_type} is not supported; use data-parallel training (DDP).")
    return accelerator


@contextmanager
def training_processes(run: TrainingRun) -> Iterator["Accelerator"]:
    """Set up devices and processes as in [`make_accelerator`], and clean up afterwards.

    Args:
        run (`TrainingRun`): Run configuration.

    Yields:
        `Accelerator`: For use within the block. At the end all processes synchronise; after an error in one of them, the
            others are not waited for.

    Raises:
        FileNotFoundError: If `resume` names an incomplete checkpoint.
        RunConfigError: If the folder already has a run that is not to be resumed.
    """
    # before any data is read
    checkpoint_to_resume(run)
    accelerator = make_accelerator(run)
    if accelerator.is_main_process:
        number, device = accelerator.num_processes, accelerator.device
        logger.info("%s on %s", "one process trains" if number == 1 else f"{number} processes train together", device)
        _warn_of_slow_bf16(run, accelerator)
    try:
        yield accelerator
        accelerator.wait_for_everyone()
    finally:
        accelerator.free_memory()
        if accelerator.num_processes > 1:
            # A second process was once seen to abort after training had ended. Suspected cause (not reproduced): the wrapped
            # model, part of a reference cycle, still holds connections when the interpreter exits.
            gc.collect()
        accelerator.end_training()


def _warn_of_slow_bf16(run: TrainingRun, accelerator: "Accelerator") -> None:
    if run.mixed_precision == "bf16" and not has_fast_bf16(accelerator.device):
        logger.warning("this processor has no bf16 instructions: --mixed_precision no is faster")


class TrainingLoop:
    """Trains a model until all epochs are completed or training is stopped.

    Args:
        run (`TrainingRun`): Run configuration.
        accelerator (`Accelerator`): From [`make_accelerator`].
        parts (`Parts`): Model, optimiser, schedule and data.
        task (`Task`): Task-specific parts.
    """

    def __init__(self, run: CachedFramesRun, accelerator: "Accelerator", parts: Parts, task: Task):
        self.run = run
        self.accelerator = accelerator
        self.parts = parts
        self.task = task
        self.output_dir = Path(run.output_dir)
        self.plan = StepPlan(
            num_frames=len(parts.dataset),
            batch_size=run.batch_size,
            accumulation=run.gradient_accumulation_steps,
            num_processes=accelerator.num_processes,
            num_epochs=parts.num_epochs,
            seed=run.seed,
            row_groups=parts.dataset.cache.row_groups,
        )
        self.step = 0
        self.window = RunningMeans(task.metric_names, accelerator.device)
        self.epoch_means = RunningMeans(task.metric_names, accelerator.device)
        self.first_bad = torch.full((), -1, dtype=torch.long, device=accelerator.device)
        self.stop = StopSignal()
        self.learning_rate = 0.0
        self.seconds, self.waited, self.steps_timed = 0.0, 0.0, 0
        self.is_alone_on_cpu = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
        # reading the loss or agreeing to stop synchronises processes and devices: every step only on a single CPU
        # process
        self.check_every = 1 if self.is_alone_on_cpu else run.log_every_steps

    def train(self) -> TrainingResult:
        """Run all remaining steps.

        Returns:
            `TrainingResult`: Result, finished or stopped.

        Raises:
            TrainingDivergedError: If the loss is not finite.
        """
        self._resume()
        self.model, self.optimizer = self.accelerator.prepare(self.parts.model, self.parts.optimizer)
        self.scheduler = learning_rate_scheduler(
            self.parts.optimizer, lambda step: self.parts.rate(step, self.plan), first_step=self.step
        )
        self.log = RunLog(self.output_dir, self.accelerator.is_main_process, self.run.tensorboard, self.step)
        self._log_start()
        self.model.train()
        try:
            with self.stop.listening(), self._progress_bar() as self.bar:
                return self._steps()
        finally:
            self.log.close()

    # Steps

    def _steps(self) -> TrainingResult:
        batches = self._batches()
        saved = self.step
        while self.step < self.plan.num_steps:
            self._optimizer_step(batches)
            self.step += 1
            self.bar.update()
            is_epoch_end = self.step % self.plan.steps_per_epoch == 0
            if self.step % self.check_every == 0 or is_epoch_end:
                self._check_loss()
                must_stop = self._must_stop()
            else:
                must_stop = False
            if self.step % self.run.log_every_steps == 0:
                self._log_step()
            if is_epoch_end:
                saved = self._end_epoch(saved)
            if must_stop and self.step < self.plan.num_steps:
                self.bar.close()
                return self._stop(saved)
        return TrainingResult(True, self.step, self.output_dir, self.accelerator.is_main_process)

    def _optimizer_step(self, batches: Iterator[dict[str, torch.Tensor]]) -> None:
        start = time.perf_counter()
        for part in range(self.plan.accumulation):
            before = time.perf_counter()
            batch = self._to_device(next(batches))
            self.waited += time.perf_counter() - before
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(self._forward(batch, part))
                if self.accelerator.sync_gradients and self.run.clip_grad_norm is not None:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.run.clip_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.learning_rate = self.scheduler.get_last_lr()[-1]
        self.scheduler.step()
        self.seconds += time.perf_counter() - start
        self.steps_timed += 1

    def _forward(self, batch: dict[str, torch.Tensor], part: int) -> torch.Tensor:
        inputs = self._inputs(batch, part)
        output = self.model(**inputs)
        loss = output.loss
        metrics = self.task.metrics(output, inputs)
        self.window.add(metrics)
        self.epoch_means.add(metrics)
        place = self.step * self.plan.accumulation + part
        is_first_bad = ~torch.isfinite(loss.detach()) & (self.first_bad < 0)
        self.first_bad = torch.where(is_first_bad, place, self.first_bad)
        if self.is_alone_on_cpu:
            # before the weights are updated
            self._check_loss()
        return loss

    def _inputs(self, batch: dict[str, torch.Tensor], part: int) -> dict[str, Any]:
        seed = self.plan.step_seed(self.step, part, self.accelerator.process_index)
        torch.manual_seed(seed)
        generator = torch.Generator(self.accelerator.device).manual_seed(seed)
        return self.task.inputs(batch, ForwardContext(self.progress, generator))

    @property
    def progress(self) -> float:
        """Fraction of training completed."""
        return training_progress(self.step, self.plan.num_steps)

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        sampler = StepSampler(self.plan, self.accelerator.process_index, self.step)
        loader = DataLoader(
            self.parts.dataset,
            batch_sampler=sampler,
            num_workers=self.run.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=_start_loader_process,
            prefetch_factor=4 if self.run.num_workers else None,
        )
        return iter(loader)

    def _to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        device = self.accelerator.device
        return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}

    # Log

    def _progress_bar(self) -> TrainingProgress:
        is_shown = self.accelerator.is_main_process
        return TrainingProgress(self.plan.num_steps, self.step, self.plan.frames_per_step, is_shown)

    def _log_start(self) -> None:
        values = {
            "frames": self.plan.num_frames,
            "frames_per_step": self.plan.frames_per_step,
            "steps_per_epoch": self.plan.steps_per_epoch,
            "epochs": self.plan.num_epochs,
            "processes": self.accelerator.num_processes,
            "device": str(self.accelerator.device),
            "mixed_precision": self.accelerator.mixed_precision,
            "trainable_parameters": sum(p.numel() for p in self.parts.model.parameters() if p.requires_grad),
            "peak_learning_rate": max(group["initial_lr"] for group in self.parts.optimizer.param_groups),
        }
        if self.accelerator.is_main_process:
            of_these = (
                f"{self.plan.num_frames} frames, {self.plan.frames_per_step} per step, {self.plan.num_epochs} epochs"
            )
            logger.info("training from step %d of %d: %s", self.step, self.plan.num_steps, of_these)
        self.log.write("start", self.step, values)

    def _means(self, means: RunningMeans) -> dict[str, float]:
        return means.read(self.accelerator.reduce(means.sums.clone(), reduction="sum"))

    def _log_step(self) -> None:
        values = self._means(self.window)
        self.window.reset()
        values["learning_rate"] = self.learning_rate
        self.log.write("step", self.step, values)
        self.bar.show({name: values[name] for name in self.task.metric_names[:1] if name in values})

    def _end_epoch(self, saved: int) -> int:
        epoch = self.step // self.plan.steps_per_epoch
        values = self._means(self.epoch_means)
        self.epoch_means.reset()
        values["learning_rate"] = self.learning_rate
        values["frames_per_second"] = round(self.steps_timed * self.plan.frames_per_step / max(self.seconds, 1e-9), 2)
        values["share_of_time_waiting_for_data"] = round(self.waited / max(self.seconds, 1e-9), 4)
        self.seconds, self.waited, self.steps_timed = 0.0, 0.0, 0
        if self.accelerator.is_main_process:
            self._main_process_epoch_end(epoch, values)
        if epoch % self.run.save_every_epochs == 0 or self.step == self.plan.num_steps:
            self._save()
            return self.step
        return saved

    def _main_process_epoch_end(self, epoch: int, values: dict[str, float]) -> None:
        model = self._unwrapped()
        measured = self.task.epoch_values(model, epoch, self.progress)
        picture = self.task.picture(model, epoch, self.progress)
        self.model.train()
        self.log.write("epoch", self.step, {"epoch": epoch, **values, **measured})
        # losses and held-out scores come first; the bar shows the speed
        first = {name: values[name] for name in self.task.metric_names if name in values}
        logger.info("%s", shorten_values(f"epoch {epoch}/{self.plan.num_epochs}", {**first, **measured, **values}))
        if picture is not None:
            self.log.picture(self.task.picture_name, self.step, picture, f"epoch_{epoch:04d}")

    # Checkpoints

    def _unwrapped(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=True)

    def _save(self) -> Path:
        sums = [self.accelerator.reduce(m.sums.clone(), reduction="sum") for m in (self.window, self.epoch_means)]
        folder = self.output_dir
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "plan": self._fixed(),
                "run": dataclasses.asdict(self.run),
                "sums": [s.tolist() for s in sums],
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            }
            folder = save_checkpoint(self.output_dir, self.parts.model, self.parts.optimizer, state)
            remove_old_checkpoints(self.output_dir, self.run.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        return folder

    def _fixed(self) -> dict:
        cache: StoredFrames = self.parts.dataset.cache
        plan = self.plan
        # the order of a stream depends on processes and batch size, that of a cache does not
        is_stream = plan.row_groups is not None
        return {
            "stream": [plan.num_processes, plan.batch_size] if is_stream else None,
            "num_frames": self.plan.num_frames,
            "frames_per_step": self.plan.frames_per_step,
            "seed": self.plan.seed,
            "cache_key": cache.key,
        }

    def _resume(self) -> None:
        folder = checkpoint_to_resume(self.run)
        if folder is None:
            return
        state = read_state(folder)
        if state is not None:
            self._compare(folder, state)
        state = load_checkpoint(folder, self.parts.model, self.parts.optimizer)
        self.step = state["step"]
        if self.accelerator.is_main_process:
            logger.info("resuming from %s", folder)
            for means, sums in zip((self.window, self.epoch_means), state["sums"], strict=True):
                means.sums += torch.tensor(sums, device=means.sums.device)
        if state["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _compare(self, folder: Path, state: dict) -> None:
        fixed = self._fixed()
        for name in FIXED_BY_CHECKPOINT:
            if state["plan"].get(name) != fixed[name]:
                raise RunConfigError(
                    f"{folder} was created with {name}={state['plan'].get(name)}, but this run has {fixed[name]}, so "
                    "its steps would see other frames. Use the same data, seed and frames per step, or start in "
                    "another output_dir (with --init to load the weights)."
                )
        now = dataclasses.asdict(self.run)
        for name, value in state["run"].items():
            if name not in FREE_ON_RESUME and now.get(name) != value and self.accelerator.is_main_process:
                logger.warning("resuming with %s=%s, the checkpoint was created with %s", name, now.get(name), value)

    # Stopping

    def _must_stop(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.stop.came
        # all processes must stop at the same step
        flag = torch.tensor(float(self.stop.came), device=self.accelerator.device)
        return self.accelerator.reduce(flag, reduction="sum").item() > 0

    def _stop(self, saved: int) -> TrainingResult:
        if self.accelerator.is_main_process:
            logger.info("stopping at step %d of %d on request", self.step, self.plan.num_steps)
            self.log.write("stop", self.step, {"signal": self.stop.number})
        folder = self._save() if saved != self.step else newest_checkpoint(self.output_dir) or self.output_dir
        return TrainingResult(False, self.step, folder, self.accelerator.is_main_process)

    def _check_loss(self) -> None:
        first_bad = self.accelerator.gather(self.first_bad.view(1))
        if (first_bad < 0).all():
            return
        place = int(first_bad[first_bad >= 0].min())
        step, part = divmod(place, self.plan.accumulation)
        folder = self.output_dir / f"diverged_step_{step:08d}"
        if int(self.first_bad) == place:
            self._save_for_replay(folder, step, part)
        self.accelerator.wait_for_everyone()
        checkpoint = newest_checkpoint(self.output_dir)
        raise TrainingDivergedError(
            f"The loss of step {step} (epoch {step // self.plan.steps_per_epoch + 1}) is not a finite number. Its "
            f"batch is in {folder}, the newest checkpoint before it is {checkpoint}. Lower the learning rate, set "
            "clip_grad_norm: 1.0, or train with mixed_precision: bf16 or no instead of fp16."
        )

    def _save_for_replay(self, folder: Path, step: int, part: int) -> None:
        """Save the arguments of `forward` in that step; its data can be recomputed from the step."""
        process = self.accelerator.process_index
        self.step = step
        frames = self.plan.batch(step, part, process)
        batch = self._to_device(default_collate([self.parts.dataset[key] for key in frames]))
        inputs = self._inputs(batch, part)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        with atomic_file(folder / f"inputs_process_{process}.safetensors") as temporary:
            save_file(tensors, temporary)
        values = {name: value for name, value in inputs.items() if not isinstance(value, torch.Tensor)}
        cache: StoredFrames = self.parts.dataset.cache
        about = {"step": step, "part": part, "frames": [cache.name(i) for _, i in frames], "arguments": values}
        about["weights_are_finite"] = all(bool(p.isfinite().all()) for p in self.parts.model.parameters())
        with atomic_file(folder / f"about_process_{process}.json") as temporary:
            temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
        if about["weights_are_finite"]:
            self.parts.model.save_pretrained(folder / "model")


def picture_is_due(run: TrainingRun, epoch: int, num_epochs: int) -> bool:
    """Whether an epoch, counted from 1, ends with a picture: every so many do, and the last."""
    every = run.picture_every_epochs
    return every > 0 and (epoch % every == 0 or epoch == num_epochs)


def _start_loader_process(_: int) -> None:
    require("cv2", "data").setNumThreads(1)
    # the training process decides when to stop; workers ignore the signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
