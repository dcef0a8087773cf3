"""Evaluation of a saved model on labelled frames: what `vasomim evaluate` does.

The model's own image processor decides the size it sees; scores are taken at the size of the annotated frames. What every
number means stands in docs/metrics.md.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
)

from ..data.arcade import PARTS
from ..data.augmentation import FLIP_PROBABILITY
from ..evaluation.comparison import Description, build_results
from ..evaluation.results import EvaluationResults
from ..import_utils import require
from ..inference.prediction import AUTO, InferenceOptions, has_fast_bf16
from ..inference.sliding_window import SlidingWindow
from ..inference.views import VIEWS
from .evaluation_pictures import MapWriter, draw_cases
from .finetune_config import (
    ARCADE,
    CLASSIFICATION,
    DETECTION,
    SEGMENTATION,
    ClassificationRun,
    DetectionRun,
    FinetuneRun,
    SegmentationRun,
)
from .finetune_rows import LabelledRows, class_names, load_rows, named_by_columns
from .scoring import FrameScorer, ScoringOptions


logger = logging.getLogger(__name__)

# Last words of the names of model classes, as all of transformers has them
_KINDS = {
    "ForSemanticSegmentation": SEGMENTATION,
    "ForObjectDetection": DETECTION,
    "ForImageClassification": CLASSIFICATION,
}
_AUTO_CLASSES: dict[str, Any] = {
    SEGMENTATION: AutoModelForSemanticSegmentation,
    DETECTION: AutoModelForObjectDetection,
    CLASSIFICATION: AutoModelForImageClassification,
}
_RUNS: dict[str, type[FinetuneRun]] = {
    SEGMENTATION: SegmentationRun,
    DETECTION: DetectionRun,
    CLASSIFICATION: ClassificationRun,
}
FLIPS = "flips"


@dataclass(frozen=True)
class EvaluationRequest:
    """What is evaluated, on what, and how.

    Args:
        model (`str`): Folder or Hub id of a model with a head and its image processor.
        data (`str`): Folder of ARCADE, or of Parquet files, or `hf://datasets/OWNER/NAME`.
        task (`str`): Of ARCADE; of a table a name of your own.
        split (`str`): Of the data; several of ARCADE as `train+val`.
        dataset (`str`): `"arcade"` or `"table"`.
        columns (`dict[str, str]`): Of a table: `image_column` and `mask_column`, `objects_column` or `label_column`.
        max_frames (`int`, *optional*): Only the first frames, for a trial.
        image_size (`int`, *optional*): Side in pixels that the model sees; that of its image processor by default.
        mixed_precision (`str`): `"no"`, `"bf16"`, `"fp16"`, or `"auto"`: bf16 where the machine is fast at it. The results
            say which it was.
        batch_size (`int`): Frames, or windows, that the model sees at once.
        tta (`str`): Test-time augmentation: `"none"`, `"flips"` or `"scales"`.
        window (`int`, *optional*): Side in pixels of sliding windows; `None` shows frames whole.
        overlap (`float`): Of the windows, in [0, 1).
        frame_size (`int`, *optional*): With windows: longer side in pixels that frames are resized to.
        maps (`str`, *optional*): Folder for the masks found and maps of uncertainty.
        pictures (`str`, *optional*): Folder for pictures of the best, middle and worst frames.
        num_threads (`int`, *optional*): CPU threads; `None` leaves it to torch.
    """

    model: str
    data: str
    task: str
    split: str
    dataset: str = ARCADE
    columns: dict[str, str] = field(default_factory=dict)
    max_frames: int | None = None
    image_size: int | None = None
    mixed_precision: str = AUTO
    batch_size: int = 4
    tta: str = "none"
    window: int | None = None
    overlap: float = 0.5
    frame_size: int | None = None
    maps: str | None = None
    pictures: str | None = None
    num_threads: int | None = None


def evaluate_model(request: EvaluationRequest) -> EvaluationResults:
    """Evaluate a saved model.

    Args:
        request (`EvaluationRequest`): What, on what, and how.

    Returns:
        `EvaluationResults`: With a row for each frame, ready for `write_results`.

    Raises:
        FileNotFoundError: If the model or the data are not there.
        ValueError: If model, task, data and options do not fit each other.
    """
    if request.num_threads is not None:
        torch.set_num_threads(request.num_threads)
    config = _load_config(request.model)
    kind = _kind_of(config, request)
    _check_options(kind, request)
    rows, labels = _load_rows(kind, config, request)
    _check_labels(config, labels, request)
    scorer = _make_scorer(kind, request, labels)
    logger.info("%s: %s on %s, %d frames", request.model, request.task, request.split, len(rows))
    scores = scorer.score(rows, None if request.maps is None else MapWriter(request.maps))
    results = build_results(scores, _describe(request, scorer))
    if request.pictures is not None:
        draw_cases(request.pictures, results, scorer, rows)
    return results


def _load_config(model: str) -> PreTrainedConfig:
    folder = Path(model)
    looks_local = folder.is_absolute() or model.startswith(".") or model.count("/") != 1 or folder.exists()
    if looks_local and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{model} holds no model, there is no config.json in it.")
    return AutoConfig.from_pretrained(model)


def _kind_of(config: PreTrainedConfig, request: EvaluationRequest) -> str:
    name = (config.architectures or ["a model without a name"])[0]
    kind = next((kind for ending, kind in _KINDS.items() if name.endswith(ending)), None)
    if kind is None:
        raise ValueError(
            f"{request.model} is a {name}, which has no head for a task. Fine-tune it first with training/finetune_*.py."
        )
    if request.dataset != ARCADE:
        return kind
    known = {task: other for other, run in _RUNS.items() for task in run.tasks}
    if request.task not in PARTS:
        raise ValueError(f"`task` must be one of {', '.join(PARTS)} on ARCADE, got {request.task!r}.")
    if known[request.task] != kind:
        raise ValueError(
            f"{request.model} is a model for {kind}, and {request.task} is a task of {known[request.task]}."
        )
    return kind


def _check_options(kind: str, request: EvaluationRequest) -> None:
    if request.tta not in VIEWS:
        raise ValueError(f"`tta` must be one of {', '.join(VIEWS)}, got {request.tta!r}.")
    if request.tta == FLIPS and FLIP_PROBABILITY.get(request.task) == 0:
        raise ValueError(
            f"`tta` {FLIPS!r} does not fit the task {request.task!r}, whose labels hang on left and right. Take 'scales'."
        )
    if request.window is not None and kind != SEGMENTATION:
        raise ValueError(f"Sliding windows are for segmentation, and {request.model} is a model for {kind}.")
    if request.window is not None and request.image_size is not None:
        raise ValueError(
            "`image_size` resizes whole frames. With `window`, give the size of the frames as `frame_size`."
        )
    if request.window is None and request.frame_size is not None:
        raise ValueError("`frame_size` goes with `window`. Without windows give `image_size`.")
    if request.maps is not None and kind != SEGMENTATION:
        raise ValueError(f"`maps` are for segmentation, and {request.model} is a model for {kind}.")
    for name in ("batch_size", "image_size", "frame_size", "max_frames", "num_threads"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")


def _load_rows(kind: str, config: PreTrainedConfig, request: EvaluationRequest) -> tuple[LabelledRows, list[str]]:
    where: dict[str, Any] = {"data": request.data, "task": request.task, "dataset": request.dataset, **request.columns}
    run = _RUNS[kind](max_frames=request.max_frames, **where)
    rows = load_rows(run, request.split)
    names = class_names(run, rows) if request.dataset == ARCADE else named_by_columns(run, rows)
    # masks of a table carry no names: there the model's hold
    names = names or config.id2label
    return rows, [names[number] for number in sorted(names)]


def _check_labels(config: PreTrainedConfig, labels: list[str], request: EvaluationRequest) -> None:
    # one logit is the foreground against the background
    own = [config.id2label[number] for number in sorted(config.id2label)]
    if len(own) != len(labels) and not (len(own) == 1 and len(labels) == 2):
        raise ValueError(
            f"{request.model} knows {len(own)} classes ({', '.join(own[:5])}), the data have {len(labels)} "
            f"({', '.join(labels[:5])}). Evaluate a model that was trained for this task."
        )
    if len(own) == len(labels) and own != labels:
        logger.warning("the model calls its classes %s, the data %s", ", ".join(own), ", ".join(labels))


def _make_scorer(kind: str, request: EvaluationRequest, labels: list[str]) -> FrameScorer:
    # files with the package's own classes alone: no code of a model folder is run
    model, info = _AUTO_CLASSES[kind].from_pretrained(request.model, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"{request.model} lacks {len(missing)} weights, such as {missing[0]}. Train or copy it again."
        )
    size = {} if request.image_size is None else {"size": {"height": request.image_size, "width": request.image_size}}
    image_processor = AutoImageProcessor.from_pretrained(request.model, **size)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    window = request.window and SlidingWindow(request.window, request.overlap, request.batch_size)
    inference = InferenceOptions(VIEWS[request.tta], window or None, _precision(request, model.device))
    options = ScoringOptions(inference, request.batch_size, request.frame_size)
    return FrameScorer(kind, model, image_processor, labels, options)


def _precision(request: EvaluationRequest, device: torch.device) -> str:
    if request.mixed_precision != AUTO:
        return request.mixed_precision
    return "bf16" if has_fast_bf16(device) else "no"


def _describe(request: EvaluationRequest, scorer: FrameScorer) -> Description:
    size: Any = scorer.image_processor.size
    settings = {
        "image_size": None if request.window is not None else [size.height, size.width],
        "mixed_precision": scorer.options.inference.mixed_precision,
        "tta": request.tta,
        "window": request.window,
        "overlap": None if request.window is None else request.overlap,
        "frame_size": request.frame_size,
        "max_frames": request.max_frames,
        "device": str(next(scorer.model.parameters()).device.type),
        "torch": torch.__version__,
        "transformers": require("transformers", "training").__version__,
    }
    # the folder's name, not where it lies on this machine
    name = Path(request.model).name if Path(request.model).exists() else request.model
    data = request.dataset if request.dataset == ARCADE else Path(request.data).name
    return Description(request.task, name, data, request.split, settings)
