"""Where the tests find real angiograms and reference values: beside the checkout, or in `$VASOMIM_TEST_DATA`."""

import os
from pathlib import Path

import pytest
import torch


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
    torch.manual_seed(0)
