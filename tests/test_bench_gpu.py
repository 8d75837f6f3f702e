"""The GPU benchmarks as far as they go without a GPU: races, clocks, formulas, rivals, rows and their table."""

from __future__ import annotations

import json
import math
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
if not (BENCHMARKS / "race.py").exists():
    pytest.skip("needs the project's benchmarks beside the tests", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import attention_rivals  # noqa: E402
import gpu  # noqa: E402
import record  # noqa: E402
import table  # noqa: E402
import work  # noqa: E402
from attention_cases import Inputs, Shape, cross_shape, dense_shape, ragged_shape  # noqa: E402
from cases import CASES  # noqa: E402
from race import Contender, Outcome, best, race, reason  # noqa: E402


class FakeClock:
    """A clock that counts calls instead of seconds: call number n takes as long as it says itself."""

    device, hold = "cpu", True

    def __init__(self, lost_after: str | None = None) -> None:
        self.log: list[tuple[str, int]] = []
        self.lost_after, self.lost = lost_after, False
        self.in_use, self.most = 100, 100

    def sample(self, call, first, inner, host_seconds=0.0):
        seconds = [call(i) for i in range(first, first + inner)]
        self.log.append((getattr(call, "name", ""), first))
        return sum(seconds) / inner

    def settle(self):
        if self.lost:
            raise RuntimeError("an illegal memory access was encountered")

    def reset_peak(self):
        self.most = self.in_use
        return self.in_use

    def peak(self):
        return self.most


def takes(seconds: float):
    """``build()`` of a contender whose every call takes that long."""
    return lambda: lambda _: seconds


def fails(message: str, after: int = 0):
    calls = []

    def call(i):
        calls.append(i)
        if len(calls) > after:
            raise RuntimeError(message)
        return 1e-3

    return lambda: call


# --- races ------------------------------------------------------------------------------------------------------------
def test_contenders_take_turns_and_short_calls_are_sampled_in_a_row():
    clock, order = FakeClock(), []

    def build(name, seconds):
        def call(i):
            order.append((name, i))
            return seconds

        return call

    outcomes = race(
        [Contender("slow", partial(build, "slow", 4e-3)), Contender("fast", partial(build, "fast", 1e-4))],
        clock, rounds=6, seconds=100.0, sets=2,
    )  # fmt: skip
    assert [len(o.samples) for o in outcomes.values()] == [6, 6]
    assert outcomes["slow"].median == 4e-3
    assert outcomes["fast"].median == pytest.approx(1e-4)
    turns = order[-6 * 11 :]  # a round is one call of the slow one and ten of the fast one
    assert [name for name, _ in turns] == (["slow"] + ["fast"] * 10) * 6
    assert [i for name, i in turns if name == "fast"] == list(range(60))  # input sets go on rotating


def test_a_failing_contender_keeps_its_reason_and_loses_nobody():
    field = [
        Contender("cannot be built", lambda: 1 / 0),
        Contender("fine", takes(2e-3)),
        Contender("fails later", fails("out of luck", after=9)),
        Contender("wrong", takes(1e-3)),
        Contender("nan", takes(1e-3)),
        Contender("unchecked", takes(3e-3), checked=False),
    ]
    errors = {"fine": 0.01, "fails later": 0.0, "wrong": 0.5, "nan": math.nan}
    outcomes = race(field, FakeClock(), check=lambda _, name: errors[name], rounds=8, seconds=100.0)
    assert outcomes["cannot be built"].failed == "ZeroDivisionError: division by zero"
    assert len(outcomes["fine"].samples) == len(outcomes["unchecked"].samples) == 8
    assert "out of luck" in outcomes["fails later"].failed
    assert not outcomes["fails later"].samples
    assert "wrong result: relative error 0.5" in outcomes["wrong"].failed
    assert "nan" in outcomes["nan"].failed
    assert best(outcomes, ["wrong", "unchecked", "fine", "nobody"]).name == "fine"
    assert best(outcomes, ["wrong"]) is None


def test_a_lost_device_is_said_and_ends_the_race_with_what_is_known():
    clock = FakeClock()

    def loses_device():
        clock.lost = True
        raise RuntimeError("CUDA error")

    field = [Contender("first", takes(2e-3)), Contender("breaks it", loses_device), Contender("last", takes(1e-3))]
    outcomes = race(field, clock, rounds=5)
    assert outcomes["last"].failed.startswith("not run: the device was lost by breaks it (RuntimeError: an illegal")
    assert "CUDA error" in outcomes["breaks it"].failed
    assert len(outcomes["first"].samples) == 5  # a clock that still answers goes on


def test_memory_is_what_building_and_calling_add():
    clock = FakeClock()

    def prepare():
        clock.in_use += 1000  # inputs in another layout: not the contender's
        return "prepared"

    def build(prepared):
        assert prepared == "prepared"
        clock.in_use += 30

        def call(_):
            clock.most = max(clock.most, clock.in_use + 7)
            return 1e-3

        return call

    assert race([Contender("a", build, prepare=prepare)], clock)["a"].peak_bytes == 37


def test_rounds_fit_the_time_given_but_are_never_too_few():
    assert len(race([Contender("a", takes(1.0))], FakeClock(), rounds=50, seconds=0.1)["a"].samples) == 5
    assert len(race([Contender("a", takes(0.01))], FakeClock(), rounds=50, seconds=0.2)["a"].samples) == 19


def test_reasons_are_one_short_line():
    assert reason(ValueError("a\n  b")) == "ValueError: a b"
    assert len(reason(ValueError("x" * 9999))) <= 400


# --- clocks and rates -------------------------------------------------------------------------------------------------
def test_host_clock_counts_what_a_call_takes():
    seconds = gpu.HostClock().sample(lambda _: time.sleep(0.01), 0, 3)
    assert 0.01 <= seconds < 0.1


def test_input_sets_outlast_the_cache():
    l2 = 50 * 2**20
    for nbytes in (1, 10 * 2**20, 42 * 2**20, 10**9):
        sets = gpu.input_sets(nbytes, l2)
        assert 2 <= sets <= gpu.MAX_SETS
        assert sets == gpu.MAX_SETS or sets * nbytes >= 3 * l2


def test_rates_are_shares_of_the_limits():
    limits = {"copy_gb_s": 3000.0, "matmul_bf16_tflops": 800.0}
    assert gpu.rate(1e-3, limits, flops=4e11, nbytes=1.5e9) == pytest.approx(
        {"tflops": 400, "of_matmul": 0.5, "gb_s": 1500, "of_copy": 0.5}
    )
    assert gpu.rate(1.0, limits) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_reason_for_no_gpu_is_named():
    assert "CUDA" in gpu.why_no_gpu()


# --- formulas ---------------------------------------------------------------------------------------------------------
def test_flops_are_those_that_torch_counts():
    """The plain MAE's, written with plain matrix products; ours embeds the kept patches only, and predicts no class."""
    from mae_steps import Setting
    from plain_mae import PlainMAE
    from torch.utils.flop_counter import FlopCounterMode

    setting = Setting("vit_tiny_patch16", 1, 256, "cpu", 32, 2, (("embed_dim", 48), ("depth", 3), ("num_heads", 3)))
    plain = PlainMAE((256, 256), decoder_embed_dim=32, decoder_depth=2, blocks="torch", **setting.preset)
    keep, predict = setting.counts(1.0)
    with FlopCounterMode(display=False) as counter:
        plain(torch.rand(1, 1, 256, 256), keep)
    embedding_of_hidden, prediction_of_class = 2 * predict * 256 * 48, 2 * 32 * 256
    assert setting.flops("self") / 3 == counter.get_total_flops() - embedding_of_hidden - prediction_of_class


def test_flops_of_the_cross_decoder_are_those_of_its_layers():
    from torch.utils.flop_counter import FlopCounterMode

    import hdxray_fast as hx

    model = hx.create_mae("vit_tiny_patch16", decoder="cross", img_size=256, decoder_embed_dim=32, decoder_depth=2)
    ones = torch.ones(1, 16, 16, dtype=torch.bool)
    plan = hx.plan_masks(ones, ones, 0.9, predict=0.25)
    maps = [torch.rand(plan.max_keep + 1, 192) for _ in range(13)]
    cu = torch.tensor([0, plan.max_keep + 1], dtype=torch.int32)
    with FlopCounterMode(display=False) as counter:
        model.decoder(maps, cu, plan)
    sizes = (plan.max_keep + 1, plan.max_predict)
    attention = 2 * work.attention_flops([sizes[1]], [sizes[0]], 1, 32, False)  # of both blocks; torch may not count it
    expected = work.cross_decoder_flops(*sizes, 192, 32, 2, 256, 13)
    assert counter.get_total_flops() in (expected, expected - attention)


def test_flops_of_the_models_at_full_size():
    """Forward GFLOP of one image at 1280 x 1280: encoder 124, cross decoder 84, self decoder 993 (ViT-B)."""
    from mae_steps import Setting

    base = Setting("vit_base_patch16", 1, device="cpu")
    assert base.counts(0.25) == (640, 1440)
    assert work.encoder_flops(641, 768, 12, 256) / 1e9 == pytest.approx(124, rel=0.01)
    assert base.flops("cross") / 3e9 == pytest.approx(208, rel=0.01)
    assert base.flops("self") / 3e9 == pytest.approx(1120, rel=0.01)
    assert work.encoder_flops(6401, 768, 12, 256) / 1e9 == pytest.approx(2598, rel=0.01)
    assert work.attention_flops([6401] * 8, [6401] * 8, 16, 32, False) / 1e9 == pytest.approx(671, rel=0.01)


@pytest.mark.parametrize(
    ("patch", "pixel_bytes", "grid"),
    [(16, 1, (6, 8)), (16, 2, (3, 4)), (8, 1, (5, 8)), (24, 1, (4, 4)), (16, 4, (2, 3))],
)
def test_sectors_are_counted_as_a_byte_map_would(patch, pixel_bytes, grid):
    gh, gw = grid
    generator = torch.Generator().manual_seed(1)
    kept = [torch.randperm(gh * gw, generator=generator)[:n].sort().values for n in (0, 5, gh * gw, 1)]
    touched = torch.zeros(len(kept), gh * patch, gw * patch * pixel_bytes, dtype=torch.bool)
    width = patch * pixel_bytes
    for image, ids in enumerate(kept):
        for i in ids.tolist():
            row, column = divmod(i, gw)
            touched[image, row * patch : (row + 1) * patch, column * width : (column + 1) * width] = True
    sectors = int(touched.reshape(-1, 32).any(1).sum())
    ids = torch.cat(kept)
    cu = torch.tensor([0, *[len(k) for k in kept]]).cumsum(0)
    assert work.patch_sectors(ids, cu, grid, patch, pixel_bytes) == sectors
    assert work.gather_bytes(ids, cu, grid, patch, pixel_bytes, 2) == (
        32 * sectors + 4 * len(ids) + 2 * len(ids) * patch**2
    )


def test_sectors_of_no_patch_and_of_rows_that_begin_within_a_sector():
    none = torch.empty(0, dtype=torch.int32)
    assert work.patch_sectors(none, torch.tensor([0, 0]), (4, 4), 16, 1) == 0
    with pytest.raises(ValueError, match="40 bytes"):
        work.patch_sectors(none, torch.tensor([0, 0]), (5, 5), 8, 1)


# --- attention --------------------------------------------------------------------------------------------------------
def test_ragged_lengths_are_those_of_contour_plans():
    shape = ragged_shape(64, 12, 64)
    assert shape == ragged_shape(64, 12, 64)
    assert len(shape.lengths_q) == 64
    assert 500 <= min(shape.lengths_q) < 600
    assert 750 < max(shape.lengths_q) <= 900
    assert len(set(shape.lengths_q)) > 40


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "shape",
    [dense_shape(2, 65, 3, 32), cross_shape(2, 33, 65, 2, 32), Shape((5, 63, 17), (5, 63, 17), 2, 32)],
    ids=["dense", "cross", "ragged"],
)
def test_rivals_compute_the_same_function(shape, training):
    """PyTorch's CPU flash backend stands for all of SDPA; those who need a GPU say so and lose nobody."""
    inputs = Inputs.make(shape, 2, training, "cpu")
    inputs.answer()
    field = attention_rivals.contenders(inputs, flex=False)
    outcomes = race(
        field, gpu.HostClock(), check=lambda r, _: inputs.error(attention_rivals.unpacked(r)), seconds=0.01, sets=2
    )
    flash = outcomes[attention_rivals.sdpa_name("flash", padded=not shape.dense)]
    assert flash.failed is None
    assert 0 < flash.error < 0.02
    assert len(flash.samples) >= 5
    assert outcomes[attention_rivals.VARLEN].failed or torch.cuda.is_available()
    if not shape.dense:
        assert outcomes[attention_rivals.UNMASKED].samples  # timed, and never held to the same result
        assert outcomes[attention_rivals.UNMASKED].error is None


