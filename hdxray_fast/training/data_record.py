"""What a run is trained on, image by image: so that a resumed run is refused other data, and told which they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..data.prepared.shards import arrow
from ..errors import ConfigError
from ..files import written_whole
from ..names import escaped
from ..parquet_files import open_parquet, read_parquet
from .resuming import ANEW

RECORD = "data.parquet"  # in a run's folder


def content_digest(*parts: str | bytes) -> str:
    """16 hexadecimal digits that tell contents apart."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


@dataclass
class Part:
    """Things of one kind that a run depends on.

    Attributes:
        kind: what they are, such as ``"readable images"``.
        setting: names where they come from.
        names: of each, in the order that the run numbers them by.
        contents: of each, what changes with its content.
        former: the names that earlier releases wrote down.
    """

    kind: str
    setting: str
    names: list[str]
    contents: list[str]
    former: list[str]


@dataclass
class DataRecord:
    """All that a run depends on and that lies outside its folder.

    Attributes:
        parts: in the order that a refusal names them; all there before the digest is asked for.
    """

    parts: list[Part] = field(default_factory=list)

    def add(
        self,
        kind: str,
        names: Iterable[str],
        contents: Iterable[object],
        setting: str = "data",
        former: Iterable[str] | None = None,
    ) -> None:
        """Take in things of one kind; see :class:`Part`."""
        given = list(names)
        names = [escaped(name) for name in given]
        former = [name.encode("utf-8", "backslashreplace").decode() for name in (given if former is None else former)]
        part = Part(kind, setting, names, [str(content) for content in contents], former)
        if len(part.names) != len(part.contents):
            raise ValueError(f"{len(part.names)} names of {kind}, {len(part.contents)} contents")
        self.parts.append(part)

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that change with every name, content and place."""
        return self._digest([part.names for part in self.parts])

    @cached_property
    def former_digest(self) -> str:
        """Likewise, of the record that earlier releases made of the same things."""
        return self._digest([part.former for part in self.parts])

    def _digest(self, named: Sequence[Sequence[str]]) -> str:
        digest = hashlib.sha256()
        for part, names in zip(self.parts, named, strict=True):
            digest.update(f"{part.kind}\0{len(names)}\0".encode())
            digest.update("\n".join(names).encode())
            digest.update("\n".join(part.contents).encode())
        return digest.hexdigest()[:32]

    def write(self, folder: Path) -> None:
        """Keep the record in a run's folder, unless it is there.

        Raises:
            ConfigError: the folder cannot be written.
        """
        path = folder / RECORD
        if _digest_of(path) == self.digest:
            return
        pa = arrow()
        columns = {
            "kind": [part.kind for part in self.parts for _ in part.names],
            "setting": [part.setting for part in self.parts for _ in part.names],
            "name": [name for part in self.parts for name in part.names],
            "content": [content for part in self.parts for content in part.contents],
        }
        schema = pa.schema([(name, pa.string()) for name in columns], metadata={"digest": self.digest})
        try:
            with written_whole(path) as temporary:
                pa.parquet.write_table(pa.table(columns, schema=schema), temporary)
        except OSError as error:
            raise ConfigError(f"out: cannot write {path} ({error.strerror or error})") from error

    def refusal(self, folder: Path, digest: str | None) -> ConfigError:
        """Why the run in ``folder``, whose record had that digest, cannot go on with what this record tells of."""
        before = _read(folder / RECORD) if digest and _digest_of(folder / RECORD) == digest else None
        setting, these = self.parts[0].setting, f"other {self.parts[0].kind}"  # where the record is gone
        if before is not None:
            setting, these = self._differences(before)
        return ConfigError(
            f"{setting}: these are {these} than when the run in {folder} was started; it goes on with the same ones; "
            f"{ANEW}, or choose another folder"
        )

    def _differences(self, before: dict[str, dict[str, str]]) -> tuple[str, str]:
        """The setting to look at, and in words what is new, gone and changed since ``before``."""
        found: list[tuple[str, str]] = []
        known: set[str] = set()  # an image that is gone takes its label along
        for part in self.parts:
            words, names = _difference(before.get(part.kind, {}), part, known)
            known |= names
            if words:
                found.append((part.setting, f"other {part.kind} ({words})"))
        if not found:
            moved = [part for part in self.parts if list(before.get(part.kind, {})) != part.names] or self.parts
            found = [(moved[0].setting, f"the {moved[0].kind} in another order")]
        return found[0][0], " and ".join(words for _, words in found)


def refuse_other_data(state: dict, fingerprint: str, record: DataRecord | None, folder: Path) -> None:
    """Raise a ConfigError if the run in ``folder``, whose checkpoint has that ``state``, was trained on other data.

    Args:
        state: has the fingerprint under ``data`` and the record's digest under ``record``; checkpoints from before
            there were records lack the latter.
        fingerprint, record: of the data now.
        folder: of the run.
    """
    accepted = (None,) if record is None else (None, record.digest, record.former_digest)
    if state["data"] == fingerprint and state.get("record") in accepted:
        return
    if record is not None:
        raise record.refusal(folder, state.get("record"))
    raise ConfigError(
        f"data: these are other readable images than when the run in {folder} was started; it goes on with the same "
        f"ones; {ANEW}, or choose another folder"
    )


def _difference(before: dict[str, str], part: Part, known: set[str]) -> tuple[str, set[str]]:
    """In words what is new, gone and changed, but for the names ``known``; and all names that are new or gone."""
    now = dict(zip(part.names, part.contents, strict=True))
    new = [name for name in now if name not in before and name not in known]
    gone = [name for name in before if name not in now and name not in known]
    changed = [name for name in now if name in before and now[name] != before[name]]
    words = [
        f"{len(names)} {what}, such as {names[0]}"
        for what, names in (("changed", changed), ("gone", gone), ("new", new))
        if names
    ]
    return "; ".join(words), {*new, *gone}


def _digest_of(path: Path) -> str | None:
    """The digest of the record in a file; ``None`` if there is none."""
    pa = arrow()
    try:
        with open_parquet(path) as file:
            return (file.schema.metadata or {}).get(b"digest", b"").decode()
    except (OSError, ValueError, pa.ArrowException):
        return None


def _read(path: Path) -> dict[str, dict[str, str]] | None:
    """Of each kind, contents by name; ``None`` if the file cannot be read."""
    pa = arrow()
    try:
        table = read_parquet(path)
        columns = [table.column(name).to_pylist() for name in ("kind", "name", "content")]
    except (OSError, KeyError, pa.ArrowException):
        return None
    found: dict[str, dict[str, str]] = {}
    for kind, name, content in zip(*columns, strict=True):
        found.setdefault(kind, {})[name] = content
    return found


def prints_of(checksums: Sequence[int]) -> list[str]:
    """CRC-32 of stored canvases as contents."""
    return [f"{int(value):08x}" for value in checksums]
