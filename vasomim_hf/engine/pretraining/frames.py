"""Data of a pre-training run (frame cache or Parquet files), and the final folder of a trained model."""

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from ...data.frame_cache import FrameCache, build_frame_cache
from ...data.parquet.read import ParquetFrames, find_shards
from ...data.sources import SourceOptions, open_source
from ...folders import FINAL_NAME, new_folder
from ...image_processing_vasomim import VasoMIMImageProcessor
from ..run_config import CachedFramesRun, PretrainRun
from ..tracking import PICTURES_NAME
from .loop import TrainingResult


if TYPE_CHECKING:
    from accelerate import Accelerator


logger = logging.getLogger(__name__)


# called with the final folder before it is renamed, to add files such as a model card
FinishHook = Callable[[Path], None]


def open_run_cache(run: CachedFramesRun, accelerator: "Accelerator") -> FrameCache:
    """Build or open the frame cache of a run; one process builds it, the others wait."""
    with accelerator.main_process_first():
        source = open_source(run.data, _source_options(run))
        cache = build_frame_cache(
            source,
            run.cache_dir,
            vesselness_options=run.vesselness,
            num_workers=_num_cores(),
            show_progress=accelerator.is_main_process,
        )
    if accelerator.is_main_process:
        logger.info("%d frames from %s", len(cache), source.description)
        logger.info("cached in %s", cache.folder)
    if run.max_frames is not None:
        cache = cache.select(list(range(min(run.max_frames, len(cache)))))
    return cache


def open_run_stream(run: PretrainRun, accelerator: "Accelerator") -> ParquetFrames:
    """Open the Parquet files of a run for streaming; nothing is written.

    Args:
        run (`PretrainRun`): Run configuration with `streaming`.
        accelerator (`Accelerator`): Its main process logs what was found.

    Returns:
        `ParquetFrames`: All frames, or the first `max_frames`.
    """
    shards = find_shards(run.data, run.train_split)
    frames = ParquetFrames(shards, run.image_column, run.vesselness_column, run.bits_stored)
    if accelerator.is_main_process:
        logger.info("%d frames from %s, streamed from %d Parquet files", len(frames), run.data, len(shards))
    if run.max_frames is not None:
        frames = frames.select(range(min(run.max_frames, len(frames))))
    return frames


def _source_options(run: CachedFramesRun) -> SourceOptions:
    return SourceOptions(
        split=run.train_split,
        image_column=run.image_column,
        vesselness_column=run.vesselness_column,
        frame_list=run.frame_list,
        frame_list_key=run.frame_list_key,
        masks=run.masks,
        # pictures of earlier runs are not frames
        leave_out=(run.output_dir, run.cache_dir, str(Path(run.output_dir) / PICTURES_NAME)),
        bits_stored=run.bits_stored,
    )


def finish(
    result: TrainingResult,
    accelerator: "Accelerator",
    model: PreTrainedModel,
    image_processor: VasoMIMImageProcessor,
    on_finished: FinishHook | None,
) -> TrainingResult:
    """Write the final folder if training is finished.

    Args:
        result (`TrainingResult`): Result of the loop; its folder is that of the run if training is finished.
        accelerator (`Accelerator`): Its main process writes, the others wait.
        model (`PreTrainedModel`): Model passed to the loop.
        image_processor (`VasoMIMImageProcessor`): Saved with the model.
        on_finished (`Callable[[Path], None]`, *optional*): Called with the final folder, to add files.

    Returns:
        `TrainingResult`: With the final folder; unchanged if training was stopped.
    """
    if not result.finished:
        return result
    folder = result.folder / FINAL_NAME
    if accelerator.is_main_process:
        # without the autocast wrapper of accelerate around `forward`
        model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        with new_folder(folder, overwrite=True) as temporary:
            model.save_pretrained(temporary)
            image_processor.save_pretrained(temporary)
            if on_finished is not None:
                on_finished(temporary)
    accelerator.wait_for_everyone()
    return dataclasses.replace(result, folder=folder)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
