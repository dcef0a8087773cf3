"""What a script in `training/` does with its arguments, so that a script holds no more than its own text."""

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

# What a run file, the data or an installation can cause; anything else is a fault of the program and keeps its traceback
USER_ERRORS = (ValueError, OSError, ImportError, StrictDataclassError, TrainingDivergedError)

# What shells report of a program that Ctrl-C ended, so that `train && evaluate` does not go on
STOPPED = 130

Run = TypeVar("Run", bound=TrainingRun)


def run_script(
    doc: str, kind: type[Run], train: Callable[[Run], TrainingResult], sentence: str, arguments: list[str]
) -> int:
    """Read the run file, run it, say where the result is.

    Args:
        doc (`str`): Head of the script, shown by `--help`.
        kind (`type`): Kind of run that its files describe.
        train (`Callable`): Runs it.
        sentence (`str`): Said at the end, before the result's folder.
        arguments (`list[str]`): Of the command line, without the script's name: run file, then `--key value` ...

    Returns:
        `int`: Exit code: 0 if all went well, 1 after an error, 2 if there are no arguments, 130 if the run was stopped.
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
        sys.stderr.write("stopped before there was anything to save, or a second time\n")
        return STOPPED
    if result.is_main_process:
        sys.stdout.write(f"{_ending(result, sentence, hasattr(kind, 'resume'))}\n")
    return 0 if result.finished else STOPPED


def _ending(result: TrainingResult, sentence: str, is_told: bool) -> str:
    if result.finished:
        return f"{sentence} {result.folder}"
    # a comparison goes on without being told
    how = "the same command and --resume auto" if is_told else "the same command"
    return f"Stopped after {result.step} steps, saved {result.folder}\nGo on with {how}"
