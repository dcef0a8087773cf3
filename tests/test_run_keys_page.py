"""docs/run-keys.md lists the keys of every run; write it again with `python tests/test_run_keys_page.py`."""

import dataclasses
from pathlib import Path

from vasomim_hf.engine.evaluating.request import EvaluationRequest
from vasomim_hf.engine.finetuning.run import ClassificationRun, DetectionRun, SegmentationRun
from vasomim_hf.engine.label_efficiency.run import LabelEfficiencyRun
from vasomim_hf.engine.run_config import PretrainRun, SegmentorRun, TrainingRun, shown_default


PAGE = Path(__file__).parents[1] / "docs/run-keys.md"
HEAD = """# Keys of run files

Every training script takes a YAML file with these keys, and `--key value` to change one. An unknown key is an error that
suggests the closest match. *(required)* marks keys without a default.
"""
SECTIONS = {
    "All training runs": TrainingRun,
    "training/pretrain.py": PretrainRun,
    "training/train_segmentor.py": SegmentorRun,
    "training/finetune_segmentation.py": SegmentationRun,
    "training/finetune_detection.py": DetectionRun,
    "training/finetune_classification.py": ClassificationRun,
    "training/label_efficiency.py": LabelEfficiencyRun,
    "vasomim evaluate": EvaluationRequest,
}


def rows(kind: type) -> dict[str, str]:
    """A table row for each key."""
    shown = {}
    for item in dataclasses.fields(kind):
        default = (
            item.default_factory()
            if item.default is dataclasses.MISSING and callable(item.default_factory)
            else item.default
        )
        value = shown_default("" if default is dataclasses.MISSING else default)
        value = "*(required)*" if value == "required" else f"`{value}`"
        shown[item.name] = f"| `{item.name}` | {item.metadata['help'].replace('|', chr(92) + '|')} | {value} |"
    return shown


def page() -> str:
    """The page; a run lists the keys that differ from those of all training runs."""
    common, parts = rows(TrainingRun), [HEAD]
    for title, kind in SECTIONS.items():
        is_training = issubclass(kind, TrainingRun) and kind is not TrainingRun
        lines = [line for name, line in rows(kind).items() if not is_training or common.get(name) != line]
        lead = "\nThe keys of all training runs, and:\n" if is_training else ""
        parts.append(f"\n## {title}\n{lead}\n| key | meaning | default |\n|---|---|---|\n" + "\n".join(lines) + "\n")
    return "".join(parts)


def test_the_page_of_run_keys_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/test_run_keys_page.py"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
