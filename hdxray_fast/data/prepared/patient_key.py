"""The secret that patient ids are hashed with: where it lies, who may read it, and which are refused."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from pathlib import Path

from ...errors import ConfigError
from ...files import written_whole

KEY = "patient.key"
LEAST_BYTES = 16
LEAST_DIFFERENT = 8  # different bytes: "0000000000000000" and "abcabcabcabcabcabc" are soon guessed
MOST_BYTES = 1 << 16  # a file that holds more was named by mistake


def find_key(out: Path, given: str | None = None) -> Path:
    """Where the key of a data set is, or is to be made: the file given; else beside the folder, which is what people
    copy, and where that is a link, beside what it leads to. Data sets that were begun with the key inside the folder,
    or beside the link, keep it there.

    Args:
        out: folder of the data set.
        given: ``patient_key`` of the configuration.
    """
    if given:
        return Path(given)
    usual = beside(Path(os.path.realpath(out)))
    return next((place for place in (out / KEY, usual, beside(out)) if os.path.lexists(place)), usual)


def beside(out: Path) -> Path:
    """``SET.patient.key`` beside the folder ``SET``."""
    whole = Path(os.path.abspath(out))
    return whole.with_name(f"{whole.name}.{KEY}") if whole.name else whole / KEY


def make_key(path: Path) -> None:
    """A new key, 256 random bits, readable by its owner alone.

    Raises:
        ConfigError: it cannot be written there.
    """
    try:
        with written_whole(path, private=True) as temporary:
            temporary.write_text(secrets.token_hex(32) + "\n")
    except PermissionError as error:
        raise ConfigError(
            f"patient_key: {path} cannot be made ({error.strerror}); name a file elsewhere with patient_key"
        ) from error


def read_key(path: Path) -> bytes:
    """32 bytes to hash with, of a file that nobody else may read or have written.

    Raises:
        ConfigError: it cannot be read, is a link or no file, is another user's, is open to others, or is soon guessed.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise ConfigError(f"patient_key: {path} is a link; name the file that it leads to") from error
        raise ConfigError(f"patient_key: {path} cannot be read ({error.strerror})") from error
    try:  # one file from here on, whatever is done to its name
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"patient_key: {path} is no file")
        if os.name == "posix":
            _check_owner(path, status)
        key = os.read(handle, MOST_BYTES + 1)
    finally:
        os.close(handle)
    if len(key) > MOST_BYTES:
        raise ConfigError(f"patient_key: {path} holds more than {MOST_BYTES} bytes, which is no key")
    key = key.strip()
    if len(key) < LEAST_BYTES:
        raise ConfigError(f"patient_key: {path} holds {len(key)} bytes, at least {LEAST_BYTES} are needed")
    if len(set(key)) < LEAST_DIFFERENT:
        raise ConfigError(
            f"patient_key: {path} holds {len(set(key))} different bytes, which is soon guessed, at least "
            f"{LEAST_DIFFERENT} are needed; `openssl rand -hex 32` makes a good one"
        )
    return hashlib.sha256(key).digest()


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"patient_key: {path} belongs to another user, who may know it; take a key of your own")
    if status.st_mode & 0o077:
        raise ConfigError(
            f"patient_key: {path} is open to other users (mode {stat.S_IMODE(status.st_mode):04o}); if nobody has read "
            "it, close it with chmod 600"
        )
