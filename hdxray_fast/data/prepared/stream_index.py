"""The index of chunks in an object store, looked at before litdata acts on it.

litdata takes from ``index.json`` how each field is read, and some of its kinds run what they read: ``pickle`` does, and
a structure may name a module to import. So an index is accepted if it is one that :func:`.write_stream` writes, and no
other is.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import ConfigError, MissingDependencyError
from ...extras import install
from ...regular_files import RUN_JSON, parse_json, read_json, reason_of

# fields of a sample, in their order, and the kinds that litdata may read them by: bytes, text, numbers of one dtype
FIELDS = {
    "pixels": r"bytes",
    "valid_box": r"no_header_numpy:\d+",
    "polygon": r"numpy",
    "inside": r"bytes",
    "tone": r"no_header_numpy:\d+",
    "format": r"str",
}
CHUNK_NAME = re.compile(r"chunk-\d+-\d+\.bin")
LEAF = {"type": None, "context": None, "children_spec": []}


def litdata_or_error():
    """litdata, which is optional."""
    try:
        import litdata
    except ImportError as error:
        raise MissingDependencyError(f"object stores need litdata: {install('streaming')}") from error
    return litdata


def check_stream_index(path: Path, address: str) -> None:
    """Refuse an ``index.json`` that :func:`.write_stream` does not write.

    Args:
        path: of the index, fetched.
        address: of the chunks, for the error.

    Raises:
        ConfigError: names what is not accepted; nothing was read by it.
    """
    try:
        index = read_json(path, RUN_JSON)
        reason = _why_not(index)
    except (OSError, ValueError) as error:
        reason = f"it cannot be read ({reason_of(error)})"
    except (AttributeError, KeyError, TypeError) as error:  # what is there is of another kind than is looked for
        reason = f"it is damaged ({error!r})"
    if reason:
        raise ConfigError(
            f"{address}: index.json is none that hdxray-fast stream writes: {reason}; nothing of it was read"
        )


def _why_not(index: dict) -> str:
    if set(index) - {"chunks", "config", "updated_at"}:
        return f"it has entries of another format ({sorted(set(index) - {'chunks', 'config', 'updated_at'})[0]})"
    config, kinds = index["config"], index["config"]["data_format"]
    if len(kinds) != len(FIELDS):
        return f"samples have {len(kinds)} fields, {len(FIELDS)} are written"
    for kind, (name, accepted) in zip(kinds, FIELDS.items(), strict=True):
        if not re.fullmatch(accepted, kind):
            return f"field {name} is read as {kind[:40]!r}"
    if (reason := _why_not_structure(parse_json(config["data_spec"]))) or (reason := _why_not_settings(config)):
        return reason
    for chunk in index["chunks"]:
        if not CHUNK_NAME.fullmatch(chunk["filename"]):
            return "a chunk has a name that could lead elsewhere"
        for size in ("chunk_bytes", "chunk_size"):
            if type(chunk[size]) is not int or chunk[size] < 1:
                return f"a chunk has no {size}"
    return ""


def _why_not_structure(spec: list) -> str:
    """A structure may name classes to be built and modules to be imported; ours is a dictionary of plain fields."""
    _, tree = spec
    plain = tree["type"] == "builtins.dict" and parse_json(tree["context"]) == list(FIELDS)
    if not plain or tree["children_spec"] != [LEAF] * len(FIELDS):
        return "its samples are no dictionary of the fields that are written"
    return ""


def _why_not_settings(config: dict) -> str:
    if config.get("item_loader") not in (None, "PyTreeLoader"):
        return "it names another loader of items"
    for name in ("compression", "encryption"):
        if config.get(name) is not None:
            return f"it names a kind of {name}"
    return ""
