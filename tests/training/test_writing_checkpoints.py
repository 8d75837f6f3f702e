"""Checkpoints are due by the clock or by steps and written while training goes on; what fails is told by name."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from tiny_training import Regression, log_of, train, until

from hdxray_fast.errors import CheckpointError
from hdxray_fast.training import checkpoints, saving
from hdxray_fast.training.checkpoints import take_snapshot
from hdxray_fast.training.config import TrainingConfig

for package in ("accelerate", "safetensors", "tqdm", "pyarrow"):
    pytest.importorskip(package)

HELPERS = Path(__file__).parents[1] / "helpers"


def saved_steps(out: Path) -> list[int]:
    return sorted(int(path.name[-8:]) for path in (out / "checkpoints").glob("step_*"))


class Gate:
    """Writes of checkpoints wait here until they are let through."""

    def __init__(self, monkeypatch) -> None:
        self.open, self.inside, self.most, self.begun = threading.Event(), 0, 0, []
        self._write, self._lock = saving.write_checkpoint, threading.Lock()
        monkeypatch.setattr(saving, "write_checkpoint", self)

    def __call__(self, folder, *rest) -> None:
        with self._lock:
            self.begun.append(int(folder.name[-8:]))
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.open.wait(60)
        self._write(folder, *rest)
        with self._lock:
            self.inside -= 1

    def opens_when_waited_for(self, monkeypatch) -> None:
        """From now on: so who does not wait for a write finds it undone."""
        join = saving.Background.join

        def opened(background) -> None:
            self.open.set()
            join(background)

        monkeypatch.setattr(saving.Background, "join", opened)


def test_the_clock_saves_and_the_end_does(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(saving, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def minute(line):
        threads = [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
        for thread in threads:
            thread.join()
        now[0] += 60

    train(tmp_path, on_step=minute, steps=11, save_every=0, save_minutes=3, keep_checkpoints=99)
    assert saved_steps(tmp_path) == [3, 6, 9, 11]


def test_ten_minutes_are_the_default_and_no_step_is(tmp_path):
    train(tmp_path, steps=5, save_every=0, keep_checkpoints=99)
    assert saved_steps(tmp_path) == [5]
    config = TrainingConfig(out="x")
    assert (config.save_minutes, config.save_every) == (10, 0)


def test_steps_go_on_while_a_checkpoint_is_written_and_do_not_change_it(tmp_path, monkeypatch):
    _, whole = train(tmp_path / "whole", Regression(0.5), ema=0.5, keep_checkpoints=99, steps=8, save_every=3)
    gate = Gate(monkeypatch)

    def watch(line):
        if line["step"] == 5:  # two steps after the snapshot
            until(lambda: gate.begun == [3])
            assert saved_steps(tmp_path / "run") == []
            gate.open.set()

    _, done = train(tmp_path / "run", Regression(0.5), watch, ema=0.5, keep_checkpoints=99, steps=8, save_every=3)
    assert done.losses == whole.losses
    assert gate.begun == [3, 6, 8] and gate.most == 1
    for file in ("model.safetensors", "optimizer.safetensors", "ema.safetensors"):
        ours, theirs = (tmp_path / run / "checkpoints" / "step_00000003" / file for run in ("run", "whole"))
        assert ours.read_bytes() == theirs.read_bytes(), file


def test_one_write_at_a_time_however_often_they_are_due(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    gate.open.set()
    train(tmp_path, steps=6, save_every=1, keep_checkpoints=99)
    assert gate.begun == [1, 2, 3, 4, 5, 6] and gate.most == 1
    assert saved_steps(tmp_path) == gate.begun


def test_nothing_is_due_by_the_clock_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """A disk that is slower than the clock is written to as often as it can be; no step waits for it."""
    gate = Gate(monkeypatch)

    def watch(line):
        if line["step"] == 5:
            until(lambda: gate.begun == [1])
            gate.open.set()

    train(tmp_path, on_step=watch, steps=6, save_every=0, save_minutes=1e-9)
    assert gate.begun[0] == 1 and gate.begun[-1] == 6 and gate.most == 1


def test_a_copy_is_gone_before_there_is_another(tmp_path, monkeypatch):
    gate, writes, take = Gate(monkeypatch), [], saving.take_snapshot

    def taken(*arguments, **options):
        writes.append(gate.inside)
        return take(*arguments, **options)

    def watch(line):
        if line["step"] == 2:
            until(lambda: gate.inside == 1)
            gate.opens_when_waited_for(monkeypatch)

    monkeypatch.setattr(saving, "take_snapshot", taken)
    train(tmp_path, on_step=watch, steps=3, save_every=1)
    assert writes == [0, 0, 0]


class Listing(Regression):
    """A task whose state is a list that it goes on adding to."""

    def after_step(self, training, step, done):
        self.seen.append(step)

    def state(self):
        return {"seen": self.seen}

    def load_state(self, state):
        self.seen = state["seen"]


def test_what_a_task_adds_to_its_state_while_it_is_written_is_not_in_it(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)

    def watch(line):
        if line["step"] == 4:
            gate.open.set()

    train(tmp_path, Listing(), watch, steps=5, save_every=2, keep_checkpoints=99)
    for step in (2, 4, 5):
        state = json.loads((tmp_path / "checkpoints" / f"step_{step:08d}" / "state.json").read_text())
        assert state["task"] == {"seen": list(range(1, step + 1))}


def test_a_write_that_fails_is_told_after_the_next_step(tmp_path, monkeypatch):
    def fail(folder, *rest):
        raise CheckpointError(f"{folder}: this checkpoint cannot be written (no room)")

    monkeypatch.setattr(saving, "write_checkpoint", fail)

    def watch(line):
        if line["step"] == 3:
            until(lambda: not any(thread.name == "checkpoint" for thread in threading.enumerate()))

    with pytest.raises(CheckpointError, match=r"step_00000002: .*no room"):
        train(tmp_path, on_step=watch, steps=50, save_every=2)
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3]


def test_the_run_ends_after_the_write_whatever_ends_it(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)

    def fail(line):
        if line["step"] == 3:
            gate.opens_when_waited_for(monkeypatch)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(tmp_path, on_step=fail, steps=6, save_every=2)
    assert saved_steps(tmp_path) == [2] and gate.inside == 0


def test_a_failed_write_is_not_silent_when_the_run_ends_by_something_else(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    monkeypatch.setattr(gate, "_write", lambda folder, *rest: (_ for _ in ()).throw(OSError(f"{folder}: no room")))

    def fail(line):
        if line["step"] == 3:
            gate.open.set()
            raise InterruptedError

    with pytest.raises(InterruptedError), pytest.warns(UserWarning, match="step_00000002: no room"):
        train(tmp_path, on_step=fail, steps=6, save_every=2)


def test_a_snapshot_has_memory_of_its_own():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight  # tied
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    taken = take_snapshot(model, optimizer)
    before = {name: tensor.clone() for name, tensor in taken.tensors[checkpoints.MODEL_FILE].items()}
    live = {tensor.data_ptr() for tensor in model.state_dict().values()}
    held = [tensor.data_ptr() for tensors in taken.tensors.values() for tensor in tensors.values()]
    assert len(set(held)) == len(held) and not live & set(held)
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in taken.tensors[checkpoints.MODEL_FILE].items())


HELD_WRITE = """
import os, sys, threading
sys.path.insert(0, sys.argv[2])
from tiny_training import Regression, train
from hdxray_fast.training import checkpoints
name, before, done = sys.argv[3], sys.argv[4] == "before", threading.Event()
work = {"save_tensors": checkpoints.save_tensors, "replace": checkpoints.os.replace}[name]
def held(*arguments, **options):
    fourth = threading.current_thread().name == "checkpoint" and "step_00000004" in str(arguments[1])
    if not (fourth and before):
        work(*arguments, **options)
    if fourth:
        os.write(1, b"writing\\n")
        done.wait()
