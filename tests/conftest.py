"""Settings of the tests, and where they find real angiograms and reference values.

Real data lies beside the checkout, or in `$VASOMIM_TEST_DATA`. `$VASOMIM_TEST_SEED` (0 by default) seeds every test.
"""

import atexit
import os
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest


# Before torch is imported. One thread for each process: two processes of two threads on two cores are slower than either.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE"):
    os.environ.setdefault(_name, "1")

import torch
from torch.utils._python_dispatch import TorchDispatchMode


# Before `datasets` is imported, which looks once: what tests load is not kept among the user's data
_CACHE = tempfile.mkdtemp(prefix="vasomim-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["HF_DATASETS_CACHE"] = _CACHE

SHARED = Path(os.environ.get("VASOMIM_TEST_DATA", Path(__file__).parents[2] / "shared"))


def _folder(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no `{name}` folder in {SHARED}: set VASOMIM_TEST_DATA to the folder that holds it")
    return SHARED / name


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real angiograms (`arcade`, `arcade_sample`, `odd`); skips where it is absent."""
    return _folder("data")


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """Folder with reference values of the original method; skips where it is absent."""
    return _folder("reference")


@pytest.fixture(autouse=True)
def seeded() -> None:
    seed = int(os.environ.get("VASOMIM_TEST_SEED", "0"))
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


class CountOperations(TorchDispatchMode):
    """Records the name of every operation that reaches the dispatcher, and those that wait for a device."""

    SYNCHRONISING = frozenset(
        ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "unique_dim", "_unique2", "equal")
    )

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    @property
    def waiting(self) -> set[str]:
        return set(self.names) & self.SYNCHRONISING

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def counted_operations() -> CountOperations:
    return CountOperations()
