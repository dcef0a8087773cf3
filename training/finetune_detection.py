"""Fine-tune VasoMIM to find stenoses as boxes.

    python training/finetune_detection.py CONFIG.yaml [--key value ...] [--config.key value ...]

From pre-trained weights with --init FOLDER, from ImageNet's MAE with --init mae, from none with --init scratch.
A stopped run ends with exit code 130. It goes on with the same command and --resume auto; the losses are those of a run
that was not stopped.
The result is OUTPUT_DIR itself, for `AutoModelForObjectDetection.from_pretrained` and `vasomim evaluate`.
"""

import sys

from vasomim_hf.engine.finetuning.run import DetectionRun
from vasomim_hf.engine.finetuning.trainer import finetune
from vasomim_hf.engine.script import run_script


def main(arguments: list[str]) -> int:
    """Fine-tune as the arguments say; the exit code."""
    return run_script(__doc__, DetectionRun, finetune, "The fine-tuned model is in", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