setattr(checkpoints if name == "save_tensors" else checkpoints.os, name, held)
def on_step(line):
    if line["step"] == 5:
        os.write(1, b"step 5\\n")
        done.wait()
train(sys.argv[1], Regression(0.5), steps=10**9, save_every=2, on_step=on_step)
"""


@pytest.mark.parametrize(
    ("work", "side", "last"),
    [("save_tensors", "before", 2), ("save_tensors", "after", 2), ("replace", "before", 2), ("replace", "after", 4)],
)
def test_a_kill_while_the_thread_writes_leaves_the_last_whole_checkpoint(tmp_path, work, side, last):
    """And the run goes on from it, bit for bit."""
    command = [sys.executable, "-c", HELD_WRITE, str(tmp_path / "run"), str(HELPERS), work, side]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert {process.stdout.readline() for _ in range(2)} == {"writing\n", "step 5\n"}  # in whatever order
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert saved_steps(tmp_path / "run")[-1] == last
    train(tmp_path / "whole", Regression(0.5), steps=10**9, save_every=2, on_step=end_at(9))
    _, rest = train(tmp_path / "run", Regression(0.5), steps=10**9, save_every=2, resume="auto", on_step=end_at(9))
    assert rest.start == last
    ours, theirs = ([line["loss"] for line in log_of(tmp_path / run)] for run in ("run", "whole"))
    assert ours == theirs
    for file in ("model.safetensors", "optimizer.safetensors"):
        ended, whole = (tmp_path / run / "checkpoints" / "step_00000009" / file for run in ("run", "whole"))
        assert ended.read_bytes() == whole.read_bytes(), file
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def end_at(step: int):
    def end(line):
        if line["step"] == step:
            signal.raise_signal(signal.SIGTERM)

    return end
