"""The loop by itself: a task of twenty lines learns, resumes with its dropout, and weighs what it averages."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from full_disk import files_no_larger_than
from tiny_training import Regression, log_of, train, until
from torch import nn

from hdxray_fast.errors import CheckpointError, ConfigError, MissingDependencyError, TrainingError
from hdxray_fast.training.restoring import load_checkpoint
from hdxray_fast.training.trackers import wandb_settings

for package in ("accelerate", "safetensors", "tqdm", "pyarrow"):
    pytest.importorskip(package)


def test_group_scales_and_numbers_are_logged(tmp_path):
    training, result = train(tmp_path)
    assert result.finished and len(result.losses) == 6
    low, full = (group["lr"] for group in training.optimizer.param_groups)
    assert low == 0.5 * full
    line = log_of(tmp_path)[0]
    assert list(line) == ["step", "loss", "lr", "grad_norm", "rows", "largest", "images_per_s", "data_wait_s", "error"]
    assert isinstance(line["rows"], int)


def test_accumulated_batches_weigh_by_what_they_hold(tmp_path):
    """Four images a step, as one batch or as four: the mean over rows is the same, and so are the weights."""
    whole, a = train(tmp_path / "whole", batch_size=4, grad_accum=1)
    parts, b = train(tmp_path / "parts", batch_size=1, grad_accum=4)
    assert b.losses == pytest.approx(a.losses, rel=1e-6)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert [line["rows"] for line in log_of(tmp_path / "whole")] == [
        line["rows"] for line in log_of(tmp_path / "parts")
    ]


def test_resume_repeats_dropout_and_the_task_state(tmp_path):
    whole_task, cut_task = Regression(0.5), Regression(0.5)
    _, whole = train(tmp_path / "whole", whole_task, ema=0.5)

    def stop(line):
        if line["step"] == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(tmp_path / "cut", Regression(0.5), stop, ema=0.5)
    _, rest = train(tmp_path / "cut", cut_task, ema=0.5, resume="auto")
    assert rest.start == 4 and rest.losses == whole.losses[4:]
    assert cut_task.best == whole_task.best
    timed = {"images_per_s": 0, "data_wait_s": 0}
    same = [[{**line, **timed} for line in log_of(tmp_path / name)] for name in ("whole", "cut")]
    assert same[0] == same[1]


def test_resume_takes_another_split_of_the_same_images_and_no_other(tmp_path):
    train(tmp_path, batch_size=4, steps=3, save_every=1)
    (tmp_path / "checkpoints" / "step_00000003").rename(tmp_path / "aside")
    _, rest = train(tmp_path, batch_size=2, grad_accum=2, steps=3, save_every=1, resume="auto")
    assert rest.start == 2
    with pytest.raises(ConfigError, match="4 images per step"):
        train(tmp_path, batch_size=2, grad_accum=1, steps=3, save_every=1, resume="auto")


def test_a_flipped_bit_is_noticed(tmp_path):
    """A file that is still a whole safetensors file, but holds other numbers."""
    training, _ = train(tmp_path)
    folder = tmp_path / "checkpoints" / "step_00000006"
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_checkpoint(folder, training.model, training.optimizer)


def test_whole_model_has_the_averaged_weights(tmp_path):
    training, _ = train(tmp_path, ema=0.5)
    model = training.whole_model()
    for name, value in training.ema.tensors.items():
        assert torch.equal(model.state_dict()[name], value)
        assert not torch.equal(training.model.state_dict()[name], value)


def test_tied_weights_are_saved(tmp_path):
    class Tied(Regression):
        def build(self):
            model = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 4))
            model[2].weight = model[0].weight
            return model

        def groups(self, model, config):
            return [{"params": list(model.parameters())}]

        def loss(self, model, batch):
            return model(batch["x"]).square().mean(), {}

        def after_step(self, training, step, done):
            return None

    training, _ = train(tmp_path, Tied())
    again, rest = train(tmp_path, Tied(), resume="auto")
    assert rest.start == 6 and torch.equal(again.model[2].weight, training.model[0].weight)
    assert again.model[2].weight is again.model[0].weight


def test_a_tracker_that_is_not_installed_is_told_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match=r"^wandb is not installed: .*pip install 'wandb>=0.19'"):
        train(tmp_path / "run", wandb="some-project")
    assert not (tmp_path / "run").exists()


def test_weights_and_biases_gets_curves_and_nothing_of_the_machine(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sys, "argv", [sys.argv[0], "--data", "ward-of-doe-jane"])
    train(tmp_path / "run", wandb="some-project", steps=2, on_step=lambda line: print("patient-4711"))
    assert "patient-4711" in capsys.readouterr().out
    (sent,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    files = [sent / file.name for file in sent.glob("*.wandb")] + [f for f in sent.glob("files/**/*") if f.is_file()]
    content = b"".join(file.read_bytes() for file in files)
    assert b"loss" in content
    for trace in ("ward-of-doe-jane", "patient-4711", str(tmp_path)):
        assert trace.encode() not in content, trace


def test_what_weights_and_biases_is_told_to_leave_alone(monkeypatch):
    class Settings(types.SimpleNamespace):
        model_fields = dict.fromkeys(["console", "x_disable_meta", "host", "x_save_requirements"])

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(Settings=Settings))
    monkeypatch.delenv("WANDB_CONSOLE", raising=False)
    told = vars(wandb_settings())
    assert told == {"console": "off", "x_disable_meta": True, "host": "", "x_save_requirements": False}
    monkeypatch.setenv("WANDB_CONSOLE", "auto")
    assert "console" not in vars(wandb_settings())


def test_a_full_disk_costs_no_checkpoint_and_the_run_goes_on_once_there_is_room(tmp_path):
    _, whole = train(tmp_path / "whole", steps=6)
    full = contextlib.ExitStack()

    def fill(line):
        if line["step"] == 3:
            saved = tmp_path / "full" / "checkpoints" / "step_00000002"
            until(saved.exists)
            full.enter_context(files_no_larger_than(max(file.stat().st_size for file in saved.iterdir()) - 1))
        if line["step"] == 5:  # the checkpoint before it is being written; the log may not outgrow its files meanwhile
            until(lambda: all(thread.name != "checkpoint" for thread in threading.enumerate()))

    named = r"step_00000004: this checkpoint cannot be written.*File too large"
    with full, pytest.raises(CheckpointError, match=named):
        train(tmp_path / "full", on_step=fill, steps=6)
    assert [path.name for path in (tmp_path / "full" / "checkpoints").iterdir()] == ["step_00000002"]
    _, rest = train(tmp_path / "full", steps=6, resume="auto")
    assert rest.start == 2 and rest.losses == whole.losses[2:]


def test_a_log_that_cannot_grow_is_named(tmp_path):
    full = contextlib.ExitStack()
    with full, pytest.raises(TrainingError, match=r"log\.jsonl: cannot be written \(File too large\)"):
        train(tmp_path, on_step=lambda line: full.enter_context(files_no_larger_than(10)))


def test_a_folder_that_cannot_be_written_is_named_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="out: cannot write to"):
        train(tmp_path / "file" / "run")


def test_activations_computed_again_change_nothing(tmp_path):
    class Deep(Regression):
        def build(self):
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.blocks = nn.ModuleList(
                        nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Dropout(0.2)) for _ in range(3)
                    )
                    self.head = nn.Linear(4, 1)

                def forward(self, x):
                    for block in self.blocks:
                        x = x + block(x)
                    return self.head(x)

            return Net()

        def groups(self, model, config):
            return [{"params": list(model.parameters())}]

    _, kept = train(tmp_path / "kept", Deep())
    training, again = train(tmp_path / "again", Deep(), checkpoint_activations=True)
    assert again.losses == kept.losses
    assert list(training.model.state_dict()) == list(Deep().build().state_dict())


def test_the_task_in_the_documents_learns(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[2] / "docs" / "training.md"
    if not page.is_file():
        pytest.skip("docs/training.md is not here (an installed copy of the tests without the repository)")
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {})
    assert float(capsys.readouterr().out.split()[-1]) < 1e-3


def test_weights_that_are_not_shared_are_not_shared_within_a_node(tmp_path):
    with pytest.raises(ConfigError, match=r"^shard_within: node says who shares weights.*--shard true"):
        train(tmp_path, shard_within="node")
    assert not list(tmp_path.iterdir())
