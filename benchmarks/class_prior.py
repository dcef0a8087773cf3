"""Baselines for segmentation: everything background, and the most frequent class of the training frames at each pixel.

    python benchmarks/class_prior.py ARCADE_FOLDER --task segments [--split val] [--output prior.json]

The prior contains where classes occur and ignores the frame. A pixel is foreground if the combined frequency of the
classes exceeds a threshold, chosen for the best Dice on the training split; its class is the most frequent one.
"""

import argparse
from collections.abc import Iterator

import numpy as np

from vasomim_hf.data.published.arcade import arcade_labels, load_arcade
from vasomim_hf.data.reading.masks import MaskRule, to_label_map
from vasomim_hf.evaluation.comparison import Description, build_results
from vasomim_hf.evaluation.results import EvaluationResults, format_results, write_results
from vasomim_hf.evaluation.segmentation_scores import SegmentationScores


THRESHOLDS = np.linspace(0.01, 0.5, 50)


def masks_of(root: str, task: str, split: str) -> Iterator[tuple[str, np.ndarray]]:
    """Id and class ids (height, width) of each frame."""
    rows = load_arcade(root, task, split)
    for row in rows:
        width, height = row["mask"].size
        yield (
            row["image_id"],
            to_label_map(row["mask"], row["image_id"], (height, width), MaskRule(len(arcade_labels(task)))),
        )


def fit_prior(root: str, task: str) -> np.ndarray:
    """Class ids (height, width) that are predicted for every frame."""
    num_labels = len(arcade_labels(task))
    counts, number = np.zeros((0, 0, 0)), 0
    for _, mask in masks_of(root, task, "train"):
        if not number:
            counts = np.zeros((num_labels, *mask.shape))
        if mask.shape != counts.shape[1:]:
            raise ValueError(f"The prior needs frames of one size, got {mask.shape} after {counts.shape[1:]}.")
        np.add.at(counts, (mask, *np.indices(mask.shape, sparse=True)), 1)
        number += 1
    foreground = counts[1:].sum(axis=0)
    # over the pixels of all training frames
    dice = [
        2 * foreground[chosen].sum() / (number * chosen.sum() + foreground.sum())
        for chosen in (foreground / number > threshold for threshold in THRESHOLDS)
    ]
    chosen = foreground / number > THRESHOLDS[int(np.argmax(dice))]
    return np.where(chosen, counts[1:].argmax(axis=0) + 1, 0)


def score(root: str, task: str, split: str, name: str, prediction: np.ndarray) -> EvaluationResults:
    labels = arcade_labels(task)
    scores = SegmentationScores([labels[number] for number in sorted(labels)])
    for image_id, mask in masks_of(root, task, split):
        scores.update(prediction[None], mask[None], [image_id])
    return build_results(scores, Description(task, name, "arcade", split))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arcade")
    parser.add_argument("--task", choices=("vessel", "segments", "stenosis"), default="segments")
    parser.add_argument("--split", default="val")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    prior = fit_prior(arguments.arcade, arguments.task)
    for name, prediction in (("all background", np.zeros_like(prior)), ("class prior", prior)):
        results = score(arguments.arcade, arguments.task, arguments.split, name, prediction)
        print(format_results(results))
    if arguments.output:
        write_results(results, arguments.output)


if __name__ == "__main__":
    main()
