"""Folders of pictures that a command draws: those of one call never stand beside those of another."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..files import claim_names, place_of, refuse_foreign, written_whole
from ..names import escaped
from ..regular_files import RUN_JSON, read_json
from ..terminal import first_names


@dataclass(frozen=True)
class PictureFolder:
    """The folder that a call of a command draws into.

    The same call may come again, also with more files; one that was killed goes on so. What is drawn is written down in
    ``.<maker>.drawn``: the settings, and the file that each picture is of.

    Attributes:
        path: what the user named.
        maker: the command.
        settings: what the pictures depend on beside their files, JSON-able.
        pictures: the file that each picture is of, by the picture's name; blank if it is of all.
        tables: names of what every call writes anew.
        force: pictures of another call are replaced.
        argument: that named the folder, for errors.
    """

    path: Path
    maker: str
    settings: Mapping[str, object]
    pictures: Mapping[str, str]
    tables: Sequence[str] = ()
    force: bool = False
    argument: str = "out"

    def refuse(self) -> list[str]:
        """The refusal of :meth:`claim`, where nothing is to be written yet.

        Returns:
            Names of pictures of another call, which ``force`` replaces.
        """
        refuse_foreign(self.path, self.maker, self._names, argument=self.argument)
        settings, files = _drawn_before(self._record)
        left = [name for name in files if os.path.lexists(self.path / name)]
        mine = self._written_down
        names = {*settings, *mine["settings"]}
        other = sorted(name for name in names if settings.get(name) != mine["settings"].get(name))
        gone = left if other else [name for name in left if files[name] != mine["files"].get(name)]
        if gone and not self.force:
            why = f"other {', '.join(other)}" if other else f"of other files: {first_names(gone)}"
            raise ConfigError(
                f"{self.argument}: {self.path} holds what {self.maker} drew in another call ({why}); give another "
                "folder, or --force (force=True) to replace it"
            )
        return gone

    def claim(self) -> None:
        """Before the command draws into the folder, which is made: what it drew there in another call goes, and no
        other file.

        Raises:
            ConfigError: the folder holds pictures of other files or settings, without ``force``; or a file of these
                names that ``maker`` did not make; or it cannot be written.
        """
        gone = self.refuse()
        claim_names(self.path, self.maker, self._names, argument=self.argument)
        try:
            for name in gone:
                (self.path / name).unlink(missing_ok=True)
            with written_whole(self._record) as temporary:
                temporary.write_text(json.dumps(self._written_down, indent=1), encoding="utf-8")
        except OSError as error:
            place = place_of(error, self.path)
            raise ConfigError(f"{self.argument}: cannot write to {place} ({error.strerror})") from error

    @property
    def _record(self) -> Path:
        return self.path / f".{self.maker}.drawn"

    @property
    def _names(self) -> tuple[str, ...]:
        return self._record.name, *self.tables, *self.pictures

    @property
    def _written_down(self) -> dict:
        files = {name: escaped(os.path.abspath(file)) if file else "" for name, file in self.pictures.items()}
        return json.loads(json.dumps({"settings": {**self.settings}, "files": files}))


def drawn_in(folder: Path, names: Iterable[str]) -> set[str]:
    """Of the files of a folder, all of whose names are given, those that commands drew and wrote down."""
    records = [folder / name for name in names if name.startswith(".") and name.endswith(".drawn")]
    return {name for record in records for name in _drawn_before(record)[1]}


def _drawn_before(record: Path) -> tuple[dict, dict[str, str]]:
    """Settings and files of the call before; nothing where that is not written down, or damaged."""
    try:
        found = read_json(record, RUN_JSON)
        settings, files = dict(found["settings"]), dict(found["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}
    return (settings, files) if all(Path(name).name == name for name in files) else ({}, {})
