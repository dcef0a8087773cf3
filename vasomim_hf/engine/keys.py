"""Keys: dataclass fields with a help text, from which `--help`, command-line flags and the docs are made.

Imports nothing heavy, so that the command line starts fast.
"""

from dataclasses import MISSING, field
from typing import Any


REQUIRED: Any = MISSING


def key(default: object, text: str) -> Any:
    """A key with its default (`REQUIRED` for none) and its help text."""
    if isinstance(default, dict | list):
        return field(default_factory=lambda: default.copy(), metadata={"help": text})
    return field(default=default, metadata={"help": text})
