"""Fine-tune VasoMIM to tell labels of whole frames, or fit a linear probe of its encoder.

    python training/finetune_classification.py CONFIG.yaml [--key value ...] [--config.key value ...]

From pre-trained weights with --init FOLDER, from ImageNet's MAE with --init mae, from none with --init scratch.
A stopped run ends with exit code 130. It goes on with the same command and --resume auto; the losses are those of a run
that was not stopped.
The result is OUTPUT_DIR itself, for `AutoModelForImageClassification.from_pretrained` and `vasomim evaluate`.
"""

import sys

from vasomim_hf.engine.finetuning.linear_probe import finetune_classification
from vasomim_hf.engine.finetuning.run import ClassificationRun
from vasomim_hf.engine.script import run_script


def main(arguments: list[str]) -> int:
    """Fine-tune as the arguments say; the exit code."""
    return run_script(__doc__, ClassificationRun, finetune_classification, "The fine-tuned model is in", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
