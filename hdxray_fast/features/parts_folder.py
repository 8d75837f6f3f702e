"""The folder that parts of a table lie in while they are made: which files are its own, and whose share has ended."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ConfigError
from ..files import OWNER_FILE, claim_names, refuse_foreign, remove_leftovers, written_whole
from ..locks import locked
from ..regular_files import SMALL_TEXT, read_text, reason_of
from .shares import Share

MAKER = "hdxray-fast"  # in the folder's mark
PART = re.compile(r"(?:(?P<share>\d+-of-\d+)\.)?(?P<number>\d{8})\.parquet")  # earlier releases had no shares
OTHER = re.compile(r"\d+-of-\d+\.(?:done|lock)|join\.lock")
REMOVED = (".done", ".parquet", ".lock")  # in this order: a share has not ended whose parts are gone


def parts_of(out: Path) -> Path:
    """Where the parts of a table are while it is made."""
    return out.with_name(f"{out.name}.parts")


class PartsFolder:
    """A folder of part files, one share of which is this process's.

    What has other names than these is somebody else's, and stays: ``3-of-8.00000000.parquet`` a part, ``3-of-8.done``
    the note that a share has ended, locks, and the mark that all this was made here.

    Args:
        path: of the folder; made if needed.
        share: of this process.
        argument: that named the place, for errors.

    Raises:
        ConfigError: it cannot be made.
    """

    def __init__(self, path: Path, share: Share, argument: str = "out") -> None:
        self.path, self.share, self._argument = path, share, argument
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self._argument}: cannot write beside {path} ({error.strerror})") from error
        # before the mark is looked for: who has locked something meanwhile has left that first
        self._others = [found.name for found in self._found(OTHER)]

    def claim(self) -> None:
        """Mark the folder, whose parts have been found to be of this run.

        Raises:
            ConfigError: it holds what no run made that has left its mark.
        """
        claim_names(self.path, MAKER, self._others, argument=self._argument)

    def require_own(self, part: Path) -> None:
        """Raise a ConfigError about a part that cannot be read in a folder without the mark: it may be anybody's."""
        refuse_foreign(self.path, MAKER, [part.name], argument=self._argument)

    def parts(self) -> list[Path]:
        """Part files, the oldest first."""
        return sorted(self._found(PART), key=lambda path: (path.stat().st_mtime_ns, path.name))

    def next_number(self) -> int:
        """Of the next part of this share."""
        names = (PART.fullmatch(path.name) for path in self._found(PART))
        own = [int(name["number"]) for name in names if name["share"] == str(self.share)]
        return 1 + max(own, default=-1)

    def part(self, number: int) -> Path:
        """Where a part of this share lies."""
        return self.path / f"{self.share}.{number:08d}.parquet"

    @contextmanager
    def own_share(self) -> Iterator[bool]:
        """Within, no other process writes parts of this share, which has not ended; it gives whether it had.

        Raises:
            ConfigError: another process does.
        """
        with locked(self.path / f"{self.share}.lock", self._refuse):
            if had_ended := bool(self._ended(self.share.which)):
                self._note(self.share.which).unlink(missing_ok=True)
            yield had_ended

    def _refuse(self) -> None:
        raise ConfigError(
            f"{self._argument}: another process writes part {self.share} of {self.path}; wait for its end"
        )

    def joining(self):
        """A context: within, no other process is within."""
        return locked(self.path / "join.lock")

    def end_share(self, plan: str) -> None:
        """Note that all files of this share have been looked at."""
        with written_whole(self._note(self.share.which)) as temporary:
            temporary.write_text(plan)

    def missing(self, plan: str) -> list[int]:
        """Shares, counted from 1, that have not ended yet."""
        return [which + 1 for which in range(self.share.of) if self._ended(which) != plan]

    def _note(self, which: int) -> Path:
        return self.path / f"{Share(which, self.share.of)}.done"

    def _ended(self, which: int) -> str:
        path = self._note(which)
        try:
            return read_text(path, SMALL_TEXT, errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise ConfigError(f"{self._argument}: {path} cannot be read ({reason_of(error)}); move it away") from error

    def remove(self) -> None:
        """Remove the parts and the folder, with what killed processes left there; what is not its own stays."""
        remove_leftovers(self.path)
        for path in sorted(self._found(OTHER, PART), key=lambda path: REMOVED.index(path.suffix)):
            path.unlink(missing_ok=True)
        (self.path / OWNER_FILE).unlink(missing_ok=True)
        with suppress(OSError):  # something of somebody else's is in it
            self.path.rmdir()

    def _found(self, *kinds: re.Pattern[str]) -> list[Path]:
        try:
            return [path for path in self.path.iterdir() if any(kind.fullmatch(path.name) for kind in kinds)]
        except FileNotFoundError:  # another process has joined the parts
            return []
