"""The key of a run, with which a model's hashes of its patients are made: it stays in the run's folder.

Ids of patients are few and follow a pattern, so a hash that anybody can compute is tried out in minutes. These can be
computed with 32 random bytes alone, which lie beside a model's folder and never in it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from ..errors import ConfigError
from ..files import written_whole
from ..regular_files import SMALL_TEXT, read_text

KEY_FILE = "seen.key"
DIGESTS = ("patients", "given", "labels")  # what tells one table of patients from another
KEY = "key"  # in the origin of splits: by which key its digests were made


def run_key(out: str | Path) -> bytes:
    """The key of the run in ``out``, made if there is none; readable by its owner alone.

    Raises:
        ConfigError: it cannot be read or written, or is no such key.
    """
    path = Path(out) / KEY_FILE
    found = _read(path)
    if found is None:
        found = secrets.token_bytes(32)
        keep_key(out, found)
    return found


def check_key(out: str | Path) -> None:
    """Refuse, before a run writes anything, what :func:`run_key` would refuse."""
    _read(Path(out) / KEY_FILE)


def keep_key(folder: str | Path, key: bytes) -> None:
    """Write a key down in ``folder``, in place of one that was there.

    Raises:
        ConfigError: it cannot be written.
    """
    path = Path(folder) / KEY_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, private=True) as temporary:
            temporary.write_text(key.hex() + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out: cannot write {path} ({error.strerror or error})") from error


def key_of(record: str | Path) -> bytes | None:
    """The key that lies beside a record, or beside its folder (that of a model in its run); ``None`` if neither, or if
    it is another user's, who lets colleagues read the model alone.

    Raises:
        ConfigError: it is no such key.
    """
    folder = Path(record).absolute().parent
    for path in (folder / KEY_FILE, folder.parent / KEY_FILE):
        if os.access(path, os.R_OK):
            return _read(path)
    return None


def _read(path: Path) -> bytes | None:
    try:
        key = bytes.fromhex(read_text(path, SMALL_TEXT).strip())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); it is for its owner alone") from error
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError(f"{path}: is no key (64 hexadecimal digits); put back the one that the run wrote")
    return key


def keyed(text: str, key: bytes) -> bytes:
    """16 bytes that only who has the key can compute."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), key=key, digest_size=16).digest()


def name_of(key: bytes) -> str:
    """By which keys are told apart; it says nothing of them."""
    return hashlib.blake2b(b"", key=key, digest_size=8, person=b"name of key").hexdigest()


def sealed(origin: Mapping, key: bytes) -> dict:
    """How splits came about, with its digests under a key; one that is under a key already stays as it is."""
    if not origin or KEY in origin:
        return dict(origin)
    told = {name: keyed(value, key).hex() if name in DIGESTS else value for name, value in origin.items()}
    return {**told, KEY: name_of(key)}


def without_digests(origin: Mapping) -> dict:
    """How splits came about, without what tells of whom."""
    return {name: value for name, value in origin.items() if name not in DIGESTS}


def fits(origin: Mapping, key: bytes | None) -> bool:
    """Whether digests of ``origin`` can be compared: they are of an earlier release, or under this key."""
    return KEY not in origin or (key is not None and origin[KEY] == name_of(key))


def is_same(origin: Mapping, name: str, digest: str, key: bytes | None) -> bool:
    """Whether a digest of a table (``patients``, ``given`` or ``labels``) is that of ``origin``."""
    if not fits(origin, key):
        return False
    return origin.get(name) == (keyed(digest, key).hex() if KEY in origin else digest)
