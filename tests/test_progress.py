"""Bars for who looks on, lines for a log; notes above bars, in order with results."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hdxray_fast as hx
from hdxray_fast import progress
from hdxray_fast.features.embedding import Embedder
from hdxray_fast.progress import LogLines, note, progress_bar


class Terminal(io.StringIO):
    """A stderr that somebody looks at."""

    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_every_so_often_and_one_at_the_end(monkeypatch, capsys):
    clock = iter([0, 10, 40, 40, 60, 60])  # made, an update, an update and its line, an update, the last line
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress_bar(400, "write", "study", done=100) as bar:
        for _ in range(3):
            bar.update(50)
            bar.set_postfix({"loss": "0.5"}, refresh=False)
            bar.set_postfix(loss="0.25")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "write: 200 of 400 studies after 40 s, 1 min 20 s left, loss 0.25",
        "write: 250 of 400 studies after 1 min 0 s, 1 min 0 s left, loss 0.25",
    ]


def test_nothing_is_told_where_nothing_was_done_or_nobody_wants_to_know(capsys):
    with progress_bar(0, "a"), progress_bar(3, "b", done=3), progress_bar(1, "c", show=False) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_notes_above_it(monkeypatch):
    pytest.importorskip("tqdm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(2, "work") as bar:
        bar.update()
        note("a note")
        bar.update()
    assert "work: 100%" in stream.getvalue()
    assert re.search(r"\ra note\n\r", stream.getvalue())


def test_a_notebook_gets_a_bar(monkeypatch):
    assert isinstance(progress_bar(1, "work"), LogLines)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert progress.is_watched()
    del shell.kernel
    assert not progress.is_watched()  # IPython in a pipe


def test_what_is_counted_has_ended(monkeypatch):
    """Images that are read and wait for the encoder are not done."""
    counted, computed = [], []

    class Bar(LogLines):
        def update(self, count: int = 1) -> None:
            counted.append((count, len(computed)))

    monkeypatch.setattr(
        "hdxray_fast.features.embedding.progress_bar", lambda *_, **__: Bar(5, "embed", "image", 0, False)
    )
    work = Embedder._radiographs
    monkeypatch.setattr(Embedder, "_radiographs", lambda self, batch: computed.append(1) or work(self, batch))
    encoder = hx.create_encoder(
        "vit_tiny_patch16", img_size=64, depth=1, embed_dim=24, num_heads=3, contour="rectangle"
    )
    hx.embed([np.tile(np.arange(64, dtype=np.uint8), (64, 1))] * 5, encoder, batch_size=2, progress=True)
    assert counted == [(2, 1), (2, 2), (1, 3)]


def test_a_warning_of_this_package_is_a_line_and_those_of_others_stay(capsys):
    before = warnings.formatwarning
    with progress.warnings_as_notes():
        assert warnings.formatwarning(UserWarning("that is odd"), UserWarning, hx.__file__, 3) == ""
        said = warnings.formatwarning(UserWarning("x"), UserWarning, torch.__file__, 3)
    assert said.startswith(f"{torch.__file__}:3: UserWarning: x")
    assert warnings.formatwarning is before
    assert capsys.readouterr().err == "warning: that is odd\n"


def test_a_log_of_both_streams_is_in_order():
    """Results before the error that came after them, whatever buffers a pipe has."""
    code = (
        "import sys\nfrom hdxray_fast.cli import main\nfrom hdxray_fast.errors import ConfigError\n"
        "def run(argv):\n    print('a table')\n    raise ConfigError('out: no')\n"
        "main._run = run\nsys.exit(main.main(['x']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "a table\nhdxray-fast: out: no\n")
