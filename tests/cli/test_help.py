"""What a user reads of the commands before any of them runs: the list of them, and the help of each."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex

import pytest

pytest.importorskip("jsonargparse")

import hdxray_fast as hx
from hdxray_fast.cli.main import GROUPS, main
from hdxray_fast.cli.parser import SECTIONS, CommandParser, command_words, join_lists, tidy
from hdxray_fast.pretrain.config import PretrainConfig


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    """What every command takes, the root under the empty word."""
    root = CommandParser(prog="hdxray-fast")
    commands = root.add_subcommands(required=True, dest="command")
    for group in GROUPS:
        importlib.import_module(f"hdxray_fast.cli.{group}").add_commands(commands, CommandParser)
    tidy(root)
    words = [["report", inner] for inner in ("train", "generate", "evaluate")]
    words += [[command] for names in GROUPS.values() for command in names]
    return {"": root, **{" ".join(typed): command_words(root, typed)[1] for typed in words}}


def test_the_examples_of_help_can_be_typed(parsers):
    examples = [line.strip() for parser in parsers.values() for line in (parser.epilog or "").splitlines()[1:]]
    for example in examples:
        words = shlex.split(example)[1:]
        if "config.yaml" not in words:
            parsers[""].parse_args(join_lists(command_words(parsers[""], words)[1], words))
    assert {" ".join(shlex.split(line)[1:2]) for line in examples} == {name.split(" ")[0] for name in parsers if name}


def test_help_speaks_a_users_words(parsers):
    """No names of types, no markup, one spelling of options."""
    jargon = re.compile(
        r"``|%%|null|Optional|Union|Literal|NoneType|\bint\b|\bstr\b|read_|list_|--\w+_\w+|\w\+ |subcommand"
    )
    for words, parser in parsers.items():
        told = parser.format_help()
        assert not jargon.search(told), (words, jargon.search(told))


def test_usage_is_in_the_order_that_is_typed(parsers):
    usage = {words: parser.format_usage().split("\n")[0] for words, parser in parsers.items()}
    assert usage["convert"] == "usage: hdxray-fast convert source folder [settings]"
    assert usage["compare"] == "usage: hdxray-fast compare models ... --out OUT [settings]"


def test_sections_of_help_name_settings_that_there_are(parsers):
    known = {action.dest for parser in parsers.values() for action in parser._actions}
    assert {name for names in SECTIONS.values() for name in names} <= known
    has = {words: "Saving and following:" in parser.format_help() for words, parser in parsers.items()}
    assert {words for words, saves in has.items() if saves} == {"pretrain", "finetune", "report train"}


def test_settings_that_take_several_values_are_joined(parsers):
    words = ["--seeds", "0", "1", "--classes", "Pleural effusion", "12", "no'ne", "--steps", "3"]
    joined = ["--seeds", "[0, 1]", "--classes", "['Pleural effusion', '12', 'no''ne']", "--steps", "3"]
    assert join_lists(parsers["finetune"], words) == joined
    assert join_lists(parsers["finetune"], joined) == joined
    assert join_lists(parsers["predict"], ["--classes", "a", "b"]) == ["--classes", "a", "b"]  # argparse's own list


def test_a_run_takes_one_place_or_several(parsers):
    def data(*words: str) -> list[str] | str:
        words = ["pretrain", "--data", *words, "--out", "x"]
        return parsers[""].parse_args(join_lists(parsers["pretrain"], words)).pretrain.data

    assert data("films", "2024", "it's") == ["films", "2024", "it's"]
    assert PretrainConfig(data=data("2024"), out="x").data == "2024"


def test_shells_complete_commands_and_options(capsys):
    pytest.importorskip("shtab")
    assert main(["--completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--batch-size" in script and "--batch_size" not in script and "pretrain" in script
    assert "pretrain___precision_choices=(auto fp32 bf16)" in script
    assert main(["--completion", "cmd.exe"]) == 2
    assert capsys.readouterr().err.startswith("hdxray-fast: --completion: name the shell, bash, ")


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_all_commands_are_listed_in_groups_with_a_line_each(words, capsys):
    assert main(words) == 0
    listed = capsys.readouterr().out
    assert max(map(len, listed.splitlines()[:-4])) <= 80
    lines = dict(
        line.strip().split("  ", 1) for line in listed.splitlines() if line.startswith("  ") and "--" not in line
    )
    inner = {"report train", "report generate", "report evaluate"}
    assert set(lines) == {command for commands in GROUPS.values() for command in commands} - {"report"} | inner
    assert all(lines.values())


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hdxray-fast {hx.__version__}\n"
