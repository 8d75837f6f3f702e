"""The folder that parts of a table lie in while they are made: which files are its own, and whose share has ended."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import ConfigError
from ..files import OWNER_FILE, claim_names, refuse_foreign, remove_leftovers, written_whole
from ..locks import locked
from ..regular_files import SMALL_TEXT, read_text, reason_of
from .shares import Share

MAKER = "hdxray-fast"  # in the folder's mark
OTHER = re.compile(r"\d+-of-\d+\.(?:done|lock)|join\.lock")


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
        suffix: of part files.

    Raises:
        ConfigError: it cannot be made.
    """

    def __init__(self, path: Path, share: Share, argument: str = "out", suffix: str = "parquet") -> None:
        self.path, self.share, self._argument, self._suffix = path, share, argument, suffix
        # earlier releases had no shares
        self._part = re.compile(rf"(?:(?P<share>\d+-of-\d+)\.)?(?P<number>\d{{8}})\.{suffix}")
        self._held = ExitStack()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self._argument}: cannot write beside {path} ({error.strerror})") from error
        # before the mark is looked for: who has locked something meanwhile has left that first
        self._others = [found.name for found in self._found(OTHER)]

    def leave(self) -> None:
        """Remove the folder if nothing is in it: it was made for what was then refused."""
        with suppress(OSError):
            self.path.rmdir()

    def claim(self, names: Iterable[str] = ()) -> None:
        """Mark the folder, whose parts have been found to be of this run but for those of these names.

        Raises:
            ConfigError: it holds what no run made that has left its mark.
        """
        claim_names(self.path, MAKER, [*self._others, *names], argument=self._argument)

    def require_own(self, part: Path) -> None:
        """Raise a ConfigError about a part that cannot be read in a folder without the mark: it may be anybody's."""
        refuse_foreign(self.path, MAKER, [part.name], argument=self._argument)

    def parts(self) -> list[Path]:
        """Part files, the oldest first."""
        return sorted(self._found(self._part), key=lambda path: (path.stat().st_mtime_ns, path.name))

    def next_number(self) -> int:
        """Of the next part of this share."""
        names = (self._part.fullmatch(path.name) for path in self._found(self._part))
        own = [int(name["number"]) for name in names if name["share"] == str(self.share)]
        return 1 + max(own, default=-1)

    def part(self, number: int) -> Path:
        """Where a part of this share lies."""
        return self.path / f"{self.share}.{number:08d}.{self._suffix}"

    def hold(self) -> bool:
        """From now on no other process writes parts of this share, which has not ended; whether it had.

        Raises:
            ConfigError: another process does.
        """
        return self._held.enter_context(self._own_share())

    def release(self) -> None:
        """Let other processes write parts of this share."""
        self._held.close()

    @contextmanager
    def _own_share(self) -> Iterator[bool]:
        with locked(self.path / f"{self.share}.lock", self._refuse):
            if had_ended := bool(self._ended(self.share.which)):
                self._note(self.share.which).unlink(missing_ok=True)
            yield had_ended

    def _refuse(self) -> None:
        raise ConfigError(
            f"{self._argument}: another process writes part {self.share} of {self.path}; wait for its end"
        )

    def end_share(self, plan: str) -> None:
        """Note that all files of this share have been looked at."""
        with written_whole(self._note(self.share.which)) as temporary:
            temporary.write_text(plan)

    def joined(self, plan: str, work: Callable[[], None]) -> list[int] | None:
        """Once this share has ended: where all have, :meth:`join` them in the main process of a launcher.

        Returns:
            ``None`` if ``work`` was done here, otherwise the shares, counted from 1, that have not ended (none: another
            process joins them).
        """
        return self._join(plan, work) if self.share.is_main else []

    def join(self, plan: str, work: Callable[[], None]) -> bool:
        """Once all shares have ended: do ``work``, by one process, and remove the folder; whether it was this one."""
        return self._join(plan, work) is None

    def _join(self, plan: str, work: Callable[[], None]) -> list[int] | None:
        """As :meth:`joined`, in any process."""
        waiting: list[int] | None = []
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.path / "join.lock"))
            except FileNotFoundError:  # another has joined, and the folder is gone
                pass
            else:
                if self._ended(self.share.which):  # else another has joined
                    waiting = self.missing(plan) or None
                if waiting is None:
                    work()
                    self._clear()  # who waits for the lock finds nothing to join
        self.release()
        if waiting is None or not (waiting or self.parts()):  # the latter: locks are left
            self.remove()
        return waiting

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
        self._clear()
        for path in self._found(OTHER):
            path.unlink(missing_ok=True)
        (self.path / OWNER_FILE).unlink(missing_ok=True)
        with suppress(OSError):  # something of somebody else's is in it
            self.path.rmdir()

    def _clear(self) -> None:
        """Remove notes and parts: notes first, for a share has not ended whose parts are gone."""
        for path in [path for path in self._found(OTHER) if path.suffix == ".done"] + self._found(self._part):
            path.unlink(missing_ok=True)

    def _found(self, *kinds: re.Pattern[str]) -> list[Path]:
        try:
            return [path for path in self.path.iterdir() if any(kind.fullmatch(path.name) for kind in kinds)]
        except FileNotFoundError:  # another process has joined the parts
            return []
