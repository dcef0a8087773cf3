"""Tasks by name. To add one, write a subclass of [`Task`] in a file of this folder and register it here."""

from .classification import Classification
from .detection import Detection
from .segmentation import Segmentation
from .task import Task


TASKS: dict[str, Task] = {task.kind: task for task in (Segmentation(), Detection(), Classification())}


def find_task(kind: str) -> Task:
    """Look up a task.

    Args:
        kind (`str`): `"segmentation"`, `"detection"` or `"classification"`.

    Returns:
        `Task`: The task.

    Raises:
        ValueError: If there is none of this name.

    Example:
        >>> find_task("detection").column
        'objects'
    """
    if kind not in TASKS:
        raise ValueError(f"`kind` must be one of {', '.join(TASKS)}, got {kind!r}.")
    return TASKS[kind]


def task_of_model(class_name: str) -> Task | None:
    """Task of a model class by the end of its name; `None` for a model without a head.

    Args:
        class_name (`str`): Such as `"VasoMIMForObjectDetection"`.

    Returns:
        `Task`, *optional*: The task.
    """
    return next((task for task in TASKS.values() if class_name.endswith(task.model_endings)), None)
