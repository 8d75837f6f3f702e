"""What a training starts from: what is given, the encoder of the package, or what the run that goes on began with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hdxray_fast.classify.config import FinetuneConfig
from hdxray_fast.classify.finetune import _started_alike
from hdxray_fast.cli.main import main
from hdxray_fast.errors import ConfigError
from hdxray_fast.reports.config import ReportConfig
from hdxray_fast.training.starting import USUAL
from hdxray_fast.training.starting import with_start as with_start_of
from hdxray_fast.weights.shipped import PRETRAINED


def with_start(config, preset):
    return with_start_of(config, preset, PRETRAINED)


@pytest.mark.parametrize(("kind", "preset"), [(FinetuneConfig, "model"), (ReportConfig, "encoder")])
def test_without_a_word_it_is_the_encoder_of_the_package(kind, preset, tmp_path):
    config = kind(data="labels.csv", out=str(tmp_path))
    started = with_start(config, preset)
    assert (started.weights, getattr(started, preset)) == ("pretrained", USUAL)
    assert with_start(started, preset) == started
    untrained = replace(config, **{preset: USUAL})
    assert with_start(untrained, preset) == untrained  # asked for
    assert with_start(replace(config, weights="w"), preset).weights == "w"
    with pytest.raises(ConfigError, match=f"^{preset}: vit_base_patch16 is for a run without weights"):
        with_start(replace(config, weights="w", **{preset: "vit_base_patch16"}), preset)
    # a run of a release that trained an untrained one goes on with it, and none of its settings differ
    begun = {**untrained.as_dict(), "weights": None}
    (tmp_path / "config.json").write_text(json.dumps(begun))
    (tmp_path / "log.jsonl").write_text("")
    assert with_start(config, preset) == untrained and not untrained.differences(begun)
    assert with_start(replace(config, force=True), preset).weights == "pretrained"


def test_runs_of_one_comparison_start_alike(tmp_path):
    """Of which an earlier release had begun one, untrained."""
    config = FinetuneConfig(data="labels.csv", out=str(tmp_path), label_fractions=[0.5, 1.0])
    assert {run.weights for run in _started_alike(config.runs())} == {"pretrained"}
    first = Path(config.runs()[0].out)
    first.mkdir(parents=True)
    (first / "config.json").write_text(json.dumps({"weights": None, "model": "vit_base_patch16"}))
    (first / "log.jsonl").write_text("")
    assert {(run.weights, run.model) for run in _started_alike(config.runs())} == {(None, "vit_base_patch16")}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "encoder: the first 8 blocks of vit_tiny_patch16, which comes with the package"),
        (["--model", "vit_base_patch16"], "encoder: vit_base_patch16, untrained: it needs many films and days"),
        (
            ["--model", USUAL, "--weights", "w"],
            f"--model {USUAL} has no part in this: --weights w say what the encoder is",
        ),
    ],
)
def test_a_fine_tuning_says_first_what_it_trains(words, told, tmp_path, capsys):
    assert main(["finetune", "--data", str(tmp_path / "no.csv"), "--out", str(tmp_path / "run"), *words]) == 2
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith(told)
    assert "slow without a GPU; probe" in second or "no.csv" in second  # the latter on a machine with a GPU
