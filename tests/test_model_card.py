"""The model card says what was given, and nothing else."""

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from vasomim_hf import (
    UNeXtConfig,
    UNeXtForVesselSegmentation,
    VasoMIMForImageClassification,
    VasoMIMForObjectDetection,
    VasoMIMForPreTraining,
    VasoMIMForSemanticSegmentation,
    VasoMIMModel,
)
from vasomim_hf.evaluation.comparison import Description, build_results
from vasomim_hf.evaluation.segmentation_scores import SegmentationScores
from vasomim_hf.evaluation.statistics import Resampling
from vasomim_hf.model_card import Result, TrainingRecord, model_card, results_for_card
from vasomim_hf.presets import load_preset


RESULT = {
    "task": "vessel segmentation",
    "dataset": "ARCADE",
    "metric": "Dice",
    "value": 0.8125,
    "method": "mean over frames at 512 pixels | one seed",
    "split": "test",
}
TRAINING = {
    "data": [{"name": "XA-170K", "num_images": 171478}, {"name": "Our own", "licence": "CC0-1.0"}],
    "recipe": {"epochs": 800, "mask ratio": 0.5},
    "command": "python training/pretrain.py run.yaml",
}


@pytest.fixture(scope="module")
def encoder() -> VasoMIMModel:
    return VasoMIMModel(load_preset("tiny", num_hidden_layers=1, image_size=32))


def test_front_matter_is_what_the_hub_reads(encoder):
    card = ModelCard(model_card(encoder, [RESULT], TRAINING, repo_id="me/vasomim-tiny", base_model="me/encoder"))
    data = card.data
    assert (data.license, data.library_name) == ("apache-2.0", "transformers")
    assert data.pipeline_tag == "image-feature-extraction"
    assert data.datasets == ["waha2000huang/XA-170K"]
    assert (data.base_model, data.get("base_model_relation")) == ("me/encoder", "finetune")
    assert (data.model_name, data.metrics) == ("vasomim-tiny", ["dice"])
    result = data.eval_results[0]
    assert (result.task_type, result.dataset_name, result.dataset_split) == ("vessel-segmentation", "ARCADE", "test")
    assert (result.metric_name, result.metric_value) == ("Dice", 0.8125)


def test_card_of_an_unknown_training_states_nothing(encoder):
    text = model_card(encoder)
    data = ModelCard(text).data
    assert data.datasets is None and data.eval_results is None and data.base_model is None
    assert "## Training\n\nNot stated." in text
    assert "## Results\n\nNone measured." in text
    assert "XA-170K" not in text and "ARCADE" not in text


def test_card_repeats_what_is_known_of_the_training_with_the_licence_of_the_data(encoder):
    text = model_card(encoder, training=TrainingRecord(**TRAINING, hardware="one H100, 3 h", note="A first run."))
    assert "| XA-170K | 171478 | CC BY-NC 4.0 (second-hand" in text
    assert "| Our own |  | CC0-1.0 |  |" in text
    assert "| epochs | 800 |" in text and "python training/pretrain.py run.yaml" in text
    assert "one H100, 3 h" in text and "A first run." in text
    assert "XA-170K may not be used commercially" in text


def test_card_gives_a_result_with_how_it_was_obtained(encoder):
    text = model_card(encoder, [Result(**RESULT, interval="0.80 to 0.82")])
    row = "| vessel segmentation | ARCADE (test) | Dice | 0.8125 | 0.80 to 0.82 | mean over frames at 512 pixels \\| one seed |"
    assert row in text


def evaluation(patients: list[str | None], data: str = "arcade", max_frames: int | None = None):
    """Dice of two frames, 1 and 2 / 3; a third has nothing to find and nothing found."""
    scores = SegmentationScores()
    targets = np.zeros((3, 4, 4), dtype=np.uint8)
    targets[0, :2], targets[1, :2] = 1, 1
    found = targets.copy()
    found[1, 1] = 0
    scores.update(found, targets, ["a", "b", "c"], patients)
    settings = {"image_size": [256, 256], "mixed_precision": "bf16", "window": None}
    settings |= {"max_frames": max_frames}
    description = Description("vessel", "my-model", data, "val", settings)
    return build_results(scores, description, Resampling(level=0.9, num_resamples=20))


def test_card_takes_the_numbers_of_an_evaluation(encoder):
    results = evaluation([None, None, None])
    shown = results_for_card(results, ["pooled_dice", "dice"])
    assert [(result.metric, result.value) for result in shown] == [("pooled_dice", 0.8571), ("dice", 0.8333)]
    dice = shown[1]
    assert (dice.task, dice.dataset, dice.split, dice.dataset_id) == ("vessel segmentation", "arcade", "val", None)
    assert "2 frames" in dice.method and "image_size [256, 256], mixed_precision bf16" in dice.method
    assert "window" not in dice.method and "resampling" not in dice.method
    summary = results.summary["dice"]
    assert dice.interval == f"90 % interval {summary.low:.4f} to {summary.high:.4f}, by frame"
    card = ModelCard(model_card(encoder, shown))
    assert [entry.metric_value for entry in card.data.eval_results] == [0.8571, 0.8333]
    assert f"| arcade (val) | dice | 0.8333 | {dice.interval} |" in card.content


