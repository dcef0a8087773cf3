"""Every package names its public face, and nothing behind a name is imported before it is used."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import vasomim_hf
import vasomim_hf.data


PACKAGES = [info.name for info in pkgutil.walk_packages(vasomim_hf.__path__, "vasomim_hf.") if info.ispkg]
LOADERS = [
    "load_arcade",
    "load_cadica",
    "load_xcad",
    "load_xcav",
    "load_dca1",
    "load_stenosis",
    "load_xa170k",
    "load_frames",
]


def test_every_public_name_can_be_imported_and_is_listed_by_dir():
    for name in PACKAGES:
        package = importlib.import_module(name)
        assert package.__all__ == sorted(set(package.__all__)) and package.__all__, name
        assert set(package.__all__) <= set(dir(package)), name
        for public in package.__all__:
            module = getattr(getattr(package, public), "__module__", "vasomim_hf.a constant")
            assert module.startswith("vasomim_hf."), f"{name}.{public}"


def test_the_loaders_are_named_by_the_data_package():
    assert set(LOADERS) <= set(vasomim_hf.data.__all__)


def test_naming_a_package_imports_none_of_its_modules():
    code = "import sys, vasomim_hf.data, vasomim_hf.evaluation; print([m for m in sys.modules if 'arcade' in m or 'metrics' in m and m.startswith('vasomim_hf')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="load_nothing"):
        getattr(vasomim_hf.data, "load_" + "nothing")
