"""How far a long job is: a bar on a terminal, a plain line now and then elsewhere, and a log that keeps clear of the bar."""

import io
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm


logger = logging.getLogger(__name__)

# Seconds to the first plain line; to each later one it takes twice as long as to the one before, up to the longest
PLAIN_INTERVAL = 5.0
LONGEST_PLAIN_INTERVAL = 60.0
# Characters of a line of the log; a terminal of 110 columns does not break it
LONGEST_LINE = 110
_TIME_FORMAT = "%m-%d %H:%M:%S"
_LONGEST_MESSAGE = LONGEST_LINE - len("11-27 14:03:12 ")
_PLAIN_FORMAT = "{desc}: {n}/{total} {unit}, {speed}{remaining} left{postfix}"
_BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n}/{total} {unit}, {speed}{remaining} left{postfix}"


class Progress(tqdm):
    """A bar with the time left if stderr is a terminal; otherwise lines in the log, at first soon, then every minute.

    In a training of several processes only the first one shows anything.

    Args:
        items (iterable, *optional*): To iterate over; otherwise call `update(count)`.
        what (`str`): What is done, such as `"decoding"`.
        total (`int`, *optional*): Number of units; `len(items)` by default.
        unit (`str`, defaults to `"frames"`): What is counted, in the plural.
        is_shown (`bool`, defaults to `True`): With `False` nothing is shown.
        more (*optional*): For `tqdm`, such as `initial` or `leave`.

    Example:
        >>> [square for square in Progress((n * n for n in range(3)), what="squaring", total=3)]
        [0, 1, 4]
    """

    # its thread would print while nothing is updated
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
        """What a line is made of."""
        values = super().format_dict
        rate = values["rate"] or (values["n"] - values["initial"]) / max(values["elapsed"], 1e-9)
        speed = rate * self._frames_per_unit()
        return {**values, "speed": f"{speed:.3g} frames/s, " if speed else ""}

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar, or write the plain line."""
        if self._is_terminal:
            return bool(super().display(msg, pos))
        # an empty message would clear the bar
        if self.n > self.initial and msg != "":
            logger.info("%s", str(self) if msg is None else msg)
            self.mininterval = min(2 * self.mininterval, LONGEST_PLAIN_INTERVAL)
        return True

    def show(self, values: Mapping[str, float]) -> None:
        """Show values, such as the loss, from the next line on."""
        self.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)


class TrainingProgress(Progress):
    """The bar of a training: it begins at the step of a checkpoint, and stays on the terminal at the end.

    Args:
        num_steps (`int`): Optimiser steps.
        first_step (`int`): Steps that were done before.
        frames_per_step (`int`): Over all processes.
        is_shown (`bool`): Whether this process shows it.
    """

    def __init__(self, num_steps: int, first_step: int, frames_per_step: int, is_shown: bool):
        self.frames_per_step = frames_per_step
        super().__init__(
            what="training", total=num_steps, unit="steps", is_shown=is_shown, initial=first_step, leave=True
        )

    def _frames_per_unit(self) -> int:
        return self.frames_per_step


def _is_terminal() -> bool:
    try:
        # terminals of some job runners have no columns, and a bar would be an empty line there
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False


def is_main_process() -> bool:
    """Whether this process is the first of those that a launcher such as torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def shorten_values(head: str, values: Mapping[str, float]) -> str:
    """A line for people: as many values, from the first on, as there is room for.

    Args:
        head (`str`): Begins the line.
        values (mapping of `str` to `float`): By name.

    Returns:
        `str`: Such as `"epoch 3/40: loss 0.4321, learning rate 0.0001"`, of 95 characters at most unless `head` is longer;
        with the time in front of it a line of the log has 110. `...` stands for values that there is no room for.

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
    """Writes above the bars of a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=self.stream)
        except Exception:  # as every handler does: a log must not end a training
            self.handleError(record)


class _LogFormatter(logging.Formatter):
    """Time and message; of a warning also its level, of another library also its name."""

    def format(self, record: logging.LogRecord) -> str:
        own = record.name.startswith(__name__.partition(".")[0])
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        self._style._fmt = f"%(asctime)s {level}{'' if own else '%(name)s: '}%(message)s"
        return super().format(record)


def set_up_logging() -> None:
    """Send the log to stderr, from `INFO` on, in short lines that do not break a bar; does nothing if there is a log already."""
    handler = _LogHandler(sys.stderr)
    handler.setFormatter(_LogFormatter(datefmt=_TIME_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
