"""The command line: ``hdxray-fast doctor | demo | contour | embed | convert | pretrain | finetune | ...``."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ConfigError, HDXrayError, MissingDependencyError
from ..names import ESCAPES
from ..terminal import visible
from .config_files import check_config, named_configs, without_values
from .options import command_words, in_typed_words, lists_commands, parser_reason, typed_options
from .program import program

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
        if isinstance(stream, io.TextIOWrapper):  # names may hold bytes that are not UTF-8
            stream.reconfigure(errors=ESCAPES)
    try:
        # must work when the optional packages are missing: that is what it reports
        if argv[:1] == ["doctor"] and set(argv[1:]) <= {"--json"}:
            from .doctor import run_doctor_command

            return run_doctor_command(json="--json" in argv)
        return _run(argv)
    except (HDXrayError, OSError) as error:
        print(f"hdxray-fast: {visible(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hdxray-fast: interrupted", file=sys.stderr)
        return 130


def _run(argv: list[str]) -> int:
    try:
        from jsonargparse import ArgumentError, ArgumentParser
    except ImportError as error:
        raise MissingDependencyError("the command line needs jsonargparse: pip install 'hdxray-fast[train]'") from error
    parser = ArgumentParser(
        exit_on_error=False, prog="hdxray-fast", description="High-definition chest X-ray pre-training, made fast."
    )
    commands = parser.add_subcommands(required=True, dest="command")
    run: dict[str, Callable[..., int]] = {}
    for name in _groups(argv):
        group = importlib.import_module(f".{name}", __package__)
        group.add_commands(commands, ArgumentParser)
        run.update(group.COMMANDS)
    words, own = command_words(parser, argv)
    options = typed_options(own, argv)
    configs = named_configs(argv)
    for config in configs:
        check_config(Path(config), {action.dest for action in own._actions})
    try:
        given = _with_underscores(argv)
        if argv[:1] in (["probe"], ["finetune"]):
            from .classify import join_lists

            given = join_lists(given)
        parsed = parser.parse_args(given)
    except (ArgumentError, UnicodeDecodeError) as error:
        reason = parser_reason(str(error), words, options, argv)
        reason = without_values(reason, argv) if configs else reason
        lists = "commands" if lists_commands(own) else "settings"
        raise ConfigError(f"{reason} ({' '.join([program(), *words, '--help'])} lists the {lists})") from error
    settings = parsed[parsed.command]
    settings.pop("config", None)
    try:
        return run[parsed.command](**settings.as_dict())
    except HDXrayError as error:
        raise HDXrayError(in_typed_words(error, options, argv)) from error


def _groups(argv: list[str]) -> list[str]:
    """Modules of the commands to be known: that of the command that is asked for, or all, to list and to choose of."""
    for name, commands in GROUPS.items():
        if argv[:1] and argv[0] in commands:
            return [name]
    return list(GROUPS)


def _with_underscores(argv: list[str]) -> list[str]:
    """``--batch-size 4`` and ``--batch_size 4`` mean the same."""
    renamed = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        renamed.append(name + equals + value)
    return renamed
