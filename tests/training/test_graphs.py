"""Steps that nobody waits for, recorded by size and replayed; a stand-in records and replays them on the CPU."""

from __future__ import annotations

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from recorded_graph import RecordedGraphs
from tiny_training import Regression, log_of, train
from torch import nn

from hdxray_fast.errors import TrainingError
from hdxray_fast.training import loop
from hdxray_fast.training.graphs import MOST_GRAPHS, RecordedSteps
from hdxray_fast.training.optimizer import AveragedWeights
from hdxray_fast.training.saving import Saves

for package in ("accelerate", "safetensors", "tqdm", "pyarrow"):
    pytest.importorskip(package)


class Captured(Regression):
    """The same network; its numbers are tensors, and it keeps still between steps."""

    captures = True

    def loss(self, model, batch):
        loss, numbers = super().loss(model, batch)
        return loss, {**numbers, "mean": batch["x"].mean()}

    def after_step(self, training, step, done):
        return None


class Broken(Captured):
    """Its loss is not finite in one step."""

    def __init__(self, step: int, gradient: bool = False) -> None:
        super().__init__()
        self.step, self.gradient, self.calls = step, gradient, 0

    def to_device(self, batch, device):
        self.calls += 1
        bad = torch.tensor(math.inf if self.calls == self.step else 0.0)
        return {**batch, "bad": bad, "file": f"{self.calls}.png"}

    def loss(self, model, batch):
        loss, numbers = super().loss(model, batch)
        if self.gradient:  # the loss itself is finite
            loss.register_hook(lambda gradient: gradient + batch["bad"])
            return loss, numbers
        return loss + batch["bad"], numbers

    def files(self, batch):
        return [batch["file"]]


@pytest.fixture
def graphs(monkeypatch):
    """Training on a device whose steps are looked at late and recorded."""
    made = []
    monkeypatch.setattr(loop, "graphs_for", lambda device: made.append(RecordedGraphs(device)) or made[-1])
    return made


def stored(folder, name: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / f"{name}.safetensors")


