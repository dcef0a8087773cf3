"""Time and number of operations for a batch of guided masks, compared with a loop over the images.

    python benchmarks/benchmark_masking.py [--batch-size 256] [--rounds 20]

The loop is the obvious implementation: for each image `torch.multinomial` for the guided patches, a permutation for
the rest, and `.item()` for their number.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vasomim_hf.masking_vasomim import guided_mask


class CountOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))

    def summary(self) -> str:
        waiting = sum(name in ("aten::_local_scalar_dense", "aten::nonzero") for name in self.names)
        return f"{len(self.names):6d} operations, {waiting:5d} of them synchronise"


def looped_mask(scores: torch.Tensor, mask_ratio: float, guidance_ratio: float) -> torch.Tensor:
    num_patches = scores.shape[1]
    num_hidden = num_patches - int(num_patches * (1 - mask_ratio))
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for image, row in enumerate(scores):
        if row.sum().item() == 0:
            mask[image, torch.randperm(num_patches)[:num_hidden]] = True
            continue
        num_guided = min(int(num_hidden * guidance_ratio), int((row > 0).sum().item()))
        if num_guided:
            mask[image, torch.multinomial(row, num_guided)] = True
        left = torch.nonzero(~mask[image]).flatten()
        mask[image, left[torch.randperm(len(left))[: num_hidden - num_guided]]] = True
    return mask


def fastest(function: Callable[[], torch.Tensor], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    scores = torch.rand(arguments.batch_size, 196)
    times = {}
    for name, function in (("loop over images", looped_mask), ("guided_mask", guided_mask)):
        with CountOperations() as counted:
            function(scores, 0.5, 0.3)
        times[name] = fastest(lambda function=function: function(scores, 0.5, 0.3), arguments.rounds)
        print(f"{name:18s}{times[name]:9.2f} ms  {counted.summary()}")
    print(f"ratio {times['loop over images'] / times['guided_mask']:.1f}")


if __name__ == "__main__":
    main()
