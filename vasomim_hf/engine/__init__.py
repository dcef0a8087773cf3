"""Training and evaluation, as called by the scripts in `training/` and the command line."""

from typing import TYPE_CHECKING

from ..import_utils import lazy_names


if TYPE_CHECKING:
    from .run_config import RunConfigError as RunConfigError
    from .run_config import load_run as load_run
    from .run_config import make_run as make_run
    from .script import run_script as run_script


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
