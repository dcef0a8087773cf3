"""Reports of faulty items in long jobs, which continue with the remaining items."""

import json
import logging
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..folders import atomic_file


logger = logging.getLogger(__name__)

NAMED = 5


class Fault(NamedTuple):
    """An item and what is wrong with it."""

    name: str
    reason: str


class FaultReport:
    """Collects the faults of a job, to be reported at its end.

    Args:
        faults (iterable of `Fault`, *optional*): Known faults.

    Example:
        >>> report = FaultReport()
        >>> report.add("a.png", "not an image")
        >>> len(report), list(report)
        (1, [Fault(name='a.png', reason='not an image')])
    """

    def __init__(self, faults: Iterable[Fault] = ()):
        self._faults = list(faults)

    def add(self, name: str, reason: str | BaseException) -> None:
        """Record an item that is skipped or corrected, and why; for an exception, including its type.

        Args:
            name (`str`): Name of the item.
            reason (`str` or exception): What is wrong and what was done.
        """
        if isinstance(reason, BaseException):
            reason = f"{type(reason).__name__}: {reason}"
        self._faults.append(Fault(name, " ".join(reason.split())))

    def extend(self, faults: Iterable[Fault]) -> None:
        """Add faults of a part of the job."""
        self._faults.extend(Fault(*fault) for fault in faults)

    def __len__(self) -> int:
        return len(self._faults)

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._faults)

    def __str__(self) -> str:
        named = "; ".join(f"{fault.name}: {fault.reason}" for fault in self._faults[:NAMED])
        more = len(self) - NAMED
        return f"{named}; and {more} more" if more > 0 else named

    def log(self, what: str, total: int) -> None:
        """Log a warning with the number of faults and the first five of them; silent without faults.

        Args:
            what (`str`): Kind of items, such as `"frames of arcade"`.
            total (`int`): Number of items in the job.
        """
        if self._faults:
            logger.warning("%d faults in %d %s: %s", len(self), total, what, self)

    def write(self, path: str | os.PathLike) -> None:
        """Write all faults as a JSON list of `{"name": ..., "reason": ...}`, atomically.

        Args:
            path (`str` or `os.PathLike`): File to write.
        """
        text = json.dumps([fault._asdict() for fault in self._faults], indent=2, ensure_ascii=False)
        with atomic_file(os.fspath(path)) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
