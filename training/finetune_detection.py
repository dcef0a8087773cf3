"""Fine-tune VasoMIM for object detection, for example of stenoses.

    python training/finetune_detection.py CONFIG.yaml [--key value ...] [--model.key value ...]

Initial weights: --init FOLDER (pre-trained), --init mae (MAE on ImageNet) or --init scratch.
A stopped run exits with code 130. Resume it with the same command and --resume auto; the losses are the same as without
the interruption.
The result is OUTPUT_DIR/final, for `AutoModelForObjectDetection.from_pretrained` and `vasomim evaluate`.
"""

import sys

from vasomim_hf.engine.finetuning.run import DetectionRun
from vasomim_hf.engine.finetuning.trainer import finetune
from vasomim_hf.engine.script import run_script


def main(arguments: list[str]) -> int:
    """Run the script and return its exit code."""
    return run_script(__doc__, DetectionRun, finetune, "The fine-tuned model is in", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
