"""Refusals name options as they were typed, and the help that lists them."""

from __future__ import annotations

import pytest

from hdxray_fast.cli.main import GROUPS, main
from hdxray_fast.cli.options import in_typed_words
from hdxray_fast.errors import ArgumentError, CheckpointError, ConfigError

pytest.importorskip("jsonargparse")

TRAIN = ["--data", "data", "--out", "run"]


def refusal(words: list[str], capsys) -> str:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("hdxray-fast: ")


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["pretrain", *TRAIN], "--data: data does not exist"),
        (["pretrain", *TRAIN, "--grad-accum", "0"], "--grad-accum: 0 is not accepted"),
        (["pretrain", *TRAIN, "--grad_accum", "0"], "--grad_accum: 0 is not accepted"),
        (["pretrain", *TRAIN, "--grad-accum=0"], "--grad-accum: 0 is not accepted"),
        (["pretrain", *TRAIN, "--ratio-inside=0", "--ratio_outside=0"], "--ratio-inside and --ratio_outside are both"),
        (["finetune", *TRAIN, "--val-share", "3"], "--val-share: 3.0 is not accepted"),
        (["finetune", *TRAIN, "--mixup=1", "--batch-size=3"], "--mixup: images are mixed in pairs, which takes an even "
         "--batch-size; 3"),
        (["report", "train", *TRAIN, "--test-share", "7"], "--test-share: 7.0 is not accepted"),
        (["report", "generate", "--model", "m"], "paths, --data: give radiographs"),
        (["plan"], "--images: say how many"),
        (["contour", "nowhere", "--out", "o"], "paths: nowhere does not exist"),
        (["report", "evaluate", "nowhere.csv", "--out", "o"], "predictions: nowhere.csv is not a readable CSV file"),
        (["pretrain", "--data", "", "--out", "o"], "--data and --out must both be named"),
    ],
)  # fmt: skip
def test_settings_are_named_as_they_were_typed(words, begins, capsys, tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    assert refusal(words, capsys).startswith(begins)


def test_settings_of_a_file_are_named_as_help_lists_them(capsys, tmp_path):
    (tmp_path / "c.yaml").write_text("grad_accum: 0\n")
    words = ["pretrain", *TRAIN, "--config", str(tmp_path / "c.yaml")]
    assert refusal(words, capsys).startswith("--grad_accum: 0 is not accepted")


def test_from_python_they_keep_their_names():
    from hdxray_fast.pretrain.config import PretrainConfig

    with pytest.raises(ConfigError, match=r"^grad_accum: 0 is not accepted"):
        PretrainConfig(data="x", out="y", grad_accum=0)


@pytest.mark.parametrize(
    ("words", "begins", "hint"),
    [
        (["pretrain"], "the following arguments are required: --out, --data", "pretrain --help lists the settings"),
        (["embed"], "the following arguments are required: paths, --weights", "embed --help lists the settings"),
        (["report", "train", "--data", "x"], "the following arguments are required: --out",
         "report train --help lists the settings"),
        (["report", "train", *TRAIN, "--vall-share", "1"], "unrecognized arguments: --vall-share",
         "report train --help lists the settings"),
        (["report", "generate", *TRAIN, "--bems", "1"], "", "report generate --help lists the settings"),
        (["report", "evaluate", "p.csv", "--out", "o", "--bootz", "1"], "unrecognized arguments: --bootz",
         "report evaluate --help lists the settings"),
        (["report", "nonsense"], "", "report --help lists the commands"),
        (["report"], "", "report --help lists the commands"),
        (["nonsense"], "", "--help lists the commands"),
        ([], "", "--help lists the commands"),
        (["pretrain", *TRAIN, "--grad-accum", "two"], "--grad-accum: ", "pretrain --help lists the settings"),
        (["prepare", "x", "--out", "y", "--max-memory", "two"], "--max-memory: ", "prepare --help lists the settings"),
    ],
)  # fmt: skip
def test_hints_can_be_typed(words, begins, hint, capsys):
    line = refusal(words, capsys)
    assert line.startswith(begins)
    assert line.endswith(f"hdxray-fast {hint})")


@pytest.mark.parametrize("command", [command for commands in GROUPS.values() for command in commands])
def test_every_command_hints_at_its_own_help(command, capsys):
    assert f"hdxray-fast {command} --help lists the " in refusal([command, "--no-such-thing", "1"], capsys)


def test_paths_are_left_alone():
    options = {"val_share": "--val-share", "data": "--data", "steps": "--steps", "img_size": "--img-size"}
    argv = ["--data", "data"]
    same = [
        CheckpointError("data: is missing"),  # a path that was typed
        ConfigError("out: /x/val_share holds a run"),
        ConfigError("out: 'img_size' is a file, val_share.csv another"),
        OSError(2, "No such file or directory", "data"),
    ]
    assert [in_typed_words(error, options, argv) for error in same] == [str(error) for error in same]
    lines = {
        ConfigError("out: r holds a run with other settings (steps: 9 -> 2; img_size: 64 -> 128)"):
            "out: r holds a run with other settings (--steps: 9 -> 2; --img-size: 64 -> 128)",
        ArgumentError("img_size: give img_size=64."): "--img-size: give --img-size=64.",
        CheckpointError("data: is missing"): "--data: is missing",
    }  # fmt: skip
    assert [in_typed_words(error, options) for error in lines] == list(lines.values())