def test_an_answer_of_another_function_is_wrong():
    inputs = Inputs.make(Shape((5, 63), (5, 63), 2, 32), 1, False, "cpu")
    sets = attention_rivals.pad_all(inputs)
    results = attention_rivals.unpacked(attention_rivals.unmasked(inputs, sets)(0))
    assert inputs.error(results) > 0.1  # padding was attended to
    assert math.isnan(inputs.error((torch.full_like(results[0], math.nan),)))


def test_padding_and_packing_are_inverse():
    inputs = Inputs.make(Shape((5, 1, 17), (3, 20, 4), 2, 32), 1, False, "cpu")
    q, k, _, _ = inputs.sets[0]
    assert inputs.padded(q, True).shape == (3, 17, 2, 32)
    assert torch.equal(inputs.packed(inputs.padded(q, True, 32), True), q)
    assert torch.equal(inputs.packed(inputs.padded(k, False), False), k)


# --- pixels -----------------------------------------------------------------------------------------------------------
def test_pixel_rivals_compute_the_same_function(monkeypatch):
    import bench_gpu_pixels as pixels

    import hdxray_fast as hx

    monkeypatch.setattr(pixels, "SIZE", 128)
    inside, valid = pixels.contour_grids(3, grid=8)
    plan = hx.plan_masks(inside, valid, 0.5, 0.5)
    (images,) = pixels.image_sets(1, batch=3, device="cpu")
    assert images.shape == (3, 1, 128, 128)
    rows = pixels.batch_rows(plan.keep_ids, plan.keep_cu_seqlens, 64)
    ours = hx.gather_patches(images, plan, pixels.SCALE, pixels.SHIFT, out_dtype=torch.bfloat16)
    for pick in (pixels.patch_rows, pixels.patch_rows_index_first):
        assert torch.equal(pixels.gathered(images, rows, pick), ours)

    rows = pixels.batch_rows(plan.predict_ids, plan.predict_cu_seqlens, 64)
    pred = torch.randn(len(rows), 256).bfloat16()
    ours, _ = hx.reconstruction_loss(images, pred, plan, pixels.SCALE, pixels.SHIFT)
    for pick in (pixels.patch_rows, pixels.patch_rows_index_first):
        torch.testing.assert_close(pixels.mse_loss(images, pred, rows, pick), ours)


