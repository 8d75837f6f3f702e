"""The core itself: hand-made calls never read or write outside, and its absence is survived."""

from __future__ import annotations

import multiprocessing
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from plan_helpers import make_plan, ragged_plan

import hdxray_fast as hx
from hdxray_fast.ops import native

core = native.core
pytestmark = pytest.mark.skipif(core is None, reason=f"the native core is not built: {native.why_missing}")
CPU, NO_STREAM = -1, 0


def test_vector_paths_can_be_chosen():
    before = core.vector_path()
    assert core.vector_paths()[0] == "baseline"
    assert before in core.vector_paths()
    with pytest.raises(ValueError, match="vector path 'avx9'"):
        core.set_vector_path("avx9")
    core.set_vector_path("baseline")
    assert core.vector_path() == "baseline"
    core.set_vector_path(before)


def test_the_best_path_is_taken_on_its_own(tmp_path):
    code = "from hdxray_fast import _core; print(_core.vector_paths()[-1] == _core.vector_path())"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert fresh.stdout.strip() == "True", fresh.stderr


CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPUINFO.is_file(), reason="/proc/cpuinfo of x86-64 is asked")
def test_features_are_those_that_the_kernel_lists():
    flags = {line.partition(":")[2] for line in CPUINFO.read_text().splitlines() if line.startswith("flags")}
    listed = {flag.replace("_", ".") for flag in flags.pop().split()}
    known = {"sse4.2", "avx", "avx2", "fma", "f16c", "avx512f"}
    assert set(core.cpu_features()) == listed & known
    assert ("avx2" in core.vector_paths()) == ({"avx2", "fma", "f16c"} <= listed)


@pytest.mark.skipif("HDXRAY_EXPECT_SANITIZED" not in os.environ, reason="only `make sanitize` sets this")
def test_sanitizers_are_watching():
    with open("/proc/self/maps") as maps:
        loaded = maps.read()
    assert "libasan" in loaded
    assert "build/sanitize/site/hdxray_fast/_core" in loaded


# --- hand-made calls --------------------------------------------------------------------------------------------------
class Call:
    """A legal gather of two 16 x 16 patches, as the bindings want it, to be spoilt one value at a time."""

    def __init__(self) -> None:
        self.pixels = torch.arange(32 * 32, dtype=torch.int32).to(torch.uint8)
        self.ids = torch.tensor([0, 3], dtype=torch.int32)
        self.cu = torch.tensor([0, 2], dtype=torch.int32)
        self.scale, self.shift = torch.ones(1), torch.zeros(1)
        self.out = torch.full((2, 256), -7.0)
        self.images = {
            "images": self.pixels.data_ptr(), "dtype": 0, "batch": 1, "channels": 1, "stride_b": 1024, "stride_c": 1024,
            "stride_h": 32, "grid_h": 2, "grid_w": 2, "patch_size": 16, "packed": False,
        }  # fmt: skip
        self.rows = {
            "ids": self.ids.data_ptr(), "cu_seqlens": self.cu.data_ptr(), "n_rows": 2, "scale": self.scale.data_ptr(),
            "shift": self.shift.data_ptr(), "scale_value": 1.0, "shift_value": 0.0,
        }  # fmt: skip
        self.rest = {
            "out": self.out.data_ptr(), "out_dtype": 4, "n_threads": 1, "device": CPU, "stream": NO_STREAM,
        }  # fmt: skip

    def run(self, **changes) -> torch.Tensor:
        parts = [{k: changes.get(k, v) for k, v in part.items()} for part in (self.images, self.rows, self.rest)]
        core.gather(tuple(parts[0].values()), tuple(parts[1].values()), **parts[2])
        return self.out


def test_a_legal_call_works():
    call = Call()
    picture = call.pixels.view(32, 32).float()
    assert torch.equal(call.run(), torch.stack([picture[:16, :16].flatten(), picture[16:, 16:].flatten()]))


