"""Atomic writing of folders and files: they are either complete or absent."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# Folder of the result below the `output_dir` of any run
FINAL_NAME = "final"


@contextmanager
def new_folder(folder: str | Path, overwrite: bool = False, marker: str = "config.json") -> Iterator[Path]:
    """Write to a hidden folder next to `folder` and rename it to `folder` when the block ends without an error.

    Args:
        folder (`str` or `Path`): Folder to write. Parent folders are created.
        overwrite (`bool`): Whether an existing folder of the same kind is replaced as a whole.
        marker (`str`, defaults to `"config.json"`): File that identifies folders of this kind.

    Yields:
        `Path`: Temporary folder to write to.

    Raises:
        FileExistsError: If `folder` is a file, or contains files and must not be replaced: `overwrite` is `False`, or
        it does not contain `marker` and is therefore something else.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "model"
        >>> with new_folder(target) as folder:
        ...     _ = (folder / "config.json").write_text("{}")
        >>> [path.name for path in target.iterdir()]
        ['config.json']
    """
    folder = Path(folder).resolve()
    _check_replaceable(folder, overwrite, marker)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(folder)
    temporary.mkdir()
    try:
        yield temporary
        _flush(temporary)
        _move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Write to a hidden file next to `path` and rename it to `path` when the block ends without an error.

    Args:
        path (`str` or `Path`): File to write; an existing one is replaced.

    Yields:
        `Path`: Temporary file to write to, with the suffix of `path`.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_file(target) as path:
        ...     _ = path.write_text("complete")
        >>> target.read_text()
        'complete'
    """
    path = Path(path)
    temporary = path.parent / f".{uuid.uuid4().hex[:8]}.{path.name}"
    try:
        yield temporary
        _flush_file(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raise an error if a file cannot be written, before starting work on its content. Creates its folder.

    Args:
        path (`str` or `Path`): File that [`atomic_file`] will write.

    Raises:
        OSError: If it is a folder, or its folder cannot be created or is not writable.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Choose a file to write.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(
            f"Cannot write to {path.parent} ({error.strerror}). Choose another folder, or change its permissions."
        ) from error


def _temporary_path(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"


def _check_replaceable(folder: Path, overwrite: bool, marker: str) -> None:
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file. Choose a folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{folder} is not empty. Choose another folder, or pass overwrite=True to replace it.")
    if not (folder / marker).is_file():
        raise FileExistsError(
            f"{folder} contains files but no {marker}, so it is something else and is not replaced despite "
            "overwrite=True. Choose another folder."
        )


def _flush(folder: Path) -> None:
    # otherwise the rename may reach the disk before the content
    for path in folder.rglob("*"):
        if path.is_file():
            _flush_file(path)


def _flush_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _move_into_place(temporary: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(temporary, folder)
        return
    old = _temporary_path(folder)
    os.replace(folder, old)
    try:
        os.replace(temporary, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old)
