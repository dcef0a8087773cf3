"""Train the vessel segmentor (UNeXt) on the vesselness of angiograms.

    python training/train_segmentor.py CONFIG.yaml [--key value ...] [--model.key value ...]
    torchrun --nproc_per_node 8 training/train_segmentor.py CONFIG.yaml [--key value ...]

Batch normalisation and the Dice loss look at the frames of one process alone: eight processes with a batch of 32 do not
train as one with 256 does. The authors' recipe is one process.
Without an accelerator, two processes are started the same way: torchrun --nproc_per_node 2 ...
Not with `accelerate launch --cpu --num_processes 2`: that starts a single process, without a word. The first line of the
log names the processes that train together.
A stopped run ends with exit code 130. It goes on with the same command and `--resume auto`; the losses are those of a run
that was not stopped.
The result is OUTPUT_DIR/final, the `segmentor` of a pre-training run.
"""

import sys

from vasomim_hf.engine.pretraining.segmentor import train_segmentor
from vasomim_hf.engine.run_config import SegmentorRun
from vasomim_hf.engine.script import run_script


def main(arguments: list[str]) -> int:
    """Train the segmentor as the arguments say; the exit code."""
    return run_script(__doc__, SegmentorRun, train_segmentor, "The segmentor is in", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