def test_intervals_of_a_card_say_whether_they_are_by_patient():
    result = results_for_card(evaluation(["p", None, "q"], data="me/frames@main"), ["pooled_dice"])[0]
    assert result.interval is not None and result.interval.endswith("by patient")
    assert result.dataset_id == "me/frames"


@pytest.mark.parametrize("max_frames, split", [(None, "val"), (9, "val"), (3, "val, first 3 frames only")])
def test_results_of_the_first_frames_are_not_those_of_the_split(encoder, max_frames, split):
    shown = results_for_card(evaluation([None, None, None], max_frames=max_frames), ["dice"])
    card = ModelCard(model_card(encoder, shown))
    assert card.data.eval_results[0].dataset_split == split and f"| arcade ({split}) | dice |" in card.content


def test_a_model_without_a_repository_is_called_by_its_class(encoder):
    for keys, name in (({}, "VasoMIMModel"), ({"repo_id": "me/vessels/"}, "vessels"), ({"repo_id": "runs/a"}, "a")):
        card = ModelCard(model_card(encoder, [RESULT], **keys))
        assert card.data.model_name == name and f"\n# {name}\n" in card.content
        assert ("path-or-repo-id" in card.data.to_yaml()) is False


def test_card_of_a_segmentation_says_how_many_channels_it_has():
    names = {0: "background", 1: "vessel"}
    config = load_preset("tiny", num_hidden_layers=1, id2label=names, label2id={v: k for k, v in names.items()})
    models = {
        "2 channels, one per class": VasoMIMForSemanticSegmentation(config),
        "one channel, positive for vessels": UNeXtForVesselSegmentation(UNeXtConfig()),
    }
    frame = torch.zeros(1, 3, 224, 224)
    for text, model in models.items():
        with torch.no_grad():
            logits = model.eval()(frame).logits
        assert text in model_card(model) and "or a single one" not in model_card(model)
        assert logits.shape == (1, 2 if text.startswith("2") else 1, 224, 224)


def test_a_measure_that_an_evaluation_does_not_have_is_refused():
    results = evaluation([None, None, None])
    with pytest.raises(ValueError, match="have no 'auroc'."):
        results_for_card(results, ["auroc"])
    empty = SegmentationScores()
    empty.update(np.zeros((1, 4, 4), dtype=np.uint8), np.zeros((1, 4, 4), dtype=np.uint8), ["a"])
    with pytest.raises(ValueError, match="'dice' is undefined"):
        results_for_card(build_results(empty, Description("vessel", "m", "arcade", "val")), ["dice"])


def test_card_has_its_limits_licence_and_citation(encoder):
    text = model_card(encoder, license="cc-by-nc-4.0")
    assert "not a medical device" in text
    assert "Weights: `cc-by-nc-4.0`. Code in this repository: Apache-2.0." in text
    assert "arXiv:2602.11536" in text and "may not be used commercially" not in text


@pytest.mark.parametrize(
    "model_class, task, auto_class",
    [
        (VasoMIMForPreTraining, "image-feature-extraction", "AutoModel.from_pretrained"),
        (VasoMIMForSemanticSegmentation, "image-segmentation", "AutoModelForSemanticSegmentation.from_pretrained"),
        (VasoMIMForObjectDetection, "object-detection", "AutoModelForObjectDetection.from_pretrained"),
        (VasoMIMForImageClassification, "image-classification", "AutoModelForImageClassification.from_pretrained"),
        (UNeXtForVesselSegmentation, "image-segmentation", "AutoModelForSemanticSegmentation.from_pretrained"),
    ],
)
def test_card_names_the_task_and_the_class_that_loads_the_model(model_class, task, auto_class):
    config = UNeXtConfig() if model_class is UNeXtForVesselSegmentation else load_preset("tiny", num_hidden_layers=1)
    text = model_card(model_class(config))
    assert "pip install vasomim-hf" not in text and "`pip install -e .` in a checkout" in text
    assert ModelCard(text).data.pipeline_tag == task
    assert auto_class in text and "trust_remote_code=True" in text and "import vasomim_hf" in text


def test_card_of_a_model_with_a_head_names_its_labels():
    names = {"id2label": {0: "left", 1: "right"}, "label2id": {"left": 0, "right": 1}}
    text = model_card(VasoMIMForImageClassification(load_preset("tiny", num_hidden_layers=1, **names)))
    assert "| labels | left, right |" in text and "one logit per label" in text


def test_card_of_a_pretraining_model_states_its_objective():
    text = model_card(VasoMIMForPreTraining(load_preset("tiny", num_hidden_layers=1, mask_ratio=0.6)))
    assert "| `mask_ratio` | 0.6 |" in text and "| `guidance_ratio_end` | 0.5 |" in text


@pytest.mark.parametrize(
    "results, training, message",
    [
        ([{**RESULT, "vlaue": 1}], None, "Result has no vlaue."),
        ([{"task": "x"}], None, "Result is incomplete: .*'dataset'"),
        (None, {"epochs": 800}, "TrainingRecord has no epochs"),
        (None, {"data": [{"licence": "MIT"}]}, "TrainingData is incomplete: .*'name'"),
        (None, "800 epochs", "Expected a TrainingRecord .* got a str"),
    ],
)
def test_a_field_that_is_unknown_or_missing_is_named(encoder, results, training, message):
    with pytest.raises(ValueError, match=message):
        model_card(encoder, results, training)
