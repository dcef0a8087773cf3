"""The model card: a README.md with front matter, written from the model, its training record and its results.

Only facts that were passed are stated; sections without facts state that.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from huggingface_hub import EvalResult, ModelCardData
from transformers.modeling_utils import PreTrainedModel

from .evaluation.results import EvaluationResults, SummaryValue, format_interval


PAPER = "https://arxiv.org/abs/2602.11536"
# model id in the example code if none is given
_PLACEHOLDER = "path-or-repo-id"

# known data sets by lower-case name: Hub id and licence
_KNOWN_DATA = {
    "xa-170k": ("waha2000huang/XA-170K", "CC BY-NC 4.0 (second-hand: reported by others, not read at the source)"),
    "arcade": (None, "CC0 1.0 (second-hand: reported by others, not read at the source)"),
    "cadica": (None, "CC BY 4.0 (second-hand: reported by others, not read at the source)"),
    "coronarydominance": ("BearSubj13/CoronaryDominance", "CC0 1.0 (its card; older revisions say MIT)"),
}

# by class-name suffix after "For": Hub task, Auto class, description
_MODEL_KINDS = {
    "": ("image-feature-extraction", "AutoModel", "the encoder: features of X-ray angiograms"),
    "PreTraining": (
        "image-feature-extraction",
        "AutoModel",
        "the pre-training model: encoder, decoder and vessel segmentor",
    ),
    "SemanticSegmentation": (
        "image-segmentation",
        "AutoModelForSemanticSegmentation",
        "a segmentation model on the encoder: one class per pixel",
    ),
    "ObjectDetection": (
        "object-detection",
        "AutoModelForObjectDetection",
        "a detector on the encoder: boxes with classes",
    ),
    "ImageClassification": (
        "image-classification",
        "AutoModelForImageClassification",
        "a classifier on the encoder: labels for whole frames",
    ),
    "VesselSegmentation": (
        "image-segmentation",
        "AutoModelForSemanticSegmentation",
        "UNeXt, the small vessel segmentor used in pre-training VasoMIM",
    ),
}

# description of the example's output, by Hub task
_MEANINGS = {
    "image-feature-extraction": "`output.last_hidden_state` has one vector for the frame (first) and one per patch.",
    "image-segmentation": "`output.logits` has {channels}, at the size of the input.",
    "object-detection": "`output.logits` has a score per location and class, `output.pred_boxes` one box per location; "
    "`image_processor.post_process_object_detection(output, target_sizes=[(height, width)])` returns boxes in pixels.",
    "image-classification": "`output.logits` has one logit per label in `model.config.id2label`.",
}

_CITATION = """```bibtex
@article{vasomim2026,
  title   = {Vascular Anatomy-aware Self-supervised Pre-training for X-ray Angiogram Analysis},
  journal = {arXiv preprint arXiv:2602.11536},
  year    = {2026}
}
```"""

_USE = """With the package (`pip install -e .` in a checkout of it), which registers the model with the Auto classes:

```python
import vasomim_hf
from PIL import Image
from transformers import AutoImageProcessor, {auto_class}

image_processor = AutoImageProcessor.from_pretrained("{repo_id}")
model = {auto_class}.from_pretrained("{repo_id}")
output = model(**image_processor(Image.open("frame.png"), return_tensors="pt"))
```

Without the package, with the code in this repository (read it first):

```python
from PIL import Image
from transformers import AutoImageProcessor, {auto_class}

image_processor = AutoImageProcessor.from_pretrained("{repo_id}", trust_remote_code=True)
model = {auto_class}.from_pretrained("{repo_id}", trust_remote_code=True)
output = model(**image_processor(Image.open("frame.png"), return_tensors="pt"))
```