def test_scale_and_shift_are_one_number_where_there_is_no_vector():
    expected = Call().run() * 0.5 - 3.0
    assert torch.equal(Call().run(scale=0, shift=0, scale_value=0.5, shift_value=-3.0), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 0},
        {"dtype": 5},
        {"dtype": -1},
        {"batch": -1},
        {"channels": 0},
        {"channels": 4},
        {"stride_h": -32},
        {"grid_h": 0},
        {"grid_h": 1},
        {"grid_w": -2},
        {"patch_size": 0},
        {"patch_size": 257},
        {"ids": 0},
        {"cu_seqlens": 0},
        {"n_rows": 1},
        {"n_rows": -1},
        {"out": 0},
        {"out_dtype": 0},
        {"out_dtype": 17},
        {"device": -2},
    ],
    ids=str,
)
def test_a_spoilt_call_is_refused_and_writes_nothing(changes):
    call = Call()
    with pytest.raises(ValueError, match=r"patches|gather|device"):
        call.run(**changes)
    assert (call.out == -7.0).all()


@pytest.mark.skipif(core is not None and core.build_info()["cuda"].startswith("on"), reason="a build with CUDA paths")
def test_a_cuda_device_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"device 0: this build of the core has CPU paths only \(CUDA off: .+\)"):
        Call().run(device=0)


@pytest.mark.parametrize("position", range(4))
def test_random_ids_are_taken_or_refused_but_never_followed_outside(position):
    """Ids and cu_seqlens of any value: what is legal is gathered, what is not raises."""
    generator = torch.Generator().manual_seed(position)
    taken = 0
    for _ in range(300):
        call = Call()
        spread = 3 if torch.rand(1, generator=generator) < 0.7 else 2**31 - 1
        call.ids.copy_(torch.randint(-1, 2 + spread, (2,), generator=generator, dtype=torch.int64).clamp(max=2**31 - 1))
        if position % 2:
            call.cu.copy_(torch.randint(-1, 4, (2,), generator=generator))
        start, end = call.cu.tolist()
        real = call.ids[: max(0, end)].tolist()
        legal = start == 0 <= end <= 2 and all(0 <= i < 4 for i in real) and real == sorted(set(real))
        if legal:
            taken += 1
            rows = call.run()
            assert not (rows == -7.0).any()
            assert not rows[end:].any()
        else:
            with pytest.raises(ValueError, match="ids or cu_seqlens"):
                call.run()
            assert (call.out == -7.0).all()
    assert position % 2 or taken > 0


@pytest.mark.parametrize(
    ("ids", "cu", "fault"),
    [
        ([0, 1, 0], [0, 2, 3], 0),
        ([], [0, 0, 0], 0),
        ([0], [1, 1, 1], 1),
        ([0, 1], [0, 2, 1], 2),
        ([0, 1], [0, 1, 3], 3),
        ([0, 1, 9, -1], [0, 1, 2], 0),  # slack, whatever it holds
        ([7, 7], [0, 0, 0], 0),
        ([0, 4, 0], [0, 1, 2], 4),
        ([0, 4], [0, 1, 2], 4),
        ([-1, 0], [0, 1, 2], 4),
        ([1, 1], [0, 2, 2], 5),
        ([2, 1], [0, 0, 2], 5),
    ],
)
def test_packed_ids_are_checked_alike_with_and_without_the_core(ids, cu, fault):
    ids, cu = torch.tensor(ids, dtype=torch.int32), torch.tensor(cu, dtype=torch.int32)
    by_core = core.check_packed_ids(ids.data_ptr(), cu.data_ptr(), 2, ids.numel(), 4)
    assert by_core[0] == fault
    assert native._packed_fault(ids, cu, 4) == by_core


