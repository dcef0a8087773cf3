"""Progress of long jobs: a bar in a terminal, occasional plain lines elsewhere, and logging that does not break the
bar."""

import io
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm


logger = logging.getLogger(__name__)

# seconds until the first plain line; intervals double up to the longest one
PLAIN_INTERVAL = 5.0
LONGEST_PLAIN_INTERVAL = 60.0
# maximum length of a log line; fits a terminal of 110 columns
LONGEST_LINE = 110
_TIME_FORMAT = "%m-%d %H:%M:%S"
_LONGEST_MESSAGE = LONGEST_LINE - len("11-27 14:03:12 ")
_PLAIN_FORMAT = "{desc}: {n}/{total} {unit}, {speed}{remaining} left{postfix}"
_BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n}/{total} {unit}, {speed}{remaining} left{postfix}"


class Progress(tqdm):
    """Progress bar with remaining time if stderr is a terminal, otherwise log lines, at first often, later every minute.

    In multi-process training only the first process shows progress.

    Args:
        items (iterable, *optional*): Iterable to wrap; otherwise call `update(count)`.
        what (`str`): Description, such as `"decoding"`.
        total (`int`, *optional*): Number of units; defaults to `len(items)`.
        unit (`str`, defaults to `"frames"`): Unit, in the plural.
        is_shown (`bool`, defaults to `True`): Whether to show progress.
        more (*optional*): Arguments of `tqdm`, such as `initial` or `leave`.

    Example:
        >>> [square for square in Progress((n * n for n in range(3)), what="squaring", total=3)]
        [0, 1, 4]
    """

    # the monitor thread would print without updates
    monitor_interval = 0
    mininterval: float

    def __init__(
        self,
        items: Iterable | None = None,
        *,
        what: str,
        total: int | None = None,
        unit: str = "frames",
        is_shown: bool = True,
        **more: Any,
    ):
        self._is_terminal = _is_terminal()
        super().__init__(
            items,
            desc=what,
            total=total,
            unit=unit,
            disable=not is_shown or not is_main_process(),
            file=sys.stderr if self._is_terminal else io.StringIO(),
            mininterval=0.1 if self._is_terminal else PLAIN_INTERVAL,
            miniters=1,
            delay=0 if self._is_terminal else PLAIN_INTERVAL,
            dynamic_ncols=self._is_terminal,
            bar_format=_BAR_FORMAT if self._is_terminal else _PLAIN_FORMAT,
            **{"leave": False, **more},
        )

    def _frames_per_unit(self) -> int:
        return 1 if self.unit == "frames" else 0

    @property
    def format_dict(self) -> dict[str, Any]:
        """Fields of the format string."""
        values = super().format_dict
        rate = values["rate"] or (values["n"] - values["initial"]) / max(values["elapsed"], 1e-9)
        speed = rate * self._frames_per_unit()
        return {**values, "speed": f"{speed:.3g} frames/s, " if speed else ""}

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar, or write a plain line."""
        if self._is_terminal:
            return bool(super().display(msg, pos))
        # tqdm passes an empty message to clear the bar
        if self.n > self.initial and msg != "":
            logger.info("%s", str(self) if msg is None else msg)
            self.mininterval = min(2 * self.mininterval, LONGEST_PLAIN_INTERVAL)
        return True

    def show(self, values: Mapping[str, float]) -> None:
        """Show values, such as the loss, from the next update on."""
        self.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)


class TrainingProgress(Progress):
    """Progress bar of a training run: starts at the step of the checkpoint, stays visible unless there is a bar around it.

    Args:
        num_steps (`int`): Total number of optimiser steps.
        first_step (`int`): Steps completed before.
        frames_per_step (`int`): Frames per step over all processes.
        is_shown (`bool`): Whether this process shows it.
    """

    def __init__(self, num_steps: int, first_step: int, frames_per_step: int, is_shown: bool):
        self.frames_per_step = frames_per_step
        super().__init__(
            what="training", total=num_steps, unit="steps", is_shown=is_shown, initial=first_step, leave=None
        )

    def _frames_per_unit(self) -> int:
        return self.frames_per_step


def _is_terminal() -> bool:
    try:
        # terminals of some job runners report no columns, which would make the bar an empty line
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False


def is_main_process() -> bool:
    """Whether this is the first of the processes started by a launcher such as torchrun, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def shorten_values(head: str, values: Mapping[str, float]) -> str:
    """Format a line with as many values as fit.

    Args:
        head (`str`): Start of the line.
        values (mapping of `str` to `float`): Values by name.

    Returns:
        `str`: For example `"epoch 3/40: loss 0.4321, learning rate 0.0001"`, at most 95 characters unless `head` is
        longer, so a log line with its timestamp has at most 110. `...` replaces values that do not fit.

    Example:
        >>> shorten_values("epoch 3/40", {"loss": 0.43213, "learning_rate": 0.0001})
        'epoch 3/40: loss 0.4321, learning rate 0.0001'
    """
    shown = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items()]
    for count in range(len(shown), 0, -1):
        line = f"{head}: {', '.join(shown[:count])}{', ...' * (count < len(shown))}"
        if len(line) <= _LONGEST_MESSAGE:
            return line
    return head


class _LogHandler(logging.StreamHandler):
    """Writes log records above the progress bars of a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=self.stream)
        except Exception:  # as in every handler: logging must not stop training
            self.handleError(record)


class _LogFormatter(logging.Formatter):
    """Formats time and message; with the level for warnings, and the logger name for other libraries."""

    def format(self, record: logging.LogRecord) -> str:
        own = record.name.startswith(__name__.partition(".")[0])
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        self._style._fmt = f"%(asctime)s {level}{'' if own else '%(name)s: '}%(message)s"
        return super().format(record)


def set_up_logging() -> None:
    """Log to stderr in short lines that do not break a bar; does nothing if logging is already set up.

    The first process of a training run logs from level `INFO`, the others only warnings.
    """
    handler = _LogHandler(sys.stderr)
    handler.setFormatter(_LogFormatter(datefmt=_TIME_FORMAT))
    logging.basicConfig(level=logging.INFO if is_main_process() else logging.WARNING, handlers=[handler])
