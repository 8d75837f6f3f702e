"""Refusals in the words of the command line: ``--val-share``, where Python and YAML say ``val_share``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence

from ..errors import ArgumentError, ArgumentTypeError, ConfigError
from .parser import accepted

MOST_PIECES = 12  # of a name with spaces that are joined to see if it exists
NAME_SETTINGS = (ConfigError, ArgumentError, ArgumentTypeError)  # other errors may begin with a path


def option_names(parser) -> dict[str, str]:
    """Each setting that a command takes as an option, and the option: ``val_share: --val-share``."""
    return {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}


def unknown_option(parser, words: Sequence[str], argv: Sequence[str]) -> str | None:
    """Why an option that was typed is none: it is another one's beginning, or in another spelling; None: all are known.

    Args:
        parser: of the command.
        words: that call it.
        argv: what was typed behind them.
    """
    known = parser._option_string_actions
    for word in argv:
        typed = word.partition("=")[0]
        if word == "--":
            break
        if typed in known or not re.match(r"--?[a-zA-Z]", typed):
            continue
        if (spelt := typed.replace("_", "-")) in known:
            return f"{typed}: is spelt {spelt}; {spelt.strip('-').replace('-', '_')} is its name in YAML"
        longer = [option for option in known if option.startswith(spelt) and spelt.startswith("--")]
        near = longer[:1] or difflib.get_close_matches(spelt, known, 1)
        hint = f"; is {near[0]} meant?" if near else ""
        return f"{typed}: {' '.join(words)} has no such option{hint}"
    return None


def in_typed_words(error: Exception | str, options: Mapping[str, str], argv: Sequence[str] = ()) -> str:
    """A message with options where it names settings: at its head, in lists of settings, and where ``_`` tells.

    Args:
        error: of this package, or a message about settings.
        options: of :func:`typed_options`.
        argv: what was typed: the head of a message that is no refusal of a setting may be a path of it.
    """

    def option(name: str) -> str:
        return options.get(name, name)

    message = str(error)
    head = re.match(r"\w+(?:(?:, | and )\w+)*(?=: | must | is | are )", message)
    if head and (isinstance(error, (str, *NAME_SETTINGS)) or head[0] not in argv):
        message = re.sub(r"\w+", lambda word: option(word[0]), head[0]) + message[head.end() :]
    # where an error says both, for Python and for a terminal: "force=True (--force)", "classes (--classes)"
    message = re.sub(r"(--[\w-]+) \(\w+=True\)", r"\1", message)
    message = re.sub(r"\b(\w+) \((--[\w-]+)\)", lambda both: _one_of_both(both, options), message)
    message = re.sub(r"(?<=[(;])( ?)(\w+)(?=: )", lambda found: found[1] + option(found[2]), message)
    alone = r"(?<![\w./\\'\"-])\w+_\w+(?![\w/\\'\"-]|\.\w)"  # no part of a path
    return re.sub(alone, lambda word: option(word[0]), message)


def _one_of_both(found: re.Match, options: Mapping[str, str]) -> str:
    return found[2] if options.get(found[1]) == found[2] else found[0]


def unquoted(argv: Sequence[str]) -> str:
    """A hint where words are the pieces of one path, whose name has spaces; blank if there is no such path."""
    for start in range(len(argv)):
        for end in range(start + 2, min(start + MOST_PIECES, len(argv)) + 1):
            if argv[end - 1].startswith("--"):
                break
            first = argv[start].partition("=")[2] if argv[start].startswith("--") else argv[start]
            pieces = [first, *argv[start + 1 : end]]
            name = " ".join(pieces)
            if first and os.path.exists(name) and not all(map(os.path.exists, pieces)):
                return f"; there is {name!r}: put quotes round a name with spaces"
    return ""


def parser_reason(message: str, parser, words: Sequence[str], argv: Sequence[str]) -> str:
    """Why jsonargparse refuses ``argv``, in a user's words and with options where it has keys: ``pretrain.out``."""
    options, name = option_names(parser), " ".join(words)
    message = " ".join(message.split())
    if found := re.match(r"the following arguments are required: (.*)", message):
        needed = [key.rpartition(".")[2] for key in found[1].split(", ")]
        # in the order of help: what has no name first
        *most, last = [options.get(action.dest, action.dest) for action in parser._actions if action.dest in needed]
        return f"{name} needs {', '.join(most)} and {last}" if most else f"{name} needs {last}"
    if found := re.match(r"unrecognized arguments: (.*)", message):
        beside = [action.dest for action in parser._actions if not action.option_strings]
        takes = f"{' and '.join(beside)}, one behind the other" if beside else "only settings, which begin with --"
        return f"{found[1]}: {name} takes {takes}"
    key = re.match(r'(?:Parser )?[Kk]ey "([\w.]+)"(?: element \d+)?:? ?|argument ([\w./ -]+): ', message)
    if key is None:
        return message
    dest = (key[1] or key[2].rpartition("/")[2].strip("-").replace("-", "_")).rpartition(".")[2]
    action = next((action for action in parser._actions if action.dest == dest), None)
    said, rest = options.get(dest, dest), message[key.end() :]
    if action is None:
        return f"{said}: {rest}"
    if re.match(r"expected (at least )?one argument", rest):
        return f"{said}: the value is missing, {accepted(action)}"
    if re.match(r"ignored explicit argument", rest):
        return f"{said}: takes no value"
    if not re.match(r"Expected an? |Does not validate|invalid choice", rest):
        return f"{said}: {rest}"
    given = re.search(r"(?:Given|Got) value: (.*)$|invalid choice: '(.*?)' \(", rest)
    value = (given[1] or given[2] or "").strip("\"'[]") if given else ""
    typed = {part for word in argv for part in (word, word.partition("=")[2])}
    if value in typed:
        return f"{said}: got {value!r}, {accepted(action)}"
    there = any(word.partition("=")[0] == said for word in argv)
    return f"{said}: {'' if there else 'in the config, '}{accepted(action)}"  # which may hold anything: never quoted