# --- steps ------------------------------------------------------------------------------------------------------------
def test_steps_train_and_encoders_run():
    import bench_gpu_encoder as encoder
    from mae_steps import Setting, not_finite, our_step, plain_step

    import hdxray_fast as hx

    setting = Setting("vit_tiny_patch16", 2, 128, "cpu", 32, 1, (("embed_dim", 48), ("depth", 2), ("num_heads", 3)))
    for step in (our_step(setting, "cross"), our_step(setting, "self"), plain_step(setting, blocks="torch")):
        losses = [step(0) for _ in range(8)]
        assert all(not_finite(loss, "") == 0 for loss in losses)
        assert losses[-1] < losses[0]  # the same masks and image over and over: it learns
    assert math.isnan(not_finite(torch.tensor(math.inf), ""))

    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    tokens = encoder.our_encoder(setting, hx.plan_all(valid))(0)
    assert tokens.shape == (2 * 65, 48)
    if encoder.import_timm() is not None:
        assert encoder.timm_encoder(setting)(0).shape == (2, 65, 48)


# --- rows and the table -----------------------------------------------------------------------------------------------
def outcomes() -> dict[str, Outcome]:
    return {
        "triton": Outcome("triton", [1e-3, 1.1e-3, 0.9e-3], error=0.004, peak_bytes=2**30, setup_seconds=3.21),
        "flash": Outcome("flash", [1.5e-3] * 3, error=0.003),
        "cudnn": Outcome("cudnn", [1.2e-3] * 3, error=0.003),
        "broken": Outcome("broken", failed="RuntimeError: no | kernel"),
    }


