"""Compare initialisations over shares of the labels: train and score each share x seed x initialisation, draw the curves.

    python training/label_efficiency.py CONFIG.yaml [--key value ...] [--settings.key value ...]

Each cell lies in a folder of its own; the same command goes on with what is not done, in the middle of a cell too. A
stopped comparison ends with exit code 130.
OUTPUT_DIR gets curves.png, table.txt and curves.json, drawn anew after each cell; the results.json of two cells can be
compared by `vasomim_hf.evaluation.comparison`.
"""

import sys

from vasomim_hf.engine.label_efficiency.compare import LabelEfficiencyRun, compare_label_efficiency
from vasomim_hf.engine.script import run_script


def main(arguments: list[str]) -> int:
    """Compare as the arguments say; the exit code."""
    return run_script(__doc__, LabelEfficiencyRun, compare_label_efficiency, "Curves and results are in", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
