"""Files that are read are files: a pipe, a device or a folder in the place of one is refused, not waited for.

Whatever a user names, and whatever lies in a folder that somebody sent, is opened through here, images and archives
apart, which have guards of their own. What is read whole has a limit as well, and what is nested has a depth.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from .errors import NotAFileError

if TYPE_CHECKING:
    from torch import Tensor

MODEL_JSON = 64 << 20  # a config, or an index of shards: that of the largest published models has 10 MiB
RUN_JSON = 1 << 30  # what a run wrote of itself: settings, metrics, and lists with an entry for each bad file
SMALL_TEXT = 1 << 16  # a key, a mark, a checksum: some words
REPORT_TEXT = 16 << 20  # one report as text or XML: some pages
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # its marks
MOST_LINE = 16 << 20  # characters of a line of a table
MOST_TENSORS = 1 << 18  # of a file of weights: that of the largest published models has some thousands
MOST_HEADER = 64 << 20  # bytes of a file of weights before its tensors
MOST_BRACKETS, MOST_COMMAS = 1 << 22, 1 << 25  # of JSON: each list is 56 bytes in memory and two letters in a file
MOST_DEPTH = 100  # of brackets in JSON; the deepest file that anybody writes for a model or a run has about ten

_KINDS = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a pipe"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
)
# a pipe that takes the file's place between a look and the opening is not waited for
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def check_regular(path: str | os.PathLike, most: int | None = None) -> None:
    """Before a library opens a file by its name: refuse what is no file. Links to files are files.

    Args:
        path: of the file.
        most: bytes that it may hold; left out, any number.

    Raises:
        NotAFileError: something else lies there, or a file of more bytes.
        OSError: nothing is there, or it cannot be looked at.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotAFileError(path, "is a loop of links, not a file") from error
        raise
    _check(path, status, most)


def what_else(path: str | os.PathLike) -> str | None:
    """What lies at a path in place of a file, ``"is a pipe, not a file"``; ``None`` for a file, and where nothing is.

    For the messages of those that look for a file before they read it.
    """
    try:
        check_regular(path)
    except NotAFileError as error:
        return error.strerror
    except FileNotFoundError:
        return "is a link to nothing" if os.path.islink(path) else None
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return None


def open_regular(
    path: str | os.PathLike,
    mode: str = "rb",
    most: int | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> IO:
    """``open`` for reading, of files alone.

    Args:
        path: of the file.
        mode: ``"r"`` or ``"rb"``.
        most: bytes that it may hold; left out, any number.
        encoding, errors, newline: as for ``open``.

    Raises:
        NotAFileError, OSError: as :func:`check_regular`.
    """
    check_regular(path, most)  # opening a device can do things already
    handle = os.open(path, _READ)
    try:
        _check(path, os.fstat(handle), most)
        return open(handle, mode, encoding=encoding, errors=errors, newline=newline)
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: str | os.PathLike, most: int | None, text: bool = False) -> bytes:
    """All of a file.

    Args:
        path: of the file.
        most: bytes that it may hold; ``None`` for any number.
        text: refuse what holds NUL, as a file that is mostly a hole does; UTF-16 begins with its mark.

    Raises:
        NotAFileError, OSError: as :func:`check_regular`.
    """
    with open_regular(path, "rb", most) as stream:
        parts, length = [], 0
        while part := stream.read(1 << 20):  # asked for all at once, all would be allocated
            if text and not (parts or [part])[0].startswith(UTF_16):
                _refuse_nul(path, part)
            parts.append(part)
            length += len(part)
            if most is not None and length > most:  # it grows, or says another size than it has
                raise NotAFileError(path, _too_large(most))
    return b"".join(parts)


def lines(stream: IO[str], path: str | os.PathLike) -> Iterator[str]:
    """The lines of a text, for a reader of tables: a file without line ends is not read as one line.

    Args:
        stream: of the text.
        path: of the file, for the error.

    Raises:
        NotAFileError: a line has more than ``MOST_LINE`` characters.
    """
    while line := stream.readline(MOST_LINE):
        if len(line) == MOST_LINE and not line.endswith(("\n", "\r")):
            raise NotAFileError(path, f"has a line of more than {MOST_LINE >> 20} Mi characters, which no table has")
        yield line


