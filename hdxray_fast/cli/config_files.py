"""A file that ``--config`` names: refused before it is read as settings if it holds none, and never quoted."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, NotAFileError
from ..regular_files import read_text, reason_of

if TYPE_CHECKING:
    import yaml

MOST_BYTES = 1 << 20  # of settings; a table of patients is soon larger
MOST_VALUES = 10_000  # of a file; reading more takes longer than anybody waits for a refusal
MOST_DEPTH = 20  # of settings within settings; those of this package lie two deep


def named_configs(argv: Sequence[str]) -> list[str]:
    """What was typed behind ``--config``."""
    behind = [value for word, value in pairwise(argv) if word == "--config"]
    return behind + [word.partition("=")[2] for word in argv if word.startswith("--config=")]


def check_config(path: Path, settings: Collection[str]) -> None:
    """Refuse a file that is no YAML with settings of the command, in words that hold nothing of it: it may be any file.

    Args:
        path: of the file.
        settings: names that the command knows.

    Raises:
        ConfigError: with the file, and the line.
    """
    import yaml

    try:
        text = read_text(path, MOST_BYTES, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"config: {path} is not UTF-8 ({error.reason})") from None
    except NotAFileError as error:
        raise ConfigError(f"config: {path} {error.strerror}; settings are a YAML file") from error
    except FileNotFoundError:
        raise ConfigError(f"config: {path} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise ConfigError(f"config: {path} cannot be read ({reason_of(error)})") from error
    try:
        _check_depth(yaml.parse(text, Loader=yaml.SafeLoader), path)
        found = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}," if mark else ""
        raise ConfigError(f"config: {path}{line} is no YAML; settings are lines such as `steps: 1000`") from None
    if found is None:
        return
    try:
        yaml.safe_load(text)
    except yaml.YAMLError as error:  # a tag, such as !!python/name, or a list as a name
        at = f", line {error.problem_mark.line + 1}," if getattr(error, "problem_mark", None) else ""
        raise ConfigError(f"config: {path}{at} has a value that is no word, number, list or setting") from None
    except (ValueError, OverflowError):  # a number of thousands of digits, a thirteenth month
        raise ConfigError(f"config: {path} has a number or a date that cannot be read") from None
    if not isinstance(found, yaml.MappingNode):
        raise ConfigError(f"config: {path} holds no settings; they are lines such as `steps: 1000`")
    for key, _ in found.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name not in settings:
            near = difflib.get_close_matches(name, settings, 1)
            hint = f"; is {near[0]} meant?" if near else ""
            raise ConfigError(f"config: {path}, line {key.start_mark.line + 1} names no setting of this command{hint}")


def _check_depth(events: Iterable[yaml.Event], path: Path) -> None:
    """Refuse what readers that go down level by level, or write aliases out, could not end with, or not soon."""
    import yaml

    depth = 0
    for number, event in enumerate(events):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1
        if number > MOST_VALUES:
            raise ConfigError(f"config: {path} has more than {MOST_VALUES} words and values, which no settings have")
        if depth > MOST_DEPTH:
            raise ConfigError(f"config: {path}, line {line} is nested more than {MOST_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"config: {path}, line {line} has an alias (*), which is not read; write its value out")


def without_values(reason: str, argv: Sequence[str]) -> str:
    """A refusal of the parser without the value that it quotes, unless that was typed."""
    found = re.search(r"[.;:,]? *(?:Given value type: \S+ \S+ )?(?:Given|Got) value: (.*)$", reason, re.S)
    typed = {part.strip("\"'") for word in argv for part in (word, word.partition("=")[2])}
    if found is None or found[1].strip().strip("\"'") in typed:
        return reason
    return f"{reason[: found.start()]} (a value of the config)"
