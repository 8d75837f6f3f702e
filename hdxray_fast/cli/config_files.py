"""A file that ``--config`` names: refused before it is read as settings if it holds none, and never quoted."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path

from ..errors import ConfigError

MOST_BYTES = 1 << 20  # of settings; a table of patients is soon larger


def named_configs(argv: Sequence[str]) -> list[str]:
    """What was typed behind ``--config``."""
    behind = [value for word, value in pairwise(argv) if word == "--config"]
    return behind + [word.partition("=")[2] for word in argv if word.startswith("--config=")]


def check_config(path: Path, settings: Collection[str]) -> None:
    """Refuse a file that is no YAML with settings of the command, in words that hold nothing of it: it may be any file.

    Args:
        path: of the file; one that is not there is refused elsewhere.
        settings: names that the command knows.

    Raises:
        ConfigError: with the file, and the line.
    """
    import yaml

    if not path.is_file():
        return
    if path.stat().st_size > MOST_BYTES:
        raise ConfigError(f"config: {path} is larger than {MOST_BYTES >> 20} MiB, which settings never are")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"config: {path} is not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise ConfigError(f"config: {path} cannot be read ({error.strerror})") from error
    try:
        found = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}," if mark else ""
        raise ConfigError(f"config: {path}{line} is no YAML; settings are lines such as `steps: 1000`") from None
    if found is None:
        return
    if not isinstance(found, yaml.MappingNode):
        raise ConfigError(f"config: {path} holds no settings; they are lines such as `steps: 1000`")
    for key, _ in found.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name not in settings:
            near = difflib.get_close_matches(name, settings, 1)
            hint = f"; is {near[0]} meant?" if near else ""
            raise ConfigError(f"config: {path}, line {key.start_mark.line + 1} names no setting of this command{hint}")


def without_values(reason: str, argv: Sequence[str]) -> str:
    """A refusal of the parser without the value that it quotes, unless that was typed."""
    found = re.search(r"[.;:,]? *(?:Given value type: \S+ \S+ )?(?:Given|Got) value: (.*)$", reason, re.S)
    typed = {part.strip("\"'") for word in argv for part in (word, word.partition("=")[2])}
    if found is None or found[1].strip().strip("\"'") in typed:
        return reason
    return f"{reason[: found.start()]} (a value of the config)"
