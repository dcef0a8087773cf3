"""Folders for the Hub: a model that loads with and without this package, its card, and checksums of all of it."""

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

# By model type, what each Auto class loads from a folder: file and class. A new head adds its line here.
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
    """Write what a repository on the Hub needs for this model.

    The folder loads with every Auto class, in a process that has imported this package and, with
    `trust_remote_code=True`, in one that has not. To leave the decoder and the segmentor out, export the encoder:
    `export(model.vasomim, ...)`. [`push_to_hub`] uploads the folder.

    Args:
        model (`PreTrainedModel`):
            A model of this package. Its weights are written as they are, in their dtype.
        processor (`BaseImageProcessor`):
            The image processor that belongs to it.
        folder (`str` or `Path`):
            Folder to write; it appears when all is written.
        card (`str`, *optional*):
            Text of README.md, from [`model_card`]. Left out, a card that names the model and states nothing about its
            training and results.
        overwrite (`bool`, defaults to `False`):
            Whether a model folder that is there already is replaced.

    Returns:
        `Path`: The folder, with `config.json`, `model.safetensors`, `preprocessor_config.json`, `README.md`, the Python
        files that the models need, and `checksums.json`.

    Raises:
        ValueError: If the model or the processor is not one that this package can publish.
        FileExistsError: If the folder has files in it that may not be replaced.
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
    """The Python files that a published model needs: those of its Auto classes and all that these import.

    Args:
        model_type (`str`): `"vasomim"` or `"vasomim_unext"`.

    Returns:
        `list[Path]`: Paths in this package, by name.

    Example:
        >>> [path.stem for path in code_files("vasomim_unext") if path.stem.startswith("image_processing")]
        ['image_processing_boxes', 'image_processing_reading', 'image_processing_vasomim']
    """
    references = [*AUTO_CLASSES[model_type].values(), *IMAGE_PROCESSOR_CLASSES["AutoImageProcessor"].values()]
    package = Path(__file__).parent
    entries = {package / f"{reference.split('.')[0]}.py" for reference in references}
    # found as transformers finds them when it loads the folder
    imported = {Path(path) for entry in entries for path in get_relative_import_files(str(entry))}
    return sorted(entries | imported)


def write_checksums(folder: str | Path) -> None:
    """Write `checksums.json`: the SHA-256 of every file of a folder, by its path in it."""
    folder = Path(folder)
    digests = {str(path.relative_to(folder).as_posix()): _sha256(path) for path in _files(folder)}
    (folder / CHECKSUMS).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")


def verify(folder: str | Path) -> None:
    """Compare a folder with its `checksums.json`.

    Clients of the Hub do not notice a byte that was changed on the way. This finds damage; it is no protection against
    somebody who replaces the checksums too.

    Args:
        folder (`str` or `Path`): A folder written by [`export`], or a download of one.

    Raises:
        FileNotFoundError: If the folder has no `checksums.json`.
        ValueError: If a file is missing or changed, or there is code or a weight file that is not listed.
    """
    folder = Path(folder)
    if not (folder / CHECKSUMS).is_file():
        raise FileNotFoundError(
            f"{folder} has no {CHECKSUMS}. Write it with `write_checksums` where the files are good."
        )
    digests = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    problems = [f"{name} is missing" for name in digests if not (folder / name).is_file()]
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name in digests and _sha256(path) != digests[name]:
            problems.append(f"{name} is changed")
        elif name not in digests and path.suffix in (".py", ".json", ".safetensors"):
            problems.append(f"{name} is not listed")
    if problems:
        raise ValueError(f"{folder} does not match its {CHECKSUMS}: {', '.join(sorted(problems))}. Download it again.")


def push_to_hub(folder: str | Path, repo_id: str, private: bool = True, token: str | None = None) -> str:
    """Upload an exported folder, after its checksums were compared.

    `hf upload OWNER/NAME FOLDER` uploads the same files without that; a repository that it creates is public unless
    `--private` is given.

    Args:
        folder (`str` or `Path`): A folder written by [`export`].
        repo_id (`str`): Repository on the Hub, `"owner/name"`; it is created if it does not exist.
        private (`bool`, defaults to `True`): Whether a new repository is private.
        token (`str`, *optional*): Access token; by default the one that `hf auth login` has stored.

    Returns:
        `str`: Address of the commit.

    Raises:
        FileNotFoundError, ValueError: As [`verify`].
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
            f"`model` must be one of the models of this package, got a {type(model).__name__}. Published can be "
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
    """All files of a folder but the checksums and what is hidden, such as a client's `.cache`."""
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
