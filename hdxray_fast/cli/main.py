"""The command line: ``hdxray-fast doctor | demo | contour | embed | convert | pretrain | finetune | ...``."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from .. import __version__
from ..errors import ConfigError, HDXrayError, MissingDependencyError
from ..extras import install
from ..names import ESCAPES
from ..progress import warnings_as_notes
from ..terminal import visible
from .config_files import check_config, named_configs, without_values
from .going_on import how_to_go_on
from .overview import overview
from .program import NAME, program

# A file of this folder is a group of commands: ``add_commands(commands, parser_class)`` says what each of them takes,
# ``COMMANDS`` what runs it. It is imported when one of its commands is asked for, or to list them all.
GROUPS = {
    "doctor": ("doctor",),
    "demo": ("demo",),
    "contour": ("contour",),
    "embed": ("embed",),
    "features": ("features", "similar"),
    "weights": ("export", "convert"),
    "prepare": ("prepare", "merge", "stream"),
    "pretrain": ("plan", "pretrain"),
    "classify": ("probe", "finetune", "predict", "evaluate"),
    "compare": ("compare",),
    "reports": ("report",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (2 for an error named on stderr)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may hold bytes that are not UTF-8; logs of both are in order
            stream.reconfigure(errors=ESCAPES, line_buffering=True)
    try:
        # must work when the optional packages are missing: that is what it reports
        if argv[:1] == ["doctor"] and set(argv[1:]) <= {"--json"}:
            from .doctor import run_doctor_command

            return run_doctor_command(json="--json" in argv)
        with warnings_as_notes():
            return _run(argv)
    except (HDXrayError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        print(f"hdxray-fast: {visible(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before it began
        print("hdxray-fast: interrupted", file=sys.stderr)
        return 130


def _nobody_reads() -> bool:
    """Whether what reads our output has seen enough (``| head``); the rest of it then goes nowhere."""
    try:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
        if not watch.poll(0):
            return False
    except (AttributeError, OSError, ValueError):  # no such call on this system, or no stream of the system's
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _run(argv: list[str]) -> int:
    if argv in ([], ["-h"], ["--help"]):
        print(overview())
        return 0
    if argv == ["--version"]:
        print(f"hdxray-fast {__version__}")
        return 0
    try:
        from jsonargparse import ArgumentError

        from .parser import CommandParser, command_words, commands_below, join_lists, names_as_typed, tidy
        from .refusals import in_typed_words, option_names, parser_reason, unknown_option, unquoted
    except ImportError as error:
        raise MissingDependencyError(f"the command line needs jsonargparse: {install('train')}") from error
    completes = argv[:1] == ["--completion"]
    parser = CommandParser(prog=NAME, description="Chest X-ray encoders, pre-trained in high definition.")
    commands = parser.add_subcommands(required=True, dest="command")
    run: dict[str, Callable[..., int]] = {}
    for name in list(GROUPS) if completes else [_group(argv)]:
        group = importlib.import_module(f".{name}", __package__)
        group.add_commands(commands, CommandParser)
        run.update(group.COMMANDS)
    tidy(parser)
    if completes:
        from .completion import completion

        print(completion(parser, argv[1:]))
        return 0
    words, own = command_words(parser, argv)
    typed, below = argv[len(words) :], commands_below(own)
    if below and not typed:  # report
        own.print_help()
        return 0
    if below and not typed[0].startswith("-"):
        raise _no_command(typed[0], below, " ".join(words))
    hint = f"({' '.join([program(), *words])} --help lists the settings)"
    if reason := unknown_option(own, words, typed):
        raise ConfigError(f"{reason} {hint}")
    configs = named_configs(argv)
    try:
        for config in configs:
            check_config(Path(config), {action.dest for action in own._actions})
        parsed = names_as_typed(parser.parse_args(join_lists(own, argv)))
        settings = parsed[parsed.command]
        settings.pop("config", None)
        try:
            return run[parsed.command](**settings.as_dict())
        except KeyboardInterrupt:
            given = settings[words[-1]] if len(words) > 1 else settings
            print(f"hdxray-fast: interrupted; {how_to_go_on(' '.join(words), given)}", file=sys.stderr)
            return 130
    except (ArgumentError, UnicodeDecodeError) as error:
        reason = parser_reason(str(error), own, words, argv)
        reason = without_values(reason, argv) if configs else reason
        raise ConfigError(f"{reason}{unquoted(typed)} {hint}") from error
    except HDXrayError as error:
        raise HDXrayError(in_typed_words(error, option_names(own), argv) + unquoted(typed)) from error


def _group(argv: list[str]) -> str:
    """The module of the command that is asked for."""
    for name, commands in GROUPS.items():
        if argv[0] in commands:
            return name
    raise _no_command(argv[0], [command for commands in GROUPS.values() for command in commands])


def _no_command(word: str, known: Collection[str], above: str = "") -> ConfigError:
    near = difflib.get_close_matches(word, known, 1)
    hint = f"is {near[0]} meant?" if near else f"there are {', '.join(known)}"
    help_words = " ".join([program(), *above.split(), "--help"])
    return ConfigError(f"{word!r} is no command{' of ' * bool(above)}{above}; {hint} ({help_words} lists the commands)")
