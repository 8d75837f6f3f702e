"""The parser of a command: options spelt with dashes, and help in a user's words, by what settings are about."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

# Titles of help, and the settings under each; what is required stands before them, all others directly behind
SECTIONS: dict[str, tuple[str, ...]] = {
    "Training": (
        *("steps", "epochs", "lr", "encoder_lr", "layer_decay", "weight_decay", "beta2"),
        *("warmup", "clip_grad", "ema", "drop_path", "mixup", "label_smoothing", "class_weight"),
        *("augment", "augment_operations", "augment_magnitude", "seed", "shuffle", "shuffle_block", "nodes"),
    ),
    "Machine": (
        *(
            "batch_size",
            "grad_accum",
            "device",
            "precision",
            "compile",
            "graph",
            "shard",
            "shard_within",
            "checkpoint_activations",
            "part",
        ),
        *("process_timeout", "workers", "timeout", "max_memory", "threads"),
    ),
    "Saving and following": (
        *("resume", "force", "save_minutes", "save_every", "keep_checkpoints", "keep_every"),
        *("picture_every", "keep_pictures", "eval_every", "tensorboard", "wandb"),
    ),
}
PRINT_CONFIG = "--print-config"
ASKS = ("help", "config")  # no settings of a run
# bytes of a name that are not UTF-8: no YAML takes Python's letters for them, so that others, of nobody's use, go there
CARRIED = {byte: 0x100000 + byte for byte in range(0xDC80, 0xDD00)}


class _Help(DefaultHelpFormatter):
    """Help that says no type that the name of a value tells, and no default that is none."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("Examples:") else super()._fill_text(text, width, indent)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        whole = action.metavar is not None and action.nargs in ("+", 1)
        return action.metavar if whole else super()._format_args(action, default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").rstrip(".")
        nothing = action.default in (None, argparse.SUPPRESS, [], "")
        if nothing or action.dest in ASKS or action.required or action.nargs == 0:
            return text
        return f"{text} (default {_written(action.default)})" if text else f"default {_written(action.default)}"


def _written(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return " ".join(map(_written, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


class CommandParser(ArgumentParser):
    """What a command takes.

    Args:
        examples: whole commands that help shows, without the program's name.
        options: of ``ArgumentParser``.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **options: Any) -> None:
        shown = "".join(f"\n  hdxray-fast {example}" for example in examples)
        options = {"exit_on_error": False, "allow_abbrev": False, "formatter_class": _Help, **options}
        super().__init__(*args, epilog=f"Examples:{shown}" if shown else None, **options)


def _section(action: argparse.Action) -> str:
    if isinstance(action.choices, Mapping):
        return "Commands"
    if action.dest in ASKS or PRINT_CONFIG in action.option_strings:
        return "Help"
    if action.required or not action.option_strings:
        return "Required"
    return next((title for title, names in SECTIONS.items() if action.dest in names), "Settings")


def tidy(parser: ArgumentParser, words: Sequence[str] = ()) -> None:
    """Spell the options of a parser, and of those below it, with dashes, and let its usage name what it cannot do
    without; settings keep their names: ``--batch-size`` is ``batch_size`` in Python and YAML.

    Args:
        parser: complete.
        words: that call it, without the program's name.
    """
    beside: list[str] = []  # what has no option, in its order
    needed: list[str] = []
    sections: dict[str, list[argparse.Action]] = {
        title: [] for title in ("Required", "Commands", "Settings", *SECTIONS, "Help")
    }
    for action in parser._actions:
        for word in action.option_strings:
            parser._option_string_actions.pop(word)
        action.option_strings = [word.replace("_", "-") for word in action.option_strings if not word.endswith("+")]
        parser._option_string_actions.update(dict.fromkeys(action.option_strings, action))
        if action.help and action.help != argparse.SUPPRESS:
            action.help = _with_options(action.help, parser, action)
            sections[_section(action)].append(action)
        if isinstance(action.choices, Mapping):
            needed.append("COMMAND ...")
            for name, below in action.choices.items():
                tidy(below, (*words, name))
            continue
        action.metavar = _metavar(action)
        if action.dest == "help":
            action.help = "show this, and do nothing else"
        if PRINT_CONFIG in action.option_strings:
            parser._print_config = PRINT_CONFIG
            action.help, action.metavar = "print the settings as YAML, to begin a file for --config with", ""
        if not action.option_strings:
            beside.append(f"{action.dest} ..." if action.nargs in ("+", "*") else action.dest)
        elif action.required:
            needed.append(f"{action.option_strings[0]} {action.metavar}")
    # a seed alone is no training, nor is what replaces pictures the saving of one
    for title, sign in (("Training", "steps"), ("Saving and following", "resume")):
        if not any(action.dest == sign for action in sections[title]):
            sections["Settings"] += sections.pop(title)
    parser._action_groups = []
    for title, actions in sections.items():
        parser.add_argument_group(title)._group_actions = actions
    parser.usage = " ".join(["hdxray-fast", *words, *beside, *needed, *["[settings]"] * ("COMMAND ..." not in needed)])


def _with_options(text: str, parser: ArgumentParser, action: argparse.Action) -> str:
    """A docstring's words with options where it names settings: ``--batch-size`` for ``batch_size`` in backticks."""
    settings = {other.dest for other in parser._actions if other.option_strings} - set(choices_of(action))

    def option(found: re.Match) -> str:
        return "--" + found[0].replace("_", "-") if found[0] in settings else found[0]

    text = re.sub(r"``(.+?)``", lambda found: re.sub(r"^\w+$|\b\w+_\w+\b", option, found[1]), text)
    return text.replace("<out>", "OUT")


def _metavar(action: argparse.Action) -> str | None:
    """``N`` for a whole number, ``X`` for another one; choices speak for themselves, all else is the setting's name."""
    if not action.option_strings or action.nargs == 0 or action.choices:
        return action.metavar
    kind, several = _kind(action)
    choices = choices_of(action)
    name = "{" + ",".join(choices) + "}" if choices else {int: "N", float: "X"}.get(kind)
    name = name or action.metavar or action.dest.upper()
    return f"{name} ..." if several else name


def _kind(action: argparse.Action) -> tuple[Any, bool]:
    """The type of a setting's values, and whether it takes several."""
    kind = getattr(action, "_typehint", action.type)
    if get_origin(kind) in (Union, UnionType):
        kind = next((one for one in get_args(kind) if one is not NoneType), str)
    if get_origin(kind) is list or kind is list:
        return (get_args(kind) or (str,))[0], True
    return kind, action.nargs in ("+", "*")


def takes_list(action: argparse.Action) -> bool:
    """Whether an option's values are typed one after another and handed over as one: ``--seeds 0 1 2``."""
    return bool(action.option_strings) and action.nargs is None and _kind(action)[1]


def choices_of(action: argparse.Action) -> list[str]:
    """The words that a setting takes, if it takes no others."""
    kind, _ = _kind(action)
    if kind is bool:
        return ["true", "false"] if action.nargs != 0 else []
    return list(map(str, action.choices or (get_args(kind) if get_origin(kind) is Literal else ())))


def accepted(action: argparse.Action) -> str:
    """What a setting takes, in words: ``accepted is a whole number``, ``accepted are auto, fp32 and bf16``."""
    kind, several = _kind(action)
    if choices := choices_of(action):
        *most, last = choices
        return f"accepted are {', '.join(most)} and {last}" if most else f"accepted is {last}"
    words = {int: "whole number", float: "number"}.get(kind, "word")
    return f"accepted are {words}s" if several else f"accepted is a {words}"


def command_words(parser, argv: Sequence[str]) -> tuple[list[str], object]:
    """The words of the command that ``argv`` asks for (``["report", "train"]``), and its parser."""
    words: list[str] = []
    for word in argv:
        below = commands_below(parser)
        if word not in below:
            break
        words.append(word)
        parser = below[word]
    return words, parser


def commands_below(parser) -> Mapping[str, object]:
    """The commands of a parser by name; argparse has no public way to ask for them."""
    for action in parser._actions:
        if isinstance(action.choices, Mapping):
            return action.choices
    return {}


def join_lists(parser, argv: Sequence[str]) -> list[str]:
    """``--seeds 0 1 2`` as ``--seeds [0, 1, 2]``, which is what settings of a configuration take."""
    lists = {option: _kind(action)[0] for option, action in parser._option_string_actions.items() if takes_list(action)}
    joined: list[str] = []
    words = iter(argv)
    word = next(words, None)
    while word is not None:
        joined.append(word)
        name, word = word, next(words, None)
        if name not in lists or word is None or word.lstrip().startswith("["):
            continue
        values = []
        while word is not None and not word.startswith("--"):
            values.append(word)
            word = next(words, None)
        joined.append("[" + ", ".join(_quoted(value, lists[name]) for value in values) + "]")
    return joined


def names_as_typed(parsed: Namespace) -> Namespace:
    """What the parser made of :func:`join_lists`, with the bytes of names that are not UTF-8 as Python has them."""
    back = {carried: byte for byte, carried in CARRIED.items()}
    for key, value in parsed.items():
        if isinstance(value, list):
            parsed[key] = [one.translate(back) if isinstance(one, str) else one for one in value]
    return parsed


def _quoted(value: str, kind: Any) -> str:
    try:
        float(value)
        is_number = kind is not str
    except ValueError:
        is_number = False
    if is_number:
        return value
    value = value.translate(CARRIED)
    if not re.search(r"[\0-\x1f\x7f-\x9f]", value):
        return "'" + value.replace("'", "''") + "'"  # YAML: a name stays one, whatever is in it
    # control characters, which YAML takes as escapes alone
    return '"' + "".join(one if one.isalnum() else rf"\U{ord(one):08x}" for one in value) + '"'
