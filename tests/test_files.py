"""Files that appear whole, what a killed process leaves of them, and who may read them."""

from __future__ import annotations

import os
import sys
import time

import pytest

from hdxray_fast.files import names_after, remove_leftovers, share, written_whole

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
    chance = "0123456789abcdef"
    ours = [f".model.{DEAD}.{chance}.tmp/part", f".best.safetensors.{DEAD}.{chance}.tmp"]
    theirs = [f".model.{os.getpid()}.{chance}.tmp/part", f".a.csv.{os.getppid()}.{chance}.tmp"]
    theirs += [f".b.csv.{os.getpid()}.tmp", ".notes.tmp", ".mine.tmp/x", "b.1.tmp"]
    theirs += [".x.2024.tmp", f".model.{DEAD}.tmp/part", f".model.{DEAD}.old.tmp/part", f".a.{DEAD}.{'g' * 16}.tmp"]
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


@pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")
def test_links_that_were_planted_lead_nowhere(tmp_path, monkeypatch):
    """The name of the file beside it cannot be known; where it is known all the same, it is not followed."""
    target, path = tmp_path / "target", tmp_path / "a.txt"
    target.write_text("theirs")
    names = set()
    for _ in range(8):
        with written_whole(path) as temporary:
            names.add(temporary.name)
            assert temporary.is_file() and not temporary.is_symlink()
    assert len(names) == 8
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    (tmp_path / f".a.txt.{os.getpid()}.{'0' * 16}.tmp").symlink_to(target)
    with pytest.raises(FileExistsError), written_whole(path) as temporary:
        temporary.write_text("ours")
    assert target.read_text() == "theirs"
    path.unlink()
    path.symlink_to(target)
    monkeypatch.undo()
    with written_whole(path) as temporary:
        temporary.write_text("ours")
    assert target.read_text() == "theirs" and path.read_text() == "ours" and not path.is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_secrets_are_their_owners_alone_from_the_first_byte_on(tmp_path):
    with written_whole(tmp_path / "key", private=True) as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600
    with written_whole(tmp_path / "open") as temporary:
        (tmp_path / "plain").touch()
        assert temporary.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_many_files_of_one_name_are_numbered_at_once():
    began = time.monotonic()
    names = names_after([f"{number}/View1_frontal.jpg" for number in range(30000)])
    assert time.monotonic() - began < 10
    assert names[:2] == ["View1_frontal", "View1_frontal-2"] and names[-1] == "View1_frontal-30000"
    assert names_after(["a.png", "A-2.png", "b/A.png", "a-2.jpg", ".png"]) == ["a", "A-2", "A-3", "a-2-2", ".png"]
