"""Files that appear whole, what a killed process leaves of them, and who may read them."""

from __future__ import annotations

import os
import sys

import pytest

from hdxray_fast.files import remove_leftovers, share, written_whole

DEAD = 99_999_999  # above every system's largest process id


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    with written_whole(path) as temporary:
        temporary.write_text("old")

    def interrupted():
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a.txt", "old")]


@pytest.mark.skipif(sys.platform == "win32", reason="whether a process lives is asked of POSIX systems alone")
def test_leftovers_of_dead_processes_alone_are_removed(tmp_path):
    ours = [f".model.{DEAD}.tmp/part", f".model.{DEAD}.old.tmp/part", f".best.safetensors.{DEAD}.tmp"]
    theirs = [f".model.{os.getpid()}.tmp/part", f".a.csv.{os.getppid()}.tmp", ".notes.tmp", ".mine.tmp/x", "b.1.tmp"]
    for name in (*ours, *theirs):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(theirs)
    remove_leftovers(tmp_path / "nowhere")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_shared_files_have_the_mode_of_new_ones(tmp_path):
    private, plain = tmp_path / "private", tmp_path / "plain"
    private.touch(mode=0o600)
    plain.touch()
    share(private)
    assert private.stat().st_mode == plain.stat().st_mode
