"""What ``hdxray-fast stream`` wrote, in an object store: fetched through fsspec, by the names that it gives.

An address goes into settings and logs, so it may hold no secret; and what a store's package says of an error may hold
one (a signed address), so errors here give its kind alone.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ...errors import ConfigError, HDXrayError, MissingDependencyError, TrainingError
from ...extras import install
from ...regular_files import parse_json
from .index import INDEX as TABLE
from .index import LOOKUP
from .shards import SETTINGS, ShardError, check_settings

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://")
PIECE = 8 << 20  # bytes of a request
TRIES, FIRST_TRIES = 8, 3  # of a fetch, two minutes in all; of the first one, which a wrong address shall not hold up
PAUSE = 1.0  # seconds before the second one; twice as many before each other
MOST_SETTINGS = 1 << 20  # bytes of settings.json
DIGEST = re.compile("[0-9a-f]{64}")

T = TypeVar("T")


def is_address(data: str | os.PathLike) -> bool:
    """Whether this is an address in a store (``s3://bucket/chest``), and no path."""
    return isinstance(data, str) and ADDRESS.match(data) is not None


class ChunkStore:
    """The files of a set of chunks at an address that fsspec can open.

    Processes that fork or pickle it open the store anew.

    Args:
        address: of the folder, such as ``s3://bucket/chest``.

    Raises:
        ConfigError: the address holds a user, a password or a query, or names a store that fsspec does not know.
        MissingDependencyError: fsspec, or its package for this store, is not installed.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if "::" in address or parts.query or parts.username is not None or parts.password is not None:
            raise ConfigError(
                "data: the address holds a user, a password, a query or a chain of stores; give the plain address, and "
                "credentials as the package of the store takes them (variables of the environment, a file of its own)"
            )
        self.address, self._kind = address.rstrip("/"), parts.scheme
        self._opened: tuple[int, Any, str] | None = None  # process, file system, folder in it
        self._open()

    def name(self, file: str) -> str:
        """Of a file, for errors."""
        return f"{self.address}/{file}"

    def settings(self) -> tuple[dict, bytes]:
        """What ``settings.json`` says, checked, and its bytes.

        Raises:
            ConfigError: there are no chunks that this release wrote, or they cannot be reached.
        """
        try:
            content = self._tried(SETTINGS, lambda files, path: _read(files, path, MOST_SETTINGS), FIRST_TRIES)
        except ShardError as error:
            raise ConfigError(
                f"data: {error}; an address is that of a folder which hdxray-fast stream wrote and which was copied "
                "whole"
            ) from None
        place = self.name(SETTINGS)
        try:
            found = parse_json(content.decode())
        except ValueError:  # of what it says nothing is to be repeated
            raise ConfigError(f"data: {place} is damaged; copy it again") from None
        found = check_settings(found, place, self.address)
        if what := _other_kind(found):
            raise ConfigError(f"data: {place} {what}; write the chunks anew (hdxray-fast stream)")
        return found, content

    def size(self, file: str) -> int:
        """Of a file, bytes.

        Raises:
            ShardError: it is missing, or cannot be reached.
        """
        return int(self._tried(file, lambda files, path: files.size(path)))

    def fetch(self, file: str, to: Path, size: int) -> None:
        """Write a file of ``size`` bytes over ``to``, which is there.

        Raises:
            ShardError: it is missing, cannot be reached, or has another size.
            TrainingError: ``to`` cannot be written.
        """
        self._tried(file, lambda files, path: _copy(files, path, to, size))

    def _tried(self, file: str, work: Callable[[Any, str], T], tries: int = TRIES) -> T:
        """``work`` on the file system and the file's path in it, several times if need be."""
        for number in range(tries):
            if number:
                time.sleep(PAUSE * 2 ** (number - 1))
            try:
                files, folder = self._open()
                return work(files, f"{folder}/{file}")
            except HDXrayError:
                raise
            except FileNotFoundError:
                raise ShardError(f"{self.name(file)}: is missing; copy it again, or write the chunks anew") from None
            except PermissionError:
                raise ShardError(f"{self.name(file)}: the store refuses to give it; look at the credentials") from None
            except _CutError:
                kind = "it had another length than the store tells"
            except Exception as error:  # each package of a store has its own
                kind = type(error).__name__
        raise ShardError(
            f"{self.name(file)}: cannot be fetched ({kind}; {tries} attempts); look at the network or the store, then "
            "start again"
        )

    def _open(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():  # what a store's package holds outlives no fork
            try:
                from fsspec.core import url_to_fs
            except ImportError as error:
                raise MissingDependencyError(f"object stores need fsspec: {install('streaming')}") from error
            try:
                files, folder = url_to_fs(self.address)
            except ImportError as error:
                raise MissingDependencyError(
                    f"data: addresses of the kind {self._kind}:// need a package that is not installed ({error})"
                ) from None
            except ValueError:
                raise ConfigError(f"data: fsspec knows no store of the kind {self._kind}://") from None
            except Exception as error:
                raise ConfigError(f"data: {self.address} cannot be opened ({type(error).__name__})") from None
            self._opened = os.getpid(), files, folder.rstrip("/")
        return self._opened[1:]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": None}


class _CutError(Exception):
    """A file was shorter, or longer, than the store had told."""


def _copy(files, path: str, to: Path, size: int) -> None:
    with files.open(path, "rb", block_size=PIECE, cache_type="none") as stream, _to_disk(to) as write:
        done = 0
        while done <= size and (piece := stream.read(PIECE)):
            write(piece)
            done += len(piece)
    if done != size:
        raise _CutError


def _read(files, path: str, most: int) -> bytes:
    with files.open(path, "rb", block_size=most, cache_type="none") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise _CutError
    return content


@contextmanager
def _to_disk(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Writes over a file that is there; what the disk says is told from what the store says."""

    def write(piece: bytes) -> None:
        try:
            out.write(piece)
            out.flush()
        except OSError as error:
            raise TrainingError(
                f"cache: {path.parent} cannot be written ({error.strerror or error}); make room, or let it have less "
                "(--max-cache), then start again"
            ) from error

    with path.open("r+b") as out:
        yield write


def _other_kind(settings: dict) -> str:
    """What settings of chunks lack that an address needs; blank if nothing."""
    if settings.get("chunks") is not True:
        return "tells of no chunks"
    if any(type(settings.get(name)) is not int or settings[name] < 1 for name in ("images", "bytes")):
        return "does not say how many images and bytes there are: it was written by an earlier release, or damaged"
    sums = settings.get("checksums")
    if not isinstance(sums, dict) or not all(DIGEST.fullmatch(str(sums.get(name))) for name in (TABLE, LOOKUP)):
        return "has no checksums of its index: it was written by an earlier release, or damaged"
    return ""
