"""Entry point shared by the scripts in `training/`."""

import logging
import sys
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers.utils.logging import disable_progress_bar

from ..progress import set_up_logging
from .pretraining.loop import TrainingDivergedError, TrainingResult
from .run_config import TrainingRun, describe_keys, load_run


logger = logging.getLogger(__name__)

# errors caused by a run file, data or an installation; any other error keeps its traceback
USER_ERRORS = (ValueError, OSError, ImportError, StrictDataclassError, TrainingDivergedError)

# exit code that shells use for Ctrl-C, so `train && evaluate` stops
STOPPED = 130

Run = TypeVar("Run", bound=TrainingRun)


def run_script(
    doc: str, kind: type[Run], train: Callable[[Run], TrainingResult], sentence: str, arguments: list[str]
) -> int:
    """Read the run file, execute the run, and print the location of the result.

    Args:
        doc (`str`): Docstring of the script, shown by `--help`.
        kind (`type`): Class of the run configuration.
        train (`Callable`): Executes the run.
        sentence (`str`): Printed at the end, before the folder of the result.
        arguments (`list[str]`): Command-line arguments without the script name: run file, then `--key value` ...

    Returns:
        `int`: Exit code: 0 for success, 1 after an error, 2 without arguments, 130 if the run was stopped.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{doc}\nKeys of the run file, with their defaults:\n{describe_keys(kind)}\n")
        return 0 if arguments else 2
    set_up_logging()
    disable_progress_bar()
    try:
        result = train(load_run(kind, arguments[0], arguments[1:]))
    except USER_ERRORS as error:
        logger.debug("where it went wrong", exc_info=True)
        sys.stderr.write(f"error: {' '.join(str(error).split()) or type(error).__name__}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped without saving, before the first step or by a second signal\n")
        return STOPPED
    if result.is_main_process:
        sys.stdout.write(f"{_ending(result, sentence, hasattr(kind, 'resume'))}\n")
    return 0 if result.finished else STOPPED


def _ending(result: TrainingResult, sentence: str, is_told: bool) -> str:
    if result.finished:
        return f"{sentence} {result.folder}"
    # a comparison resumes by itself
    how = "the same command and --resume auto" if is_told else "the same command"
    return f"Stopped after {result.step} steps, saved {result.folder}\nResume with {how}"
