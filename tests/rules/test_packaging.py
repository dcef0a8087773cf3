"""What pip installs is the whole package and nothing else, and each fact about it has one home."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from importlib.metadata import Distribution, distribution, distributions, version
from pathlib import Path

import pytest

import vasomim_hf
from vasomim_hf.presets import preset_names


ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vasomim_hf"
EXTRAS = {"data", "training", "eval", "dicom", "export", "demo", "docs", "dev"}
BUILD_FILES = ["setup.cfg", "pyproject.toml", "LICENSE", "README.md", "MANIFEST.in", "CHANGELOG.md", "CITATION.cff"]
needs_source = pytest.mark.skipif(not (ROOT / "setup.cfg").is_file(), reason="the package's source is not here")
needs_makefile = pytest.mark.skipif(
    not (ROOT / "Makefile").is_file() or shutil.which("make") is None, reason="no Makefile here, or no make"
)


def installed() -> Distribution:
    """What pip installed, and not what a build left behind in this folder."""
    return next(found for found in distributions(name="vasomim-hf") if found.read_text("INSTALLER"))


@pytest.fixture(scope="module")
def setup_cfg() -> ConfigParser:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.Path:
    """The wheel, built from a clean copy without network."""
    setuptools = importlib.util.find_spec("setuptools") and version("setuptools")
    if not setuptools or int(setuptools.split(".")[0]) < 77:
        pytest.skip(f"setuptools 77 or newer is needed to build the wheel, found {setuptools}")
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in BUILD_FILES:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy)
    for name in ("vasomim_hf", "tests", "training", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    result = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return zipfile.Path(next(out.glob("*.whl")))


def names_in(wheel: zipfile.Path) -> set[str]:
    return set(wheel.root.namelist())


def test_installed_metadata_has_every_extra():
    assert set(installed().metadata.get_all("Provides-Extra")) == EXTRAS


def test_the_command_is_installed():
    scripts = installed().entry_points.select(group="console_scripts")
    assert {script.name: script.value for script in scripts} == {"vasomim": "vasomim_hf.cli:main"}


def requirements() -> dict[str, set[str]]:
    """Normalised name of each required package, with the extras that bring it; the core is the extra ``""``."""
    found: dict[str, set[str]] = {}
    for text in installed().requires:
        name = re.split(r"[^\w.-]", text, maxsplit=1)[0].lower()
        extra = re.search(r'extra == "(\w+)"', text)
        found.setdefault(name, set()).add(extra[1] if extra else "")
    return found


def test_the_core_is_small_and_nothing_needs_torchvision():
    core = {name for name, extras in requirements().items() if "" in extras}
    assert core == {"torch", "transformers", "huggingface-hub", "safetensors", "numpy", "pillow", "tqdm"}
    assert "torchvision" not in requirements()


def missing_requirements(path: Path) -> Iterator[str]:
    """Packages that a file imports and setup.cfg does not require, and pip lines that name an extra without the package."""
    text, where = path.read_text(), path.relative_to(PACKAGE)
    nodes = list(ast.walk(ast.parse(text)))
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for name in {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names):
        if package_of(name) not in requirements():
            yield f"{where}: setup.cfg does not require {name}"
    for name, extra in re.findall(r'\brequire\("(\w+)[\w.]*", (?:extra=)?"(\w+)"\)', text):
        # a module of Python stands in for an optional package in an example
        if name not in sys.stdlib_module_names and not {extra, ""} & requirements().get(package_of(name), set()):
            yield f"{where}: {name} is not in the extra {extra}"


def test_every_imported_package_is_required_and_every_pip_line_is_right():
    assert [fault for path in sorted(PACKAGE.rglob("*.py")) for fault in missing_requirements(path)] == []


def package_of(module: str) -> str:
    """Name on a package index of an importable module."""
    other = {"cv2": "opencv-python-headless", "gdcm": "python-gdcm", "PIL": "pillow", "skimage": "scikit-image"}
    other |= {"sklearn": "scikit-learn", "yaml": "pyyaml"}
    return other.get(module, module.replace("_", "-"))


@needs_source
def test_the_version_stands_in_one_place(setup_cfg):
    version = vasomim_hf.__version__
    assert installed().version == version
    assert setup_cfg["metadata"]["version"] == "attr: vasomim_hf.version.__version__"
    for name in ("setup.cfg", "pyproject.toml", "vasomim_hf/__init__.py"):
        assert f'"{version}"' not in (ROOT / name).read_text() and f"= {version}" not in (ROOT / name).read_text()


@needs_source
def test_changelog_and_citation_speak_of_this_version():
    assert f"## [{vasomim_hf.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {vasomim_hf.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@needs_source
def test_metadata_has_one_home():
    # with a [project] table setuptools drops the extras in setup.cfg and only warns
    assert not re.search(r"^\[project", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)


def lowest(bound: str) -> tuple[int, int]:
    """Major and minor number of the version after `>=`."""
    major, minor = re.search(r">=\s*(\d+)\.(\d+)", bound).groups()
    return int(major), int(minor)


@needs_source
def test_the_lowest_python_is_one_that_transformers_runs_on(setup_cfg):
    python = lowest(setup_cfg["options"]["python_requires"])
    assert python >= lowest(distribution("transformers").metadata["Requires-Python"])
    assert sys.version_info >= python
    # what is not read from there says the same
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert settings["ruff"]["target-version"] == "py{}{}".format(*python)
    assert settings["mypy"]["python_version"] == "{}.{}".format(*python)
    if (ROOT / "Makefile").is_file():
        assert "sys.version_info < ({}, {})".format(*python) in (ROOT / "Makefile").read_text()


@needs_source
@pytest.mark.parametrize("name", ["huggingface-hub", "numpy", "safetensors", "tqdm"])
def test_no_lower_bound_is_below_what_transformers_needs(setup_cfg, name):
    ours = re.search(rf"^{name}(.*)$", setup_cfg["options"]["install_requires"], flags=re.MULTILINE)[1]
    theirs = next(text for text in distribution("transformers").requires if re.match(rf"{name}\b(?!.*extra)", text))
    assert lowest(ours) >= lowest(theirs)


@needs_makefile
def test_the_makefile_pins_torch_and_nothing_asks_for_torchvision():
    text = (ROOT / "Makefile").read_text()
    assert re.search(r"^TORCH \?= torch==\d+\.\d+\.\d+$", text, flags=re.MULTILINE)
    assert "torchvision" not in text


# Stands in for python: makes an "environment" whose pip writes down what it is asked for, and finds a CPU wheel in its
# own sources or at the index given, or in neither.
STAND_IN = """#!/bin/bash
asked="$*"
case "$asked" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *" pip "*) echo "${asked#*-qq }" >> "$CALLS"
    case "$asked" in
      *--index-url*) exit "$AT_INDEX" ;;
      *+cpu*) exit "$IN_OWN_SOURCES" ;;
    esac ;;