def test_mask_plan_refuses_counts_of_another_request():
    inside, valid = torch.zeros(1, 8, 8, dtype=torch.bool), torch.ones(1, 8, 8, dtype=torch.bool)
    index = torch.zeros(1, dtype=torch.int64)
    grids = (inside.data_ptr(), valid.data_ptr(), index.data_ptr(), 1, 8, 8)
    keep_cu, predict_cu = torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    ids = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(ValueError, match="do not belong"):
        core.mask_plan_ids(
            grids, (0, 0.5, 0.5, 1.0, 0, 0), (64, 64), keep_cu.data_ptr(), predict_cu.data_ptr(),
            (ids.data_ptr(), ids.data_ptr(), 64, 64), 1, CPU, NO_STREAM,
        )  # fmt: skip
    assert (ids == 0).all()


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_mask_plan_refuses_shares_that_are_none(position):
    inside, index = torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    grids = (inside.data_ptr(), inside.data_ptr(), index.data_ptr(), 1, 2, 2)
    choice = [0, 0.5, 0.5, 0.5, 0, 0]
    choice[position] = float("nan") if position else 9
    cu = torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="mask_plan"):
        core.mask_plan_counts(grids, tuple(choice), (4, 4), cu[0].data_ptr(), cu[1].data_ptr(), CPU, NO_STREAM)


# --- buffers are written to the last element and no further -----------------------------------------------------------
@pytest.mark.parametrize("patch", [1, 3, 7, 8, 9, 14, 16, 17])
def test_images_at_the_end_of_their_memory(patch):
    """The last patch ends at the last byte of its storage; under `make sanitize` one byte more is an error."""
    plan = ragged_plan((2, 3), [6], [0], patch)
    images = torch.randint(0, 256, (1, 1, 2 * patch, 3 * patch), dtype=torch.uint8)
    assert hx.gather_patches(images, plan).shape == (6, patch**2)


# --- processes --------------------------------------------------------------------------------------------------------
def _gather_threaded(n_threads: int) -> bool:
    """Gather 1024 rows on threads of the core; no torch operation runs, whose own threads do not survive a fork."""
    pixels = np.arange(512 * 512, dtype=np.uint32).astype(np.uint8).reshape(512, 512)
    ids, cu = np.arange(1024, dtype=np.int32), np.array([0, 1024], np.int32)
    scale, shift, out = np.ones(1, np.float32), np.zeros(1, np.float32), np.empty((1024, 256), np.float32)
    images = (pixels.ctypes.data, 0, 1, 1, 512 * 512, 512 * 512, 512, 32, 32, 16, False)
    rows = (ids.ctypes.data, cu.ctypes.data, 1024, scale.ctypes.data, shift.ctypes.data, 1.0, 0.0)
    core.gather(images, rows, out.ctypes.data, 4, n_threads, CPU, NO_STREAM)
    return bool((out.reshape(32, 32, 16, 16).transpose(0, 2, 1, 3).reshape(512, 512) == pixels).all())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif("HDXRAY_EXPECT_SANITIZED" in os.environ, reason="AddressSanitizer and fork with threads do not mix")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_works_in_a_forked_worker_after_threads_have_run():
    assert _gather_threaded(4)
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        assert pool.apply_async(_gather_threaded, (4,)).get(timeout=60)


# --- without the core -------------------------------------------------------------------------------------------------
def test_without_the_core_everything_runs_on_the_reference(monkeypatch):
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    grid = torch.ones(2, 4, 4, dtype=torch.bool)
    plan = hx.plan_masks(grid, grid)
    rows, pred = hx.gather_patches(images, plan, 0.1, 0.2), torch.randn(plan.predict_ids.numel(), 256)
    loss = hx.reconstruction_loss(images, pred, plan)[0]
    monkeypatch.setattr(native, "core", None)
    monkeypatch.setattr(native, "why_missing", "not built here")
    assert torch.equal(hx.plan_masks(grid, grid).keep_ids, plan.keep_ids)
    assert torch.equal(hx.gather_patches(images, plan, 0.1, 0.2), rows)
    torch.testing.assert_close(hx.reconstruction_loss(images, pred, plan)[0], loss)
    with pytest.raises(hx.ArgumentError, match=r"plan\.keep_ids: entry 0 is 99"):
        hx.gather_patches(images, make_plan([[99], []], [[], []], (4, 4)))
    with pytest.raises(hx.BackendError, match=r"not built here.*pip install"):
        hx.gather_patches(images, plan, backend="native")
