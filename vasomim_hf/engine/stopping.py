"""An end that is asked for from outside: Ctrl-C, or the signal by which schedulers end a job."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopSignal:
    """Notes SIGINT and SIGTERM, so that a training can end after its step."""

    def __init__(self) -> None:
        # that came; `None` as long as none did
        self.number: int | None = None

    @property
    def came(self) -> bool:
        """Whether to stop."""
        return self.number is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the two signals within the block; a second SIGINT interrupts at once."""
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
