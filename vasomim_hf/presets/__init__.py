"""Named model sizes of VasoMIM, one JSON file each: tiny, small, base, large, huge."""

import difflib
from pathlib import Path

from ..configuration_vasomim import VasoMIMConfig


__all__ = ["load_preset", "preset_names"]


def preset_names() -> list[str]:
    """Names of the presets, sorted by number of parameters."""
    return sorted((path.stem for path in Path(__file__).parent.glob("*.json")), key=_hidden_size)


def _hidden_size(name: str) -> int:
    return load_preset(name).hidden_size


def load_preset(name: str, **overrides: object) -> VasoMIMConfig:
    """Load the configuration of a named model size.

    Args:
        name (`str`): One of `preset_names()`.
        overrides: Values to change, such as `mask_ratio=0.75`.

    Returns:
        `VasoMIMConfig`: Configuration.

    Raises:
        ValueError: If there is no such preset, or an override is invalid.

    Example:
        >>> load_preset("huge").patch_size
        14
        >>> preset_names()
        ['tiny', 'small', 'base', 'large', 'huge']
    """
    path = Path(__file__).parent / f"{name}.json"
    if not path.is_file():
        raise ValueError(
            f"There is no preset {name!r}. Use one of {', '.join(preset_names())}, or the path of a JSON file."
        )
    return load_config_file(path, **overrides)


def load_config_file(path: str | Path, **overrides: object) -> VasoMIMConfig:
    """Load a configuration from a JSON file, optionally with overrides.

    Raises:
        ValueError: If an override is not a key of the configuration, or is invalid.
    """
    known = [name for name in VasoMIMConfig.__dataclass_fields__ if not name.startswith("_")]
    for name in overrides:
        if name not in known and not hasattr(VasoMIMConfig, name):
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"Did you mean `{close[0]}`?" if close else f"Known keys: {', '.join(known)}."
            raise ValueError(f"VasoMIMConfig has no `{name}`. {hint}")
    return VasoMIMConfig(**{**VasoMIMConfig._dict_from_json_file(path), **overrides})
