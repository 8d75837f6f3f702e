"""Refusals in the words of the command line: ``--val-share``, as it was typed, where Python says ``val_share``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..errors import ArgumentError, ArgumentTypeError, ConfigError

NAME_SETTINGS = (ConfigError, ArgumentError, ArgumentTypeError)  # other errors may begin with a path


def command_words(parser, argv: Sequence[str]) -> tuple[list[str], object]:
    """The words of the command that ``argv`` asks for (``["report", "train"]``), and its parser."""
    words: list[str] = []
    for word in argv:
        below = _commands(parser)
        if word not in below:
            break
        words.append(word)
        parser = below[word]
    return words, parser


def typed_options(parser, argv: Sequence[str]) -> dict[str, str]:
    """Each setting that a command takes as an option, and how it was typed, or would be: ``val_share: --val-share``."""
    options = {action.dest: f"--{action.dest}" for action in parser._actions if action.option_strings}
    for word in argv:
        typed = word.partition("=")[0]
        if typed.startswith("--") and (name := typed[2:].replace("-", "_")) in options:
            options[name] = typed
    return options


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
    message = re.sub(r"(?<=[(;])( ?)(\w+)(?=: )", lambda found: found[1] + option(found[2]), message)
    alone = r"(?<![\w./\\'\"-])\w+_\w+(?![\w/\\'\"-]|\.\w)"  # no part of a path
    return re.sub(alone, lambda word: option(word[0]), message)


def parser_reason(message: str, words: Sequence[str], options: Mapping[str, str], argv: Sequence[str]) -> str:
    """Why jsonargparse refuses ``argv``, with options in the place of its keys: ``pretrain.out``, ``--batch_size``."""

    def option(found: re.Match) -> str:
        name = found[1].rpartition(".")[2]
        return options.get(name, name)

    message = re.sub(r'(?:Parser )?[Kk]ey "([\w.]+)"', option, " ".join(message.split()))
    if words:
        message = re.sub(rf"(?<![\w.]){re.escape('.'.join(words))}\.(\w+)", option, message)
    for word in argv:
        typed = word.partition("=")[0]
        if typed.startswith("--"):
            message = re.sub(rf"--{re.escape(typed[2:].replace('-', '_'))}(?![\w-])", typed, message)
    return message


def add_reading(parser) -> None:
    """How files are read, for every command that reads them and has no class of settings with these names."""
    from ..data.reader_pool import MAX_MEMORY, TIMEOUT

    workers = "processes that read files; -1: one per core; 0: in this process, without caps"
    parser.add_argument("--workers", type=int, default=-1, help=workers)
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds that one file may take")
    parser.add_argument("--max_memory", type=int, default=MAX_MEMORY, help="MiB that one file may take")


def add_part(parser) -> None:
    """Which share of the files a process takes, for every command whose parts are joined by the last of them."""
    part = "i/n: the i-th of n shares of the files, for as many processes or machines; the one that ends last joins"
    parser.add_argument("--part", default="1/1", help=part)


def tell_waiting(shares: Sequence[int]) -> None:
    """Print which shares, counted from 1, have not ended; nothing where another process speaks of them."""
    if shares:
        some = ", ".join(map(str, shares[:8])) + (", ..." if len(shares) > 8 else "")
        print(f"this part is done; {len(shares)} shares are not ({some}): the last to end joins them")


def add_precision(parser) -> None:
    """In what a model that is not trained computes, for every command that has one."""
    parser.add_argument("--precision", default="auto", help="fp32, bf16, or auto: bf16 on GPUs that have it")


def add_inference(parser) -> None:
    """How a model of fixed shapes runs that is not trained."""
    add_precision(parser)
    compiles = "on, off, or auto: through torch.compile on a GPU, for 150,000 images and more"
    parser.add_argument("--compile", default="auto", help=compiles)


def lists_commands(parser) -> bool:
    """Whether there are commands below a parser's own."""
    return bool(_commands(parser))


def _commands(parser) -> Mapping[str, object]:
    """The commands of a parser by name; argparse has no public way to ask for them."""
    for action in parser._actions:
        if isinstance(action.choices, Mapping):
            return action.choices
    return {}
