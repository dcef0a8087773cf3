"""Pre-train VasoMIM on angiograms.

    python training/pretrain.py CONFIG.yaml [--key value ...] [--model.key value ...]
    torchrun --nproc_per_node 8 training/pretrain.py CONFIG.yaml [--key value ...]

Without an accelerator, two processes are started the same way: torchrun --nproc_per_node 2 ...
Do not use `accelerate launch --cpu --num_processes 2`, which silently starts a single process. The first line of the log
states the number of processes.
Frames are decoded and filtered once, into a cache. With `--streaming true` they are read from Parquet during training
instead, from a folder or from `--data hf://datasets/OWNER/NAME`, without a cache.
A stopped run exits with code 130. Resume it with the same command and `--resume auto`; the losses are the same as without
the interruption.
The result is OUTPUT_DIR/final, for `AutoModel.from_pretrained`.
"""

import sys

from vasomim_hf.engine.pretraining.vasomim_training import pretrain
from vasomim_hf.engine.run_config import PretrainRun
from vasomim_hf.engine.script import run_script


def main(arguments: list[str]) -> int:
    """Run the script and return its exit code."""
    return run_script(__doc__, PretrainRun, pretrain, "The pre-trained model is in", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
