"""Files that appear whole or not at all, and their sizes in words."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ConfigError, TrainingError
from .regular_files import SMALL_TEXT, open_regular, read_text

if TYPE_CHECKING:
    from torch import Tensor


NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)  # made here, whatever lies there


@contextmanager
def written_whole(path: Path, durable: bool = True, private: bool = False, begun: Path | None = None) -> Iterator[Path]:
    """A new, empty file beside ``path`` to write to; at the end it is renamed over ``path``.

    A reader, or a restart after ``kill -9``, finds the old file or the new one. After an error the old one stays.
    ``durable`` holds that after a power loss too, at the price of waiting for the disk. ``private`` is for secrets: the
    file is readable by its owner alone from its first byte on. ``begun`` is that file where :func:`begin_file` made it.

    Nobody can know the file's name beforehand, and it is made by this process or not at all: a link that somebody else
    planted in the folder leads nowhere. A link at ``path`` itself is replaced, not followed.
    """
    temporary = begun or begin_file(path, private)
    try:
        yield temporary
        if durable:
            flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        flush(path.parent)  # the rename itself is durable once the folder is flushed


def begin_file(path: Path, private: bool = False) -> Path:
    """The new, empty file that :func:`written_whole` renames to ``path``."""
    temporary = temporary_name(path)
    os.close(os.open(temporary, NEW_FILE, 0o600 if private else 0o666))
    return temporary


def temporary_name(path: Path) -> Path:
    """Where a file or folder is made before it is renamed to ``path``: its process is in the name, the rest chance."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}.tmp")


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
        match = re.fullmatch(r"\..+?\.(\d+)\.[0-9a-f]{16}\.tmp", path.name)  # as temporary_name says
        if match is None or is_running(int(match[1])):
            continue
        if path.is_dir() and not path.is_symlink():
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


def place_of(error: OSError, folder: Path) -> Path:
    """What in ``folder`` could not be written; the folder itself if that was a temporary file, or is not told."""
    name = error.filename2 or error.filename  # of a renaming what it was to become
    if not isinstance(name, str | os.PathLike) or os.fspath(name).endswith(".tmp"):
        return folder
    return Path(name)


FILES = (".arrow", ".csv", ".html", ".json", ".jsonl", ".key", ".md", ".parquet", ".png", ".safetensors")  # no folders
OWNER_FILE = ".made-by"  # the commands that may write over what lies in a folder, or clear it; a line each


def begin_anew(folder: Path, maker: str) -> None:
    """Make ``folder`` empty and mark it as ``maker``'s: what ``maker`` made there before goes, and nothing else.

    Raises:
        ConfigError: it holds something, and no mark of ``maker``; or it cannot be written.
    """
    refuse_to_clear(folder, maker)
    try:
        if folder.exists():
            shutil.rmtree(folder)
        make_folder(folder)
        (folder / OWNER_FILE).write_text(f"{maker}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out: {folder} cannot be made anew ({error.strerror or error})") from error


def refuse_to_clear(folder: Path, maker: str) -> None:
    """The refusal of :func:`begin_anew`, where nothing is to be written yet."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"out: {folder} would be removed, and is no folder that {maker} made; choose another one")
    if maker not in _makers(folder) and folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"out: {folder} would be removed, and {_not_marked(folder, maker)}; give another folder, or remove it"
        )


def claim_names(folder: Path, maker: str, names: Iterable[str], own: bool = False, argument: str = "out") -> None:
    """Before ``maker`` writes files of these names into ``folder``, which is made: they are its own, or not there.

    A folder that is there is taken as long as it is empty: people put the large ones on another disk by a link.

    Args:
        folder: what the user named.
        maker: the command.
        names: of files and folders in it that may be written over or removed.
        own: ``maker`` has made them, as something else in the folder shows that nobody else's file holds by chance:
            releases before left no mark.
        argument: that named the folder, for the error.

    Raises:
        ConfigError: one is there, and no mark that ``maker`` wrote into this folder; or it cannot be written.
    """
    makers = _makers(folder)
    refuse_foreign(folder, maker, names, own or maker in makers, argument)
    if maker in makers:
        return
    if not (own or makers) and _in_the_way(folder / OWNER_FILE):
        makers = _makers(folder)  # of a process that began meanwhile
        if maker in makers:
            return
        if not makers:
            wrong = "is not what this package writes there; give another folder"
            raise ConfigError(f"{argument}: {folder / OWNER_FILE} {wrong}")
    make_folder(folder, argument)
    try:
        with written_whole(folder / OWNER_FILE) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in (*makers, maker)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{argument}: cannot write to {place_of(error, folder)} ({error.strerror or error})"
        ) from error


def refuse_foreign(folder: Path, maker: str, names: Iterable[str], own: bool = False, argument: str = "out") -> None:
    """The refusal of :func:`claim_names`, where nothing is to be written yet."""
    names = tuple(names)
    _refuse_folders(folder, maker, names, argument)
    if own:
        return
    found = next((name for name in names if _in_the_way(folder / name)), None)
    # a process that began meanwhile wrote its mark before its files, so marks are looked at last
    if found is not None and maker not in _makers(folder):
        raise ConfigError(
            f"{argument}: {folder / found} would be written over, and {_not_marked(folder, maker)}; give another "
            "folder, or remove it"
        )


def _refuse_folders(folder: Path, maker: str, names: Iterable[str], argument: str) -> None:
    """A folder where a file is to be written is in the way whoever made it, and even if it is empty."""
    for path in (folder / name for name in names):
        if path.suffix in FILES and path.is_dir():
            raise ConfigError(
                f"{argument}: {path} is a folder, where {maker} writes a file; give another folder, or remove it"
            )


def _not_marked(folder: Path, maker: str) -> str:
    """Why what lies in a folder does not count as ``maker``'s."""
    if makers := _makers(folder):
        return f"the folder was made by {' and '.join(makers)}, not {maker} (as its file {OWNER_FILE} says)"
    return f"nothing says that {maker} made the folder (it has no file {OWNER_FILE})"


def _in_the_way(path: Path) -> bool:
    try:
        return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))
    except OSError:
        return True


def _makers(folder: Path) -> list[str]:
    """The commands that the mark of a folder names; none if there is no mark, or what is called so is none."""
    try:
        lines = read_text(folder / OWNER_FILE, SMALL_TEXT).splitlines()
    except (OSError, ValueError):
        return []
    return lines if all(re.fullmatch("[a-z]+(-[a-z]+)*", line) for line in lines) else []


def free_name(stem: str, taken: dict[str, int]) -> str:
    """The stem, numbered if it is among ``taken``, which it then joins; upper and lower case count as the same, as on
    some file systems. ``taken`` holds names in small letters, and of each the last number that was given for it."""
    name, number = stem, taken.get(stem.lower(), 1)
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken[stem.lower()] = number
    taken.setdefault(name.lower(), 1)
    return name


def names_after(sources: Iterable[str]) -> list[str]:
    """For each source a name to call its picture by: its file's without suffix, numbered where several are alike."""
    taken: dict[str, int] = {}
    return [free_name(Path(source).stem or "image", taken) for source in sources]


def flush(path: Path) -> None:
    """Wait until a file, or on POSIX the names in a folder, are on the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size_and_time(path: str | os.PathLike) -> tuple[int, int] | None:
    """Length in bytes and date in nanoseconds, by which a file is told from another of its name; ``None`` without one.

    Not a hash of the bytes: to hash a million radiographs takes as long as to read them again.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def size_in_words(count: float) -> str:
    """A number of bytes in the unit that suits it: ``12.50 MiB``."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} bytes"
