"""Train the vessel segmentor (UNeXt) on the vesselness of angiograms.

    python training/train_segmentor.py CONFIG.yaml [--key value ...] [--model.key value ...]
    torchrun --nproc_per_node 8 training/train_segmentor.py CONFIG.yaml [--key value ...]

Batch norm and the Dice loss are computed per process: eight processes with a batch of 32 are not equivalent to one with
256. The authors' recipe uses one process.
Without an accelerator, two processes are started the same way: torchrun --nproc_per_node 2 ...
Do not use `accelerate launch --cpu --num_processes 2`, which silently starts a single process. The first line of the log
states the number of processes.
A stopped run exits with code 130. Resume it with the same command and `--resume auto`; the losses are the same as without
the interruption.
The result is OUTPUT_DIR/final, the `segmentor` of a pre-training run.
"""

import sys

from vasomim_hf.engine.pretraining.segmentor_training import train_segmentor
from vasomim_hf.engine.run_config import SegmentorRun
from vasomim_hf.engine.script import run_script


def main(arguments: list[str]) -> int:
    """Run the script and return its exit code."""
    return run_script(__doc__, SegmentorRun, train_segmentor, "The segmentor is in", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
