"""Records of a training run: log.jsonl, TensorBoard and pictures; and running means without device synchronisation.

Progress output is in [`~progress`].
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..folders import atomic_file
from ..import_utils import require


LOG_NAME = "log.jsonl"
PICTURES_NAME = "pictures"
TENSORBOARD_NAME = "tensorboard"


class RunLog:
    """Log of a training run, written by the main process.

    `log.jsonl` has one JSON object per line, with `kind` (`"start"`, `"step"`, `"epoch"`, ...) and `step`, the number
    of completed optimiser steps. A resumed run first removes the lines after its checkpoint, so each step occurs once.

    Args:
        folder (`Path`): Folder of the run.
        is_main (`bool`): Whether this process writes.
        tensorboard (`bool`): Whether to write a TensorBoard log as well.
        first_step (`int`): Optimiser steps completed before.
    """

    def __init__(self, folder: Path, is_main: bool, tensorboard: bool, first_step: int):
        self._path = folder / LOG_NAME if is_main else None
        self._board = None
        if self._path is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        _drop_lines_after(self._path, first_step)
        if tensorboard:
            writer = require("torch.utils.tensorboard", "training").SummaryWriter
            self._board = writer(str(folder / TENSORBOARD_NAME), purge_step=first_step or None)

    def write(self, kind: str, step: int, values: dict) -> None:
        """Write one line; numbers are also written to TensorBoard as `kind/name`."""
        if self._path is None:
            return
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def picture(self, name: str, step: int, image: Image.Image, file_stem: str) -> None:
        """Save a picture as `pictures/FILE_STEM.png` and to TensorBoard under its name."""
        if self._path is None:
            return
        folder = self._path.parent / PICTURES_NAME
        folder.mkdir(exist_ok=True)
        with atomic_file(folder / f"{file_stem}.png") as temporary:
            image.save(temporary, format="PNG")
        if self._board is not None:
            self._board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Close the TensorBoard writer."""
        if self._board is not None:
            self._board.close()


def read_log(folder: str | Path, kind: str | None = None) -> list[dict]:
    """Read the log of a run.

    Args:
        folder (`str` or `Path`): Folder of the run.
        kind (`str`, *optional*): Only lines of this kind.

    Returns:
        `list[dict]`: Lines of the log. A last line truncated by a crash is skipped.
    """
    lines = []
    for text in (Path(folder) / LOG_NAME).read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if kind is None or line["kind"] == kind:
            lines.append(line)
    return lines


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = [json.dumps(line) + "\n" for line in read_log(path.parent) if line["step"] <= step]
    with atomic_file(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


class RunningMeans:
    """Weighted means over many steps, accumulated on the device and transferred only on request.

    Args:
        names (`tuple[str, ...]`): Names of the means.
        device (`torch.device`): Device of the accumulators.

    Example:
        >>> means = RunningMeans(("loss",), torch.device("cpu"))
        >>> means.add({"loss": (torch.tensor(3.0), 1.0)})
        >>> means.add({"loss": (torch.tensor(1.0), 1.0)})
        >>> means.read(means.sums)
        {'loss': 2.0}
    """

    def __init__(self, names: tuple[str, ...], device: torch.device):
        self.names = names
        self.sums = torch.zeros(2, len(names), device=device)

    def add(self, values: dict[str, tuple[torch.Tensor, torch.Tensor | float]]) -> None:
        """Add a sum and its weight for every name (scalars); for a mean, pass the value with weight 1."""
        sums = torch.stack([values[name][0].detach().float() for name in self.names])
        weights = [self._on_device(values[name][1]) for name in self.names]
        self.sums += torch.stack([sums, torch.stack(weights)])

    def _on_device(self, weight: torch.Tensor | float) -> torch.Tensor:
        # `full` writes on the device; `as_tensor` would copy from the CPU and synchronise
        return weight.float() if isinstance(weight, torch.Tensor) else torch.full((), weight, device=self.sums.device)

    def read(self, sums: torch.Tensor) -> dict[str, float]:
        """Means from `sums`, of shape (2, names), possibly reduced over processes; names without weight are
        omitted."""
        totals, weights = sums.tolist()
        return {n: t / w for n, t, w in zip(self.names, totals, weights, strict=True) if w > 0}

    def reset(self) -> None:
        """Reset all means."""
        self.sums.zero_()