{meaning}"""

_LIMITS = """- For research only. This is not a medical device: it has not been tested for patient care and must not be used in it.
- Its performance on other scanners, hospitals, patient groups and views than those in its data is unknown.
- The image processor expects single grey frames with dark vessels, as stored; it warns about others."""


@dataclass(kw_only=True)
class TrainingData:
    """A data set used in training.

    Args:
        name (`str`): Name of the data set.
        num_images (`int`, *optional*): Number of frames used.
        licence (`str`, *optional*): Its licence. Defaults to the known licence of the data set, or "not stated".
        hub_id (`str`, *optional*): Its id on the Hub.
        note (`str`, *optional*): Other information, such as which frames were excluded.
    """

    name: str
    num_images: int | None = None
    licence: str | None = None
    hub_id: str | None = None
    note: str | None = None

    def __post_init__(self):
        known_id, known_licence = _KNOWN_DATA.get(self.name.lower(), (None, "not stated"))
        self.hub_id = self.hub_id or known_id
        self.licence = self.licence or known_licence


@dataclass(kw_only=True)
class TrainingRecord:
    """How a model was trained.

    Args:
        data (`list` of [`TrainingData`] or `dict`): Data sets, in order.
        recipe (`dict[str, object]`): Settings by name, such as `{"epochs": 800}`.
        command (`str`, *optional*): Command line of the training run.
        hardware (`str`, *optional*): Hardware and duration.
        note (`str`, *optional*): Other information, such as "Converted from the authors' checkpoint".
    """

    data: Sequence[TrainingData | Mapping[str, object]] = ()
    recipe: Mapping[str, object] = field(default_factory=dict)
    command: str | None = None
    hardware: str | None = None
    note: str | None = None

    def __post_init__(self):
        self.data = [_read(TrainingData, item) for item in self.data]


@dataclass(kw_only=True)
class Result:
    """One result.

    Args:
        task (`str`): Task, such as "vessel segmentation".
        dataset (`str`): Name of the data set.
        metric (`str`): Name of the metric.
        value (`float`): Value, in the unit that `metric` implies.
        method (`str`): How it was obtained: model and training data, image size, averaging, number of seeds. A result
            without this is meaningless.
        interval (`str`, *optional*): Uncertainty, such as "95 % interval 0.79 to 0.81, by patient".
        split (`str`, *optional*): Split, such as "test".
        dataset_id (`str`, *optional*): Id of the data set on the Hub.
    """

    task: str
    dataset: str
    metric: str
    value: float
    method: str
    interval: str | None = None
    split: str | None = None
    dataset_id: str | None = None

    def to_eval_result(self) -> EvalResult:
        """Convert to an entry of the Hub's `model-index`."""
        return EvalResult(
            task_type=_slug(self.task),
            task_name=self.task,
            dataset_type=self.dataset_id or _slug(self.dataset),
            dataset_name=self.dataset,
            dataset_split=self.split,
            metric_type=_slug(self.metric),
            metric_name=self.metric,
            metric_value=self.value,
        )


def results_for_card(results: EvaluationResults, measures: Sequence[str]) -> list[Result]:
    """Convert results of an evaluation to results for a model card.

    Args:
        results (`EvaluationResults`): From `read_results`, for a file written by `vasomim evaluate`.
        measures (sequence of `str`): Names of the metrics, such as `["dice", "cl_dice"]`.

    Returns:
        `list` of [`Result`]: One per metric, rounded to four digits, with its interval, and the evaluation options as
        the method. If only the first frames were scored (`max_frames`), the split states that, also in the front matter.

    Raises:
        ValueError: If a metric is unknown or undefined in the results.

    Example:
        >>> dice = SummaryValue(value=0.75, low=0.7, high=0.8, n=200, undefined=0)
        >>> settings = {"image_size": [256, 256], "tta": "none", "resampling": {"level": 0.95}}
        >>> results = EvaluationResults("segmentation", "vessel", "my-model", "arcade", "val", [], [], {"dice": dice}, settings)
        >>> result, = results_for_card(results, ["dice"])
        >>> result.task, result.value, result.interval
        ('vessel segmentation', 0.75, '95 % interval 0.7000 to 0.8000, by frame')
    """
    return [_result(results, name) for name in measures]


def _result(results: EvaluationResults, measure: str) -> Result:
    if measure not in results.summary:
        raise ValueError(f"The results have no {measure!r}. Available: {', '.join(results.summary)}.")
    number = results.summary[measure]
    if math.isnan(number.value):
        raise ValueError(f"{measure!r} is undefined in the results. Remove it from the list.")
    return Result(
        task=f"{results.task.replace('_', ' ')} {results.kind}",
        dataset=results.data,
        metric=measure,
        value=round(number.value, 4),
        method=_method(results, number),
        interval=_interval(results, number),
        split=_split(results),
        # only Hub ids, without a revision
        dataset_id=results.data.partition("@")[0] if "/" in results.data else None,
    )


