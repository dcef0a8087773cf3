"""Evaluation of a saved model on labelled frames, as done by `vasomim evaluate`.

The input size is that of the model's image processor; predictions are scored at the size of the annotated frames.
Metrics are defined in docs/metrics.md.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
import transformers

from ...data.locations import source_name
from ...data.published.registry import FLIP_PROBABILITY, find_dataset
from ...evaluation.comparison import Description, build_results
from ...evaluation.results import EvaluationResults, write_results
from ...folders import check_writable
from ...inference import VIEWS, InferenceOptions, SlidingWindow, resolve_precision
from ..finetuning.rows import (
    LabelledRows,
    class_names,
    load_rows,
    named_by_columns,
    number_labels,
)
from ..finetuning.run import RUNS
from ..finetuning.weights import load_config
from ..tasks import TASKS, Task, task_of_model
from .pictures import MapWriter, draw_cases
from .request import EvaluationRequest
from .scoring import FrameScorer, ScoringOptions


logger = logging.getLogger(__name__)

FLIPS = "flips"


def evaluate_model(request: EvaluationRequest) -> EvaluationResults:
    """Evaluate a saved model.

    Args:
        request (`EvaluationRequest`): Model, data and options.

    Returns:
        `EvaluationResults`: With a row for each frame.

    Raises:
        FileNotFoundError: If the model or the data do not exist.
        OSError: If `output`, `maps` or `pictures` cannot be written.
        ValueError: If model, task, data and options are inconsistent.
    """
    config = load_config(request.model, "the model")
    task = _task_of(config, request)
    _check_options(task, request)
    if request.num_threads is not None:
        torch.set_num_threads(request.num_threads)
    rows, labels = _load_rows(task, config, request)
    _check_labels(task, config, labels, request)
    scorer = _make_scorer(task, request, labels)
    logger.info("%s: %s on %s, %d frames", request.model, request.task, request.split, len(rows))
    scores = scorer.score(rows, None if request.maps is None else MapWriter(request.maps))
    results = build_results(scores, _describe(request, scorer))
    if request.output is not None:
        write_results(results, request.output)
    if request.pictures is not None:
        draw_cases(request.pictures, results, scorer, rows)
    return results


def _task_of(config: transformers.PreTrainedConfig, request: EvaluationRequest) -> Task:
    name = (config.architectures or ["a model without a name"])[0]
    task = task_of_model(name)
    if task is None:
        raise ValueError(
            f"{request.model} is a {name}, which has no head for a task. Fine-tune it first with "
            "training/finetune_*.py."
        )
    entry = find_dataset(request.dataset)
    column = task.column if entry.is_table else entry.find_task(request.task).column
    if column != task.column:
        other = next(one.kind for one in TASKS.values() if one.column == column)
        raise ValueError(f"{request.model} is a model for {task.kind}, and {request.task} is a task of {other}.")
    return task


def _check_options(task: Task, request: EvaluationRequest) -> None:
    if request.tta not in VIEWS:
        raise ValueError(f"`tta` must be one of {', '.join(VIEWS)}, got {request.tta!r}.")
    if request.tta == FLIPS and FLIP_PROBABILITY.get(request.task) == 0:
        raise ValueError(
            f"`tta` {FLIPS!r} does not fit the task {request.task!r}, whose labels depend on left and right. Use "
            "'scales'."
        )
    if request.sliding_window is not None and not task.is_dense:
        raise ValueError(f"Sliding windows are for segmentation, and {request.model} is a model for {task.kind}.")
    if request.sliding_window is not None and request.image_size is not None:
        raise ValueError("`image_size` applies to whole frames. With `sliding_window`, set `frame_size` instead.")
    if request.sliding_window is None and request.frame_size is not None:
        raise ValueError("`frame_size` requires `sliding_window`. For whole frames, set `image_size` instead.")
    if request.maps is not None and not task.is_dense:
        raise ValueError(f"`maps` are for segmentation, and {request.model} is a model for {task.kind}.")
    for name in ("batch_size", "image_size", "sliding_window", "frame_size", "max_frames", "num_threads"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    _check_columns(task, request)
    if request.output is not None:
        check_writable(Path(request.output))
    for folder in (request.maps, request.pictures):
        if folder is not None:
            check_writable(Path(folder) / "worst.png")


def _check_columns(task: Task, request: EvaluationRequest) -> None:
    if request.ignore_white and not find_dataset(request.dataset).is_table:
        raise ValueError(
            f"`ignore_white` is for tables, and the data set is {request.dataset}, whose masks are known."
        )
    known = (
        [entry.name for entry in dataclasses.fields(RUNS[task.kind])] if find_dataset(request.dataset).is_table else []
    )
    strange = [name for name in request.columns if name not in known]
    if strange:
        raise ValueError(
            f"`{strange[0]}` does not fit: {request.model} is a model for {task.kind}, the data set is {request.dataset}, "
            "and columns are named for tables."
        )


def _load_rows(
    task: Task, config: transformers.PreTrainedConfig, request: EvaluationRequest
) -> tuple[LabelledRows, list[str]]:
    where: dict[str, Any] = {"data": request.data, "task": request.task, "dataset": request.dataset, **request.columns}
    run = RUNS[task.kind](max_frames=request.max_frames, **where)
    rows = dataclasses.replace(load_rows(run, request.split), ignore_white=request.ignore_white)
    names = named_by_columns(run, rows) if find_dataset(request.dataset).is_table else class_names(run, rows)
    # masks of a table have no class names, so those of the model are used
    names = task.names_of_model(names or config.id2label)
    rows = number_labels(run, rows, names)
    return rows, [names[number] for number in sorted(names)]


def _check_labels(
    task: Task, config: transformers.PreTrainedConfig, labels: list[str], request: EvaluationRequest
) -> None:
    own = [config.id2label[number] for number in sorted(config.id2label)]
    if not task.fits_model(len(own), len(labels)):
        raise ValueError(
            f"{request.model} has {len(own)} classes ({', '.join(own[:5])}), the data have {len(labels)} "
            f"({', '.join(labels[:5])}). Evaluate a model that was trained for this task."
        )
    if own != labels and set(own) == set(labels):
        raise ValueError(
            f"{request.model} has the classes {', '.join(own[:5])}, the data {', '.join(labels[:5])}: the same "
            "in another order. Number the classes of the data as the model does."
        )
    if len(own) == len(labels) and own != labels:
        logger.warning("the classes of the model are %s, those of the data %s", ", ".join(own), ", ".join(labels))


def _make_scorer(task: Task, request: EvaluationRequest, labels: list[str]) -> FrameScorer:
    # only for files with classes of this package: no remote code is run
    model, info = task.auto_class.from_pretrained(
        request.model, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"{request.model} lacks {len(missing)} weights, such as {missing[0]}. Train or copy it again."
        )
    image_processor = _load_image_processor(task, request)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    window = request.sliding_window and SlidingWindow(request.sliding_window, request.overlap, request.batch_size)
    inference = InferenceOptions(
        VIEWS[request.tta], window or None, resolve_precision(request.mixed_precision, model.device)
    )
    options = ScoringOptions(inference, request.batch_size, request.frame_size)
    return FrameScorer(task.kind, model, image_processor, labels, options)


def _load_image_processor(task: Task, request: EvaluationRequest) -> Any:
    side, changes = request.image_size, {}
    if side is not None:
        changes = {"size": {"height": side, "width": side}, "do_resize": True}
    image_processor = transformers.AutoImageProcessor.from_pretrained(
        request.model, trust_remote_code=False, **changes
    )
    moved = [name for name in ("do_center_crop", "pad_size") if getattr(image_processor, name, None)]
    if task.has_positions and moved:
        raise ValueError(
            f"The image processor of {request.model} crops or pads frames ({moved[0]}), so its predictions cannot "
            "be mapped back to the annotated frame. Save it with resizing only."
        )
    return image_processor


def _describe(request: EvaluationRequest, scorer: FrameScorer) -> Description:
    settings = {
        # null if it varies between frames
        "image_size": None if scorer.seen_size is None else list(scorer.seen_size),
        "mixed_precision": scorer.options.inference.mixed_precision,
        "tta": request.tta,
        "sliding_window": request.sliding_window,
        "overlap": None if request.sliding_window is None else request.overlap,
        "frame_size": request.frame_size,
        "max_frames": request.max_frames,
        "device": str(next(scorer.model.parameters()).device.type),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    data = source_name(request.data) if find_dataset(request.dataset).is_table else request.dataset
    return Description(request.task, request.name or source_name(request.model), data, request.split, settings)