esac
"""
FOUND, MISSING = "0", "1"


@needs_makefile
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the default index has wheels for the CPU")
@pytest.mark.parametrize(
    ("own", "index", "settings", "routes"),
    [
        (FOUND, MISSING, [], ["own"]),
        (MISSING, FOUND, [], ["own", "index"]),
        (MISSING, MISSING, [], ["own", "index", "told"]),
        (FOUND, FOUND, ["TORCH_CPU_INDEX="], []),
    ],
    ids=["own sources", "index of CPU wheels", "index out of reach", "GPU asked for"],
)
def test_the_makefile_takes_the_cpu_wheel_of_torch_where_there_is_one(own, index, settings, routes, tmp_path):
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TORCH", "MAKE", "MFLAGS"))}
    result = subprocess.run(
        ["make", f"PYTHON={python}", f"VENV={tmp_path}/venv", *settings, f"{tmp_path}/venv/.torch"],
        cwd=ROOT,
        env=kept | {"CALLS": str(calls), "IN_OWN_SOURCES": own, "AT_INDEX": index},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    version = re.search(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1]
    quickly = "--index-url https://download.pytorch.org/whl/cpu --timeout 15 --retries 0"
    asked = {"own": f"{version}+cpu", "index": f"{version}+cpu {quickly}"}
    # the last call changes nothing where a CPU wheel of the same version is there
    assert calls.read_text().splitlines() == [*(asked[route] for route in routes if route in asked), version]
    assert ("No CPU wheel of torch" in result.stdout) == ("told" in routes)


@needs_source
def test_wheel_has_presets_and_type_mark_and_every_module(wheel):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "vasomim_hf").rglob("*.py")}
    presets = {f"vasomim_hf/presets/{name}.json" for name in preset_names()}
    assert len(presets) >= 5
    assert modules | presets | {"vasomim_hf/py.typed"} <= names_in(wheel)


@needs_source
def test_wheel_has_nothing_but_the_package_and_its_metadata(wheel):
    tops = {name.split("/")[0] for name in names_in(wheel)}
    assert tops == {"vasomim_hf", f"vasomim_hf-{vasomim_hf.__version__}.dist-info"}
    assert not any(
        re.search(r"(^|/)(tests?|training)/|\.(pth|safetensors|png|pyc)$", name) for name in names_in(wheel)
    )


@needs_source
def test_wheel_carries_licence_and_extras(wheel):
    info = f"vasomim_hf-{vasomim_hf.__version__}.dist-info"
    metadata = (wheel / info / "METADATA").read_text()
    assert f"{info}/licenses/LICENSE" in names_in(wheel)
    assert set(re.findall(r"^Provides-Extra: (\w+)$", metadata, flags=re.MULTILINE)) == EXTRAS
