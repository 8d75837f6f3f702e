"""Files that appear whole or not at all, and their sizes in words."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def written_whole(path: Path, durable: bool = True) -> Iterator[Path]:
    """A path beside ``path`` to write to; at the end it is renamed over ``path``.

    A reader, or a restart after ``kill -9``, finds the old file or the new one. After an error the old one stays.
    ``durable`` holds that after a power loss too, at the price of waiting for the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        flush(path.parent)  # the rename itself is durable once the folder is flushed


def written_somewhere(path: Path, write: Callable[[Path], None], what: str) -> None:
    """Write results that took long to compute; if that fails for any reason, elsewhere, so that they are not lost.

    Args:
        path: of the file.
        write: writes it.
        what: it is, for the error: ``"the predictions"``.

    Raises:
        TrainingError: it could not be written there; the message says why, and where it is instead: in a folder of
            its own that nobody else may read, beside other temporary files or in the working folder.
    """
    try:
        return write(path)
    except Exception as error:
        reason, first = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}", error
    for parent in (tempfile.gettempdir(), os.getcwd()):
        folder = None
        try:
            folder = tempfile.mkdtemp(prefix="hdxray-results-", dir=parent)
            write(Path(folder) / path.name)
        except Exception:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            continue
        raise TrainingError(
            f"{path}: cannot be written ({reason}); {what} are not lost: they are in {Path(folder) / path.name}"
        ) from first
    raise TrainingError(f"{path}: cannot be written ({reason}), nor anywhere else; {what} are lost") from first


def remove_leftovers(folder: Path) -> None:
    """Remove what :func:`written_whole` left where its process was killed; what a living one writes stays."""
    for path in folder.glob(".*.tmp"):
        match = re.fullmatch(r"\..+\.(\d+)(\.old)?\.tmp", path.name)
        if match is None or is_running(int(match[1])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether a process of this machine lives; True where that cannot be told."""
    if pid == os.getpid() or os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that others may read as they may any new file."""
    from safetensors.torch import save_file

    save_file(tensors, path, metadata)
    share(path)


def share(path: Path) -> None:
    """Give a file the mode of any new file; safetensors makes its files readable for their owner alone."""
    path.chmod(0o666 & ~_umask())


@lru_cache(maxsize=1)
def _umask() -> int:
    mask = os.umask(0o077)  # it can be read by setting it alone
    os.umask(mask)
    return mask


def make_folder(folder: Path, argument: str = "out") -> None:
    """Make a folder and those above it.

    Raises:
        ConfigError: it cannot be made; the message names ``argument``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{argument}: cannot make the folder {folder} ({error.strerror})") from error


def free_name(stem: str, taken: set[str]) -> str:
    """The stem, numbered if it is among ``taken``, which it then joins; upper and lower case count as the same, as on
    some file systems."""
    name, number = stem, 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.lower())
    return name


def flush(path: Path) -> None:
    """Wait until a file, or on POSIX the names in a folder, are on the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def size_in_words(count: float) -> str:
    """A number of bytes in the unit that suits it: ``12.50 MiB``."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} bytes"
