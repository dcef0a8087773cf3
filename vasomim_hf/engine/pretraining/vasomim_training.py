"""Pre-training of VasoMIM: setup of a run and its training step."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ...configuration_vasomim import VasoMIMConfig
from ...data.crops import normalize_frames
from ...data.frame_cache import FrameCacheDataset
from ...image_processing_vasomim import VasoMIMImageProcessor
from ...masking_vasomim import patch_scores
from ...modeling_vasomim_pretraining import VasoMIMForPreTraining, VasoMIMForPreTrainingOutput
from ...optimization import cosine_learning_rate, parameter_groups
from ..drawing import COLUMNS, hide_patches, picture_grid, to_grey
from ..run_config import PretrainRun
from .frames import FinishHook, finish, open_run_cache, open_run_stream
from .loop import (
    ForwardContext,
    Parts,
    TrainingLoop,
    TrainingResult,
    picture_is_due,
    training_processes,
)
from .model import build_model
from .probe import probe_reconstructions


if TYPE_CHECKING:
    from .step_plan import StepPlan


# the same frames and masks in every picture and every probe
FIXED_SEED = 0
PROBE_BATCH_SIZE = 16


def pretrain(run: PretrainRun, on_finished: FinishHook | None = None) -> TrainingResult:
    """Pre-train VasoMIM.

    Args:
        run (`PretrainRun`): Run configuration.
        on_finished (`Callable[[Path], None]`, *optional*): Called with the final folder, to add files.

    Returns:
        `TrainingResult`: Whether training is finished; `folder` is the final model, or the last checkpoint.

    Raises:
        ValueError: If the run does not match its data, its segmentor or an earlier run in the same folder.
    """
    with training_processes(run) as accelerator:
        model = build_model(run)
        cache = (open_run_stream if run.streaming else open_run_cache)(run, accelerator)
        height, width = model.config.image_height_width
        image_processor = VasoMIMImageProcessor(size={"height": height, "width": width})
        dataset = FrameCacheDataset(cache, (height, width), run.seed, tuple(run.crop_scale), run.flip_probability)
        if accelerator.is_main_process:
            run.save()
        frames_per_step = run.batch_size * run.gradient_accumulation_steps * accelerator.num_processes
        parts = Parts(model, _optimizer(run, model, frames_per_step), _relative_rate(run), dataset, run.epochs)
        task = PretrainTask(run, model.config, image_processor, dataset)
        result = TrainingLoop(run, accelerator, parts, task).train()
        return finish(result, accelerator, model, image_processor, on_finished)


def _optimizer(run: PretrainRun, model: VasoMIMForPreTraining, frames_per_step: int) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(model, run.weight_decay),
        lr=run.peak_learning_rate(frames_per_step),
        betas=(run.betas[0], run.betas[1]),
        fused=True,
    )


def _relative_rate(run: PretrainRun) -> Any:
    def rate(step: int, plan: "StepPlan") -> float:
        return cosine_learning_rate(
            step,
            steps_per_epoch=plan.steps_per_epoch,
            num_epochs=plan.num_epochs,
            warmup_epochs=run.warmup_ratio * run.epochs,
            peak=1.0,
            minimum=run.min_learning_rate_ratio,
        )

    return rate


class PretrainTask:
    """Training step of pre-training, logged values and pictures.

    Args:
        run (`PretrainRun`): Run configuration.
        config (`VasoMIMConfig`): Model configuration.
        image_processor (`VasoMIMImageProcessor`): Defines the normalisation.
        dataset (`FrameCacheDataset`): Source of the frames in pictures.
    """

    metric_names = ("loss", "reconstruction_loss", "consistency_loss", "hidden_vessel_share")
    picture_name = "reconstruction"

    def __init__(
        self,
        run: PretrainRun,
        config: VasoMIMConfig,
        image_processor: VasoMIMImageProcessor,
        dataset: FrameCacheDataset,
    ):
        self.run = run
        self.config = config
        self.mean = list(image_processor.image_mean)
        self.std = list(image_processor.image_std)
        self.num_patches = config.patch_grid[0] * config.patch_grid[1]
        self.picture_dataset = _some_frames(dataset, run.num_pictures)
        self.probe_dataset = _some_frames(dataset, run.probe_frames)

    def inputs(self, batch: dict[str, torch.Tensor], context: ForwardContext) -> dict[str, Any]:
        """Arguments of [`VasoMIMForPreTraining`]'s `forward`."""
        pixels, generator = batch["pixel"], context.generator
        return {
            "pixel_values": normalize_frames(pixels, self.mean, self.std),
            "vesselness": batch["vesselness"],
            "progress": context.progress,
            "noise": torch.rand(len(pixels), self.num_patches, device=pixels.device, generator=generator),
        }

    def metrics(
        self, output: VasoMIMForPreTrainingOutput, inputs: dict[str, Any]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | float]]:
        """Losses, and the fraction of vessel pixels that are masked."""
        vessels = patch_scores(inputs["vesselness"].float(), self.config.patch_size)
        return {
            "loss": (output.loss, 1.0),
            "reconstruction_loss": (output.reconstruction_loss, 1.0),
            "consistency_loss": (output.consistency_loss, 1.0),
            "hidden_vessel_share": ((vessels * output.mask).sum(), vessels.sum()),
        }

    def epoch_values(self, model: VasoMIMForPreTraining, epoch: int, progress: float) -> dict[str, float]:
        """Guidance ratio, fraction of vessels that a uniform mask would hide, and values of the probe.

        Training losses rise when guidance masks more patches that are hard to predict. The probe, whole training
        frames with the same masks in every epoch, shows what was learned. Its masks are sampled as at the start of the
        schedule: uniformly, with the paper's settings.
        """
        num_visible = int(self.num_patches * (1 - self.config.mask_ratio))
        start, end = self.config.guidance_ratio_start, self.config.guidance_ratio_end
        return {
            "uniform_hidden_vessel_share": 1 - num_visible / self.num_patches,
            "guidance_ratio": start + progress * (end - start),
            **self._probe(model),
        }

    def _probe(self, model: VasoMIMForPreTraining) -> dict[str, float]:
        if len(self.probe_dataset) == 0:
            return {}
        context = self._fixed_context(model, progress=0.0)
        loader = torch.utils.data.DataLoader(self.probe_dataset, batch_size=PROBE_BATCH_SIZE)
        batches = (self.inputs({k: v.to(model.device) for k, v in batch.items()}, context) for batch in loader)
        return probe_reconstructions(model, batches, partial(to_grey, mean=self.mean, std=self.std))

    def _fixed_context(self, model: VasoMIMForPreTraining, progress: float) -> ForwardContext:
        return ForwardContext(progress, torch.Generator(model.device).manual_seed(FIXED_SEED))

    def picture(self, model: VasoMIMForPreTraining, epoch: int, progress: float) -> Image.Image | None:
        """Frame, visible patches, reconstruction, and the vessels of each; drawn at regular intervals."""
        if not picture_is_due(self.run, epoch, self.run.epochs):
            return None
        batch = torch.utils.data.default_collate(
            [self.picture_dataset[index] for index in range(len(self.picture_dataset))]
        )
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        inputs = self.inputs(batch, self._fixed_context(model, progress))
        model.eval()
        with torch.no_grad():
            return self._draw(model, inputs, model(**inputs))

    def _draw(
        self, model: VasoMIMForPreTraining, inputs: dict[str, Any], output: VasoMIMForPreTrainingOutput
    ) -> Image.Image:
        frames = to_grey(inputs["pixel_values"], self.mean, self.std)
        reconstruction = output.reconstruction.float()
        visible = hide_patches(frames, output.mask, self.config.patch_grid)
        columns = [frames, visible, to_grey(reconstruction, self.mean, self.std), inputs["vesselness"]]
        if model.segmentor is not None:
            columns += [model.segmentor(x).logits.sigmoid() for x in (inputs["pixel_values"], reconstruction)]
        return picture_grid(columns, COLUMNS[: len(columns)])


def _some_frames(dataset: FrameCacheDataset, count: int) -> FrameCacheDataset:
    """Whole frames spread over a dataset; for Parquet from the first row group only, because each group has to be
    read."""
    cache = dataset.cache
    row_groups = cache.row_groups
    total = row_groups[0] if row_groups and row_groups[0] >= count else len(dataset)
    count = min(count, total)
    chosen = cache.select([i * total // count for i in range(count)])
    return FrameCacheDataset(chosen, dataset.size, augment=False)
