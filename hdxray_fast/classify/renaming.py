"""Classes that a table calls otherwise than a classifier does."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from ..errors import ConfigError


class NoSuchClass(ConfigError):
    """A table lacks a class, or a column.

    Attributes:
        name: of what it lacks.
        near: what it has of nearly that name; blank if nothing.
    """

    def __init__(self, message: str, name: str, near: str = "") -> None:
        super().__init__(message)
        self.name, self.near = name, near

    def with_way_out(self, classes: Sequence[str]) -> ConfigError:
        """Where one of ``classes`` is lacking, the same with the setting that reads another one under its name."""
        if self.name not in classes:
            return self
        typed = shlex.quote(f"{self.near or 'COLUMN'}={self.name}")
        return ConfigError(f"{self}; what is called otherwise there is read by --rename {typed} (rename in Python)")


def read_renaming(rename: str | Mapping[str, str] | None, classes: Sequence[str] | None) -> dict[str, str]:
    """New names of classes by those that a table has.

    Args:
        rename: ``"effusions=effusion, Herzvergrösserung=Cardiomegaly"``, or a dict.
        classes: that are asked for; the new names must be among them. ``None``: any.

    Raises:
        ConfigError: it is none, or two classes would have one name.
    """
    if rename is None:
        return {}
    pairs = rename.items() if isinstance(rename, Mapping) else (pair.partition("=")[::2] for pair in rename.split(","))
    found = {str(name).strip(): str(new).strip() for name, new in pairs}
    if not found or not all((*found, *found.values())):
        raise ConfigError(f"rename: got {rename!r}, accepted is THEIRS=OURS, or several of these with commas between")
    if len(set(found.values())) < len(found):
        raise ConfigError("rename: gives one name to two classes")
    if classes is not None and (foreign := [new for new in found.values() if new not in classes]):
        raise ConfigError(f"rename: {foreign[0]!r} is none of the classes asked for ({', '.join(classes)})")
    if classes is not None and (lost := [name for name in found if name in classes and name not in found.values()]):
        raise ConfigError(
            f"rename: {lost[0]!r} is asked for too, and would be read as {found[lost[0]]!r}; leave it out of classes "
            "(--classes), or rename another column to it as well"
        )
    return found
