"""Train the vessel segmentor (UNeXt) on the vesselness of angiograms.

    python training/train_segmentor.py CONFIG.yaml [--key value ...] [--model.key value ...]
    torchrun --nproc_per_node 8 training/train_segmentor.py CONFIG.yaml [--key value ...]

Without an accelerator, two processes are started the same way: torchrun --nproc_per_node 2 ...
A stopped run goes on with the same command and `--resume auto`; the losses are those of a run that was not stopped.
The result is OUTPUT_DIR/final, the `segmentor` of a pre-training run.
"""

import logging
import sys

from transformers.utils.logging import disable_progress_bar

from vasomim_hf.engine.run_config import RunConfigError, SegmentorRun, describe_keys, load_run
from vasomim_hf.engine.segmentor_training import train_segmentor
from vasomim_hf.engine.training_loop import TrainingDivergedError


def main(arguments: list[str]) -> int:
    """Read the run file, run it, say where the result is."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nKeys of the run file, with their defaults:\n{describe_keys(SegmentorRun)}")
        return 0 if arguments else 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    disable_progress_bar()
    try:
        result = train_segmentor(load_run(SegmentorRun, arguments[0], arguments[1:]))
    except (RunConfigError, TrainingDivergedError, FileNotFoundError, NotADirectoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not result.is_main_process:
        return 0
    if result.finished:
        print(f"The segmentor is in {result.folder}")
    else:
        print(
            f"Stopped after {result.step} steps, saved {result.folder}. Go on with the same command and --resume auto"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
