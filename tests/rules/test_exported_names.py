"""What is public is a list, the list is complete, and each name on it explains itself and is known to the Auto classes."""

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoConfig, BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

import vasomim_hf


ROOT = Path(__file__).parents[2]
PUBLIC = [name for name in vasomim_hf.__all__ if name != "__version__"]
HUB_PREFIXES = ("configuration_", "masking_", "modeling_", "image_processing_")
HUB_MODULES = [info.name for info in pkgutil.iter_modules(vasomim_hf.__path__) if info.name.startswith(HUB_PREFIXES)]
ALL_MODULES = sorted(info.name for info in pkgutil.walk_packages(vasomim_hf.__path__, "vasomim_hf."))


def public_members(module: ModuleType) -> dict[str, object]:
    """Classes and functions that a module defines itself, by their names without an underscore in front."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }


def is_for_users(name: str, value: object) -> bool:
    """Whether it is a configuration, a model or an image processor, and neither a base class nor one backend of two."""
    kinds = (PreTrainedConfig, PreTrainedModel, BaseImageProcessor)
    return inspect.isclass(value) and issubclass(value, kinds) and not name.endswith(("PreTrainedModel", "Pil"))


def has_own_docstring(value: object) -> bool:
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    # a data class without a docstring gets its signature as one
    return bool(text) and not text.startswith(f"{value.__name__}(")


def is_known_to_an_auto_class(value: type) -> bool:
    if issubclass(value, PreTrainedConfig):
        return AutoConfig.for_model(value.model_type).__class__ is value
    if issubclass(value, PreTrainedModel):
        autos = [auto for name, auto in vars(modeling_auto).items() if name.startswith("Auto")]
        tables = [auto._model_mapping for auto in autos if hasattr(auto, "_model_mapping")]
        return any(table._extra_content.get(value.config_class) is value for table in tables)
    return any(value in backends.values() for backends in IMAGE_PROCESSOR_MAPPING._extra_content.values())


def test_the_list_is_sorted_and_names_nothing_twice():
    assert vasomim_hf.__all__ == sorted(set(vasomim_hf.__all__))


def test_every_listed_name_can_be_imported():
    assert [name for name in vasomim_hf.__all__ if not hasattr(vasomim_hf, name)] == []


def test_every_class_for_users_is_listed_and_nothing_else_is():
    modules = [importlib.import_module(f"vasomim_hf.{name}") for name in HUB_MODULES]
    members = [item for module in modules for item in public_members(module).items()]
    assert [name for name in PUBLIC if not name.endswith("Pil")] == sorted(n for n, v in members if is_for_users(n, v))


def test_every_public_class_explains_itself():
    assert [name for name in PUBLIC if not has_own_docstring(getattr(vasomim_hf, name))] == []


def unexplained(name: str) -> list[str]:
    """What in a module has no docstring, the module itself among it."""
    module = importlib.import_module(name)
    # a base class of models is explained by its models
    members = {key: value for key, value in public_members(module).items() if not key.endswith("PreTrainedModel")}
    silent = [f"{name}.{key}" for key, value in members.items() if not has_own_docstring(value)]
    return silent if module.__doc__ else [name, *silent]


def test_every_module_and_what_is_public_in_it_explain_themselves():
    assert [missing for name in ALL_MODULES for missing in unexplained(name)] == []


def test_what_a_module_lists_is_there():
    modules = {name: importlib.import_module(name) for name in ALL_MODULES}
    listed = [(name, key) for name, module in modules.items() for key in getattr(module, "__all__", [])]
    assert [f"{name}.{key}" for name, key in listed if not hasattr(modules[name], key)] == []


def test_every_public_class_is_known_to_an_auto_class():
    assert [name for name in PUBLIC if not is_known_to_an_auto_class(getattr(vasomim_hf, name))] == []


def test_a_class_that_nobody_registered_or_explained_would_be_found():
    class SilentConfig(PreTrainedConfig):
        model_type = "silent"

    class SilentModel(PreTrainedModel):
        config: SilentConfig

    class SilentProcessor(BaseImageProcessor):
        pass

    for silent in (SilentModel, SilentProcessor):
        assert is_for_users(silent.__name__, silent)
        assert not has_own_docstring(silent)
        assert not is_known_to_an_auto_class(silent)


def test_the_readme_names_everything_public():
    readme = ROOT / "README.md"
    text = readme.read_text() if readme.is_file() else pytest.skip("no README.md in this folder")
    assert [name for name in PUBLIC if name not in text and not name.endswith("Pil")] == []
