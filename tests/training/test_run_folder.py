"""A run's folder: one run at a time, its settings, and a log that has the steps of its checkpoints."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import Regression, log_of, train

from hdxray_fast.errors import ConfigError
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.training.checkpoints import checkpoint_folder
from hdxray_fast.training.config import TrainingConfig
from hdxray_fast.training.loop import Training
from hdxray_fast.training.run_folder import OF_EVERY_RUN, RunFolder, as_begun

for package in ("accelerate", "safetensors", "tqdm", "pyarrow"):
    pytest.importorskip(package)

HELPERS = Path(__file__).parents[1] / "helpers"
ENDLESS = (
    "import sys; sys.path.insert(0, sys.argv[2]); from tiny_training import train\n"
    "train(sys.argv[1], steps=10**9, save_every=10**9, on_step=lambda line: print(line['step'], flush=True))"
)


def stop_at(step: int):
    """SIGTERM to this process after a step."""
    return lambda line: os.kill(os.getpid(), signal.SIGTERM) if line["step"] == step else None


@pytest.fixture
def other(tmp_path):
    """Another process that trains in ``tmp_path / "run"``, for ever."""
    command = [sys.executable, "-c", ENDLESS, str(tmp_path / "run"), str(HELPERS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_kept_out_and_told_of_the_first(tmp_path, other):
    out = tmp_path / "run"
    said = rf"out: another run is at work in {out} \(process {other.pid} on .+, since 20\d\d-.* UTC\); wait for its end"
    for resume in ("auto", "never"):
        with pytest.raises(ConfigError, match=said):
            train(out, resume=resume, steps=10**9, save_every=10**9, on_step=stop_at(1))
    assert other.poll() is None and other.stdout.readline()  # it was not disturbed


@pytest.mark.slow
def test_what_a_killed_run_held_is_free(tmp_path, other):
    os.killpg(other.pid, signal.SIGKILL)
    other.wait()
    _, rest = train(tmp_path / "run", resume="auto", steps=10**9, on_step=stop_at(2), save_every=10**9)
    assert rest.start == 0 and not rest.finished


@pytest.mark.slow
def test_a_folder_is_free_again_when_its_run_ends_or_fails(tmp_path):
    """Here and for other processes; what failed may be kept for a look at it."""
    command = [sys.executable, "-c", ENDLESS.replace("10**9", "4"), str(tmp_path), str(HELPERS)]

    def fail(line):
        raise InterruptedError

    with pytest.raises(InterruptedError) as kept:
        train(tmp_path, on_step=fail, steps=4, save_every=4)
    assert kept.value is not None
    changed = [command[0], command[1], command[2].replace("save_every=4", "save_every=4, resume='auto'"), *command[3:]]
    done = subprocess.run(changed, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "2", "3", "4"], done.stderr
    with pytest.raises(ConfigError, match="already holds a run"):
        train(tmp_path, steps=4, save_every=4, resume="never")
    assert not (tmp_path / ".run.json").exists()
    _, rest = train(tmp_path, steps=4, save_every=4, resume="auto")
    assert rest.start == 4


def test_a_task_may_hold_the_folder_beyond_the_steps(tmp_path):
    config = TrainingConfig(out=str(tmp_path), steps=2, batch_size=2, lr=1e-2, tensorboard=False)
    training = Training(config, Regression(), progress=False)
    with training.claimed():
        training.run()
        held = json.loads((tmp_path / ".run.json").read_text())
        assert held["process"] == os.getpid()
    assert not (tmp_path / ".run.json").exists()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, code):
    fcntl = pytest.importorskip("fcntl")

    def flock(fd, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="its file system has no locks, so nothing keeps another process out"):
        _, done = train(tmp_path)
    assert done.finished


# --- settings ---------------------------------------------------------------------------------------------------------


def test_runs_of_releases_that_left_no_mark_go_on(tmp_path):
    """By the settings that the first release had, or where these are lost by a checkpoint; by less they do not."""
    train(tmp_path, steps=6)
    settings = json.loads((tmp_path / "config.json").read_text())
    first = {name: value for name, value in settings.items() if name in OF_EVERY_RUN}
    assert len(first) == len(OF_EVERY_RUN) < len(settings)
    (tmp_path / ".made-by").unlink()
    (tmp_path / "config.json").write_text(json.dumps(first))
    _, rest = train(tmp_path, steps=6, resume="auto")
    assert rest.finished and (tmp_path / ".made-by").exists()
    (tmp_path / ".made-by").unlink()
    (tmp_path / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"config\.json: is missing"):
        _, rest = train(tmp_path, steps=6, resume="auto")
    assert rest.finished
    (tmp_path / ".made-by").unlink()
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / "checksums.json").unlink()
    for left in [{**first, "seed": 1}, {name: value for name, value in first.items() if name != "beta2"}]:
        (tmp_path / "config.json").write_text(json.dumps(left))
        wanted = "with other settings" if len(left) == len(first) else "config.json would be written over, and nothing"
        with pytest.raises(ConfigError, match=wanted):
            train(tmp_path, steps=6, resume="auto")


def test_a_run_whose_settings_are_lost_is_neither_wiped_nor_stopped(tmp_path):
    _, whole = train(tmp_path / "whole", steps=6)
    train(tmp_path / "run", steps=6)
    (tmp_path / "run" / "config.json").unlink()
    before = (tmp_path / "run" / "log.jsonl").read_bytes()
    with pytest.warns(UserWarning, match="is missing"), pytest.raises(ConfigError, match="already holds a run"):
        train(tmp_path / "run", steps=6, resume="never")
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == before
    assert len(list((tmp_path / "run" / "checkpoints").glob("step_*"))) == 2
    checkpoint_folder(tmp_path / "run" / "checkpoints", 6).rename(tmp_path / "aside")
    with pytest.warns(UserWarning, match=r"config\.json: is missing, so nobody can tell whether"):
        _, rest = train(tmp_path / "run", steps=6, resume="auto")
    assert rest.start == 4 and rest.losses == whole.losses[4:]


def test_folders_beside_checkpoints_stop_no_run(tmp_path):
    train(tmp_path, steps=4, save_every=2, keep_checkpoints=1)
    mine = tmp_path / "checkpoints" / "step_00000002_best"
    mine.mkdir()
    _, rest = train(tmp_path, steps=4, save_every=1, keep_checkpoints=1, resume="auto")
    assert rest.start == 4 and mine.is_dir()


def test_files_are_called_as_in_the_run_that_goes_on(tmp_path, monkeypatch):
    """By whatever path they are given, as long as it leads to them; others are refused with the settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("films", "others", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("films")
    begun = PretrainConfig(data="films", images="films", out="run")
    (tmp_path / "run" / "config.json").write_text(json.dumps(begun.as_dict()))
    (tmp_path / "run" / "log.jsonl").write_text("")
    resumed = replace(begun, resume="auto")
    for same in ("link", str(tmp_path / "films"), "./films", str(tmp_path / "link")):
        assert as_begun(replace(resumed, data=same, images=same)) == resumed
    for other in ("others", "nowhere", "a\0b"):
        assert as_begun(replace(resumed, data=other)).data == other
    for anew in ({"resume": "never"}, {"force": True}):  # no run goes on
        assert as_begun(replace(begun, data="link", **anew)).data == "link"
    (tmp_path / "run" / "config.json").write_text(json.dumps({**begun.as_dict(), "data": ["films", "others"]}))
    assert as_begun(replace(resumed, data=["./films", "./others"])).data == ["films", "others"]
    for other in (["link", "link"], ["link", "others", "films"], "link"):
        assert as_begun(replace(resumed, data=other)).data == other
    (tmp_path / "run" / "config.json").write_text('{"data": 1}')
    assert as_begun(replace(resumed, data="link")).data == "link"


def test_the_same_command_goes_on_and_force_begins_anew(tmp_path, capsys):
    """What else lies in the folder stays, as does the cache; what is not a run's own is refused, forced or not."""
    _, whole = train(tmp_path / "run", steps=6)
    out = tmp_path / "run"
    for name in ("cache/0", "notes.txt", "pictures/0.png"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("kept")
    shutil.rmtree(checkpoint_folder(out / "checkpoints", 6))
    assert train(out, steps=6)[1].start == 4
    assert f"{out}: going on at step 4 of 6; --force (force=True) begins anew" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"other settings \(lr: 0\.01 -> 0\.5\); .*--force .* begins anew"):
        train(out, steps=6, lr=0.5)
    _, anew = train(out, steps=6, lr=0.5, force=True)
    assert anew.start == 0 and anew.losses[1:] != whole.losses[1:] and len(log_of(out)) == 6
    assert "force" not in json.loads((out / "config.json").read_text())  # nothing repeats it unasked
    assert all((out / name).read_text() == "kept" for name in ("cache/0", "notes.txt", "pictures/0.png"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "log.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="would be written over, and nothing says that"):
        train(tmp_path / "mine", steps=6, force=True)
    assert (tmp_path / "mine" / "log.jsonl").read_text() == "mine"


def test_force_removes_nothing_that_it_is_to_read(tmp_path):
    train(tmp_path, steps=2)
    (tmp_path / "model").mkdir()
    config = PretrainConfig(
        data=str(tmp_path / "films"), out=str(tmp_path), weights=str(tmp_path / "model"), force=True
    )
    with pytest.raises(ConfigError, match=r"^weights: .*model lies in .*model, which --force .* would remove"):
        RunFolder(config, "").claim()
    with pytest.raises(ConfigError, match=r"^weights: .* is the run, which --force .* would remove"):
        RunFolder(replace(config, weights=str(tmp_path / "model" / "..")), "").claim()
    assert (tmp_path / "model").exists() and len(log_of(tmp_path)) == 2


def test_force_empties_linked_folders_and_follows_no_link_in_them(tmp_path):
    train(tmp_path / "run", steps=2)
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.png").touch()
    os.rename(tmp_path / "run" / "checkpoints", tmp_path / "disk")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "films").symlink_to(tmp_path / "films")
    (tmp_path / "run" / "quarantine.csv").write_text("of an earlier release")
    assert train(tmp_path / "run", steps=1, force=True)[1].start == 0
    assert (tmp_path / "films" / "a.png").exists() and not (tmp_path / "run" / "quarantine.csv").exists()
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["films", "step_00000001"]


def test_force_leaves_what_people_put_beside_checkpoints_and_pictures(tmp_path):
    class Drawing(Regression):
        writes = ("pictures",)

    train(tmp_path, Drawing(), steps=2)
    mine = ("checkpoints/step_00000002_best/a", "checkpoints/keep/a", "pictures/mine.png", "failed/notes.txt")
    made = ("checkpoints/damaged_step_00000009/a", "pictures/step_00000002.png", "failed/step_00000002/a")
    own = "unreadable.mine.csv"
    for name in (*mine, *made, own):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert train(tmp_path, Drawing(), steps=1, force=True)[1].start == 0
    assert [name for name in (*mine, *made, own) if (tmp_path / name).exists()] == [*mine, own]


@pytest.mark.parametrize("name", ["checkpoints", ".made-by", ".run.lock", ".run.json"])
def test_what_lies_in_the_way_is_named(tmp_path, name):
    train(tmp_path, steps=1)
    way = tmp_path / name
    shutil.rmtree(way) if way.is_dir() else way.unlink(missing_ok=True)
    way.write_text("") if name == "checkpoints" else way.mkdir()
    with pytest.raises(ConfigError, match=rf"out: cannot write to {way} \("):
        train(tmp_path, steps=1, resume="auto")


# --- the log ----------------------------------------------------------------------------------------------------------


def test_the_log_is_on_the_disk_before_the_checkpoint_of_its_steps(tmp_path, monkeypatch):
    """What fsync has seen of the log when a checkpoint appears is what a power loss leaves of it.

    Steps that were made while it was written may be there, too.
    """
    flushed, found = b"", []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(handle):
        nonlocal flushed
        fsync(handle)
        log = tmp_path / "log.jsonl"
        if log.exists() and os.path.samestat(os.fstat(handle), log.stat()):
            flushed = log.read_bytes()

    def watched_replace(source, target, **options):
        replace(source, target, **options)
        if Path(target).name.startswith("step_"):
            steps = [json.loads(line)["step"] for line in flushed.splitlines()]
            step = int(Path(target).name[-8:])
            found.append((step, steps[:step]))

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    train(tmp_path, steps=5, save_every=2)
    assert found == [(step, list(range(1, step + 1))) for step in (2, 4, 5)]


def test_a_hole_in_the_log_is_told_and_the_run_goes_on(tmp_path):
    """A power loss as an earlier version left it: the log is cut to 6 steps, the checkpoint is that of step 10."""
    _, whole = train(tmp_path / "whole", steps=14)
    train(tmp_path / "cut", steps=14, save_every=10, on_step=stop_at(10))
    log = tmp_path / "cut" / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == 10
    log.write_text("".join(lines[:6]) + lines[6][:20])
    with pytest.warns(UserWarning, match=r"log\.jsonl: has no line of step 7 to 10, .*step 10 is whole"):
        _, rest = train(tmp_path / "cut", steps=14, save_every=10, resume="auto")
    assert rest.start == 10 and rest.losses == whole.losses[10:]
    assert [line["step"] for line in log_of(tmp_path / "cut")] == [*range(1, 7), *range(11, 15)]


def test_log_loses_what_lies_after_the_checkpoint_and_a_cut_line(tmp_path):
    from hdxray_fast.training.run_folder import in_words
    from hdxray_fast.training.run_log import last_step, truncate_log

    log = tmp_path / "log.jsonl"
    assert truncate_log(log, 0) == [] and truncate_log(log, 2) == [1, 2]
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 6)]
    log.write_text("\n".join(lines) + '\n{"step": 6, "lo')
    assert truncate_log(log, 9) == [6, 7, 8, 9]
    assert log.read_text().splitlines() == lines
    assert truncate_log(log, 3) == []
    assert log.read_text() == "\n".join(lines[:3]) + "\n"
    log.write_bytes("\n".join(lines[:2]).encode() + b"\n\0\0\xff\n5\n" + lines[4].encode() + b"\n")
    assert truncate_log(log, 5) == [3, 4]
    assert log.read_text().splitlines() == [lines[0], lines[1], lines[4]]
    with log.open("r+b") as stream:  # mostly a hole, which is read in pieces
        stream.seek(0, 2)
        stream.truncate(64 << 20)
    tracemalloc.start()
    assert last_step(log) == 5 and truncate_log(log, 2) == []
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert log.read_text().splitlines() == lines[:2]
    assert in_words([3, 7, 8, 9, 12]) == "3, 7 to 9, 12"


