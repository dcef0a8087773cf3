"""Export for the Hub: model folders that load with and without this package, with model card and checksums."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel

from .folders import new_folder
from .model_card import model_card


CHECKSUMS = "checksums.json"

# Auto classes that a folder supports, by model type, with file and class. Add a line here for a new head.
AUTO_CLASSES = {
    "vasomim": {
        "AutoConfig": "configuration_vasomim.VasoMIMConfig",
        "AutoModel": "modeling_vasomim.VasoMIMModel",
        "AutoBackbone": "modeling_vasomim.VasoMIMBackbone",
        "AutoModelForPreTraining": "modeling_vasomim_pretraining.VasoMIMForPreTraining",
        "AutoModelForSemanticSegmentation": "modeling_vasomim_segmentation.VasoMIMForSemanticSegmentation",
        "AutoModelForObjectDetection": "modeling_vasomim_detection.VasoMIMForObjectDetection",
        "AutoModelForImageClassification": "modeling_vasomim_classification.VasoMIMForImageClassification",
    },
    "vasomim_unext": {
        "AutoConfig": "configuration_unext.UNeXtConfig",
        "AutoModel": "modeling_unext.UNeXtForVesselSegmentation",
        "AutoModelForSemanticSegmentation": "modeling_unext.UNeXtForVesselSegmentation",
    },
}
IMAGE_PROCESSOR_CLASSES = {
    "AutoImageProcessor": {
        "pil": "image_processing_vasomim.VasoMIMImageProcessorPil",
        "torchvision": "image_processing_vasomim.VasoMIMImageProcessor",
    }
}


def export(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    folder: str | Path,
    card: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a complete Hub repository for a model.

    The folder loads with every Auto class, in a process that has imported this package or, with
    `trust_remote_code=True`, in any other. To exclude the decoder and the segmentor, export the encoder:
    `export(model.vasomim, ...)`. [`push_to_hub`] uploads the folder.

    Args:
        model (`PreTrainedModel`):
            A model of this package. Weights are saved in their dtype.
        processor (`BaseImageProcessor`):
            The image processor of the model.
        folder (`str` or `Path`):
            Folder to write; it appears once complete.
        card (`str`, *optional*):
            Text of README.md, from [`model_card`]. Defaults to a card without training data and results.
        overwrite (`bool`, defaults to `False`):
            Whether an existing model folder is replaced.

    Returns:
        `Path`: The folder, with `config.json`, `model.safetensors`, `preprocessor_config.json`, `README.md`, the
        Python files of the model, and `checksums.json`.

    Raises:
        ValueError: If the model or the processor is not of this package.
        FileExistsError: If the folder is not empty and must not be replaced.
    """
    auto_map = _auto_map_of(model)
    if not hasattr(processor, "save_pretrained") or not type(processor).__name__.startswith("VasoMIMImageProcessor"):
        raise ValueError(f"`processor` must be a VasoMIMImageProcessor, got a {type(processor).__name__}.")
    with new_folder(folder, overwrite) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        _set_auto_map(temporary / "config.json", auto_map)
        _set_auto_map(temporary / "preprocessor_config.json", IMAGE_PROCESSOR_CLASSES)
        for path in code_files(model.config.model_type):
            shutil.copyfile(path, temporary / path.name)
        (temporary / "README.md").write_text(card or model_card(model), encoding="utf-8")
        write_checksums(temporary)
    return Path(folder)


def code_files(model_type: str) -> list[Path]:
    """Python files that a published model needs: those of its Auto classes and their imports.

    Args:
        model_type (`str`): `"vasomim"` or `"vasomim_unext"`.

    Returns:
        `list[Path]`: Paths in this package, sorted by name.

    Example:
        >>> [path.stem for path in code_files("vasomim_unext") if path.stem.startswith("image_processing")]
        ['image_processing_boxes', 'image_processing_reading', 'image_processing_vasomim']
    """
    references = [*AUTO_CLASSES[model_type].values(), *IMAGE_PROCESSOR_CLASSES["AutoImageProcessor"].values()]
    package = Path(__file__).parent
    entries = {package / f"{reference.split('.')[0]}.py" for reference in references}
    # same lookup as in transformers when it loads the folder
    imported = {Path(path) for entry in entries for path in get_relative_import_files(str(entry))}
    return sorted(entries | imported)


def write_checksums(folder: str | Path) -> None:
    """Write `checksums.json`: the SHA-256 of every file in a folder by relative path."""
    folder = Path(folder)
    digests = {str(path.relative_to(folder).as_posix()): _sha256(path) for path in _files(folder)}
    (folder / CHECKSUMS).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")


def verify(folder: str | Path) -> None:
    """Check a folder against its `checksums.json`.

    Hub clients do not detect corrupted bytes. This finds damage; it does not protect against someone who also replaces
    the checksums.

    Args:
        folder (`str` or `Path`): A folder written by [`export`], or a download of one.

    Raises:
        FileNotFoundError: If the folder has no `checksums.json`.
        ValueError: If a file is missing or changed, or an unlisted code or weight file is present.
    """
    folder = Path(folder)
    if not (folder / CHECKSUMS).is_file():
        raise FileNotFoundError(f"{folder} has no {CHECKSUMS}. Create it with `write_checksums` from a good copy.")
    digests = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    problems = [f"{name} is missing" for name in digests if not (folder / name).is_file()]
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name in digests and _sha256(path) != digests[name]:
            problems.append(f"{name} has changed")
        elif name not in digests and path.suffix in (".py", ".json", ".safetensors"):
            problems.append(f"{name} is not listed")
    if problems:
        raise ValueError(f"{folder} does not match its {CHECKSUMS}: {', '.join(sorted(problems))}. Download it again.")


def push_to_hub(folder: str | Path, repo_id: str, private: bool = True, token: str | None = None) -> str:
    """Upload an exported folder after verifying its checksums.

    `hf upload OWNER/NAME FOLDER` uploads the same files without verification, and creates a public repository unless
    `--private` is given.

    Args:
        folder (`str` or `Path`): A folder written by [`export`].
        repo_id (`str`): Repository on the Hub, `"owner/name"`; created if it does not exist.
        private (`bool`, defaults to `True`): Whether a new repository is private.
        token (`str`, *optional*): Access token; defaults to the one stored by `hf auth login`.

    Returns:
        `str`: URL of the commit.

    Raises:
        FileNotFoundError, ValueError: As for [`verify`].
    """
    verify(folder)
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload model").commit_url


def _auto_map_of(model: PreTrainedModel) -> dict[str, str]:
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    auto_map = AUTO_CLASSES.get(model_type, {})
    names = {reference.split(".")[1] for reference in auto_map.values()}
    if type(model).__name__ not in names:
        raise ValueError(
            f"`model` must be one of the models of this package, got a {type(model).__name__}. Supported: "
            f"{', '.join(_publishable())}."
        )
    return auto_map


def _publishable() -> list[str]:
    references = {
        reference
        for classes in AUTO_CLASSES.values()
        for auto_class, reference in classes.items()
        if auto_class != "AutoConfig"
    }
    return sorted(reference.split(".")[1] for reference in references)


def _set_auto_map(path: Path, auto_map: Mapping[str, object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["auto_map"] = auto_map
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    """All files of a folder except the checksums and hidden files, such as a client's `.cache`."""
    found = (path for path in folder.rglob("*") if path.is_file())
    relative = {path: path.relative_to(folder) for path in found}
    return sorted(
        path
        for path, name in relative.items()
        if name.as_posix() != CHECKSUMS and not any(part.startswith(".") for part in name.parts)
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