def _refuse_nul(path: str | os.PathLike, part: bytes) -> None:
    if b"\0" in part:
        raise NotAFileError(path, "holds NUL, which no text does")


def read_text(path: str | os.PathLike, most: int | None, encoding: str = "utf-8", errors: str = "strict") -> str:
    """All of a text file, with line ends as ``\\n``; arguments and errors as for :func:`read_bytes`.

    NUL is refused, unless ``errors`` says that damage is read over. Besides:

    Raises:
        UnicodeDecodeError: it is in another encoding.
    """
    text = read_bytes(path, most, text=errors == "strict").decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike, most: int | None = MODEL_JSON) -> Any:
    """What a JSON file holds; arguments and errors as for :func:`read_bytes`, and

    Raises:
        ValueError: it is no JSON, or nested more than ``MOST_DEPTH`` deep.
    """
    return parse_json(read_bytes(path, most, text=True))


def parse_json(text: str | bytes) -> Any:
    """``json.loads`` with one kind of error, whatever the text.

    Raises:
        ValueError: it is no JSON, nested more than ``MOST_DEPTH`` deep, or holds more than any file that is read.
    """
    square, curly, comma = (b"[", b"{", b",") if isinstance(text, bytes) else ("[", "{", ",")
    if text.count(square) + text.count(curly) > MOST_BRACKETS or text.count(comma) > MOST_COMMAS:
        raise ValueError(
            f"it holds more than {MOST_BRACKETS >> 20} Mi lists and objects, or {MOST_COMMAS >> 20} Mi values"
        )
    try:
        content = json.loads(text)
    except (RecursionError, MemoryError):
        raise ValueError(_TOO_DEEP) from None
    level = [content]
    for _ in range(MOST_DEPTH):
        if not (level := [inner for outer in level for inner in _within(outer)]):
            return content
    raise ValueError(_TOO_DEEP)


_TOO_DEEP = f"it is nested more than {MOST_DEPTH} deep"


def _within(value: object) -> list:
    """Lists and objects in one of them."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in inner if isinstance(each, dict | list)]


def check_tensors(path: str | os.PathLike) -> None:
    """Before safetensors maps a file and reads its header: refuse a header that no file of weights has.

    Raises:
        NotAFileError, OSError: as :func:`check_regular`; or the header has no length, is longer than the file, or lists
            more tensors than any model has.
    """
    with open_regular(path) as stream:
        length, size = int.from_bytes(stream.read(8), "little"), os.fstat(stream.fileno()).st_size
        if not 2 <= length <= min(size - 8, MOST_HEADER):
            raise NotAFileError(path, "is damaged or no safetensors file: it has no header")
        if stream.read(length).count(b"{") > MOST_TENSORS:
            raise NotAFileError(path, f"lists more than {MOST_TENSORS} tensors, which no such file does")


def check_listed_file(path: str | os.PathLike) -> None:
    """Before the checksum of a model's file is taken: refuse one that is no such file by its size or its header.

    Raises:
        NotAFileError, OSError: as :func:`check_tensors`.
    """
    if os.fspath(path).endswith(".safetensors"):
        check_tensors(path)
    else:
        check_regular(path, MODEL_JSON)


def load_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        NotAFileError, OSError: as :func:`check_tensors`.
        SafetensorError: it is damaged.
    """
    from safetensors.torch import load_file

    check_tensors(path)
    return load_file(path)


def reason_of(error: BaseException) -> str:
    """Why a file cannot be read, without its name, which the message around it has already."""
    if isinstance(error, KeyError | TypeError | AttributeError):
        return repr(error)  # the text of a KeyError is a name alone
    reason = str(getattr(error, "strerror", None) or error)
    return "it is no Parquet file, or is damaged" if "Parquet magic bytes" in reason else reason


def _check(path: str | os.PathLike, status: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for fits, words in _KINDS if fits(status.st_mode)), "is something else")
        raise NotAFileError(path, f"{kind}, not a file")
    if most is not None and status.st_size > most:
        raise NotAFileError(path, _too_large(most))


def _too_large(most: int) -> str:
    return f"is larger than {most >> 10} KiB, which no such file is"