def weights(training) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in training.model.state_dict().items()}


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("accum", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_recorded_run_is_the_run(tmp_path, monkeypatch, graphs, accum, dropout):
    options = {"steps": 12, "ema": 0.9, "grad_accum": accum, "clip_grad": 0.5}
    recorded, result = train(tmp_path / "recorded", Captured(dropout), **options)
    assert recorded.captures
    assert graphs[-1].recorded >= 1
    late, unrecorded = train(tmp_path / "late", Captured(dropout), graph="off", **options)
    assert not late.captures
    assert graphs[-1].recorded == 0
    monkeypatch.undo()
    now, _ = train(tmp_path / "now", Captured(dropout), **options)

    assert result.losses == unrecorded.losses  # to the bit
    assert same(weights(recorded), weights(late))
    assert same(recorded.ema.tensors, late.ema.tensors)
    for name in ("loss", "lr", "grad_norm", "rows", "largest", "mean"):
        theirs = [line[name] for line in log_of(tmp_path / "now")]
        assert [line[name] for line in log_of(tmp_path / "late")] == [
            line[name] for line in log_of(tmp_path / "recorded")
        ]
        assert [line[name] for line in log_of(tmp_path / "recorded")] == pytest.approx(theirs, rel=1e-5)
    assert [line["step"] for line in log_of(tmp_path / "recorded")] == list(range(1, 13))
    for name, tensor in now.ema.tensors.items():
        torch.testing.assert_close(recorded.ema.tensors[name], tensor, rtol=1e-5, atol=1e-6)
    assert recorded.ema.updates == 12
    assert [type(log_of(tmp_path / "recorded")[0][name]) for name in ("rows", "mean")] == [int, float]


def test_one_graph_a_size(tmp_path, graphs):
    train(tmp_path, Captured(), steps=24)
    sizes = {line["rows"] for line in log_of(tmp_path)}
    assert len(sizes) > 2
    assert graphs[-1].recorded <= len(sizes)
    assert graphs[-1].replayed == 24 - len(sizes)


def test_resuming_is_exact(tmp_path, graphs):
    whole, _ = train(tmp_path / "whole", Captured(0.5), steps=9, ema=0.9)
    train(tmp_path / "parts", Captured(0.5), steps=9, ema=0.9, on_step=stop_after(4))
    assert len(log_of(tmp_path / "parts")) < 9
    parts, result = train(tmp_path / "parts", Captured(0.5), steps=9, ema=0.9, resume="auto")
    assert 4 <= result.start < 9
    assert same(weights(whole), weights(parts))
    assert same(whole.ema.tensors, parts.ema.tensors)
    told = ("step", "loss", "lr", "grad_norm", "rows", "mean")
    assert [[line[k] for k in told] for line in log_of(tmp_path / "whole")] == [
        [line[k] for k in told] for line in log_of(tmp_path / "parts")
    ]


def stop_after(step: int):
    return lambda line: os.kill(os.getpid(), signal.SIGTERM) if line["step"] == step else None


def test_a_run_may_change_between_late_and_now(tmp_path, monkeypatch, graphs):
    train(tmp_path, Captured(), steps=8, ema=0.9, on_step=stop_after(3))
    monkeypatch.undo()
    training, result = train(tmp_path, Captured(), steps=8, ema=0.9, resume="auto")
    assert result.finished
    assert not any(group["capturable"] for group in training.optimizer.param_groups)


@pytest.mark.parametrize("graph", ["auto", "off"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, graphs, graph, gradient, step):
    with pytest.raises(TrainingError, match=rf"step {step}: .*not finite.* The batch: {step}\.png"):
        train(tmp_path / "run", Broken(step, gradient), steps=8, ema=0.9, graph=graph, warmup=0.0, save_every=100)
    kept = tmp_path / "run" / "failed" / f"step_{step:08d}"
    found = stored(kept, "model")
    lines = log_of(tmp_path / "run") if step > 1 else []
    assert [line["step"] for line in lines] == list(range(1, step))
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    state = json.loads((kept / "state.json").read_text())
    assert state["step"] == step - 1
    assert state["ema_updates"] == step - 1
    moments = stored(kept, "optimizer")
    assert all(torch.isfinite(tensor).all() for tensor in moments.values())
    assert all(float(value) == step - 1 for name, value in moments.items() if name.endswith("/step"))


def test_what_lies_under_failed_is_the_state_before(tmp_path, graphs):
    """The run without the bad batch, stopped before it, has the same weights to the bit."""
    with pytest.raises(TrainingError):
        train(tmp_path / "bad", Broken(5), steps=8, ema=0.9, save_every=4)
    train(tmp_path / "good", Broken(0), steps=8, ema=0.9, save_every=4, keep_checkpoints=9)
    for name in ("model", "ema", "optimizer"):
        bad = stored(tmp_path / "bad" / "failed" / "step_00000005", name)
        good = stored(tmp_path / "good" / "checkpoints" / "step_00000004", name)
        assert same(bad, good)


def test_where_recording_fails_the_run_goes_on_without(tmp_path, graphs):
    class Waits(Captured):
        def loss(self, model, batch):
            loss, numbers = super().loss(model, batch)
            float(loss.detach())
            return loss, numbers

    with pytest.warns(UserWarning, match="cannot be recorded .*not permitted.*the run goes on without") as warned:
        _, result = train(tmp_path / "waits", Waits(0.5), steps=12)
    assert len(warned) == 1
    assert graphs[-1].replayed == 0
    _, plain = train(tmp_path / "plain", Captured(0.5), steps=12, graph="off")
    assert result.losses == plain.losses


def test_where_memory_does_not_suffice_for_recordings_the_run_goes_on_without(tmp_path, graphs):
    class Hungry(Captured):  # the sixth batch is the largest so far, and the first after a recording
        seen = 0

        def loss(self, model, batch):
            if graphs[-1].recorded and len(batch["x"]) > Hungry.seen:
                raise torch.OutOfMemoryError("CUDA out of memory")
            Hungry.seen = max(Hungry.seen, len(batch["x"]))
            return super().loss(model, batch)

    with pytest.warns(UserWarning, match="cannot be recorded .*out of memory") as warned:
        _, result = train(tmp_path / "hungry", Hungry(0.5), steps=12)
    assert len(warned) == 1
    _, plain = train(tmp_path / "plain", Captured(0.5), steps=12, graph="off")
    assert result.losses == plain.losses


def test_graphs_that_cannot_be_had_are_named(tmp_path, capsys):
    training, _ = train(tmp_path, Captured(), graph="on")
    assert not training.captures
    assert "graph: steps are not recorded as CUDA graphs: there is no CUDA GPU" in capsys.readouterr().err


def test_a_task_that_is_not_made_for_it_is_not_recorded(tmp_path, graphs, capsys):
    training, result = train(tmp_path, Regression())
    assert not training.captures
    assert result.finished
    train(tmp_path / "on", Regression(), graph="on")
    assert "the steps of this task are not made for it" in capsys.readouterr().err


def test_no_more_graphs_than_that(graphs):
    stands_in, seen = RecordedGraphs(torch.device("cpu")), torch.zeros(())
    steps = RecordedSteps(lambda batch: seen.copy_(batch["x"].sum()), stands_in, pytest.fail)
    for size in [*range(1, MOST_GRAPHS + 5)] * 3:
        steps({"x": torch.full((size,), 2.0), "name": f"{size}"})
        assert float(seen) == 2 * size
    assert steps.sizes == stands_in.recorded == MOST_GRAPHS


def test_what_is_common_to_sizes_is_there_once():
    stands_in, seen = RecordedGraphs(torch.device("cpu")), torch.zeros(())
    steps = RecordedSteps(lambda batch: seen.copy_(batch["x"].sum() + batch["n"].sum()), stands_in, pytest.fail)
    for size in (1, 2, 1, 2, 2, 1):
        steps({"x": torch.full((1000,), 1.0 / size), "n": torch.ones(size)})
        assert float(seen) == pytest.approx(1000 / size + size)
    assert sorted(tensor.numel() for tensor in steps._inputs.values()) == [1, 2, 1000]


def test_the_last_steps_are_logged_before_a_checkpoint(tmp_path, graphs, monkeypatch):
    saved = []
    save = Saves.save

    def look(self, wait):
        training = self._training
        saved.append((training.step, len(log_of(training.out))))
        save(self, wait)

    monkeypatch.setattr(Saves, "save", look)
    train(tmp_path, Captured(), steps=5, save_every=2)
    assert saved == [(2, 2), (4, 4), (5, 5)]


def test_numbers_wait_for_the_step(tmp_path, graphs):
    found = []

    class Asks(Captured):
        def after_step(self, training, step, done):
            found.append((step, training.numbers["rows"]))
            return {"asked": step}

    train(tmp_path, Asks())
    assert found == [(line["step"], line["rows"]) for line in log_of(tmp_path)]
    assert [line["asked"] for line in log_of(tmp_path)] == list(range(1, 7))


def test_batches_are_read_ahead_and_no_further(tmp_path, graphs):
    read = []

    class Counting(Captured):
        def to_device(self, batch, device):
            read.append(len(read))
            return super().to_device(batch, device)

        def after_step(self, training, step, done):
            assert len(read) == min(step + 1, 6)

    train(tmp_path, Counting())


def test_an_average_that_moves_on_the_device_is_the_average():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    one, other = AveragedWeights(model, 0.9), AveragedWeights(model, 0.9)
    for _ in range(20):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        share = torch.tensor(other.next_move())
        one.update(model)
        other.move(model, share)
        other.updates += 1
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(other.tensors[name], tensor)
    assert np.isclose(one.next_move(), 1 - 0.7)
