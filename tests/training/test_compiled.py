"""Training through torch.compile: the same run, and one that goes on where compiling fails."""

from __future__ import annotations

import pytest
import torch
from tiny_training import Regression, train
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.testing import CompileCounter

from hdxray_fast.training.step import Parts

for package in ("accelerate", "safetensors", "tqdm", "pyarrow"):
    pytest.importorskip(package)


def through(monkeypatch, backend) -> None:
    """Have torch.compile use a backend that needs no C++ compiler, or that fails."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend=backend))


def test_a_compiled_run_is_the_run(tmp_path, monkeypatch):
    _, plain = train(tmp_path / "plain", compile="off")
    counter = CompileCounter()
    through(monkeypatch, counter)
    training, compiled = train(tmp_path / "compiled", compile="on")
    assert counter.frame_count >= 1
    assert training.called.compiles
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-6)
    _, rest = train(tmp_path / "compiled", compile="off", resume="auto", steps=6)  # it is free on resume
    assert rest.start == 6


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_where_compiling_fails_the_run_goes_on_without(tmp_path, monkeypatch, where):
    def fails(graph, inputs):
        raise BackendCompilerFailed(fails, RuntimeError("no such instruction"), None)

    task = Regression(0.5)  # with dropout: the step is begun again with the same draws
    _, plain = train(tmp_path / "plain", Regression(0.5), compile="off", grad_accum=2)
    if where == "forward":
        through(monkeypatch, fails)
    else:
        calls = []
        gradients = Parts.gradients

        def fail_late(self, micro, shares):
            found = gradients(self, micro, shares)
            if self.called.compiles and not calls:
                calls.append(1)
                raise BackendCompilerFailed(fails, RuntimeError("no such instruction"), None)
            return found

        through(monkeypatch, "eager")
        monkeypatch.setattr(Parts, "gradients", fail_late)
    with pytest.warns(UserWarning, match="could not be compiled .*the run goes on without"):
        training, result = train(tmp_path / "compiled", task, compile="on", grad_accum=2)
    assert not training.called.compiles
    assert result.losses == plain.losses


def test_an_error_of_the_model_is_its_own(tmp_path, monkeypatch):
    class Broken(Regression):
        def loss(self, model, batch):
            raise ValueError("of the task")

    through(monkeypatch, "eager")
    with pytest.raises(ValueError, match="of the task"):
        train(tmp_path, Broken(0.0), compile="on")


def test_left_to_itself_a_cpu_compiles_nothing(tmp_path):
    training, _ = train(tmp_path)
    assert not training.called.compiles
