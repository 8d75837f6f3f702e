"""A model folder is data: what is refused before another library may look at one.

Some libraries run Python files that lie in a folder they are given, some of them without being asked to, and some read
pickles. They cannot all be told not to. So a folder goes to them only if it holds no such file.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..regular_files import check_regular, read_json, reason_of
from .hub_files import IMPORT_FILE

CODE = (".py", ".pyc", ".pyo", ".pyd", ".pth", ".so", ".dll", ".dylib")
DATA = (".json", ".safetensors", ".txt", ".model", ".jinja", ".md")


def check_no_code(folder: str | Path) -> None:
    """Refuse a folder, for instance of a language model, that holds Python files or libraries, however deep.

    Raises:
        CheckpointError: names the first file that is code.
    """
    for path in _files(Path(folder)):
        if path.name.lower().endswith(CODE):
            raise CheckpointError(
                f"{path}: is code, and a model folder is data; remove it if the model is whole without"
            )


def tell_of_code(folder: Path) -> None:
    """Warn, once, of Python files beside an encoder's or a classifier's weights: they are never run.

    Such a folder is built from its config and its tensors alone, and no other library is shown it; so what others save
    for ``trust_remote_code=True`` may lie there. The file that this package writes for them is no news.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(CODE))
    except OSError:
        return
    if foreign := [name for name in names if name != IMPORT_FILE]:
        warnings.warn(f"{folder / foreign[0]}: is code; it is not run, a model folder is data", stacklevel=3)


def check_files(folder: str | Path) -> None:
    """Before another library opens what lies in a folder: refuse pipes, devices and JSON that fills the memory.

    Raises:
        CheckpointError: names the first of them.
    """
    for path in _files(Path(folder)):
        try:
            read_json(path) if path.suffix == ".json" else check_regular(path)
        except FileNotFoundError:
            continue  # a link to nowhere
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})") from error


def check_listed(folder: Path, listed: Collection[str], optional: Collection[str] = ()) -> None:
    """Refuse a folder with files that its own list does not name, or that are no data.

    Args:
        folder: of a model.
        listed: paths below it, with ``/``.
        optional: such as may be there, too.

    Raises:
        CheckpointError: names the file.
    """
    for name in listed:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise CheckpointError(f"{folder}: its list names a file outside of it ({name[:80]!r})")
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name in optional:
            continue
        if not path.name.lower().endswith(DATA) or (listed and "/" in name and name not in listed):
            raise CheckpointError(f"{path}: is none of the files that belong to this model; remove it")


def check_sentence_model(folder: Path) -> None:
    """Refuse a folder of sentence-transformers that holds code or pickles, or names modules of other packages.

    Raises:
        CheckpointError: names what is not accepted.
    """
    check_no_code(folder)
    check_files(folder)
    modules = folder / "modules.json"
    if not modules.is_file():
        return
    try:
        kinds = [module["type"] for module in read_json(modules)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{modules}: is damaged ({reason_of(error)})") from error
    for kind in kinds:
        if not (isinstance(kind, str) and kind.startswith("sentence_transformers.")):
            raise CheckpointError(f"{modules}: names {str(kind)[:80]!r}, which is no part of sentence-transformers")
    for path in _files(folder):
        pickled = path.suffix in (".bin", ".pt", ".pkl") and not list(path.parent.glob("*.safetensors"))
        if pickled:
            raise CheckpointError(f"{path}: is a pickle; accepted are weights as safetensors")


@contextmanager
def linked_data(folder: Path) -> Iterator[Path]:
    """A folder of links to the data files of another, for a cache that may hold other files from other uses."""
    with tempfile.TemporaryDirectory() as shown:
        for path in _files(folder):
            if path.suffix in DATA:
                link = Path(shown) / path.relative_to(folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
        yield Path(shown)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def check_config(folder: str | Path) -> None:
    """Refuse a ``config.json`` that has transformers fetch kernels or code: versions before 5.3 obeyed it.

    Raises:
        CheckpointError: names the setting, or the file is damaged.
    """
    path = Path(folder) / "config.json"
    if not os.path.lexists(path):
        return
    for settings in settings_in(path):
        for name, one in settings.items():
            kernels = "attn_implementation" in name and not (isinstance(one, str) and one.isidentifier())
            if (kernels and one is not None) or name == "trust_remote_code":
                raise CheckpointError(f"{path}: has a setting that leads to code ({name}); remove it")


def settings_in(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON file, those within others too.

    Raises:
        CheckpointError: it is damaged or cannot be read.
    """
    try:
        left = [read_json(path)]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is damaged or cannot be read ({reason_of(error)})") from error
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += value.values()
            yield value
