"""The commands that messages name can be typed as they are printed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hdxray_fast.cli import demo
from hdxray_fast.cli.demo import describe
from hdxray_fast.cli.program import NAME, program


@pytest.fixture
def script(tmp_path, monkeypatch) -> Path:
    """What pip puts beside Python, in a virtual environment in the folder where the shell is."""
    path = tmp_path / "my venv" / "bin" / NAME
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "demo"])
    return path


def test_a_script_off_the_path_is_named_by_its_path(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == f"'my venv/bin/{NAME}'"
    monkeypatch.setattr(sys, "argv", [str(script.relative_to(tmp_path)), "demo"])  # as it was typed
    assert program() == f"'my venv/bin/{NAME}'"
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "argv", [str(script), "demo"])
    assert shlex.split(program()) == [str(script).lstrip("/")]  # relative to where the shell is


def test_the_short_name_is_for_the_script_that_the_shell_finds(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(script.parent))
    assert program() == NAME
    other = tmp_path / "other" / NAME
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(other.parent))  # an older installation, say
    assert shlex.split(program()) == [f"my venv/bin/{NAME}"]


def test_other_programs_that_call_the_functions_get_the_short_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["notebook.py"])
    assert program() == NAME


def test_run_as_a_module_it_is_named_as_a_module(tmp_path):
    command = [sys.executable, "-m", "hdxray_fast", "nonsense"]
    environment = {**os.environ, "PATH": "/nowhere"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert f"({shlex.quote(sys.executable)} -m hdxray_fast --help lists the commands)" in done.stderr


def test_the_demo_says_that_it_replaces_the_run_of_an_earlier_one(tmp_path, monkeypatch, capsys):
    pytest.importorskip("accelerate")
    from hdxray_fast.pretrain import task

    class Begun(Exception):
        """The demo goes on from here as any pre-training."""

    def begin(*_, **__):
        raise Begun

    monkeypatch.setattr(demo, "demo_radiograph", lambda: tmp_path / "film.dcm")
    monkeypatch.setattr(task, "run_pretraining", begin)
    for told in ("", f"{tmp_path / 'out' / 'run'}: the run of an earlier demo is replaced; another --out keeps it\n"):
        with pytest.raises(Begun):
            demo.run_demo(demo.DemoConfig(out=str(tmp_path / "out")))
        assert capsys.readouterr().err == told
        (tmp_path / "out" / "run" / "log.jsonl").touch()


def test_the_demo_names_what_comes_next(script, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    metrics = {"image": "x.dcm", "inside_share": 0.4, "contour_confidence": 0.9, "tokens_kept": 1, "tokens_total": 2}
    metrics |= {
        "loss_first": 1.0,
        "loss_last": 0.5,
        "steps": 3,
        "seconds_per_step": 0.1,
        "peak_rss_mib": 1.0,
        "features": [],
    }
    said = describe(metrics, "demo")
    last = said.rstrip().splitlines()[-5:]
    assert [shlex.split(line.removeprefix("next").strip())[:2] for line in last] == [
        [f"my venv/bin/{NAME}", command] for command in ("pretrain", "probe", "predict", "contour", "doctor")
    ]
    assert "after 3 steps it is less than the demo can show; the usual 500 take about 1 minute here" in said
    assert "the usual" not in describe({**metrics, "steps": 500}, "demo")