def gpu_row(tmp_path: Path, monkeypatch, **changes) -> record.Comparison:
    info = {"kind": "cuda", "name": "NVIDIA Test 1", "driver": "580.1", "cuda": "13.0"}
    monkeypatch.setattr(record, "device_info", lambda kind: info)
    arguments = {"bar": 1.1, "extra": {"rate": {"tflops": 400.0, "of_matmul": 0.5}}, **changes}
    title = CASES["dense 64 forward"].title
    rivals = arguments.pop("rivals", ["flash", "cudnn", "broken"])
    ours = arguments.pop("ours", "triton")
    comparison = record.Comparison.of("gpu_attention", title, outcomes(), ours, rivals, **arguments)
    comparison.save(tmp_path)
    return comparison


def test_a_race_becomes_a_row_against_its_strongest_rival(tmp_path, monkeypatch):
    comparison = gpu_row(tmp_path, monkeypatch)
    (row,) = json.loads((tmp_path / "nvidia-test-1" / "gpu_attention.json").read_text())["rows"]
    assert row["rival"]["name"] == "cudnn"
    assert row["ratio"] == comparison.ratio == pytest.approx(1.2)
    assert row["bar_met"] is True
    field = {c["name"]: c for c in row["extra"]["contenders"]}
    assert field["broken"]["failed"] == "failed: RuntimeError: no | kernel"
    assert (field["triton"]["peak_mib"], field["triton"]["relative_error"]) == (1024, 0.004)
    assert field["flash"]["median"] == 1.5e-3
    text = table.table(tmp_path)
    assert "| 1 ms | 1.2 ms (cudnn) | **1.20×** | ≥ 1.1× | 400 TFLOP/s, 50% of a big product |" in text
    assert text.count("not measured") >= 3 * (len(CASES) - 1)
    assert "driver 580.1, CUDA 13.0" in text


