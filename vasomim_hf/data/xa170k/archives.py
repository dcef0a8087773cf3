"""Files by name, in a folder or in a zip on disk or on the Hub, read one by one without unpacking anything."""

import io
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from ..faults import Fault
from ..reading.files import FrameReadError
from ..sources import size_and_sample


# A member that claims to be larger is no frame; the longest cine runs have a tenth of this
MOST_BYTES = 2**31
# Bytes that are fetched together where a zip is read over the network
BLOCK_SIZE = 4 * 2**20
_HIDDEN = re.compile(r"(?:^|/)(?:\.|__macosx(?:/|$)|thumbs\.db$|desktop\.ini$)", re.I)
_LOCAL_HEADER = b"PK\x03\x04"
# What the standard library raises for a damaged, encrypted or unknown member
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


@dataclass
class Listing:
    """Names in a store: files that may be of use, those of the operating system, and what was left out and why."""

    paths: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def add(self, path: str) -> None:
        """Put a file where it belongs."""
        if not path.isprintable() or not _is_text(path):
            self.faults.append(
                Fault(ascii(path), "left out, since its name is no text that can be stored. Rename it.")
            )
        elif _HIDDEN.search(path):
            self.hidden.append(path)
        else:
            self.paths.append(path)


def _is_text(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class Store(Protocol):
    """Files by their path, with `/` between the parts."""

    def listing(self) -> Listing:
        """All files."""
        ...

    def open(self, path: str) -> BinaryIO:
        """A file for reading at any place; raises `OSError` or `FrameReadError`."""
        ...

    def read(self, path: str) -> bytes:
        """The bytes of a file; raises `OSError` or `FrameReadError`."""
        ...

    def fingerprint(self, path: str) -> list:
        """What the bytes are, as JSON, reading no more of them than it takes."""
        ...

    def places(self) -> set[str]:
        """Folders of this machine that the files lie in: no concern of others, who read what was amiss."""
        ...


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Errors of the system with the path inside the store, not that on this machine, since reports are published."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise OSError(error.errno, error.strerror, path) from error


class FolderStore:
    """Files below a folder; links are followed, but none twice.

    Args:
        root (`Path`): The folder.
    """

    def __init__(self, root: Path):
        self.root = root

    def listing(self) -> Listing:
        """All files at every depth, in no order."""
        listing, seen = Listing(), set()

        def refused(error: OSError) -> None:
            name = os.path.relpath(error.filename, self.root)
            listing.faults.append(Fault(name, f"cannot be looked into: {error.strerror}"))

        for parent, folders, names in os.walk(self.root, followlinks=True, onerror=refused):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            start = Path(parent).relative_to(self.root).as_posix().removeprefix(".")
            for name in names:
                listing.add(f"{start}/{name}".lstrip("/"))
        return listing

    def open(self, path: str) -> BinaryIO:
        """A file for reading."""
        with _named(path):
            return open(self.root / path, "rb")

    def read(self, path: str) -> bytes:
        """The bytes of a file."""
        with self.open(path) as file:
            return file.read()

    def fingerprint(self, path: str) -> list:
        """Size, and digest of the content, or of samples where it ends with a check sum; see `size_and_sample`."""
        with _named(path):
            return list(size_and_sample(self.root / path))

    def places(self) -> set[str]:
        """The folder, by its name and by that without links."""
        return {os.path.abspath(self.root), os.path.realpath(self.root)}


class _Opened(NamedTuple):
    """A zip as one process sees it."""

    process: int
    archive: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]
    faults: list[Fault]


