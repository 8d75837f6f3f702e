"""What a shell completes commands and options from: ``eval "$(hdxray-fast --completion bash)"``."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError, MissingDependencyError
from .parser import choices_of, commands_below


def completion(parser, words: Sequence[str]) -> str:
    """A script for the shell that ``words`` names.

    Args:
        parser: with all commands.
        words: behind ``--completion``.

    Raises:
        ConfigError: not one shell, or another one.
        MissingDependencyError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise MissingDependencyError("completion needs shtab: pip install shtab") from error
    if len(words) != 1 or words[0] not in shtab.SUPPORTED_SHELLS:
        raise ConfigError(f"--completion: name the shell, {', '.join(shtab.SUPPORTED_SHELLS)}")
    _complete_choices(parser)
    return shtab.complete(parser, words[0])


def _complete_choices(parser) -> None:
    """Tell argparse of the words that jsonargparse alone knows of: the parser is for shtab now, and parses no more."""
    for action in parser._actions:
        action.choices = action.choices or choices_of(action) or None
    for below in commands_below(parser).values():
        _complete_choices(below)
