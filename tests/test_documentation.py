"""Every block of the README and of docs/: Python runs on synthetic data, commands are accepted by the real parsers.

A block that cannot run is preceded by an HTML comment `<!-- not run: reason -->`.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from markdown_it import MarkdownIt
from miniatures.arcade import write_arcade
from miniatures.models import angiograms, class_names, small_config
from PIL import Image

from vasomim_hf import VasoMIMForPreTraining, VasoMIMForSemanticSegmentation, VasoMIMImageProcessorPil
from vasomim_hf.cli import _parser
from vasomim_hf.engine.evaluating import EvaluationRequest, evaluate_model
from vasomim_hf.engine.finetuning.run import ClassificationRun, DetectionRun, SegmentationRun
from vasomim_hf.engine.label_efficiency.run import LabelEfficiencyRun
from vasomim_hf.engine.run_config import PretrainRun, SegmentorRun, load_run
from vasomim_hf.publishing import export


pytest.importorskip("datasets")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
SCRIPTS = {
    "training/pretrain.py": PretrainRun,
    "training/train_segmentor.py": SegmentorRun,
    "training/finetune_segmentation.py": SegmentationRun,
    "training/finetune_detection.py": DetectionRun,
    "training/finetune_classification.py": ClassificationRun,
    "training/label_efficiency.py": LabelEfficiencyRun,
}


class Block(NamedTuple):
    """A fenced block, its language, first line, and the reason why it is not run, if there is one."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None


def blocks(page: Path) -> Iterator[Block]:
    before = ""
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence":
            reason = NOT_RUN.search(before)
            yield Block(page, token.map[0] + 1, token.info.strip(), token.content, reason[1] if reason else None)
        if token.type == "html_block" or token.type == "fence":
            before = token.content if token.type == "html_block" else ""


ALL = [block for page in PAGES for block in blocks(page)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with everything that the pages name: frames, an encoder, a segmentation model and results."""
    folder = tmp_path_factory.mktemp("documentation")
    frames = angiograms(6)
    for place in ("demo_output/frames", "FOLDER_OF_CINES", "runs"):
        (folder / place).mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame.image).save(folder / f"demo_output/frames/synthetic_{number:06d}.png")
        Image.fromarray(frame.image).save(folder / f"FOLDER_OF_CINES/{number}.png")
    Image.fromarray(frames[0].image).save(folder / "frame.png")
    Image.fromarray(frames[0].image).save(folder / "run.tif")
    Image.fromarray(frames[0].vessel_mask).save(folder / "mask.png")
    (folder / "my-secret").write_text("a secret of the tests")
    torch.manual_seed(0)
    processor = VasoMIMImageProcessorPil(size={"height": 64, "width": 64})
    export(VasoMIMForPreTraining(small_config()), processor, folder / "demo_output/model")
    vessels = VasoMIMForSemanticSegmentation(small_config(**class_names("background", "vessel")))
    export(vessels, processor, folder / "runs/arcade-vessel/final")
    write_arcade(folder / "ARCADE_FOLDER")
    request = EvaluationRequest(
        str(folder / "runs/arcade-vessel/final"), str(folder / "ARCADE_FOLDER"), "vessel", "val", mixed_precision="no"
    )
    evaluate_model(EvaluationRequest(**{**vars(request), "output": str(folder / "results.json")}))
    return folder


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_a_page_runs_from_top_to_bottom(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    names: dict = {}
    for block in blocks(page):
        if block.language == "python" and block.reason is None:
            # the reader of DICOM runs on the same picture as TIFF
            code = block.text.replace('"run.dcm"', '"run.tif"')
            exec(compile(code, f"{page.name}:{block.line}", "exec"), names)


def commands(block: Block) -> Iterator[list[str]]:
    """Words of each command of a shell block, with its variables put in."""
    variables: dict[str, str] = {}
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), line), comments=True)
        if words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words[0].partition("=")
            variables[name] = value
        elif words:
            yield words


def check_command(words: list[str]) -> None:
    """Refuse a command that its parser would refuse."""
    if words[0] == "vasomim":
        _parser().parse_args(words[1:])
    scripts = [word for word in words if word in SCRIPTS]
    if words[0] in ("python", "torchrun") and scripts and "--help" not in words:
        rest = words[words.index(scripts[0]) + 1 :]
        load_run(SCRIPTS[scripts[0]], rest[0], rest[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_are_accepted_by_their_parsers(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks(page):
        if block.language == "bash" and block.reason is None:
            for words in commands(block):
                try:
                    check_command(words)
                except (SystemExit, Exception) as error:
                    raise AssertionError(f"{page.name}, line {block.line}: {shlex.join(words)}: {error}") from error


def test_a_wrong_command_is_found():
    for wrong in ("vasomim evaluate a --dat b", "python training/pretrain.py training/configs/absent.yaml"):
        with pytest.raises((SystemExit, Exception)):
            check_command(shlex.split(wrong))


def test_every_block_has_a_language_and_every_exception_a_reason():
    assert [
        f"{block.page.name}:{block.line}" for block in ALL if block.language not in ("python", "bash", "yaml")
    ] == []
    assert all(block.reason is None or len(block.reason) > 10 for block in ALL)


def test_the_readme_is_short():
    assert 800 <= len((ROOT / "README.md").read_text().split()) <= 1400


def test_the_site_lists_every_page():
    listed = set(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    assert listed == {page.name for page in PAGES[1:]}
