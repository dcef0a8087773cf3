"""Writing a folder or a file as a whole: under its name it is complete, or it is not there."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(folder: str | Path, overwrite: bool = False, marker: str = "config.json") -> Iterator[Path]:
    """Fill a hidden folder beside `folder`, and give it its name when the block ends without an error.

    Args:
        folder (`str` or `Path`): The folder to write. Parents are made.
        overwrite (`bool`): Whether a folder of the same kind that is there already is replaced as a whole.
        marker (`str`, defaults to `"config.json"`): The file by which a folder of that kind is known.

    Yields:
        `Path`: Where to write.

    Raises:
        FileExistsError: If `folder` is a file, or a folder with files that may not be replaced: without `overwrite`, or
            without `marker` in it, since such a folder holds something else.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "model"
        >>> with new_folder(target) as folder:
        ...     _ = (folder / "config.json").write_text("{}")
        >>> [path.name for path in target.iterdir()]
        ['config.json']
    """
    folder = Path(folder).resolve()
    _refuse_occupied(folder, overwrite, marker)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(folder)
    temporary.mkdir()
    try:
        yield temporary
        _flush(temporary)
        _put(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Fill a hidden file beside `path`, and give it its name when the block ends without an error.

    Args:
        path (`str` or `Path`): The file to write; one that is there is replaced.

    Yields:
        `Path`: Where to write; it has the ending of `path`.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_file(target) as path:
        ...     _ = path.write_text("all of it")
        >>> target.read_text()
        'all of it'
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
    """Refuse a file that could not be written, before the work that fills it. Its folder is made.

    Args:
        path (`str` or `Path`): A file that [`atomic_file`] will write.

    Raises:
        OSError: If it is a folder, or its folder cannot be made or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Name a file to write.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(
            f"Nothing can be written to {path.parent} ({error.strerror}). Name another folder, or free this one."
        ) from error


def _beside(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"


def _refuse_occupied(folder: Path, overwrite: bool, marker: str) -> None:
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file. Name a folder to write.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{folder} has files in it. Name another folder, or pass overwrite=True to replace it.")
    if not (folder / marker).is_file():
        raise FileExistsError(
            f"{folder} has files in it but no {marker}, so that it is something else and is not replaced, although "
            "overwrite=True. Name another folder."
        )


def _flush(folder: Path) -> None:
    # Otherwise the new name may reach the disk before the content
    for path in folder.rglob("*"):
        if path.is_file():
            _flush_file(path)


def _flush_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _put(temporary: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(temporary, folder)
        return
    old = _beside(folder)
    os.replace(folder, old)
    try:
        os.replace(temporary, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old)
