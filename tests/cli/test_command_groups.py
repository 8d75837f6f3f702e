"""The command line is in groups: each is imported when it is asked for, and all of them are listed."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from hdxray_fast.classify.config import FinetuneConfig
from hdxray_fast.classify.label_presets import PRESETS
from hdxray_fast.classify.label_settings import LabelSettings
from hdxray_fast.classify.labels import read_labels
from hdxray_fast.classify.probe_config import ProbeConfig
from hdxray_fast.cli.main import GROUPS, main
from hdxray_fast.errors import ConfigError
from hdxray_fast.models.encoder_config import KEEPS
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.reports.config import ReportConfig
from hdxray_fast.reports.layouts import STUDY_SETTINGS
from hdxray_fast.reports.model_config import ReportModelConfig
from hdxray_fast.training.config import TrainingConfig

pytest.importorskip("jsonargparse")


def imported_by(*argv: str) -> set[str]:
    """Modules there are after a command, of this package and of torch."""
    code = (
        "import sys\nfrom hdxray_fast.cli.main import main\n"
        f"try:\n    main({list(argv)!r})\nexcept SystemExit:\n    pass\n"
        "print('\\n' + ' '.join(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(told.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_runs_the_commands_that_it_is_listed_with(group):
    assert set(importlib.import_module(f"hdxray_fast.cli.{group}").COMMANDS) == set(GROUPS[group])


@pytest.mark.parametrize("command", [command for commands in GROUPS.values() for command in commands])
def test_each_command_describes_itself(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: hdxray-fast {command} ")
    examples = told.partition("\nExamples:\n")[2].splitlines()
    assert command == "report" or examples


@pytest.mark.parametrize(
    "command",
    ["demo", "pretrain", "finetune", "probe", "predict", "evaluate", "embed", "features", "similar", "report train",
     "report generate", "report evaluate"],
)  # fmt: skip
def test_each_command_that_runs_a_model_is_told_where(command, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert "--device DEVICE" in capsys.readouterr().out


def test_a_command_imports_its_own_group_alone():
    modules = imported_by("contour", "--help")
    assert "hdxray_fast.cli.contour" in modules
    others = {f"hdxray_fast.cli.{group}" for group in GROUPS} - {"hdxray_fast.cli.contour"}
    assert not modules & (others | {"torch"})


def test_listing_the_commands_imports_no_torch():
    assert "torch" not in imported_by("--help")


def test_an_unknown_command_is_told_which_there_are(capsys):
    assert main(["nonsense"]) == 2
    message = capsys.readouterr().err
    assert "nonsense" in message and "pretrain" in message and "report" in message


def test_the_package_is_run_as_a_module():
    told = subprocess.run([sys.executable, "-m", "hdxray_fast", "merge"], capture_output=True, text=True, check=False)
    assert told.returncode == 2 and told.stderr.startswith("hdxray-fast: ")


def test_the_presets_that_settings_describe_are_those_there_are():
    described = LabelSettings.__doc__.split("preset:")[1].split("\n        classes:")[0]
    assert [word.strip(" `.\n") for word in described.replace(" or ", ", ").split(",")] == list(PRESETS)


@pytest.mark.parametrize("config", [ProbeConfig, FinetuneConfig])
def test_labels_are_read_as_the_settings_say_by_default(config):
    """What is left out of a configuration is what :func:`read_labels` does."""
    defaults = inspect.signature(read_labels).parameters
    told = config(data="labels.csv", out="out", weights="model")
    for setting in dataclasses.fields(LabelSettings):
        assert getattr(told, setting.name) == defaults[setting.name].default, setting.name


def test_what_a_report_model_is_stands_in_its_training(tmp_path):
    """Each setting of a model is one of its training, with the same default, and gets there."""
    config = ReportConfig(data="studies.csv", out=str(tmp_path), keep="contour", layers=1, width=64, heads=2)
    assert config.model_config == ReportModelConfig(keep="contour", layers=1, width=64, heads=2, cleaning="english")
    assert set(get_args(get_type_hints(ReportConfig)["keep"])) == set(KEEPS)
    assert set(STUDY_SETTINGS) <= {setting.name for setting in dataclasses.fields(ReportConfig)}
    with pytest.raises(ConfigError, match="keep: got 'none'"):
        ReportModelConfig(keep="none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnConfig(TrainingConfig):
    """Settings of a task of one's own."""

    FREE_ON_RESUME = TrainingConfig.FREE_ON_RESUME | {"colour"}

    colour: str = "red"
    depth: int = 1


def test_a_configuration_says_itself_what_is_free_on_resume(tmp_path):
    before = OwnConfig(out=str(tmp_path), workers=2).as_dict()
    now = OwnConfig(out=str(tmp_path), workers=0, colour="blue", depth=2)
    assert now.differences(before) == ["depth: 1 -> 2"]
    assert "colour" not in TrainingConfig.FREE_ON_RESUME
    assert "FREE_ON_RESUME" not in before  # it is no setting


@pytest.mark.parametrize("config", [TrainingConfig, PretrainConfig, FinetuneConfig])
def test_what_is_free_on_resume_is_a_setting(config):
    assert {setting.name for setting in dataclasses.fields(config)} >= config.FREE_ON_RESUME


def test_what_decides_the_loss_is_not_free(tmp_path):
    saved = PretrainConfig(data="a", out=str(tmp_path)).as_dict()
    with pytest.raises(ConfigError):
        PretrainConfig(data="", out="b")
    other = PretrainConfig(data="a", out="elsewhere", cache="c", picture_every=0, ratio_inside=0.5, seed=1)
    assert other.differences(saved) == ["seed: 0 -> 1", "ratio_inside: 0.95 -> 0.5"]
