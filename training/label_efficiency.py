"""Compare initialisations over fractions of the labels: train and evaluate every fraction x seed x initialisation.

    python training/label_efficiency.py CONFIG.yaml [--key value ...] [--settings.key value ...]

Each cell has its own folder; run the same command again to resume, also within a cell. A stopped comparison exits with
code 130.
OUTPUT_DIR contains curves.png, table.txt and curves.json, updated after each cell; compare the results.json of two cells
with `vasomim_hf.evaluation.comparison`.
"""

import sys

from vasomim_hf.engine.label_efficiency.compare import LabelEfficiencyRun, compare_label_efficiency
from vasomim_hf.engine.script import run_script


def main(arguments: list[str]) -> int:
    """Run the script and return its exit code."""
    return run_script(__doc__, LabelEfficiencyRun, compare_label_efficiency, "Curves and results are in", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
