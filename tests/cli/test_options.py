"""Refusals name options as they were typed, and the help that lists them."""

from __future__ import annotations

import pytest

from hdxray_fast.cli.main import GROUPS, main
from hdxray_fast.cli.refusals import in_typed_words
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
        (["pretrain", *TRAIN, "--grad-accum=0"], "--grad-accum: 0 is not accepted"),
        (["pretrain", *TRAIN, "--ratio-inside=0", "--ratio-outside=0"], "--ratio-inside and --ratio-outside are both"),
        (["finetune", *TRAIN, "--val-share", "3"], "--val-share: 3.0 is not accepted"),
        (["finetune", *TRAIN, "--mixup=1", "--batch-size=3"], "--mixup: images are mixed in pairs, which takes an even "
         "--batch-size; 3"),
        (["finetune", *TRAIN, "--weights", "pretrained", "--model", "vit_base_patch16"], "--model: vit_base_patch16 "
         "is for a run without"),
        (["report", "train", *TRAIN, "--test-share", "7"], "--test-share: 7.0 is not accepted"),
        (["report", "generate", "--model", "m"], "paths, --data: give radiographs"),
        (["plan"], "--images and --data: give one of them"),
        (["contour", "nowhere", "--out", "o"], "paths: nowhere does not exist"),
        (["contour", "x", "--out", "o", "--size", "64"], "--size: contour has no such option; is --img-size meant?"),
        (["prepare", "x", "--out", "o", "--size", "64"], "--size: prepare has no such option; is --img-size meant?"),
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
    assert refusal(words, capsys).startswith("--grad-accum: 0 is not accepted")


def test_from_python_they_keep_their_names():
    from hdxray_fast.pretrain.config import PretrainConfig

    with pytest.raises(ConfigError, match=r"^grad_accum: 0 is not accepted"):
        PretrainConfig(data="x", out="y", grad_accum=0)


@pytest.mark.parametrize(
    ("words", "begins", "hint"),
    [
        (["pretrain"], "pretrain needs --out and --data (", "pretrain --help lists the settings"),
        (["embed"], "embed needs paths and --out (", "embed --help lists the settings"),
        (["report", "train", "--data", "x"], "report train needs --out (", "report train --help lists the settings"),
        (["report", "nonsense"], "'nonsense' is no command of report; there are train, generate, evaluate (",
         "report --help lists the commands"),
        (["report", "trian"], "'trian' is no command of report; is train meant? (", "report --help lists the commands"),
        (["nonsense"], "'nonsense' is no command; there are ", "--help lists the commands"),
        (["pretrian"], "'pretrian' is no command; is pretrain meant? (", "--help lists the commands"),
        (["pretrain", *TRAIN, "--grad-accum", "two"], "--grad-accum: got 'two', accepted is a whole number (",
         "pretrain --help lists the settings"),
        (["pretrain", *TRAIN, "--lr=x"], "--lr: got 'x', accepted is a number (", "pretrain --help lists the settings"),
        (["pretrain", *TRAIN, "--augment", "perhaps"], "--augment: got 'perhaps', accepted are true and false (",
         "pretrain --help lists the settings"),
        (["finetune", *TRAIN, "--seeds", "1", "x"], "--seeds: accepted are whole numbers (",
         "finetune --help lists the settings"),
        (["finetune", *TRAIN, "--keep", "all but"], "--keep: got 'all but', accepted are all, valid and contour (",
         "finetune --help lists the settings"),
        (["export", "m", "--out", "o", "--keep", "none"], "--keep: got 'none', accepted are all, valid and contour (",
         "export --help lists the settings"),
        (["contour", "x", "--out"], "--out: the value is missing, accepted is a word (",
         "contour --help lists the settings"),
        (["contour", "x", "--out", "o", "y"], "y: contour takes paths, one behind the other (",
         "contour --help lists the settings"),
        (["pretrain", *TRAIN, "y"], "y: pretrain takes only settings, which begin with -- (",
         "pretrain --help lists the settings"),
        (["doctor", "--json=x"], "--json: takes no value (", "doctor --help lists the settings"),
        (["prepare", "x", "--out", "y", "--max-memory", "two"], "--max-memory: ", "prepare --help lists the settings"),
    ],
)  # fmt: skip
def test_hints_can_be_typed(words, begins, hint, capsys):
    line = refusal(words, capsys)
    assert line.startswith(begins)
    assert line.endswith(f"hdxray-fast {hint})")


@pytest.mark.parametrize(
    ("words", "option", "told"),
    [
        (["pretrain", *TRAIN], "--step", "pretrain has no such option; is --steps meant?"),  # the beginning of one
        (["pretrain", *TRAIN], "--step=10", "pretrain has no such option; is --steps meant?"),
        (["pretrain", *TRAIN], "--batchsize", "pretrain has no such option; is --batch-size meant?"),
        (["pretrain", *TRAIN], "--batch_size", "is spelt --batch-size; batch_size is its name in YAML"),
        (["pretrain", *TRAIN], "--print_config", "is spelt --print-config; print_config is its name in YAML"),
        (["finetune", *TRAIN], "--classes+", "finetune has no such option; is --classes meant?"),
        (["report", "train", *TRAIN], "--vall-share", "report train has no such option; is --val-share meant?"),
        (["report", "evaluate", "p.csv"], "--zzz", "report evaluate has no such option"),
        (["pretrain", *TRAIN], "-s", "pretrain has no such option"),
    ],
)
def test_an_option_is_typed_whole_and_in_one_way(words, option, told, capsys):
    line = refusal([*words, option, "10"], capsys)
    assert line.startswith(f"{option.partition('=')[0]}: {told} (")
    assert line.endswith(f"{words[0]}{' ' + words[1] if words[0] == 'report' else ''} --help lists the settings)")


def test_a_value_of_a_config_is_never_quoted(capsys, tmp_path):
    (tmp_path / "c.yaml").write_text("steps: Jane Doe\n")
    line = refusal(["pretrain", *TRAIN, "--config", str(tmp_path / "c.yaml")], capsys)
    assert line.startswith("--steps: in the config, accepted is a whole number (")
    assert "Doe" not in line
    line = refusal(["pretrain", *TRAIN, "--config", str(tmp_path / "none.yaml")], capsys)
    assert line == f"--config: {tmp_path}/none.yaml does not exist"


def test_a_name_with_spaces_wants_quotes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my chest film.png").touch()
    hint = "; there is 'my chest film.png': put quotes round a name with spaces"
    assert refusal(["contour", "my", "chest", "film.png", "--out", "o"], capsys).endswith(hint)
    assert hint in refusal(["pretrain", "--out", "o", "--data", "my", "chest", "film.png"], capsys)
    assert hint in refusal(["pretrain", "--data=my", "chest", "film.png", "--out", "o"], capsys)
    assert "quotes" not in refusal(["contour", "my", "film.png", "--out", "o"], capsys)


@pytest.mark.parametrize("command", [command for commands in GROUPS.values() for command in commands])
def test_every_command_hints_at_its_own_help(command, capsys):
    words = [command, "train"] if command == "report" else [command]
    assert f"hdxray-fast {' '.join(words)} --help lists the settings)" in refusal([*words, "--no-such", "1"], capsys)


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
        ConfigError("it is there; give another data (--data), or --force (force=True), or x (--data)"):
            "it is there; give another --data, or --force, or x (--data)",
    }  # fmt: skip
    assert [in_typed_words(error, options) for error in lines] == list(lines.values())