class ZipStore:
    """Members of a zip, which every process opens for itself.

    Args:
        path (`str` or `Path`): File on disk, or what messages call it.
        opener (callable, *optional*): Opens it where it is not on disk; has to survive pickling.

    Attributes:
        name (`str`): What messages call it: of a file on disk its name alone.
    """

    def __init__(self, path: str | Path, opener: Callable[[], BinaryIO] | None = None):
        self.path = path
        self.name = os.path.basename(path) if opener is None else str(path)
        self._opener = opener
        self._opened: _Opened | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": None}

    def listing(self) -> Listing:
        """All members but folders; those that cannot be read or lead out of the archive are faults.

        Raises:
            DamagedArchiveError: If it is no zip, or its end is missing.
        """
        opened = self._open()
        listing = Listing(faults=list(opened.faults))
        for path in opened.members:
            listing.add(path)
        return listing

    def open(self, path: str) -> BinaryIO:
        """A member, unpacked in memory."""
        return io.BytesIO(self.read(path))

    def read(self, path: str) -> bytes:
        """The bytes of a member, whose check sum is verified."""
        opened = self._open()
        member = opened.members[path]
        if member.file_size > MOST_BYTES:
            raise FrameReadError(f"`{path}` in {self.name} claims {member.file_size} bytes, which is no frame.")
        try:
            return opened.archive.read(member)
        except DAMAGED as error:
            raise FrameReadError(
                f"`{path}` in {self.name} is damaged ({type(error).__name__}: {error}). Get the archive again."
            ) from error
        except OSError as error:
            if self._opener is None:
                raise
            # It would be taken for a fault of this frame, and of all that follow
            raise ConnectionAbort(f"{self.name} cannot be read any more ({error}). Run it again to go on.") from error

    def fingerprint(self, path: str) -> list:
        """Size and check sum, as the directory of the zip has them."""
        member = self._open().members[path]
        return [member.file_size, member.CRC]

    def places(self) -> set[str]:
        """The folder it is in, and that of the file that has the bytes, where it is a link in the Hub client's cache."""
        if self._opener is not None:
            return set()
        return {os.path.dirname(path) for path in (os.path.abspath(self.path), os.path.realpath(self.path))}

    def _open(self) -> _Opened:
        # A file handle that came through a fork shares its position with the parent
        if self._opened is None or self._opened.process != os.getpid():
            archive = self._archive()
            faults: list[Fault] = []
            self._opened = _Opened(os.getpid(), archive, dict(_members(archive, faults)), faults)
        return self._opened

    def _archive(self) -> zipfile.ZipFile:
        try:
            with _named(self.name):
                return zipfile.ZipFile(self.path if self._opener is None else self._opener())
        except DAMAGED as error:
            raise DamagedArchiveError(self._diagnosis(error)) from error

    def _diagnosis(self, error: Exception) -> str:
        if self._opener is not None:
            return f"{self.name} is no zip, or the directory at its end is missing ({error}). Look at it on the Hub."
        with open(self.path, "rb") as file:
            start, size = file.read(4), file.seek(0, os.SEEK_END)
        if start != _LOCAL_HEADER:
            return (
                f"{self.name} is no zip ({error}); it has {size} bytes and begins with {start!r}. Check the download."
            )
        return (
            f"{self.name} begins as a zip, but the directory at its end is missing or damaged ({error}): with {size} bytes "
            "the download is not complete. Go on with it, such as with `curl -L -C - -o FILE URL`, or delete this file "
            "and run it again."
        )


class DamagedArchiveError(ValueError):
    """A zip that cannot be opened."""


class ConnectionAbort(RuntimeError):
    """An archive on the network went away; not a fault of one frame, so that it ends what reads it."""


def _members(archive: zipfile.ZipFile, faults: list[Fault]) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Members by clean path; a later one of the same path takes the place of an earlier one, as on unpacking."""
    seen = set()
    for member in archive.infolist():
        path = _clean(member.filename)
        reason = _unusable(member)
        if member.is_dir() or path == "":
            continue
        if reason is not None:
            faults.append(Fault(member.filename, reason))
            continue
        if path in seen:
            faults.append(Fault(path, "is twice in the archive; the later one counts, as on unpacking"))
        seen.add(path)
        yield path, member


def _clean(name: str) -> str:
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _unusable(member: zipfile.ZipInfo) -> str | None:
    name = member.filename.replace("\\", "/")
    if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
        return "left out, since its path leads out of the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "left out, since it is a link"
    if member.flag_bits & 1:
        return "left out, since it is encrypted. Unpack the archive with its password and name the folder."
    return None