def test_failed_rows_stand_in_the_table_and_promise_nothing(tmp_path, monkeypatch):
    comparison = gpu_row(tmp_path, monkeypatch, ours="broken", rivals=["flash"])
    assert (comparison.ratio, comparison.bar_met) == (None, False)
    assert "| failed: RuntimeError: no / kernel | 1.5 ms (flash) | – | ≥ 1.1× (missed) |" in table.table(tmp_path)
    comparison = gpu_row(tmp_path, monkeypatch, rivals=["broken"])
    assert (comparison.ratio, comparison.bar_met) == (None, None)
    assert "≥ 1.1× (not known)" in table.table(tmp_path)


def test_out_gets_a_copy_of_the_results(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    gpu_row(tmp_path / "results", monkeypatch)
    where = Path("nvidia-test-1", "gpu_attention.json")
    assert (tmp_path / "out" / "results" / where).read_text() == (tmp_path / "results" / where).read_text()


def test_without_a_gpu_the_table_says_not_measured(tmp_path):
    text = table.table(tmp_path)
    for case in CASES.values():
        assert (f"| {case.title} | not measured | {case.rival} | not measured |" in text) == (case.bar is not None)
    (tmp_path / "compile").mkdir()
    (tmp_path / "compile" / "attention.json").write_text('[{"kernel": "not a row"}]')
    assert table.table(tmp_path) == text


def test_sources_without_git_are_known_by_a_digest(monkeypatch):
    record.commit.cache_clear()
    monkeypatch.setattr(record, "_answer", lambda *command: "")
    try:
        assert record.commit().startswith("sources ")
    finally:
        record.commit.cache_clear()


def test_cases_and_benchmarks_name_each_other():
    for case in CASES.values():
        assert (BENCHMARKS / f"bench_{case.bench}.py").is_file(), case
    assert len({case.title for case in CASES.values()}) == len(CASES)
