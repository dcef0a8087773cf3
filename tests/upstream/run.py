"""Run transformers' own common tests, of exactly the installed version, against our classes.

    python tests/upstream/run.py [pytest arguments]

The tests come from the source distribution, which is fetched once with pip into `.upstream_tests` and never committed.
What it lacks is stood in for by a few stubs. At the end, skipped tests are listed by reason; `--write-skips` writes that
list to SKIPS.md too.
"""

import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".upstream_tests"
SKIPS = HERE / "SKIPS.md"
PACKAGE = "transformers_tests"

# What the common tests import and the source distribution does not hold.
STUBS = {
    f"{PACKAGE}/__init__.py": "",
    f"{PACKAGE}/exporters/__init__.py": "",
    f"{PACKAGE}/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    f"{PACKAGE}/generation/__init__.py": "",
    f"{PACKAGE}/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    f"{PACKAGE}/utils/__init__.py": "",
    f"{PACKAGE}/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    # asked for pictures on the Hub, it draws some
    "utils/fetch_hub_objects_for_ci.py": """
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image


def url_to_local_path(url):
    path = Path(__file__).parent / (hashlib.sha1(url.encode()).hexdigest() + Path(url).suffix)
    if not path.exists():
        random = np.random.default_rng(len(url))
        size = (480, 640) if path.suffix == ".png" else (480, 640, 3)
        Image.fromarray(random.integers(0, 150, size, dtype=np.uint8)).save(path)
    return str(path)
""",
}


def fetch(name: str) -> Path:
    """Folder with the unpacked common tests of the installed transformers."""
    folder = CACHE / name
    if (folder / "complete").is_file():
        return folder
    archive = CACHE / f"{name}.tar.gz"
    if not archive.is_file():
        print(f"Fetching the source distribution of {name} into {CACHE}", flush=True)
        CACHE.mkdir(exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        wanted = ["--no-binary", ":all:", name.replace("-", "==", 1), "--dest", str(CACHE)]
        subprocess.run([*pip, *wanted], check=True)
    unpack(archive, folder)
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Take the common tests out of the archive and put the stubs beside them."""
    with tarfile.open(archive) as members:
        for member in members:
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and member.isfile() and parts[2].endswith(".py"):
                write(folder / PACKAGE / parts[2], members.extractfile(member).read().decode())
    for name, text in STUBS.items():
        write(folder / name, text)
    write(folder / "complete", "")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def run_tests(folder: Path, report: Path, arguments: list[str]) -> int:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    options = [
        "-c",
        str(HERE / "pytest.ini"),
        "--rootdir",
        str(HERE),
        "--confcutdir",
        str(HERE),
        "--junitxml",
        str(report),
    ]
    command = [sys.executable, "-m", "pytest", *options, str(HERE), *arguments]
    return subprocess.run(command, env=environment, cwd=CACHE).returncode


def skips(report: Path) -> dict[str, set[str]]:
    """Names of the skipped tests for each reason, as the report of the run tells them."""
    found = defaultdict(set)
    for case in ElementTree.parse(report).iter("testcase"):
        for skipped in case.iter("skipped"):
            reason = " ".join(skipped.get("message", "").split())
            # the same reason for several classes is one reason
            reason = re.sub(r"<class '[\w.]+'>|\b(VasoMIM|UNeXt)\w+", "the class", reason)
            found[reason].add(f"{case.get('classname').split('.')[-1]}.{case.get('name')}")
    return dict(found)


def table(found: dict[str, set[str]], name: str) -> str:
    lines = [
        f"# Tests of {name} that are skipped",
        "",
        "Written by `make test-upstream PYTEST_ARGS=--write-skips`.",
        "",
    ]
    lines += ["| tests | reason |", "|---|---|"]
    for reason, tests in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        names = sorted({test.split(".")[1] for test in tests})
        shown = ", ".join(f"`{test}`" for test in names[:4]) + (
            f" and {len(names) - 4} more" if len(names) > 4 else ""
        )
        lines.append(f"| {len(tests)}: {shown} | {reason.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    name = f"transformers-{version('transformers')}"
    write_skips = "--write-skips" in arguments
    folder = fetch(name)
    report = CACHE / "report.xml"
    code = run_tests(folder, report, [argument for argument in arguments if argument != "--write-skips"])
    if report.is_file():
        text = table(skips(report), name)
        print(text)
        if write_skips:
            SKIPS.write_text(text, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
