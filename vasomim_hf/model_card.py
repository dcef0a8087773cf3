"""The model card: README.md with its front matter, from the model and from what is known of its training and results.

Nothing is filled in that was not given: a section without facts says so.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from huggingface_hub import EvalResult, ModelCardData
from transformers.modeling_utils import PreTrainedModel

from .evaluation.results import EvaluationResults, SummaryValue, format_interval


PAPER = "https://arxiv.org/abs/2602.11536"
# In the example of a card that was not told where the model is
_PLACEHOLDER = "path-or-repo-id"

# licences of data sets by lower-case name: Hub id, and what is known
_KNOWN_DATA = {
    "xa-170k": ("waha2000huang/XA-170K", "CC BY-NC 4.0 (second-hand: reported by others, not read at the source)"),
    "arcade": (None, "CC0 1.0 (second-hand: reported by others, not read at the source)"),
    "cadica": (None, "CC BY 4.0 (second-hand: reported by others, not read at the source)"),
    "coronarydominance": ("BearSubj13/CoronaryDominance", "CC0 1.0 (its card; older revisions say MIT)"),
}

# what follows "For" in the class name: the Hub's task, the Auto class, and what the model is
_KINDS = {
    "": ("image-feature-extraction", "AutoModel", "the encoder: features of X-ray angiograms"),
    "PreTraining": (
        "image-feature-extraction",
        "AutoModel",
        "the pre-training model: the encoder, and the decoder and vessel segmentor it was trained with",
    ),
    "SemanticSegmentation": (
        "image-segmentation",
        "AutoModelForSemanticSegmentation",
        "a segmentation model on the encoder: a class for each pixel",
    ),
    "ObjectDetection": (
        "object-detection",
        "AutoModelForObjectDetection",
        "a detector on the encoder: boxes with their classes",
    ),
    "ImageClassification": (
        "image-classification",
        "AutoModelForImageClassification",
        "a classifier on the encoder: labels of whole frames",
    ),
    "VesselSegmentation": (
        "image-segmentation",
        "AutoModelForSemanticSegmentation",
        "UNeXt, the small vessel segmentor that guides the pre-training of VasoMIM",
    ),
}

# what the example's output holds, by the Hub's task
_MEANINGS = {
    "image-feature-extraction": "`output.last_hidden_state` holds one vector for the frame (first) and one for each patch.",
    "image-segmentation": "`output.logits` has {channels}, at the size of the input.",
    "object-detection": "`output.logits` has a score for each place and class, `output.pred_boxes` the box of each place; "
    "`image_processor.post_process_object_detection(output, target_sizes=[(height, width)])` gives boxes in pixels.",
    "image-classification": "`output.logits` has one number for each label of `model.config.id2label`.",
}

_CITATION = """```bibtex
@article{vasomim2026,
  title   = {Vascular Anatomy-aware Self-supervised Pre-training for X-ray Angiogram Analysis},
  journal = {arXiv preprint arXiv:2602.11536},
  year    = {2026}
}
```"""

_USE = """With the package (`pip install -e .` in a checkout of it), whose import makes the Auto classes know the model:

```python
import vasomim_hf
from PIL import Image
from transformers import AutoImageProcessor, {auto_class}

image_processor = AutoImageProcessor.from_pretrained("{repo_id}")
model = {auto_class}.from_pretrained("{repo_id}")
output = model(**image_processor(Image.open("frame.png"), return_tensors="pt"))
```

Without the package, by the code in this repository; read it first:

```python
from PIL import Image
from transformers import AutoImageProcessor, {auto_class}

image_processor = AutoImageProcessor.from_pretrained("{repo_id}", trust_remote_code=True)
model = {auto_class}.from_pretrained("{repo_id}", trust_remote_code=True)
output = model(**image_processor(Image.open("frame.png"), return_tensors="pt"))
```

{meaning}"""

_LIMITS = """- For research. This is not a medical device; it was not tested for, and must not be used in, the care of patients.
- It was not shown how well it works on other scanners, hospitals, patient groups and views than those of its data.
- The image processor expects single grey frames with dark vessels, as they are stored; it warns about others."""


@dataclass(kw_only=True)
class TrainingData:
    """A data set that a model was trained on.

    Args:
        name (`str`): Name of the data set.
        num_images (`int`, *optional*): Number of frames used.
        licence (`str`, *optional*): Its licence. Left out, what is known of the data set of that name, or "not stated".
        hub_id (`str`, *optional*): Its id on the Hub.
        note (`str`, *optional*): Anything a reader must know, such as which frames were left out.
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
    """What is known of a model's training.

    Args:
        data (`list` of [`TrainingData`] or `dict`): The data sets, in order.
        recipe (`dict[str, object]`): Names and values of the settings, such as `{"epochs": 800}`.
        command (`str`, *optional*): The command of the run.
        hardware (`str`, *optional*): What it ran on, and how long.
        note (`str`, *optional*): Anything else, such as "Converted from the authors' checkpoint".
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
    """One measured number.

    Args:
        task (`str`): Such as "vessel segmentation".
        dataset (`str`): Name of the data set.
        metric (`str`): Name of the metric.
        value (`float`): The number, in the unit that `metric` names.
        method (`str`): How it was obtained: what was trained and on what, what was scored at which size, how it was
            averaged, how many seeds. A number without this is of no use.
        interval (`str`, *optional*): Its uncertainty, such as "95 % interval 0.79 to 0.81, by patient".
        split (`str`, *optional*): Such as "test".
        dataset_id (`str`, *optional*): The data set's id on the Hub.
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
        """The same as the Hub's `model-index` has it."""
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
    """Numbers of an evaluation as a model card shows them.

    Args:
        results (`EvaluationResults`): From `read_results`, of a file that `vasomim evaluate` wrote.
        measures (sequence of `str`): Names of the numbers, such as `["dice", "cl_dice"]`.

    Returns:
        `list` of [`Result`]: One for each measure, rounded to four digits, with its interval, and the options of the
        evaluation as the method. Where only the first frames were scored (`max_frames`), the split says so, also in the
        front matter that the Hub reads.

    Raises:
        ValueError: If a measure is unknown or undefined in the results.

    Example:
        >>> dice = SummaryValue(value=0.75, low=0.7, high=0.8, n=200, undefined=0)
        >>> settings = {"image_size": [256, 256], "tta": "none", "resampling": {"level": 0.95}}
        >>> results = EvaluationResults("segmentation", "vessel", "my-model", "arcade", "val", [], [], {"dice": dice}, settings)
        >>> result, = results_for_card(results, ["dice"])
        >>> result.task, result.value, result.interval
        ('vessel segmentation', 0.75, '95 % interval 0.7000 to 0.8000, by frame')
    """
    return [_measured(results, name) for name in measures]


