"""Pre-train VasoMIM on angiograms.

    python training/pretrain.py CONFIG.yaml [--key value ...] [--model.key value ...]
    torchrun --nproc_per_node 8 training/pretrain.py CONFIG.yaml [--key value ...]

Without an accelerator, two processes are started the same way: torchrun --nproc_per_node 2 ...
Not with `accelerate launch --cpu --num_processes 2`: that starts a single process, without a word. The first line of the
log names the processes that train together.
Frames are decoded and filtered once, into a cache. With `--streaming true` they are read from Parquet in training instead,
from a folder or from `--data hf://datasets/OWNER/NAME`, and nothing is written but the run.
A stopped run ends with exit code 130. It goes on with the same command and `--resume auto`; the losses are those of a run
that was not stopped.
The result is OUTPUT_DIR/final, for `AutoModel.from_pretrained`.
"""

import sys

from vasomim_hf.engine.pretraining.vasomim import pretrain
from vasomim_hf.engine.run_config import PretrainRun
from vasomim_hf.engine.script import run_script


def main(arguments: list[str]) -> int:
    """Pre-train as the arguments say; the exit code."""
    return run_script(__doc__, PretrainRun, pretrain, "The pre-trained model is in", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
