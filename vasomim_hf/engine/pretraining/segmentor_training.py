"""Training of the vessel segmentor on vesselness pseudo-labels."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.modeling_outputs import SemanticSegmenterOutput

from ...configuration_unext import UNeXtConfig
from ...data.crops import normalize_frames
from ...data.frame_cache import FrameCache, FrameCacheDataset
from ...image_processing_vasomim import VasoMIMImageProcessor
from ...modeling_unext import UNeXtForVesselSegmentation
from ...optimization import polynomial_learning_rate
from ..drawing import picture_grid, to_grey
from ..run_config import SegmentorRun
from .frames import FinishHook, finish, open_run_cache
from .loop import (
    ForwardContext,
    Parts,
    TrainingLoop,
    TrainingResult,
    picture_is_due,
    training_processes,
)
from .step_plan import StepPlan


# Dice on more frames takes longer and is not more informative
MAX_VALIDATION_FRAMES = 512
VALIDATION_BATCH_SIZE = 16
# last word of the seed that selects the validation frames
VALIDATION_STREAM = 3


def train_segmentor(run: SegmentorRun, on_finished: FinishHook | None = None) -> TrainingResult:
    """Train a UNeXt segmentor to reproduce the vesselness filter.

    Args:
        run (`SegmentorRun`): Run configuration.
        on_finished (`Callable[[Path], None]`, *optional*): Called with the final folder, to add files.

    Returns:
        `TrainingResult`: Whether training is finished; `folder` is the final model, or the last checkpoint.

    Raises:
        ValueError: If the run does not match its data or an earlier run in the same folder.
    """
    with training_processes(run) as accelerator:
        torch.manual_seed(run.seed)
        model = UNeXtForVesselSegmentation(UNeXtConfig(**run.model))
        size = (run.image_size, run.image_size)
        image_processor = VasoMIMImageProcessor(size={"height": run.image_size, "width": run.image_size})
        training, validation = split_frames(open_run_cache(run, accelerator), run.validation_fraction, run.seed)
        dataset = FrameCacheDataset(training, size, run.seed, tuple(run.crop_scale), run.flip_probability)
        if accelerator.is_main_process:
            run.save()
        optimizer = torch.optim.Adam(model.parameters(), lr=run.learning_rate, fused=True)
        task = SegmentorTask(run, image_processor, FrameCacheDataset(validation, size, augment=False))
        result = TrainingLoop(
            run, accelerator, Parts(model, optimizer, _relative_rate, dataset, run.epochs), task
        ).train()
        return finish(result, accelerator, model, image_processor, on_finished)


def split_frames(cache: FrameCache, validation_fraction: float, seed: int) -> tuple[FrameCache, FrameCache]:
    """Hold out random frames, at most 512.

    Neighbouring frames of a cine look alike, so Dice on held-out frames measures how well the filter is imitated, not
    how well vessels are found in other patients.

    Args:
        cache (`FrameCache`): All frames.
        validation_fraction (`float`): Fraction to hold out, in [0, 1); at least one frame unless it is 0.
        seed (`int`): Random seed.

    Returns:
        `tuple[FrameCache, FrameCache]`: Training frames and held-out frames.
    """
    order = np.random.default_rng([seed, 0, 0, VALIDATION_STREAM]).permutation(len(cache)).tolist()
    count = min(max(1, round(validation_fraction * len(cache))), MAX_VALIDATION_FRAMES, len(cache) - 1)
    count = count if validation_fraction > 0 else 0
    return cache.select(sorted(order[count:])), cache.select(sorted(order[:count]))


def dice_of_masks(predicted: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Dice of each pair of masks; 1 if both are empty.

    Args:
        predicted, expected (`torch.Tensor` of shape `(batch_size, 1, height, width)`): `bool`.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`: float in [0, 1].

    Example:
        >>> dice_of_masks(torch.tensor([[[[True, True]]]]), torch.tensor([[[[True, False]]]]))
        tensor([0.6667])
    """
    both = (predicted & expected).flatten(1).sum(dim=1)
    total = predicted.flatten(1).sum(dim=1) + expected.flatten(1).sum(dim=1)
    return torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)


def _relative_rate(step: int, plan: StepPlan) -> float:
    return polynomial_learning_rate(step, steps_per_epoch=plan.steps_per_epoch, num_epochs=plan.num_epochs, peak=1.0)


class SegmentorTask:
    """Training step of the segmentor, validation score and pictures.

    Args:
        run (`SegmentorRun`): Run configuration.
        image_processor (`VasoMIMImageProcessor`): Defines the normalisation.
        validation (`FrameCacheDataset`): Held-out frames, uncropped.
    """

    metric_names = ("loss",)
    picture_name = "segmentation"

    def __init__(self, run: SegmentorRun, image_processor: VasoMIMImageProcessor, validation: FrameCacheDataset):
        self.run = run
        self.mean = list(image_processor.image_mean)
        self.std = list(image_processor.image_std)
        self.validation = validation

    def inputs(self, batch: dict[str, torch.Tensor], context: ForwardContext) -> dict[str, Any]:
        """Arguments of [`UNeXtForVesselSegmentation`]'s `forward`."""
        pixel_values = normalize_frames(batch["pixel"], self.mean, self.std)
        return {
            "pixel_values": pixel_values.contiguous(memory_format=torch.channels_last),
            "labels": batch["vesselness"].float(),
        }

    def metrics(
        self, output: SemanticSegmenterOutput, inputs: dict[str, Any]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | float]]:
        """The loss."""
        return {"loss": (output.loss, 1.0)}

    def epoch_values(self, model: UNeXtForVesselSegmentation, epoch: int, progress: float) -> dict[str, float]:
        """Mean Dice on the held-out frames against their vesselness, at a threshold of one half."""
        if len(self.validation) == 0:
            return {}
        model.eval()
        device = next(model.parameters()).device
        scores = []
        for batch in torch.utils.data.DataLoader(self.validation, batch_size=VALIDATION_BATCH_SIZE):
            logits = self._logits(model, batch["pixel"].to(device))
            scores.append(dice_of_masks(logits > 0, batch["vesselness"].to(device) > 0))
        return {"validation_dice": float(torch.cat(scores).mean())}

    @torch.no_grad()
    def _logits(self, model: UNeXtForVesselSegmentation, pixels: torch.Tensor) -> torch.Tensor:
        return model(normalize_frames(pixels, self.mean, self.std)).logits.float()

    def picture(self, model: UNeXtForVesselSegmentation, epoch: int, progress: float) -> Image.Image | None:
        """Held-out frames, their vesselness and the segmentor's prediction; every so many epochs."""
        if not picture_is_due(self.run, epoch, self.run.epochs) or len(self.validation) == 0:
            return None
        model.eval()
        device = next(model.parameters()).device
        items = [self.validation[index] for index in range(min(self.run.num_pictures, len(self.validation)))]
        pixels = torch.stack([item["pixel"] for item in items]).to(device)
        frames = to_grey(normalize_frames(pixels, self.mean, self.std), self.mean, self.std)
        vesselness = torch.stack([item["vesselness"] for item in items])
        found = self._logits(model, pixels).sigmoid()
        return picture_grid([frames, vesselness, found], ("frame", "vesselness", "segmentor"))
