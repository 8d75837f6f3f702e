"""The planner's formulas against what torch counts, keeps and plans, and its words."""

import json
import re
from dataclasses import replace

import pytest
import torch
from prepared_helpers import SIZE, make_folder, prepare
from torch.utils.flop_counter import FlopCounterMode

import hdxray_fast as hx
from hdxray_fast.cli.main import main
from hdxray_fast.data.prepared.reading import PreparedSet
from hdxray_fast.errors import ConfigError
from hdxray_fast.models.presets import ENCODERS
from hdxray_fast.pretrain import planning, work
from hdxray_fast.pretrain.config import PretrainConfig
from hdxray_fast.pretrain.plan_config import DEVICES, PlanConfig
from hdxray_fast.pretrain.planning import describe, plan
from hdxray_fast.pretrain.rates import device_rate, is_kind
from hdxray_fast.pretrain.shape import Shape
from hdxray_fast.training.processes import checkpoint_activations


def a_step(decoder: str, side: int = 320, half: bool = False, on_save=lambda tensor: tensor, again: bool = False):
    """A forward pass of a tiny auto-encoder: model, masks, output, and the planner's view of it."""
    model = hx.create_mae("vit_tiny_patch16", decoder=decoder, img_size=side, decoder_depth=3)
    if again:
        checkpoint_activations(model)
    grid = side // 16
    inside = torch.zeros(2, grid, grid, dtype=torch.bool)
    inside[:, grid // 5 : -grid // 5, grid // 8 : -grid // 8] = True
    masks = hx.plan_masks(inside, torch.ones_like(inside), 0.95, 0.85, predict=model.default_predict)
    config = PlanConfig(
        images=10, model="vit_tiny_patch16", decoder=decoder, decoder_embed_dim=512, decoder_depth=3,
        img_size=side, batch_size=2,
        inside=float(inside.float().mean()), valid=1.0, precision="bf16" if half else "fp32",
        checkpoint_activations=again,
    )  # fmt: skip
    images = torch.randint(0, 256, (2, 1, side, side), dtype=torch.uint8)
    with (
        torch.autograd.graph.saved_tensors_hooks(on_save, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        output = model(images, masks, 1 / 64, -2.0)
    return model, masks, output, config


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_tokens_parameters_and_flops_are_those_of_a_real_step(decoder, again):
    with FlopCounterMode(display=False) as counter:
        model, masks, output, config = a_step(decoder, again=again)
        output.loss.backward()
    found = plan(config)
    assert (found.kept, found.predicted) == (masks.max_keep, masks.max_predict)
    assert found.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept, predicted = found.kept + 1, found.predicted
    if decoder == "cross":  # our attention is one operator, which the counter looks into from torch 2.15 on only
        attention = 12 * 4 * kept**2 * 192 + 3 * 4 * predicted * kept * 512
    else:
        attention = 12 * 4 * kept**2 * 192 + 3 * 4 * (kept + predicted) ** 2 * 512
    products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    counted = products + 2 * (4 if again else 3) * attention
    if again:  # the counter hooks all layers, which are called then, and the last of a block is not computed again
        rows = predicted if decoder == "cross" else kept + predicted
        counted += 2 * 2 * (12 * kept * 192 * 768 + 3 * rows * 512 * 2048)
    # self: the last block answers for the predicted tokens only
    assert 2 * found.flops == pytest.approx(counted, rel=0.01 if decoder == "cross" else 0.05)


@pytest.mark.parametrize("decoder", ["cross", "self"])
@pytest.mark.parametrize("half", [False, True])
def test_memory_is_what_autograd_keeps(decoder, half):
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    model, _, _output, config = a_step(decoder, 512, half, keep)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = sum(size for place, (size, _) in storages.items() if place not in weights)
    assert plan(config).step_bytes == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize("decoder", ["cross", "self"])
@pytest.mark.parametrize("half", [False, True])
def test_with_blocks_computed_again(decoder, half, monkeypatch):
    """A real step keeps the inputs of its blocks, what lies between them, and one block's activations at a time."""
    storages, given, blocks = {}, {}, []

    def keep(where):
        def on_save(tensor):
            where[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
            return tensor

        return on_save

    def as_given(function, *args, use_reentrant, **options):
        """In the place of PyTorch's: notes what is held until the backward pass, and what the block itself would."""
        own = {}
        for value in args:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                keep(given)(value)
        with torch.autograd.graph.saved_tensors_hooks(keep(own), lambda tensor: tensor):
            result = function(*args, **options)
        blocks.append(own)
        return result

    monkeypatch.setattr("hdxray_fast.training.processes.checkpoint", as_given)
    model, _, _output, config = a_step(decoder, 512, half, keep(storages), again=True)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    outside = {place: size for place, (size, _) in (storages | given).items() if place not in weights}
    one = max(
        sum(size for place, (size, _) in own.items() if place not in weights and place not in outside) for own in blocks
    )
    assert len(blocks) == 12 + 3
    planned = plan(config)
    assert planned.step_bytes == pytest.approx(sum(outside.values()) + one, rel=0.1)
    assert planned.step_bytes < 0.75 * plan(replace(config, checkpoint_activations=False)).step_bytes


def test_a_prepared_set_gives_its_own_figures(tmp_path):
    make_folder(tmp_path / "xrays")
    prepare([tmp_path / "xrays"], tmp_path / "set")
    prepare([tmp_path / "xrays"], tmp_path / "png", format="png", bits=16)
    png = PlanConfig(data=str(tmp_path / "png"), model="vit_tiny_patch16")
    assert "prepared (png, 16 bits)" in describe(plan(png), png.filled_in())
    data = PreparedSet(tmp_path / "set")
    inside, valid = data.shares()
    assert inside == pytest.approx(sum(data[row].inside.mean() for row in range(6)) / 6, abs=0.02)
    grids = [hx.read_canvas(data.source(row), size=SIZE).valid_grid().mean() for row in range(6)]
    assert valid == pytest.approx(sum(grids) / 6)
    config = PlanConfig(data=str(tmp_path / "set"), model="vit_tiny_patch16")
    found = plan(config)
    told = [line.split("the set: ") for line in describe(found, config.filled_in()).splitlines() if "opening" in line]
    assert told == [["  opening  ", f"{found.open_seconds:.2g} s, measured here"]] and found.open_seconds > 0
    assert plan(replace(config, data=None, images=6)).open_seconds is None
    assert found.tokens == (SIZE // 16) ** 2
    with pytest.raises(ConfigError, match=rf"^img_size: got 1280, .* prepared with {SIZE}"):
        plan(PlanConfig(data=str(tmp_path / "set"), img_size=1280))
    assert found.images == 6 and found.prepared_bytes == 6 * SIZE * SIZE
    with pytest.raises(ConfigError):
        plan(PlanConfig(data=str(tmp_path / "xrays")))
    with pytest.raises(ConfigError, match=r"^data: plan reads sets on a disk"):
        plan(PlanConfig(data="s3://bucket/chest"))


def test_rates_say_where_they_come_from(monkeypatch):
    from hdxray_fast.pretrain import rates

    step = {"precision": "bf16", "batch": 8, "flops": 1e12, "seconds": 0.01}
    steps = [
        {**step, "device": "NVIDIA H100 80GB HBM3", "model": "vit_base_patch16", "decoder": "cross"},
        {**step, "device": "AMD EPYC, 2 cores", "model": "vit_base_patch16", "decoder": "cross", "precision": "fp32"},
    ]
    monkeypatch.setattr(rates, "table", lambda: {"steps": steps, "prepare": {}, "stored_share": {"png 8": 0.5}})
    base = Shape.of(PlanConfig(images=1))
    found = device_rate("h100", base, 2e12, "bf16")
    assert found.measured and found.images_per_second == pytest.approx(50) and "scaled by FLOPs" in found.source
    other = device_rate("h100", Shape.of(PlanConfig(images=1, model="vit_large_patch16")), 1e12, "bf16")
    assert not other.measured and other.images_per_second == pytest.approx(100) and "estimate" in other.source
    guess = device_rate("a100", base, 1e12, "bf16")
    assert (
        not guess.measured and guess.images_per_second == pytest.approx(78) and "no step was measured" in guess.source
    )
    assert "no step was measured on this device in fp32" in device_rate("h100", base, 1e12, "fp32").source
    assert device_rate("cpu", base, 1e12, "fp32").measured
    with pytest.raises(ConfigError, match="precision=fp32"):
        device_rate("cpu", base, 1e12, "bf16")
    small = plan(PlanConfig(images=100, format="png", gpus=2, batch_size=5, grad_accum=2, epochs=3))
    assert small.prepared_bytes == 100 * 1280 * 1280 * 0.5 and small.steps == 15
    assert small.prepare_core_seconds is None


def test_one_second_is_one():
    assert [planning._duration(seconds) for seconds in (0.8, 9, 7200)] == ["1 second", "9 seconds", "2.0 hours"]


def test_kinds_of_devices():
    assert is_kind("NVIDIA H100 80GB HBM3", "h100") and not is_kind("NVIDIA H100 80GB HBM3", "cpu")
    assert is_kind("NVIDIA GeForce RTX 4090", "rtx4090") and is_kind("NVIDIA RTX A6000", "a6000")
    assert is_kind("AMD EPYC 9B14, 2 cores", "cpu") and not is_kind("AMD EPYC 9B14, 2 cores", "h200")


def test_the_command_prints_a_plan(capsys):
    assert main(["plan", "--images", "1000000", "--gpus", "8", "--gpu", "h100"]) == 0
    said = capsys.readouterr().out
    for word in ("1,000,000 images", "GFLOP", "GiB a device", "images/s", "TiB prepared", "a checkpoint", "fits"):
        assert word in said
    assert main(["plan", "--images", "10", "--gpu", "cpu", "--json"]) == 0  # in fp32 without being told
    assert json.loads(capsys.readouterr().out)["rate"]["images_per_second"] > 0
    more = ["--shard", "true", "--grad-accum", "2", "--checkpoint-activations", "true"]
    assert main(["plan", "--images", "10", *more]) == 0
    big = PlanConfig(images=10, model="vit_huge_patch16", decoder="self", batch_size=256, gpu="rtx4090")
    assert "DOES NOT FIT: take a smaller batch or --checkpoint-activations true or --shard true" in describe(
        plan(big), big
    )
    big = replace(big, checkpoint_activations=True, gpus=1)
    assert "DOES NOT FIT: take a smaller batch\n" in describe(plan(big), big)
    sharded = plan(PlanConfig(images=10, gpus=8, shard=True))
    assert sharded.state_bytes == plan(PlanConfig(images=10, gpus=8)).state_bytes / 8


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"gpu": "abacus"}, "gpu"),
        ({"images": None}, "images"),
        ({"images": 0}, "images"),
        ({"inside": 1.5}, "inside"),
        ({"epochs": 0}, "epochs"),
        ({"predict": 0}, "epochs"),
    ],
)
def test_plans_that_make_no_sense_are_named(change, culprit):
    with pytest.raises(ConfigError, match=f"^{culprit}"):
        PlanConfig(**{"images": 5, **change})
    for config in (
        lambda: PlanConfig(images=5, model="vit_none"),
        lambda: PretrainConfig(data="x", out="y", model="vit_none"),
    ):
        with pytest.raises(ConfigError, match=r"^model: got 'vit_none'"):
            config()


def test_block_figures_by_hand():
    assert work.block_flops(10, 4) == 24 * 10 * 16 + 4 * 100 * 4
    assert work.block_kept(10, 4, half=False) == 10 * 4 * 48 and work.block_kept(10, 4, half=True) == 10 * 4 * 28
    assert set(DEVICES) >= {"h100", "a100"}


def test_the_decoder_is_the_one_that_pretrain_builds():
    for model in ("vit_tiny_patch16", "vit_small_patch16"):
        width, depth = PretrainConfig(data="x", out="y", model=model).decoder_size
        mae = hx.create_mae(model, decoder="cross", img_size=64, decoder_embed_dim=width, decoder_depth=depth)
        found = plan(PlanConfig(images=1, model=model, img_size=64))
        assert found.parameters == sum(p.numel() for p in mae.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_preset_says_its_patch_and_its_decoder(name):
    """The sizes that were told by parts of the preset's name before."""
    assert ENCODERS[name]["patch_size"] == (64 if name.endswith("_stem64") else 16)
    config = PretrainConfig(data="x", out="y", model=name)
    assert config.decoder_size == ((192, 4) if "_tiny_" in name else (512, 8))
    assert PretrainConfig(data="x", out="y", model=name, decoder_depth=2).decoder_size == (config.decoder_size[0], 2)


def test_a_plan_of_little_counts_in_the_singular():
    config = PlanConfig(images=1, epochs=1, gpu="cpu", gpus=1, img_size=64, model="vit_tiny_patch16").filled_in()
    told = describe(plan(config), config)
    assert "1 epoch, 1 step of" in told and "one checkpoint, at the end (all takes less than --save-minutes 10)" in told
    many = PlanConfig(images=100_000, gpu="cpu", gpus=1).filled_in()
    told = describe(plan(many), many)
    assert re.search(r"6 checkpoints an hour, one every \d+ steps \(--save-minutes 10\); 2 are kept", told)
