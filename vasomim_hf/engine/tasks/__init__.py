"""Tasks: labels, model, metrics and pictures of segmentation, detection and classification."""

from typing import TYPE_CHECKING

from ...import_utils import lazy_names


if TYPE_CHECKING:
    from .registry import TASKS as TASKS
    from .registry import find_task as find_task
    from .registry import task_of_model as task_of_model
    from .task import Task as Task


__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