def _split(results: EvaluationResults) -> str:
    """Name of the split; states whether only its first frames were scored."""
    most = results.settings.get("max_frames")
    is_part = most is not None and len(results.rows) >= most
    return f"{results.split}, first {len(results.rows)} frames only" if is_part else results.split


def _method(results: EvaluationResults, number: SummaryValue) -> str:
    frames = f"{number.n} frames" + (f", {number.undefined} more with undefined value" if number.undefined else "")
    shown = {name: value for name, value in results.settings.items() if value is not None and name != "resampling"}
    options = ", ".join(f"{name} {value}" for name, value in shown.items())
    return f"`vasomim evaluate` {results.version}, metrics as defined in docs/metrics.md; {frames}; {options or 'no options'}"


def _interval(results: EvaluationResults, number: SummaryValue) -> str | None:
    level = results.settings.get("resampling", {}).get("level")
    if level is None or math.isnan(number.low) or math.isnan(number.high):
        return None
    unit = "patient" if any(row.patient_id is not None for row in results.rows) else "frame"
    return f"{level * 100:g} % interval {format_interval(number.low, number.high)}, by {unit}"


def model_card(
    model: PreTrainedModel,
    results: Sequence[Result | Mapping[str, object]] | None = None,
    training: TrainingRecord | Mapping[str, object] | None = None,
    repo_id: str = _PLACEHOLDER,
    license: str = "apache-2.0",
    base_model: str | None = None,
) -> str:
    """Write the README.md of a model.

    Args:
        model (`PreTrainedModel`):
            Model to describe; only its class and configuration are used.
        results (`list` of [`Result`] or `dict`, *optional*):
            Evaluation results.
        training ([`TrainingRecord`] or `dict`, *optional*):
            Training data and settings.
        repo_id (`str`, defaults to `"path-or-repo-id"`):
            Hub id or path used in the example; its last part is the title. By default the title is the class name.
        license (`str`, defaults to `"apache-2.0"`):
            Licence of the weights, as a Hub identifier. The code is Apache-2.0.
        base_model (`str`, *optional*):
            Hub id of the encoder that this model was fine-tuned from.

    Returns:
        `str`: Markdown with front matter.

    Raises:
        ValueError: If a field of a result or of the training record is unknown or missing.

    Example:
        >>> from vasomim_hf import UNeXtConfig, UNeXtForVesselSegmentation
        >>> print(model_card(UNeXtForVesselSegmentation(UNeXtConfig()))[:24])
        ---
        library_name: transf
    """
    measured = [_read(Result, result) for result in results or ()]
    record = _read(TrainingRecord, training or {})
    front_matter = _front_matter(model, measured, record, license=license, base_model=base_model, repo_id=repo_id)
    sections = {
        "Use": _use(model, repo_id),
        "Model": _model(model),
        "Training": _training(record),
        "Results": _results(measured),
        "Limits": _LIMITS,
        "Licence": _licence(record, license),
        "Citation": f"The method, by its authors ({PAPER}):\n\n{_CITATION}",
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{front_matter}\n---\n\n# {_name(model, repo_id)}\n\n{_introduction(model)}\n\n{body}\n"


def _name(model: PreTrainedModel, repo_id: str) -> str:
    """Title of the card: the last part of the id, otherwise the class name."""
    return type(model).__name__ if repo_id == _PLACEHOLDER else repo_id.rstrip("/").split("/")[-1]


def _front_matter(
    model: PreTrainedModel,
    results: list[Result],
    training: TrainingRecord,
    *,
    license: str,
    base_model: str | None,
    repo_id: str,
) -> str:
    task, _, _ = _kind(model)
    extra: dict[str, Any] = {"base_model_relation": "finetune"} if base_model else {}
    data = ModelCardData(
        library_name="transformers",
        license=license,
        pipeline_tag=task,
        tags=["vasomim", "medical-imaging", "x-ray-angiography", "coronary-angiography", "arxiv:2602.11536"],
        datasets=[data.hub_id for data in _data(training) if data.hub_id] or None,
        base_model=base_model,
        model_name=_name(model, repo_id) if results else None,
        eval_results=[result.to_eval_result() for result in results] or None,
        metrics=list(dict.fromkeys(_slug(result.metric) for result in results)) or None,
        **extra,
    )
    return data.to_yaml()


def _kind(model: PreTrainedModel) -> tuple[str, str, str]:
    _, _, purpose = type(model).__name__.partition("For")
    return _MODEL_KINDS.get(purpose, _MODEL_KINDS[""])


def _introduction(model: PreTrainedModel) -> str:
    _, _, description = _kind(model)
    return (
        f"This is {description}. VasoMIM is masked image modelling for X-ray angiograms: patches with vessels are "
        f"masked more often, and reconstructions must preserve the vessels ([paper]({PAPER})). Independent "
        "implementation for the Hugging Face stack, not by the authors of the paper."
    )


def _use(model: PreTrainedModel, repo_id: str) -> str:
    task, auto_class, _ = _kind(model)
    meaning = _MEANINGS[task]
    if task == "image-segmentation":
        meaning = meaning.format(channels=_channels(model))
    if type(model).__name__.endswith("ForPreTraining"):
        meaning += " `AutoModelForPreTraining` also loads the decoder and the segmentor, to continue pre-training."
    return _USE.format(auto_class=auto_class, repo_id=repo_id, meaning=meaning)


def _channels(model: PreTrainedModel) -> str:
    # the segmentor has one channel for two classes
    count = getattr(model.config, "num_logits", model.config.num_labels)
    if count == 1:
        return "one channel, positive for vessels"
    return f"{count} channels, one per class in the order of `model.config.id2label`"


def _model(model: PreTrainedModel) -> str:
    config = model.config
    rows = {"class": type(model).__name__, "parameters": f"{model.num_parameters() / 1e6:.2f} M"}
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"):
        if hasattr(config, key):
            rows[key] = getattr(config, key)
    if type(model).__name__.endswith("ForPreTraining"):
        for key in ("mask_ratio", "guidance_ratio_start", "guidance_ratio_end", "filter_weight"):
            rows[key] = getattr(config, key)
        rows["consistency_loss_weight"] = config.consistency_loss_weight
        rows["norm_pix_loss"] = config.norm_pix_loss
    if (
        _kind(model)[0] in ("image-segmentation", "object-detection", "image-classification")
        and len(config.id2label) > 1
    ):
        rows["labels"] = ", ".join(config.id2label.values())
    return _table(("", ""), [(f"`{key}`" if "_" in key else key, value) for key, value in rows.items()])


def _training(training: TrainingRecord) -> str:
    parts = [training.note] if training.note else []
    if training.data:
        header = ("data", "frames", "licence", "note")
        rows = [(data.name, data.num_images, data.licence, data.note) for data in _data(training)]
        parts.append(_table(header, rows))
    if training.recipe:
        parts.append(_table(("setting", "value"), training.recipe.items()))
    if training.command:
        parts.append(f"```bash\n{training.command}\n```")
    if training.hardware:
        parts.append(f"Hardware: {training.hardware}.")
    return "\n\n".join(parts) or "Not stated."


def _results(results: list[Result]) -> str:
    if not results:
        return "None measured."
    header = ("task", "data", "metric", "value", "uncertainty", "how obtained")
    rows = [
        (
            result.task,
            f"{result.dataset} ({result.split})" if result.split else result.dataset,
            result.metric,
            f"{result.value:g}",
            result.interval or "not estimated",
            result.method,
        )
        for result in results
    ]
    return _table(header, rows)


def _licence(training: TrainingRecord, license: str) -> str:
    text = f"Weights: `{license}`. Code in this repository: Apache-2.0."
    restricted = [
        data.name for data in _data(training) if "NC" in (data.licence or "").upper().replace("-", " ").split()
    ]
    if restricted:
        text += (
            f" The training data {', '.join(restricted)} may not be used commercially. Whether this applies to the "
            "weights is not settled: ask the owners of the data before commercial use."
        )
    return text


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def _slug(text: str) -> str:
    return "-".join(text.lower().split())


Record = TypeVar("Record", TrainingData, TrainingRecord, Result)


def _data(training: TrainingRecord) -> list[TrainingData]:
    return [_read(TrainingData, item) for item in training.data]


def _read(record: type[Record], value: Record | Mapping[str, Any]) -> Record:
    if isinstance(value, record):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"Expected a {record.__name__} or a dict, got a {type(value).__name__}.")
    known = [item.name for item in fields(record)]
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ValueError(f"{record.__name__} has no {', '.join(unknown)}. Fields: {', '.join(known)}.")
    try:
        return record(**value)
    except TypeError as error:
        raise ValueError(f"{record.__name__} is incomplete: {error}. Fields: {', '.join(known)}.") from error