def _measured(results: EvaluationResults, measure: str) -> Result:
    if measure not in results.summary:
        raise ValueError(f"The results have no {measure!r}. They have {', '.join(results.summary)}.")
    number = results.summary[measure]
    if math.isnan(number.value):
        raise ValueError(f"{measure!r} is undefined in the results, so that there is nothing to show. Leave it out.")
    return Result(
        task=f"{results.task.replace('_', ' ')} {results.kind}",
        dataset=results.data,
        metric=measure,
        value=round(number.value, 4),
        method=_method(results, number),
        interval=_interval(results, number),
        split=_split(results),
        # as the Hub names data sets; an address may end in a revision
        dataset_id=results.data.partition("@")[0] if "/" in results.data else None,
    )


def _split(results: EvaluationResults) -> str:
    """Of a trial on its first frames, what says so: a number of a part is not one of the split."""
    most = results.settings.get("max_frames")
    is_part = most is not None and len(results.rows) >= most
    return f"{results.split}, first {len(results.rows)} frames only" if is_part else results.split


def _method(results: EvaluationResults, number: SummaryValue) -> str:
    frames = f"{number.n} frames" + (f", {number.undefined} more where it is undefined" if number.undefined else "")
    shown = {name: value for name, value in results.settings.items() if value is not None and name != "resampling"}
    options = ", ".join(f"{name} {value}" for name, value in shown.items())
    return f"`vasomim evaluate` {results.version}, as docs/metrics.md defines it; {frames}; {options or 'no options'}"


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
    """Text of a model's README.md.

    Args:
        model (`PreTrainedModel`):
            The model to describe; its class and configuration are read, not its weights.
        results (`list` of [`Result`] or `dict`, *optional*):
            What was measured.
        training ([`TrainingRecord`] or `dict`, *optional*):
            What it was trained on, and how.
        repo_id (`str`, defaults to `"path-or-repo-id"`):
            Hub id or path for the example; its last part is the name of the model. Without it, the class names the model.
        license (`str`, defaults to `"apache-2.0"`):
            Licence of the weights, as an identifier of the Hub. The code is Apache-2.0.
        base_model (`str`, *optional*):
            Hub id of the encoder that this model was fine-tuned from.

    Returns:
        `str`: Markdown, with the front matter that the Hub reads.

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
    """What the card calls the model: the name of its class where no other is known."""
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
    return _KINDS.get(purpose, _KINDS[""])


def _introduction(model: PreTrainedModel) -> str:
    _, _, description = _kind(model)
    return (
        f"This is {description}. VasoMIM is masked image modelling for X-ray angiograms, in which patches with vessels "
        f"are hidden more often and reconstructions must keep the vessels ([paper]({PAPER})). "
        "An independent implementation for the Hugging Face stack; not by the paper's authors."
    )


def _use(model: PreTrainedModel, repo_id: str) -> str:
    task, auto_class, _ = _kind(model)
    meaning = _MEANINGS[task]
    if task == "image-segmentation":
        meaning = meaning.format(channels=_channels(model))
    if type(model).__name__.endswith("ForPreTraining"):
        meaning += " `AutoModelForPreTraining` loads the decoder and the segmentor too, to go on with pre-training."
    return _USE.format(auto_class=auto_class, repo_id=repo_id, meaning=meaning)


def _channels(model: PreTrainedModel) -> str:
    # the segmentor tells two classes apart with one
    count = getattr(model.config, "num_logits", model.config.num_labels)
    if count == 1:
        return "one channel, which is above 0 where there is vessel"
    return f"{count} channels, one for each class in the order of `model.config.id2label`"


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
        parts.append(f"Ran on: {training.hardware}.")
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
            f" The training data {', '.join(restricted)} may not be used commercially. Whether that reaches the weights "
            "is not settled: ask the owners of the data before a commercial use."
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
        raise ValueError(f"Expected a {record.__name__} or a dictionary, got a {type(value).__name__}.")
    known = [item.name for item in fields(record)]
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ValueError(f"{record.__name__} has no {', '.join(unknown)}. It has {', '.join(known)}.")
    try:
        return record(**value)
    except TypeError as error:
        raise ValueError(f"{record.__name__} is incomplete: {error}. It has {', '.join(known)}.") from error
