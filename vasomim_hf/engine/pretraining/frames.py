"""From a run's `data:` line to a frame cache or open Parquet files, and from a trained model to its final folder."""

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
from ...folders import new_folder
from ...image_processing_vasomim import VasoMIMImageProcessor
from ..run_config import PretrainRun, TrainingRun
from ..tracking import PICTURES_NAME
from .loop import TrainingResult


if TYPE_CHECKING:
    from accelerate import Accelerator


logger = logging.getLogger(__name__)

FINAL_NAME = "final"

# Called with the folder of the final model before it gets its name, to add files such as a model card
FinishHook = Callable[[Path], None]


def open_run_cache(run: TrainingRun, accelerator: "Accelerator") -> FrameCache:
    """Build or open the frame cache of a run; one process builds, the others wait."""
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
        logger.info("%d frames of %s, cached in %s", len(cache), source.description, cache.folder)
    if run.max_frames is not None:
        cache = cache.select(list(range(min(run.max_frames, len(cache)))))
    return cache


def open_run_stream(run: PretrainRun, accelerator: "Accelerator") -> ParquetFrames:
    """Open the Parquet files of a run to be read in training; nothing is written.

    Args:
        run (`PretrainRun`): With `streaming`.
        accelerator (`Accelerator`): Its main process says what was found.

    Returns:
        `ParquetFrames`: All frames, or the first `max_frames`.
    """
    shards = find_shards(run.data, run.data_split)
    frames = ParquetFrames(shards, run.image_column, run.vesselness_column, run.bits_stored)
    if accelerator.is_main_process:
        logger.info("%d frames of %s, read from %d Parquet files in training", len(frames), run.data, len(shards))
    if run.max_frames is not None:
        frames = frames.select(range(min(run.max_frames, len(frames))))
    return frames


def _source_options(run: TrainingRun) -> SourceOptions:
    return SourceOptions(
        split=run.data_split,
        image_column=run.image_column,
        vesselness_column=run.vesselness_column,
        frame_list=run.frame_list,
        frame_list_key=run.frame_list_key,
        masks=run.masks,
        # Pictures of earlier runs are no frames
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
    """Write the final folder, if training has come to its end.

    Args:
        result (`TrainingResult`): Of the loop; its folder is the run's if training is finished.
        accelerator (`Accelerator`): Its main process writes, the others wait.
        model (`PreTrainedModel`): As it was given to the loop.
        image_processor (`VasoMIMImageProcessor`): Saved beside the model.
        on_finished (`Callable[[Path], None]`, *optional*): May add files.

    Returns:
        `TrainingResult`: With the final folder; unchanged if training was stopped.
    """
    if not result.finished:
        return result
    folder = result.folder / FINAL_NAME
    if accelerator.is_main_process:
        # Without the autocast wrapper that accelerate puts around `forward`
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
