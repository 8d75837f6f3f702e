"""Checkpoints are whole or absent, and are told from what somebody else put beside them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from hdxray_fast.errors import CheckpointError
from hdxray_fast.models.mae import create_mae
from hdxray_fast.training.checkpoints import (
    checkpoint_folder,
    checkpoint_folders,
    prune_checkpoints,
    save_checkpoint,
    set_aside_after,
)
from hdxray_fast.training.optimizer import averaged_weights, parameter_groups
from hdxray_fast.training.restoring import resume_latest
from hdxray_fast.training.schedule import warmup_constant, warmup_cosine


def small_model(seed: int = 0):
    torch.manual_seed(seed)
    model = create_mae("vit_tiny_patch16", img_size=64, depth=2, decoder_embed_dim=32, decoder_depth=1)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-3)
    return model, optimizer, averaged_weights(model, 0.9)


def fake_step(model, optimizer, ema) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    ema.update(model)


def test_round_trip_restores_every_tensor(tmp_path):
    model, optimizer, ema = small_model()
    fake_step(model, optimizer, ema)
    save_checkpoint(checkpoint_folder(tmp_path, 1), model, optimizer, {"step": 1, "note": "x"}, ema)
    other, other_optimizer, other_ema = small_model(seed=1)
    assert resume_latest(tmp_path, other, other_optimizer, other_ema) == {"step": 1, "note": "x"}
    for saved, restored in ((model.state_dict(), other.state_dict()), (ema.tensors, other_ema.tensors)):
        for name, value in saved.items():
            assert torch.equal(value, restored[name]), name
    torch.manual_seed(7)
    fake_step(model, optimizer, ema)
    torch.manual_seed(7)
    fake_step(other, other_optimizer, other_ema)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_damaged_newest_falls_back_loudly(tmp_path, name, damage):
    model, optimizer, ema = small_model()
    for step in (1, 2):
        fake_step(model, optimizer, ema)
        save_checkpoint(checkpoint_folder(tmp_path, step), model, optimizer, {"step": step}, ema)
    target = checkpoint_folder(tmp_path, 2) / name
    target.write_bytes(target.read_bytes()[:50]) if damage == "truncate" else target.unlink()
    with pytest.warns(UserWarning, match="step_00000002"):
        assert resume_latest(tmp_path, model, optimizer, ema)["step"] == 1


@pytest.mark.parametrize("text", ["[1]", "{}", '{"state.json": 1}', "1"])
def test_checksums_that_are_none(tmp_path, text):
    model, optimizer, ema = small_model()
    for step in (1, 2):
        fake_step(model, optimizer, ema)
        save_checkpoint(checkpoint_folder(tmp_path, step), model, optimizer, {"step": step}, ema)
    (checkpoint_folder(tmp_path, 2) / "checksums.json").write_text(text)
    with pytest.warns(UserWarning, match=r"checksums.json is damaged: it does not name all files"):
        assert resume_latest(tmp_path, model, optimizer, ema)["step"] == 1


def test_nothing_to_resume_is_none_and_all_damaged_is_an_error(tmp_path):
    model, optimizer, ema = small_model()
    assert resume_latest(tmp_path, model, optimizer, ema) is None
    save_checkpoint(checkpoint_folder(tmp_path, 1), model, optimizer, {"step": 1}, ema)
    (checkpoint_folder(tmp_path, 1) / "state.json").write_text("{")
    with pytest.warns(UserWarning, match="falling back"), pytest.raises(CheckpointError, match="step_00000001"):
        resume_latest(tmp_path, model, optimizer, ema)


def test_another_model_is_refused(tmp_path):
    model, optimizer, _ = small_model()
    save_checkpoint(checkpoint_folder(tmp_path, 1), model, optimizer, {"step": 1})
    wider = create_mae("vit_small_patch16", img_size=64, decoder_embed_dim=32, decoder_depth=1)
    with pytest.warns(UserWarning, match="falling back"), pytest.raises(CheckpointError):
        resume_latest(tmp_path, wider, torch.optim.AdamW(parameter_groups(wider, 0.05)))


def test_an_interrupted_save_is_never_read_and_is_cleaned_up(tmp_path):
    model, optimizer, _ = small_model()
    for step in (1, 2, 3):
        save_checkpoint(checkpoint_folder(tmp_path, step), model, optimizer, {"step": step})
    (tmp_path / ".step_00000004.tmp").mkdir()
    assert resume_latest(tmp_path, model, optimizer)["step"] == 3
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]


def test_checkpoints_of_round_steps_stay(tmp_path):
    for step in range(1, 10):
        checkpoint_folder(tmp_path, step).mkdir()
    prune_checkpoints(tmp_path, keep=2, keep_every=3, keep_step=4)
    assert [int(path.name[-8:]) for path in sorted(tmp_path.iterdir())] == [3, 4, 6, 8, 9]


def test_a_damaged_newest_does_not_outlive_the_good_ones(tmp_path):
    """It would count as the newest, and pruning would remove what the run goes on from."""
    model, optimizer, _ = small_model()
    for step in (1, 2, 3):
        save_checkpoint(checkpoint_folder(tmp_path, step), model, optimizer, {"step": step})
    (checkpoint_folder(tmp_path, 3) / "state.json").write_text("{")
    with pytest.warns(UserWarning, match="falling back"):
        assert resume_latest(tmp_path, model, optimizer)["step"] == 2
    set_aside_after(tmp_path, 2)
    prune_checkpoints(tmp_path, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged_step_00000003", "step_00000002"]
    assert resume_latest(tmp_path, model, optimizer)["step"] == 2


def test_folders_that_somebody_made_beside_checkpoints_are_left_alone(tmp_path):
    """Neither removed, nor taken for a checkpoint of a step, nor a reason to stop."""
    model, optimizer, _ = small_model()
    for step in (1, 2, 3):
        save_checkpoint(checkpoint_folder(tmp_path, step), model, optimizer, {"step": step})
    kept = ["step_00000001_best", "step_00000009_copy", "step_notes", ".step_mine.tmp"]
    for name in kept:
        (tmp_path / name).mkdir()
    assert checkpoint_folders(tmp_path) == [checkpoint_folder(tmp_path, step) for step in (1, 2, 3)]
    assert resume_latest(tmp_path, model, optimizer)["step"] == 3
    prune_checkpoints(tmp_path, keep=1, keep_every=7)
    set_aside_after(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "damaged_step_00000003"])


def test_checkpoints_are_ordered_by_their_steps_however_many_digits_these_have(tmp_path):
    for step in (99_999_999, 100_000_000):
        checkpoint_folder(tmp_path, step).mkdir()
    prune_checkpoints(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_100000000"]


def test_learning_rate_rises_and_falls():
    rates = [warmup_cosine(step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and max(rates) == 1.0
    assert all(a >= b for a, b in pairwise(rates[10:])) and rates[-1] == pytest.approx(0.01, abs=1e-3)


def test_a_constant_rate_is_that_of_longer_runs_until_it_falls():
    rates, longer = ([warmup_constant(step, steps, 10, steps // 10) for step in range(steps)] for steps in (100, 200))
    assert rates[:90] == longer[:90] and rates[0] == pytest.approx(0.1) and set(rates[9:90]) == {1.0}
    assert all(a > b for a, b in pairwise(rates[89:])) and rates[-1] == pytest.approx(0.01)


def test_weight_decay_spares_biases_norms_and_tokens():
    model, *_ = small_model()
    decayed, free = parameter_groups(model, 0.05)
    assert all(parameter.ndim >= 2 for parameter in decayed["params"]) and free["weight_decay"] == 0.0
    tokens = {id(p) for name, p in model.named_parameters() if name.endswith("_token")}
    assert tokens and tokens <= {id(p) for p in free["params"]}