def test_runs_of_any_precision_follow_each_other_in_a_process(tmp_path):
    _, first = train(tmp_path / "a", precision="fp32")
    _, half = train(tmp_path / "b", precision="bf16")
    _, again = train(tmp_path / "c", precision="fp32")
    assert first.losses == again.losses and half.losses != first.losses


def test_a_training_stays_on_the_cpu_where_there_is_a_gpu(tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState

    with pytest.raises(ConfigError, match=r"^device: got 'cuda:1', accepted are cpu and cuda; of several GPUs "):
        TrainingConfig(out=str(tmp_path / "run"), device="cuda:1")
    AcceleratorState._reset_state(reset_partial_state=True)
    for there in ("cuda.is_available", "cuda.is_bf16_supported"):
        monkeypatch.setattr(f"torch.{there}", lambda: True)
    # optimizers of a PyTorch with CUDA ask what runs on the GPU that this says is there
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    training, done = train(tmp_path / "run", device="cpu", steps=2)
    assert training.accelerator.device.type == "cpu" and training.accelerator.mixed_precision == "no"
    assert next(training.model.parameters()).device.type == "cpu" and len(done.losses) == 2
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^device: got 'cuda', and PyTorch finds no GPU here"):
        train(tmp_path / "other", device="cuda")
    assert not (tmp_path / "other").exists()


def test_a_training_is_not_run_in_the_precision_of_a_later_one(tmp_path):
    config = {"steps": 1, "lr": 1e-2, "tensorboard": False}
    first = Training(TrainingConfig(out=str(tmp_path / "a"), precision="fp32", **config), Regression(), progress=False)
    Training(TrainingConfig(out=str(tmp_path / "b"), precision="bf16", **config), Regression(), progress=False)
    first.claim_folder()
    with pytest.raises(ConfigError, match=r"^precision, device: a Training with others"):
        first.run()
