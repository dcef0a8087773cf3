"""Graceful stop on Ctrl-C or on the termination signal of a job scheduler."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopSignal:
    """Records SIGINT and SIGTERM, so training can stop after the current step."""

    def __init__(self) -> None:
        # number of the received signal, `None` if there was none
        self.number: int | None = None

    @property
    def came(self) -> bool:
        """Whether a signal was received."""
        return self.number is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record both signals within the block; a second SIGINT interrupts immediately."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.came and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
